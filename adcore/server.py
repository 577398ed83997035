"""The composition root: builds the parts, starts them in order, answers signals, and stops them in order.

Start: state directory, secret, log and listeners (so that a mistake ends it before anything is served), the first
table, accept. Stop on TERM: stop accepting, finish what is under way, stop refreshing, save the counts, write the log
out. No request logic here.
"""

import asyncio
import contextlib
import gc
import logging
import os
import platform
import random
import signal
import socket
import time
from collections.abc import Awaitable, Iterator
from importlib import resources
from pathlib import Path

import msgspec
import uvloop

from adcore import __version__, errorlog
from adcore.config import Config, reload_config
from adcore.control.explain import ExplainError, explain_request
from adcore.control.handlers import ControlHandlers
from adcore.core.adtable import AdTable, Steps
from adcore.core.calendar import Calendar
from adcore.core.decision import Explanation
from adcore.core.frequency import capped
from adcore.core.inventory import parse_inventory
from adcore.counterfile import CounterFile
from adcore.counters import Counters, CounterState
from adcore.delivery import Delivery
from adcore.deliverylog.queue import RecordQueue
from adcore.deliverylog.record import FORMS
from adcore.deliverylog.spool import Spool, take_over
from adcore.deliverylog.writer import LogWriter
from adcore.errors import AdcoreError, SourceError, StartError
from adcore.geoip import CountryDatabase
from adcore.handlers import Handlers
from adcore.http1.protocol import Http1Server, Limits
from adcore.listen import Listener, open_address, open_listener, parse_address, serve
from adcore.pidfile import PidFile
from adcore.settings import COUNTS_FILE, LAST_GOOD_FILE
from adcore.sources import open_store
from adcore.sources.lastgood import LastGood
from adcore.sources.loader import Loader, Sources
from adcore.sources.refresh import Refresher
from adcore.state import State
from adcore.tokens import KeyRing
from adcore.version import git_revision

log = logging.getLogger("adcore")

# How often campaigns that wait for their line (pacing) or for midnight (daily caps) are looked at again.
TURN_INTERVAL_S = 1.0
# /status names this many bad rows; the log has them all.
REJECTED_SHOWN_MAX = 100
# Settings that only a restart changes.
FIXED_SETTINGS = (
    *(
        "unix",
        "unix_mode",
        "fd",
        "host",
        "port",
        "backlog",
        "control",
        "source",
        "memcached",
        "memcached_prefix",
    ),
    *("log", "log_format", "log_queue_bytes", "spool_dir", "state_dir", "pid_file", "header_timeout", "idle_timeout"),
    "click_window",
)


def run(config: Config) -> int:
    """Serve until a signal says stop; the exit status. Raises AdcoreError when it cannot start."""
    errorlog.install()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(Server(config).run())


