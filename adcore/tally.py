"""How processes and hosts count together: the protocol of the counts in files, memcached and the database.

Each process alone writes one counter file of its host (counterfile.py) and owns the counts in it, which only rise.
All that others tell is a lower bound of what was delivered: the counts of the host's other files; the counters in
memcached, to which every process adds its own; what `adctl collect` has put into the database, some time after it
happened. The largest of lower bounds is one too, so nothing is counted twice, and as long as a process remembers the
largest it never goes back. With own(p) for the counts in process p's file, and in all of one host's files,

    delivered = own(this process) + sum of own(p) of the host's other files + elsewhere
    elsewhere = max(the counter in memcached - what this host's files have in it,
                    the database's figure - own counts of this host's files, elsewhere before)

for the impressions and clicks of each campaign, in all and of the local day. `elsewhere` is kept in the file too.

memcached. A counter's key is PREFIX count1: STORE : CAMPAIGN [: DATE] : i|c, STORE being a hash of the store's
generation, DATE the local day as the process that counts sees it: a host whose clock differs adds to the day that it
is counting for. 40 bits of the value are the count, those above it a tag that whoever makes the counter (`add`) draws
at random. The tag is how everybody notices that a counter was lost (flushed, evicted, expired, restarted) and made
again: the file says how much of the counter with which tag is its own, so what is due is the difference if the tag is
the same, and all of it if it is another. `incr` answers with the new value and so with the tag of what it raised,
also when that has just become another one; on a counter that is missing it does nothing, and the next pass makes it.
Of two processes that make it at once, one's `add` fails, and it adds to the other's in its next pass. So one rule
covers first deliveries, new days, single counters that were evicted and a memcached that was lost as a whole.

At most once. What is about to be sent is first saved as having arrived, so that a process that dies on the way, or is
not answered, leaves at most its last interval out of memcached, never twice in it; the host's files have it, and the
others get it from the database, or when the counter is made anew. Where it may have gone to the counter's next
incarnation that much is left out there as well (the third number in `Kept.shared`). What a killed process has not
saved (one interval) is in the delivery log only: the database brings it back. Without a disk to save to nothing is
sent.

Files that no process has any more (fewer workers than before) are still due after memcached was lost: whoever finds
one of them free takes its lock and adds what is due for it.

The order matters in two places. Files are saved before memcached is told and read after it was asked, so that what is
in a counter is in the file already, and is never taken for somebody else's. For the same reason the database's
figures wait until each process of the host has saved what they may contain (COLLECTED_WAIT exchanges).

Everything here blocks, and knows neither the loop nor the process it runs in (bank.py).
"""

import operator
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, Future
from datetime import date
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec

from adcore.counterfile import CounterFile, Kept
from adcore.counts import NOTHING, ZERO, CounterState, Figures, add_to_parts, figures
from adcore.errors import SourceError, StartError
from adcore.sources import Note
from adcore.sources.memcached import Add, Increase

COUNT_BITS = 40
TAG_BITS = 24
# Two suffice unless counters are lost at this very moment; what is left then is due at the next exchange.
PASSES_MAX = 3
# memcached's own limit for a relative time. A counter that expires is made anew like any that is lost.
TOTAL_EXPIRE_S = 30 * 86400
# A day, wherever a clock stands, and one to spare.
DAY_EXPIRE_S = 2 * 86400
COLLECTED_EVERY_S = 30.0
COLLECTED_WAIT = 3

UNSHARED = (0, 0, 0)
Collect = Callable[[Sequence[str], str], Mapping[str, Figures]]
"""What is collected of these campaigns, with a local date (results.read_delivered)."""


class Cache(Protocol):
    """memcached. Each call may raise SourceError, after which its commands may have been done or not."""

    def counters(self, keys: Sequence[str]) -> dict[str, int]: ...

    def count(self, commands: Sequence[Add | Increase]) -> list[int | None]: ...


class Ask(msgspec.Struct, frozen=True):
    """What an exchange is about, besides what was counted since the one before."""

    day: int
    """The local date, as its proleptic ordinal."""
    generation: str | None
    """Of the store whose table is served; None when there is none yet."""
    wanted: dict[str, bool] | None
    """The campaigns with limits, and whether any of these is in clicks; None: as before."""


class Answer(msgspec.Struct, frozen=True):
    """How the sources did ("memcached", "store", "files"); parts follow."""

    notes: tuple[Note, ...]


