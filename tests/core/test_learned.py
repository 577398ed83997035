from datetime import UTC, datetime
from math import exp, fsum, lgamma
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from adcore.core.adtable import build_table
from adcore.core.calendar import Calendar
from adcore.core.inventory import InventoryError, check_inventory, parse_inventory, to_document
from adcore.core.learned import FORECAST_TOTAL, WEIGHTS_TOTAL, best_chances
from adcore.core.traffic import expected_traffic, is_other_traffic
from tests.inventories import campaign, document, text_creative

MONDAY = int(datetime(2026, 11, 2, tzinfo=UTC).timestamp())
EVENING = tuple(9.0 if hour % 24 == 20 else 1.0 for hour in range(168))
FLAT = (10.0,) * 168


def taught(*campaigns: dict[str, Any], **learned: Any) -> dict[str, Any]:
    """Each campaign of the table by its id."""
    built = build_table({**document(*campaigns), "learned": learned}, revision=1)
    assert built.rejected == ()
    return dict(built.campaigns)


def exact(results: list[tuple[int, int]]) -> float:
    """P(the second of two rates is the higher), in closed form (Evan Miller, "Formulas for Bayesian A/B testing")."""

    def log_beta(a: float, b: float) -> float:
        return lgamma(a) + lgamma(b) - lgamma(a + b)

    (a_first, b_first), (a_second, b_second) = ((clicks + 1, shown - clicks + 1) for shown, clicks in results)
    return fsum(
        exp(log_beta(a_first + i, b_first + b_second) - log_beta(1 + i, b_second) - log_beta(a_first, b_first))
        / (b_second + i)
        for i in range(a_second)
    )


RESULTS = st.integers(0, 20_000).flatmap(lambda shown: st.tuples(st.just(shown), st.integers(0, min(shown, 300))))


@settings(deadline=None)
@given(RESULTS, RESULTS)
@example((0, 0), (691, 290))
def test_the_chance_to_be_the_best_of_two_is_the_exact_one(first: tuple[int, int], second: tuple[int, int]) -> None:
    assert best_chances([first, second])[1] == pytest.approx(exact([first, second]), abs=2e-3)


@settings(deadline=None)
@given(st.lists(RESULTS, min_size=1, max_size=6))
def test_chances_are_a_distribution_in_which_more_clicks_never_hurt(results: list[tuple[int, int]]) -> None:
    chances = best_chances(results)
    assert sum(chances) == pytest.approx(1)
    assert min(chances) >= 0
    shown, clicks = results[0]
    if clicks < shown:
        assert best_chances([(shown, clicks + 1), *results[1:]])[0] >= chances[0] - 1e-9


def test_posteriors_of_very_different_widths_are_compared() -> None:
    """A creative shown a milliard times beside one that is new: the new one is better unless its rate is below."""
    old, new = best_chances([(10**9, 10**6), (0, 0)])
    assert (old, new) == pytest.approx((0.001, 0.999), abs=1e-4)
    assert best_chances([(10**12, 10**9), (10**12, 10**9 + 10**6)])[1] == pytest.approx(1)


def test_weights_of_an_optimised_campaign_are_the_chances_of_each_size() -> None:
    rivals = [text_creative("a"), text_creative("b"), text_creative("wide", (728, 90), weight=7)]
    learned = {"a": [1000, 10], "b": [1000, 20]}
    weights = {
        c.id: c.weight
        for c in taught(campaign("c", optimize="ctr", creatives=rivals), creatives=learned)["c"].creatives
    }
    assert weights["b"] / WEIGHTS_TOTAL == pytest.approx(exact([(1000, 10), (1000, 20)]), abs=2e-3)
    assert weights["a"] + weights["b"] == WEIGHTS_TOTAL
    assert weights["wide"] == WEIGHTS_TOTAL
    plain = taught(campaign("c", creatives=rivals), creatives=learned)["c"]
    assert [c.weight for c in plain.creatives] == [1, 1, 7]


def test_a_creative_that_is_hardly_the_best_keeps_a_weight() -> None:
    creatives = [text_creative("a"), text_creative("b")]
    found = taught(
        campaign("c", optimize="ctr", creatives=creatives), creatives={"a": [10**6, 10], "b": [10**6, 10_000]}
    )
    assert [c.weight for c in found["c"].creatives] == [1, WEIGHTS_TOTAL]


def even(campaign_id: str, placements: list[str], **targeting: Any) -> dict[str, Any]:
    return campaign(
        campaign_id, pacing="even", daily_cap={"impressions": 5}, targeting={"placements": placements, **targeting}
    )


