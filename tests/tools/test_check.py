"""`adctl check` as Nagios runs it: one line, performance data, and the exit status."""

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from adtools import cli
from tests.inventories import campaign, document
from tests.process import Adcore, adctl, serving, wait_for
from tests.tools.statuses import answering, of_workers, status

LINE = re.compile(r"ADCORE (OK|WARNING|CRITICAL|UNKNOWN) - [^|\n]+( \| (\S+=\S+)( \S+=\S+)*)?\n")


def check(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str]:
    code = cli.main(["check", *args])
    line = capsys.readouterr().out
    assert LINE.fullmatch(line), line
    assert line.split()[1] == ("OK", "WARNING", "CRITICAL", "UNKNOWN")[code]
    return code, line


def lost(records: int, *, paid: int) -> dict[str, Any]:
    return {"counted": {"log_dropped": records, "log_dropped_paid": paid}}


CASES: list[tuple[str, Any, list[str], int, str]] = [
    ("all is well", status(log={"waiting_bytes": 0}), [], 0, "OK - revision 7, 1234.5 requests/s |"),
    ("the queue at its threshold", status(), [], 0, "log_queue=50.0%;50;90;0"),
    ("the queue fills", status(log={"waiting_bytes": 501}), [], 1, "WARNING - log_queue is 50.1%"),
    ("the queue is full", status(log={"waiting_bytes": 999}), [], 2, "log_queue=99.9%;50;90;0"),
    ("an old table", status(refresh={"age_s": 61}), [], 1, "table_age is 61s"),
    ("a very old table", status(refresh={"age_s": 601}), [], 2, "table_age=601s;60;600;0"),
    ("records were lost", status(rates=lost(2, paid=1)), [], 2, "drops is 1 "),
    ("only unpaid records were lost", status(rates=lost(2, paid=0)), [], 1, "WARNING - drops_unpaid is 2 "),
    ("an earlier version's records were lost", status(rates={"counted": {"log_dropped": 1}}), [], 2, "drops is 1 "),
    (
        "records of workers were lost",
        of_workers(status(rates=lost(2, paid=1)), status(rates={"counted": {"log_dropped": 3}})),
        [],
        2,
        "drops=4;;0;0 drops_unpaid=1;0;;0",
    ),
    ("bad rows", status(table={"rejected_count": 3}), [], 1, "bad_rows is 3 "),
    ("no table", status(table={"revision": None}, refresh={"age_s": None}), [], 2, "CRITICAL - no ad table yet"),
    (
        "one's own thresholds",
        status(),
        ["-w", "latency_p99=0.1", "-c", "latency_p99=9"],
        1,
        "latency_p99=0.4ms;0.1;9;0",
    ),
    ("a range to stay in", status(), ["--critical", "requests=2000:"], 2, "requests is 1234 (outside range 2000:)"),
    ("a range to stay out of", status(), ["-c", "lag_p99=@1:2"], 2, "lag_p99=1.024ms;;@1:2;0"),
    ("a threshold taken away", status(refresh={"age_s": 999}), ["-w", "table_age=", "-c", "table_age="], 0, "999s"),
    ("a worker is gone", of_workers(status(), {"error": "no connection"}), [], 2, "workers_missing is 1 "),
    ("the worst worker", of_workers(status(), status(refresh={"age_s": 99})), [], 1, "table_age is 99s"),
    ("workers add up", of_workers(status(), status()), [], 0, "requests=2469.0;;;0"),
    ("every worker is gone", of_workers({"error": "a | b\nc"}), [], 2, "worker 1: a / b c"),
    ("no workers", of_workers(), [], 2, "no worker is running"),
    ("no range", status(), ["-w", "table_age=soon"], 3, "table_age: "),
    ("no such value", status(), ["-c", "age=3"], 3, "'age=3' is not NAME=RANGE; there are table_age,"),
]


@pytest.mark.parametrize(("answer", "args", "code", "text"), [case[1:] for case in CASES], ids=[c[0] for c in CASES])
def test_the_line_and_the_exit_status(
    capsys: pytest.CaptureFixture[str], answer: Any, args: list[str], code: int, text: str
) -> None:
    with answering(answer) as address:
        found, line = check(capsys, "--control", address, *args)
    assert (found, text in line) == (code, True), line


