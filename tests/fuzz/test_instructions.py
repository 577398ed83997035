"""Where instructions can't be counted, the reason is named; where they can, a count repeats itself."""

import json
import subprocess
from pathlib import Path

import pytest

from perf.micro.allocations import steady_environment
from tests.fuzz import instructions
from tests.fuzz.instructions import CallgrindMissing, Counter

COUNTED = """
import json, sys
from pathlib import Path
from tests.fuzz.instructions import Counter
counter = Counter(Path(sys.argv[1]))
before = counter.take()
counter.start()
def work(times):
    for _ in range(times):
        pass
work(2000)
counts = []
for times in (0, 1000, 1000, 2000):
    counter.take()
    work(times)
    counts.append(counter.take())
print(json.dumps([before, *counts]))
"""


def test_a_count_grows_with_the_work_and_with_nothing_else(tmp_path: Path) -> None:
    command = instructions.command(tmp_path, ["-c", COUNTED, str(tmp_path)])
    # A process whose lines are counted for coverage works for that as well.
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=steady_environment())
    before, nothing, once, again, twice = json.loads(done.stdout)
    assert before == 0
    assert nothing < 20_000
    assert once - nothing > 10_000
    assert abs(once - again) < 500
    # Numbers above 256 are made anew.
    assert 1.9 < (twice - nothing) / (once - nothing) < 2.2


def test_without_valgrind_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CallgrindMissing, match="apt-get install valgrind"):
        instructions.command(tmp_path, [])


@pytest.mark.parametrize(
    ("compiler", "message"), [("no-such-cc", "no no-such-cc"), ("false", "needs valgrind/callgrind.h")]
)
def test_without_a_compiler_or_the_header_it_is_said_which(
    compiler: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", compiler)
    with pytest.raises(CallgrindMissing, match=message):
        instructions.command(tmp_path, [])


def test_a_process_that_is_not_counted_says_so(tmp_path: Path) -> None:
    instructions.command(tmp_path, [])
    with pytest.raises(CallgrindMissing, match="does not run under callgrind"):
        Counter(tmp_path)
