"""Counting together, over a model: hosts with several processes, one memcached, one database, and all that can happen.

Nobody ever counts more than was delivered, nobody goes back, and when everything works again all count what was.
"""

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from datetime import UTC, date
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from adcore.core.adtable import finish
from adcore.core.calendar import Calendar, Moment
from adcore.counterfile import CounterFile
from adcore.counters import Counters
from adcore.counts import Figures
from adcore.errors import SourceError
from adcore.sources.memcached import Add, Increase
from adcore.tally import COLLECTED_EVERY_S, COLLECTED_WAIT, COUNT_BITS, Ask, Tally
from tests.test_counters import table

FIRST_DAY = date(2026, 11, 1).toordinal()
EPOCH = date(1970, 1, 1).toordinal()
LIMITED = table(
    goal={"impressions": 10**9, "clicks": 10**9}, daily_cap={"impressions": 10**9, "clicks": 10**9}, weight=1
)
CALENDAR = Calendar(UTC)
SCOPE = f"p:count1:{blake2b(b'g', digest_size=8).hexdigest()}:"


class Killed(BaseException):
    """The process ends here."""


class FakeMemcached:
    """memcached's own rules, with an accident before the Nth command of the next `count`."""

    label = "memcached"

    def __init__(self) -> None:
        self.values: dict[str, int] = {}
        self.away = False
        self.accident: tuple[int, Callable[[], None]] | None = None
        self.tags = 0

    def draw_tag(self) -> int:
        self.tags += 1
        return self.tags

    def counters(self, keys: Sequence[str]) -> dict[str, int]:
        if self.away:
            raise SourceError("memcached is away")
        return {key: self.values[key] for key in keys if key in self.values}

    def count(self, commands: Sequence[Add | Increase]) -> list[int | None]:
        accident, self.accident = self.accident, None
        done = [
            accident[1]() or self._do(command) if accident and accident[0] == number else self._do(command)
            for number, command in enumerate(commands)
        ]
        if accident and accident[0] >= len(commands):
            accident[1]()
        return done

    def _do(self, command: Add | Increase) -> int | None:
        if isinstance(command, Add):
            if command.key in self.values:
                return None
            self.values[command.key] = command.value
        elif command.key in self.values:
            self.values[command.key] += command.by
        return self.values.get(command.key)


class AtOnce(Executor):
    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except SourceError as error:
            future.set_exception(error)
        return future


class Host:
    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.path = folder / "counts.json"
        self.days_ahead = 0
        self.processes: list[Process] = []


class Process:
    """What server.py and teller.py put together, without the loop."""

    def __init__(self, world: "World", host: Host) -> None:
        self.world = world
        self.host = host
        self.file = CounterFile(host.path)
        self.file.lock()
        self.counters = Counters(CALENDAR)
        self.tally = Tally(
            self.file,
            world.memcached,
            "p:",
            world.read_collected,
            AtOnce(),
            draw_tag=world.memcached.draw_tag,
            clock_monotonic=world.clock,
        )
        self.counters.restore(self.tally.own)
        self.counters.use(LIMITED, self.moment)
        self.knows_limits = False
        self.exchanged = 0
        self.seen: tuple[int, Figures] = (0, (0, 0, 0, 0))
        self.exchange(None)

    @property
    def moment(self) -> Moment:
        return CALENDAR.moment((self.world.day + self.host.days_ahead - EPOCH) * 86400.0 + 1)

    def figures(self) -> Figures:
        count, today = self.counters.of("c"), self.counters.of("c").day == self.moment.day
        return (
            *(count.impressions, count.clicks),
            *(count.impressions_today if today else 0, count.clicks_today if today else 0),
        )

    def deliver(self, impressions: int, clicks: int) -> None:
        moment = self.moment
        for _ in range(impressions):
            self.counters.count_impression(self.counters.of("c"), moment.day, moment.time)
        for _ in range(clicks):
            self.counters.count_click(self.counters.of("c"), moment)

    def exchange(self, generation: str | None = "g") -> None:
        self.counters.turn(self.moment)
        wanted = None if self.knows_limits else {"c": True}
        ask = Ask(self.moment.day, generation, wanted)
        _, parts = self.tally.exchange(ask, finish(self.counters.untold()))
        self.knows_limits = True
        self.exchanged += 1
        for part in parts:
            self.counters.take_in(part, self.moment)

    def end(self) -> None:
        self.file.close()
        self.host.processes.remove(self)


