"""The refresh timer: notices a new revision, gets its rows from the nearest source, has a table built, swaps it in.

One cheap poll of the store per interval, jittered so that workers do not ask in step. When the revision has risen,
the first process to take the lock in memcached reads the store and publishes a snapshot; the others take that. What
is away is gone around: no memcached, read the store; no store, take the snapshot; neither, keep the table in memory,
and at the start take the last good rows from local disk. Stale beats absent, and its age is shown.

Everything that blocks happens in one thread; the loop only assigns the new table. A hung source therefore stops
refreshing until its timeout, and nothing else.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable
from hashlib import blake2b
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from adcore.background import BackgroundThread
from adcore.errors import SourceError
from adcore.sources import Revision, Rows, Source
from adcore.sources.codec import encode_rows
from adcore.sources.lastgood import LastGood

if TYPE_CHECKING:
    from adcore.sources.snapshot import Snapshot

log = logging.getLogger("adcore.sources")

# Each wait is up to this part of the interval shorter, never longer: the interval is a promise.
JITTER = 0.2
# How long those that lost the lock look for the winner's snapshot, as a part of a second more than the interval allows.
LOCK_WAIT_S = 0.7
LOCK_POLL_S = 0.05
# A table that keeps less than this part of the creatives of the one before is taken for an accident at first.
SHRINK_MIN = 0.5


class Table(Protocol):
    @property
    def creative_count(self) -> int: ...


T = TypeVar("T", bound=Table)


class Health:
    """How one source is doing."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.ok: bool | None = None
        self.last_ok_wall: float | None = None
        self.last_error: str | None = None

    def note_ok(self, now_wall: float) -> None:
        if self.ok is False:
            log.info("%s answers again", self.label)
        self.ok, self.last_ok_wall = True, now_wall

    def note_error(self, error: SourceError) -> None:
        if self.ok is not False or self.last_error != str(error):
            log.warning("%s", error)
        self.ok, self.last_error = False, str(error)

    def to_status(self) -> dict[str, object]:
        return {
            "source": self.label,
            "ok": self.ok,
            "last_ok": self.last_ok_wall,
            "last_error": self.last_error,
        }


