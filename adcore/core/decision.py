"""The decision: which creative answers this request, or why none does.

A pure function of the table, the facts of the request, the moment, the impression's id (which is also the draw), and
what has been delivered so far as three small sets of campaign ids. `explain` reads the same masks one campaign at a
time and names every reason.
"""

from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from adcore.core.adtable import NOBODY_STANDS, Ad, AdTable, KeptBack, PlacementIndex, Standing
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
        "_dropped",
        "_index",
        "_kept_back",
        "_mask",
        "_matching",
        "_placement",
        "_standing",
        "_yielding",
        "drawing",
        "dropped",
    )

    def __init__(
        self,
        placement: str,
        index: PlacementIndex | None,
        matching: int,
        mask: int,
        standing: Standing,
        dropped: Dropped,
        kept_back: KeptBack = (),
        *,
        is_common: bool = True,
    ) -> None:
        """`is_common` says whether others are likely to get the same."""
        self._placement = placement
        self._index = index
        self._matching = matching
        """With those who are held back."""
        self._mask = mask
        self._standing = standing
        self._dropped = self.dropped = dropped
        self._kept_back = kept_back
        """By counts outside the table; thousands, so that they are named only where they are wanted."""
        self._yielding = 0
        if index is None:
            self.drawing = None
            return
        behind = standing.behind
        self._yielding = yielding = index.yielding(mask, behind) if behind & mask else 0
        if yielding:
            self.dropped += ((Reason.OTHERS_BEHIND, yielding.bit_count()),)
            mask ^= yielding
        self.drawing = index.drawing(mask, is_common=is_common)
        if self.drawing is not None:
            self.dropped += self.drawing.dropped

    @property
    def excluded(self) -> Excluded:
        excluded: Excluded = {}
        index = self._index
        if index is not None and self._kept_back:
            for reason, some in self._kept_back:
                excluded.update(dict.fromkeys(index.ids_in(some), reason))
        if index is not None and self._yielding:
            excluded.update(dict.fromkeys(index.ids_in(self._yielding), Reason.OTHERS_BEHIND))
        return excluded

    def without(self, capped: frozenset[str], taken: frozenset[str] | set[str]) -> "Eligible":
        """Those who are neither at the user's frequency cap nor already on the page."""
        index = self._index
        if index is None or not (capped or taken):
            return self
        mask, dropped, kept_back = self._mask, self._dropped, self._kept_back
        for reason, campaign_ids in ((Reason.FREQUENCY_CAP, capped), (Reason.ALREADY_ON_PAGE, taken)):
            some = mask & index.mask_of(campaign_ids) if campaign_ids else 0
            if some:
                kept_back += ((reason, some),)
                dropped += ((reason, some.bit_count()),)
                mask ^= some
        if mask == self._mask:
            return self
        return Eligible(self._placement, index, mask, mask, self._standing, dropped, kept_back, is_common=False)

    def holds_for(self, held: Mapping[str, Reason]) -> bool:
        """Whether `find_eligible` would find the same with `held`, and all else as it was."""
        index = self._index
        if index is None:
            return True
        standing = index.standing(held)
        return standing is self._standing or (
            standing.held_of(self._matching) == self._standing.held_of(self._matching)
            # Also of those in a lower tier, which is next when a visitor has seen enough of the first.
            and not (standing.behind ^ self._standing.behind) & self._mask
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
        return Eligible(placement_id, None, 0, 0, NOBODY_STANDS, ())
    mask, dropped = index.match(facts, moment)
    standing = index.standing(held) if held else NOBODY_STANDS
    if not standing.held:
        return Eligible(placement_id, index, mask, mask, standing, dropped)
    kept_back = standing.held_of(mask)
    left = mask
    for reason, some in kept_back:
        dropped += ((reason, some.bit_count()),)
        left ^= some
    return Eligible(placement_id, index, mask, left, standing, dropped, kept_back)


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
    yielding = index.yielding(eligible, index.standing(held).behind)
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
