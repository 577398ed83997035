"""When Python's garbage collector runs, and that serving leaves nothing to it."""

import asyncio
import gc
import json
import signal
import socket
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from adcore.background import BackgroundThread
from adcore.collector import BUSY_S, IDLE_S, Collector
from tests.inventories import campaign, document
from tests.process import PATIENCE_S, Adcore, adctl, connect, wait_for

Abandon = Callable[[], Callable[[], bool]]

# In place of `python -m adcore`: collects every second, and appends to a file what it found.
LAUNCHER = """
import gc, sys
from adcore.cli import main
from adcore.collector import Collector

found = open(sys.argv[1], "a", buffering=1)
Collector.turn = lambda self, requests: print(gc.collect(), file=found)
sys.exit(main(sys.argv[sys.argv.index("adcore") + 1 :]))
"""


@pytest.fixture
def abandon() -> Iterator[Abandon]:
    """Leaves an object that only a collection finds; what it gives says whether it is gone."""

    class Ring:
        def __init__(self) -> None:
            self.ring = self

    def make() -> Callable[[], bool]:
        left = weakref.ref(Ring())
        return lambda: left() is None

    yield make
    gc.unfreeze()
    gc.enable()


def test_nothing_is_collected_while_requests_come_for_an_hour(abandon: Abandon) -> None:
    now = 0.0
    collector = Collector(lambda: now)
    is_gone = abandon()
    for second in range(1, int(BUSY_S)):
        now = float(second)
        collector.turn(second)
    assert not is_gone()
    now = BUSY_S
    collector.turn(int(now))
    assert is_gone()


def test_the_first_idle_second_of_a_minute_is_used(abandon: Abandon) -> None:
    now = 0.0
    collector = Collector(lambda: now)
    collector.settle()
    is_gone = abandon()
    for now, requests in ((1.0, 0), (IDLE_S - 1, 0), (IDLE_S, 1), (IDLE_S + 1, 2)):
        collector.turn(requests)
        assert not is_gone(), now
    now = IDLE_S + 2
    collector.turn(2)
    assert is_gone()
    is_gone = abandon()
    now += IDLE_S - 1
    collector.turn(2)
    assert not is_gone()


def test_a_lot_of_allocations_starts_no_collection(abandon: Abandon) -> None:
    Collector()
    is_gone = abandon()
    assert len([[number] for number in range(100_000)]) == 100_000
    assert not is_gone()


def test_serving_leaves_no_garbage(tmp_path: Path) -> None:
    found = tmp_path / "found"
    state = tmp_path / "state"
    source = f"sqlite:///{tmp_path}/ads.db"
    inventory = tmp_path / "inventory.json"

    def book(**fields: object) -> None:
        capped = campaign("capped", frequency_cap={"impressions": 3, "seconds": 60}, **fields)
        inventory.write_text(json.dumps(document(capped)))
        applied = adctl("apply", "--source", source, str(inventory))
        assert applied.returncode == 0, applied.stderr

    book()
    launcher = (sys.executable, "-c", LAUNCHER, str(found))
    times = ("--refresh", "0.2", "--header-timeout", "0.5", "--idle-timeout", "0.5")
    server = Adcore(state, "--unix", f"{state}/ad.sock", "--source", source, *times, launcher=launcher)
    try:
        server.wait_until_ready()
        wait_for(found.exists)

        def counts() -> list[int]:
            return [int(line) for line in found.read_text().split()]

        def collect(times: int) -> None:
            enough = len(counts()) + times
            wait_for(lambda: len(counts()) >= enough)

        collect(2)
        before = len(counts())
        for number in range(50):
            for target in (
                "/v1/decision?placement=side",
                "/v1/decision?placement=made-up",
                "/v1/click?t=x",
                "/nowhere",
            ):
                server.ask(target)
            shown = server.ask("/v1/decision?placement=side").json()
            for link in (shown["click_url"], shown["view_url"], shown["view_url"]):
                server.ask(link)
            if number % 10 == 0:
                book(name=f"Edited {number}")
                server.status()
        silent = [connect(server.address) for _ in range(50)]
        for number, sock in enumerate(silent):
            sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n" if number % 2 else b"GE\0T / HTTP/1.1\r\n\r\n")
            if number % 5 == 0:
                sock.close()
        for sock in silent:
            with suppress(ConnectionError, socket.timeout):
                while sock.fileno() != -1 and sock.recv(4096):
                    pass
            sock.close()
        server.signal(signal.SIGUSR1)
        collect(2)
        assert counts()[before:] == [0] * len(counts()[before:])
        # It would be found: what was made for a configuration refers to itself; the first one's stays for good.
        for _ in range(3):
            server.signal(signal.SIGHUP)
            collect(1)
        wait_for(lambda: any(counts()[before:]))
        assert server.stop() == 0
    finally:
        server.process.kill()
        server.process.wait()


def test_a_call_that_fails_in_a_thread_leaves_no_garbage() -> None:
    class Records:
        pass

    def fail(records: Records) -> None:
        raise OSError("the disk is full")

    async def call() -> weakref.ref[Records]:
        records = Records()
        with pytest.raises(OSError, match="the disk is full"):
            await asyncio.get_running_loop().run_in_executor(thread, fail, records)
        return weakref.ref(records)

    thread = BackgroundThread("fails")
    gc.disable()
    try:
        left = asyncio.run(call())
        # What it did last is let go when it is told to do something else.
        thread.submit(bool).result(PATIENCE_S)
        assert left() is None
    finally:
        gc.enable()
        thread.shutdown()
