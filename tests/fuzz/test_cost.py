"""No input costs more than its bytes allow: a short form of `python -m tests.fuzz cost`, counted in instructions.

The counts, and the cases, are the same each time.
"""

import pytest

from tests.fuzz.climb import Found, count
from tests.fuzz.cost import Spent
from tests.fuzz.surfaces import surfaces

# Some 350 of them are the seeds; each takes 50 ms or so under callgrind.
CASES = 1500
SEED = 20261128


def test_no_edited_input_costs_more_than_its_bytes() -> None:
    names = [one.name for one in surfaces() if not one.is_large]
    found = count(CASES, SEED, only=names)
    assert {one.surface for one in found} == set(names)
    assert_all_cheap(found)


def test_a_page_of_thousands_of_campaigns_keeps_within_a_turn() -> None:
    (large,) = (one for one in surfaces() if one.is_large)
    found = count(len(large.seeds) + 20, SEED, only=[large.name])
    assert_all_cheap(found)


def assert_all_cheap(found: list[Found]) -> None:
    print(found[0])
    assert not [str(one) for one in found if one.ratio > 1]


@pytest.mark.parametrize(
    ("spent", "broken"),
    [
        (Spent((7500 * 1300,), 1000, 0, 0), True),
        (Spent((7500 * 1200,), 1000, 0, 0), False),
        (Spent((7500 * 21_000, 1), 70_000, 1, 0), True),
        (Spent((7500 * 19_000, 7500 * 19_000), 70_000, 1, 0), False),
        (Spent((7500 * 610,), 40, 1, 1), True),
        (Spent((7500 * 600,), 40, 1, 2), False),
        (Spent((7500 * 1650,), 700, 1, 0, 1 + 40), True),
        (Spent((7500 * 1550,), 700, 1, 0, 1 + 40), False),
    ],
)
def test_what_is_too_much(spent: Spent, broken: bool) -> None:
    """1 µs a byte, 250 µs a request and one more, 10 µs a read after the first, 60 µs a slot, and 20 ms a turn."""
    assert (spent.ratio(0, 7500) > 1) is broken
