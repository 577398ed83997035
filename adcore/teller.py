"""The timer that exchanges counts with other processes and hosts (tally.py), beside the request path.

Files, memcached and the database are waited for in another process (bank.py). The loop gives it what was counted and
takes in what others have, in slices of a third of a millisecond.

Twice per refresh interval: what a process counts reaches the others after two exchanges at most, its own and then
theirs, and so within one interval; one that counts nothing itself asks less often.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol, TypeVar

from adcore.background import BackgroundThread
from adcore.core.adtable import Steps, finish
from adcore.core.inventory import Campaign
from adcore.counterfile import CounterFile
from adcore.counters import STEP_CAMPAIGNS, Counters
from adcore.counts import CounterState
from adcore.errors import StartError
from adcore.sources import Note
from adcore.sources.child import ChildError
from adcore.sources.refresh import Health, in_slices
from adcore.tally import Answer, Ask, Tally
from adcore.ticks import until_tick

log = logging.getLogger("adcore.counts")

EXCHANGES_PER_INTERVAL = 2
# A process that has counted nothing since the last exchange leaves out this many. What others counted meanwhile can
# only make it deliver too much once it delivers, and then it exchanges at the next turn.
IDLE_TURNS = 5
# ... and no more than fit into this time: operators watch how long ago the last exchange was.
IDLE_S = 30.0
# Each wait is up to this part shorter, so that processes do not tell in step, and never longer.
JITTER = 0.2
# A start waits no longer than this for what others have counted, and an end to tell what it has.
FIRST_EXCHANGE_S = 1.0
LAST_EXCHANGE_S = 2.0
# ... and no longer than this for the file of counts, on a disk that hangs.
LAST_SAVE_S = 10.0

R = TypeVar("R")


class Bank(Protocol):
    """A Tally, here or in a process of its own. `exchange` blocks, `close` does not."""

    def exchange(self, ask: Ask, own: Sequence[CounterState]) -> tuple[Answer, list[CounterState]]: ...

    def close(self) -> None: ...


class Teller:
    """Keeps the counters in touch with others; `start`, `run` until cancelled, `close`.

    `generation` tells that of the store whose table is served. `labels` are the names of the sources for people, by
    what a Note calls them. `seals` gives the keys that sign counts in memcached. `uniform` gives a random number in
    [0, 1). `work` gives something else whenever anything may have been counted since it was last asked.
    """

    def __init__(
        self,
        bank: Bank,
        file: CounterFile,
        counters: Counters,
        *,
        generation: Callable[[], str | None],
        interval_s: float,
        labels: Mapping[str, str],
        uniform: Callable[[], float],
        work: Callable[[], object],
        clock_wall: Callable[[], float] = time.time,
        seals: Callable[[], tuple[bytes, ...]] = tuple,
    ) -> None:
        self.interval_s = interval_s
        self._work = work
        self._bank = bank
        self._file = file
        self._counters = counters
        self._generation = generation
        self._uniform = uniform
        self._clock = clock_wall
        self._seals = seals
        self._thread = BackgroundThread("counts")
        self._one_at_a_time = asyncio.Lock()
        self._limited: Mapping[str, Campaign] | None = None
        """The campaigns with limits that the bank knows of."""
        self._first: asyncio.Task[bool] | None = None
        self.exchanges = 0
        self.errors = 0
        self._told: object = None
        """`work()` as of the last successful exchange: while it is the same, nothing new has been counted, and the
        search for it (5 ms) is left out."""
        self._has_failed = False
        """Whether the last exchange did not do all that it should: what it leaves is due at the next turn."""
        self.last_wall: float | None = None
        """When counts were last exchanged without any error."""
        self._made_wall = clock_wall()
        self.last_s = 0.0
        """How long that took."""
        self.healths = {source: Health(label) for source, label in labels.items()}

    def warm_up(self) -> None:
        """Have the process and memcached ready by the time that there is a table."""
        if "memcached" in self.healths:
            self._first = asyncio.get_running_loop().create_task(self.exchange())

    async def start(self) -> None:
        """Ask what other hosts have counted, and wait for it for a while; what this one's files say is known."""
        if "memcached" in self.healths:
            self._first = asyncio.get_running_loop().create_task(self.exchange())
            await asyncio.wait([self._first], timeout=FIRST_EXCHANGE_S)

    async def run(self) -> None:
        """Exchange until cancelled."""
        worked: object = None
        left_out = 0
        while True:
            turn_s = self.interval_s / EXCHANGES_PER_INTERVAL
            await asyncio.sleep(until_tick(turn_s * (1 - JITTER * self._uniform())))
            before, worked = worked, self._work()
            is_told = worked == before and self._counters.limited is self._limited and not self._has_failed
            if is_told and left_out < min(IDLE_TURNS, int(IDLE_S / turn_s) - 1):
                left_out += 1
                continue
            left_out = 0
            await self.exchange()

    async def close(self) -> None:
        """Tell the last counts, when nothing is counted any more; whatever happens they are kept in the file."""
        in_time = False
        if self._first is not None or self.exchanges:
            self._tell_again()
            told = asyncio.ensure_future(self.exchange())
            await asyncio.wait([told], timeout=LAST_EXCHANGE_S)
            in_time = told.done() and told.result()
        self._bank.close()
        if not in_time:
            # The bank is gone, or was never needed; a call that is still under way ends now, and then this one's turn
            # comes. Not on the loop: a disk may hang, and the delivery log is still to be written.
            self._counters.tell_again()
            ask, own = self._ask(None), finish(self._counters.untold())
            kept = asyncio.ensure_future(self._in_thread(lambda: Tally(self._file).exchange(ask, own)))
            await asyncio.wait([kept], timeout=LAST_SAVE_S)
            if not kept.done():
                log.error("the last counts could not be kept in %s within %d s", self._file.path, LAST_SAVE_S)
            elif isinstance(error := kept.exception(), StartError):
                log.error("%s", error)
            else:
                self._note(kept.result()[0].notes)
        self._thread.shutdown()

    async def exchange(self) -> bool:
        """Exchange once; whether the counts were taken."""
        async with self._one_at_a_time:
            began = time.perf_counter()
            counted = self._work()
            own = [] if counted == self._told else await in_slices(self._counters.untold())
            wanted = None
            limited = self._counters.limited
            if limited is not self._limited:
                wanted = await in_slices(wanted_of(limited))
            ask = self._ask(wanted)
            try:
                answer, others = await self._in_thread(lambda: self._bank.exchange(ask, own))
            except ChildError as error:
                log.error("%s", error)
                self._limited = None
                self._tell_again()
                self.errors += 1
                self._has_failed = True
                return False
            self._limited, self._told = limited, counted
            await in_slices(self._take_in(others))
            self.exchanges += 1
            self._note(answer.notes)
            self._has_failed = any(note.error for note in answer.notes)
            if not self._has_failed:
                self.last_wall = self._clock()
            self.last_s = time.perf_counter() - began
            return True

    def _tell_again(self) -> None:
        self._told = None
        self._counters.tell_again()

    def status(self) -> dict[str, object]:
        return {
            "exchanges": self.exchanges,
            "errors": self.errors,
            "last": self.last_wall,
            "age_s": max(0.0, self._clock() - (self._made_wall if self.last_wall is None else self.last_wall)),
            "took_s": self.last_s,
            "sources": [health.to_status() for health in self.healths.values()],
        }

    def _ask(self, wanted: dict[str, bool] | None) -> Ask:
        return Ask(self._counters.calendar.moment(self._clock()).day, self._generation(), wanted, self._seals())

    def _take_in(self, parts: Iterable[CounterState]) -> Steps[None]:
        for part in parts:
            campaigns = list(part.items())
            for start in range(0, len(campaigns), STEP_CAMPAIGNS):
                # The moment is another one each time: midnight may pass on the way.
                moment = self._counters.calendar.moment(self._clock())
                self._counters.take_in(dict(campaigns[start : start + STEP_CAMPAIGNS]), moment)
                yield

    def _note(self, notes: Iterable[Note]) -> None:
        for note in notes:
            if note.error is None:
                self.healths[note.source].note_ok(self._clock())
            else:
                self.healths[note.source].note_error(note.error)
                self.errors += 1

    async def _in_thread(self, function: Callable[[], R]) -> R:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)


def wanted_of(limited: Mapping[str, Campaign]) -> Steps[dict[str, bool]]:
    """The campaigns, and whether any of their limits is in clicks."""
    wanted = {}
    for number, (campaign_id, campaign) in enumerate(limited.items(), 1):
        limits = (campaign.goal, campaign.daily_cap)
        wanted[campaign_id] = any(limit is not None and limit.clicks is not None for limit in limits)
        if number % STEP_CAMPAIGNS == 0:
            yield
    return wanted