class Refresher(Generic[T]):
    """Keeps the table fresh.

    `build` runs in the thread and may take its time; `use` gets the new table on the loop. `uniform` gives a random
    number in [0, 1).
    """

    def __init__(
        self,
        source: Source,
        snapshot: "Snapshot | None",
        last_good: LastGood,
        *,
        build: Callable[[Rows], T],
        use: Callable[[T], None],
        interval_s: float,
        uniform: Callable[[], float],
        clock_wall: Callable[[], float] = time.time,
    ) -> None:
        self.interval_s = interval_s
        self._source = source
        self._snapshot = snapshot
        self._last_good = last_good
        self._build = build
        self._use = use
        self._uniform = uniform
        self._clock = clock_wall
        self._thread = BackgroundThread("refresh")
        self._wanted = asyncio.Event()
        self._table: T | None = None
        self._revision = -1
        self._refused_hash = b""
        self.refused: str | None = None
        self.table_wall: float | None = None
        """When the table was last known to be what the source has."""
        self.looks = 0
        """How often it has looked whether there is something new."""
        self.loads: Counter[str] = Counter()
        """Where tables came from: snapshot, store or disk."""
        self.source_health = Health(source.label)
        self.snapshot_health = Health(snapshot.label) if snapshot else None
        self.disk_health = Health(last_good.label)

    async def start(self) -> bool:
        """Look for a first table: the store, the snapshot, the disk. Whether one was found."""
        await self._refresh()
        if self._table is None:
            await self._call(self._load_last_good)
        return self._table is not None

    async def run(self) -> None:
        """Refresh until cancelled."""
        while True:
            try:
                await asyncio.wait_for(self._wanted.wait(), self.interval_s * (1 - JITTER * self._uniform()))
            except TimeoutError:
                pass
            self._wanted.clear()
            await self._refresh()

    def request(self) -> None:
        """Read everything again now (an operator's HUP)."""
        self._revision = -1
        self._wanted.set()

    def close(self) -> None:
        """Close the sources, once a call under way has ended; nothing waits for that."""
        for source in (self._source, self._snapshot):
            if source is not None:
                self._thread.submit(source.close)
        self._thread.shutdown()

    def status(self) -> dict[str, object]:
        healths = (self.source_health, self.snapshot_health, self.disk_health)
        return {
            "sources": [health.to_status() for health in healths if health is not None],
            "looks": self.looks,
            "loads": dict(self.loads),
            "refused": self.refused,
            "age_s": None if self.table_wall is None else max(0.0, self._clock() - self.table_wall),
        }

    async def _call(self, function: Callable[[], T | None]) -> None:
        """Run `function` in the thread, and use the table it gives."""
        table = await asyncio.get_running_loop().run_in_executor(self._thread, function)
        if table is not None:
            self._table = table
            self._use(table)

    async def _refresh(self) -> None:
        try:
            await self._call(self._look)
        except Exception:
            # The timer must outlive any surprise; what it was is in the log.
            log.exception("a refresh failed; the table stays")
        self.looks += 1

    # In the thread

    def _look(self) -> T | None:
        """A new table if there is one."""
        rows, origin = self._rows_if_new()
        if rows is None:
            return None
        table = self._accept(rows)
        if table is not None:
            self.loads[origin] += 1
            self._save_last_good(rows)
        return table

    def _rows_if_new(self) -> tuple[Rows | None, str]:
        try:
            revision = self._source.revision()
            self.source_health.note_ok(self._clock())
        except SourceError as error:
            self.source_health.note_error(error)
            return self._snapshot_if_newer(), "snapshot"
        if revision.number == self._revision and self.refused is None:
            self.table_wall = self._clock()
            return None, ""
        return self._rows_at(revision)

    def _rows_at(self, revision: Revision) -> tuple[Rows | None, str]:
        """The rows at this revision or a later one, from the snapshot if somebody makes one."""
        locked = False
        if self._snapshot is not None:
            deadline_monotonic = time.monotonic() + LOCK_WAIT_S
            while True:
                try:
                    found = self._snapshot.revision()
                    if found is not None and found.number >= revision.number:
                        rows = self._snapshot.load()
                        self._note_snapshot_ok()
                        # Revisions of a database that was set up anew start again: a higher one is not ours.
                        if rows is not None and rows.revision == revision.number:
                            return rows, "snapshot"
                    locked = self._snapshot.lock()
                    self._note_snapshot_ok()
                except SourceError as error:
                    self._note_snapshot_error(error)
                    break
                if locked or time.monotonic() > deadline_monotonic:
                    break
                time.sleep(LOCK_POLL_S)
        try:
            rows = self._source.load()
        except SourceError as error:
            self.source_health.note_error(error)
            return None, ""
        if self._snapshot is not None and locked:
            try:
                self._snapshot.publish(rows)
                self._snapshot.unlock()
            except SourceError as error:
                self._note_snapshot_error(error)
        return rows, "store"

    def _snapshot_if_newer(self) -> Rows | None:
        if self._snapshot is None:
            return None
        try:
            found = self._snapshot.revision()
            self._note_snapshot_ok()
            if found is None or found.number <= self._revision:
                return None
            return self._snapshot.load()
        except SourceError as error:
            self._note_snapshot_error(error)
            return None

    def _accept(self, rows: Rows) -> T | None:
        """Build the table, and hold it against the one before."""
        digest = blake2b(encode_rows(rows), digest_size=16).digest()
        table = self._build(rows)
        before = self._table
        if (
            before is not None
            and table.creative_count < before.creative_count * SHRINK_MIN
            and rows.confirmed < rows.revision
            and digest != self._refused_hash
        ):
            self._refused_hash = digest
            self.refused = (
                f"revision {rows.revision} has {table.creative_count} creatives and the one before "
                f"{before.creative_count}; it is taken if the next "
                "look finds it unchanged, or once adctl apply confirms it"
            )
            log.warning("%s", self.refused)
            return None
        self._refused_hash = b""
        self.refused = None
        self._revision = rows.revision
        self.table_wall = self._clock()
        return table

    def _load_last_good(self) -> T | None:
        try:
            rows = self._last_good.load()
        except SourceError as error:
            self.disk_health.note_error(error)
            return None
        if rows is None:
            return None
        self.disk_health.note_ok(self._clock())
        table = self._build(rows)
        self.loads["disk"] += 1
        log.warning("no source answers; serving revision %d from %s", rows.revision, self._last_good.label)
        return table

    def _save_last_good(self, rows: Rows) -> None:
        try:
            self._last_good.save(rows)
            self.disk_health.note_ok(self._clock())
        except SourceError as error:
            self.disk_health.note_error(error)

    def _note_snapshot_ok(self) -> None:
        assert self.snapshot_health is not None
        self.snapshot_health.note_ok(self._clock())

    def _note_snapshot_error(self, error: SourceError) -> None:
        assert self.snapshot_health is not None
        self.snapshot_health.note_error(error)
