"""Other ways to spread delivery, in the place of the server's counts: what was published, and steps on the way to ours.

Each says for a request whom it holds back, and the server's own decision does the rest.
"""

from collections import Counter
from collections.abc import Mapping
from hashlib import blake2b

from adcore.core.adtable import AdTable, bits
from adcore.core.calendar import Calendar, Moment
from adcore.core.inventory import Campaign
from adcore.core.pacing import Line
from adcore.core.reason import Reason
from adtools.forecast import flight_line
from adtools.simulation import Processes
from adtools.traffic import Visit

MINUTE_S = 60
Supply = Mapping[tuple[str, int], int]


class HoldOnly(Processes):
    """Nobody goes first: who is ahead of the line waits, and the weights do the rest."""

    def held(self, visit: Visit, moment: Moment) -> Mapping[str, Reason]:
        held = super().held(visit, moment)
        return {name: reason for name, reason in held.items() if reason is not Reason.BEHIND_SCHEDULE}


class _Throttled:
    """Each campaign takes part in a request with a probability of its own, which is set once a minute."""

    def __init__(self, table: AdTable, calendar: Calendar, start: Moment) -> None:
        self._goals: dict[str, int] = {}
        self._lines: dict[str, Line] = {}
        for campaign in table.limited.values():
            line = flight_line(campaign, calendar, start.time)
            if line is not None:
                self._goals[campaign.id] = _impressions(campaign)
                self._lines[campaign.id] = line
        self._delivered: Counter[str] = Counter()
        self._chance = dict.fromkeys(self._goals, 0.1)
        self._next = start.time + MINUTE_S

    def held(self, visit: Visit, moment: Moment) -> Mapping[str, Reason]:
        return {
            name: Reason.AHEAD_OF_SCHEDULE
            for name, goal in self._goals.items()
            if self._delivered[name] >= goal or _uniform(visit, name) >= self._chance[name]
        }

    def count(self, visit: Visit, campaign_id: str, moment: Moment) -> None:
        self._delivered[campaign_id] += 1

    def click(self, visit: Visit, campaign_id: str, moment: Moment) -> None:
        pass

    def pass_time(self, moment: Moment) -> None:
        while moment.time >= self._next:
            for name, line in self._lines.items():
                due = self._goals[name] * line.share(self._next)
                self._chance[name] = self._set(self._chance[name], due, self._delivered[name], self._goals[name])
            self._next += MINUTE_S

    def _set(self, chance: float, due: float, delivered: int, goal: int) -> float:
        raise NotImplementedError


class Multiplicative(_Throttled):
    """Agarwal, Ghosh, Wei and You, "Budget Pacing for Targeted Online Advertisements at LinkedIn", KDD 2014."""

    def _set(self, chance: float, due: float, delivered: int, goal: int) -> float:
        return max(1e-4, chance * 0.9) if delivered > due else min(1.0, chance * 1.1)


class Proportional(_Throttled):
    """Proportional feedback within a dead band, after the abstract of arXiv 2509.25429; the gains are our own."""

    GAIN = 20.0
    BAND = 0.002

    def _set(self, chance: float, due: float, delivered: int, goal: int) -> float:
        error = (due - delivered) / goal
        if abs(error) <= self.BAND:
            return chance
        return min(1.0, max(1e-4, chance * (1 + max(-0.5, min(0.5, self.GAIN * error)))))


class HighWaterMark:
    """Chen, Ma, Mandalapu et al., "Ad Serving Using a Compact Allocation Plan", arXiv 1203.3593.

    Campaigns in the order of how many requests let them in, each with the rate that fills it from what those before it
    leave. Its forecast is better than anybody's: the same visitors, without the day's drops and spikes.
    """

    def __init__(self, table: AdTable, calendar: Calendar, start: Moment, forecast: Supply) -> None:
        self._table = table
        self._calendar = calendar
        self._goals = {name: _impressions(campaign) for name, campaign in table.limited.items()}
        self._delivered: Counter[str] = Counter()
        kinds: dict[str, list[tuple[str, int]]] = {}
        for placement, mask in forecast:
            index = table.placements[placement]
            for position in bits(mask):
                kinds.setdefault(index.campaigns[position].id, []).append((placement, mask))
        supply = {name: sum(forecast[kind] for kind in mine) for name, mine in kinds.items()}
        self._order = sorted(self._goals, key=lambda name: supply.get(name, 0))
        self._rates: dict[str, float] = {}
        left = dict.fromkeys(forecast, 1.0)
        for name in self._order:
            mine = kinds.get(name, [])
            low, high = 0.0, 1.0
            for _ in range(30):
                rate = (low + high) / 2
                gets = sum(forecast[kind] * min(left[kind], rate) for kind in mine)
                low, high = (rate, high) if gets < self._goals[name] else (low, rate)
            self._rates[name] = high
            for kind in mine:
                left[kind] = max(0.0, left[kind] - high)

    def held(self, visit: Visit, moment: Moment) -> Mapping[str, Reason]:
        index = self._table.placements[visit.placement]
        mask = index.match(visit.facts, moment)[0]
        draw = _uniform(visit, "")
        chosen = None
        for name in self._order:
            position = index.positions.get(name)
            if position is None or not mask >> position & 1:
                continue
            draw -= self._rates[name]
            if draw < 0:
                chosen = name if self._delivered[name] < self._goals[name] else None
                break
        return {name: Reason.AHEAD_OF_SCHEDULE for name in self._order if name != chosen}

    def count(self, visit: Visit, campaign_id: str, moment: Moment) -> None:
        self._delivered[campaign_id] += 1

    def click(self, visit: Visit, campaign_id: str, moment: Moment) -> None:
        pass

    def pass_time(self, moment: Moment) -> None:
        pass


def _impressions(campaign: Campaign) -> int:
    assert campaign.goal is not None
    return campaign.goal.impressions or 0


def _uniform(visit: Visit, name: str) -> float:
    """A number in [0, 1) of the request and the campaign alone, as a server without state would take it."""
    digest = blake2b(name.encode(), key=visit.impression_id.encode(), digest_size=6).digest()
    return int.from_bytes(digest) / 2**48
