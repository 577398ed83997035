"""Too few descriptors: connections stay below the limit, and the listener outlives whoever tries to use them up."""

import select
import socket
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

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
