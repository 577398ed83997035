"""Sharing a listening socket: who takes a connection, who stands back, and what happens when nobody else comes."""

import asyncio
import errno
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adcore import acceptor as module
from adcore.acceptor import SLACK, STOOD_BACK_BATCH, Acceptor
from adcore.seat import AWAY, Loads
from tests.process import PATIENCE_S


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "s"))
        sock.listen(64)
        yield sock


class Connections:
    """Counts the protocols that were made."""

    def __init__(self) -> None:
        self.open = 0

    def __call__(self) -> asyncio.Protocol:
        self.open += 1
        return asyncio.Protocol()


async def until(condition: Any) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0)


def accepting(listener: Any, loads: Loads) -> tuple[Acceptor, Connections]:
    made = Connections()
    acceptor = Acceptor(asyncio.get_running_loop(), listener, made, lambda: made.open, loads, 0)
    acceptor.start()
    return acceptor, made


def connect(listener: socket.socket, count: int) -> list[socket.socket]:
    peers = [socket.socket(socket.AF_UNIX) for _ in range(count)]
    for peer in peers:
        peer.connect(listener.getsockname())
    return peers


def close(*peers: socket.socket) -> None:
    for peer in peers:
        peer.close()


def test_a_worker_alone_takes_all(listener: socket.socket) -> None:
    async def main() -> None:
        loads = Loads.create(4)
        acceptor, made = accepting(listener, loads)
        peers = connect(listener, 20)
        await until(lambda: made.open == 20)
        await until(lambda: acceptor.excess() == 0 and loads[0] == 20)
        await acceptor.close()
        assert loads[0] == AWAY
        close(*peers)

    asyncio.run(main())


def test_one_that_has_more_stands_back_and_then_takes_what_is_still_there(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        pauses: list[float] = []
        loop = asyncio.get_running_loop()

        def pause(_: Acceptor, seconds: float) -> None:
            pauses.append(seconds)
            loop.remove_reader(listener)

        monkeypatch.setattr(Acceptor, "_pause", pause)
        loads = Loads.create(4)
        loads[2] = 5
        acceptor, made = accepting(listener, loads)
        peers = connect(listener, 40)
        await until(lambda: pauses)
        taken = made.open
        assert 5 - SLACK <= taken <= 5 + SLACK  # one that has just arrived may count twice
        assert pauses == [module.STAND_BACK_S]
        acceptor._resume()  # the clock has come: nobody else took them
        await until(lambda: len(pauses) == 2)
        assert made.open == taken + STOOD_BACK_BATCH
        loads.leave(2)  # the other one has gone
        acceptor._resume()
        await until(lambda: made.open == 40)
        await acceptor.close()
        close(*peers)

    asyncio.run(main())


def test_without_descriptors_it_waits_and_goes_on(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Exhausted:
        """A listener whose first accept finds no descriptor, and whose second finds the peer gone."""

        def __init__(self) -> None:
            self.errors = [OSError(errno.EMFILE, "Too many open files"), ConnectionAbortedError()]

        def accept(self) -> Any:
            if self.errors:
                raise self.errors.pop(0)
            return listener.accept()

        def __getattr__(self, name: str) -> Any:
            return getattr(listener, name)

    async def main() -> None:
        monkeypatch.setattr(module, "EXHAUSTED_S", 0.0)
        acceptor, made = accepting(Exhausted(), Loads.create(2))
        peers = connect(listener, 1)
        await until(lambda: made.open == 1)
        assert "cannot accept a connection: Too many open files" in caplog.text
        await acceptor.close()
        close(*peers)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("own", "others", "excess"),
    [
        (64, [0], 29),
        (33, [31], 0),
        (35, [29], 0),
        (40, [24], 5),
        (3, [0], 0),
        (10, [], 0),
        (0, [64], 0),
        (60, [2, 1], 36),
    ],
)
def test_the_excess_over_the_mean_is_to_be_given_up(own: int, others: list[int], excess: int) -> None:
    async def main() -> None:
        loads = Loads.create(4)
        for slot, count in enumerate(others, 1):
            loads[slot] = count
        with socket.socket(socket.AF_UNIX) as sock:
            acceptor = Acceptor(asyncio.get_running_loop(), sock, asyncio.Protocol, lambda: own, loads, 0)
            assert acceptor.excess() == excess

    asyncio.run(main())
