"""What is decided again is what was decided, and first reasons are the first of those that `explain` gives."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adcore.core.calendar import Moment
from adcore.core.decision import Decision, decide
from adcore.core.facts import Facts
from adcore.core.hindsight import Past, decide_again, explain_again, first_reasons
from adcore.core.reason import Reason
from tests.core.test_decision import (
    CAMPAIGN_IDS,
    FACTS,
    MOMENTS,
    campaign,
    facts,
    impression_id,
    inventories,
    moment,
    table,
)


@settings(max_examples=150, deadline=None)
@given(inventories(), FACTS, MOMENTS, CAMPAIGN_IDS, CAMPAIGN_IDS, CAMPAIGN_IDS, st.integers(0, 2**64))
def test_a_record_says_enough(
    campaigns: list[dict[str, Any]],
    asked: Facts,
    at: Moment,
    held_ids: set[str],
    capped: set[str],
    taken: set[str],
    seed: int,
) -> None:
    built = table(*campaigns)
    held = dict.fromkeys(held_ids, Reason.AHEAD_OF_SCHEDULE)
    for name, index in built.placements.items():
        answer = decide(built, name, asked, at, impression_id(seed), held=held, capped=frozenset(capped), taken=taken)
        past = Past(name, asked, at, {campaign_id: str(why) for campaign_id, why in answer.excluded.items()})
        again = decide_again(built, past)
        assert again.excluded == answer.excluded
        shown = None
        if isinstance(answer, Decision):
            assert again.drawing is not None
            assert again.drawing.pick(float.fromhex("0x0." + impression_id(seed)[:13])) == (answer.ad, answer.chance)
            shown = answer.ad.campaign.id
        else:
            assert again.refuse() == answer

        explained = {candidate.campaign: candidate for candidate in explain_again(built, past).candidates}
        firsts = first_reasons(built, past)
        assert firsts.keys() == {*index.positions, *index.absent}
        for campaign_id, first in firsts.items():
            candidate = explained[campaign_id]
            assert first == (candidate.reasons[0] if candidate.reasons else Reason.LOST_DRAW)
            assert (first is Reason.LOST_DRAW) == (candidate.chance > 0)
        assert shown is None or firsts[shown] is Reason.LOST_DRAW


def test_a_placement_that_is_not_there_has_no_candidates() -> None:
    past = Past("nowhere", facts(), moment(), {})
    built = table(campaign("a"))
    assert first_reasons(built, past) == {}
    assert decide_again(built, past).refuse().reason is Reason.UNKNOWN_PLACEMENT


def test_a_reason_that_there_is_not_is_an_error() -> None:
    built = table(campaign("a"))
    for function in (decide_again, first_reasons, explain_again):
        with pytest.raises(ValueError, match="whim"):
            function(built, Past("side", facts(), moment(), {"a": "whim"}))
