"""When a campaign has had enough for now: goals, daily caps and even delivery, as pure functions of the counts.

`even` spreads a goal over the flight and a daily cap over the local day along a straight line: a campaign that is
ahead of its line waits until the line has caught up. A flight without both dates has no line to follow, so its goal
is delivered as soon as possible.
"""

from math import inf

from adcore.core.inventory import Campaign
from adcore.core.reason import Reason


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


def hold(campaign: Campaign, delivered: Delivered, now: float, day: tuple[float, float]) -> Reason | None:
    """Why the campaign must not be shown at `now` (epoch seconds), or None.

    `day` is the local day's start and end in epoch seconds; `delivered` must have been turned to that day.
    """
    goal = campaign.goal
    if goal is not None and _reached(goal.impressions, goal.clicks, delivered.impressions, delivered.clicks):
        return Reason.GOAL_REACHED
    cap = campaign.daily_cap
    if cap is not None and _reached(cap.impressions, cap.clicks, delivered.impressions_today, delivered.clicks_today):
        return Reason.DAILY_CAP
    if campaign.pacing == "even":
        if goal is not None and campaign.starts_at is not None and campaign.ends_at is not None:
            flown = _share(now, campaign.starts_at.timestamp(), campaign.ends_at.timestamp())
            if _ahead(goal.impressions, delivered.impressions, flown) or _ahead(goal.clicks, delivered.clicks, flown):
                return Reason.AHEAD_OF_SCHEDULE
        if cap is not None:
            passed = _share(now, *day)
            if _ahead(cap.impressions, delivered.impressions_today, passed) or _ahead(
                cap.clicks, delivered.clicks_today, passed
            ):
                return Reason.AHEAD_OF_SCHEDULE
    return None


def impressions_until_hold(campaign: Campaign, delivered: Delivered, now: float, day: tuple[float, float]) -> float:
    """With how many more impressions `hold` can first have something against a campaign that may be shown at `now`.

    Clicks aside, and for the local day that `day` is: a line only rises as time passes. `inf` when nothing limits them.
    """
    left = inf
    goal, cap = campaign.goal, campaign.daily_cap
    if goal is not None and goal.impressions is not None:
        left = goal.impressions - delivered.impressions
        if campaign.pacing == "even" and campaign.starts_at is not None and campaign.ends_at is not None:
            flown = _share(now, campaign.starts_at.timestamp(), campaign.ends_at.timestamp())
            left = min(left, _until_ahead(goal.impressions, delivered.impressions, flown))
    if cap is not None and cap.impressions is not None:
        left = min(left, cap.impressions - delivered.impressions_today)
        if campaign.pacing == "even":
            left = min(left, _until_ahead(cap.impressions, delivered.impressions_today, _share(now, *day)))
    return left


def _until_ahead(wanted: int, delivered: int, share: float) -> int:
    return int(wanted * share) - delivered + 1


def _reached(impressions_max: int | None, clicks_max: int | None, impressions: int, clicks: int) -> bool:
    return (impressions_max is not None and impressions >= impressions_max) or (
        clicks_max is not None and clicks >= clicks_max
    )


def _share(now: float, start: float, end: float) -> float:
    return min(max((now - start) / (end - start), 0.0), 1.0)


def _ahead(wanted: int | None, delivered: int, share: float) -> bool:
    # "More than" and not "at least": the first one may go out at the very start of the line.
    return wanted is not None and delivered > wanted * share
