"""Processes that the fork server starts: what they share, and what happens when one of them, or it, is killed."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from adcore.errors import StartError
from adcore.forkserver import GO, ForkClient, Forked, ForkError, read_answer, take
from tests.chaos.restarts import pids
from tests.process import PATIENCE_S, ROOT, Adcore, ask, descendant, descendants, environment, serving, wait_for

ASKED = """
import json, os, signal, sys
from adcore import forkserver
task = forkserver.serve(forkserver.take())
if task is not None:
    how = task.request["run"]
    if how == "wait":
        os.read(task.fds[0], 1)
    if how == "list":
        os.write(task.fds[0], " ".join(os.listdir("/proc/self/fd")).encode())
    if how == "die":
        os.kill(os.getpid(), signal.SIGTERM)
    os._exit(task.request.get("status", 0))
"""

REFUSED_ONCE = """
import os
fork = os.fork
def refused():
    os.fork = fork
    raise BlockingIOError(11, "no more processes")
os.fork = refused
"""


@contextmanager
def fork_server(program: str = ASKED) -> Iterator[tuple[ForkClient, "subprocess.Popen[bytes]"]]:
    mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with its:
        process = subprocess.Popen(
            [sys.executable, "-c", program],
            env=environment(_ADCORE_FORK_SERVER=str(its.fileno())),
            pass_fds=(its.fileno(),),
        )
    try:
        yield ForkClient(mine), process
    finally:
        mine.close()
        try:
            process.wait(PATIENCE_S)
        finally:
            process.kill()
            process.wait()


@contextmanager
def working(state: Path, **variables: Any) -> Iterator[Adcore]:
    with serving(state, "--workers", "2", "--refresh", "0.2", **variables) as server:
        wait_for(lambda: len(pids(server)) == 2, lambda: server.errors)
        yield server


def wait_for_successor(server: Adcore, number: int, pid: int) -> None:
    def is_there() -> bool:
        now = pids(server)
        return len(now) == 2 and now[number] != pid

    wait_for(is_there, lambda: server.errors)


def copied_code(folder: Path) -> tuple[Path, str]:
    """A copy of adcore that a test may change, and the PYTHONPATH for it."""
    code = folder / "code"
    shutil.copytree(ROOT / "adcore", code / "adcore", ignore=shutil.ignore_patterns("__pycache__"))
    return code, os.pathsep.join([str(code), environment()["PYTHONPATH"]])


def fork_server_of(server: Adcore) -> psutil.Process:
    found = descendant("adcore forks", server)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("request_", "status"), [({"run": "end"}, 0), ({"run": "end", "status": 7}, 7), ({"run": "die"}, -15)]
)
def test_the_status_of_a_process_comes_to_whoever_asked(request_: dict[str, object], status: int) -> None:
    with fork_server() as (forks, server):
        process = forks.start(request_, [])
        assert psutil.pid_exists(server.pid)
        assert process.pid != server.pid
        assert process.wait() == status
        process.kill()  # nobody else may have its pid now
        assert server.poll() is None
    assert server.returncode == 0


def test_a_fork_has_its_own_descriptors_and_none_of_anybody_elses() -> None:
    with fork_server() as (forks, _):
        waits, end = os.pipe()
        others = [forks.start({"run": "wait"}, [waits]) for _ in range(3)]
        read, write = os.pipe()
        process = forks.start({"run": "list"}, [write])
        os.close(write)
        with os.fdopen(read) as pipe:
            found = pipe.read().split()
        assert len(found) == 3 + 1 + 1, "the standard ones, its own, and the folder that is listed"
        assert process.wait() == 0
        os.close(end)
        assert [other.wait() for other in others] == [0] * 3
        os.close(waits)


def test_it_waits_for_its_last_process_and_tells_how_that_ended() -> None:
    with fork_server() as (forks, server):
        waits, end = os.pipe()
        process = forks.start({"run": "wait", "status": 5}, [waits])
        forks.close()
        with pytest.raises(subprocess.TimeoutExpired):
            server.wait(0.2)
        os.close(end)
        assert process.wait() == 5
        assert server.wait(PATIENCE_S) == 0
        os.close(waits)


def test_a_request_whose_asker_has_given_up_starts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adcore.forkserver.START_S", 0.2)
    with fork_server() as (forks, server):
        assert forks.start({"run": "end"}, []).wait() == 0
        server.send_signal(signal.SIGSTOP)
        read, write = os.pipe()
        with pytest.raises(ForkError, match="has not answered within"):
            forks.start({"run": "list"}, [write])
        os.close(write)
        server.send_signal(signal.SIGCONT)
        with os.fdopen(read) as pipe:
            assert pipe.read() == ""
        assert forks.start({"run": "end"}, []).wait() == 0


def test_a_status_is_waited_for_no_longer_than_that() -> None:
    with fork_server() as (forks, server):
        waits, end = os.pipe()
        process = forks.start({"run": "wait"}, [waits])
        server.send_signal(signal.SIGSTOP)
        os.close(end)
        os.close(waits)
        assert process.wait(status_s=0.0) is None
        server.send_signal(signal.SIGCONT)


def test_an_answer_whose_descriptor_is_lost_is_an_error() -> None:
    mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with its:
        its.send(b'{"pid": 5}')
        with pytest.raises(ForkError, match="the process's descriptor did not arrive"):
            read_answer(mine)


def test_the_status_of_a_process_that_was_killed_at_once_is_not_lost() -> None:
    """It has not taken GO, so its end of the line closes with that unread: an error in front of the status."""
    mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pidfd = os.pidfd_open(process.pid)
    mine.send(GO)
    its.send(b'{"status": -9}')
    its.close()
    assert Forked(mine, process.pid, pidfd).wait() == -9


def test_a_process_that_has_ended_before_it_was_told_to_go_leaves_no_descriptor() -> None:
    mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    before = os.listdir("/proc/self/fd")
    with open(os.devnull) as any_file:
        socket.send_fds(its, [b'{"pid": 5}'], [any_file.fileno()])
    its.close()
    with pytest.raises(ForkError):
        read_answer(mine)
    assert len(os.listdir("/proc/self/fd")) == len(before) - 2


def test_a_signal_reaches_the_process() -> None:
    with fork_server() as (forks, _):
        waits, end = os.pipe()
        process = forks.start({"run": "wait"}, [waits])
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        os.close(waits)
        os.close(end)


def test_without_a_fork_server_there_is_an_error_and_a_process_ends_with_an_unknown_status() -> None:
    with fork_server() as (forks, server):
        waits, end = os.pipe()
        process = forks.start({"run": "wait"}, [waits])
        server.kill()
        server.wait()
        with pytest.raises(ForkError, match="cannot be asked: Broken pipe"):
            forks.ask({"run": "end"}, [])
        os.close(end)
        assert process.wait() is None
        os.close(waits)


def test_a_fork_that_the_kernel_refuses_is_an_error_and_the_next_one_is_tried() -> None:
    with fork_server(REFUSED_ONCE + ASKED) as (forks, _):
        with pytest.raises(ForkError, match="has started nothing: no more processes"):
            forks.start({"run": "end"}, [])
        assert forks.start({"run": "end"}, []).wait() == 0


def test_a_fork_server_that_ends_before_it_answers_is_an_error() -> None:
    with fork_server("pass") as (forks, _), pytest.raises(ForkError):
        read_answer(forks.ask({"run": "end"}, []))


@pytest.mark.parametrize("text", ["", "me", "-1", "1", "77777", "9" * 20])
def test_the_variable_of_a_fork_server_is_refused_from_anybody_else(text: str) -> None:
    with pytest.raises(StartError, match="_ADCORE_FORK_SERVER is for processes that adcore starts itself: unset it"):
        take({"_ADCORE_FORK_SERVER": text})


def test_whoever_sets_the_variable_is_told(tmp_path: Path) -> None:
    server = Adcore(tmp_path, _ADCORE_FORK_SERVER="0")
    assert server.process.wait(PATIENCE_S) == 3
    assert "_ADCORE_FORK_SERVER is for processes that adcore starts itself" in server.errors


# In a server


def test_workers_and_helpers_are_forks_and_share_what_they_import(tmp_path: Path) -> None:
    with working(tmp_path) as server:
        forks = fork_server_of(server)
        assert forks.num_threads() == 1
        wait_for(lambda: len(descendants("adcore counts", server)) == 2 and descendant("adcore loader", server))
        assert sorted(child.name() for child in forks.children() if "worker" in child.name()) == [
            "adcore worker 1",
            "adcore worker 2",
        ]
        assert {child.pid for child in forks.children()} >= {one.pid for one in descendants("adcore counts", server)}
        for pid in pids(server).values():
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            found = re.search(r"Shared_Dirty: +([0-9]+) kB", rollup)
            assert found is not None
            assert int(found[1]) > 10 << 10, rollup
        assert server.stop() == 0
        assert not forks.is_running()


def test_when_the_fork_server_is_killed_workers_serve_on_and_the_next_one_has_a_new_one(tmp_path: Path) -> None:
    with working(tmp_path) as server:
        before, forks = pids(server), fork_server_of(server)
        forks.kill()
        wait_for(lambda: f"the fork server, pid {forks.pid}, was killed by SIGKILL" in server.errors)
        # A helper is started without it; nothing of the counts is missing.
        wait_for(lambda: descendants("adcore counts", server) == [])
        for process in psutil.process_iter():
            if process.name() == "adcore counts" and str(tmp_path) in " ".join(process.cmdline()):
                process.kill()
        for _ in range(8):
            assert server.ask("/v1/decision?placement=top").status == 200
        wait_for(lambda: "the counts process is a new interpreter" in server.errors, lambda: server.errors)
        assert pids(server) == before
        os.kill(before[1], signal.SIGKILL)
        wait_for_successor(server, 1, before[1])
        assert fork_server_of(server).pid != forks.pid
        assert server.stop() == 0


def test_a_worker_that_ends_after_its_fork_server_is_replaced(tmp_path: Path) -> None:
    with working(tmp_path) as server:
        before = pids(server)
        fork_server_of(server).kill()
        os.kill(before[2], signal.SIGKILL)
        wait_for_successor(server, 2, before[2])
        assert f"worker 2, pid {before[2]}, " in server.errors
        assert server.stop() == 0


def test_a_fork_server_that_hangs_is_replaced_and_holds_up_no_answer_of_the_parent(tmp_path: Path) -> None:
    with working(tmp_path) as server:
        before, forks = pids(server), fork_server_of(server)
        forks.suspend()
        os.kill(before[1], signal.SIGKILL)
        wait_for(lambda: "worker 1: the fork server has not answered within 10 s" in server.errors)
        assert ask(server.control, "/status").status == 200
        wait_for_successor(server, 1, before[1])
        assert fork_server_of(server).pid != forks.pid
        assert server.stop() == 0


def test_helpers_are_asked_for_once_more_when_their_fork_server_hangs(tmp_path: Path) -> None:
    """They have pipes of their own then, so nothing is left of the first request when the fork server goes on."""
    with working(tmp_path) as server:
        wait_for(lambda: len(descendants("adcore counts", server)) == 2)
        forks = fork_server_of(server)
        forks.suspend()
        for helper in descendants("adcore counts", server):
            helper.kill()
        for _ in range(8):
            assert server.ask("/v1/decision?placement=top").status == 200
        wait_for(lambda: "the counts process is a new interpreter from now on" in server.errors)
        forks.resume()
        exchanges = [one["counts"]["sharing"]["exchanges"] for one in server.status()["workers"]]
        wait_for(
            lambda: all(
                one["counts"]["sharing"]["exchanges"] > number
                for one, number in zip(server.status()["workers"], exchanges, strict=True)
            )
        )
        assert server.stop() == 0


def test_a_stop_does_not_wait_for_a_fork_server_that_is_not_there_yet(tmp_path: Path) -> None:
    code, path = copied_code(tmp_path)
    slow = code / "adcore/server.py"
    slow.write_text("import time\ntime.sleep(300)\n" + slow.read_text().replace("from __future__", "# "))
    server = Adcore(tmp_path / "state", "--workers", "2", PYTHONPATH=path)
    wait_for(lambda: descendant("adcore forks", server) is not None)
    forks = fork_server_of(server)
    server.signal(signal.SIGTERM)
    assert server.process.wait(PATIENCE_S) == 0
    wait_for(lambda: not forks.is_running())


IGNORING = """
import os, signal, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
os.execv(sys.argv[1], sys.argv[1:])
"""


def test_it_does_not_matter_whether_sigchld_was_ignored(tmp_path: Path) -> None:
    launcher = (sys.executable, "-c", IGNORING)
    with serving(tmp_path, "--workers", "2", "--unix", f"{tmp_path}/ad.sock", launcher=launcher) as server:
        wait_for(lambda: len(pids(server)) == 2, lambda: server.errors)
        before = pids(server)
        os.kill(before[1], signal.SIGKILL)
        wait_for_successor(server, 1, before[1])
        assert f"worker 1, pid {before[1]}, was killed by SIGKILL" in server.errors
        assert "the fork server" not in server.errors
        assert server.stop() == 0


def test_hup_brings_a_new_fork_server_and_the_old_one_leaves(tmp_path: Path) -> None:
    with working(tmp_path) as server:
        before = fork_server_of(server)
        server.signal(signal.SIGHUP)
        wait_for(lambda: server.status()["parent"]["rollovers"] == 1, lambda: server.errors)
        wait_for(lambda: not before.is_running() or before.status() == psutil.STATUS_ZOMBIE)
        assert fork_server_of(server).pid != before.pid
        assert "the fork server" not in server.errors
        assert server.stop() == 0


def test_a_new_version_that_cannot_be_imported_leaves_the_old_one_which_also_starts_the_next_workers(
    tmp_path: Path,
) -> None:
    code, path = copied_code(tmp_path)
    with working(tmp_path / "state", PYTHONPATH=path) as server:
        before, forks = pids(server), fork_server_of(server)
        (code / "adcore/server.py").write_text("this is no Python\n")
        server.signal(signal.SIGHUP)
        wait_for(lambda: server.status()["parent"]["rollovers_failed"] == 1, lambda: server.errors)
        assert "the fork server has started nothing: it has ended" in server.errors
        assert "HUP: the new worker 1 does not start" in server.errors
        assert pids(server) == before
        os.kill(before[1], signal.SIGKILL)
        wait_for_successor(server, 1, before[1])
        assert fork_server_of(server).pid == forks.pid
        assert server.ask("/v1/decision?placement=top").status == 200
        assert server.stop() == 0


def test_a_fork_server_that_cannot_start_is_tried_again(tmp_path: Path) -> None:
    code, path = copied_code(tmp_path)
    with working(tmp_path / "state", PYTHONPATH=path) as server:
        before, right = pids(server), (code / "adcore/server.py").read_text()
        (code / "adcore/server.py").write_text("this is no Python\n")
        fork_server_of(server).kill()
        os.kill(before[1], signal.SIGKILL)
        wait_for(lambda: "worker 1: the fork server has started nothing" in server.errors, lambda: server.errors)
        (code / "adcore/server.py").write_text(right)
        wait_for_successor(server, 1, before[1])
        assert server.stop() == 0