class World(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
        self.memcached = FakeMemcached()
        self.day = FIRST_DAY
        self.time = 0.0
        self.delivered: Counter[tuple[str, int]] = Counter()
        """By figure and day."""
        self.collected: Counter[tuple[str, int]] = Counter()
        self.something_lost = False
        """Whether only the database can know it all."""

    def teardown(self) -> None:
        for host in self.hosts:
            for process in list(host.processes):
                process.end()
        shutil.rmtree(self.folder)

    def clock(self) -> float:
        self.time += COLLECTED_EVERY_S
        return self.time

    def read_collected(self, campaigns: Sequence[str], day: str) -> Mapping[str, Figures]:
        assert list(campaigns) == ["c"]
        return {"c": figures_of(self.collected, date.fromisoformat(day).toordinal())}

    @property
    def processes(self) -> list[Process]:
        return [process for host in self.hosts for process in host.processes]

    def pick(self, number: int) -> Process:
        return self.processes[number % len(self.processes)]

    def let_exchange(self, process: Process, accident: tuple[int, Callable[[], None]] | None = None) -> None:
        """As the timers do: none falls far behind the others of its host."""
        for other in list(process.host.processes):
            if other is not process and process.exchanged - other.exchanged >= COLLECTED_WAIT - 1:
                self.let_exchange(other)
        self.memcached.accident = accident
        try:
            process.exchange()
        except Killed:
            self.something_lost = True
            process.end()
        finally:
            self.memcached.accident = None

    @initialize(numbers=st.lists(st.integers(1, 3), min_size=1, max_size=3))
    def begin(self, numbers: list[int]) -> None:
        self.hosts = [Host(self.folder / str(number)) for number in range(len(numbers))]
        for host, processes in zip(self.hosts, numbers, strict=True):
            for _ in range(processes):
                self.start(host)

    def start(self, host: Host) -> None:
        process = Process(self, host)
        process.exchanged = max((other.exchanged for other in host.processes), default=0)
        host.processes.append(process)

    @precondition(lambda self: self.processes)
    @rule(number=st.integers(0, 8), impressions=st.integers(0, 5), clicks=st.integers(0, 2))
    def deliver(self, number: int, impressions: int, clicks: int) -> None:
        process = self.pick(number)
        process.deliver(impressions, clicks)
        self.delivered["i", process.moment.day] += impressions
        self.delivered["c", process.moment.day] += clicks

    @precondition(lambda self: self.processes)
    @rule(number=st.integers(0, 8))
    def exchange(self, number: int) -> None:
        self.let_exchange(self.pick(number))

    @precondition(lambda self: self.processes)
    @rule(
        number=st.integers(0, 8),
        command=st.integers(0, 4),
        what=st.sampled_from(["killed", "unanswered", "flushed", "evicted", "another"]),
        other=st.integers(0, 8),
    )
    def exchange_with_an_accident(self, number: int, command: int, what: str, other: int) -> None:
        process = self.pick(number)

        def happen() -> None:
            if what == "killed":
                raise Killed
            if what == "unanswered":
                self.something_lost = True
                raise SourceError("memcached does not answer")
            if what == "flushed":
                self.memcached.values.clear()
            elif what == "evicted":
                self.evict(other)
            else:
                # Another one comes between what is read and what is done, after the counters were lost.
                self.evict(other)
                between = self.pick(other)
                if between is not process:
                    between.exchange()

        self.let_exchange(process, (command, happen))

    @rule(number=st.integers(0, 8))
    def evict(self, number: int) -> None:
        keys = sorted(self.memcached.values)
        if keys:
            del self.memcached.values[keys[number % len(keys)]]

    @rule()
    def flush(self) -> None:
        self.memcached.values.clear()

    @rule(away=st.booleans())
    def lose_or_find_memcached(self, away: bool) -> None:
        self.memcached.away = away

    @precondition(lambda self: self.processes)
    @rule(number=st.integers(0, 8))
    def kill(self, number: int) -> None:
        self.something_lost = True
        self.pick(number).end()

    @precondition(lambda self: self.processes)
    @rule(number=st.integers(0, 8))
    def stop(self, number: int) -> None:
        process = self.pick(number)
        process.exchange()
        process.end()

    @precondition(lambda self: len(self.processes) < 8)
    @rule(number=st.integers(0, 2))
    def start_another(self, number: int) -> None:
        self.start(self.hosts[number % len(self.hosts)])

    @rule()
    def collect(self) -> None:
        self.collected = self.delivered.copy()

    @rule()
    def next_day(self) -> None:
        # What is counted after the last exchange of a day is in none of that day's counters.
        self.something_lost |= any(finish(process.counters.untold()) for process in self.processes)
        for process in self.processes:
            process.counters.tell_again()
        self.day += 1

    @rule(number=st.integers(0, 2), days=st.integers(-1, 1))
    def set_a_clock(self, number: int, days: int) -> None:
        """Over midnight, and back: a process forgets what it knew of the day that it left."""
        self.something_lost = True
        host = self.hosts[number % len(self.hosts)]
        host.days_ahead = days
        for process in host.processes:
            process.seen = process.moment.day, (*process.seen[1][:2], 0, 0)

    @rule()
    def settle(self) -> None:
        """Everything works again, for a few intervals."""
        self.memcached.away = False
        for host in self.hosts:
            if not host.processes:
                self.start(host)
        if self.something_lost:
            self.collected = self.delivered.copy()
        for _ in range(2 * COLLECTED_WAIT + 6):  # what was being read must ripen first, then what is read now
            for process in self.processes:
                process.exchange()
        for process in self.processes:
            assert process.figures() == figures_of(self.delivered, process.moment.day)
        if not self.something_lost:
            assert all(figure == delivered for figure, delivered in self.counters_and_delivered())

    def counters_and_delivered(self) -> Iterator[tuple[int, int]]:
        """What each counter in memcached has, and what it should have at most."""
        for process in self.processes:
            today = date.fromordinal(process.moment.day).isoformat()
            delivered = figures_of(self.delivered, process.moment.day)
            for name, figure in zip(("i", "c", f"{today}:i", f"{today}:c"), delivered, strict=True):
                yield self.memcached.values.get(f"{SCOPE}c:{name}", 0) & (1 << COUNT_BITS) - 1, figure

    @invariant()
    def nothing_is_in_memcached_twice(self) -> None:
        if hasattr(self, "hosts"):
            assert all(figure <= delivered for figure, delivered in self.counters_and_delivered())

    @invariant()
    def nobody_counts_too_much_or_goes_back(self) -> None:
        for process in self.processes if hasattr(self, "hosts") else []:
            day, figures = process.moment.day, process.figures()
            delivered = figures_of(self.delivered, day)
            assert all(map(int.__le__, figures, delivered)), (figures, delivered)
            before = process.seen[1] if process.seen[0] == day else (*process.seen[1][:2], 0, 0)
            assert all(map(int.__ge__, figures, before)), (figures, before)
            process.seen = day, figures


def figures_of(counts: Counter[tuple[str, int]], day: int) -> Figures:
    total = {what: sum(count for (each, _), count in counts.items() if each == what) for what in "ic"}
    return total["i"], total["c"], counts["i", day], counts["c", day]


@pytest.fixture(autouse=True)
def without_a_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda fd: None)


