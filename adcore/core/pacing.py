"""Where a campaign stands: goals, daily caps and even delivery, as pure functions of the counts.

`even` spreads a goal over the flight and a daily cap over the local day along a line that rises as the traffic is
expected to come: with the campaign's own forecast (learned.py), or straight where nothing is learned. A campaign that
has delivered what the line will ask for LEAD_S from now waits. One that has not delivered what its goal asks for now is
BEHIND_SCHEDULE, and goes before the others of its tier (decision.py), so that the ones with few visitors get them and
the others take what these leave: to serve the queues that wait keeps all of them short wherever that can be done at
all (Tassiulas and Ephremides, "Stability properties of constrained queueing systems", IEEE TAC 37(12), 1992). A cap
promises nothing, so nobody is behind it. A flight without both dates has no line; its goal is delivered as soon as
possible.
"""

from bisect import bisect_left
from collections.abc import Iterator
from math import ceil, inf
from typing import NamedTuple

from adcore.core.inventory import HOURS_OF_WEEK, Campaign
from adcore.core.reason import Reason

# What may be delivered before it is due. Within this time even a rare visitor comes by, and nobody takes it for a start
# that is too early; of a short flight it is a part (LEAD_SHARE) that is as small.
LEAD_S = 120.0
LEAD_SHARE = 1 / 200
# Impressions that one must be short of to be behind.
OWED = 0.5


class Delivered:
    """What a campaign has delivered in all and on the local day `day` (a date's proleptic ordinal)."""

    __slots__ = ("clicks", "clicks_today", "day", "impressions", "impressions_today")

    def __init__(
        self,
        impressions: int = 0,
        clicks: int = 0,
        day: int = 0,
        impressions_today: int = 0,
        clicks_today: int = 0,
    ) -> None:
        self.impressions = impressions
        self.clicks = clicks
        self.day = day
        self.impressions_today = impressions_today
        self.clicks_today = clicks_today

    def turn_to(self, day: int) -> None:
        """Start the day's counts again when the local day is another one."""
        if day != self.day:
            self.day = day
            self.impressions_today = 0
            self.clicks_today = 0


def is_limited(campaign: Campaign) -> bool:
    """Whether counts can ever stop this campaign; the others need no counting while deciding."""
    return campaign.goal is not None or campaign.daily_cap is not None


class Standing(NamedTuple):
    """Where a campaign stands, and for how long: until it has had so many more impressions, or that time has come.

    Clicks aside; they take a look of their own.
    """

    reason: Reason | None
    """Why it must not be shown, BEHIND_SCHEDULE when it goes first, or None."""
    impressions: float
    until: float
    """Epoch seconds."""


def standing(campaign: Campaign, delivered: Delivered, now: float, day: tuple[float, float]) -> Standing:
    """Where the campaign stands at `now` (epoch seconds).

    `day` is the local day's start and end in epoch seconds; `delivered` must have been turned to that day.
    """
    goal, cap = campaign.goal, campaign.daily_cap
    impressions = until = inf
    if goal is not None:
        if _reached(goal.impressions, goal.clicks, delivered.impressions, delivered.clicks):
            return Standing(Reason.GOAL_REACHED, 0, inf)
        if goal.impressions is not None:
            impressions = goal.impressions - delivered.impressions
    if cap is not None:
        until = day[1]
        if _reached(cap.impressions, cap.clicks, delivered.impressions_today, delivered.clicks_today):
            return Standing(Reason.DAILY_CAP, 0, until)
        if cap.impressions is not None:
            impressions = min(impressions, cap.impressions - delivered.impressions_today)
    behind = False
    for line, wanted, done, is_promise, counts_impressions in _lines(campaign, delivered, day):
        is_open = wanted * line.share(now + line.lead_s)
        # "More than" and not "at least": the first one may go out at the very start of the line.
        if done > is_open:
            return Standing(Reason.AHEAD_OF_SCHEDULE, 0, min(until, line.time_of(done / wanted) - line.lead_s))
        if counts_impressions:
            impressions = min(impressions, int(is_open) - done + 1)
        if is_promise:
            due = wanted * line.share(now) - OWED
            if done < due:
                behind = True
                impressions = min(impressions, ceil(due) - done)
            else:
                until = min(until, line.time_of((done + OWED) / wanted))
    return Standing(Reason.BEHIND_SCHEDULE if behind else None, impressions, until)


