"""When Python's garbage collector runs, and that serving leaves nothing to it."""

import asyncio
import gc
import json
import signal
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from adcore.background import BackgroundThread
from adcore.collector import BUSY_S, IDLE_S, Collector
from tests.inventories import campaign, document
from tests.process import PATIENCE_S, Adcore, adctl, after, connect, descendant, serving, wait_for

Abandon = Callable[[], Callable[[], bool]]

# Collects every second, and appends to a file what it found.
COLLECT = """
import gc, sys
from adcore.collector import Collector

found = open(sys.argv[1], "a", buffering=1)
Collector.turn = lambda self, answers: print(gc.collect(), file=found)
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
    collector = Collector(lambda: now, lambda: 0.0)
    is_gone = abandon()
    for second in range(1, int(BUSY_S)):
        now = float(second)
        collector.turn(second)
    assert not is_gone()
    now = BUSY_S
    collector.turn(int(now))
    assert is_gone()


@pytest.mark.parametrize(("uniform", "due"), [(0.0, BUSY_S), (0.5, BUSY_S * 3 / 4), (1.0, BUSY_S / 2)])
def test_workers_that_were_started_together_do_not_collect_together(
    uniform: float, due: float, abandon: Abandon
) -> None:
    now = 0.0
    collector = Collector(lambda: now, lambda: uniform)
    is_gone = abandon()
    now = due - 1
    collector.turn(1)
    assert not is_gone()
    now = due
    collector.turn(2)
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


class Collecting:
    """A server that collects every second, and what it found."""

    def __init__(self, server: Adcore, found: Path) -> None:
        self.server = server
        self._found = found
        self._looked_at = 0

    def collect(self) -> int:
        """How many objects it has found since the last call, with all that was left before this one."""
        enough = len(self._counts()) + 2
        wait_for(lambda: len(self._counts()) >= enough, lambda: self.server.errors)
        counts = self._counts()
        new, self._looked_at = counts[self._looked_at :], len(counts)
        return sum(new)

    def _counts(self) -> list[int]:
        return [int(line) for line in self._found.read_text().split()]

    def kill(self, module: str) -> bool:
        """Kill its child that runs this; whether there was one."""
        child = descendant(module, self.server)
        if child:
            child.kill()
        return child is not None


@contextmanager
def collecting_server(folder: Path, *args: str) -> Iterator[Collecting]:
    found, state = folder / "found", folder / "state"
    where = ("--unix", f"{state}/ad.sock", "--refresh", "0.2")
    with serving(state, *where, *args, launcher=after(COLLECT, str(found))) as server:
        yield Collecting(server, found)


def test_serving_leaves_no_garbage(tmp_path: Path) -> None:
    source = f"sqlite:///{tmp_path}/ads.db"
    inventory = tmp_path / "inventory.json"

    def book(**fields: object) -> None:
        capped = campaign("capped", frequency_cap={"impressions": 3, "seconds": 60}, **fields)
        inventory.write_text(json.dumps(document(capped)))
        applied = adctl("apply", "--source", source, str(inventory))
        assert applied.returncode == 0, applied.stderr

    def visit(server: Adcore) -> None:
        for target in ("/v1/decision?placement=side", "/v1/frame?placement=x", "/v1/click?t=x", "/v1/tag.js", "/x"):
            server.ask(target)
        shown = server.ask("/v1/decision?placement=side").json()
        for link in (shown["click_url"], shown["view_url"], shown["view_url"]):
            server.ask(link)
        server.ask("/v1/decision", "POST", b'{"placements": ["side"], "visitor": {"user_agent": "x"}}')
        server.ask("/v1/decision", "POST", b"{")
        server.status()
        clients = [connect(server.address) for _ in range(6)]
        for number, sock in enumerate(clients):
            sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n" if number % 2 else b"GE\0T / HTTP/1.1\r\n\r\n")
        clients[0].close()
        for sock in clients[1:]:
            with suppress(OSError):
                while sock.recv(4096):
                    pass
            sock.close()

    book()
    times = ("--header-timeout", "0.5", "--idle-timeout", "0.5")
    with collecting_server(tmp_path, "--source", source, *times) as collecting:
        server = collecting.server
        # What is made with the first request of a kind stays.
        visit(server)
        book(name="Edited")
        collecting.collect()
        for number in range(5):
            visit(server)
            book(name=f"Edited {number}")
        server.signal(signal.SIGUSR1)
        assert collecting.collect() == 0
        # It would be found: what was made for a configuration refers to itself; the first one's stays for good.
        for _ in range(2):
            server.signal(signal.SIGHUP)
            found = collecting.collect()
        assert found > 0
        assert server.stop() == 0


def test_failures_leave_no_garbage(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.symlink_to("/dev/full")
    with collecting_server(tmp_path, "--log", str(log)) as collecting:
        server = collecting.server
        server.ask("/v1/decision?placement=top")
        wait_for(lambda: server.status()["log"]["write_errors"])
        collecting.collect()
        log.unlink()
        log.mkdir()
        for _ in range(2):
            errors = server.status()["log"]["write_errors"]
            server.signal(signal.SIGUSR1)
            for child in ("adcore counts", "adcore loader"):
                wait_for(lambda child=child: collecting.kill(child))
            wait_for(lambda errors=errors: server.status()["log"]["write_errors"] > errors)
            found = collecting.collect()
        # What is made when it happens for the first time stays.
        assert found == 0
        assert "reopen" in server.errors


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
