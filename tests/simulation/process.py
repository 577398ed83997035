"""A server process in the simulated world: the real parts, put together as server.py does, over fakes."""

import asyncio
import contextlib
import errno
import fcntl
import os
from collections.abc import Awaitable, Iterator
from pathlib import Path
from typing import Any

from adcore.config import load_config
from adcore.core.adtable import AdTable, Steps
from adcore.core.calendar import Calendar
from adcore.counters import Counters
from adcore.delivery import Delivery
from adcore.deliverylog.queue import RecordQueue
from adcore.deliverylog.record import FORMS
from adcore.deliverylog.spool import Spools, take_over
from adcore.deliverylog.writer import LogWriter, open_log
from adcore.errors import SourceError
from adcore.followed import Followed
from adcore.handlers import Handlers
from adcore.http1.protocol import Http1Protocol, Http1Server
from adcore.sources import Revision, Rows
from adcore.sources.lastgood import LastGood
from adcore.sources.reader import Reader
from adcore.sources.refresh import Refresher
from adcore.sources.snapshot import LOCK_S
from adcore.state import State
from adcore.tokens import KeyRing
from tests.http1.fakes import FakeTransport
from tests.simulation.world import KILLS, Fault, Killed, SimulatedThread, World
from tests.sources.fakes import FakeClient, FakeSnapshot, FakeStore

INTERVAL_S = 1.0
SLICE_STEP_S = 0.0001
RING_BYTES = 1 << 18
CLICK_WINDOW_S = 3600.0


class Store(FakeStore):
    """What a process sees of the store; `shared` has the rows."""

    def __init__(self, shared: FakeStore, thread: SimulatedThread) -> None:
        super().__init__()
        self.shared = shared
        self._thread = thread

    def revision(self) -> Revision:
        return self._thread.operate("revision", self.shared.revision, SourceError("store: away"))

    def load(self) -> Rows:
        return self._thread.operate("load", self.shared.load, SourceError("store: away"))


class Memcached(FakeClient):
    """What a process sees of memcached: every call is an operation."""

    def __init__(self, shared: FakeSnapshot, owner: str, thread: SimulatedThread) -> None:
        super().__init__(shared, owner)
        self._thread = thread

    def lock(self) -> bool:
        if super().lock():
            self.shared.locked_at = self._thread.now
            return True
        if self._thread.now - self.shared.locked_at <= LOCK_S:
            return False
        self.shared.holder = None  # it has ended by itself
        return self.lock()

    def _check(self, call: str) -> None:
        self._thread.operate(f"memcached {call}", lambda: None, SourceError("memcached: away"))


class Site:
    """What the processes of a host share: a folder, a log, the links followed, a store and a memcached."""

    def __init__(self, world: World, folder: Path, form: str, queue_bytes: int) -> None:
        self.world = world
        self.folder = folder
        self.log_path = folder / "log"
        self.form = FORMS[form]
        self.queue_bytes = queue_bytes
        self.store = FakeStore()
        self.snapshot = FakeSnapshot()
        self.processes: list[Process] = []
        self.clicks = Followed.in_memory(CLICK_WINDOW_S)
        self.views = Followed.in_memory(CLICK_WINDOW_S)

    def close(self) -> None:
        for process in self.processes:
            process.stop_threads()
        self.clicks.close()
        self.views.close()

    def alive(self) -> list["Process"]:
        return [process for process in self.processes if process.serves and not process.dead]


class Transport(FakeTransport):
    """One end of a connection; what is written is given to `peer` at once."""

    def __init__(self, process: "Process", peer: "Peer") -> None:
        super().__init__()
        self._process = process
        self._peer = peer

    def write(self, data: Any) -> None:
        fault = self._process.world.operation(self._process, "answer")
        if fault is Fault.KILL_BEFORE:
            self._process.kill()
            raise Killed
        super().write(data)
        self._peer.received += data
        if fault in KILLS:
            self._process.kill()
            raise Killed

    def close(self) -> None:
        super().close()
        self._process.world.soon(self._lose)

    def abort(self) -> None:
        super().abort()
        self._process.world.soon(self._lose)

    def _lose(self) -> None:
        if not self._process.dead and not self._peer.gone:
            self._peer.gone = True
            self.protocol.connection_lost(None)


class Peer:
    """The client's end of a connection."""

    def __init__(self, process: "Process") -> None:
        self.received = b""
        self.gone = False
        self._process = process
        self._transport = Transport(process, self)
        self._protocol: Http1Protocol = process.http()
        self._transport.protocol = self._protocol
        process.peers.append(self)
        self._protocol.connection_made(self._transport)

    def send(self, data: bytes) -> None:
        if not self.gone and not self._transport.ended:
            assert self._transport.reading
            with contextlib.suppress(Killed):
                self._protocol.data_received(data)

    def close(self) -> None:
        if not self.gone and not self._transport.ended:
            self._protocol.eof_received()
            self._transport.close()


class NoKeeper:
    """In place of the spool of a process that was killed: what its remains do reaches no file."""

    complete = True

    def append(self, data: bytes) -> None: ...
    def release(self, size: int, rest: int) -> None: ...
    def cut(self, rest: int) -> None: ...