class _Key(NamedTuple):
    campaign: str
    figure: int
    """Which of the Figures."""
    name: str
    """In Kept.shared."""
    full: str
    """In memcached."""


class _Book:
    """A counter file whose lock is held, and what is in it."""

    def __init__(self, file: CounterFile) -> None:
        self.file = file
        self.kept = file.load()
        self._saved = True

    def take(self, own: CounterState) -> None:
        self.kept.counts.update(own)
        self._saved = False

    def own(self, key: _Key, day: int) -> int:
        return figures(self.kept.counts.get(key.campaign, NOTHING), day)[key.figure]

    def shared(self, key: _Key) -> tuple[int, int, int]:
        return self.kept.shared.get(key.name, UNSHARED)

    def note_shared(self, key: _Key, entry: tuple[int, int, int]) -> None:
        if self.shared(key) != entry:
            self.kept.shared[key.name] = entry
            self._saved = False

    def raise_elsewhere(self, campaign: str, to: Figures, day: int) -> None:
        """Remember what was delivered elsewhere, in all and on the day it is now, if it is more than was known."""
        there = figures(self.kept.elsewhere.get(campaign, NOTHING), day)
        if any(map(operator.gt, to, there)):
            total, clicks, today, clicks_today = map(max, there, to)
            self.kept.elsewhere[campaign] = (total, clicks, day, today, clicks_today)
            self._saved = False

    def forget_days(self, day: int) -> None:
        """Let the counters of old days go. A clock that is set back over midnight finds what it had."""
        kept = {date.fromordinal(day + days).isoformat() for days in (-1, 0, 1)}
        for name in [name for name in self.kept.shared if name.count(":") == 2 and name.split(":")[1] not in kept]:
            del self.kept.shared[name]

    def save(self) -> None:
        """Raises OSError."""
        if not self._saved:
            self.file.save(self.kept)
            self._saved = True


