"""perf/idle: its arithmetic, and one small real run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from perf.idle.__main__ import Member, Result, Role, by_role, parse_memory, table
from tests.process import PATIENCE_S, ROOT

ROLLUP = """\
55a4c0000000-7ffd5c5fe000 ---p 00000000 00:00 0                          [rollup]
Rss:               11208 kB
Pss:                4010 kB
Pss_Dirty:          1900 kB
Shared_Clean:       7000 kB
Private_Clean:      1024 kB
Private_Dirty:      2048 kB
Swap:                  0 kB
"""


def test_the_memory_of_a_process() -> None:
    assert parse_memory(ROLLUP) == (4010, 3072)


def test_processes_are_added_up_by_what_they_do() -> None:
    before = {
        1: Member("parent", 1.0, 0, 0),
        2: Member("worker", 5.0, 0, 0),
        3: Member("worker", 5.0, 0, 0),
        4: Member("poller", 0.75, 0, 0),
    }
    after = {
        1: Member("parent", 1.0, 1024, 512),
        2: Member("worker", 5.1, 2048, 1024),
        3: Member("worker", 6.1, 2048, 1024),  # it has waited for the poller, of which 0.25 s came meanwhile
        5: Member("counts", 0.2, 1024, 1024),
    }
    found = by_role(before, after, 10.0)
    assert list(found) == ["parent", "worker", "counts"]
    assert found["parent"] == Role(1, 0.0, 1.0, 0.5)
    assert tuple(found["worker"]) == pytest.approx((2, 4.5, 4.0, 2.0))
    assert tuple(found["counts"]) == pytest.approx((1, 2.0, 1.0, 1.0))
    result = Result(2, 50, 67, 10.0, found)
    assert tuple(result.total) == pytest.approx((4, 6.5, 6.0, 3.5))
    assert table(result) == (
        "2 workers, 50 campaigns, 67 creatives, 10 s without a request\n"
        "            processes  CPU, % of a core  PSS, MiB  private, MiB\n"
        "parent              1             0.000       1.0           0.5\n"
        "worker              2             4.500       4.0           2.0\n"
        "counts              1             2.000       1.0           1.0\n"
        "all                 4             6.500       6.0           3.5"
    )


def idle(tmp_path: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    (tmp_path / "t").mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, "perf/idle", "--output", str(tmp_path / "results"), *options],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path / "t")},
        capture_output=True,
        text=True,
        timeout=6 * PATIENCE_S,
    )


def test_a_small_run(tmp_path: Path) -> None:
    done = idle(tmp_path, "--workers", "1,2", "--campaigns", "60", "--seconds", "0.5", "--settle", "1")
    assert done.returncode == 0, done.stderr
    [path] = (tmp_path / "results").glob("idle-*.json")
    one, two = json.loads(path.read_text())["results"]
    assert (one["roles"]["worker"]["processes"], "parent" in one["roles"]) == (1, False)
    assert (two["roles"]["worker"]["processes"], two["roles"]["parent"]["processes"]) == (2, 1)
    assert one["total"]["pss_mib"] > one["total"]["private_mib"] > 10
    assert two["total"]["processes"] == sum(role["processes"] for role in two["roles"].values())
    assert one["creatives"] == 67 + 20
    assert "2 workers, 60 campaigns, 87 creatives" in done.stdout
    assert list((tmp_path / "t").iterdir()) == []


@pytest.mark.parametrize(
    ("option", "value", "problem"),
    [("--workers", "0", "at least 1"), ("--seconds", "0", "more than 0"), ("--settle", "1e9", "at most 3600")],
)
def test_what_cannot_be_measured_is_a_mistake(tmp_path: Path, option: str, value: str, problem: str) -> None:
    done = idle(tmp_path, option, value)
    assert done.returncode == 2
    assert problem in done.stderr