class Line:
    """What part of the traffic of [start, end) is expected to have come when.

    `midnight` is a local one, as its weekday and epoch seconds. Hours are counted from there, so those on the other
    side of a change of clocks are one off.
    """

    __slots__ = ("_end", "_first", "_forecast", "_last", "_start", "_week", "lead_s")

    def __init__(self, forecast: tuple[int, ...], midnight: tuple[int, float], start: float, end: float) -> None:
        self._forecast = forecast
        self._start = start
        self._end = end
        self._week = midnight[1] - midnight[0] * 86_400
        """When that week starts."""
        self._first = self._last = 0.0
        if forecast:
            self._first, self._last = self._passed(start), self._passed(end)
        self.lead_s = min(LEAD_S, (end - start) * LEAD_SHARE)

    def share(self, time: float) -> float:
        """What part has come by then, from 0 to 1."""
        if time <= self._start:
            return 0.0
        if time >= self._end:
            return 1.0
        if self._last > self._first:
            return (self._passed(time) - self._first) / (self._last - self._first)
        return (time - self._start) / (self._end - self._start)

    def time_of(self, share: float) -> float:
        """When that part has come: the first such time."""
        if self._last <= self._first:
            return self._start + (self._end - self._start) * share
        weeks, rest = divmod(self._first + (self._last - self._first) * share, 1.0)
        if not rest:
            weeks, rest = weeks - 1.0, 1.0  # its last hours may bring nothing
        forecast = self._forecast
        rest *= forecast[-1]
        hour = min(bisect_left(forecast, rest), HOURS_OF_WEEK - 1)
        before = forecast[hour - 1] if hour else 0
        within = (rest - before) / (forecast[hour] - before) if forecast[hour] > before else 0.0
        return max(self._start, self._week + (weeks * HOURS_OF_WEEK + hour + within) * 3600.0)

    def _passed(self, time: float) -> float:
        """The traffic from the start of the week until then, in weeks' worths."""
        weeks, hours = divmod((time - self._week) / 3600.0, HOURS_OF_WEEK)
        hour = min(int(hours), HOURS_OF_WEEK - 1)
        forecast = self._forecast
        before = forecast[hour - 1] if hour else 0
        return weeks + (before + (forecast[hour] - before) * (hours - hour)) / forecast[-1]


def _lines(
    campaign: Campaign, delivered: Delivered, day: tuple[float, float]
) -> Iterator[tuple[Line, int, int, bool, bool]]:
    """Each line that the campaign follows; what is wanted at its end, what is done; is it promised, and impressions."""
    if campaign.pacing != "even":
        return
    goal, cap = campaign.goal, campaign.daily_cap
    midnight = (delivered.day + 6) % 7, day[0]
    starts_at = -inf if campaign.starts_at is None else campaign.starts_at.timestamp()
    ends_at = inf if campaign.ends_at is None else campaign.ends_at.timestamp()
    if goal is not None and ends_at - starts_at < inf:
        line = Line(campaign.forecast, midnight, starts_at, ends_at)
        if goal.impressions is not None:
            yield line, goal.impressions, delivered.impressions, True, True
        if goal.clicks is not None:
            yield line, goal.clicks, delivered.clicks, False, False
    if cap is not None:
        line = Line(campaign.forecast, midnight, max(day[0], starts_at), min(day[1], ends_at))
        if cap.impressions is not None:
            yield line, cap.impressions, delivered.impressions_today, False, True
        if cap.clicks is not None:
            yield line, cap.clicks, delivered.clicks_today, False, False


def _reached(impressions_max: int | None, clicks_max: int | None, impressions: int, clicks: int) -> bool:
    return (impressions_max is not None and impressions >= impressions_max) or (
        clicks_max is not None and clicks >= clicks_max
    )
