"""A table made from the one before is the table that would be built anew, and shares what is the same."""

import gc
import sys
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from adcore.core.adtable import EMPTY, Ad, AdTable, Drawing, Entrant, build_table, finish, let_go
from tests.inventories import campaign, change, document, text_creative

PLACEMENTS = {
    "side": {"id": "side", "width": 300, "height": 250},
    "foot": {"id": "foot", "width": 300, "height": 250, "formats": ["text"]},
    "top": {"id": "top", "width": 728, "height": 90},
}


def describe(table: AdTable) -> dict[str, Any]:
    """All that a decision, a click or a person could read of it."""
    return {
        "revision": table.revision,
        "rejected": table.rejected,
        "campaigns": list(table.campaigns.items()),
        "creatives": {k.id: table.creatives.get(k.id) for c in table.campaigns.values() for k in c.creatives},
        "creative_count": table.creative_count,
        "limited": dict(table.limited),
        "caps": dict(table.caps),
        "placements": {
            name: (
                index.placement,
                [
                    (e.campaign, [(a.placement, a.campaign, a.creative) for a in e.ads], e.bounds)
                    for e in index.entrants
                ],
                index.campaigns,
                dict(index.absent),
                index.positions,
                {
                    name: (facet.indifferent, facet.by_value)
                    for name, facet in vars_of(index.targeting)
                    if hasattr(facet, "by_value")
                },
                dict(vars_of(index.targeting.key_values)),
                (index.targeting.everyone, index.targeting.keywords, index.starts, index.ends, index.tiers),
            )
            for name, index in table.placements.items()
        },
    }


def vars_of(thing: Any) -> list[tuple[str, Any]]:
    return [(name, getattr(thing, name)) for name in type(thing).__slots__]


sizes = st.sampled_from([(300, 250), (728, 90)])
targets = st.fixed_dictionaries(
    {},
    optional={
        "placements": st.lists(st.sampled_from(["side", "foot", "top", "gone"]), unique=True, max_size=2),
        "devices": st.sampled_from([[], ["mobile"], ["desktop", "tv"]]),
        "keywords_any": st.sampled_from([[], ["manga"], ["news", "manga"]]),
        "key_values": st.sampled_from([{}, {"section": ["a"]}, {"section": ["a", "b"], "kind": ["x"]}]),
    },
)


@st.composite
def campaigns(draw: st.DrawFn) -> dict[str, Any]:
    # A few names only, so that campaigns come back, and creatives change from one campaign to another.
    name = draw(st.sampled_from("abcdef"))
    creatives = draw(
        st.lists(
            st.builds(
                lambda number, size, weight, url: text_creative(f"k{number}", size, weight=weight, landing_url=url),
                st.integers(0, 9),
                sizes,
                st.integers(0, 2),  # 0 is a bad row
                st.sampled_from(["https://shop.example.net/", "no url"]),
            ),
            max_size=3,
        )
    )
    return campaign(
        name,
        weight=draw(st.integers(1, 2)),
        status=draw(st.sampled_from(["active", "active", "paused"])),
        priority=draw(st.sampled_from(["standard", "house", "unheard of"])),
        goal=draw(st.sampled_from([None, {"impressions": 5}])),
        frequency_cap=draw(st.sampled_from([None, {"impressions": 2, "seconds": 60}])),
        targeting=draw(targets),
        creatives=creatives,
    )


placements = st.lists(
    st.builds(
        lambda name, height: {**PLACEMENTS[name], **({"height": height} if height else {})},
        st.sampled_from(sorted(PLACEMENTS)),
        st.sampled_from([None, None, None, 90]),
    ),
    max_size=4,
)
documents = st.builds(
    lambda where, what: {"placements": where, "campaigns": what}, placements, st.lists(campaigns(), max_size=6)
)
# Mostly small edits: a document's own rows in another order, some of them gone, some new.
edits = st.lists(
    st.tuples(st.sampled_from(["remove", "add", "swap", "placements"]), st.integers(0, 5), campaigns(), placements),
    max_size=3,
)


@settings(max_examples=100, deadline=None)
@given(documents, st.lists(edits, min_size=1, max_size=4))
def test_differences_applied_give_the_table_that_is_built_anew(first: dict[str, Any], steps: list[Any]) -> None:
    there, table = first, build_table(first, revision=1)
    for revision, edit in enumerate(steps, 2):
        rows = list(there["campaigns"])
        where = there["placements"]
        for kind, at, row, other in edit:
            if kind == "add":
                rows.insert(min(at, len(rows)), row)
            elif kind == "placements":
                where = other
            elif rows and kind == "remove":
                del rows[at % len(rows)]
            elif rows:
                rows[at % len(rows)], rows[0] = rows[0], rows[at % len(rows)]
        there = {"placements": where, "campaigns": rows}
        before, seen = table, describe(table)
        table = change(before, there, revision)
        assert describe(table) == describe(build_table(there, revision=revision))
        assert describe(before) == seen, "a table never changes"