class Tally:
    """What one process exchanges with the others: the host's files, memcached if there is one, and the database.

    `file` is this process's; its lock is held. Raises StartError when a file can't be read.
    """

    def __init__(
        self,
        file: CounterFile,
        cache: Cache | None = None,
        prefix: str = "",
        collect: Collect | None = None,
        executor: Executor | None = None,
        draw_tag: Callable[[], int] = lambda: random.getrandbits(TAG_BITS),
        clock_monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`collect` runs in `executor`: a database that hangs holds up nothing else."""
        self._file = file
        self._cache = cache
        self._prefix = prefix
        self._draw_tag = draw_tag
        self._book = _Book(file)
        self._day = 0
        self._generation: str | None = None
        self._wanted: dict[str, bool] = {}
        self._keys: list[_Key] = []
        self._answered: CounterState = {}
        self._notes: dict[str, str | None] = {}
        self._collected = (
            None if collect is None or executor is None else _Collected(collect, executor, clock_monotonic)
        )
        files, problems = file.others()
        if problems:
            raise StartError(problems[0])
        self._inherited = [kept.elsewhere for kept in files.values()]

    @property
    def own(self) -> CounterState:
        """What this process goes on with."""
        return self._book.kept.counts

    def exchange(self, ask: Ask, own: Iterable[CounterState]) -> tuple[Answer, list[CounterState]]:
        """Take in what this process has counted, tell it, and give what others have counted since the last answer."""
        self._notes = {"files": None}
        self._turn_to(ask)
        for part in own:
            self._book.take(part)
        seen = self._share()
        self._save()
        files, problems = self._file.others()
        if problems:
            self._notes["files"] = problems[0]
        host = self._sum(files)
        if seen is not None:
            self._share_for(self._compare(seen, files))
        if self._collected is not None:
            self._take_collected(self._collected, host)
        notes = tuple(Note(source, error) for source, error in self._notes.items())
        return Answer(notes), self._changes(host)

    def _turn_to(self, ask: Ask) -> None:
        new_day = ask.day != self._day
        if not new_day and ask.wanted is None and ask.generation == self._generation:
            return
        self._day, self._generation = ask.day, ask.generation
        if ask.wanted is not None:
            self._wanted = ask.wanted
        # Another store's counts are other counts. A generation may be any text, a key may not.
        scope = f"{self._prefix}count1:{blake2b((ask.generation or '').encode(), digest_size=8).hexdigest()}:"
        self._keys = [
            _Key(campaign, figure, name, scope + name)
            for campaign, clicks in self._wanted.items()
            for figure, name in _names(campaign, ask.day, clicks)
        ]
        if new_day:
            self._book.forget_days(ask.day)
        inherited, self._inherited = self._inherited, []
        for elsewhere in inherited:
            for campaign, counts in elsewhere.items():
                self._book.raise_elsewhere(campaign, figures(counts, ask.day), ask.day)

    # memcached

    def _share(self) -> dict[str, int] | None:
        """Add what is due; the counters' values by name. None when memcached cannot be asked."""
        if self._cache is None or self._generation is None:
            return None
        try:
            seen = self._add_due(self._cache, self._book)
        except SourceError as error:
            self._notes["memcached"] = str(error)
            return None
        except OSError as error:
            self._note_unsaved(error)
            return None
        self._notes["memcached"] = None
        return seen

    def _add_due(self, cache: Cache, book: _Book) -> dict[str, int]:
        """Add what is due of a book; the values seen. Raises SourceError, and OSError when it can't be saved."""
        seen: dict[str, int] = {}
        left: Sequence[_Key] = self._keys
        for _ in range(PASSES_MAX):
            values = cache.counters([key.full for key in left])
            before = {key: book.shared(key) for key in left}
            tag = self._draw_tag()
            due = [(key, self._due(book, key, values.get(key.full), tag)) for key in left]
            seen.update((key.name, values[key.full]) for key in left if key.full in values)
            sent = [(key, command) for key, command in due if command is not None]
            if not sent:
                break
            try:
                book.save()
            except OSError:
                for key, entry in before.items():
                    book.note_shared(key, entry)
                raise
            answers = cache.count([command for _, command in sent])
            seen.update((key.name, value) for (key, _), value in zip(sent, answers, strict=True) if value is not None)
            left = [
                key
                for (key, command), value in zip(sent, answers, strict=True)
                if not self._note_done(book, key, command, value)
            ]
        return seen

    def _due(self, book: _Book, key: _Key, value: int | None, tag: int) -> Add | Increase | None:
        """What to send for a counter that has this value, noted as if it had arrived; `tag` is for a new one."""
        own = book.own(key, self._day)
        if value is None:
            if own == 0:
                return None
            book.note_shared(key, (tag, own, 0))
            return Add(key.full, tag << COUNT_BITS | own, TOTAL_EXPIRE_S if key.figure < 2 else DAY_EXPIRE_S)
        tag, told, doubt = value >> COUNT_BITS, *book.shared(key)[1:]
        if book.shared(key)[0] == tag:  # noqa: SIM108
            # A count that has become less began again: the clock was set back over midnight.
            there = told if told <= own else 0
        else:
            there = min(doubt, own)
        if own > there:
            book.note_shared(key, (tag, own, own - there))
            return Increase(key.full, own - there)
        if told:
            book.note_shared(key, (tag, there, 0))
        return None

    def _note_done(self, book: _Book, key: _Key, command: Add | Increase, value: int | None) -> bool:
        """Note the answer to a command; whether nothing more is due."""
        tag, told, _ = book.shared(key)
        if isinstance(command, Increase) and value is not None and value >> COUNT_BITS != tag:
            # It was lost and made again since it was read, and has no more of ours than this.
            book.note_shared(key, (value >> COUNT_BITS, command.by, 0))
            return False
        # Where nothing was done the counter with this tag is gone for good, and with it what it had.
        book.note_shared(key, (tag, told, 0))
        return value is not None

    def _compare(self, seen: Mapping[str, int], files: Mapping[Path, Kept]) -> list[Path]:
        """Raise `elsewhere` to what memcached has beyond this host's files; those of them that have something due."""
        due = set()
        for key in self._keys:
            value = seen.get(key.name)
            mine = _part(self._book.kept, key, self._day, value)
            of_host, known = mine.there, mine.known
            for path, kept in files.items():
                other = _part(kept, key, self._day, value)
                of_host += other.there
                known = known and other.known
                if other.due:
                    due.add(path)
            if value is not None and known:
                self._raise_figure(key.campaign, key.figure, (value & (1 << COUNT_BITS) - 1) - of_host)
        return sorted(due)

    def _share_for(self, paths: Iterable[Path]) -> None:
        """Add what is due for those of these files that no process has."""
        assert self._cache is not None
        for path in paths:
            try:
                with self._file.taken(path) as file:
                    if file is not None:
                        book = _Book(file)
                        self._add_due(self._cache, book)
                        book.save()
            except SourceError as error:
                self._notes["memcached"] = str(error)
            except (OSError, StartError) as error:
                self._notes["files"] = f"cannot add what is due for {path}: {error}"

    # What others have

    def _sum(self, files: Mapping[Path, Kept]) -> dict[str, list[int]]:
        """The figures of the host's other files."""
        host: dict[str, list[int]] = {}
        for kept in files.values():
            for campaign, counts in kept.counts.items():
                total = host.setdefault(campaign, [0, 0, 0, 0])
                for number, figure in enumerate(figures(counts, self._day)):
                    total[number] += figure
        return host

    def _take_collected(self, collected: "_Collected", host: Mapping[str, Sequence[int]]) -> None:
        try:
            found = collected.ripe(list(self._wanted), self._day, self._file.is_alone)
        except SourceError as error:
            self._notes["store"] = str(error)
            return
        if found is None:
            return
        self._notes["store"] = None
        for campaign, theirs in found.items():
            own = figures(self._book.kept.counts.get(campaign, NOTHING), self._day)
            of_host = host.get(campaign, ZERO)
            for number, figure in enumerate(theirs):
                self._raise_figure(campaign, number, figure - own[number] - of_host[number])

    def _raise_figure(self, campaign: str, number: int, figure: int) -> None:
        one = [0, 0, 0, 0]
        one[number] = figure
        self._book.raise_elsewhere(campaign, (one[0], one[1], one[2], one[3]), self._day)

    def _changes(self, host: Mapping[str, Sequence[int]]) -> list[CounterState]:
        parts: list[CounterState] = []
        for campaign in {**host, **self._book.kept.elsewhere}:
            elsewhere = figures(self._book.kept.elsewhere.get(campaign, NOTHING), self._day)
            total = [one + other for one, other in zip(host.get(campaign, ZERO), elsewhere, strict=True)]
            counts = (total[0], total[1], self._day, total[2], total[3])
            if self._answered.get(campaign, NOTHING) != counts:
                self._answered[campaign] = counts
                add_to_parts(parts, campaign, counts)
        return parts

    def _save(self) -> None:
        try:
            self._book.save()
        except OSError as error:
            self._note_unsaved(error)

    def _note_unsaved(self, error: OSError) -> None:
        self._notes["files"] = f"cannot save the delivery counts in {self._file.path}: {error.strerror}"


class _Part(NamedTuple):
    """What a counter in memcached has of a file."""

    there: int
    known: bool
    """False: it was made again since, and nobody knows what it had of the file then."""
    due: bool


def _part(kept: Kept, key: _Key, day: int, value: int | None) -> _Part:
    own = figures(kept.counts.get(key.campaign, NOTHING), day)[key.figure]
    tag, there, _ = kept.shared.get(key.name, UNSHARED)
    if value is None or value >> COUNT_BITS != tag:
        return _Part(0, there == 0, own > 0)
    return _Part(there, True, own > there)


class _Collected:
    """What the database has, asked for now and then."""

    def __init__(self, collect: Collect, executor: Executor, clock_monotonic: Callable[[], float]) -> None:
        self._collect = collect
        self._executor = executor
        self._clock = clock_monotonic
        self._due_monotonic = 0.0
        self._day = 0
        self._reading: Future[Mapping[str, Figures]] | None = None
        self._waited = 0

    def ripe(self, campaigns: Sequence[str], day: int, is_alone: Callable[[], bool]) -> Mapping[str, Figures] | None:
        """What was found, once it has waited for long enough: for processes of this host that may not have saved all
        that is in it. To be called with each exchange. Raises SourceError."""
        if self._reading is None:
            if campaigns and self._clock() >= self._due_monotonic:
                self._due_monotonic = self._clock() + COLLECTED_EVERY_S
                self._day, self._waited = day, 0
                self._reading = self._executor.submit(self._collect, campaigns, date.fromordinal(day).isoformat())
            return None
        if not self._reading.done():
            return None
        self._waited += 1
        if self._waited <= COLLECTED_WAIT and self._reading.exception() is None and not is_alone():
            return None
        reading, self._reading = self._reading, None
        found = reading.result()
        if day == self._day:
            return found
        return {campaign: (theirs[0], theirs[1], 0, 0) for campaign, theirs in found.items()}


def _names(campaign: str, day: int, clicks: bool) -> list[tuple[int, str]]:
    """Of the counters that a campaign's limits need: which figure each is, and its name."""
    today = date.fromordinal(day).isoformat()
    names = [(0, f"{campaign}:i"), (2, f"{campaign}:{today}:i")]
    return [*names, (1, f"{campaign}:c"), (3, f"{campaign}:{today}:c")] if clicks else names
