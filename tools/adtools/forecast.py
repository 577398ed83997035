"""What a simulation says about each campaign: delivered against what was wanted, and against its line, hour by hour."""

from collections import Counter
from typing import NamedTuple

from adcore.core.adtable import AdTable
from adcore.core.calendar import Calendar
from adcore.core.inventory import Campaign
from adcore.core.pacing import Line
from adcore.counts import NOTHING, CounterState
from adtools.deliverable import deliverable
from adtools.simulation import HOUR_S, Outcome

DAY_S = 86_400
# Who is within this part of the goal, or one impression, has delivered it; and of its line, is on it.
GOAL_TOLERANCE = 0.01
LINE_TOLERANCE = 0.1


class Forecast(NamedTuple):
    """One campaign."""

    campaign: str
    delivered: int
    clicks: int
    wanted: int | None
    """Impressions of the goal that fall into the simulated time; None without such a goal."""
    share: float | None
    """delivered / wanted"""
    deliverable: bool | None
    """Whether the traffic has enough for it and for all that it competes with; None where that was not worked out."""
    over_cap: int
    """By how many impressions the daily cap was passed, on the worst day."""
    hours_off: list[int]
    """The hours since the start at whose end it was more than a tenth, and more than one impression, off its line."""
    reasons: dict[str, float]
    """Why it was not shown: the part of the requests of the whole site that fell to each first reason."""


class Totals(NamedTuple):
    """All campaigns with a goal that can be delivered in full (or all, where that was not worked out)."""

    requests: int
    filled: int
    campaigns: int
    full: float
    """The part of them that ended within 1 % of their goal, or one impression."""
    on_line: float
    """The part of them that was on its line at the end of the worst hour."""
    always_on_line: float
    """The part of them that was on its line at the end of every hour."""
    over_cap: int
    """Of any campaign at all."""


def flight_line(campaign: Campaign, calendar: Calendar, near: float) -> Line | None:
    """The line of the campaign's goal; None if it has none."""
    if campaign.goal is None or campaign.starts_at is None or campaign.ends_at is None or campaign.pacing != "even":
        return None
    moment = calendar.moment(near)
    midnight = moment.weekday, calendar.day_bounds(moment)[0]
    return Line(campaign.forecast, midnight, campaign.starts_at.timestamp(), campaign.ends_at.timestamp())


def on_schedule(table: AdTable, calendar: Calendar, start: float) -> CounterState:
    """Counts with which every campaign with a line is on it at `start`: what an earlier start would have left."""
    state: CounterState = {}
    for campaign in table.limited.values():
        line = flight_line(campaign, calendar, start)
        if line is not None and campaign.goal is not None:
            share = line.share(start)
            impressions = round((campaign.goal.impressions or 0) * share)
            state[campaign.id] = impressions, round((campaign.goal.clicks or 0) * share), 0, 0, 0
    return state


def forecasts(
    table: AdTable, outcome: Outcome, calendar: Calendar, before: CounterState, *, bound: bool
) -> tuple[list[Forecast], Totals]:
    """Each campaign of the table, in its order. `bound`: work out what can be delivered (takes scipy)."""
    wanted = {
        campaign.id: wanted
        for campaign in table.limited.values()
        if (wanted := _wanted(campaign, outcome, calendar, before)) is not None
    }
    within_cap = {name: min(number, _cap(table.limited[name], outcome)) for name, number in wanted.items()}
    can = deliverable(table, outcome.kinds(), within_cap) if bound else None
    if can is not None:
        can = {name for name in can if within_cap[name] == wanted[name]}
    found = []
    for campaign in table.campaigns.values():
        number = wanted.get(campaign.id)
        delivered = outcome.delivered[campaign.id]
        reasons = outcome.reasons.get(campaign.id, {})
        found.append(
            Forecast(
                campaign.id,
                delivered,
                outcome.clicks[campaign.id],
                number,
                delivered / number if number else None,
                None if can is None or number is None else campaign.id in can,
                _over_cap(campaign, outcome),
                _hours_off(campaign, outcome, calendar, before),
                {
                    reason.value: round(count / outcome.explained, 4)
                    for reason, count in sorted(reasons.items(), key=lambda item: -item[1])
                },
            )
        )
    return found, _totals(found, outcome)


def _totals(found: list[Forecast], outcome: Outcome) -> Totals:
    judged = [one for one in found if one.wanted and one.deliverable is not False]
    count = len(judged) or 1
    off = Counter(hour for one in judged for hour in one.hours_off)
    full = sum(abs(one.delivered - one.wanted) <= max(1, one.wanted * GOAL_TOLERANCE) for one in judged if one.wanted)
    return Totals(
        outcome.requests,
        outcome.filled,
        len(judged),
        full / count,
        1 - max(off.values(), default=0) / count,
        sum(not one.hours_off for one in judged) / count,
        max((one.over_cap for one in found), default=0),
    )


def _wanted(campaign: Campaign, outcome: Outcome, calendar: Calendar, before: CounterState) -> int | None:
    if campaign.status != "active" or campaign.goal is None or campaign.goal.impressions is None:
        return None
    line = flight_line(campaign, calendar, outcome.start)
    goal = campaign.goal.impressions
    # The last request came a little before the end of the time that it stands for.
    due = goal if line is None else round(goal * line.share(_end_of_hour(outcome)))
    return max(0, due - before.get(campaign.id, NOTHING)[0])


def _end_of_hour(outcome: Outcome) -> float:
    return outcome.start + -(-(outcome.end - outcome.start) // HOUR_S) * HOUR_S


def _cap(campaign: Campaign, outcome: Outcome) -> int:
    cap = campaign.daily_cap
    days = len({day for _, day in outcome.by_day}) or 1
    return 10**12 if cap is None or cap.impressions is None else cap.impressions * days


def _over_cap(campaign: Campaign, outcome: Outcome) -> int:
    cap = campaign.daily_cap
    if cap is None or cap.impressions is None:
        return 0
    most = max((number for (name, _), number in outcome.by_day.items() if name == campaign.id), default=0)
    return max(0, most - cap.impressions)


def _hours_off(campaign: Campaign, outcome: Outcome, calendar: Calendar, before: CounterState) -> list[int]:
    line = flight_line(campaign, calendar, outcome.start)
    if line is None or campaign.goal is None or campaign.goal.impressions is None:
        return []
    delivered = before.get(campaign.id, NOTHING)[0]
    off = []
    for hour in range(int((outcome.end - outcome.start) // HOUR_S) + 1):
        delivered += outcome.by_hour[campaign.id, hour]
        ideal = campaign.goal.impressions * line.share(outcome.start + (hour + 1) * HOUR_S)
        if abs(delivered - ideal) > max(1.0, ideal * LINE_TOLERANCE):
            off.append(hour)
    return off