class Process:
    """`await start()`, then connections may be made until it is killed or ended."""

    def __init__(self, site: Site, number: int) -> None:
        self.site = site
        self.world = site.world
        self.name = f"p{number}"
        self.dead = self.serves = False
        self.peers: list[Peer] = []
        self.revisions: list[int] = []
        """Of the tables swapped in."""
        self.dropped = 0
        """Records, when it was killed or has ended."""
        self._tasks: list[asyncio.Task[Any]] = []
        self._log_thread = SimulatedThread(self.world, self)
        self._refresh_thread = SimulatedThread(self.world, self)
        self._slices = 0
        site.processes.append(self)

    async def start(self) -> None:
        """Raises StartError, or Killed."""
        site, world = self.site, self.world
        self.spools = Spools(site.folder, RING_BYTES, RING_BYTES // 4)
        self.queue = RecordQueue(site.queue_bytes, site.form, self.spools.paid, self.spools.unpaid)
        self.writer = LogWriter(
            self.queue,
            site.log_path,
            open=self._open,
            write=self._write,
            before_batch=self.spools.note_log,
            thread=self._log_thread,
        )
        self.writer.open()
        take_over(site.folder, site.log_path, self.queue)
        last_good = LastGood(site.folder / "rows")
        self.refresher = Refresher(
            Reader(
                Store(site.store, self._refresh_thread),
                Memcached(site.snapshot, self.name, self._refresh_thread),  # type: ignore[arg-type]
                last_good,
                clock_monotonic=lambda: world.now,
                sleep=self._refresh_thread.pause,
            ),
            last_good,
            labels={"store": "store", "snapshot": "memcached", "disk": "disk"},
            use=self._use,
            interval_s=INTERVAL_S,
            uniform=world.chance.random,
            clock_wall=world.wall,
            clock_monotonic=lambda: world.now,
            clock_slice=self._slice,
            thread=self._refresh_thread,
            seals=lambda: (b"of the fakes, which sign nothing",),
        )
        config = load_config({"state_dir": str(site.folder)}, {})
        calendar = Calendar(config.time_zone)
        self.state = State(Counters(calendar), site.clicks, site.views)
        delivery = Delivery(
            config,
            self.state,
            keyring=KeyRing({"k": b"k" * 32}),
            calendar=calendar,
            queue=self.queue,
            country_of=None,
            host="host",
            impression_ids=self._ids(),
        )
        self.http = Http1Server(
            Handlers(config, delivery), before_answers=self.queue.commit, loop=world.loop, clock=world.wall
        )
        loop = asyncio.get_running_loop()
        self._writing = loop.create_task(self.writer.run())
        self._tasks.append(self._writing)
        starting = loop.create_task(self.refresher.start())
        self._tasks.append(starting)
        await asyncio.wait([starting])
        if self.dead:
            raise Killed
        starting.result()
        self._tasks.append(loop.create_task(self.refresher.run()))
        # As a worker does while others serve.
        while not self.revisions:
            await asyncio.sleep(0.01)
            if self.dead:
                raise Killed
        self.serves = True

    def kill(self) -> None:
        """SIGKILL: from now on nothing that it does has any effect."""
        self.dead = True
        if hasattr(self, "queue"):
            self.dropped = self.queue.dropped.total()
            for lane, spool in ((self.queue.paid, self.spools.paid), (self.queue.unpaid, self.spools.unpaid)):
                lane.keeper = NoKeeper()
                fcntl.flock(spool._fd, fcntl.LOCK_UN)
                spool._words.release()
                spool._ring.release()
                spool._map.close()
                os.close(spool._fd)
        for peer in self.peers:
            peer.gone = True
        self.world.soon(self._bury)

    def _bury(self) -> None:
        for task in self._tasks:
            task.cancel()
        self.world.soon(self._close_log)

    def _close_log(self) -> None:
        if hasattr(self, "writer") and self.writer._fd >= 0:
            os.close(self.writer._fd)

    async def end(self) -> None:
        """TERM."""
        self.serves = False
        self.http.start_drain()
        await asyncio.wait_for(self.http.all_closed.wait(), 30)
        for task in self._tasks[1:]:
            task.cancel()

        async def within(written: Awaitable[object]) -> None:
            await asyncio.wait_for(asyncio.ensure_future(written), 120)

        await self.writer.close(self._writing, within)
        self._writing.result()
        self.dropped = self.queue.dropped.total()
        await asyncio.sleep(1)  # the thread closes the file
        self.spools.close()

    def stop_threads(self) -> None:
        self._log_thread.stop()
        self._refresh_thread.stop()

    def _use(self, table: AdTable) -> Steps[None]:
        yield from self.state.use_in_steps(table, Calendar(self.state.counters.calendar.zone).moment(self.world.wall()))
        self.revisions.append(table.revision)

    def _slice(self) -> float:
        self._slices += 1
        return self._slices * SLICE_STEP_S

    def _ids(self) -> Iterator[bytes]:
        while True:
            yield b"%032x" % self.world.chance.getrandbits(128)

    def _open(self, path: Path) -> int:
        error = OSError(errno.EMFILE, "Too many open files")
        return self._log_thread.operate("open", lambda: open_log(path), error)

    def _write(self, fd: int, data: bytes) -> int:
        error = OSError(errno.ENOSPC, "No space left on device")
        some = data[: self.world.chance.randint(1, len(data))]
        return self._log_thread.operate("write", lambda: os.write(fd, data), error, lambda: os.write(fd, some))
