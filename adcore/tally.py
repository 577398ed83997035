"""How processes and hosts count together: the protocol of the counts in files, memcached and the database.

Each process alone writes one counter file of its host (counterfile.py) and owns the counts in it, which only rise.
All that others tell is a lower bound of what was delivered: the counts of the host's other files; what the files of
other hosts have, as their processes publish it in memcached (published.py); what `adctl collect` has put into the
database, some time after it happened. The largest of lower bounds is one too, so nothing is counted twice, and as long
as a process remembers the largest it never goes back. With own(f) for the counts in file f,

    delivered = own(this process's file) + sum of own(f) of the host's other files + elsewhere
    elsewhere = max(sum of own(f) of the other hosts' files,
                    the database's figure - own counts of this host's files, elsewhere before)

for the impressions and clicks of each campaign, in all and of the local day. `elsewhere` is kept in the file too.

memcached. A file is a member of those that count together. Its identity is drawn with its first exchange and kept in
the file beside the counts, so the counts and who has them are lost together or not at all. Whoever holds the file
publishes all of its counts with each exchange; what nobody holds (fewer workers than before) is published by any other
process of the host. To publish twice, or again after memcached was flushed, changes nothing, and what is lost comes
back by itself within an exchange. Everything is signed: without the secret nobody can add to the counts, and what is
taken away or put back to an earlier state is a lower bound still.

The order matters in two places. Files are saved before they are published and read after memcached was asked, so that
a member of this host is known to be one, and is never taken for somebody else. For the same reason the database's
figures wait until each process of the host has saved what they may contain (COLLECTED_WAIT exchanges).

Everything here blocks, and knows neither the loop nor the process it runs in (bank.py).
"""

import operator
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, Future
from datetime import date
from pathlib import Path

import msgspec

from adcore.counterfile import CounterFile, Kept
from adcore.counts import NOTHING, ZERO, CounterState, Figures, add_to_parts, figures
from adcore.errors import SourceError, StartError
from adcore.published import Cache, Published, member_name
from adcore.sources import Note
from adcore.sources.seal import Seals

# A file's identity: of some hundred files two have the same one in 10^13 years.
MEMBER_BITS = 60
COLLECTED_EVERY_S = 30.0
COLLECTED_WAIT = 3

# In Kept.shared, where the counters in memcached of earlier versions are, whose names have a colon.
MEMBER = "member"

Collect = Callable[[Sequence[str], str], Mapping[str, Figures]]
"""What is collected of these campaigns, with a local date (results.read_delivered)."""


class Ask(msgspec.Struct, frozen=True):
    """What an exchange is about, besides what was counted since the one before."""

    day: int
    """The local date, as its proleptic ordinal."""
    generation: str | None
    """Of the store whose table is served; None when there is none yet."""
    wanted: dict[str, bool] | None
    """The campaigns with limits, and whether any of these is in clicks; None: as before."""
    seals: tuple[bytes, ...] = ()
    """The keys that sign counts (Seals). Without any, nothing is exchanged in memcached."""


class Answer(msgspec.Struct, frozen=True):
    """How the sources did ("memcached", "store", "files"); parts follow."""

    notes: tuple[Note, ...]


