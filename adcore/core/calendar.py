"""The site's local time: which hour, weekday and day an instant falls in, and when that day starts and ends.

Every request asks, and the answer changes 24 times a day, so it is remembered with the stretch of time in
which it holds. Nothing here reads a clock: times are arguments, in seconds since the epoch.
"""

from datetime import UTC, date, datetime, time, tzinfo
from typing import NamedTuple

# Local hours and changes of the UTC offset (whole, half and quarter hours) begin on a quarter of an hour.
_STEP_S = 900
# The years whose every instant has a local reading, and its day a start and an end, in every zone.
YEARS = (2, 9998)
_FIRST_S = datetime(YEARS[0], 1, 1, tzinfo=UTC).timestamp()
_LAST_S = datetime(YEARS[1] + 1, 1, 1, tzinfo=UTC).timestamp() - _STEP_S


class Moment(NamedTuple):
    """An instant and its local reading."""

    time: float
    """Wall time, seconds since the epoch."""
    hour: int
    weekday: int
    """0 is Monday."""
    day: int
    """The local date as its proleptic Gregorian ordinal (`datetime.date.toordinal`)."""


class Calendar:
    """Local time in one zone. Times may come in any order: a clock set back costs one more calculation.

    A time before the year 2 or after 9998, as a broken clock or a flight without an end may have, reads as the first or
    the last one of these.
    """

    __slots__ = ("_bounds", "_bounds_day", "_day", "_end", "_hour", "_start", "_weekday", "zone")

    def __init__(self, zone: tzinfo) -> None:
        self.zone = zone
        self._start = self._end = 0.0
        self._hour = self._weekday = self._day = 0
        self._bounds = (0.0, 0.0)
        self._bounds_day = 0

    def moment(self, now: float) -> Moment:
        """The local reading of `now`."""
        if not self._start <= now < self._end:
            self._turn_to(now)
        return Moment(now, self._hour, self._weekday, self._day)

    def stretch_at(self, now: float) -> tuple[float, float]:
        """From when until when, around `now`, hour, weekday and day stay what they are."""
        if not self._start <= now < self._end:
            self._turn_to(now)
        return self._start, self._end

    def hour_start(self, now: float) -> int:
        """When the local hour of `now` began, as its clocks show it: what results are summed up by."""
        start = self.stretch_at(now)[0]
        return int(start) - datetime.fromtimestamp(start, self.zone).minute * 60

    def day_bounds(self, moment: Moment) -> tuple[float, float]:
        """When the moment's local day starts and ends: 24 hours apart, or 23 or 25 as clocks change."""
        if moment.day != self._bounds_day:
            self._bounds = (self._midnight(moment.day), self._midnight(moment.day + 1))
            self._bounds_day = moment.day
        return self._bounds

    def _turn_to(self, now: float) -> None:
        self._start = nearest_readable(now) // _STEP_S * _STEP_S
        self._end = self._start + _STEP_S
        local = datetime.fromtimestamp(self._start, self.zone)
        self._hour = local.hour
        self._weekday = local.weekday()
        self._day = local.toordinal()

    def local(self, now: float) -> datetime:
        """The date and time that clocks show."""
        return datetime.fromtimestamp(nearest_readable(now), self.zone)

    def _midnight(self, day: int) -> float:
        # Of a midnight that comes twice it is the first (fold=0); of one that is skipped, the jump itself.
        return datetime.combine(date.fromordinal(day), time.min, self.zone).timestamp()


def nearest_readable(time: float) -> float:
    """The instant of YEARS that is nearest to `time`, in epoch seconds; of what is not a number the first one."""
    return min(max(_FIRST_S, time), _LAST_S)
