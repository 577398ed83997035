"""The counts that a revision may not exceed: baseline.json, by Python's minor version, which decides how it waits."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from perf.paced.counting import MEASURES, Counts

BASELINE = Path(__file__).with_name("baseline.json")
TOLERANCE = 0.05
# Where requests are few, the moments at which counts are exchanged, which are random, are a part of all.
SLOW_TOLERANCE = 0.25
# What a window has at its two ends: half an interval more or less.
ENDS = 2
# A usual site's rate, for people: what is held does not depend on it.
RATE = 2000
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"


class NoBaseline(Exception):
    """There is nothing to hold this version of Python to."""


class Model(NamedTuple):
    """Counts of a server by measure: per request, and per second in which requests come."""

    per_request: dict[str, float]
    per_second: dict[str, float]
    names: dict[str, float]
    """System calls by name, of 1,000 requests. Nothing is held to these: they show what has changed."""

    def expected(self, measure: str, requests: float, seconds: float) -> float:
        return self.per_request[measure] * requests + self.per_second[measure] * seconds


def fit(fast: Sequence[Counts], slow: Sequence[Counts]) -> Model:
    """The model that explains windows with many requests in a second and the same ones with few."""
    found = Model({}, {}, {})
    for many, few in zip(fast, slow, strict=True):
        found.names.update(per_thousand(many))
        for measure, count in many.counted.items():
            # count = per request * requests + per second * seconds, twice.
            determinant = many.requests * few.seconds - few.requests * many.seconds
            each = (count * few.seconds - few.counted[measure] * many.seconds) / determinant
            each = max(each, 0.0)  # what follows from time alone may come out as a little less than nothing
            found.per_request[measure] = each
            found.per_second[measure] = max((few.counted[measure] - each * few.requests) / few.seconds, 0.0)
    return found


def middle(models: Sequence[Model]) -> Model:
    """The median of each number."""
    names = dict.fromkeys(name for model in models for name in model.names)
    return Model(
        {measure: median(model.per_request[measure] for model in models) for measure in MEASURES},
        {measure: median(model.per_second[measure] for model in models) for measure in MEASURES},
        {name: median(model.names.get(name, 0.0) for model in models) for name in names},
    )


def per_thousand(counts: Counts) -> dict[str, float]:
    return {name: count * 1000 / counts.requests for name, count in counts.names.items()}


def limit(held_to: Model, measure: str, counts: Counts, tolerance: float) -> float:
    return held_to.expected(measure, counts.requests, counts.seconds) * (1 + tolerance) + ENDS


def regressions(held_to: Model, counts: Counts, tolerance: float) -> dict[str, str]:
    """Each measure that has more than the baseline allows, and what to say of it."""
    found = {}
    for measure, count in counts.counted.items():
        if count > limit(held_to, measure, counts, tolerance):
            usual = held_to.expected(measure, counts.requests, counts.seconds)
            more = f"{count / usual - 1:.0%} more than" if usual else "and"
            found[measure] = (
                f"{measure}: {count:,.0f} for {counts.requests:,} requests in {counts.seconds:.1f} s, "
                f"{more} its baseline of {usual:,.0f}{_grown(held_to, counts, measure)}"
            )
    return found


def improvements(held_to: Model, counts: Counts) -> list[str]:
    """Each measure that is so far below its baseline that this no longer holds it to anything."""
    return [
        f"{measure}: {count:,.0f} for {counts.requests:,} requests in {counts.seconds:.1f} s, more than "
        f"{TOLERANCE:.0%} below its baseline of {usual:,.0f}; hold it with --update"
        for measure, count in counts.counted.items()
        if count + ENDS < (usual := held_to.expected(measure, counts.requests, counts.seconds)) * (1 - TOLERANCE)
    ]


def _grown(held_to: Model, counts: Counts, measure: str) -> str:
    """The system calls that have grown most, per 1,000 requests."""
    if measure != "system_calls":
        return ""
    more = {name: count - held_to.names.get(name, 0.0) for name, count in per_thousand(counts).items()}
    most = sorted(more, key=lambda name: -more[name])[:5]
    return "; per 1,000 requests " + ", ".join(f"{more[name]:+.0f} {name}" for name in most if more[name] > 1)


def read(path: Path) -> Model:
    """Of this version of Python. Raises NoBaseline."""
    known = _read(path)
    if VERSION not in known:
        raise NoBaseline(f"{path.name} has Python {', '.join(known) or 'of no version'}; write {VERSION} with --update")
    return Model(**known[VERSION])


def write(path: Path, model: Model) -> None:
    """Replace that of this version of Python; the others stay."""
    known = _read(path)
    known[VERSION] = {name: _rounded(values) for name, values in model._asdict().items()}
    path.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n")


def _rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in values.items()}


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text())) if path.exists() else {}