class _Book:
    """A counter file whose lock is held, and what is in it."""

    def __init__(self, file: CounterFile) -> None:
        self.file = file
        self.kept = file.load()
        self._saved = True

    def take(self, own: CounterState) -> None:
        self.kept.counts.update(own)
        self._saved = False

    @property
    def member(self) -> int:
        return _member(self.kept)

    def join(self, draw_member: Callable[[], int]) -> None:
        if not self.member:
            self.kept.shared[MEMBER] = (draw_member(), 0, 0)
            self._saved = False

    def raise_elsewhere(self, campaign: str, to: Figures, day: int) -> None:
        """Remember what was delivered elsewhere, in all and on the day it is now, if it is more than was known."""
        there = figures(self.kept.elsewhere.get(campaign, NOTHING), day)
        if any(map(operator.gt, to, there)):
            total, clicks, today, clicks_today = map(max, there, to)
            self.kept.elsewhere[campaign] = (total, clicks, day, today, clicks_today)
            self._saved = False

    def forget_days(self, day: int) -> None:
        """Let go of what an earlier version knew of the counters of old days; it may come back, for the other days."""
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
        draw_member: Callable[[], int] = lambda: random.getrandbits(MEMBER_BITS) | 1,
        clock_monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`collect` runs in `executor`: a database that hangs holds up nothing else."""
        self._file = file
        self._published = None if cache is None else Published(cache, prefix)
        self._draw_member = draw_member
        self._book = _Book(file)
        self._day = 0
        self._generation: str | None = None
        self._wanted: dict[str, bool] = {}
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
        published = self._published if ask.generation is not None and ask.seals else None
        if published is not None:
            self._book.join(self._draw_member)
        saved = self._save()
        if published is not None:
            published.use(Seals(ask.seals), ask.generation or "", ask.day)
            reached = self._exchange_with_others(published, saved)
        files, problems = self._file.others()
        if problems:
            self._notes["files"] = problems[0]
        host = self._sum(files)
        if published is not None:
            if reached:
                self._publish_for_others(published, files)
            self._take_others(published, files)
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
        if new_day:
            self._book.forget_days(ask.day)
        inherited, self._inherited = self._inherited, []
        for elsewhere in inherited:
            for campaign, counts in elsewhere.items():
                self._book.raise_elsewhere(campaign, figures(counts, ask.day), ask.day)

    # memcached

    def _exchange_with_others(self, published: Published, saved: bool) -> bool:
        """Publish this process's counts, and read those of others; whether memcached did what it was asked."""
        try:
            published.begin()
            own = self._limited(self._book.kept)
            if own:
                published.announce(self._book.member)
            # Before this process's own counts are there again: a copy of its file would be hidden by them.
            published.read()
            if saved:
                # What is not on disk could be lost after others have seen it, and would then be hidden behind that.
                published.publish(self._book.member, own)
        except SourceError as error:
            self._notes["memcached"] = str(error)
            return False
        self._notes["memcached"] = published.problem
        return True

    def _publish_for_others(self, published: Published, files: Mapping[Path, Kept]) -> None:
        """Publish the counts of those of these files that no process has, where memcached lacks them."""
        for path, kept in files.items():
            member = _member(kept)
            if member and not published.lacks(member, self._limited(kept)):
                continue  # its lock stays free for a process that starts
            try:
                with self._file.taken(path) as file:
                    if file is not None:
                        book = _Book(file)
                        book.join(self._draw_member)
                        book.save()
                        published.publish(book.member, self._limited(book.kept))
            except SourceError as error:
                self._notes["memcached"] = str(error)
                return
            except (OSError, StartError) as error:
                self._notes["files"] = f"cannot publish the counts of {path}: {error}"

    def _limited(self, kept: Kept) -> CounterState:
        return {campaign: kept.counts[campaign] for campaign in self._wanted if campaign in kept.counts}

    def _take_others(self, published: Published, files: Mapping[Path, Kept]) -> None:
        """Raise `elsewhere` to what the other hosts' files have."""
        members = {self._book.member, *map(_member, files.values())}
        for campaign, found in published.sum_without(members).items():
            self._book.raise_elsewhere(campaign, found, self._day)
        own = published.known.get(self._book.member, {})
        if any(counts[0] > self._book.kept.counts.get(campaign, NOTHING)[0] for campaign, counts in own.items()):
            self._notes["memcached"] = (
                f"memcached has more counts of {self._file.path} ({member_name(self._book.member)}) than the file: an "
                "earlier copy was restored, or another host has a copy and both count as one; stop one, and remove its "
                "file"
            )

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

    def _save(self) -> bool:
        try:
            self._book.save()
        except OSError as error:
            self._notes["files"] = f"cannot save the delivery counts in {self._file.path}: {error.strerror}"
            return False
        return True


def _member(kept: Kept) -> int:
    """Whose the counts are, for other hosts; 0 before it has joined them."""
    return kept.shared.get(MEMBER, (0, 0, 0))[0]


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