def impression_ids() -> Iterator[bytes]:
    """Endless random ids of 128 bits in 32 hex digits, drawn from the system 256 at a time."""
    while True:
        block = os.urandom(16 * 256).hex().encode()
        for start in range(0, len(block), 32):
            yield block[start : start + 32]


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

    def __init__(self, config: Config) -> None:
        self.config = config
        self.started_monotonic = time.monotonic()
        self.stopping = asyncio.Event()
        self.hurrying = asyncio.Event()
        self.calendar = Calendar(config.time_zone)
        self.state = State(Counters(self.calendar), config.click_window)
        self.ids = impression_ids()
        self.counts_on_disk: CounterState = {}

    async def run(self) -> int:
        config = self.config
        self._listen_to_signals()
        make_state_dir(config)
        keyring = KeyRing.load_or_create(config.secret_file)
        if config.source_is_default and install_sample_inventory(config.source):
            log.info("serving the sample inventory, from %s", config.source)
        with contextlib.ExitStack() as on_exit:
            if config.pid_file is not None:
                on_exit.enter_context(PidFile(config.pid_file))
            listener = open_listener(config)
            on_exit.callback(listener.close)
            control_listener = open_control_listener(config)
            if control_listener is not None:
                on_exit.callback(control_listener.close)
            self.counter_file = CounterFile(config.state_dir / COUNTS_FILE)
            on_exit.callback(self.counter_file.close)
            self.counter_file.lock()
            self.counts_on_disk = self.counter_file.load()
            self.state.counters.rebase({}, self.counts_on_disk)
            spool = Spool(config.spool_dir)
            on_exit.callback(spool.close)
            self.queue = RecordQueue(config.log_queue_bytes, FORMS[config.log_format], spool)
            self.writer = LogWriter(self.queue, config.log, before_batch=spool.note_log)
            self.writer.open()
            take_over(config.spool_dir, config.log, self.queue)
            self.refresher = self._make_refresher()
            on_exit.callback(self.refresher.close)
            self.http = Http1Server(
                self._make_handlers(config, keyring, self.calendar),
                Limits(request_s=config.header_timeout, idle_s=config.idle_timeout),
                config.trusted_peers,
                before_answers=self.queue.commit,
            )
            await self._serve(listener, control_listener)
        return 0

    async def _serve(self, listener: Listener, control_listener: Listener | None) -> None:
        config = self.config
        loop = asyncio.get_running_loop()
        writing = loop.create_task(self.writer.run(), name="log-writer")
        control = Http1Server(self._make_control())
        # Operators can ask while the first table is still on its way.
        control_server = await serve(loop, control_listener, control, 16) if control_listener else None
        # A large document is taken apart meanwhile, and nothing in it is garbage before it is all done.
        gc.disable()
        if not await self.refresher.start():
            log.error("no ad table yet; /ping says 503 until a source answers")
        server = await serve(loop, listener, self.http, config.backlog)
        log.info("serving on %s, pid %d", listener.describe, os.getpid())
        # What start-up made stays for good: the collector need not look at it again.
        gc.enable()
        gc.collect()
        gc.freeze()
        timers = [
            loop.create_task(self.refresher.run(), name="refresh"),
            loop.create_task(self._turn(), name="turn"),
            loop.create_task(self._save_counts(), name="save-counts"),
        ]
        stopping = loop.create_task(self.stopping.wait())
        await asyncio.wait([stopping, writing, *timers], return_when=asyncio.FIRST_COMPLETED)
        if not self.stopping.is_set():
            log.error("a part of the server has ended by itself; stopping")

        server.close()
        listener.close()
        self.http.start_drain()
        await self._within(config.graceful_timeout, self.http.all_closed.wait())
        self.http.abort()
        for timer in timers:
            timer.cancel()
        self._write_counts()
        await self.writer.close(writing, lambda written: self._within(config.graceful_timeout, written))
        if control_server is not None:
            control_server.close()
            control.abort()
        failures = [task.exception() for task in (writing, *timers) if task.done() and not task.cancelled()]
        for failure in filter(None, failures):
            raise AdcoreError(f"a part of the server failed: {failure!r}") from failure

    async def _within(self, seconds: float, what: Awaitable[object]) -> None:
        """Wait for `what`, but no longer than `seconds` or until there is a hurry."""
        waits = [asyncio.ensure_future(what), asyncio.ensure_future(self.hurrying.wait())]
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()

    # The parts

    def _make_refresher(self) -> Refresher:
        config = self.config
        owner = f"{socket.gethostname()}:{os.getpid()}:{next(self.ids)[:8].decode()}"
        last_good = LastGood(config.state_dir / LAST_GOOD_FILE)
        # Not used here, but a driver that is missing is an error of the start.
        labels = {"store": open_store(config.source).label}
        if config.memcached is not None:
            labels["snapshot"] = f"memcached {config.memcached}"
        labels["disk"] = last_good.label
        return Refresher(
            Loader(Sources(config.source, config.memcached, config.memcached_prefix, owner, str(last_good.path))),
            last_good,
            labels=labels,
            use=self._use_table,
            interval_s=config.refresh,
            uniform=random.random,
        )

    def _use_table(self, table: AdTable) -> Steps[None]:
        known = set() if self.state.table is None else set(self.state.table.rejected)
        for problem in table.rejected:
            if problem not in known:
                log.warning("a bad row is left out: %s", problem)
                yield
        yield from self.state.use_in_steps(table, self.calendar.moment(time.time()))

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
        )
        return Handlers(config, delivery)

    def _make_control(self) -> ControlHandlers:
        version = {
            "version": __version__,
            "revision": git_revision() or "",
            "python": platform.python_version(),
        }
        return ControlHandlers(
            version,
            {
                "process": lambda: process_status(self.started_monotonic),
                "version": lambda: version,
                "connections": self._connection_status,
                "table": self._table_status,
                "refresh": self.refresher.status,
                "log": self.writer.statistics,
                "delivery": self.state.statistics.to_status,
                "counts": self._counter_status,
            },
            self._explain,
        )

    def _explain(self, arguments: list[tuple[str, str]]) -> list[Explanation]:
        table = self.state.table
        if table is None:
            raise ExplainError("there is no ad table yet")

        def capped_of(user: str) -> frozenset[str]:
            now = time.time()
            user_hash = self.http.handler.delivery.user_hash(user)  # type: ignore[attr-defined]
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
        return {"held": self.state.counters.held, "saved_here": self.counter_file.locked}

    # What happens on the way

    def _listen_to_signals(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._on_term)
        loop.add_signal_handler(signal.SIGINT, self._on_int)
        loop.add_signal_handler(signal.SIGHUP, self._on_hup)
        loop.add_signal_handler(signal.SIGUSR1, lambda: self.writer.reopen())

    def _on_term(self) -> None:
        if self.stopping.is_set():
            self.hurrying.set()
        else:
            log.info("TERM: finishing what is under way")
            self.stopping.set()

    def _on_int(self) -> None:
        self.stopping.set()
        self.hurrying.set()

    def _on_hup(self) -> None:
        """Take over what can change while serving; the sockets, the source and the log stay as they are."""
        try:
            config = reload_config(self.config)
            keyring = KeyRing.load_or_create(config.secret_file)
            calendar = Calendar(config.time_zone)
            handlers = self._make_handlers(config, keyring, calendar)
        except AdcoreError as error:
            log.error("HUP: the old configuration stays: %s", error)
        else:
            self.calendar = self.state.counters.calendar = calendar
            self.http.handler = handlers
            self.http.trusted_peers = config.trusted_peers
            self.refresher.interval_s = config.refresh
            fixed = [name for name in FIXED_SETTINGS if getattr(config, name) != getattr(self.config, name)]
            self.config = config
            note = f"; {', '.join(fixed)} will change with a restart" if fixed else ""
            log.info("HUP: the configuration was read again%s", note)
        self.refresher.request()

    async def _turn(self) -> None:
        while True:
            await asyncio.sleep(TURN_INTERVAL_S)
            errorlog.flush()
            self.state.counters.turn(self.calendar.moment(time.time()))

    async def _save_counts(self) -> None:
        while True:
            await asyncio.sleep(self.config.refresh)
            self._write_counts()

    def _write_counts(self) -> None:
        """Keep the delivery counts. The file is small and its directory local, so this is done on the loop."""
        counters = self.state.counters
        if not self.counter_file.locked:
            if not self.counter_file.lock():
                return
            counters.rebase(self.counts_on_disk, self.counter_file.load())
        if counters.changed:
            counters.changed = False
            try:
                self.counter_file.save(counters.to_state())
            except OSError as error:
                counters.changed = True
                log.error("cannot save the delivery counts in %s: %s", self.counter_file.path, error.strerror)


def make_state_dir(config: Config) -> None:
    try:
        config.state_dir.mkdir(parents=True, exist_ok=True, mode=0o750)
    except OSError as error:
        raise StartError(
            f"cannot create the state directory {config.state_dir}: {error.strerror}; see --state-dir"
        ) from error


def open_control_listener(config: Config) -> Listener | None:
    if config.control is None:
        return None
    return open_address(parse_address(config.control), backlog=16, unix_mode=config.unix_mode)


def process_status(started_monotonic: float) -> dict[str, object]:
    """This process as the kernel sees it."""
    resident_pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "uptime_s": round(time.monotonic() - started_monotonic, 3),
        "rss_bytes": resident_pages * os.sysconf("SC_PAGE_SIZE"),
        "fds": len(os.listdir("/proc/self/fd")),
        "gc_collections": [generation["collections"] for generation in gc.get_stats()],
    }
