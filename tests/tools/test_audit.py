"""The statistics of audits and estimates against published figures and against simulation."""

import math
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adtools.audit import chi_square_tail, holm, pearson

# The 5 %, 1 % and 0.1 % points of the tables in every textbook.
POINTS = {
    1: (3.841459, 6.634897, 10.827566),
    2: (5.991465, 9.210340, 13.815511),
    3: (7.814728, 11.344867, 16.266236),
    10: (18.307038, 23.209251, 29.588298),
    29: (42.556968, 49.587884, 58.301173),
    100: (124.342113, 135.806723, 149.449253),
}


@pytest.mark.parametrize("degrees", POINTS)
def test_the_tail_is_that_of_the_tables(degrees: int) -> None:
    for point, p_value in zip(POINTS[degrees], (0.05, 0.01, 0.001), strict=True):
        assert chi_square_tail(point, degrees) == pytest.approx(p_value, rel=1e-5)


@settings(deadline=None)
@given(st.floats(0, 1e6), st.integers(1, 2000))
def test_the_tail_is_a_probability_that_falls(statistic: float, degrees: int) -> None:
    here = chi_square_tail(statistic, degrees)
    assert 0 <= here <= 1
    assert chi_square_tail(statistic + 1, degrees) <= here + 1e-12


def test_good_shares_fail_as_rarely_as_they_should() -> None:
    draw = random.Random(5)
    chances = (("a", 0.1), ("b", 0.3), ("c", 0.6))
    p_values = []
    for _ in range(2000):
        picked = draw.choices("abc", weights=[chance for _, chance in chances], k=200)
        p_values.append(chi_square_tail(*pearson(Counter(picked), chances)))
    for level in (0.5, 0.1, 0.01):
        expected = 2000 * level
        assert abs(sum(p < level for p in p_values) - expected) < 4 * math.sqrt(expected) + 5


def test_rare_ones_are_taken_together() -> None:
    chances = [*((f"rare-{number}", 0.001) for number in range(100)), ("usual", 0.9)]
    statistic, degrees = pearson(Counter({"usual": 90, "rare-1": 10}), chances)
    assert statistic == pytest.approx(0.0)
    assert degrees == 1
    assert pearson(Counter({"usual": 3}), chances) == (0.0, 0)


def test_many_tests_are_held_to_more() -> None:
    assert holm([0.01, 0.02, 0.5]) == pytest.approx([0.03, 0.04, 0.5])
    assert holm([0.4, 0.45]) == pytest.approx([0.8, 0.8])
