"""The composition root: builds the parts, starts them in order, answers signals, and stops them in order.

Start: state directory, secret, log and listeners (so that a mistake ends it before anything is served), the first
table, accept. Stop on TERM: stop accepting, finish what is under way, stop refreshing, save the counts, write the log
out. No request logic here.
"""

import asyncio
import contextlib
import logging
import os
import platform
import random
import resource
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from importlib import resources
from itertools import chain, repeat
from pathlib import Path
from struct import Struct

import msgspec
import uvloop

from adcore import __version__, errorlog
from adcore.acceptor import Acceptor
from adcore.backends import Backends
from adcore.bank import Places, TallyProcess
from adcore.collector import Collector
from adcore.config import Config, reload_config
from adcore.control.explain import ExplainError, explain_request
from adcore.control.handlers import ControlHandlers
from adcore.control.runtime import Runtime
from adcore.control.server import DESCRIPTORS_MAX as CONTROL_DESCRIPTORS_MAX
from adcore.control.server import ControlServer
from adcore.core.adtable import AdTable, Steps
from adcore.core.calendar import Calendar
from adcore.core.decision import Explanation
from adcore.core.frequency import capped
from adcore.core.inventory import parse_inventory
from adcore.counterfile import CounterFile
from adcore.counters import Counters
from adcore.delivery import Delivery
from adcore.deliverylog.queue import RecordQueue
from adcore.deliverylog.record import FORMS
from adcore.deliverylog.spool import NoSpaceError, Spools, take_over
from adcore.deliverylog.writer import LogWriter
from adcore.errors import AdcoreError, SourceError, StartError
from adcore.files import folder_problem, make_folder
from adcore.followed import Followed
from adcore.forkserver import name_process
from adcore.geoip import CountryDatabase
from adcore.handlers import Handlers
from adcore.http1.protocol import Handler, Http1Server, Limits
from adcore.http1.request import Request
from adcore.http1.response import Response
from adcore.listen import (
    CONTROL_BACKLOG,
    Address,
    Listener,
    UnixAddress,
    adopt,
    control_names,
    open_control,
    open_listener,
    parse_address,
    serve,
)
from adcore.notify import Notifier
from adcore.pidfile import PidFile
from adcore.seat import HELD_BACK, READY, Seat, control_path
from adcore.settings import COUNTS_FILE, FOLLOWED_FILES, LAST_GOOD_FILE, LOOKS_FILE
from adcore.sources import open_store
from adcore.sources.lastgood import LastGood
from adcore.sources.loader import Loader, Sources
from adcore.sources.lookboard import LookBoard
from adcore.sources.refresh import Refresher, in_slices
from adcore.sources.seal import SNAPSHOT_PURPOSE
from adcore.state import State
from adcore.tally import Ask, Tally
from adcore.teller import Teller
from adcore.ticks import until_tick
from adcore.tokens import KeyRing
from adcore.version import revision

log = logging.getLogger("adcore")

# How often campaigns that wait for their line (pacing) or for midnight (daily caps) are looked at again; and while no
# request comes.
TURN_INTERVAL_S = 1.0
IDLE_INTERVAL_S = 2.0
# How soon workers even out, at 5 µs a look.
SHARE_INTERVAL_S = 0.2
# File descriptors reserved for everything but visitors' connections: 30 at work, of which the log, the spool, the
# loader's pipes and the listeners are some; 16 for new connections that are being refused; the control listener's, and
# those that it accepts in one turn of the loop.
DESCRIPTORS_SPARE = 30 + 16 + CONTROL_DESCRIPTORS_MAX + CONTROL_BACKLOG
# /status names this many bad rows; the log has them all.
REJECTED_SHOWN_MAX = 100
# Settings that only a restart changes.
FIXED_SETTINGS = (
    *(
        "unix",
        "unix_mode",
        "unix_group",
        "fd",
        "host",
        "port",
        "backlog",
        "control",
        "control_hosts",
        "source",
        "memcached",
        "memcached_prefix",
    ),
    *("log", "log_format", "log_queue_bytes", "spool_dir", "state_dir", "pid_file", "workers"),
    *("archive_dir", "archive_days", "archive_bytes"),
    *("header_timeout", "idle_timeout"),
    "click_window",
    "helper_bytes",
)


