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

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from adcore.core.adtable import finish
from adcore.core.calendar import Calendar, Moment
from adcore.counterfile import CounterFile, Kept
from adcore.counters import Counters
from adcore.counts import CounterState, Figures, figures
from adcore.errors import SourceError
from adcore.published import BUCKETS, LIST_BYTES_MAX, RECORD_BYTES, member_name
from adcore.sources.seal import Seals
from adcore.tally import COLLECTED_EVERY_S, COLLECTED_WAIT, MEMBER, Answer, Ask, Tally
from tests.test_counters import table

FIRST_DAY = date(2026, 11, 1).toordinal()
EPOCH = date(1970, 1, 1).toordinal()
LIMITED = table(
    goal={"impressions": 10**9, "clicks": 10**9}, daily_cap={"impressions": 10**9, "clicks": 10**9}, weight=1
)
CALENDAR = Calendar(UTC)
SCOPE = f"p:count2:{blake2b(b'g', digest_size=8).hexdigest()}:"
KEY = b"secret" * 5
SEALS = Seals([KEY])


class Killed(BaseException):
    """The process ends here."""


class FakeMemcached:
    """memcached's own rules, with an accident before the Nth step of what is asked next."""

    label = "memcached"

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.away = False
        self.accident: tuple[int, Callable[[], None]] | None = None

    def begin(self, seconds: float, bytes_max: int) -> None:
        pass

    def get_many(self, keys: Sequence[str]) -> dict[str, bytes]:
        self._step()
        return {key: self.values[key] for key in keys if key in self.values}

    def set_many(self, values: Mapping[str, bytes], expire_s: int) -> None:
        for key, value in values.items():
            self._step()
            self.values[key] = value

    def append(self, key: str, value: bytes, expire_s: int) -> None:
        self._step()
        self.values[key] = self.values.get(key, b"") + value

    def _step(self) -> None:
        if self.away:
            raise SourceError("memcached is away")
        if self.accident is not None:
            steps, happen = self.accident
            self.accident = (steps - 1, happen) if steps else None
            if not steps:
                happen()

    def buckets(self) -> Iterator[tuple[str, CounterState]]:
        """The counts that are there, by key."""
        for key, value in self.values.items():
            if key.startswith(SCOPE) and key.removeprefix(SCOPE) not in ("signer", "members"):
                yield key, msgspec.msgpack.decode(SEALS.unseal(key, value), type=CounterState)


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
        self.seals: tuple[bytes, ...] = (KEY,)
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
            clock_monotonic=world.clock,
        )
        self.counters.restore(self.tally.own)
        self.counters.use(LIMITED, self.moment)
        self.knows_limits = False
        self.exchanged = 0
        self.answer = Answer(())
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
        ask = Ask(self.moment.day, generation, wanted, self.host.seals)
        self.answer, parts = self.tally.exchange(ask, finish(self.counters.untold()))
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
        command=st.integers(0, 6),
        what=st.sampled_from(["killed", "unanswered", "flushed", "evicted", "another"]),
        other=st.integers(0, 8),
    )
    def exchange_with_an_accident(self, number: int, command: int, what: str, other: int) -> None:
        process = self.pick(number)

        def happen() -> None:
            if what == "killed":
                raise Killed
            if what == "unanswered":
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
            assert all(there == delivered for there, delivered in self.published_and_delivered())

    def published_and_delivered(self) -> Iterator[tuple[int, int]]:
        """What memcached has in all, and what it should have at most."""
        for process in self.processes:
            day = process.moment.day
            there = [figures(counts, day) for _, part in self.memcached.buckets() for counts in part.values()]
            yield from zip(map(sum, zip(*there, strict=True)), figures_of(self.delivered, day), strict=False)

    @invariant()
    def nothing_is_in_memcached_twice(self) -> None:
        if hasattr(self, "hosts"):
            assert all(there <= delivered for there, delivered in self.published_and_delivered())

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


def published(world: World) -> int:
    """Impressions in memcached."""
    return sum(counts[0] for _, part in world.memcached.buckets() for counts in part.values())


def memcached_problem(process: Process) -> str | None:
    (problem,) = [note.error for note in process.answer.notes if note.source == "memcached"]
    return problem


def bucket_of(world: World, process: Process) -> str:
    (key,) = [key for key in world.memcached.values if f"{SCOPE}{member_name(process.tally._book.member)}:" in key]
    return key


def test_what_memcached_lost_is_there_again_after_an_exchange(world: World) -> None:
    a, b = delivering(world, 0, 3), delivering(world, 1, 4)
    world.memcached.values.clear()
    a.exchange()
    b.exchange()
    assert published(world) == 7
    assert delivering(world, 2).figures()[0] == 7


def test_what_a_process_that_is_gone_had_counted_is_published_for_it(world: World) -> None:
    gone, there = delivering(world, 0, 3), delivering(world, 0, 1)
    gone.end()
    world.memcached.values.clear()
    there.exchange()
    assert published(world) == 4
    there.exchange()
    assert delivering(world, 1).figures()[0] == 4


