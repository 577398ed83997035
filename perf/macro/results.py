"""Rounds of measurements -> medians, spreads and ratios.

A machine's speed drifts, and with it every time. So contenders take turns within a round, each is divided by what
nginx took in the same round, and the median of these ratios is the result.
"""

from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any, NamedTuple

FLOOR = "nginx"
PERCENTILES = ("p50", "p99", "p99.9", "max")


class ClosedSample(NamedTuple):
    """One contender in one round under one mix."""

    round: int
    contender: str
    mix: str
    requests: int
    cpu_us: dict[str, float]
    """Per request, by program."""
    per_second: float

    @property
    def total_us(self) -> float:
        return sum(self.cpu_us.values())


class OpenSample(NamedTuple):
    """One contender in one round at one rate; times in µs."""

    round: int
    contender: str
    rate: float
    latency_us: dict[str, float]
    kept_up: bool
    backlog: int
    late_p99_us: float


class Spread(NamedTuple):
    median: float
    low: float
    high: float


class ClosedSummary(NamedTuple):
    contender: str
    mix: str
    cpu_us: Spread
    parts_us: dict[str, Spread]
    """By program, when there are several."""
    ratio: Spread | None
    """To nginx in the same round; None when that was not measured."""
    per_second: Spread


class OpenSummary(NamedTuple):
    contender: str
    rate: float
    latency_us: dict[str, float]
    """The median over the rounds of each percentile; of the maximum, the maximum."""
    kept_up: bool
    late_p99_us: float


def spread(values: Iterable[float]) -> Spread:
    found = list(values)
    return Spread(median(found), min(found), max(found))


def summarise_closed(samples: Sequence[ClosedSample]) -> list[ClosedSummary]:
    """In the order in which contender and mix first appear."""
    floors = {(one.round, one.mix): one.total_us for one in samples if one.contender == FLOOR}
    summaries = []
    for contender, mix in dict.fromkeys((one.contender, one.mix) for one in samples):
        own = [one for one in samples if (one.contender, one.mix) == (contender, mix)]
        ratios = [one.total_us / floor for one in own if (floor := floors.get((one.round, mix)))]
        parts = list(own[0].cpu_us) if len(own[0].cpu_us) > 1 else []
        summaries.append(
            ClosedSummary(
                contender,
                mix,
                spread(one.total_us for one in own),
                {part: spread(one.cpu_us[part] for one in own) for part in parts},
                spread(ratios) if ratios else None,
                spread(one.per_second for one in own),
            )
        )
    return summaries


def summarise_open(samples: Sequence[OpenSample]) -> list[OpenSummary]:
    summaries = []
    listed = dict.fromkeys((one.rate, one.contender) for one in samples)
    for rate, contender in sorted(listed, key=lambda one: one[0]):  # of equal rates in the order of their turns
        own = [one for one in samples if (one.contender, one.rate) == (contender, rate)]
        latency = {name: median(one.latency_us[name] for one in own) for name in PERCENTILES}
        latency["max"] = max(one.latency_us["max"] for one in own)
        # A machine's hiccup may cost one round; a contender that falls behind does so in most.
        kept_up = sum(one.kept_up for one in own) * 2 > len(own)
        summaries.append(OpenSummary(contender, rate, latency, kept_up, median(one.late_p99_us for one in own)))
    return summaries


def to_object(value: Any) -> Any:
    """Of any of the above, for JSON: named tuples as objects."""
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: to_object(inner) for name, inner in value._asdict().items()}
    if isinstance(value, dict):
        return {name: to_object(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [to_object(inner) for inner in value]
    return round(value, 3) if isinstance(value, float) else value