def run(config: Config, seat: Seat | None = None) -> int:
    """Serve until a signal says stop; the exit status. Raises AdcoreError when it cannot start.

    `seat` is that of a worker.
    """
    errorlog.install()
    if seat is not None:
        name_process(f"adcore worker {seat.number}")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(Server(config, seat).run())


def impression_ids() -> Iterator[bytes]:
    """Endless random ids of 128 bits in 32 hex digits, drawn from the system 256 at a time."""
    blocks = (os.urandom(16 * 256).hex().encode() for _ in repeat(None))
    return chain.from_iterable(map(Struct("32s" * 256).unpack, blocks))


def install_sample_inventory(source: str) -> bool:
    """Put the sample inventory into the default store if nothing was ever in it; whether it was so."""
    store = open_store(source)
    try:
        store.migrate()
        if store.revision().number:
            return False
        sample = resources.files("adcore").joinpath("sample_inventory.json").read_bytes()
        inventory = parse_inventory(msgspec.json.decode(sample))
        store.apply(lambda there: parse_inventory(there.document) if there.revision.number else inventory)
        return True
    except SourceError as error:
        # There may be a last good table to serve all the same.
        log.error("%s", error)
        return False
    finally:
        store.close()


class Server:
    """One process: its parts, in the order in which they are started."""

    def __init__(self, config: Config, seat: Seat | None = None) -> None:
        self.config = config
        self.seat = seat
        self.parent = None if seat is None else seat.open_parent()
        self.forks = None if seat is None else seat.open_forks()
        self.runtime = Runtime()
        self.collector = Collector()
        self.stopping = asyncio.Event()
        self.hurrying = asyncio.Event()
        self.told_to_stop = False
        self.first_table = asyncio.Event()
        self.notifier = Notifier()
        self.reload_error: str | None = None
        self._sharing: asyncio.Task[None] | None = None
        self.calendar = Calendar(config.time_zone)
        self.ids = impression_ids()

    async def run(self) -> int:
        config = self.config
        self._listen_to_signals()
        make_state_dir(config)
        check_spool_dir(config.spool_dir)
        self.keyring = keyring = KeyRing.load_or_create(config.secret_file)
        if config.source_is_default and install_sample_inventory(config.source):
            log.info("serving the sample inventory, from %s", config.source)
        with contextlib.ExitStack() as on_exit:
            on_exit.callback(self.notifier.close)
            if config.pid_file is not None and self.seat is None:
                on_exit.enter_context(PidFile(config.pid_file))
            listener = open_public_listener(config, self.seat)
            on_exit.callback(listener.close)
            control_listener = open_control_listener(config, self.seat)
            if control_listener is not None:
                on_exit.callback(control_listener.close)
            clicks, views = (Followed.open(config.spool_dir / name, config.click_window) for name in FOLLOWED_FILES)
            on_exit.callback(clicks.close)
            on_exit.callback(views.close)
            self.state = State(Counters(self.calendar), clicks, views)
            self.counter_file = CounterFile(config.state_dir / COUNTS_FILE)
            on_exit.callback(self.counter_file.close)
            self.counter_file.lock()
            self._restore_counts()
            spools = open_spools(config.spool_dir)
            form = FORMS[config.log_format]
            if spools is None:
                self.queue = RecordQueue(config.log_queue_bytes, form)
                self.writer = LogWriter(self.queue, config.log)
                self.writer.open()
            else:
                on_exit.callback(spools.close)
                self.queue = RecordQueue(config.log_queue_bytes, form, spools.paid, spools.unpaid)
                self.writer = LogWriter(self.queue, config.log, before_batch=spools.note_log)
                self.writer.open()
                take_over(config.spool_dir, config.log, self.queue)
            board = open_look_board(config)
            if board is not None:
                on_exit.callback(board.close)
            self.refresher = self._make_refresher(board)
            on_exit.callback(self.refresher.close)
            self.teller = self._make_teller()
            self.handlers = self._make_handlers(config, keyring, self.calendar)
            self.http = Http1Server(
                self.handlers,
                Limits(
                    request_s=config.header_timeout,
                    idle_s=config.idle_timeout,
                    connections=min(Limits().connections, descriptors_max() - DESCRIPTORS_SPARE),
                ),
                config.trusted_peers,
                before_answers=self.queue.commit,
            )
            await self._serve(listener, control_listener)
        return 0

    async def _serve(self, listener: Listener, control_listener: Listener | None) -> None:
        config = self.config
        loop = asyncio.get_running_loop()
        writing = loop.create_task(self.writer.run(), name="log-writer")
        control = ControlServer(self._make_control(), hosts=control_names(config))
        if control_listener is not None:
            self.runtime.start(self._count_answers)
        # Operators can ask while the first table is still on its way.
        control_server = None
        if control_listener is not None:
            control_server = await serve(loop, control_listener, control, CONTROL_BACKLOG)
        reporting = loop.create_task(self.notifier.report(self._summary), name="report")
        self.teller.warm_up()
        if not await self.refresher.start():
            log.error("no ad table yet; %s", self._without_table())
        await self.teller.start()
        timers = [
            loop.create_task(self.refresher.run(), name="refresh"),
            loop.create_task(self._turn(), name="turn"),
            loop.create_task(self.teller.run(), name="counts"),
        ]
        stopping = loop.create_task(self.stopping.wait())
        self.collector.settle()
        stop_accepting = await self._accept(listener)
        await asyncio.wait([stopping, writing, reporting, *timers], return_when=asyncio.FIRST_COMPLETED)
        if not self.stopping.is_set():
            log.error("a part of the server has ended by itself; stopping")

        self.notifier.stopping("finishing what is under way")
        await stop_accepting()
        if self._sharing is not None:
            self._sharing.cancel()
        listener.close()
        self.http.start_drain()
        await self._within(config.graceful_timeout, self.http.all_closed.wait())
        self.http.abort()
        for timer in timers:
            timer.cancel()
        await self.teller.close()
        await self.writer.close(writing, lambda written: self._within(config.graceful_timeout, written))
        if control_server is not None:
            control_server.close()
            control.abort()
            self.runtime.stop()
        reporting.cancel()
        failures = [task.exception() for task in (writing, reporting, *timers) if task.done() and not task.cancelled()]
        for failure in filter(None, failures):
            raise AdcoreError(f"a part of the server failed: {failure!r}") from failure

    async def _accept(self, listener: Listener) -> Callable[[], Awaitable[None]]:
        """Start to accept; what ends it."""
        loop = asyncio.get_running_loop()
        if self.seat is None or self.parent is None:
            if self.notifier.wanted:
                # Whoever waits for READY has others to serve meanwhile, or lets connections wait in the socket.
                await self._until_stopping(self.first_table.wait())
            server = None
            if not self.stopping.is_set():
                server = await serve(loop, listener, self.http, self.config.backlog)
                log.info("serving on %s, pid %d", listener.describe, os.getpid())
                self.notifier.ready(self._summary())

            async def stop_accepting() -> None:
                if server is not None:
                    server.close()

            return stop_accepting
        if not self.seat.alone:
            # Other workers serve meanwhile, and have a table.
            await self._until_stopping(self.first_table.wait())
        connections = self.http.connections
        acceptor = Acceptor(
            *(loop, listener.sock, self.http, lambda: len(connections), self.seat.open_loads(), self.seat.slot)
        )
        acceptor.start()
        log.info("serving on %s, pid %d", listener.describe, os.getpid())
        self._sharing = loop.create_task(self._share(acceptor))
        self._tell_parent = loop.create_task(self._say_ready(self.parent))
        return acceptor.close

    async def _say_ready(self, parent: socket.socket) -> None:
        await self._until_stopping(self.first_table.wait())
        if not self.stopping.is_set():
            with contextlib.suppress(OSError):  # it is gone, and that is noticed by other means
                parent.send(READY)

    async def _until_stopping(self, what: Awaitable[object]) -> None:
        waits = [asyncio.ensure_future(what), asyncio.ensure_future(self.stopping.wait())]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()

    async def _within(self, seconds: float, what: Awaitable[object]) -> None:
        """Wait for `what`, but no longer than `seconds` or until there is a hurry."""
        waits = [asyncio.ensure_future(what), asyncio.ensure_future(self.hurrying.wait())]
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()

    # The parts

    def _make_refresher(self, board: LookBoard | None) -> Refresher:
        config = self.config
        owner = f"{socket.gethostname()}:{os.getpid()}:{next(self.ids)[:8].decode()}"
        last_good = LastGood(config.state_dir / LAST_GOOD_FILE)
        # Not used here, but a driver that is missing is an error of the start.
        labels = {"store": open_store(config.source).label}
        if config.memcached is not None:
            labels["snapshot"] = f"memcached {config.memcached}"
        labels |= {"disk": last_good.label, "archive": str(config.archive_dir)}
        return Refresher(
            Loader(
                Sources(
                    *(config.source, config.memcached, config.memcached_prefix, owner, str(last_good.path)),
                    *(str(config.archive_dir), config.archive_days, config.archive_bytes, config.helper_bytes),
                ),
                forks=self.forks,
            ),
            last_good,
            labels=labels,
            use=self._use_table,
            interval_s=config.refresh,
            uniform=random.random,
            seals=lambda: self.keyring.derive_each(SNAPSHOT_PURPOSE),
            board=board,
        )

    def _restore_counts(self) -> None:
        """Go on from what this host has counted. Raises StartError."""
        tally, counters = Tally(self.counter_file), self.state.counters
        moment = self.calendar.moment(time.time())
        counters.restore(tally.own)
        for part in tally.exchange(Ask(moment.day, None, None), [])[1]:
            counters.take_in(part, moment)

    def _make_teller(self) -> Teller:
        config = self.config
        places = Places(
            str(config.state_dir / COUNTS_FILE),
            str(self.counter_file.path),
            config.source,
            config.memcached,
            config.memcached_prefix,
            config.helper_bytes,
        )
        labels = {"files": str(config.state_dir), "store": open_store(config.source).label}
        if config.memcached is not None:
            labels["memcached"] = f"memcached {config.memcached}"
        return Teller(
            TallyProcess(places, self.counter_file.lock_fds, self.forks),
            self.counter_file,
            self.state.counters,
            generation=lambda: self.refresher.generation,
            interval_s=config.refresh,
            labels=labels,
            uniform=random.random,
            seals=lambda: self.keyring.derive_each(b"adcore counts"),
            work=self._count_answers,
        )

    def _use_table(self, table: AdTable) -> Steps[None]:
        known = set() if self.state.table is None else set(self.state.table.rejected)
        for problem in table.rejected:
            if problem not in known:
                log.warning("a bad row is left out: %s", problem)
                yield
        yield from self.state.use_in_steps(table, self.calendar.moment(time.time()))
        self.first_table.set()

    def _make_handlers(self, config: Config, keyring: KeyRing, calendar: Calendar) -> Handlers:
        country_of = None
        if config.geoip_file is not None:
            country_of = CountryDatabase(config.geoip_file).country
        delivery = Delivery(
            config,
            self.state,
            keyring=keyring,
            calendar=calendar,
            queue=self.queue,
            country_of=country_of,
            host=socket.gethostname(),
            impression_ids=self.ids,
            backends=Backends.load(config.backend_peers, config.backend_token_file),
        )
        return Handlers(config, delivery)

    def _make_control(self) -> ControlHandlers:
        runtime = self.runtime
        version = {
            "version": __version__,
            "revision": revision(),
            "python": platform.python_version(),
        }
        return ControlHandlers(
            version,
            {
                "process": runtime.process,
                "version": lambda: version,
                "gc": runtime.gc.to_status,
                "loop": runtime.lag.to_status,
                "connections": self._connection_status,
                "table": self._table_status,
                "refresh": self.refresher.status,
                "log": self.writer.statistics,
                "delivery": self.state.statistics.to_status,
                "counts": self._counter_status,
            },
            {"latency": self.http.statistics.latency, "lag": runtime.lag.histogram, "gc_pause": runtime.gc.pauses},
            runtime,
            self._explain,
            self._busiest_campaigns,
        )

    def _explain(self, arguments: list[tuple[str, str]]) -> Iterator[Explanation]:
        table = self.state.table
        if table is None:
            raise ExplainError("there is no ad table yet")

        def capped_of(user: str) -> frozenset[str]:
            now = time.time()
            user_hash = self.handlers.delivery.user_hash(user)
            return capped(self.state.memory.history(user_hash), table.caps, now)

        return explain_request(
            table,
            arguments,
            self.calendar,
            time.time(),
            held=lambda: self.state.counters.held,
            capped=capped_of,
        )

    # What operators see

    def _connection_status(self) -> dict[str, object]:
        return {"open": len(self.http.connections), **self.http.statistics.to_status()}

    def _table_status(self) -> dict[str, object]:
        table = self.state.table
        if table is None:
            return {"revision": None}
        return {
            "revision": table.revision,
            "placements": len(table.placements),
            "campaigns": len(table.campaigns),
            "creatives": table.creative_count,
            "rejected": [str(problem) for problem in table.rejected[:REJECTED_SHOWN_MAX]],
            "rejected_count": len(table.rejected),
        }

    def _counter_status(self) -> dict[str, object]:
        counters = self.state.counters
        return {"held": counters.held, "file": str(self.counter_file.path), "sharing": self.teller.status()}

    def _busiest_campaigns(self, number: int) -> list[dict[str, object]]:
        today = self.calendar.moment(time.time()).day
        return [
            {
                "campaign": count.campaign_id,
                "impressions_today": count.impressions_today,
                "clicks_today": count.clicks_today,
            }
            for count in self.state.counters.busiest(number, today)
        ]

    def _summary(self) -> str:
        """A line for `systemctl status`."""
        table = self.state.table
        return "; ".join(
            [
                f"no ad table yet, {self._without_table()}" if table is None else f"revision {table.revision}",
                f"{self.http.statistics.requests} requests, {len(self.http.connections)} connections",
                *([] if self.reload_error is None else [f"the reload failed: {self.reload_error}"]),
            ]
        )

    def _without_table(self) -> str:
        if self.notifier.wanted:
            return "nothing is accepted until a source answers"
        return "/ping says 503 until a source answers"

    # What happens on the way

    def _listen_to_signals(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._on_term)
        loop.add_signal_handler(signal.SIGINT, self._on_int)
        loop.add_signal_handler(signal.SIGHUP, self._on_hup)
        loop.add_signal_handler(signal.SIGUSR1, lambda: self.writer.reopen())
        if self.parent is not None:
            loop.add_reader(self.parent, self._on_parent_gone)
        # The command line, and a worker's parent, have held them back, so that none ended this process before now.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_BACK)

    def _on_term(self) -> None:
        if self.told_to_stop:
            self.hurrying.set()
        elif not self.stopping.is_set():
            log.info("TERM: finishing what is under way")
        self.told_to_stop = True
        self.stopping.set()

    def _on_parent_gone(self) -> None:
        """Drain, but in no hurry if systemd has sent a TERM of its own to every process of the unit."""
        assert self.parent is not None
        asyncio.get_running_loop().remove_reader(self.parent)
        if not self.stopping.is_set():
            log.info("pid %d is let go: finishing what is under way", os.getpid())
        self.stopping.set()

    def _on_int(self) -> None:
        self.stopping.set()
        self.hurrying.set()

    def _on_hup(self) -> None:
        """Take over what can change while serving; the sockets, the source and the log stay as they are."""
        serving = self.first_table.is_set()
        if serving:
            self.notifier.reloading()
        try:
            config = reload_config(self.config)
            keyring = KeyRing.load_or_create(config.secret_file)
            calendar = Calendar(config.time_zone)
            handlers = self._make_handlers(config, keyring, calendar)
        except AdcoreError as error:
            log.error("HUP: the old configuration stays: %s", error)
            self.reload_error = str(error)
        else:
            self.reload_error = None
            self.keyring = keyring
            self.calendar = self.state.counters.calendar = calendar
            self.http.handler = self.handlers = handlers
            self.http.trusted_peers = config.trusted_peers
            self.refresher.interval_s = self.teller.interval_s = config.refresh
            fixed = [name for name in FIXED_SETTINGS if getattr(config, name) != getattr(self.config, name)]
            self.config = config
            note = f"; {', '.join(fixed)} will change with a restart" if fixed else ""
            log.info("HUP: the configuration was read again%s", note)
        finally:
            # A manager that heard of a reload waits for its end, whatever that is.
            if serving:
                self.notifier.ready(self._summary())
        self.refresher.request()

    async def _turn(self) -> None:
        answers = 0
        while True:
            before, answers = answers, self._count_answers()
            await asyncio.sleep(until_tick(IDLE_INTERVAL_S) if answers == before else TURN_INTERVAL_S)
            errorlog.flush()
            self.collector.turn(self._count_answers())
            await in_slices(self.state.counters.turn_in_steps(time.time))

    def _count_answers(self) -> int:
        return sum(self.http.statistics.responses)

    async def _share(self, acceptor: Acceptor) -> None:
        """Leave to other workers what this one has too much of."""
        while not self.stopping.is_set():
            await asyncio.sleep(SHARE_INTERVAL_S if self.http.connections else until_tick(IDLE_INTERVAL_S))
            give_up(self.http, acceptor.excess())


