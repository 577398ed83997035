"""`adctl collect`: count the delivery log into the database that the ads come from.

Impressions, views, clicks and unfilled requests are summed up by hour, placement, campaign, creative, device and
country. How far each file was counted is written in the transaction that counts it, so every record counts once,
however often this is killed, run again, or run twice at the same time.
"""

import argparse
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import Any

import msgspec

from adcore.config import load_config
from adcore.core.calendar import Calendar
from adcore.errors import ConfigError, SourceError
from adcore.sources import Store, open_store, results
from adcore.sources.learning import learn
from adcore.sources.results import Overtaken, Progress
from adtools.aggregate import Aggregator, AnyCounted
from adtools.progress import progress_bar
from adtools.refusals import Refusals, Sampling
from adtools.tables import Tables
from adtools.tail import Mark, Sending, Tail

EPILOG = """\
examples:
  adctl collect /var/lib/adcore/delivery.log             count what is there, and exit
  adctl collect --follow /var/lib/adcore/delivery.log    go on until TERM: once a second

Rotated and compressed older files beside FILE are counted too, the oldest first, and each file once under whatever
name. A view or click that comes again within --click-window counts once, whichever host tells of it. While the store is
away, --follow waits; the log keeps what is not counted. Once an hour --follow also does what `adctl learn` does.

Exit status: 0 all is counted (or TERM came), 1 the store failed or the log is damaged, 2 usage.
"""