World.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None, database=None)
TestWorld = World.TestCase


# The rules one by one, each where the machine above seldom comes.


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    world.hosts = [Host(world.folder / name) for name in "abc"]
    yield world
    world.teardown()


def delivering(world: World, host: int, impressions: int = 0, clicks: int = 0) -> Process:
    """A process that has delivered this and told it."""
    world.start(world.hosts[host])
    process = world.hosts[host].processes[-1]
    process.deliver(impressions, clicks)
    process.exchange()
    return process


def counter(world: World, name: str = "c:i") -> int:
    return world.memcached.values[SCOPE + name] & (1 << COUNT_BITS) - 1


def test_a_counter_that_another_made_again_gets_all_that_is_due(world: World) -> None:
    a, b = delivering(world, 0, 3), delivering(world, 1, 4)
    world.memcached.values.clear()
    a.exchange()
    b.exchange()
    assert counter(world) == counter(world, f"c:{date.fromordinal(world.day)}:i") == 7


def between(world: World, a: Process, b: Process, answered: bool) -> None:
    """Have `a` exchange while the counters are lost and `b` makes them again, between what `a` reads and tells."""
    count = world.memcached.count

    def interrupted(commands: Sequence[Add | Increase]) -> list[int | None]:
        world.memcached.count = count  # type: ignore[method-assign]
        world.memcached.values.clear()
        b.exchange()
        done = count(commands)
        if not answered:
            raise SourceError("no answer")
        return done

    world.memcached.count = interrupted  # type: ignore[method-assign]
    a.exchange()


