"""Too few descriptors: connections stay below the limit, and the listener outlives whoever tries to use them up."""

import os
import select
import signal
import socket
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from adcore.control.server import CONNECTIONS_MAX
from adcore.control.server import DESCRIPTORS_MAX as CONTROL_DESCRIPTORS_MAX
from adcore.listen import CONTROL_BACKLOG
from adcore.server import DESCRIPTORS_SPARE
from tests.process import Adcore, Connection, connect, serving_over, wait_for

LIMIT = 256
CONNECTS = 1000


@pytest.mark.parametrize(("kind", "workers"), [("unix", 1), ("tcp", 1), ("fd", 1), ("unix", 2)])
def test_a_thousand_connects_at_a_limit_of_256_descriptors(tmp_path: Path, kind: str, workers: int) -> None:
    launcher = ("prlimit", f"--nofile={LIMIT}")
    with serving_over(kind, tmp_path / "state", "--workers", str(workers), launcher=launcher) as server:
        if workers > 1:
            wait_for(lambda: [one["state"] for one in server.status()["workers"]] == ["serving"] * workers)
        with ExitStack() as crowd:
            connections = [crowd.enter_context(connect(server.address)) for _ in range(CONNECTS)]
            expected = CONNECTS - workers * (LIMIT - DESCRIPTORS_SPARE)
            # Who is let in hears nothing before asking.
            wait_for(lambda: len(readable(connections)) >= expected, lambda: f"{len(readable(connections))} were told")
            told = readable(connections)
            assert len(told) == expected
            assert {one.recv(12) for one in told} == {b"HTTP/1.1 503"}
            assert server.status(), "operators are heard all along"
        ended_monotonic = time.monotonic()
        wait_for(lambda: is_served(server.address))
        assert time.monotonic() - ended_monotonic < 1
        for _ in range(50):
            assert server.ask("/v1/decision?placement=top").status == 200
        assert server.stop() == 0
        assert "cannot accept" not in server.errors
        assert "Too many open files" not in server.errors


def test_visitors_and_operators_who_take_all_connections_leave_descriptors_for_the_rest(tmp_path: Path) -> None:
    launcher = ("prlimit", f"--nofile={LIMIT}")
    with serving_over("unix", tmp_path / "state", launcher=launcher) as server, ExitStack() as crowd:
        visitors = [crowd.enter_context(connect(server.address)) for _ in range(LIMIT)]
        wait_for(lambda: len(readable(visitors)) == DESCRIPTORS_SPARE)
        own = len(open_files(server.process.pid))
        operators = [crowd.enter_context(wait_to_connect(server.control)) for _ in range(DESCRIPTORS_SPARE)]
        refused = DESCRIPTORS_SPARE - CONNECTIONS_MAX
        wait_for(lambda: len(readable(operators)) >= refused, lambda: f"{len(readable(operators))} were refused")
        # What the log needs at its rotation, and everything else, is still there.
        assert own < len(open_files(server.process.pid)) <= own + CONTROL_DESCRIPTORS_MAX + CONTROL_BACKLOG
        assert len(open_files(server.process.pid)) < LIMIT - 16
        server.log.rename(tmp_path / "old.log")
        server.process.send_signal(signal.SIGUSR1)
        wait_for(server.log.exists)
        crowd.close()
        wait_for(lambda: is_served(server.address))
        assert server.stop() == 0
        assert "Too many open files" not in server.errors


def wait_to_connect(address: str) -> socket.socket:
    """A connection to a unix socket, whose backlog may be full for a moment."""
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(address.removeprefix("unix:"))
    return sock


def open_files(pid: int) -> list[str]:
    return os.listdir(f"/proc/{pid}/fd")


def readable(connections: list[socket.socket]) -> list[socket.socket]:
    poll = select.poll()
    for connection in connections:
        poll.register(connection, select.POLLIN)
    ready = {fd for fd, _ in poll.poll(0)}
    return [connection for connection in connections if connection.fileno() in ready]


def is_served(address: str) -> bool:
    connection = Connection(address)
    try:
        connection.request("GET", "/ping")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def test_a_limit_that_leaves_no_room_is_named(tmp_path: Path) -> None:
    server = Adcore(tmp_path, "--unix", f"{tmp_path}/ad.sock", launcher=("prlimit", f"--nofile={DESCRIPTORS_SPARE}"))
    assert server.process.wait(20) == 3
    assert "LimitNOFILE= of the unit" in server.errors
