"""Rounds of measurements -> medians, spreads and ratios.

A machine's speed drifts, and with it every time. So contenders take turns within a round, each is divided by what
nginx took in the same round, and the median of these ratios is the result. At fixed rates each is divided by what Go
net/http took as well, which does the same job.
"""

from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

FLOOR = "nginx"
PEER = "nethttp"
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
    cpu_us: Mapping[str, float] = {}
    """Per request, by program."""
    voluntary: float = 0.0
    """Context switches per request: threads that went to sleep, ..."""
    involuntary: float = 0.0
    """... and threads that had to leave the core to another."""

    @property
    def total_us(self) -> float:
        return sum(self.cpu_us.values())


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
    cpu_us: Spread
    parts_us: dict[str, Spread]
    """By program, when there are several."""
    cpu_ratios: dict[str, Spread]
    """To FLOOR and to PEER in the same round, of those that were measured."""
    latency_ratios: dict[str, Spread]
    """To the median of PEER over the rounds, by percentile; empty when that was not measured."""
    voluntary: Spread
    involuntary: Spread


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
        summaries.append(
            ClosedSummary(
                contender,
                mix,
                spread(one.total_us for one in own),
                _parts([one.cpu_us for one in own]),
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
        # A machine's hiccup may cost one round; a contender that falls behind does so in most.
        kept_up = sum(one.kept_up for one in own) * 2 > len(own)
        summaries.append(
            OpenSummary(
                contender,
                rate,
                _latencies(own),
                kept_up,
                median(one.late_p99_us for one in own),
                spread(one.total_us for one in own),
                _parts([one.cpu_us for one in own]),
                _cpu_ratios(own, samples),
                _latency_ratios(own, [one for one in samples if (one.contender, one.rate) == (PEER, rate)]),
                spread(one.voluntary for one in own),
                spread(one.involuntary for one in own),
            )
        )
    return summaries


def _parts(rounds: Sequence[Mapping[str, float]]) -> dict[str, Spread]:
    """Of each program over the rounds; none if there is only one."""
    programs = list(dict.fromkeys(name for one in rounds for name in one))
    return {name: spread(one.get(name, 0.0) for one in rounds) for name in programs} if len(programs) > 1 else {}


def _latencies(samples: Sequence[OpenSample]) -> dict[str, float]:
    latency = {name: median(one.latency_us[name] for one in samples) for name in PERCENTILES}
    latency["max"] = max(one.latency_us["max"] for one in samples)
    return latency


def _cpu_ratios(own: Sequence[OpenSample], samples: Sequence[OpenSample]) -> dict[str, Spread]:
    found = {}
    for other in (FLOOR, PEER):
        theirs = {(one.round, one.rate): one.total_us for one in samples if one.contender == other}
        ratios = [one.total_us / to for one in own if (to := theirs.get((one.round, one.rate)))]
        if ratios:
            found[other] = spread(ratios)
    return found


def _latency_ratios(own: Sequence[OpenSample], theirs: Sequence[OpenSample]) -> dict[str, Spread]:
    """To the median of theirs: in a single round, one hiccup of the machine is a percentile."""
    if not theirs:
        return {}
    to = _latencies(theirs)
    return {name: spread(one.latency_us[name] / to[name] for one in own) for name in PERCENTILES if to[name]}


def to_object(value: Any) -> Any:
    """Of any of the above, for JSON: named tuples as objects."""
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: to_object(inner) for name, inner in value._asdict().items()}
    if isinstance(value, dict):
        return {name: to_object(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [to_object(inner) for inner in value]
    return round(value, 3) if isinstance(value, float) else value
