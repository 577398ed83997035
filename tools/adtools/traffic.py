"""Traffic to simulate: the requests of delivery logs again, or a day made up from a seed.

A day that is made up has what real ones have: placements that differ in volume and in when their visitors come, a mix
of devices and countries, words on the pages that campaigns ask for, and stretches in which most visitors stay away or
many more come. What it has no model of: one visitor's several pages.
"""

import heapq
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from io import BufferedIOBase
from itertools import accumulate
from math import cos, pi
from random import Random
from typing import NamedTuple

from adcore.core.calendar import Calendar
from adcore.core.facts import Facts
from adcore.core.inventory import Campaign, Inventory
from adcore.core.traffic import HOUR_S, expected_traffic
from adcore.deliverylog.reader import Damage, read_records
from adcore.deliverylog.record import Impression, Unfilled
from adtools.aggregate import TIME_MAX

MINUTE_S = 60
MINUTES = 1440
HISTORY_DAYS = 14
PROFILES = 96
_DEVICES = (("mobile", "ios", 35), ("mobile", "android", 25), ("desktop", "windows", 25), ("tablet", "ios", 10))
_COUNTRIES = (("JP", 70), ("US", 12), ("KR", 8), ("DE", 6), ("", 4))
_LANGUAGES = {"JP": ("ja", "en"), "US": ("en-us", "en"), "KR": ("ko", "en"), "DE": ("de", "en"), "": ()}


class Visit(NamedTuple):
    """A request for one slot."""

    time: float
    placement: str
    facts: Facts
    impression_id: str
    user: str
    """Who has frequency caps: a key, or "" for somebody unknown."""


def read_visits(files: Sequence[BufferedIOBase]) -> Iterator[Visit]:
    """The requests of delivery logs that are open, in the order of their times.

    Damage is passed over, and so are records of a broken clock.
    """
    with ExitStack() as stack:
        for file in files:
            stack.callback(file.close)
        yield from heapq.merge(*map(_visits_of, files), key=lambda visit: visit.time)


def _visits_of(file: BufferedIOBase) -> Iterator[Visit]:
    for record in read_records(file):
        if not isinstance(record, Damage) and isinstance(record, Impression | Unfilled) and 0 <= record.time < TIME_MAX:
            facts = Facts(
                record.device,
                record.os,
                record.country,
                record.languages,
                record.keywords,
                record.key_values,
                record.ivt,
            )
            yield Visit(record.time, record.placement, facts, record.id, record.user)


class SyntheticDay:
    """`requests` from `start` (a local midnight, epoch seconds) on, alike for alike arguments.

    In `drops` stretches of 15 to 45 minutes a tenth of the usual traffic comes, in `spikes` of 10 to 30 minutes three
    times as much, to all placements at once. Of each kind every part of the day from 6:00 to 22:00 has one.
    """

    def __init__(
        self, inventory: Inventory, *, requests: int, start: float, seed: int, drops: int = 2, spikes: int = 2
    ) -> None:
        self.requests = requests
        self.start = start
        self._random = Random(seed)
        self._placements = inventory.placements
        self._profiles = self._make_profiles(inventory.campaigns)
        self._usual = {placement.id: self._curve() for placement in self._placements}
        """Of each placement, how much comes in each minute of a usual day."""
        self.events = self._make_events(drops, 15, 45, 0.1) + self._make_events(spikes, 10, 30, 3.0)
        """(first minute, minutes, times the usual traffic)"""

    def learned_traffic(self, calendar: Calendar) -> dict[str, tuple[float, ...]]:
        """What `adctl learn` would know from the usual days before, each hour of which was up to a tenth off."""
        total = sum(map(sum, self._usual.values()))
        hours = [int(self.start) - HOUR_S * back for back in range(1, HISTORY_DAYS * 24 + 1)]
        learned = {}
        for placement, usual in self._usual.items():
            counts = {}
            for hour in hours:
                first = calendar.moment(hour).hour * 60
                share = sum(usual[first : first + 60]) / total
                counts[hour] = round(self.requests * share * self._random.uniform(0.9, 1.1))
            traffic = expected_traffic(counts, hours, calendar)
            assert traffic is not None
            learned[placement] = traffic
        return learned

    def visits(self) -> Iterator[Visit]:
        weights = []
        for usual in self._usual.values():
            curve = list(usual)
            for first, minutes, factor in self.events:
                for minute in range(first, first + minutes):
                    curve[minute] *= factor
            weights += curve
        random = self._random
        cells = random.choices(range(len(weights)), cum_weights=list(accumulate(weights)), k=self.requests)
        arrivals = sorted((cell % MINUTES * MINUTE_S + random.random() * MINUTE_S, cell // MINUTES) for cell in cells)
        facts, popularity = zip(*self._profiles, strict=True)
        bounds = list(accumulate(popularity))
        for seconds, placement in arrivals:
            (who,) = random.choices(facts, cum_weights=bounds)
            impression_id = f"{random.getrandbits(128):032x}"
            yield Visit(self.start + seconds, self._placements[placement].id, who, impression_id, "")

    def _curve(self) -> list[float]:
        """Most in the evening, least before dawn; of each placement a little different, and of another volume."""
        random = self._random
        volume, depth = random.lognormvariate(0, 0.6), random.uniform(0.5, 0.8)
        peak, second = random.uniform(19, 22) * 60, random.uniform(0, 0.4)
        curve = []
        for minute in range(MINUTES):
            evening = 1 + depth * cos(2 * pi * (minute - peak) / MINUTES)
            noon = second * max(0.0, cos(2 * pi * (minute - 750) / MINUTES * 3)) * (540 < minute < 960)
            curve.append(volume * (evening + noon))
        return curve

    def _make_events(self, number: int, shortest: int, longest: int, factor: float) -> list[tuple[int, int, float]]:
        random = self._random
        part = 16 * 60 // max(1, number)
        return [
            (
                6 * 60 + part * event + random.randrange(max(1, part - longest)),
                random.randint(shortest, longest),
                factor,
            )
            for event in range(number)
        ]

    def _make_profiles(self, campaigns: Sequence[Campaign]) -> list[tuple[Facts, float]]:
        """Visitors on pages, each with how often it comes: some much more than others."""
        random = self._random
        words = sorted({word for campaign in campaigns for word in campaign.targeting.keywords_any})
        pairs = sorted(
            {
                (name, value)
                for campaign in campaigns
                for name, values in campaign.targeting.key_values.items()
                for value in values
            }
        )
        profiles = []
        for _ in range(PROFILES):
            device, os, _ = random.choices(_DEVICES, [row[2] for row in _DEVICES])[0]
            country, _ = random.choices(_COUNTRIES, [row[1] for row in _COUNTRIES])[0]
            keywords = random.sample(words, min(len(words), random.randrange(3)))
            key_values = random.sample(pairs, min(len(pairs), random.randrange(3)))
            facts = Facts(
                device, os, country, _LANGUAGES[country], tuple(sorted(keywords)), tuple(sorted(key_values)), False
            )
            profiles.append((facts, random.lognormvariate(0, 1)))
        return profiles
