"""Local hours and days, over changes of the clock, against zoneinfo asked directly."""

import random
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest

from adcore.core.calendar import Calendar, Moment


def at(text: str) -> float:
    """Epoch seconds of an ISO time; UTC when it has no offset."""
    instant = datetime.fromisoformat(text)
    return (instant if instant.tzinfo else instant.replace(tzinfo=UTC)).timestamp()


@pytest.mark.parametrize(
    ("zone", "instant", "hour", "weekday", "day"),
    [
        ("UTC", "2026-11-01T00:00:00", 0, 6, date(2026, 11, 1)),
        ("UTC", "2026-10-31T23:59:59.999", 23, 5, date(2026, 10, 31)),
        ("Asia/Tokyo", "2026-11-01T15:00:00", 0, 0, date(2026, 11, 2)),
        ("Asia/Kolkata", "2026-11-01T18:29:59", 23, 6, date(2026, 11, 1)),
        ("Asia/Kolkata", "2026-11-01T18:30:00", 0, 0, date(2026, 11, 2)),
        ("Asia/Kathmandu", "2026-11-01T18:14:59", 23, 6, date(2026, 11, 1)),
        ("Asia/Kathmandu", "2026-11-01T18:15:00", 0, 0, date(2026, 11, 2)),
        ("America/St_Johns", "2026-07-01T02:30:00", 0, 2, date(2026, 7, 1)),
        # Berlin skips 02:00 to 03:00 in March and has it twice in October.
        ("Europe/Berlin", "2026-03-29T00:59:59", 1, 6, date(2026, 3, 29)),
        ("Europe/Berlin", "2026-03-29T01:00:00", 3, 6, date(2026, 3, 29)),
        ("Europe/Berlin", "2026-10-25T00:30:00", 2, 6, date(2026, 10, 25)),
        ("Europe/Berlin", "2026-10-25T01:30:00", 2, 6, date(2026, 10, 25)),
        ("Europe/Berlin", "2026-10-25T02:00:00", 3, 6, date(2026, 10, 25)),
        # Lord Howe changes by half an hour.
        ("Australia/Lord_Howe", "2026-04-04T14:59:59", 1, 6, date(2026, 4, 5)),
        ("Australia/Lord_Howe", "2026-04-04T15:00:00", 1, 6, date(2026, 4, 5)),
        ("Australia/Lord_Howe", "2026-04-04T15:30:00", 2, 6, date(2026, 4, 5)),
        ("America/New_York", "1969-12-31T23:59:59", 18, 2, date(1969, 12, 31)),
    ],
)
def test_the_local_reading_of_an_instant(zone: str, instant: str, hour: int, weekday: int, day: date) -> None:
    time = at(instant)
    assert Calendar(ZoneInfo(zone)).moment(time) == Moment(time, hour, weekday, day.toordinal())


ZONES = ["UTC", "Asia/Tokyo", "Europe/Berlin", "Asia/Kathmandu", "Australia/Lord_Howe", "America/St_Johns"]


@pytest.mark.parametrize("zone", ["Asia/Tokyo", "America/Los_Angeles", "UTC", "Pacific/Kiritimati"])
@pytest.mark.parametrize(
    ("time", "year"),
    [
        *((time, 2) for time in (float("-inf"), float("nan"), -1e300, -62_135_596_800.0, -62_135_700_000.0)),
        *((time, 9998) for time in (float("inf"), 1e300, 253_402_300_799.0, 253_402_400_000.0)),
    ],
)
def test_what_no_clock_shows_reads_as_the_nearest_that_one_does(zone: str, time: float, year: int) -> None:
    calendar = Calendar(ZoneInfo(zone))
    moment = calendar.moment(time)
    assert abs(date.fromordinal(moment.day).year - year) <= 1
    assert 0 <= moment.hour < 24
    start, end = calendar.day_bounds(moment)
    assert start < end
    assert calendar.hour_start(time) <= calendar.stretch_at(time)[0]
    assert abs(calendar.local(time).year - year) <= 1
    assert calendar.moment(0.0).day in (719_162, 719_163)


@pytest.mark.parametrize("zone", [*ZONES, "America/Sao_Paulo", "Pacific/Apia", "Africa/Casablanca"])
@pytest.mark.parametrize("seed", [1, 2])
def test_what_is_remembered_never_differs_from_what_is_asked_anew(zone: str, seed: int) -> None:
    """Clocks that walk, leap and step back."""
    print("seed", seed)
    rng = random.Random(seed)
    info = ZoneInfo(zone)
    calendar = Calendar(info)
    time = at("2012-01-01")
    for _ in range(20_000):
        time += rng.choice([0.5, 60, 899.9, 900, 1800, 3600, -0.5, -3599, -86_400, 86_400, rng.uniform(-1e7, 1.1e7)])
        local = datetime.fromtimestamp(time, info)
        expected = (time, local.hour, local.weekday(), local.toordinal())
        assert calendar.moment(time) == expected, (zone, time)