def test_emptied_and_filled_again() -> None:
    full = document(campaign("a"), campaign("b"))
    table = build_table(full, revision=1)
    nothing = change(table, {"placements": [], "campaigns": []})
    assert (nothing.campaigns, nothing.placements, nothing.creative_count) == ({}, {}, 0)
    assert describe(change(nothing, full, 1)) == describe(table)
    assert EMPTY.creative_count == 0


def test_campaigns_that_changed_places_are_in_their_new_order_everywhere() -> None:
    rows = [campaign(name) for name in "abc"]
    before = build_table(document(*rows), revision=1)
    for order in ((1, 0, 2), (2, 1, 0), (0, 2)):
        to = document(*(rows[at] for at in order))
        after = change(before, to)
        assert describe(after) == describe(build_table(to, revision=2))
        assert after.campaigns["a"] is before.campaigns["a"]


def test_placements_that_no_change_concerns_are_shared() -> None:
    rows = [campaign(name, targeting={"placements": [place]}) for name, place in (("a", "side"), ("b", "foot"))]
    before = build_table(document(*rows), revision=1)
    after = change(before, document({**rows[0], "weight": 7}, rows[1]))
    assert after.placements["foot"] is before.placements["foot"]
    assert after.placements["top"] is before.placements["top"]
    assert after.placements["side"] is not before.placements["side"]
    assert after.campaigns["b"] is before.campaigns["b"]
    ads = [entrant.ads[0] for place in ("side", "foot") for entrant in before.placements[place].entrants]
    assert [before.has(ad) for ad in ads] == [True, True]
    assert [after.has(ad) for ad in ads] == [False, True]
    assert not any(EMPTY.has(ad) for ad in ads)
    assert not change(before, document(rows[1])).has(ads[0])


def test_a_table_let_go_is_freed_and_its_successor_unharmed() -> None:
    rows = [campaign(name, targeting={"placements": [place]}) for name, place in (("a", "side"), ("b", "foot"))]
    before = build_table(document(*rows), revision=1)
    changed = document({**rows[0], "weight": 7}, rows[1])
    after = change(before, changed)
    before.placements["foot"].drawing(1)
    shared, old = before.placements["foot"], before.campaigns["a"]
    steps = let_go(before, after)
    del before
    gc.disable()
    try:
        finish(steps)
        assert sys.getrefcount(old) == 2, "here and as an argument; without the garbage collector's help"
    finally:
        gc.enable()
    assert shared._drawings, "what a shared index remembers stays"
    assert describe(after) == describe(build_table(changed, revision=2))


def test_a_drawing_gives_each_creative_its_share_of_its_campaigns_weight() -> None:
    rows = [
        campaign("a", weight=3, creatives=[text_creative("a1", weight=1), text_creative("a2", weight=2)]),
        campaign("b", weight=1, creatives=[text_creative("b1", weight=9)]),
    ]
    index = build_table(document(*rows), revision=1).placements["side"]
    drawing = index.drawing(0b11)
    assert drawing is not None
    draws = 12_000
    picked: dict[str, int] = {}
    chances = {}
    for n in range(draws):
        ad, chance = drawing.pick(n / draws)
        picked[ad.creative.id] = picked.get(ad.creative.id, 0) + 1
        chances[ad.creative.id] = chance
    assert chances == {"a1": 0.25, "a2": 0.5, "b1": 0.25}
    assert {ad.creative.id: chance for ad, chance in drawing.chances()} == chances
    assert all(abs(picked[name] - draws * chance) <= 1 for name, chance in chances.items())
    for edge in (0.0, 0.75, 1.0 - 2**-53):
        assert drawing.pick(edge)[0].creative.id in picked


def test_structs_of_a_table_cost_the_garbage_collector_nothing() -> None:
    table = build_table(document(campaign("a")), revision=1)
    entrant = table.placements["side"].entrants[0]
    tree = [entrant, *entrant.ads, entrant.campaign, entrant.campaign.targeting, *entrant.campaign.creatives]
    assert isinstance(entrant, Entrant)
    assert isinstance(entrant.ads[0], Ad)
    assert isinstance(table.placements["side"].drawing(1), Drawing)
    assert not any(map(gc.is_tracked, tree))
