"""The refresh timer: has somebody look for a new revision, builds its table between requests, and swaps it in.

One look per interval, jittered so that workers do not ask in step; of the processes of one state directory one looks
and the others read what it has found (lookboard.py). What blocks or computes for long happens in another
process (loader.py), which tells only what differs from the table in use. The new table is then made on the loop, in
slices of at most half a millisecond between which requests are answered, and takes the old one's place at once.

At the start the last good rows on local disk are a first table. Stale beats absent, and its age is shown. A source
that hangs stops the refreshing, for as long as its driver's timeouts let it, and nothing else.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from typing import Protocol, TypeVar

from adcore.background import BackgroundThread
from adcore.core.adtable import EMPTY, AdTable, Steps, finish, let_go
from adcore.errors import SourceError
from adcore.sources import Note, Revision
from adcore.sources.child import ChildError
from adcore.sources.lastgood import LastGood
from adcore.sources.lookboard import LookBoard
from adcore.sources.reader import Answer, Ask, Offer, apply_offer, offer_all
from adcore.ticks import until_tick

log = logging.getLogger("adcore.sources")

# Each wait is up to this part of the interval shorter, never longer: the interval is a promise.
JITTER = 0.2
# While others rely on what a process finds: its interval, how often they read it, and how old it may be, in intervals.
# The first two together are less than one, so a change is served within an interval by every process.
LEADING = 0.55
FOLLOWING = 0.4
NOTE_AGE_MAX = 1.5
# A request waits no longer than one slice, and the loop is mostly free between two.
SLICE_S = 0.0003
PAUSE_S = 0.001
# With a table from disk, a start waits no longer than this for a newer one.
FIRST_LOOK_S = 0.5

R = TypeVar("R")


class Looker(Protocol):
    """A Reader, here or in a process of its own. Calls block, except close."""

    def look(self, ask: Ask) -> tuple[Answer, list[bytes]]: ...

    def keep(self) -> list[Note]: ...

    @property
    def is_awake(self) -> bool:
        """Whether there is something that `rest` could end."""

    def rest(self) -> None:
        """Another process looks."""

    def close(self) -> None: ...


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

    def note_error(self, error: str) -> None:
        if self.ok is not False or self.last_error != error:
            log.warning("%s", error)
        self.ok, self.last_error = False, error

    def to_status(self) -> dict[str, object]:
        return {
            "source": self.label,
            "ok": self.ok,
            "last_ok": self.last_ok_wall,
            "last_error": self.last_error,
        }


class Refresher:
    """Keeps the table fresh.

    `use` takes a new table over, step by step, the last of which swaps it in. `labels` are the names of the sources for
    people, by what a Note calls them. `seals` gives the keys that sign snapshots. `uniform` gives a random number in
    [0, 1). Calls of the looker are made in `thread`, its own.
    """

    def __init__(
        self,
        looker: Looker,
        last_good: LastGood,
        *,
        labels: dict[str, str],
        use: Callable[[AdTable], Steps[None]],
        interval_s: float,
        uniform: Callable[[], float],
        board: LookBoard | None = None,
        clock_wall: Callable[[], float] = time.time,
        clock_monotonic: Callable[[], float] = time.monotonic,
        clock_slice: Callable[[], float] = time.perf_counter,
        thread: Executor | None = None,
        seals: Callable[[], tuple[bytes, ...]] = tuple,
    ) -> None:
        self.interval_s = interval_s
        self._looker = looker
        self._last_good = last_good
        self._use = use
        self._uniform = uniform
        self._board = board
        self._follows = False
        """Whether the last news came from another process."""
        self._clock = clock_wall
        self._clock_monotonic = clock_monotonic
        self._clock_slice = clock_slice
        self._seals = seals
        self._thread = thread or BackgroundThread("refresh")
        self._wanted = asyncio.Event()
        self._first_look: asyncio.Task[None] | None = None
        self._reload = False
        """Whether an operator wants everything read again, changed or not."""
        self._table = EMPTY
        self._known = b""
        """Digests of its campaigns."""
        self._served: Revision | None = None
        """What the table in use was made of."""
        self._refused = b""
        self.refused: str | None = None
        self.table_monotonic: float | None = None
        """When the source was last asked and had nothing newer than the table."""
        self.looks = 0
        """How often it has looked whether there is something new."""
        self.loads: Counter[str] = Counter()
        """Where tables came from: snapshot, store or disk."""
        self.healths = {source: Health(label) for source, label in labels.items()}

    async def start(self) -> bool:
        """Find a first table: the last good one, and a newer one if there is. Whether one was found."""
        kept = await self._in_thread(self._load_last_good)
        if kept is None:
            await self._refresh()
            return self._served is not None
        offer, parts, kept_wall = kept
        await self._take(offer, parts)
        self.table_monotonic = self._clock_monotonic() - max(0.0, self._clock() - kept_wall)
        # The listener is not open yet, so the loop has nothing better to do; but the sources may be far away.
        self._first_look = asyncio.get_running_loop().create_task(self._refresh())
        await asyncio.wait([self._first_look], timeout=FIRST_LOOK_S)
        if self._served == offer.revision and not self.healths["store"].ok:
            log.warning("serving revision %d from %s", self._served.number, self._last_good.label)
        return True

    async def run(self) -> None:
        """Refresh until cancelled."""
        if self._first_look is not None:
            await self._first_look
        while True:
            try:
                await asyncio.wait_for(self._wanted.wait(), until_tick(self._pause_s()))
            except TimeoutError:
                pass
            self._wanted.clear()
            await self._turn()

    def request(self) -> None:
        """Read everything again now (an operator's HUP)."""
        self._reload = True
        self._wanted.set()

    def close(self) -> None:
        """End the loader, whatever it does; nothing waits for that."""
        self._looker.close()
        self._thread.shutdown()

    @property
    def generation(self) -> str | None:
        """Of the store whose table is served."""
        return None if self._served is None else self._served.generation

    def status(self) -> dict[str, object]:
        return {
            "sources": [health.to_status() for health in self.healths.values()],
            "looks": self.looks,
            "loads": dict(self.loads),
            "refused": self.refused,
            "age_s": None if self.table_monotonic is None else self._clock_monotonic() - self.table_monotonic,
        }

    async def _in_thread(self, function: Callable[[], R]) -> R:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    async def _turn(self) -> None:
        """Find out whether there is something new, from another process or by a look."""
        if not self._learn_from_another():
            await self._refresh()
            return
        self._follows = True
        if self._looker.is_awake:
            await self._in_thread(self._looker.rest)

    def _pause_s(self) -> float:
        if self._follows:
            return FOLLOWING * self.interval_s  # it asks a file, so others may do so at the same time
        pause_s = self.interval_s * (1 - JITTER * self._uniform())
        if self._board is not None and self._clock_monotonic() - self._board.read_monotonic() < self.interval_s:
            pause_s *= LEADING  # they rely on it
        return pause_s

    def _learn_from_another(self) -> bool:
        """Whether another process has looked lately and found nothing newer than the table in use."""
        if self._board is None or self._reload or self._served is None or self._board.lead():
            return False
        if (archive := self.healths.get("archive")) is not None and archive.ok is False:
            return False  # whether it is well again is seen by a look alone
        now_monotonic = self._clock_monotonic()
        asked_monotonic = self._board.asked(self._served, now_monotonic)
        if asked_monotonic is None or now_monotonic - asked_monotonic > NOTE_AGE_MAX * self.interval_s:
            return False
        if self.table_monotonic is None or asked_monotonic > self.table_monotonic:
            self.table_monotonic = asked_monotonic
            self.looks += 1
            self.healths["store"].note_ok(self._clock() - (now_monotonic - asked_monotonic))
        return True

    async def _refresh(self) -> None:
        """Look once."""
        self._follows = False
        reload, self._reload = self._reload, False
        ask = Ask(
            None if reload else self._served,
            self._served,
            self._table.creative_count,
            self._refused,
            self._known,
            self._seals(),
        )
        try:
            answer, parts = await self._in_thread(lambda: self._looker.look(ask))
            self._note(answer.notes)
            if answer.fresh:
                self.table_monotonic = answer.asked_monotonic
            if answer.why is not None:
                log.warning("%s", answer.why)
                self._refused, self.refused = answer.refused, answer.why
            if answer.offer is not None:
                await self._take(answer.offer, parts)
                self.table_monotonic = answer.asked_monotonic
                self._note(await self._in_thread(self._looker.keep))
            if answer.fresh or answer.offer is not None:
                self._tell_others(answer.asked_monotonic)
        except ChildError as error:
            log.error("%s", error)
            self._reload = self._reload or reload
        except Exception:
            # The timer must outlive any surprise; what it was is in the log.
            log.exception("a refresh failed; the table stays")
            self._reload = self._reload or reload
        self.looks += 1

    def _tell_others(self, asked_monotonic: float) -> None:
        """The table is what a look that began then found, by what the store itself said."""
        if self._board is not None and self._served is not None and self.healths["store"].ok and self._board.lead():
            self._board.note(self._served, asked_monotonic)

    async def _take(self, offer: Offer, parts: list[bytes]) -> None:
        table = await self._in_slices(apply_offer(offer, parts, self._table))
        await self._in_slices(self._use(table))
        before, self._table = self._table, table
        self._known, self._served = offer.known, offer.revision
        self._refused, self.refused = b"", None
        self.loads[offer.origin] += 1
        leftovers = let_go(before, table)
        del before
        await self._in_slices(leftovers)

    async def _in_slices(self, steps: Steps[R]) -> R:
        """Do the steps between the requests; all at once when there is no table yet to answer them with."""
        return finish(steps) if self._served is None else await in_slices(steps, self._clock_slice)

    def _note(self, notes: Iterable[Note]) -> None:
        for note in notes:
            if note.error is None:
                self.healths[note.source].note_ok(self._clock())
            else:
                self.healths[note.source].note_error(note.error)

    def _load_last_good(self) -> tuple[Offer, list[bytes], float] | None:
        """In the thread: the table from disk, and when it was kept."""
        try:
            kept = self._last_good.load()
        except SourceError as error:
            self.healths["disk"].note_error(str(error))
            return None
        if kept is None:
            return None
        self.healths["disk"].note_ok(self._clock())
        rows, kept_wall = kept
        return *offer_all(rows, "disk"), kept_wall


async def in_slices(steps: Steps[R], clock: Callable[[], float] = time.perf_counter) -> R:
    """Do the steps between the requests."""
    while True:
        end = clock() + SLICE_S
        try:
            while clock() < end:
                next(steps)
        except StopIteration as last:
            result: R = last.value
            return result
        await asyncio.sleep(PAUSE_S)
