"""What was decided, looked at again: from a table, and what a record of the log says of the request.

A record names the campaigns that only counts kept outside the table held back (`excluded`), so the decision needs
nothing else. `decide_again` makes it, `first_reasons` says what each other candidate fell to, and `explain_again` is
`explain` for that moment.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from adcore.core.adtable import AdTable, PlacementIndex
from adcore.core.calendar import Moment
from adcore.core.decision import NOBODY, NOTHING, Eligible, Explanation, explain, find_eligible
from adcore.core.facts import Facts
from adcore.core.reason import Reason

_OF_THE_VISITOR = (Reason.FREQUENCY_CAP, Reason.ALREADY_ON_PAGE)
_NEVER_HELD: tuple[Mapping[str, Reason], frozenset[str], frozenset[str]] = NOTHING, NOBODY, NOBODY


class Past(NamedTuple):
    """One slot of a request that was answered."""

    placement: str
    facts: Facts
    moment: Moment
    excluded: Mapping[str, str]
    """Campaigns that the counts kept back then, and why; a reason that is unknown here is a ValueError."""


def decide_again(table: AdTable, past: Past) -> Eligible:
    """Who could be shown then; what was shown follows from the impression's id, as in `decide`."""
    held, capped, taken = _kept_back(past.excluded)
    eligible = find_eligible(table, past.placement, past.facts, past.moment, held)
    return eligible.without(capped, taken) if capped or taken else eligible


def explain_again(table: AdTable, past: Past) -> Explanation:
    """Every campaign of the table with every reason against it then, or its chance."""
    held, capped, taken = _kept_back(past.excluded)
    return explain(table, past.placement, past.facts, past.moment, held=held, capped=capped, taken=taken)


def first_reasons(table: AdTable, past: Past) -> dict[str, Reason]:
    """The first reason against each candidate of the placement; of those in the draw LOST_DRAW, the winner's too."""
    index = table.placements.get(past.placement)
    if index is None:
        return {}
    reasons = dict(index.absent)
    for reason, mask in fallen(index, past):
        reasons.update(dict.fromkeys(index.ids_in(mask), reason))
    return reasons


def fallen(index: PlacementIndex, past: Past) -> Iterator[tuple[Reason, int]]:
    """The same as masks of the index's campaigns, without those that it has as absent: for many answers at once."""
    window = index.window_at(past.moment.time)
    yield Reason.NOT_STARTED, window.early
    yield Reason.ENDED, window.late
    left = window.running
    for facet, accepting in index.targeting.accepting(past.facts, past.moment):
        yield facet, left & ~accepting
        left &= accepting
    for campaign_id, why in past.excluded.items():
        position = index.positions.get(campaign_id)
        if position is not None and left >> position & 1:
            yield Reason(why), 1 << position
            left ^= 1 << position
    live = next((left & tier for tier in index.tiers if left & tier), 0)
    yield Reason.LOWER_PRIORITY, left ^ live
    yield Reason.LOST_DRAW, live


def _kept_back(excluded: Mapping[str, str]) -> tuple[Mapping[str, Reason], frozenset[str], frozenset[str]]:
    """As `decide` takes them: held, capped, taken."""
    if not excluded:
        return _NEVER_HELD
    held = {campaign_id: Reason(why) for campaign_id, why in excluded.items()}
    capped, taken = (frozenset(name for name, why in held.items() if why is reason) for reason in _OF_THE_VISITOR)
    for name in capped | taken:
        del held[name]
    return held, capped, taken