def test_what_went_into_a_counter_that_was_just_made_again_is_noticed_by_its_answer(world: World) -> None:
    a, b = delivering(world, 0, 3), delivering(world, 1, 4)
    a.deliver(2, 0)
    between(world, a, b, answered=True)
    assert counter(world) == 9


def test_what_may_have_gone_there_and_was_not_answered_is_not_sent_again(world: World) -> None:
    a, b = delivering(world, 0, 3), delivering(world, 1, 4)
    a.deliver(2, 0)
    between(world, a, b, answered=False)
    a.exchange()
    assert counter(world) == 9


def test_what_was_surely_not_counted_is_sent_again(world: World) -> None:
    a, b = delivering(world, 0, 3), delivering(world, 1, 4)
    a.deliver(2, 0)
    counters = world.memcached.counters

    def made_by_b(keys: Sequence[str]) -> dict[str, int]:
        if not world.memcached.values:
            world.memcached.counters = counters  # type: ignore[method-assign]
            b.exchange()
        return counters(keys)

    world.memcached.counters = made_by_b  # type: ignore[method-assign]
    world.memcached.accident = 0, world.memcached.values.clear
    a.exchange()
    assert counter(world) == 9


def test_what_a_file_had_in_a_counter_of_before_is_not_taken_for_somebody_elses(world: World) -> None:
    a, b = delivering(world, 0, 0, 1), delivering(world, 0, 3)
    a.deliver(0, 1)

    def lose_and_make_again() -> None:
        del world.memcached.values[SCOPE + "c:i"]
        b.exchange()

    world.memcached.accident = 0, lose_and_make_again
    a.exchange()
    assert a.figures()[0] == 3


def test_what_a_process_that_is_gone_had_counted_is_told_for_it(world: World) -> None:
    gone, there = delivering(world, 0, 3), delivering(world, 0, 1)
    gone.end()
    world.memcached.values.clear()
    there.exchange()
    assert counter(world) == 4
    assert delivering(world, 1).figures()[0] == 4


def test_counts_that_began_again_with_a_clock_set_back_are_told_as_new(world: World) -> None:
    a = delivering(world, 0, 4)
    world.hosts[0].days_ahead = 1
    a.exchange()
    world.hosts[0].days_ahead = 0
    a.deliver(2, 0)
    a.exchange()
    assert counter(world, f"c:{date.fromordinal(world.day)}:i") == 6


def test_what_was_known_of_others_is_not_forgotten_while_counters_are_made_again(world: World) -> None:
    a, _ = delivering(world, 0, 1), delivering(world, 1, 5)
    a.exchange()
    world.memcached.values.clear()
    a.deliver(1, 0)
    for _ in range(3):
        a.exchange()
        assert a.figures()[0] == 7


def test_what_the_database_has_waits_until_the_hosts_files_have_it(world: World) -> None:
    a, b = delivering(world, 0), delivering(world, 0)
    b.deliver(1, 0)
    world.delivered["i", world.day] = 1
    world.collect()
    for _ in range(COLLECTED_WAIT):
        a.exchange()
    b.exchange()
    for _ in range(2 * COLLECTED_WAIT + 6):
        a.exchange()
        assert a.figures()[0] == 1
