"""From records to counts: the fast path of `adctl collect`.

A record is decoded into a struct of the few fields that counts need, and whole batches are counted with what the
interpreter does in C: `attrgetter` makes the keys and `Counter` counts them. Only views and clicks are looked at one by
one, since the store has to say which of them are new. An answer that was logged twice, because a proxy asked again, is
told by its id. Knows no file and no database.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from hashlib import blake2b
from operator import attrgetter
from typing import Annotated, ClassVar

import msgspec

from adcore.core.calendar import Calendar
from adcore.core.reason import Reason
from adcore.deliverylog.record import Decoder
from adcore.sources.results import CLICKS, IMPRESSIONS, IVT, VIEWS, Event, Tally

UNFILLED = -1
# Datetimes reach no further; a record of a broken clock counts in the first hour of 1970.
TIME_MAX = 250_000_000_000.0

# Answers whose ids are remembered, and as many again before them: some minutes of a busy host, 40 MB. A proxy asks
# again within seconds.
ANSWERS_REMEMBERED = 200_000

# As wide as the columns they go to. Nothing that adcore writes is longer, and what is cannot be counted.
Name = Annotated[str, msgspec.Meta(max_length=64)]
ReasonName = Annotated[str, msgspec.Meta(max_length=32)]
Device = Annotated[str, msgspec.Meta(max_length=16)]
Country = Annotated[str, msgspec.Meta(max_length=8)]


class Counted(msgspec.Struct, frozen=True, gc=False, tag_field="type"):
    """What every record says that is counted; fields as in adcore.deliverylog.record.

    `column` is where it counts. What a type has not is empty, so that all have the same attributes.
    """

    column: ClassVar[int]
    v: int
    time: float
    id: str
    placement: Name
    device: Device
    country: Country
    ivt: bool


class CountedAd(Counted, frozen=True, gc=False):
    """With an ad: the fields of a view or click are those of its impression, by the link's signed token."""

    reason: ClassVar[str] = ""
    campaign: Name
    creative: Name


class CountedImpression(CountedAd, tag="impression", frozen=True, gc=False):
    column: ClassVar[int] = IMPRESSIONS


class CountedView(CountedAd, tag="view", frozen=True, gc=False):
    column: ClassVar[int] = VIEWS


class CountedClick(CountedAd, tag="click", frozen=True, gc=False):
    column: ClassVar[int] = CLICKS


class CountedUnfilled(Counted, tag="unfilled", frozen=True, gc=False):
    column: ClassVar[int] = UNFILLED
    campaign: ClassVar[str] = ""
    creative: ClassVar[str] = ""
    reason: ReasonName


AnyCounted = CountedImpression | CountedView | CountedClick | CountedUnfilled
COUNTED: Decoder[AnyCounted] = Decoder(AnyCounted)

# Of what tells an event from others. A robot's click must not hide the visitor's own.
_PREFIXES = {(column, ivt): b"%d %d " % (column, ivt) for column in (VIEWS, CLICKS) for ivt in (False, True)}
_Row = tuple[int, bool, str, str, str, str, str, str]
_row_of: Callable[[AnyCounted], _Row] = attrgetter(
    "column", "ivt", "placement", "campaign", "creative", "device", "country", "reason"
)


class Aggregator:
    """Counts records by the hours of `calendar` into `tally`, which may be taken away and replaced."""

    def __init__(self, calendar: Calendar) -> None:
        self.calendar = calendar
        self.tally = Tally()
        self._answered: set[str] = set()
        self._answered_before: set[str] = set()

    def add(self, records: Sequence[AnyCounted]) -> None:
        records = self._without_repeats(records)
        if not records:
            return
        times = [record.time for record in records]
        hour = self._hour_of(min(times))
        if hour == self._hour_of(max(times)):
            self._add(hour, records)
            return
        by_hour: defaultdict[int, list[AnyCounted]] = defaultdict(list)
        for record in records:
            by_hour[self._hour_of(record.time)].append(record)
        for hour, some in by_hour.items():
            self._add(hour, some)

    def _without_repeats(self, records: Sequence[AnyCounted]) -> Sequence[AnyCounted]:
        """The records without answers of an id that was there before."""
        ids = [record.id for record in records if record.column <= IMPRESSIONS]
        fresh = set(ids)
        if len(fresh) < len(ids) or not (fresh.isdisjoint(self._answered) and fresh.isdisjoint(self._answered_before)):
            seen = fresh & (self._answered | self._answered_before)
            kept = []
            for record in records:
                if record.column <= IMPRESSIONS:
                    if record.id in seen:
                        continue
                    seen.add(record.id)
                kept.append(record)
            records = kept
        if len(self._answered) >= ANSWERS_REMEMBERED:
            self._answered_before, self._answered = self._answered, set()
        self._answered |= fresh
        return records

    def _add(self, hour: int, records: Sequence[AnyCounted]) -> None:
        """Count records of one hour."""
        tally = self.tally
        for row, count in Counter(map(_row_of, records)).items():
            column, ivt, placement, campaign, creative, device, country, reason = row
            if column == UNFILLED:
                # Anybody can make names up, so those of no placement share a row, as in the server's statistics.
                if reason == Reason.UNKNOWN_PLACEMENT:
                    placement = ""
                requests = tally.unfilled.setdefault((hour, placement, reason), [0, 0])
                requests[ivt] += count
            elif column == IMPRESSIONS:
                numbers = tally.results.setdefault((hour, placement, campaign, creative, device, country), [0, 0, 0, 0])
                numbers[IVT if ivt else IMPRESSIONS] += count
        for record in records:
            if record.column > IMPRESSIONS:
                self._add_event(hour, record)

    def _add_event(self, hour: int, record: AnyCounted) -> None:
        name = _PREFIXES[record.column, record.ivt] + record.id.encode()
        self.tally.events.append(
            Event(
                int.from_bytes(blake2b(name, digest_size=8).digest(), "big", signed=True),
                record.time,
                (hour, record.placement, record.campaign, record.creative, record.device, record.country),
                IVT if record.ivt else record.column,
            )
        )

    def _hour_of(self, time: float) -> int:
        return self.calendar.hour_start(time) if 0 <= time < TIME_MAX else 0