# A transaction: what a second brings on a busy host, and short enough that others need not wait long for the store.
BYTES_MAX = 32 << 20
EVENTS_MAX = 20_000
# How often a log is looked at, which is how old results are at most when nothing is wrong.
POLL_S = 1.0
# Pauses after failures of the store; the last one is repeated, each shortened at random.
RETRY_S = (0.5, 1.0, 5.0, 15.0)
# How often --follow learns: as often as there is a new hour to learn from.
LEARN_EVERY_S = 3600.0


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "collect",
        help="count delivery logs into the store",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", metavar="FILE", nargs="+", type=Path, help="a delivery log, in either form")
    parser.add_argument("--follow", action="store_true", help="go on until TERM or INT")
    parser.add_argument("--source", metavar="URL", help="the store (default: the server's)")
    parser.add_argument(
        "--archive", metavar="DIR", type=Path, help="the tables that were served (default: the server's)"
    )
    parser.add_argument("--time-zone", metavar="ZONE", help="of hours and days (default: the server's)")
    parser.add_argument(
        "--click-window",
        metavar="SECONDS",
        help="a view or click repeated within this counts once (default: the server's); 0 counts every one",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    given = {name: getattr(args, name) for name in ("time_zone", "click_window") if getattr(args, name) is not None}
    config = load_config(given)
    # Without an archive, as on a host that only gathers logs, all else is counted.
    archive = args.archive or (config.archive_dir if config.archive_days else None)
    store = open_store(args.source)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    # logrotate sends it to everything that is called adcore; a rotation is noticed without it.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    collector = Collector(args.files, store, Calendar(config.time_zone), config.click_window, say, stop.wait, archive)
    try:
        if args.follow:
            collector.follow()
        else:
            collector.run_once()
    finally:
        collector.close()
        store.close()
    say(f"{collector.records} records counted, {collector.repeated} of them views and clicks that came again")
    return 1 if collector.damaged else 0


def say(text: str) -> None:
    print(f"adctl collect: {text}", file=sys.stderr, flush=True)


class StorePositions:
    """How far files were counted, as the store says, and how much further since. Several tails may share it."""

    sending: Sending | None = None

    def __init__(self, store: Store) -> None:
        self._store = store
        self._marks: dict[str, Mark] = {}
        self._stored: dict[str, Mark] = {}

    def mark(self, identity: str) -> Mark:
        """Raises SourceError."""
        if identity not in self._marks:
            stored = Mark(*self._store.run(lambda db: results.position(db, identity)))
            self._stored[identity] = stored
            self._marks[identity] = msgspec.structs.replace(stored)
        return self._marks[identity]

    def stored(self, identity: str) -> int:
        """How far the store was when it was asked. Raises SourceError."""
        self.mark(identity)
        return self._stored[identity].offset

    def note_present(self, identities: Container[str]) -> None:
        """Rows of files that are gone stay: a file that is put back from a backup must not count again."""

    def save(self, *, durable: bool) -> None:
        """Only with the counts, by whoever asks for `progress`."""

    def progress(self) -> list[Progress]:
        """What the store does not know yet."""
        return [
            Progress(identity, self._stored[identity].offset, mark.offset, mark.done)
            for identity, mark in self._marks.items()
            if mark != self._stored[identity]
        ]

    def note_stored(self) -> None:
        self._stored = {identity: msgspec.structs.replace(mark) for identity, mark in self._marks.items()}


class Collector:
    """Counts the logs at `paths` into `store`.

    `wait(seconds)` waits, and says whether it is time to stop. `say` is told what a person should know. With the
    `archive` of the tables that were served, why campaigns were not shown is counted too.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        store: Store,
        calendar: Calendar,
        window_s: float,
        say: Callable[[str], object],
        wait: Callable[[float], bool],
        archive: Path | None = None,
    ) -> None:
        self.paths = paths
        self.store = store
        self.window_s = window_s
        self.calendar = calendar
        self.say = say
        self.wait = wait
        self.records = 0
        self.repeated = 0
        self.damaged = 0
        self._tails: list[Tail[AnyCounted]] = []
        self._said_overtaken = False
        self._said_without_table = False
        self._tables = None if archive is None else Tables(archive)
        self._start_over()

    def close(self) -> None:
        for tail in self._tails:
            tail.close()

    def run_once(self) -> None:
        """Count what is there. Raises SourceError and TailError; what was counted until then stays counted."""
        for tail in self._tails:
            if not tail.is_there():
                raise ConfigError(f"there is no file {tail.path}, and none that was renamed from it")
        totals = [tail.waiting_bytes() for tail in self._tails]
        known = [total for total in totals if total is not None]
        with progress_bar(sum(known) if len(known) == len(totals) else None, "collect") as bar:
            while self._collect(bar.update) and not self.wait(0):
                pass

    def follow(self) -> None:
        """Count what comes, and learn from it, until it is time to stop. Only what waiting cannot mend is raised."""
        failures = 0
        learn_at = time.monotonic()
        while True:
            try:
                more = self._collect(lambda size: None)
                if failures:
                    self.say(f"{self.store.label} answers again")
                failures = 0
            except SourceError as error:
                if not failures:
                    self.say(f"{error}; the log keeps what is not counted, and it is tried again")
                failures += 1
                self._start_over()
                more = False
            # Hours that are counted in part would teach that nobody came.
            if not more and not failures and time.monotonic() >= learn_at:
                self._learn()
                learn_at = time.monotonic() + LEARN_EVERY_S
            pause_s = RETRY_S[min(failures, len(RETRY_S)) - 1] * random.uniform(0.5, 1) if failures else POLL_S
            if self.wait(0 if more else pause_s):
                return

    def _learn(self) -> None:
        """Let delivery learn from what is counted, in a transaction of its own."""
        try:
            self.store.run(lambda db: learn(db, time.time(), self.calendar))
        except Exception as error:  # counting must go on, whatever is wrong with what is learned from counts
            self.say(f"cannot learn from the results, it is tried again in an hour: {error}")

    def _collect(self, on_read: Callable[[int], object]) -> bool:
        """Count, in one transaction, what there is, or a good part of it; whether there may be more."""
        read_bytes = records = damaged = 0
        full = False
        for tail in self._tails:
            while not full and (batch := tail.next()) is not None:
                for damage in batch.damage:
                    self.say(f"{batch.path}: {damage.length} bytes at {damage.offset} are no record: {damage.reason}")
                self._aggregator.add(batch.records)
                if self._refusals is not None:
                    self._refusals.add(self._sampling.take())
                tail.commit(batch)
                on_read(batch.end - batch.start)
                read_bytes += batch.end - batch.start
                records += len(batch.records)
                damaged += len(batch.damage)
                full = read_bytes >= BYTES_MAX or len(self._aggregator.tally.events) >= EVENTS_MAX or self.wait(0)
        progress = self._positions.progress()
        if not progress:
            return False
        tally = self._aggregator.tally
        if self._refusals is not None:
            tally.refusals = self._refusals.counts()
        try:
            self.repeated += self.store.run(
                lambda db: results.add_tally(
                    db, tally, progress, calendar=self.calendar, window_s=self.window_s, now=time.time()
                )
            )
        except Overtaken:
            if not self._said_overtaken:
                self.say("another adctl collect counts the same log; nothing is counted twice, but one is enough")
                self._said_overtaken = True
            self._start_over()
            return True
        self._aggregator.tally = results.Tally()
        if self._refusals is not None:
            self._refusals.clear()
            self._say_without_table(self._refusals)
        self._positions.note_stored()
        self.records += records
        self.damaged += damaged
        return full

    def _start_over(self) -> None:
        """Forget what is not in the store, and go on from what is."""
        self.close()
        self._positions = StorePositions(self.store)
        self._aggregator = Aggregator(self.calendar)
        self._sampling = Sampling()
        self._refusals = None if self._tables is None else Refusals(self._tables, self.calendar)
        self._tails = [Tail(path, self._positions, self._sampling) for path in self.paths]

    def _say_without_table(self, refusals: Refusals) -> None:
        if refusals.without_table and not self._said_without_table:
            self.say(f"why campaigns were not shown is not counted for some requests: {refusals.why}")
            self._said_without_table = True
