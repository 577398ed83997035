"""tools/circus/adcore.ini under a real circusd, and the hooks that make its reload wait."""

import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from adtools import circus as hooks
from tests import circusd
from tests.load import WRONG, Load, read_log
from tests.process import wait_for

# --- circusd


def test_a_reload_under_load_loses_nothing(tmp_path: Path) -> None:
    """The short form of `python -m tests.chaos.circus`."""
    with circusd.running(tmp_path) as circus:
        with Load(circus.address, placement="top", clients=4) as load:
            for _ in range(2):
                load.wait_for(100)
                circus.reload()
            load.wait_for(100)
        circus.stop()
        counts = load.check(read_log(circus.log))
    assert counts["answered"] >= 300
    assert {name: counts[name] for name in WRONG} == dict.fromkeys(WRONG, 0), load.failures[:5]


def test_who_may_connect_is_adcore_and_for_ads_its_group(tmp_path: Path) -> None:
    with circusd.running(tmp_path):
        assert stat.S_IMODE((tmp_path / "run/ad.sock").stat().st_mode) == 0o660
        assert stat.S_IMODE((tmp_path / "run/circusd.sock").stat().st_mode) & 0o022 == 0  # w: may connect


def test_a_version_that_cannot_start_leaves_the_old_one_serving(tmp_path: Path) -> None:
    with circusd.running(tmp_path) as circus:
        before = circus.pids()
        circus.config.write_text("refresh = 'soon'\n")
        with Load(circus.address, placement="top", clients=2) as load:
            load.wait_for(50)
            circus.ctl("reload", "adcore", "--waiting")
            load.wait_for(50)
            assert circus.pids() == before
            circus.config.write_text("refresh = 2\n")
            circus.reload()
            load.wait_for(50)
        assert load.failures == []
        assert "is not ready" in circus.output.read_text()


def test_a_killed_worker_is_replaced(tmp_path: Path) -> None:
    with circusd.running(tmp_path) as circus:
        before = circus.pids()
        os.kill(min(before), signal.SIGKILL)
        wait_for(lambda: len(circus.pids() - before) == 1, circus.output.read_text)
        wait_for(circus.answers)


def test_the_socket_of_another_watcher_is_not_held_open(tmp_path: Path) -> None:
    with circusd.running(tmp_path, f"[socket:other]\npath = {tmp_path}/other.sock\n") as circus:
        other = tmp_path / "other.sock"
        # The kernel's list of unix sockets names the inode of the listening one.
        inode = next(
            line.split()[6] for line in Path("/proc/net/unix").read_text().splitlines() if line.endswith(f" {other}")
        )

        def holds(pid: int) -> bool:
            links = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
            return f"socket:[{inode}]" in links

        assert holds(circus.process.pid)
        assert not any(holds(pid) for pid in circus.pids())


# --- the hooks


def watcher(*pids: int, numprocesses: int = 1) -> SimpleNamespace:
    return SimpleNamespace(env={}, name="adcore", processes=dict.fromkeys(pids), numprocesses=numprocesses)


SAYS = (
    "import socket, sys; s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); s.connect('\\0' + sys.argv[1][1:]); {}"
)
WAITS = "sys.stdin.read()"


@pytest.fixture(autouse=True)
def _the_hooks_socket_is_closed() -> Iterator[None]:
    yield
    if hooks._heard is not None:
        hooks._heard.close()
        hooks._heard = None


@pytest.mark.parametrize(
    ("does", "beside", "goes_on"),
    [
        (f"s.send(b'STATUS=x\\nREADY=1'); {WAITS}", 1, True),
        (f"s.send(b'READY=1'); {WAITS}", 0, True),
        ("sys.exit(2)", 1, False),
        ("sys.exit(2)", 0, True),
        (f"s.send(b'STATUS=READY=1'); {WAITS}", 1, False),
    ],
    ids=["ready", "first and ready", "ended beside an old one", "ended alone", "never ready"],
)
def test_a_worker_is_ended_only_if_it_is_not_ready_and_an_old_one_can_stay(
    does: str, beside: int, goes_on: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "STATUS=READY" in does:
        monkeypatch.setattr(hooks, "READY_TIMEOUT_S", 0.5)
    spawned = watcher(*range(1, beside + 1))
    assert hooks.before_spawn(watcher=spawned, arbiter=None, hook_name="before_spawn")
    command = [sys.executable, "-c", SAYS.format(does), spawned.env["NOTIFY_SOCKET"]]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as child:
        spawned.processes[child.pid] = None
        assert hooks.after_spawn(watcher=spawned, arbiter=None, hook_name="after_spawn", pid=child.pid) == goes_on
        child.communicate()


def test_another_process_cannot_say_that_a_worker_is_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "READY_TIMEOUT_S", 0.2)
    spawned = watcher(1)
    hooks.before_spawn(watcher=spawned)
    with (
        subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stranger,
    ):
        stranger.sendto(b"READY=1", "\0" + spawned.env["NOTIFY_SOCKET"][1:])
        spawned.processes[child.pid] = None
        assert not hooks.after_spawn(watcher=spawned, pid=child.pid)
        child.communicate(b"\n")
