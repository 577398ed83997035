"""Thousands of campaigns in one placement: found in masks what a look at each of them would find."""

import random
from bisect import bisect_right
from itertools import accumulate
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adcore.core.adtable import SEARCHED_MIN, AdTable, PlacementIndex, build_table
from adcore.core.calendar import Moment
from adcore.core.decision import decide, find_eligible
from adcore.core.facts import Facts
from adcore.core.inventory import Targeting
from adcore.core.reason import Reason
from adcore.core.targeting import KeyValues, mask_at
from tests.inventories import campaign, document, text_creative

COUNT = 2 * SEARCHED_MIN + 77
MOMENT = Moment(1_800_000_000.0, 8, 4, 1)
FACTS = Facts("desktop", "linux", "", ("ja",), (), (), False)


def build(seed: int, **fields: Any) -> AdTable:
    chance = random.Random(seed)
    weights = [chance.choice((1, 2, 7, 1000, 999_983, 1_000_000)) for _ in range(COUNT)]
    table = build_table(
        document(
            *(
                campaign(
                    f"c{n}",
                    weight=weight,
                    creatives=[text_creative(f"c{n}-{k}", weight=1 + k) for k in range(1 + n % 3)],
                    priority="house" if n % 5 == 0 else "standard",
                    **fields,
                )
                for n, weight in enumerate(weights)
            )
        ),
        revision=1,
    )
    assert not table.rejected
    return table


def by_hand(index: PlacementIndex, mask: int, draw: float) -> tuple[str, float]:
    """The creative at `draw` and its chance, from the sums of all weights."""
    live = next(mask & tier for tier in index.tiers if mask & tier)
    chosen = [entrant for at, entrant in enumerate(index.entrants) if live >> at & 1]
    bounds = [0, *accumulate(entrant.campaign.weight for entrant in chosen)]
    total = bounds[-1]
    at = min(bisect_right(bounds, draw * total) - 1, len(chosen) - 1)
    weight = chosen[at].campaign.weight
    if len(chosen[at].ads) == 1:
        return chosen[at].ads[0].creative.id, weight / total
    ad, chance = chosen[at].pick((draw * total - bounds[at]) / weight)
    return ad.creative.id, chance * weight / total


@pytest.mark.parametrize("seed", range(3))
def test_the_first_pick_of_thousands_is_that_of_all_weights_added_up(seed: int) -> None:
    index = build(seed).placements["side"]
    chance = random.Random(seed)
    everyone = index.targeting.everyone
    for draw in [0.0, 1 - 2**-53, 0.5, *(chance.random() for _ in range(60))]:
        mask = everyone & ~sum(1 << at for at in chance.sample(range(COUNT), chance.randrange(40)))
        drawing = index.drawing(mask, is_common=False)
        assert drawing is not None
        expected = by_hand(index, mask, draw)
        # The first is searched for, later ones are looked up in what was drawn up.
        for _ in range(3):
            ad, probability = drawing.pick(draw)
            assert (ad.creative.id, probability) == expected
        assert len(list(drawing.chances())) == sum(
            len(index.entrants[at].ads) for at in range(COUNT) if at % 5 and mask >> at & 1
        )


def test_the_last_of_thousands_takes_what_rounds_up_to_the_total() -> None:
    index = build(1).placements["side"]
    mask = index.targeting.everyone & ~(1 << COUNT - 1)
    drawing = index.drawing(mask, is_common=False)
    assert drawing is not None
    last = max(at for at in range(COUNT - 1) if at % 5)
    entrant, start = drawing._weights.search(mask & index.tiers[0], float(drawing.total))
    assert entrant is index.entrants[last]
    assert start == drawing.total - entrant.campaign.weight


def test_what_one_page_got_is_not_kept_for_others() -> None:
    """Each slot of it leaves another set of campaigns out."""
    table = build(2)
    index = table.placements["side"]
    eligible = find_eligible(table, "side", FACTS, MOMENT)
    for number in range(50):
        taken = {f"c{number}", f"c{number + 1}"}
        thinner = eligible.without(frozenset(), taken)
        assert thinner.excluded == dict.fromkeys(taken, Reason.ALREADY_ON_PAGE)
        answer = decide(table, "side", FACTS, MOMENT, f"{number:032x}", taken=taken)
        assert answer.excluded == thinner.excluded
    assert len(index._drawings) == 1


@given(st.lists(st.tuples(st.integers(0, COUNT + 20), st.sampled_from([*Reason])), max_size=COUNT))
def test_standing_is_that_of_each_campaign(rows: list[tuple[int, Reason]]) -> None:
    index = INDEX
    held = {f"c{number}": reason for number, reason in rows}
    standing = index.standing(held)
    there = {name: reason for name, reason in held.items() if name in index.positions}
    found = {name: reason for reason, mask in standing.held for name in index.ids_in(mask)}
    found |= dict.fromkeys(index.ids_in(standing.behind), Reason.BEHIND_SCHEDULE)
    assert found == there
    assert index.standing(held) is standing
    assert [reason for reason, _ in standing.held] == [
        reason for reason in Reason if reason in {*found.values()} - {Reason.BEHIND_SCHEDULE}
    ]


INDEX = build(0).placements["side"]
NAMES = ("a", "b", "c", "d")
wanted = st.dictionaries(st.sampled_from(NAMES), st.lists(st.sampled_from("xyz"), max_size=2, unique=True).map(tuple))


@given(
    st.lists(wanted, max_size=12),
    st.lists(st.tuples(st.sampled_from((*NAMES, "e")), st.sampled_from("xyzw")), max_size=8),
)
def test_key_values_accept_who_finds_a_match_under_each_name(
    targets: list[dict[str, tuple[str, ...]]], pairs: list[tuple[str, str]]
) -> None:
    steps = KeyValues.compile([Targeting(key_values=names) for names in targets])
    while True:
        try:
            next(steps)
        except StopIteration as end:
            index: KeyValues = end.value
            break
    mask = index.accepting(pairs)
    for at, names in enumerate(targets):
        matches = all(not values or any((name, value) in pairs for value in values) for name, values in names.items())
        assert mask >> at & 1 == matches
    assert mask >> len(targets) == 0
    wanted = {(name, value) for names in targets for name, values in names.items() for value in values}
    assert all((pair in index) == (pair in wanted) for pair in (*pairs, ("e", "1")))


@given(st.sets(st.integers(0, 300)))
def test_a_mask_has_the_bits_that_it_is_made_of(positions: set[int]) -> None:
    assert mask_at(positions, 301) == sum(1 << at for at in positions)
    assert mask_at((), 0) == 0


def test_thousands_of_names_of_key_values_cost_a_request_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [campaign(f"c{n}", targeting={"key_values": {f"n{n}": ["a"], "s": ["b"]}}) for n in range(500)]
    index = build_table(document(*rows), revision=1).placements["side"].targeting.key_values
    looked_at: list[str] = []

    class Watched(dict[str, Any]):
        def get(self, key: str, default: Any = None) -> Any:
            looked_at.append(key)
            return super().get(key, default)

    index._groups = Watched(index._groups)
    assert index.accepting([("n7", "a"), ("s", "b"), ("none", "x")]) == 1 << 7
    assert looked_at == ["n7", "s"]
    assert [len(some) for some in index._groups.values()] == [1] * 500
