"""Rates, each over the asking program's own interval: what has happened since it asked the last time.

Several programs poll one process at paces of their own, so each is remembered by a name: what it gives as `poller=`,
else its address and User-Agent. The first time, its interval is the life of the process. Rates are therefore always
differences of counts divided by the time between them; none is smoothed or guessed.
"""

import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, NamedTuple

from adcore.http1.histogram import Histogram, percentiles_us

# A snapshot of the histograms has at most 1,064 buckets, and mostly a hundred: 64 pollers are a few megabytes at worst.
POLLERS_MAX = 64
POLLER_CHARS_MAX = 128


class Sample(NamedTuple):
    """What had been counted at a moment."""

    monotonic: float
    counts: Mapping[str, float]
    buckets: Mapping[str, Mapping[int, int]]
    """By histogram: {upper bound in microseconds: count}"""


class Pollers:
    """What each poller saw last."""

    def __init__(self, started_monotonic: float) -> None:
        self._start = Sample(started_monotonic, {}, {})
        self._seen: OrderedDict[str, Sample] = OrderedDict()

    def __len__(self) -> int:
        return len(self._seen)

    def turn(self, who: str, now: Sample) -> Sample:
        """Note what this poller sees now; what it saw before. Who has not asked for longest is forgotten first."""
        who = who[:POLLER_CHARS_MAX]
        before = self._seen.pop(who, self._start)
        self._seen[who] = now
        if len(self._seen) > POLLERS_MAX:
            self._seen.popitem(last=False)
        return before


def take_sample(status: Mapping[str, Any], histograms: Mapping[str, Histogram]) -> Sample:
    """`status` is the document that /status shows."""
    records = status["log"]
    counts: dict[str, float] = {
        "requests": status["connections"]["requests"],
        "log_dropped": sum(records["dropped"].values()),
        "log_dropped_paid": sum(records["dropped_paid"].values()),
        "gc": status["gc"]["count"],
        "gc_pause_s": status["gc"]["pause_total_s"],
        "cpu_s": status["process"]["cpu_s"],
    }
    for kind in ("impression", "view", "click", "unfilled"):
        counts[kind] = (
            records["accepted"].get(kind, 0) + records["dropped"].get(kind, 0) - records["dropped_late"].get(kind, 0)
        )
    buckets = {name: dict(histogram.buckets_us()) for name, histogram in histograms.items()}
    return Sample(time.monotonic(), counts, buckets)


def compare(before: Sample, now: Sample) -> dict[str, Any]:
    """What happened between the two: counted, per second, and the percentiles of the durations in microseconds."""
    interval_s = now.monotonic - before.monotonic
    counted = {name: count - before.counts.get(name, 0) for name, count in now.counts.items()}
    rates: dict[str, Any] = {
        "interval_s": interval_s,
        "counted": counted,
        "per_second": {name: count / interval_s if interval_s > 0 else None for name, count in counted.items()},
    }
    for name, buckets in now.buckets.items():
        earlier = before.buckets.get(name, {})
        between = [(bound, count - earlier.get(bound, 0)) for bound, count in buckets.items()]
        rates[f"{name}_us"] = percentiles_us([(bound, count) for bound, count in between if count])
    return rates
