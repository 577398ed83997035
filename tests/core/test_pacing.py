from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adcore.core.inventory import Campaign, Creative, DailyCap, Goal
from adcore.core.pacing import Delivered, hold, impressions_until_hold, is_limited
from adcore.core.reason import Reason

DAY = (datetime(2026, 11, 2, tzinfo=UTC).timestamp(), datetime(2026, 11, 3, tzinfo=UTC).timestamp())
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
def test_hold(case: str, limited: Campaign, delivered: Delivered, expected: Reason | None) -> None:
    assert hold(limited, delivered, NOON, DAY) is expected


def test_even_delivery_may_start_at_the_very_start() -> None:
    even = campaign(goal=Goal(impressions=100), pacing="even", **FLIGHT)
    start = FLIGHT["starts_at"].timestamp()
    assert hold(even, Delivered(), start, DAY) is None
    assert hold(even, Delivered(impressions=1), start, DAY) is Reason.AHEAD_OF_SCHEDULE


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


@given(LIMITS, LIMITS, st.sampled_from(["even", "asap"]), st.integers(0, 40), st.integers(0, 40), st.floats(0, 1))
def test_no_look_is_needed_before_the_impression_that_may_be_held(
    goal: int | None, cap: int | None, pacing: str, before: int, today: int, share: float
) -> None:
    now = DAY[0] + share * (DAY[1] - DAY[0])
    limits = {
        "goal": None if goal is None else Goal(impressions=goal),
        "daily_cap": None if cap is None else DailyCap(impressions=cap),
    }
    limited = campaign(pacing=pacing, **limits, **FLIGHT)

    def held_after(more: int) -> Reason | None:
        return hold(limited, Delivered(impressions=before + today + more, impressions_today=today + more), now, DAY)

    if held_after(0) is None:
        until = impressions_until_hold(
            limited, Delivered(impressions=before + today, impressions_today=today), now, DAY
        )
        first_held = next((more for more in range(1, 70) if held_after(more) is not None), float("inf"))
        assert until == first_held
