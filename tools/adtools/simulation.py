"""The real decisions on traffic of another time, with a clock that the traffic moves.

The parts are the server's own: the table, `decide`, Counters (one for each process, which exchange what they have
counted once per interval), the frequency memory. Nothing here models what they do; `Pacing` is where perf/pacing puts
other methods in their place.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from adcore.core.adtable import AdTable, finish
from adcore.core.calendar import Calendar, Moment
from adcore.core.decision import Decision, decide, explain
from adcore.core.frequency import FrequencyMemory, Seen, campaign_key, capped
from adcore.core.reason import Reason
from adcore.counters import Counters
from adcore.counts import NOTHING, CounterState, figures
from adtools.traffic import Visit

TURN_S = 1.0
REFRESH_S = 5.0
HOUR_S = 3600


class Pacing(Protocol):
    """What the counts say about a request."""

    def held(self, visit: Visit, moment: Moment) -> Mapping[str, Reason]: ...

    def count(self, visit: Visit, campaign_id: str, moment: Moment) -> None: ...

    def click(self, visit: Visit, campaign_id: str, moment: Moment) -> None: ...

    def pass_time(self, moment: Moment) -> None:
        """Called each second."""


class Processes:
    """As many processes as serve the site, each with counts of its own, and with the others' as of the last exchange.

    A visit goes to the one that its impression id says.
    """

    def __init__(
        self,
        table: AdTable,
        calendar: Calendar,
        start: Moment,
        *,
        number: int = 1,
        refresh_s: float = REFRESH_S,
        delivered: CounterState | None = None,
    ) -> None:
        self._refresh_s = refresh_s
        self._exchange_time = start.time + refresh_s
        self._counters = [Counters(calendar) for _ in range(number)]
        self._own: list[CounterState] = [{} for _ in range(number)]
        """What each has told of itself."""
        if delivered:
            self._counters[0].restore(delivered)
        self._exchange(start)
        for counters in self._counters:
            counters.use(table, start)

    def held(self, visit: Visit, moment: Moment) -> Mapping[str, Reason]:
        return self._of(visit).held

    def count(self, visit: Visit, campaign_id: str, moment: Moment) -> None:
        counters = self._of(visit)
        counters.count_impression(counters.of(campaign_id), moment.day, moment.time)

    def click(self, visit: Visit, campaign_id: str, moment: Moment) -> None:
        self._of(visit).count_click(self._of(visit).of(campaign_id), moment)

    def pass_time(self, moment: Moment) -> None:
        if moment.time >= self._exchange_time:
            self._exchange(moment)
            self._exchange_time = moment.time + self._refresh_s
        for counters in self._counters:
            counters.turn(moment)

    def _of(self, visit: Visit) -> Counters:
        return self._counters[int(visit.impression_id[-6:], 16) % len(self._counters)]

    def _exchange(self, moment: Moment) -> None:
        if len(self._counters) < 2:
            return
        changed: set[str] = set()
        for own, counters in zip(self._own, self._counters, strict=True):
            for part in finish(counters.untold()):
                own.update(part)
                changed.update(part)
        for own, counters in zip(self._own, self._counters, strict=True):
            others = [other for other in self._own if other is not own]
            counters.take_in({campaign: _sum(campaign, others) for campaign in sorted(changed)}, moment)


def _sum(campaign: str, states: Iterable[CounterState]) -> tuple[int, int, int, int, int]:
    """Of several days the latest one's counts are today's."""
    counts = [state.get(campaign, NOTHING) for state in states]
    day = max(of_day for _, _, of_day, _, _ in counts)
    impressions, clicks, impressions_today, clicks_today = map(
        sum, zip(*(figures(one, day) for one in counts), strict=True)
    )
    return impressions, clicks, day, impressions_today, clicks_today


class Outcome:
    """What was delivered, and what could have been."""

    def __init__(self, start: float) -> None:
        self.start = start
        self.end = start
        self.requests = 0
        self.filled = 0
        self.delivered: Counter[str] = Counter()
        self.clicks: Counter[str] = Counter()
        self.by_day: Counter[tuple[str, int]] = Counter()
        """By campaign and local day."""
        self.by_hour: Counter[tuple[str, int]] = Counter()
        """By campaign and hour since the start."""
        self.creatives: Counter[str] = Counter()
        self.supply: Counter[tuple[str, int, int]] = Counter()
        """Requests without invalid traffic, by placement, the mask of campaigns that dates and targeting let in, and
        hour since the start."""
        self.explained = 0
        self.reasons: dict[str, dict[Reason, float]] = {}
        """Of the requests that were explained, by campaign and the first reason why it was not shown."""

    def hour_at(self, time: float) -> int:
        return int((time - self.start) // HOUR_S)

    def kinds(self) -> Counter[tuple[str, int]]:
        """The supply of all hours together."""
        total: Counter[tuple[str, int]] = Counter()
        for (placement, mask, _), count in self.supply.items():
            total[placement, mask] += count
        return total


def simulate(
    table: AdTable,
    visits: Iterable[Visit],
    calendar: Calendar,
    pacing: Callable[[Moment], Pacing],
    *,
    clicks: Callable[[Visit, str], bool] = lambda visit, creative: False,
    explain_every: int = 0,
) -> Outcome | None:
    """Decide every visit, in order; None when there is none.

    `clicks` says who clicks what. Each `explain_every`th request is explained.
    """
    outcome: Outcome | None = None
    memory = FrequencyMemory()
    turn_time = 0.0
    for visit in visits:
        moment = calendar.moment(visit.time)
        if outcome is None:
            outcome = Outcome(visit.time)
            paced = pacing(moment)
            turn_time = visit.time + TURN_S
        while turn_time <= visit.time:
            paced.pass_time(calendar.moment(turn_time))
            # A log may have gaps of days, in which nothing depends on each second.
            turn_time += TURN_S if visit.time - turn_time < HOUR_S else HOUR_S / 2
        outcome.requests += 1
        outcome.end = visit.time
        if explain_every and outcome.requests % explain_every == 0:
            _explain(table, visit, moment, paced, outcome)
        _decide(table, visit, moment, paced, memory, outcome, clicks)
    return outcome


def _decide(
    table: AdTable,
    visit: Visit,
    moment: Moment,
    paced: Pacing,
    memory: FrequencyMemory,
    outcome: Outcome,
    clicks: Callable[[Visit, str], bool],
) -> None:
    placement, facts = visit.placement, visit.facts
    index = table.placements.get(placement)
    if index is not None and not facts.bot:
        outcome.supply[placement, index.match(facts, moment)[0], outcome.hour_at(visit.time)] += 1
    over_cap: frozenset[str] = frozenset()
    if visit.user:
        over_cap = capped(memory.history(visit.user), table.caps, visit.time)
    answer = decide(
        table, placement, facts, moment, visit.impression_id, held=paced.held(visit, moment), capped=over_cap
    )
    if not isinstance(answer, Decision):
        return
    outcome.filled += 1
    if facts.bot:
        return
    campaign = answer.ad.campaign
    paced.count(visit, campaign.id, moment)
    outcome.delivered[campaign.id] += 1
    outcome.by_day[campaign.id, moment.day] += 1
    outcome.by_hour[campaign.id, outcome.hour_at(visit.time)] += 1
    outcome.creatives[answer.ad.creative.id] += 1
    if visit.user and campaign.frequency_cap is not None:
        memory.record(visit.user, Seen(campaign_key(campaign.id), int(visit.time), 1), table.caps, visit.time)
    if clicks(visit, answer.ad.creative.id):
        outcome.clicks[campaign.id] += 1
        paced.click(visit, campaign.id, moment)


def _explain(table: AdTable, visit: Visit, moment: Moment, paced: Pacing, outcome: Outcome) -> None:
    explanation = explain(table, visit.placement, visit.facts, moment, held=paced.held(visit, moment))
    outcome.explained += 1
    for candidate in explanation.candidates:
        if candidate.chance < 1:
            reason = candidate.reasons[0] if candidate.reasons else Reason.LOST_DRAW
            reasons = outcome.reasons.setdefault(candidate.campaign, {})
            reasons[reason] = reasons.get(reason, 0.0) + 1 - candidate.chance