def test_an_even_campaign_follows_the_traffic_of_its_own_placements_and_hours() -> None:
    found = taught(
        even("side", ["side"]),
        even("both", ["side", "foot"]),
        even("unknown", ["top"]),
        even("narrow", ["side"], hours=[19, 20], weekdays=[0]),
        even("hours", ["top"], hours=[0, 1], weekdays=[0]),
        campaign("asap", daily_cap={"impressions": 5}),
        traffic={"side": EVENING, "foot": FLAT, "gone": FLAT},
    )

    def hour(campaign_id: str, number: int) -> Any:
        forecast = found[campaign_id].forecast
        return (forecast[number] - forecast[number - 1]) / FORECAST_TOTAL * 1000

    assert hour("side", 20) == pytest.approx(9 * hour("side", 19), rel=0.01)
    assert hour("both", 20) == pytest.approx(19 / 11 * hour("both", 19), rel=0.01)
    assert found["unknown"].forecast == found["asap"].forecast == ()
    assert (hour("narrow", 19), hour("narrow", 20), hour("narrow", 21)) == (100, 900, 0)
    assert (hour("hours", 1), hour("hours", 2), hour("hours", 25)) == (500, 0, 0)


def test_what_was_learned_is_no_part_of_the_inventory() -> None:
    whole = {**document(even("c", ["side"])), "learned": {"traffic": {"side": EVENING}}}
    inventory, problems = check_inventory(whole)
    assert problems == ()
    assert "learned" not in to_document(inventory)
    assert parse_inventory(to_document(inventory)) == inventory
    with pytest.raises(InventoryError, match=r"\$\.learned"):
        parse_inventory(whole)
    with pytest.raises(InventoryError, match="forecast"):
        parse_inventory(document(campaign("c", forecast=[1])))


@pytest.mark.parametrize(
    ("learned", "paths"),
    [
        ([], ["$.learned.traffic", "$.learned.creatives"]),
        ({"traffic": {"side": [1.0]}}, ["$.learned.traffic.'side'"]),
        ({"traffic": {"side": [-1.0] * 168}}, ["$.learned.traffic.'side'"]),
        ({"creatives": {"c-1": [1, "x"]}}, ["$.learned.creatives.'c-1'"]),
        ({"creatives": {"no id": [1, 1]}}, ["$.learned.creatives.'no id'"]),
    ],
)
def test_what_is_bad_is_named_and_left_out(learned: Any, paths: list[str]) -> None:
    built = build_table({**document(campaign("c")), "learned": learned}, revision=1)
    assert [problem.path for problem in built.rejected] == paths
    assert list(built.campaigns) == ["c"]


# Traffic

CALENDAR = Calendar(UTC)


def weeks(number: int, count: Any) -> dict[int, int]:
    return {MONDAY + hour * 3600: count(hour) for hour in range(number * 168)}


def test_an_hour_of_the_week_is_taken_for_its_average_and_a_week_of_that_hour_of_the_day() -> None:
    sundays = weeks(4, lambda hour: 300 if hour % 168 >= 144 else 100)
    traffic = expected_traffic(sundays, sundays, CALENDAR)
    assert traffic is not None
    of_day = (6 * 100 + 300) / 7
    assert traffic[0] == pytest.approx((4 * 100 + of_day) / 5, rel=0.01)
    assert traffic[167] == pytest.approx((4 * 300 + of_day) / 5, rel=0.01)


def test_nothing_is_known_before_each_hour_of_the_day_was_seen() -> None:
    day = {MONDAY + hour * 3600: 10 for hour in range(24)}
    assert expected_traffic(day, day, CALENDAR) == (10.0,) * 168
    day.pop(MONDAY + 5 * 3600)
    assert expected_traffic(day, day, CALENDAR) is None
    assert expected_traffic({}, day, CALENDAR) is None


def test_hours_in_which_nobody_counted_are_not_taken_for_quiet_ones() -> None:
    all_hours = weeks(2, lambda hour: 10)
    night = {hour: 10 for hour in all_hours if CALENDAR.moment(hour).hour >= 8}
    traffic = expected_traffic(night, all_hours, CALENDAR)
    assert traffic is not None
    assert (traffic[3], traffic[12]) == (0.0, 10.0)
    outage = {hour: 10 for hour in all_hours if not 50 <= (hour - MONDAY) // 3600 < 60}
    assert expected_traffic(outage, outage, CALENDAR) == (10.0,) * 168


def test_small_differences_are_no_other_traffic() -> None:
    assert not is_other_traffic(FLAT, (10.5,) * 168)
    assert is_other_traffic(FLAT, (12.0,) * 168)
    assert is_other_traffic(FLAT, EVENING)
    assert not is_other_traffic(EVENING, EVENING)
