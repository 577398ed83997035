"""No request, and no second of requests, takes more system calls, context switches or writes than it did."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from perf.paced import baseline, counting
from perf.paced.counting import CountError, Counts
from tests.process import ROOT, after

PACED = ROOT / "perf" / "paced"
MODEL = baseline.Model(
    {"system_calls": 3.0, "voluntary": 1.0, "writes": 0.0},
    {"system_calls": 400.0, "voluntary": 100.0, "writes": 10.0},
    {"read": 1000.0, "futex": 200.0},
)


@pytest.fixture
def known_version() -> None:
    if baseline.VERSION not in json.loads(baseline.BASELINE.read_text()):
        pytest.skip(f"no baseline for Python {baseline.VERSION}: write it with `python perf/paced --update`")


def paced(*arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, str(PACED), *arguments], capture_output=True, text=True, timeout=300, env=variables or None
    )


# The program


@pytest.mark.usefixtures("known_version")
def test_requests_that_come_one_by_one_take_no_more_than_the_baseline() -> None:
    checked = paced("--check")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "slow" in checked.stdout


# The writer as it was: its pause held for the first record only, and then it wrote for as long as any had come.
EAGER = """
import asyncio
from adcore.deliverylog import writer

async def gather(self):
    if not (len(self.queue) or self._closing or self._reopen_wanted):
        self._wake.clear()
        self.queue.ready_bytes = 1
        await self._wait_for_wake(None)
        await asyncio.sleep(0.01)

writer.LogWriter._gather = gather
"""


@pytest.mark.usefixtures("known_version")
def test_a_writer_that_does_not_wait_for_more_records_is_found_out(tmp_path: Path) -> None:
    held_to = baseline.read(baseline.BASELINE)
    with counting.served(tmp_path, launcher=after(EAGER)) as server:
        found = [
            baseline.regressions(held_to, way(server, tmp_path, 1000, counting.PAUSE_S), baseline.TOLERANCE)
            for way in counting.WAYS
        ]
    assert found[0].keys() == {"voluntary", "writes"}
    assert found[1].keys() == {"system_calls"}
    assert "futex" in found[1]["system_calls"]


# Arithmetic


def counts(requests: int, seconds: float, **counted: float) -> Counts:
    return Counts(requests, seconds, counted, {})


def test_two_windows_tell_what_follows_from_requests_from_what_follows_from_time() -> None:
    fast = [counts(5000, 2.5, voluntary=5250.0, writes=25.0), counts(5000, 4.0, system_calls=16600.0)]
    slow = [counts(500, 5.0, voluntary=1000.0, writes=51.0), counts(500, 6.0, system_calls=3900.0)]
    fast[1].names["read"] = 5000
    found = baseline.fit(fast, slow)
    assert found.per_request == pytest.approx({"voluntary": 1.0, "writes": 0.0, "system_calls": 3.0}, abs=1e-3)
    assert found.per_second == pytest.approx({"voluntary": 100.0, "writes": 10.2, "system_calls": 400.0}, rel=1e-2)
    assert found.names == {"read": 1000.0}


def test_the_baseline_is_the_median_of_its_rounds() -> None:
    models = [
        baseline.Model(
            {name: value * factor for name, value in MODEL.per_request.items()},
            {name: value * factor for name, value in MODEL.per_second.items()},
            MODEL.names if factor == 1 else {},
        )
        for factor in (0.5, 1, 9)
    ]
    assert baseline.middle(models) == MODEL._replace(names={"read": 0.0, "futex": 0.0})


@pytest.mark.parametrize(
    ("measure", "count", "failed"),
    [
        # 1,000 requests in half a second: 1,050 switches and 5 writes, 5 % more, and 2 at the ends
        ("voluntary", 1050.0, False),
        ("voluntary", 1104.0, False),
        ("voluntary", 1105.0, True),
        ("voluntary", 3.0, False),
        ("writes", 7.0, False),
        ("writes", 8.0, True),
        ("system_calls", 3362.0, False),
        ("system_calls", 3363.0, True),
    ],
)
def test_five_percent_more_is_a_regression(measure: str, count: float, failed: bool) -> None:
    found = baseline.regressions(MODEL, counts(1000, 0.5, **{measure: count}), baseline.TOLERANCE)
    assert list(found) == [measure] * failed


def test_a_machine_that_takes_longer_is_allowed_what_happens_meanwhile() -> None:
    assert not baseline.regressions(MODEL, counts(1000, 5.0, writes=52.0), baseline.TOLERANCE)
    assert baseline.regressions(MODEL, counts(1000, 0.5, writes=52.0), baseline.TOLERANCE)


def test_a_regression_names_the_system_calls_that_have_grown() -> None:
    found = counts(1000, 0.5, system_calls=9000.0)
    found.names.update({"read": 1000, "futex": 5200, "flock": 600})
    [text] = baseline.regressions(MODEL, found, baseline.TOLERANCE).values()
    assert text == (
        "system_calls: 9,000 for 1,000 requests in 0.5 s, 181% more than its baseline of 3,200; "
        "per 1,000 requests +5000 futex, +600 flock"
    )


def test_a_baseline_that_holds_a_measure_to_nothing_any_more_is_said() -> None:
    [line] = baseline.improvements(MODEL, counts(1000, 0.5, voluntary=700.0, writes=5.0))
    assert line.startswith("voluntary: 700 for 1,000 requests in 0.5 s, more than 5% below its baseline of 1,050")


def test_an_update_replaces_only_this_version(tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    path.write_text('{"2.7": {}}')
    baseline.write(path, MODEL)
    assert baseline.read(path) == MODEL
    assert json.loads(path.read_text())["2.7"] == {}


def test_a_version_of_python_without_baseline_is_an_error_of_its_own(tmp_path: Path) -> None:
    held_to = tmp_path / "baseline.json"
    held_to.write_text('{"2.7": {}}')
    checked = paced("--check", "--baseline", str(held_to))
    assert checked.returncode == 2
    assert f"write {baseline.VERSION} with --update" in checked.stderr


# strace


TABLE = """\
strace: Process 77 detached
% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 60.00    0.000300           0      1012           epoll_pwait
 40.00    0.000200           0       575        17 futex
  0.00    0.000000           0         1           io_uring_enter
