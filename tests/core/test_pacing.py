from datetime import UTC, datetime
from itertools import accumulate
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adcore.core.inventory import Campaign, Creative, DailyCap, Goal
from adcore.core.pacing import Delivered, Line, is_limited, standing
from adcore.core.reason import Reason

DAY = (datetime(2026, 11, 2, tzinfo=UTC).timestamp(), datetime(2026, 11, 3, tzinfo=UTC).timestamp())
MONDAY = datetime(2026, 11, 2).toordinal()
NOON = (DAY[0] + DAY[1]) / 2


def campaign(**fields: Any) -> Campaign:
    creative = Creative(
        id="c-1", placement_size=(1, 1), format="text", data={"text": "…"}, landing_url="https://example.net/"
    )
    return Campaign(id="c", name="c", priority="standard", creatives=(creative,), **fields)


FLIGHT = {"starts_at": datetime(2026, 11, 1, tzinfo=UTC), "ends_at": datetime(2026, 11, 4, tzinfo=UTC)}

CASES: list[tuple[str, Campaign, Delivered, Reason | None]] = [
    ("nothing to hold", campaign(), Delivered(impressions=10**9), None),
    ("goal: one left", campaign(goal=Goal(impressions=10)), Delivered(impressions=9), None),
    ("goal: reached", campaign(goal=Goal(impressions=10)), Delivered(impressions=10), Reason.GOAL_REACHED),
    ("goal of clicks", campaign(goal=Goal(clicks=2)), Delivered(impressions=999, clicks=1), None),
    ("goal of clicks reached", campaign(goal=Goal(clicks=2)), Delivered(clicks=2), Reason.GOAL_REACHED),
    (
        "daily cap: yesterday does not count",
        campaign(daily_cap=DailyCap(impressions=5)),
        Delivered(impressions=50, impressions_today=4),
        None,
    ),
    (
        "daily cap reached",
        campaign(daily_cap=DailyCap(impressions=5)),
        Delivered(impressions=50, impressions_today=5),
        Reason.DAILY_CAP,
    ),
    (
        "daily cap of clicks reached",
        campaign(daily_cap=DailyCap(clicks=1)),
        Delivered(clicks_today=1),
        Reason.DAILY_CAP,
    ),
    (
        "the goal comes before the cap",
        campaign(goal=Goal(impressions=5), daily_cap=DailyCap(impressions=5)),
        Delivered(impressions=5, impressions_today=5),
        Reason.GOAL_REACHED,
    ),
    # Noon of the second of three days: half of the goal of 100 is due.
    (
        "even: on the line",
        campaign(goal=Goal(impressions=100), pacing="even", **FLIGHT),
        Delivered(impressions=50),
        None,
    ),
    (
        "even: ahead of the line",
        campaign(goal=Goal(impressions=100), pacing="even", **FLIGHT),
        Delivered(impressions=51),
        Reason.AHEAD_OF_SCHEDULE,
    ),
    ("asap: no line", campaign(goal=Goal(impressions=100), **FLIGHT), Delivered(impressions=99), None),
    (
        "even without an end: no line",
        campaign(goal=Goal(impressions=100), pacing="even", starts_at=FLIGHT["starts_at"]),
        Delivered(impressions=99),
        None,
    ),
    (
        "even: half of the daily cap at noon",
        campaign(daily_cap=DailyCap(impressions=10), pacing="even"),
        Delivered(impressions_today=5),
        None,
    ),
    (
        "even: more than half of the daily cap at noon",
        campaign(daily_cap=DailyCap(impressions=10), pacing="even"),
        Delivered(impressions_today=6),
        Reason.AHEAD_OF_SCHEDULE,
    ),
    (
        "even: clicks ahead of the line",
        campaign(goal=Goal(clicks=4), pacing="even", **FLIGHT),
        Delivered(clicks=3),
        Reason.AHEAD_OF_SCHEDULE,
    ),
]


@pytest.mark.parametrize(("case", "limited", "delivered", "expected"), CASES, ids=[c[0] for c in CASES])
def test_standing(case: str, limited: Campaign, delivered: Delivered, expected: Reason | None) -> None:
    assert standing(limited, delivered, NOON, DAY).reason is expected


def test_even_delivery_may_start_at_the_very_start() -> None:
    even = campaign(goal=Goal(impressions=100), pacing="even", **FLIGHT)
    start = FLIGHT["starts_at"].timestamp()
    assert standing(even, Delivered(), start, DAY).reason is None
    assert standing(even, Delivered(impressions=1), start, DAY).reason is Reason.AHEAD_OF_SCHEDULE


def test_only_goals_and_daily_caps_limit_by_counts() -> None:
    assert not is_limited(campaign(pacing="even", **FLIGHT))
    assert is_limited(campaign(goal=Goal(clicks=1)))
    assert is_limited(campaign(daily_cap=DailyCap(impressions=1)))


def test_a_new_day_starts_the_day_again() -> None:
    delivered = Delivered(impressions=7, clicks=2, day=10, impressions_today=3, clicks_today=1)
    delivered.turn_to(10)
    assert (delivered.impressions_today, delivered.clicks_today) == (3, 1)
    delivered.turn_to(11)
    assert (delivered.impressions, delivered.clicks) == (7, 2)
    assert (delivered.impressions_today, delivered.clicks_today) == (0, 0)


