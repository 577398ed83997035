"""The refresh timer: notices a new revision, gets its rows from the nearest source, has a table built, swaps it in.

One cheap poll of the store per interval, jittered so that workers do not ask in step. When the revision has risen,
the first process to take the lock in memcached reads the store and publishes a snapshot; the others take that. What
is away is gone around: no memcached, read the store; no store, take the snapshot; neither, keep the table in memory,
and at the start take the last good rows from local disk. Stale beats absent, and its age is shown.

Everything that blocks happens in one thread; the loop only assigns the new table. A source that hangs therefore stops
the refreshing, for as long as its driver's timeouts let it, and nothing else.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable
from hashlib import blake2b
from typing import TYPE_CHECKING, Generic, NamedTuple, Protocol, TypeVar

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
# How long those that lost the lock wait for the winner's snapshot before they read the store themselves. A load of
# 100,000 creatives takes a second or two; longer than this, and its holder was killed.
LOCK_WAIT_S = 5.0
LOCK_POLL_S = 0.05
# A table that keeps less than this part of the creatives of the one before is taken for an accident at first.
SHRINK_MIN = 0.5


class Found(NamedTuple):
    """Rows, and where they were found: the store, the snapshot or the disk."""

    rows: Rows
    origin: str


class Table(Protocol):
    @property
    def creative_count(self) -> int: ...


T = TypeVar("T", bound=Table)
R = TypeVar("R")


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
        self._reload = False
        """Whether an operator wants everything read again, changed or not."""
        self._served: Revision | None = None
        """What the table in use was made of."""
        self._creatives = 0
        """How many it has."""
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
        kept = await self._in_thread(self._load_last_good)
        if kept is None:
            await self._refresh()
            return self._served is not None
        # A store that lost most of its creatives while nobody looked is doubted as well.
        rows, kept_wall = kept
        self._creatives = _creatives_in(rows)
        await self._refresh(before=rows.revision)
        if self._served is None:
            log.warning("serving revision %d from %s", rows.revision.number, self._last_good.label)
            table = await self._in_thread(lambda: self._build(rows))
            self._take(table, Found(rows, "disk"), kept_wall)
        return True

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
        self._reload = True
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

    async def _in_thread(self, function: Callable[[], R]) -> R:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    async def _refresh(self, before: Revision | None = None) -> None:
        """Look once; `before` is what stands for the table in use while there is none."""
        reload, self._reload = self._reload, False
        served = None if reload else self._served
        try:
            found = await self._in_thread(lambda: self._look(served))
            if found is not None:
                compared_with = self._served or before
                table = await self._in_thread(lambda: self._accept(found.rows, compared_with))
                if table is not None:
                    self._take(table, found, self._clock())
                    await self._in_thread(lambda: self._save_last_good(found.rows))
        except Exception:
            # The timer must outlive any surprise; what it was is in the log.
            log.exception("a refresh failed; the table stays")
            self._reload = self._reload or reload
        self.looks += 1

    def _take(self, table: T, found: Found, fresh_wall: float) -> None:
        self._use(table)
        self._served = found.rows.revision
        self._creatives = table.creative_count
        self.table_wall = fresh_wall
        self.loads[found.origin] += 1

    # In the thread

    def _look(self, served: Revision | None) -> Found | None:
        """New rows if there are any."""
        try:
            revision = self._source.revision()
            self.source_health.note_ok(self._clock())
        except SourceError as error:
            self.source_health.note_error(error)
            return self._snapshot_if_newer(served)
        if served is not None and (revision.generation, revision.number) == (served.generation, served.number):
            self.table_wall = self._clock()
            return None
        return self._load(revision)

    def _load(self, revision: Revision) -> Found | None:
        """The rows at this revision or a later one: from the snapshot if somebody makes one, else from the store."""
        locked = False
        snapshot = self._snapshot
        if snapshot is not None:
            deadline_monotonic = time.monotonic() + LOCK_WAIT_S
            try:
                while True:
                    there = snapshot.revision()
                    if there is not None and there.is_as_new_as(revision):
                        rows = snapshot.load()
                        if rows is not None and rows.revision.is_as_new_as(revision):
                            self._note_snapshot_ok()
                            return Found(rows, "snapshot")
                    locked = snapshot.lock()
                    self._note_snapshot_ok()
                    if locked or time.monotonic() > deadline_monotonic:
                        break
                    time.sleep(LOCK_POLL_S)
            except SourceError as error:
                self._note_snapshot_error(error)
        try:
            rows = self._source.load()
        except SourceError as error:
            self.source_health.note_error(error)
            rows = None
        if snapshot is not None and locked:
            try:
                if rows is not None:
                    snapshot.publish(rows)
                snapshot.unlock()
            except SourceError as error:
                self._note_snapshot_error(error)
        return None if rows is None else Found(rows, "store")

    def _snapshot_if_newer(self, served: Revision | None) -> Found | None:
        if self._snapshot is None:
            return None
        try:
            there = self._snapshot.revision()
            self._note_snapshot_ok()
            # Without the store nobody can say which of two generations is the one that counts.
            if there is None or (served and (not there.is_as_new_as(served) or there.number == served.number)):
                return None
            rows = self._snapshot.load()
        except SourceError as error:
            self._note_snapshot_error(error)
            return None
        return None if rows is None else Found(rows, "snapshot")

    def _accept(self, rows: Rows, before: Revision | None) -> T | None:
        """Build the table, and hold it against the one before."""
        digest = blake2b(encode_rows(rows), digest_size=16).digest()
        table = self._build(rows)
        revision = rows.revision
        if (
            before is not None
            and before.generation == revision.generation
            and table.creative_count < self._creatives * SHRINK_MIN
            and revision.confirmed < revision.number
            and digest != self._refused_hash
        ):
            self._refused_hash = digest
            self.refused = (
                f"revision {revision.number} has {table.creative_count} creatives and the one before "
                f"{self._creatives}; it is taken if the next look finds it unchanged, or once adctl apply confirms it"
            )
            log.warning("%s", self.refused)
            return None
        self._refused_hash = b""
        self.refused = None
        return table

    def _load_last_good(self) -> tuple[Rows, float] | None:
        try:
            kept = self._last_good.load()
        except SourceError as error:
            self.disk_health.note_error(error)
            return None
        if kept is not None:
            self.disk_health.note_ok(self._clock())
        return kept

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


def _creatives_in(rows: Rows) -> int:
    """How many creatives there are, good or bad."""
    return sum(len(campaign["creatives"]) for campaign in rows.document["campaigns"])