------ ----------- ----------- --------- --------- ----------------
100.00    0.000500           0      1588        17 total
"""


def test_the_table_of_strace() -> None:
    assert counting.parse_strace(TABLE) == {"epoll_pwait": 1012, "futex": 575, "io_uring_enter": 1}
    with pytest.raises(CountError, match="not the table"):
        counting.parse_strace("nothing")


@pytest.fixture
def sleeper() -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def test_strace_sees_all_threads_and_children_and_leaves_them(tmp_path: Path) -> None:
    sleep = "threading.Thread(target=time.sleep, args=(60,)).start()"
    code = f"import os, threading, time\nos.fork()\n{sleep}\nos.write(1, b'up\\n')"
    with subprocess.Popen(
        [sys.executable, "-uc", code], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            assert process.stdout is not None
            assert [process.stdout.readline() for _ in range(2)] == ["up\n", "up\n"]
            with counting.tracing(process.pid, tmp_path / "out"):
                assert not counting.is_traced(process.pid, 0)
            assert counting.is_traced(process.pid, 0)
            assert process.poll() is None
        finally:
            subprocess.run(["kill", "-KILL", "--", f"-{process.pid}"], check=True)


def test_without_strace_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sleeper: "subprocess.Popen[bytes]"
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with (
        pytest.raises(CountError, match=r"strace is not installed \(Debian: strace\)"),
        counting.tracing(sleeper.pid, tmp_path / "out"),
    ):
        pass


def test_a_process_that_strace_may_not_attach_to_is_an_error_with_the_way_out(
    tmp_path: Path, sleeper: "subprocess.Popen[bytes]"
) -> None:
    with (  # one process has one tracer
        counting.tracing(sleeper.pid, tmp_path / "out"),
        pytest.raises(CountError, match=r"ptrace_scope"),
        counting.tracing(sleeper.pid, tmp_path / "other"),
    ):
        pass