def test_a_file_that_nobody_holds_is_left_alone_while_memcached_has_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that starts at this moment would take another one, and there would be more and more of them."""
    gone, there = delivering(world, 0, 3), delivering(world, 0, 1)
    gone.end()
    there.exchange()
    monkeypatch.setattr(CounterFile, "taken", lambda self, path: pytest.fail("it was taken"))
    there.exchange()


def test_after_a_change_of_keys_a_file_that_nobody_holds_is_published_anew(world: World) -> None:
    gone, there = delivering(world, 0, 3), delivering(world, 0, 1)
    gone.end()
    world.memcached.values.clear()
    there.exchange()
    there.exchange()
    other = b"another" * 4
    for seals in ((other, KEY), (other,)):
        for host in world.hosts:
            host.seals = seals
        world.day += seals == (
            other,
            KEY,
        )  # its counts stay as they are, and it is listed with the new key
        there.exchange()
        there.exchange()
    assert memcached_problem(there) is None
    assert delivering(world, 1).figures()[0] == 4


def test_one_that_starts_again_is_the_same_member(world: World) -> None:
    a, b = delivering(world, 0, 3), delivering(world, 1, 4)
    for _ in range(3):
        member = a.tally._book.member
        a.end()
        a = delivering(world, 0, 1)
        assert a.tally._book.member == member
    b.exchange()
    assert (a.figures()[0], b.figures()[0]) == (10, 10)


def test_a_file_that_was_removed_counts_from_zero_and_what_it_had_still_counts(world: World) -> None:
    a = delivering(world, 0, 3)
    a.end()
    a.file.path.unlink()
    a = delivering(world, 0, 1)
    assert a.figures()[0] == 4
    assert published(world) == 4


def test_what_an_earlier_version_kept_is_there_for_the_way_back(world: World) -> None:
    today = date.fromordinal(world.day).isoformat()
    before = Kept({"c": (5, 0, world.day, 5, 0)}, {"c:i": (77, 5, 0), f"c:{today}:i": (78, 5, 0)})
    CounterFile(world.hosts[0].path).save(before)
    a = delivering(world, 0, 1)
    kept = CounterFile(world.hosts[0].path).load()
    assert {name: entry for name, entry in kept.shared.items() if name != MEMBER} == before.shared
    assert kept.shared[MEMBER][0] == a.tally._book.member
    assert published(world) == 6


def test_what_was_known_of_others_is_not_forgotten_while_memcached_has_nothing(world: World) -> None:
    a, _ = delivering(world, 0, 1), delivering(world, 1, 5)
    a.exchange()
    world.memcached.values.clear()
    a.deliver(1, 0)
    for _ in range(3):
        a.exchange()
        assert a.figures()[0] == 7


def test_a_member_that_has_gone_on_to_the_next_day_keeps_what_it_had_on_this_one(world: World) -> None:
    a, ahead, b = delivering(world, 0), delivering(world, 1, 5), delivering(world, 2, 1)
    a.exchange()
    world.hosts[1].days_ahead = 1
    ahead.deliver(2, 0)
    ahead.exchange()
    b.deliver(3, 0)
    b.exchange()
    a.exchange()
    assert a.figures() == (11, 0, 9, 0)


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


# What somebody else puts into memcached


def seal(key: str, counts: object, seals: Seals = SEALS) -> bytes:
    return seals.seal(key, msgspec.msgpack.encode(counts))


@pytest.mark.parametrize(
    ("forge", "problem"),
    [
        (lambda key: b"9" * 12, "not signed"),
        (lambda key: msgspec.msgpack.encode({"c": (10**9, 0, FIRST_DAY, 10**9, 0)}), "another secret"),
        (lambda key: seal(key, {"c": (10**9, 0, FIRST_DAY, 10**9, 0)}, Seals([b"guess" * 4])), "another secret"),
        (lambda key: seal(key + "0", {"c": (10**9, 0, FIRST_DAY, 10**9, 0)}), "signature is wrong"),
        (lambda key: seal(key, {"c": (10**9, 0, FIRST_DAY, 10**9, 0)})[:-1] + b"\1", "signature is wrong"),
        (lambda key: seal(key, {"c": 10**9}), "ignored"),
    ],
)
def test_counts_that_nobody_with_the_secret_has_written_count_for_nothing(
    world: World, forge: Callable[[str], bytes], problem: str
) -> None:
    a, b = delivering(world, 0, 3), delivering(world, 1, 4)
    a.exchange()
    key = bucket_of(world, b)
    world.memcached.values[key] = forge(key)
    a.deliver(1, 0)
    a.exchange()
    assert a.figures()[0] == 8
    assert problem in str(memcached_problem(a))
    b.exchange()
    a.exchange()
    assert a.figures()[0] == b.figures()[0] == 8
    assert memcached_problem(a) is None


def test_genuine_counts_that_are_put_elsewhere_count_for_nothing(world: World) -> None:
    """Of another member, bucket, store or day: what is signed is signed for its place."""
    a, b, c = delivering(world, 0, 3), delivering(world, 1, 4), delivering(world, 2, 5)
    values, of_b = world.memcached.values, bucket_of(world, b)
    earlier = values[of_b]
    b.deliver(10, 0)
    b.exchange()
    scope = f"p:count2:{blake2b(b'another', digest_size=8).hexdigest()}:"
    for key in [key for key in values if key.startswith(SCOPE)]:
        values[key.replace(SCOPE, scope)] = values[key]
    for bucket in range(BUCKETS):
        values.setdefault(f"{of_b.rpartition(':')[0]}:{bucket}", values[of_b])
        values[f"{SCOPE}{member_name(12345)}:{bucket}"] = values[bucket_of(world, c)]
    of_c = values[bucket_of(world, c)]
    values[bucket_of(world, c)] = values[of_b]
    a.exchange()
    assert a.figures()[0] == 17
    values[bucket_of(world, c)] = of_c
    a.exchange()
    assert a.figures()[0] == 22
    values[of_b] = earlier
    c.deliver(1, 0)
    c.exchange()
    values[of_b] = earlier
    a.exchange()
    assert a.figures()[0] == 23
    a.exchange("another")
    assert a.figures()[0] == 23


@pytest.mark.parametrize(
    "forge",
    [
        lambda there: b"",
        lambda there: b"x",
        lambda there: b"junk" + there,
        lambda there: b"x" * RECORD_BYTES * 100 + there,
        lambda there: there + b"x" * (LIST_BYTES_MAX + RECORD_BYTES),
        lambda there: bytes(reversed(there)),
    ],
)
def test_a_list_of_members_that_was_tampered_with_is_whole_again_soon(
    world: World, forge: Callable[[bytes], bytes]
) -> None:
    a, b = delivering(world, 0, 3), delivering(world, 1, 4)
    a.exchange()
    key = SCOPE + "members"
    world.memcached.values[key] = forge(world.memcached.values[key])
    for _ in range(2):
        for process in (a, b):
            process.exchange()
            assert process.figures()[0] == 7
    assert delivering(world, 2).figures()[0] == 7
    assert len(world.memcached.values[key]) < LIST_BYTES_MAX


def test_a_list_of_members_does_not_grow(world: World) -> None:
    a = delivering(world, 0, 3)
    for _ in range(100):
        a.exchange()
    assert len(world.memcached.values[SCOPE + "members"]) == RECORD_BYTES
    for _ in range(40):
        world.day += 1
        a.exchange()
    assert len(world.memcached.values[SCOPE + "members"]) == 41 * RECORD_BYTES


def test_a_host_with_another_secret_is_named_and_counts_by_itself_until_it_has_ours(world: World) -> None:
    a, b = delivering(world, 0, 3), delivering(world, 1, 4)
    a.exchange()
    world.hosts[1].seals = (b"another" * 4,)
    b.deliver(1, 0)
    b.exchange()
    assert "signed with another secret" in str(memcached_problem(b))
    a.exchange()
    assert "signed with another secret" in str(memcached_problem(a))
    assert "--secret-file" in str(memcached_problem(a))
    assert (a.figures()[0], b.figures()[0]) == (7, 8)
    # A key more and the one that signs behind it: as a secret is replaced.
    world.hosts[1].seals = (b"another" * 4, KEY)
    world.hosts[0].seals = (KEY, b"another" * 4)
    for _ in range(2):
        for process in (a, b):
            process.exchange()
            assert memcached_problem(process) is None
    assert (a.figures()[0], b.figures()[0]) == (8, 8)


def test_a_host_that_never_had_our_secret_is_named(world: World) -> None:
    a = delivering(world, 0, 3)
    world.hosts[1].seals = (b"another" * 4,)
    b = delivering(world, 1, 4)
    a.exchange()
    assert "signed with another secret" in str(memcached_problem(a))
    b.end()
    for _ in range(2):
        a.exchange()
    assert memcached_problem(a) is None


def test_a_server_that_gives_no_keys_shares_nothing(world: World) -> None:
    """It is of an earlier version, and its process of this one."""
    a = delivering(world, 0, 3)
    world.memcached.values.clear()
    world.hosts[0].seals = ()
    a.exchange()
    assert world.memcached.values == {}


def test_a_copy_of_a_state_directory_is_named(world: World) -> None:
    a = delivering(world, 0, 3)
    shutil.copy(world.hosts[0].path, world.hosts[1].path)
    b = delivering(world, 1, 4)
    assert memcached_problem(a) is None
    b.deliver(1, 0)
    a.exchange()
    assert "another host has a copy" in str(memcached_problem(a))
    assert a.file.path.name in str(memcached_problem(a))
    assert (a.figures()[0], b.figures()[0]) == (3, 8)
