"""What has been delivered: the counts that goals, daily caps and pacing are held against.

`held` is what a decision reads: the campaigns that must not be shown now, with the reason, and those that go first
because they are behind. It is replaced whole whenever it changes, so that its identity is its version. Counting an
impression is three additions: how many more may follow before a campaign can stand elsewhere is known from the last
look (pacing.standing), so a goal of 10 ends at 10.

Knows no clock and no file: the moment is an argument, and what this process has counted itself (`untold`) and what
others have (`take_in`) are plain data, exchanged by Teller.
"""

import heapq
from collections.abc import Callable, Iterable, Mapping
from math import inf

from adcore.core.adtable import AdTable, Steps, finish
from adcore.core.calendar import Calendar, Moment
from adcore.core.inventory import Campaign
from adcore.core.pacing import Delivered, standing
from adcore.core.reason import Reason
from adcore.counts import NOTHING, CounterState, add_to_parts, figures

# So many campaigns are looked at in one step: 100 us at most.
STEP_CAMPAIGNS = 20


class Count(Delivered):
    """What one campaign has delivered, and how far it is from the next look at its limits."""

    __slots__ = ("campaign_id", "look_time", "looked_time", "others", "until_look")

    def __init__(self, campaign_id: str) -> None:
        super().__init__()
        self.campaign_id = campaign_id
        self.until_look: float = 0
        """In impressions."""
        self.looked_time = inf
        self.look_time = inf
        """The last look was then, and from this time on another one is needed."""
        self.others = NOTHING
        """What the counts have of other processes; of the day only as long as it is theirs."""

    def look_soon(self) -> None:
        self.until_look = 0
        self.looked_time = inf

    def turn_to(self, day: int) -> None:
        """As Delivered.turn_to, but a day that comes again, by a clock that was set, has what others counted on it."""
        if day != self.day:
            super().turn_to(day)
            if day == self.others[2]:
                self.impressions_today, self.clicks_today = self.others[3:]

    def take_in(self, others: tuple[int, int, int, int, int]) -> None:
        """Count this of others in place of what they had before."""
        before, self.others = self.others, others
        self.impressions += others[0] - before[0]
        self.clicks += others[1] - before[1]
        if before[2] == self.day:
            self.impressions_today -= before[3]
            self.clicks_today -= before[4]
        if others[2] == self.day:
            self.impressions_today += others[3]
            self.clicks_today += others[4]
        elif others[2] > self.day:
            self.turn_to(others[2])

    def own(self) -> tuple[int, int, int, int, int]:
        """All but what others have counted."""
        impressions, clicks, impressions_today, clicks_today = figures(self.others, self.day)
        return (
            self.impressions - impressions,
            self.clicks - clicks,
            self.day,
            self.impressions_today - impressions_today,
            self.clicks_today - clicks_today,
        )


class Counters:
    """Impressions and clicks by campaign, in all and today, without invalid traffic."""

    def __init__(self, calendar: Calendar) -> None:
        self.calendar = calendar
        self.held: Mapping[str, Reason] = {}
        self._counts: dict[str, Count] = {}
        self._limited: Mapping[str, Campaign] = {}
        self._watched: list[Count] = []
        """Theirs."""
        self._quiet_from = self._quiet_until = -inf
        """No watched count is due for a look at a time between these."""
        self._told: CounterState = {}
        """What `untold` has given of this one."""

    @property
    def limited(self) -> Mapping[str, Campaign]:
        """The campaigns that counts can stop, as the table in use has them."""
        return self._limited

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
        self._quiet_until = -inf
        self._look_at(map(self.of, new), moment, held)

    def turn(self, moment: Moment) -> None:
        """Let time pass: a new day's caps, and campaigns whose line has caught up with them."""
        finish(self.turn_in_steps(lambda: moment.time))

    def turn_in_steps(self, clock: Callable[[], float]) -> Steps[None]:
        """The same in small steps, each for the time that it is then; none while no count is due."""
        now = clock()
        if self._quiet_from <= now < self._quiet_until:
            return
        # Looks that others take meanwhile can only bring the end forward.
        self._quiet_from, self._quiet_until = now, inf
        watched = self._watched
        for start in range(0, len(watched), STEP_CAMPAIGNS):
            now = clock()
            some = watched[start : start + STEP_CAMPAIGNS]
            due = [count for count in some if not count.looked_time <= now < count.look_time]
            if due:
                self._look_at(due, self.calendar.moment(now))
            self._quiet_until = min(self._quiet_until, *[count.look_time for count in some])
            yield

    def count_impression(self, count: Count, day: int, now: float) -> None:
        """Count one on the local day `day`; `count` is what `of` gives."""
        if count.day != day:
            count.turn_to(day)
            self._look_soon(count)
        count.impressions += 1
        count.impressions_today += 1
        count.until_look -= 1
        if count.until_look <= 0:
            self._look_and_hold(count, self.calendar.moment(now))

    def count_click(self, count: Count, moment: Moment) -> None:
        count.turn_to(moment.day)
        count.clicks += 1
        count.clicks_today += 1
        self._look_and_hold(count, moment)

    def _look_at(self, counts: Iterable[Count], moment: Moment, before: Mapping[str, Reason] | None = None) -> None:
        """Note where these campaigns stand now; the others stand as `before` says, or as they did."""
        held = self.held if before is None else before
        looked = {count.campaign_id: self._look(count, moment) for count in counts}
        if any(held.get(campaign_id) is not reason for campaign_id, reason in looked.items()):
            held = {name: reason for name, reason in {**held, **looked}.items() if reason is not None}
        if held != self.held:
            self.held = held

    def _look_soon(self, count: Count) -> None:
        count.look_soon()
        self._quiet_until = -inf

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
        self._quiet_until = min(self._quiet_until, found.until)
        return found.reason

    def busiest(self, number: int, day: int) -> list[Count]:
        """The campaigns with the most impressions on `day`, today, so many of them, the busiest first."""
        today = [count for count in self._counts.values() if count.day == day]
        return heapq.nlargest(number, today, key=lambda count: count.impressions_today)

    def untold(self) -> Steps[list[CounterState]]:
        """What this process has counted itself and has not told yet, in parts; each campaign with all its counts."""
        parts: list[CounterState] = []
        for number, count in enumerate(list(self._counts.values()), 1):
            campaign_id = count.campaign_id
            own = count.own()
            if own != self._told.get(campaign_id) and (any(own[:2]) or campaign_id in self._told):
                self._told[campaign_id] = own
                add_to_parts(parts, campaign_id, own)
            if number % STEP_CAMPAIGNS == 0:
                yield
        return parts

    def tell_again(self) -> None:
        """Nobody knows what was told: `untold` begins anew."""
        self._told = {}

    def restore(self, own: CounterState) -> None:
        """Go on from what this process, or the one before it, had counted itself."""
        for campaign_id, (impressions, clicks, day, impressions_today, clicks_today) in own.items():
            count = self.of(campaign_id)
            count.turn_to(day)
            self._look_soon(count)
            count.impressions += impressions
            count.clicks += clicks
            count.impressions_today += impressions_today
            count.clicks_today += clicks_today

    def take_in(self, others: CounterState, moment: Moment) -> None:
        """Count what others have counted until now, in place of what they had before, and hold what has had enough."""
        changed = []
        for campaign_id, counts in others.items():
            count = self.of(campaign_id)
            if counts != count.others:
                count.take_in(counts)
                changed.append(count)
        self._look_at(changed, moment)