@pytest.mark.parametrize(("body", "code"), [(b"<html>", 200), ({"error": "no"}, 404), ([1], 200), ({"a": 1}, 200)])
def test_what_is_no_adcore_is_critical(capsys: pytest.CaptureFixture[str], body: Any, code: int) -> None:
    with answering(body, code) as address:
        found, line = check(capsys, "--control", address)
    assert found == 2
    assert "is it the --control address of a server?" in line


def test_who_cannot_be_asked_is_unknown_and_who_does_not_answer_critical(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ADCORE_CONTROL", raising=False)
    assert check(capsys, "--control", "nonsense")[0] == 3
    assert "Say --control" in check(capsys)[1]
    assert check(capsys, "--control", f"unix:{tmp_path}/none.sock")[0] == 2
    assert check(capsys, "--colour") == (3, "ADCORE UNKNOWN - the command line is wrong; see adctl check --help\n")
    assert check(capsys, "--poller")[0] == 3
    assert cli.main(["check", "--help"]) == 0


def test_a_real_server_from_start_to_end(tmp_path: Path) -> None:
    source = f"sqlite:///{tmp_path}/ads.db"
    bad = campaign("a")
    adctl("apply", "--source", source, "-", stdin=json.dumps(document(bad)))
    with serving(tmp_path / "state", "--source", source) as server:
        well = adctl("check", ADCORE_CONTROL=server.control)
        assert (well.returncode, well.stdout.startswith("ADCORE OK - revision ")) == (0, True), well
        assert "table_age=" in well.stdout
        # A server whose loop hangs: reachable, and no answer.
        server.signal(signal.SIGSTOP)
        wait_for(lambda: _is_stopped(server))
        hangs = adctl("check", "--control", server.control)
        server.signal(signal.SIGCONT)
        assert (hangs.returncode, "timed out" in hangs.stdout) == (2, True), hangs
        server.stop()
        gone = adctl("check", "--control", server.control)
        assert gone.returncode == 2


def test_the_units_of_a_host_are_looked_at_together(tmp_path: Path) -> None:
    """systemd's units have a control listener each."""
    source = f"sqlite:///{tmp_path}/ads.db"
    adctl("apply", "--source", source, "-", stdin=json.dumps(document(campaign("a"))))
    looks = ["check", "-c", "workers=2:", "--control", f"unix:{tmp_path}/*/control.sock"]
    with (
        serving(tmp_path / "1", "--source", source) as one,
        serving(tmp_path / "2", "--source", source) as two,
    ):
        both = adctl(*looks)
        assert (both.returncode, "workers=2.0;;2:;0" in both.stdout) == (0, True), both
        top = adctl("top", "--once", "--control", looks[-1])
        assert "2 workers" in top.stdout, top
        two.signal(signal.SIGKILL)
        two.process.wait(20)
        killed = adctl(*looks)
        assert killed.returncode == 2
        assert "workers_missing is 1 " in killed.stdout
        two_control = tmp_path / "2/control.sock"
        two_control.unlink()  # as a stop does it
        stopped = adctl(*looks)
        assert (stopped.returncode, "workers is 1 (outside range 2:)" in stopped.stdout) == (2, True), stopped
        one.stop()
    none = adctl(*looks)
    assert (none.returncode, "there is no socket unix:" in none.stdout) == (2, True), none


def _is_stopped(server: Adcore) -> bool:
    return Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def test_records_that_a_full_disk_lost_are_told_once(tmp_path: Path) -> None:
    source = f"sqlite:///{tmp_path}/ads.db"
    adctl("apply", "--source", source, "-", stdin=json.dumps(document(campaign("a"))))
    assert os.path.exists("/dev/full")
    with serving(tmp_path / "s", "--source", source, "--log", "/dev/full", "--log-queue-bytes", "4096") as server:
        for _ in range(50):
            server.ask("/v1/decision?placement=side")
        lost = adctl("check", "--control", server.control)
        assert (lost.returncode, "drops is " in lost.stdout) == (2, True), lost
        assert "log_queue is 9" in lost.stdout
        again = adctl("check", "--control", server.control)
        assert "drops=0;;0;0" in again.stdout
        assert adctl("check", "--control", server.control, "--poller", "other").stdout.count("drops is ") == 1
        server.signal(signal.SIGINT)
        server.process.wait(20)