LIMITS = st.none() | st.integers(1, 60)
FORECASTS = st.just(()) | st.binary(min_size=168, max_size=168).filter(any).map(lambda rates: tuple(accumulate(rates)))
FLIGHTS = st.sampled_from([{}, FLIGHT, {"starts_at": datetime(2026, 11, 2, 9, tzinfo=UTC)}])


@st.composite
def situations(draw: st.DrawFn) -> tuple[Campaign, Delivered, float]:
    goal, cap = draw(LIMITS), draw(LIMITS)
    limited = campaign(
        pacing=draw(st.sampled_from(["even", "asap"])),
        goal=None if goal is None else Goal(impressions=goal),
        daily_cap=None if cap is None else DailyCap(impressions=cap),
        forecast=draw(FORECASTS),
        **draw(FLIGHTS),
    )
    today = draw(st.integers(0, 40))
    delivered = Delivered(draw(st.integers(0, 40)) + today, day=MONDAY, impressions_today=today)
    return limited, delivered, DAY[0] + draw(st.floats(0, 0.999)) * (DAY[1] - DAY[0])


@settings(deadline=None)
@given(situations())
def test_a_standing_holds_until_the_impression_that_it_names(situation: tuple[Campaign, Delivered, float]) -> None:
    limited, delivered, now = situation
    found = standing(limited, delivered, now, DAY)
    if found.reason not in (None, Reason.BEHIND_SCHEDULE):
        return
    for more in range(1, 70):
        after = Delivered(delivered.impressions + more, 0, MONDAY, delivered.impressions_today + more)
        if standing(limited, after, now, DAY).reason is not found.reason:
            assert found.impressions == more
            break
    else:
        assert found.impressions >= 70


@settings(deadline=None)
@given(situations(), st.floats(0, 1))
def test_a_standing_holds_until_the_time_that_it_names(
    situation: tuple[Campaign, Delivered, float], share: float
) -> None:
    limited, delivered, now = situation
    found = standing(limited, delivered, now, DAY)
    assert found.until >= now - 1e-3
    before = now + share * (min(found.until, DAY[1]) - 1e-3 - now)
    if before > now:
        assert standing(limited, delivered, before, DAY).reason is found.reason


@settings(deadline=None)
@given(FORECASTS, st.floats(-400, 400), st.floats(0.1, 400), st.floats(0, 1))
def test_a_line_rises_from_0_to_1_and_knows_when(
    forecast: tuple[int, ...], start_h: float, hours: float, share: float
) -> None:
    start = DAY[0] + start_h * 3600
    line = Line(forecast, (0, DAY[0]), start, start + hours * 3600)
    assert line.share(start) == 0
    assert line.share(start + hours * 3600) == 1
    at = line.time_of(share)
    assert start - 1e-3 <= at <= start + hours * 3600 + 1e-3
    assert line.share(at) == pytest.approx(share, abs=1e-6)


def test_a_line_follows_the_forecast() -> None:
    """Everything comes on Mondays between 18:00 and 20:00, twice as much in the second hour."""
    forecast = tuple(0 if hour < 18 else 1 if hour < 19 else 3 for hour in range(168))
    capped = campaign(daily_cap=DailyCap(impressions=300), pacing="even", forecast=forecast)

    def reason(hour: float, delivered: int) -> Reason | None:
        today = Delivered(day=MONDAY, impressions_today=delivered)
        return standing(capped, today, DAY[0] + hour * 3600, DAY).reason

    assert reason(12, 1) is Reason.AHEAD_OF_SCHEDULE
    assert reason(18.5, 53) is None
    assert reason(18.5, 54) is Reason.AHEAD_OF_SCHEDULE  # 50, and what 2 minutes bring
    assert reason(19.5, 206) is None
    assert reason(19.5, 207) is Reason.AHEAD_OF_SCHEDULE


def test_who_has_not_delivered_what_is_due_goes_first() -> None:
    promised = campaign(goal=Goal(impressions=100), pacing="even", **FLIGHT)
    capped = campaign(daily_cap=DailyCap(impressions=100), pacing="even", **FLIGHT)
    assert standing(promised, Delivered(49, day=MONDAY), NOON, DAY).reason is Reason.BEHIND_SCHEDULE
    assert standing(promised, Delivered(50, day=MONDAY), NOON, DAY).reason is None
    assert standing(capped, Delivered(day=MONDAY), NOON, DAY).reason is None


def test_a_daily_cap_is_spread_over_what_of_the_day_is_in_the_flight() -> None:
    evening = campaign(
        daily_cap=DailyCap(impressions=100), pacing="even", starts_at=datetime(2026, 11, 2, 12, tzinfo=UTC)
    )
    assert standing(evening, Delivered(day=MONDAY, impressions_today=1), NOON, DAY).reason is Reason.AHEAD_OF_SCHEDULE
    at_18 = NOON + 6 * 3600
    assert standing(evening, Delivered(day=MONDAY, impressions_today=50), at_18, DAY).reason is None
