"""What other weights would have earned, from a log of those that were used: inverse propensity scoring.

An impression counts as often as the other inventory would have shown the same ad to the same request, divided by how
often the one in use did (`chance` in its record): Horvitz and Thompson (1952). The rate of rewards is the
self-normalised estimate (Swaminathan and Joachims, 2015), which is less shaken by a few large quotients. Both intervals
are normal ones of 95 %.

Where the other inventory shows ads that could not have been shown then, a log can't say what they would have earned:
`coverage` is the part that it can speak of. Requests that got nothing then stay requests: if they would get an ad now,
it is part of what is not covered. Counts (goals, caps, pacing) are those of the time, not what they would have become.
"""

import math
from collections import Counter
from typing import NamedTuple

from adcore.core.adtable import Drawing

# The normal distribution's quantile at 97.5 %.
Z_95 = 1.959963984540054
# Pairs of choices whose chances are not added up yet; each holds on to its table.
PAIRS_MAX = 4096


class Estimate(NamedTuple):
    """A value with the bounds of its 95 % interval."""

    value: float
    low: float
    high: float


class Sums:
    """Of the weights of rewarded impressions, and their squares."""

    __slots__ = ("squares", "weights")

    def __init__(self) -> None:
        self.weights = 0.0
        self.squares = 0.0

    def add(self, weight: float) -> None:
        self.weights += weight
        self.squares += weight * weight

    def total(self, requests: int) -> Estimate:
        """Of the weights, over independent requests of which most add nothing."""
        deviation = math.sqrt(max(0.0, self.squares - self.weights**2 / requests)) if requests else 0.0
        return _interval(self.weights, deviation)


class OfCampaign:
    """What a campaign had then, and would have had."""

    __slots__ = ("impressions", "impressions_then", "rewarded", "rewards_then")

    def __init__(self) -> None:
        self.impressions_then = 0
        self.rewards_then = 0
        self.impressions = 0.0
        """Expected. No estimate: the chances are known."""
        self.rewarded = Sums()


class Weighting:
    """Adds up a log."""

    def __init__(self) -> None:
        self.requests = 0
        self.impressions_then = 0
        self.rewards_then = 0
        self._campaigns: dict[str, OfCampaign] = {}
        self._shown = Sums()
        self._rewarded = Sums()
        self._covered = self._filled = 0.0
        self._pairs: Counter[tuple[Drawing | None, Drawing]] = Counter()
        """The choice then and the other one, with how often, until their chances are added up."""
        self._chances: dict[Drawing, dict[str, float]] = {}
        """By creative, of the other choices among these pairs."""

    def add_unfilled(self, other: Drawing | None) -> None:
        """A slot that got nothing."""
        self._add_request(None, other)

    def add_impression(
        self, then: Drawing, other: Drawing | None, campaign: str, creative: str, chance: float, rewarded: bool
    ) -> None:
        """A slot that got an ad, which `then` gave it with this chance, and whether it was rewarded."""
        self._add_request(then, other)
        weight = 0.0 if other is None else self._chances_of(other).get(creative, 0.0) / chance
        self.impressions_then += 1
        self._shown.add(weight)
        there = self._of(campaign)
        there.impressions_then += 1
        if rewarded:
            self.rewards_then += 1
            there.rewards_then += 1
            self._rewarded.add(weight)
            there.rewarded.add(weight)

    @property
    def campaigns(self) -> dict[str, OfCampaign]:
        self._add_up()
        return self._campaigns

    @property
    def impressions(self) -> float:
        """What the other inventory would have shown."""
        self._add_up()
        return self._filled

    @property
    def coverage(self) -> float:
        """The part of that which the log can speak of."""
        self._add_up()
        return self._covered / self._filled if self._filled else 0.0

    @property
    def sample_size(self) -> float:
        """The effective one (Kish, 1965): an estimate from this many impressions of the other choice is as good."""
        return self._shown.weights**2 / self._shown.squares if self._shown.squares else 0.0

    def rewards(self) -> Estimate:
        return self._rewarded.total(self.requests)

    def rate(self) -> Estimate:
        """Rewards per impression, self-normalised; the interval is that of the delta method."""
        shown, rewarded = self._shown, self._rewarded
        if not shown.weights:
            return Estimate(0.0, 0.0, 0.0)
        rate = rewarded.weights / shown.weights
        # The sum of w² (r - rate)², where r is 0 or 1.
        squares = rewarded.squares * (1 - 2 * rate) + rate**2 * shown.squares
        return _interval(rate, math.sqrt(max(0.0, squares)) / shown.weights)

    def _add_request(self, then: Drawing | None, other: Drawing | None) -> None:
        self.requests += 1
        if other is not None:
            self._pairs[then, other] += 1
            if len(self._pairs) >= PAIRS_MAX:
                self._add_up()

    def _chances_of(self, other: Drawing) -> dict[str, float]:
        chances = self._chances.get(other)
        if chances is None:
            chances = self._chances[other] = {ad.creative.id: chance for ad, chance in other.chances()}
        return chances

    def _of(self, campaign: str) -> OfCampaign:
        there = self._campaigns.get(campaign)
        if there is None:
            there = self._campaigns[campaign] = OfCampaign()
        return there

    def _add_up(self) -> None:
        for (then, other), requests in self._pairs.items():
            possible = set() if then is None else {ad.creative.id for ad, _ in then.chances()}
            for ad, chance in other.chances():
                self._of(ad.campaign.id).impressions += chance * requests
                if ad.creative.id in possible:
                    self._covered += chance * requests
            self._filled += requests
        self._pairs.clear()
        self._chances.clear()


def _interval(value: float, deviation: float) -> Estimate:
    return Estimate(value, max(0.0, value - Z_95 * deviation), value + Z_95 * deviation)