def test_the_zone_is_asked_once_a_quarter_of_an_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    calendar = Calendar(ZoneInfo("Asia/Kolkata"))
    turns: list[float] = []
    turn_to = Calendar._turn_to

    def counting(self: Calendar, now: float) -> None:
        turns.append(now)
        turn_to(self, now)

    monkeypatch.setattr(Calendar, "_turn_to", counting)
    start = at("2026-11-01T10:00:00")
    for second in range(3600):
        calendar.moment(start + second)
    assert turns == [start, start + 900, start + 1800, start + 2700]


@pytest.mark.parametrize(
    ("zone", "day", "start", "hours"),
    [
        ("UTC", date(2026, 11, 1), "2026-11-01T00:00:00", 24),
        ("Asia/Tokyo", date(2026, 11, 1), "2026-10-31T15:00:00", 24),
        ("Europe/Berlin", date(2026, 3, 29), "2026-03-28T23:00:00", 23),
        ("Europe/Berlin", date(2026, 10, 25), "2026-10-24T22:00:00", 25),
        ("America/New_York", date(2026, 3, 8), "2026-03-08T05:00:00", 23),
        ("America/New_York", date(2026, 11, 1), "2026-11-01T04:00:00", 25),
        ("Australia/Lord_Howe", date(2026, 4, 5), "2026-04-04T13:00:00", 24.5),
        ("Australia/Lord_Howe", date(2026, 10, 4), "2026-10-03T13:30:00", 23.5),
        # Clocks that go from 24:00 to 01:00: the day starts with the jump.
        ("America/Sao_Paulo", date(2018, 11, 4), "2018-11-04T03:00:00", 23),
        ("America/Sao_Paulo", date(2018, 11, 3), "2018-11-03T03:00:00", 24),
        # Clocks that go from 24:00 back to 23:00, and from 01:00 back to 00:00.
        ("America/Sao_Paulo", date(2019, 2, 16), "2019-02-16T02:00:00", 25),
        ("America/Havana", date(2026, 11, 1), "2026-11-01T04:00:00", 25),
    ],
)
def test_a_local_day_on_which_clocks_change(zone: str, day: date, start: str, hours: float) -> None:
    calendar = Calendar(ZoneInfo(zone))
    begins, ends = calendar.day_bounds(Moment(0.0, 0, 0, day.toordinal()))
    assert (begins, ends) == (at(start), at(start) + hours * 3600)
    for time in (begins, (begins + ends) / 2, ends - 0.001):
        assert calendar.moment(time).day == day.toordinal()
    assert calendar.moment(begins - 0.001).day == day.toordinal() - 1
    assert calendar.moment(ends).day == day.toordinal() + 1


@pytest.mark.parametrize("zone", ZONES)
def test_local_days_follow_each_other_without_a_gap(zone: str) -> None:
    calendar = Calendar(ZoneInfo(zone))
    first = date(2026, 1, 1)
    bounds = [calendar.day_bounds(Moment(0.0, 0, 0, (first + timedelta(days=n)).toordinal())) for n in range(366)]
    for (start, end), (next_start, _) in pairwise(bounds):
        assert start < end == next_start
    # Asked again in the other order, the same.
    assert bounds[::-1] == [
        calendar.day_bounds(Moment(0.0, 0, 0, (first + timedelta(days=n)).toordinal())) for n in reversed(range(366))
    ]


@pytest.mark.parametrize(
    ("zone", "time", "start"),
    [
        ("UTC", "2026-11-24T10:59:59.9+00:00", "2026-11-24T10:00:00+00:00"),
        ("Asia/Kolkata", "2026-11-24T10:29:59+00:00", "2026-11-24T09:30:00+00:00"),
        ("Asia/Kathmandu", "2026-11-24T10:14:59+00:00", "2026-11-24T09:15:00+00:00"),
        # The hour that comes twice is two.
        ("America/New_York", "2026-11-01T05:59:00+00:00", "2026-11-01T05:00:00+00:00"),
        ("America/New_York", "2026-11-01T06:01:00+00:00", "2026-11-01T06:00:00+00:00"),
        # Half an hour later 01:30 comes once more.
        ("Australia/Lord_Howe", "2026-04-04T14:59:00+00:00", "2026-04-04T14:00:00+00:00"),
    ],
)
def test_an_hour_starts_when_the_local_clocks_show_it(zone: str, time: str, start: str) -> None:
    calendar = Calendar(ZoneInfo(zone))
    assert calendar.hour_start(at(time)) == at(start)