def give_up(http: Http1Server, connections: int) -> None:
    """End this many connections, each with its next answer, so that their peers connect again."""
    if connections == 0:
        return
    handler = http.handler.handler if isinstance(http.handler, Closing) else http.handler
    http.handler = Closing(http, handler, connections)


class Closing:
    """Closes each connection after its answer, until there were enough; then the handler takes its place again."""

    def __init__(self, http: Http1Server, handler: Handler, connections: int) -> None:
        self.handler = handler
        self._http = http
        self._left = connections

    def __call__(self, request: Request) -> Response:
        self._left -= 1
        if self._left == 0:
            self._http.handler = self.handler
        answer = self.handler(request)
        # Not the object itself, which may be everybody's.
        return Response(answer.status, answer.head, answer.body, close=True)


def descriptors_max() -> int:
    """Raise the limit on descriptors as far as this process may; what it is then. Raises StartError for one too low.

    Connections stay below it. Without a descriptor left, libuv accepts connections to close them, and logs can't be
    reopened.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard != resource.RLIM_INFINITY and hard <= DESCRIPTORS_SPARE:
        raise StartError(
            f"this process may open {hard} files, and needs {DESCRIPTORS_SPARE} beside its connections: "
            "raise the limit (LimitNOFILE= of the unit, or ulimit -n)"
        )
    return sys.maxsize if hard == resource.RLIM_INFINITY else hard


def make_state_dir(config: Config) -> None:
    try:
        make_folder(config.state_dir)
    except OSError as error:
        raise StartError(
            f"cannot create the state directory {config.state_dir}: {error.strerror}; see --state-dir"
        ) from error
    if (problem := folder_problem(config.state_dir, "state directory")) is not None:
        raise StartError(f"{problem}, or choose another --state-dir")


def check_spool_dir(path: Path) -> None:
    """Raises StartError for a folder in which another user could remove the files or put others in their place."""
    try:
        problem = folder_problem(path, "spool directory", sticky=True)
    except OSError as error:
        raise StartError(f"cannot use the spool directory {path}: {error.strerror}; see --spool-dir") from error
    if problem is not None:
        raise StartError(f"{problem}, or choose another --spool-dir")


def open_spools(directory: Path) -> Spools | None:
    """None on a disk that is full: what is answered matters more than what a kill would lose. Raises StartError."""
    try:
        return Spools(directory)
    except NoSpaceError as error:
        log.error("%s; until the next start, what waits for the log is lost if this process is killed", error)
        return None


def open_look_board(config: Config) -> LookBoard | None:
    """None where there can't be one: then this process asks the sources itself."""
    path = config.state_dir / LOOKS_FILE
    try:
        return LookBoard(path, config.source)
    except OSError as error:
        log.warning("%s cannot be used: %s; this process asks the sources for itself", path, error.strerror)
        return None


def open_public_listener(config: Config, seat: Seat | None) -> Listener:
    if seat is None:
        return open_listener(config)
    return adopt(seat.listener_fd, f"worker {seat.number}", config.backlog)


def open_control_listener(config: Config, seat: Seat | None) -> Listener | None:
    if config.control is None:
        return None
    address: Address = parse_address(config.control)
    if seat is not None:  # that one is the parent's
        address = UnixAddress(control_path(config.state_dir, os.getpid()))
    return open_control(address, config.unix_mode)
