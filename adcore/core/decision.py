"""The decision: which creative answers this request, or why none does.

A pure function of the table, the facts of the request, the moment, the impression's id (which is also the draw), and
what has been delivered so far as three small sets of campaign ids. `explain` reads the same masks one campaign at a
time and names every reason.
"""

from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from adcore.core.adtable import Ad, AdTable, PlacementIndex
from adcore.core.calendar import Moment
from adcore.core.facts import Facts
from adcore.core.reason import Reason
from adcore.core.targeting import Dropped

Excluded = dict[str, Reason]

NOTHING: Mapping[str, Reason] = {}
NOBODY: frozenset[str] = frozenset()


class Decision(NamedTuple):
    """The ad to show and the probability with which it was chosen.

    `dropped` counts the other candidates by their first reason; `excluded` names those that only the counts kept
    outside the table (goals, caps, pacing, the page) kept back.
    """

    ad: Ad
    chance: float
    dropped: Dropped
    excluded: Excluded


class NoAd(NamedTuple):
    """No candidate was left; `reason` is the one that most of them fell to."""

    placement: str
    reason: Reason
    dropped: Dropped
    excluded: Excluded


class Candidate(msgspec.Struct, frozen=True, omit_defaults=True):
    """One campaign in an explanation: every reason against it, or its chance and that of each of its creatives."""

    campaign: str
    name: str
    priority: str
    eligible: bool
    chance: float = 0.0
    reasons: tuple[Reason, ...] = ()
    creatives: dict[str, float] = {}


class Explanation(msgspec.Struct, frozen=True):
    """What a request would get in one placement: the answer's reason if there is none, and every campaign."""

    placement: str
    revision: int
    filled: bool
    reason: Reason | None
    candidates: tuple[Candidate, ...]


def draw(impression_id: str) -> float:
    """The number in [0, 1) that an impression id stands for: its first 13 hex digits, 52 random bits."""
    return int(impression_id[:13], 16) / 0x10_0000_0000_0000


def decide(
    table: AdTable,
    placement_id: str,
    facts: Facts,
    moment: Moment,
    impression_id: str,
    *,
    held: Mapping[str, Reason] = NOTHING,
    capped: frozenset[str] = NOBODY,
    taken: frozenset[str] | set[str] = NOBODY,
) -> Decision | NoAd:
    """Choose for one placement.

    `held` maps campaigns to the reason their delivery counts give (see pacing.hold), `capped` are those at the
    user's frequency cap, `taken` those already on the page.
    """
    index = table.placements.get(placement_id)
    if index is None:
        return NoAd(placement_id, Reason.UNKNOWN_PLACEMENT, (), {})
    mask, dropped = index.match(facts, moment)
    excluded: Excluded = {}
    if held or capped or taken:
        mask, more = _keep_back(index, mask, held, capped, taken, excluded)
        dropped += more
    drawing = index.drawing(mask)
    if drawing is None:
        return NoAd(placement_id, main_reason(index, dropped), dropped, excluded)
    ad, chance = drawing.pick(draw(impression_id))
    return Decision(ad, chance, dropped + drawing.dropped, excluded)


def _keep_back(
    index: PlacementIndex,
    mask: int,
    held: Mapping[str, Reason],
    capped: frozenset[str],
    taken: frozenset[str] | set[str],
    excluded: Excluded,
) -> tuple[int, Dropped]:
    """Take out what the counts keep back; add each such campaign to `excluded` under its first reason."""
    counts: dict[Reason, int] = {}
    kept_back = mask & index.held_mask(held)
    for campaign_id in index.ids_in(kept_back):
        reason = excluded[campaign_id] = held[campaign_id]
        counts[reason] = counts.get(reason, 0) + 1
    mask ^= kept_back
    for reason, campaign_ids in ((Reason.FREQUENCY_CAP, capped), (Reason.ALREADY_ON_PAGE, taken)):
        kept_back = mask & index.mask_of(campaign_ids) if campaign_ids else 0
        if kept_back:
            excluded.update(dict.fromkeys(index.ids_in(kept_back), reason))
            counts[reason] = kept_back.bit_count()
            mask ^= kept_back
    return mask, tuple(counts.items())


def main_reason(index: PlacementIndex, dropped: Dropped) -> Reason:
    """The reason that most candidates fell to; among equals the one checked first."""
    if dropped:
        return max(dropped, key=lambda entry: entry[1])[0]
    absent = list(index.absent.values())
    return max(Reason, key=absent.count) if absent else Reason.NO_CAMPAIGNS


def explain(
    table: AdTable,
    placement_id: str,
    facts: Facts,
    moment: Moment,
    *,
    held: Mapping[str, Reason] = NOTHING,
    capped: frozenset[str] = NOBODY,
    taken: frozenset[str] | set[str] = NOBODY,
) -> Explanation:
    """What `decide` would do with these arguments: every campaign of the table with every reason or its chance."""
    index = table.placements.get(placement_id)
    if index is None:
        return Explanation(placement_id, table.revision, False, Reason.UNKNOWN_PLACEMENT, ())
    reasons: dict[str, list[Reason]] = {campaign.id: [] for campaign in index.campaigns}

    def refuse(reason: Reason, mask: int) -> None:
        for campaign_id in index.ids_in(mask):
            reasons[campaign_id].append(reason)

    everyone = index.targeting.everyone
    window = index.window_at(moment.time)
    refuse(Reason.NOT_STARTED, window.early)
    refuse(Reason.ENDED, window.late)
    for facet, accepting in index.targeting.accepting(facts, moment):
        refuse(facet, everyone & ~accepting)
    for campaign_id, why in held.items():
        if campaign_id in reasons:
            reasons[campaign_id].append(why)
    refuse(Reason.FREQUENCY_CAP, index.mask_of(capped))
    refuse(Reason.ALREADY_ON_PAGE, index.mask_of(taken))

    eligible = index.mask_of({campaign_id for campaign_id, against in reasons.items() if not against})
    drawing = index.drawing(eligible)
    chances: dict[str, dict[str, float]] = {}
    for ad, chance in drawing.chances() if drawing else ():
        chances.setdefault(ad.campaign.id, {})[ad.creative.id] = chance
    candidates = []
    for campaign in table.campaigns.values():
        against = reasons.get(campaign.id)
        if against is None:
            against = [index.absent.get(campaign.id) or _why_elsewhere(campaign.targeting.placements, placement_id)]
        of_creatives = chances.get(campaign.id, {})
        is_eligible = not against
        if is_eligible and not of_creatives:
            against = [Reason.LOWER_PRIORITY]
        candidates.append(
            Candidate(
                campaign.id,
                campaign.name,
                campaign.priority,
                is_eligible,
                sum(of_creatives.values()),
                tuple(against),
                of_creatives,
            )
        )
    filled = drawing is not None
    reason: Reason | None = None
    if not filled:
        answer = decide(table, placement_id, facts, moment, "0" * 32, held=held, capped=capped, taken=taken)
        assert isinstance(answer, NoAd)
        reason = answer.reason
    return Explanation(placement_id, table.revision, filled, reason, tuple(candidates))


def _why_elsewhere(wanted: tuple[str, ...], placement_id: str) -> Reason:
    # Not tried here at all: either it names other placements, or it has no creative of this placement's size.
    return Reason.PLACEMENT if wanted and placement_id not in wanted else Reason.SIZE
