"""What a process knows besides its configuration and keeps when that is reloaded: table, counts, memories."""

from collections import Counter, deque
from typing import Protocol

from adcore.core.adtable import AdTable, Steps, finish
from adcore.core.calendar import Moment
from adcore.core.decision import NoAd
from adcore.core.frequency import FrequencyMemory
from adcore.core.inventory import Campaign, Creative
from adcore.core.reason import Reason
from adcore.core.targeting import Dropped
from adcore.counters import Counters
from adcore.followed import Followed

# Creatives that left the table while this process ran, kept for the clicks on pages that still show them.
DEPARTED_MAX = 10_000


STATUS_MAX = 600


class Drop(Protocol):
    @property
    def dropped(self) -> Dropped: ...


class Tally(Protocol):
    """A case that counts its answers by itself, as delivery.Case does."""

    answers: int
    placement: str

    @property
    def eligible(self) -> Drop: ...


class Statistics:
    """What the handlers have done since the process started."""

    __slots__ = (
        "_dropped",
        "_filled",
        "_requests",
        "_unfilled",
        "clicks_repeated",
        "tokens_refused",
        "unread",
        "views_repeated",
    )

    def __init__(self) -> None:
        self._requests: dict[str, list[int]] = {}
        """By route and status."""
        self.unread: deque[Tally] = deque()
        """Cases whose answers are not in the totals yet: counting one there is cheaper than here."""
        self._filled: Counter[str] = Counter()
        """Decisions by placement."""
        self._unfilled: dict[str, Counter[Reason]] = {}
        """Requests that got nothing, by placement and main reason."""
        self._dropped: dict[str, Counter[Reason]] = {}
        """Candidates that were not shown, by placement and first reason."""
        self.tokens_refused: Counter[str] = Counter()
        self.clicks_repeated = 0
        self.views_repeated = 0

    def requests_of(self, route: str) -> list[int]:
        """The route's counts, to be raised at the status. A list is twice as quick as a Counter."""
        counts = self._requests.get(route)
        if counts is None:
            counts = self._requests[route] = [0] * STATUS_MAX
        return counts

    def add_filled(self, placement: str, count: int, dropped: Dropped) -> None:
        """Note `count` answers that each dropped these candidates."""
        self._filled[placement] += count
        if dropped:
            totals = self._dropped.setdefault(placement, Counter())
            for reason, candidates in dropped:
                totals[reason] += candidates * count

    def add_unfilled(self, placement: str, refusal: NoAd) -> None:
        self._unfilled.setdefault(placement, Counter())[refusal.reason] += 1
        totals = self._dropped.setdefault(placement, Counter())
        for reason, candidates in refusal.dropped:
            totals[reason] += candidates

    def read(self, cases_max: int | None = None) -> None:
        """Bring the totals up to date, or take in this many cases more, the oldest first."""
        unread = self.unread
        for _ in range(len(unread) if cases_max is None else min(cases_max, len(unread))):
            case = unread.popleft()
            self.add_filled(case.placement, case.answers, case.eligible.dropped)
            case.answers = 0

    def to_status(self) -> dict[str, object]:
        self.read()
        requests = {
            route: {str(status): count for status, count in enumerate(counts) if count}
            for route, counts in sorted(self._requests.items())
            if any(counts)
        }
        return {
            "requests": requests,
            "filled": dict(self._filled),
            "unfilled": {placement: dict(counts) for placement, counts in self._unfilled.items()},
            "dropped": {placement: dict(counts) for placement, counts in self._dropped.items() if counts},
            "tokens_refused": dict(self.tokens_refused),
            "clicks_repeated": self.clicks_repeated,
            "views_repeated": self.views_repeated,
        }


class State:
    """One per process."""

    __slots__ = ("_departed", "clicks", "counters", "memory", "statistics", "table", "views")

    def __init__(self, counters: Counters, clicks: Followed, views: Followed) -> None:
        self.table: AdTable | None = None
        self.counters = counters
        self.memory = FrequencyMemory()
        self.clicks = clicks
        self.views = views
        self.statistics = Statistics()
        self._departed: dict[str, tuple[Campaign, Creative]] = {}

    def use(self, table: AdTable, moment: Moment) -> None:
        """Decide on this table from now on."""
        finish(self.use_in_steps(table, moment))

    def use_in_steps(self, table: AdTable, moment: Moment) -> Steps[None]:
        """The same in small steps; the last one puts the table in its place."""
        if self.table is not None:
            for campaign in self.table.campaigns.values():
                if table.campaigns.get(campaign.id) is not campaign:
                    for creative in campaign.creatives:
                        if table.creatives.get(creative.id) is None:
                            self._departed[creative.id] = campaign, creative
                yield
            for creative_id in list(self._departed)[:-DEPARTED_MAX]:
                del self._departed[creative_id]
                yield
        self.counters.use(table, moment)
        self.table = table

    def creative(self, creative_id: str) -> tuple[Campaign, Creative] | None:
        """The campaign and creative of a token; also of an ad that left the table after it was shown."""
        assert self.table is not None
        return self.table.creatives.get(creative_id) or self._departed.get(creative_id)
