"""What has been delivered: the counts that goals, daily caps and pacing are held against.

`held` is what a decision reads: the campaigns that must not be shown now, with the reason. It is replaced whole
whenever it changes, so that its identity is its version. Counting an impression costs one dictionary look-up, and
for a campaign with a goal or a cap one evaluation of pacing.hold, so a goal of 10 ends at 10.

Knows no clock and no file: the moment is an argument, and `to_state` gives plain data for CounterFile.
"""

from collections.abc import Mapping

from adcore.core.adtable import AdTable
from adcore.core.calendar import Calendar, Moment
from adcore.core.inventory import Campaign
from adcore.core.pacing import Delivered, hold
from adcore.core.reason import Reason

CounterState = dict[str, tuple[int, int, int, int, int]]
"""{campaign: (impressions, clicks, day, impressions on that day, clicks on that day)}"""


class Counters:
    """Impressions and clicks by campaign, in all and today, without invalid traffic."""

    def __init__(self, calendar: Calendar) -> None:
        self.calendar = calendar
        self.held: Mapping[str, Reason] = {}
        self.changed = False
        self._delivered: dict[str, Delivered] = {}
        self._limited: dict[str, Campaign] = {}

    def of(self, campaign_id: str) -> Delivered:
        delivered = self._delivered.get(campaign_id)
        if delivered is None:
            delivered = self._delivered[campaign_id] = Delivered()
        return delivered

    def use(self, table: AdTable, moment: Moment) -> None:
        """Hold the campaigns of a new table against the counts."""
        self._limited = {campaign_id: table.campaigns[campaign_id] for campaign_id in table.limited}
        self.turn(moment)

    def turn(self, moment: Moment) -> None:
        """Let time pass: a new day's caps, and campaigns whose line has caught up with them."""
        day = self.calendar.day_bounds(moment)
        held = {}
        for campaign_id, campaign in self._limited.items():
            delivered = self.of(campaign_id)
            delivered.turn_to(moment.day)
            reason = hold(campaign, delivered, moment.time, day)
            if reason is not None:
                held[campaign_id] = reason
        if held != self.held:
            self.held = held

    def count_impression(self, campaign: Campaign, moment: Moment) -> None:
        delivered = self.of(campaign.id)
        delivered.turn_to(moment.day)
        delivered.impressions += 1
        delivered.impressions_today += 1
        self._recheck(campaign, delivered, moment)

    def count_unlimited(self, delivered: Delivered, day: int) -> None:
        """Count an impression of a campaign without goal and cap; `delivered` is what `of` gives."""
        if delivered.day != day:
            delivered.turn_to(day)
        delivered.impressions += 1
        delivered.impressions_today += 1
        self.changed = True

    def count_click(self, campaign: Campaign, moment: Moment) -> None:
        delivered = self.of(campaign.id)
        delivered.turn_to(moment.day)
        delivered.clicks += 1
        delivered.clicks_today += 1
        self._recheck(campaign, delivered, moment)

    def _recheck(self, campaign: Campaign, delivered: Delivered, moment: Moment) -> None:
        self.changed = True
        if campaign.id in self._limited:
            reason = hold(campaign, delivered, moment.time, self.calendar.day_bounds(moment))
            if reason is not self.held.get(campaign.id) and reason is not None:
                self.held = {**self.held, campaign.id: reason}

    def to_state(self) -> CounterState:
        return {
            campaign_id: (d.impressions, d.clicks, d.day, d.impressions_today, d.clicks_today)
            for campaign_id, d in self._delivered.items()
        }

    def rebase(self, before: CounterState, now: CounterState) -> None:
        """Put the counts that this process started from (`before`) up to `now`, keeping what it has added itself."""
        for campaign_id, (impressions, clicks, day, impressions_today, clicks_today) in now.items():
            was = before.get(campaign_id, (0, 0, day, 0, 0))
            delivered = self.of(campaign_id)
            delivered.impressions += impressions - was[0]
            delivered.clicks += clicks - was[1]
            if day > delivered.day:
                delivered.turn_to(day)
            if day == delivered.day:
                counted_then = was[2] == day
                delivered.impressions_today += impressions_today - (was[3] if counted_then else 0)
                delivered.clicks_today += clicks_today - (was[4] if counted_then else 0)
        self.changed = True
