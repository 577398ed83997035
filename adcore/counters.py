"""What has been delivered: the counts that goals, daily caps and pacing are held against.

`held` is what a decision reads: the campaigns that must not be shown now, with the reason, and those that go first
because they are behind. It is replaced whole whenever it changes, so that its identity is its version. Counting an
impression is three additions: how many more may follow before a campaign can stand elsewhere is known from the last
look (pacing.standing), so a goal of 10 ends at 10.

Knows no clock and no file: the moment is an argument, and `to_state` gives plain data for CounterFile.
"""

import heapq
from collections.abc import Iterable, Mapping
from math import inf

from adcore.core.adtable import AdTable
from adcore.core.calendar import Calendar, Moment
from adcore.core.inventory import Campaign
from adcore.core.pacing import Delivered, standing
from adcore.core.reason import Reason

CounterState = dict[str, tuple[int, int, int, int, int]]
"""{campaign: (impressions, clicks, day, impressions on that day, clicks on that day)}"""
NOTHING = (0, 0, 0, 0, 0)


class Count(Delivered):
    """What one campaign has delivered, and how far it is from the next look at its limits."""

    __slots__ = ("campaign_id", "look_time", "looked_time", "until_look")

    def __init__(self, campaign_id: str) -> None:
        super().__init__()
        self.campaign_id = campaign_id
        self.until_look: float = 0
        """In impressions."""
        self.looked_time = inf
        self.look_time = inf
        """The last look was then, and from this time on another one is needed."""

    def look_soon(self) -> None:
        self.until_look = 0
        self.looked_time = inf


class Counters:
    """Impressions and clicks by campaign, in all and today, without invalid traffic."""

    def __init__(self, calendar: Calendar) -> None:
        self.calendar = calendar
        self.held: Mapping[str, Reason] = {}
        self.changed = False
        self._counts: dict[str, Count] = {}
        self._limited: Mapping[str, Campaign] = {}
        self._watched: list[Count] = []
        """Theirs."""
        self._others: CounterState = {}
        """What the counts have of other processes."""

    def of(self, campaign_id: str) -> Count:
        count = self._counts.get(campaign_id)
        if count is None:
            count = self._counts[campaign_id] = Count(campaign_id)
        return count

    def use(self, table: AdTable, moment: Moment) -> None:
        """Hold the new campaigns of a table against the counts; the others' next turn comes soon enough."""
        before, self._limited = self._limited, table.limited
        held = {name: reason for name, reason in self.held.items() if table.limited.get(name) is before.get(name)}
        new = [name for name, campaign in table.limited.items() if before.get(name) is not campaign]
        self._watched = [self.of(campaign_id) for campaign_id in table.limited]
        self._look_at(map(self.of, new), moment, held)

    def turn(self, moment: Moment) -> None:
        """Let time pass: a new day's caps, and campaigns whose line has caught up with them."""
        now = moment.time
        due = [count for count in self._watched if not count.looked_time <= now < count.look_time]
        if due:
            self._look_at(due, moment, dict(self.held))

    def _look_at(self, counts: Iterable[Count], moment: Moment, held: dict[str, Reason]) -> None:
        for count in counts:
            reason = self._look(count, moment)
            if reason is not None:
                held[count.campaign_id] = reason
            else:
                held.pop(count.campaign_id, None)
        if held != self.held:
            self.held = held

    def count_impression(self, count: Count, day: int, now: float) -> None:
        """Count one on the local day `day`; `count` is what `of` gives."""
        if count.day != day:
            count.turn_to(day)
            count.look_soon()
        count.impressions += 1
        count.impressions_today += 1
        count.until_look -= 1
        self.changed = True
        if count.until_look <= 0:
            self._look_and_hold(count, self.calendar.moment(now))

    def count_click(self, count: Count, moment: Moment) -> None:
        count.turn_to(moment.day)
        count.clicks += 1
        count.clicks_today += 1
        self.changed = True
        self._look_and_hold(count, moment)

    def _look_and_hold(self, count: Count, moment: Moment) -> None:
        reason = self._look(count, moment)
        if reason is self.held.get(count.campaign_id):
            return
        held = dict(self.held)
        if reason is None:
            del held[count.campaign_id]
        else:
            held[count.campaign_id] = reason
        self.held = held

    def _look(self, count: Count, moment: Moment) -> Reason | None:
        """Where the campaign stands now."""
        campaign = self._limited.get(count.campaign_id)
        if campaign is None:
            count.until_look = inf
            return None
        count.turn_to(moment.day)
        day = self.calendar.day_bounds(moment)
        found = standing(campaign, count, moment.time, day)
        # One that is held may be shown once more by a page that was decided at the same time.
        count.until_look = found.impressions
        count.looked_time, count.look_time = moment.time, found.until
        return found.reason

    def busiest(self, number: int, day: int) -> list[Count]:
        """The campaigns with the most impressions on `day`, today, so many of them, the busiest first."""
        today = [count for count in self._counts.values() if count.day == day]
        return heapq.nlargest(number, today, key=lambda count: count.impressions_today)

    def to_state(self) -> CounterState:
        """What this process has counted itself: all but what `rebase` has told it of others."""
        state = {}
        for campaign_id, d in self._counts.items():
            impressions, clicks, day, impressions_today, clicks_today = self._others.get(campaign_id, NOTHING)
            if day != d.day:
                impressions_today = clicks_today = 0
            own = (d.impressions - impressions, d.clicks - clicks)
            if any(own):
                state[campaign_id] = (
                    *own,
                    d.day,
                    # A clock that was set back over midnight has taken more than there was.
                    max(0, d.impressions_today - impressions_today),
                    max(0, d.clicks_today - clicks_today),
                )
        return state

    def restore(self, own: CounterState) -> None:
        """Go on from what `to_state` gave once."""
        self._add({}, own)

    def rebase(self, others: CounterState) -> None:
        """Take in what others have counted until now, in place of what they had the last time."""
        self._add(self._others, others)
        self._others = others

    def _add(self, before: CounterState, now: CounterState) -> None:
        for campaign_id, counts in now.items():
            was = before.get(campaign_id, NOTHING)
            if counts == was:
                continue
            impressions, clicks, day, impressions_today, clicks_today = counts
            count = self.of(campaign_id)
            count.look_soon()
            count.impressions += impressions - was[0]
            count.clicks += clicks - was[1]
            counted_then = was[2] == day == count.day
            if day > count.day:
                count.turn_to(day)
            if day == count.day:
                count.impressions_today += impressions_today - (was[3] if counted_then else 0)
                count.clicks_today += clicks_today - (was[4] if counted_then else 0)


def add_counts(total: CounterState, more: CounterState) -> None:
    """Add `more` to `total`. Of two days the later one's counts are today's."""
    for campaign_id, counts in more.items():
        first, second = sorted((total.get(campaign_id, NOTHING), counts), key=lambda c: c[2])
        today = (second[3], second[4]) if first[2] < second[2] else (first[3] + second[3], first[4] + second[4])
        total[campaign_id] = (first[0] + second[0], first[1] + second[1], second[2], *today)
