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


class Eligible:
    """Who may be shown in one placement, before the draw.

    `drawing` is the choice, None when nobody is left; `dropped` and `excluded` are those of the answer.
    """

    __slots__ = (
        "_behind",
        "_dropped",
        "_held",
        "_index",
        "_mask",
        "_matching",
        "_placement",
        "drawing",
        "dropped",
        "excluded",
    )

    def __init__(
        self,
        placement: str,
        index: PlacementIndex | None,
        matching: int,
        mask: int,
        behind: int,
        dropped: Dropped,
        held: Excluded,
    ) -> None:
        self._placement = placement
        self._index = index
        self._matching = matching
        """With those who are held back."""
        self._mask = mask
        self._behind = behind
        """Who goes first in their tier."""
        self._dropped = self.dropped = dropped
        self._held = self.excluded = held
        if index is None:
            self.drawing = None
            return
        yielding = index.yielding(mask, behind) if behind & mask else 0
        if yielding:
            self.excluded = held | dict.fromkeys(index.ids_in(yielding), Reason.OTHERS_BEHIND)
            self.dropped += ((Reason.OTHERS_BEHIND, yielding.bit_count()),)
            mask ^= yielding
        self.drawing = index.drawing(mask)
        if self.drawing is not None:
            self.dropped += self.drawing.dropped

    def without(self, capped: frozenset[str], taken: frozenset[str] | set[str]) -> "Eligible":
        """Those who are neither at the user's frequency cap nor already on the page."""
        index = self._index
        if index is None or not (capped or taken):
            return self
        mask, dropped = self._mask, self._dropped
        held = dict(self._held)
        for reason, campaign_ids in ((Reason.FREQUENCY_CAP, capped), (Reason.ALREADY_ON_PAGE, taken)):
            kept_back = mask & index.mask_of(campaign_ids) if campaign_ids else 0
            if kept_back:
                held.update(dict.fromkeys(index.ids_in(kept_back), reason))
                dropped += ((reason, kept_back.bit_count()),)
                mask ^= kept_back
        if mask == self._mask:
            return self
        return Eligible(self._placement, index, mask, mask, self._behind, dropped, held)

    def holds_for(self, held: Mapping[str, Reason]) -> bool:
        """Whether `find_eligible` would find the same with `held`, and all else as it was."""
        index = self._index
        if index is None:
            return True
        back, behind = index.standing_masks(held)
        return (
            self._matching & back == self._matching ^ self._mask
            # Also of those in a lower tier, which is next when a visitor has seen enough of the first.
            and not (behind ^ self._behind) & self._mask
            and all(held[campaign_id] is reason for campaign_id, reason in self._held.items())
        )

    def refuse(self) -> NoAd:
        """The answer when there is no drawing."""
        reason = Reason.UNKNOWN_PLACEMENT if self._index is None else main_reason(self._index, self.dropped)
        return NoAd(self._placement, reason, self.dropped, self.excluded)


def draw(impression_id: str | bytes) -> float:
    """The number in [0, 1) that an impression id stands for: its first 13 hex digits, 52 random bits."""
    return int(impression_id[:13], 16) / 0x10_0000_0000_0000


def find_eligible(
    table: AdTable, placement_id: str, facts: Facts, moment: Moment, held: Mapping[str, Reason] = NOTHING
) -> Eligible:
    """Those whom dates, targeting and delivery counts let through.

    `held` maps campaigns to what their delivery counts say (see pacing.standing). The answer is the same for every
    moment of an hour in which no campaign of the placement starts or ends.
    """
    index = table.placements.get(placement_id)
    if index is None:
        return Eligible(placement_id, None, 0, 0, 0, (), {})
    mask, dropped = index.match(facts, moment)
    back, behind = index.standing_masks(held) if held else (0, 0)
    kept_back = mask & back
    if not kept_back:
        return Eligible(placement_id, index, mask, mask, behind, dropped, {})
    excluded = {campaign_id: held[campaign_id] for campaign_id in index.ids_in(kept_back)}
    counts: dict[Reason, int] = {}
    for reason in excluded.values():
        counts[reason] = counts.get(reason, 0) + 1
    return Eligible(placement_id, index, mask, mask ^ kept_back, behind, dropped + tuple(counts.items()), excluded)


def decide(
    table: AdTable,
    placement_id: str,
    facts: Facts,
    moment: Moment,
    impression_id: str | bytes,
    *,
    held: Mapping[str, Reason] = NOTHING,
    capped: frozenset[str] = NOBODY,
    taken: frozenset[str] | set[str] = NOBODY,
) -> Decision | NoAd:
    """Choose for one placement.

    `held` maps campaigns to what their delivery counts say (see pacing.standing), `capped` are those at the
    user's frequency cap, `taken` those already on the page.
    """
    eligible = find_eligible(table, placement_id, facts, moment, held).without(capped, taken)
    if eligible.drawing is None:
        return eligible.refuse()
    ad, chance = eligible.drawing.pick(draw(impression_id))
    return Decision(ad, chance, eligible.dropped, eligible.excluded)


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
        if campaign_id in reasons and why is not Reason.BEHIND_SCHEDULE:
            reasons[campaign_id].append(why)
    refuse(Reason.FREQUENCY_CAP, index.mask_of(capped))
    refuse(Reason.ALREADY_ON_PAGE, index.mask_of(taken))

    eligible = index.mask_of({campaign_id for campaign_id, against in reasons.items() if not against})
    yielding = index.yielding(eligible, index.standing_masks(held)[1])
    drawing = index.drawing(eligible ^ yielding)
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
            yields = yielding >> index.positions[campaign.id] & 1
            against = [Reason.OTHERS_BEHIND if yields else Reason.LOWER_PRIORITY]
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
