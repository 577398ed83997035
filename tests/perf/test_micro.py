"""No stage of a request allocates more than it did, and a stage that does is named."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from perf.micro import baseline
from perf.micro.allocations import steady_environment
from tests.process import ROOT

MICRO = ROOT / "perf" / "micro"


def micro(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, str(MICRO), *arguments], capture_output=True, text=True, timeout=120)


def doctored(path: Path, stage: str, factor: float) -> Path:
    """The baseline with one stage changed."""
    known = json.loads(baseline.BASELINE.read_text())
    known[baseline.VERSION]["blocks"][stage] *= factor
    path.write_text(json.dumps(known))
    return path


@pytest.fixture(scope="module")
def known_version() -> None:
    if baseline.VERSION not in json.loads(baseline.BASELINE.read_text()):
        pytest.skip(f"no baseline for Python {baseline.VERSION}: write it with `python perf/micro --update`")


@pytest.mark.usefixtures("known_version")
def test_no_stage_allocates_more_than_its_baseline() -> None:
    checked = micro("--check")
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.usefixtures("known_version")
def test_a_stage_that_allocates_more_than_5_percent_more_fails_and_is_named(tmp_path: Path) -> None:
    held_to = doctored(tmp_path / "baseline.json", "sign", 1 / 1.06)
    checked = micro("--check", "--stage", "sign", "--stage", "parse", "--baseline", str(held_to))
    assert checked.returncode == 1, checked.stdout + checked.stderr
    failed = [line for line in checked.stdout.splitlines() if line.startswith("FAILED")]
    assert len(failed) == 1
    assert "sign" in failed[0]
    assert "6.0% more than its baseline" in failed[0]


@pytest.mark.usefixtures("known_version")
def test_a_stage_within_5_percent_passes(tmp_path: Path) -> None:
    held_to = doctored(tmp_path / "baseline.json", "sign", 1 / 1.04)
    checked = micro("--check", "--stage", "sign", "--baseline", str(held_to))
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_a_version_of_python_without_baseline_is_an_error_of_its_own(tmp_path: Path) -> None:
    held_to = tmp_path / "baseline.json"
    held_to.write_text('{"2.7": {"blocks": {}, "instructions": {}}}')
    checked = micro("--check", "--baseline", str(held_to))
    assert checked.returncode == 2
    assert baseline.VERSION in checked.stderr


@pytest.mark.parametrize(
    ("counted", "held_to", "failed"),
    [
        ({"a": 100.0}, {"a": 100.0}, 0),
        ({"a": 105.0}, {"a": 100.0}, 0),
        ({"a": 105.1}, {"a": 100.0}, 1),
        ({"a": 50.0}, {"a": 100.0}, 0),
        ({"a": 1.0}, {"a": 0.0}, 1),
        ({"a": 1.0}, {}, 1),
    ],
)
def test_what_counts_as_a_regression(counted: dict[str, float], held_to: dict[str, float], failed: int) -> None:
    assert len(baseline.regressions(counted, held_to)) == failed


def test_a_baseline_that_holds_a_stage_to_nothing_any_more_is_said() -> None:
    lines = baseline.improvements({"a": 90.0, "b": 96.0, "new": 1.0}, {"a": 100.0, "b": 100.0})
    assert len(lines) == 1
    assert lines[0].startswith("a: 90.00 blocks/op, 10.0% below its baseline")


def test_an_update_replaces_only_the_stages_that_were_counted(tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    baseline.write(path, {"a": 1.0, "b": 2.0}, {})
    baseline.write(path, {"b": 3.004}, {"request": 5.4})
    assert baseline.read_blocks(path) == {"a": 1.0, "b": 3.0}
    assert json.loads(path.read_text())[baseline.VERSION]["instructions"] == {"request": 5}


COUNTED = """
import sys, tempfile
from pathlib import Path
from perf.micro.allocations import Counter
from perf.micro.stages import Stage
with tempfile.TemporaryDirectory() as folder:
    counter = Counter(Path(folder))
counter.install()
for call in {calls}:
    print(*counter.count(Stage(call)))
"""


def test_every_request_for_memory_is_counted_once() -> None:
    """The block that is freed at once, the large one (which pymalloc passes on), and the one that grows."""
    calls = (
        "(lambda: None, object, lambda: bytearray(100), lambda: bytearray(100_000), lambda: bytearray(9).extend(b'b'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", COUNTED.format(calls=calls)],
        env={**steady_environment(), "PYTHONPATH": os.fspath(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    nothing, one, small, large, grown = [tuple(map(float, line.split())) for line in done.stdout.splitlines()]
    assert nothing == (0, 0)
    assert one == (1, object.__sizeof__(object()))
    assert small[0] == 2
    assert large[0] == 2
    assert large[1] - small[1] == 100_000 - 100
    assert grown[0] == 3
