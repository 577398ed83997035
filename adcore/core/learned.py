"""What results teach delivery: when a campaign's visitors come, and which of its creatives they click.

It travels in the document beside the inventory, as `"learned"`, so that one table decides alike on every host, and
again when it is read from an archive:

    {"traffic": {PLACEMENT: [requests expected in each of the 168 hours of a week, from Monday 0:00]},
     "creatives": {CREATIVE: [how often it was shown, clicks]}}

`teach` works it into the campaigns' rows before a table is made of them: the forecast that `even` delivery follows, and
with `"optimize": "ctr"` the creatives' weights. Whoever changes inventories (adctl apply) never sees either.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from math import exp, log, log1p
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from adcore.core.inventory import HOURS_OF_WEEK, Campaign, Creative, Id, Inventory, Placement, Problem

# Weights are parts of this; a creative that is this unlikely to be the best still gets one.
WEIGHTS_TOTAL = 1_000_000
FORECAST_TOTAL = 1_000_000
# Of the integral over each posterior, and how far from its mode (as a logarithm) its density counts for nothing.
POINTS = 256
DEPTH = 25.0

Requests = Annotated[float, Meta(ge=0, le=1e12)]
Traffic = Annotated[tuple[Requests, ...], Meta(min_length=HOURS_OF_WEEK, max_length=HOURS_OF_WEEK)]
Times = Annotated[int, Meta(ge=0, le=10**15)]


class Learned(msgspec.Struct, frozen=True):
    traffic: Mapping[str, tuple[float, ...]] = {}
    """By placement: the requests expected in each hour of the week."""
    creatives: Mapping[str, tuple[int, int]] = {}
    """By creative: how often it was shown, and clicks."""


def read_learned(document: Mapping[str, Any]) -> tuple[Learned, tuple[Problem, ...]]:
    """What a document has under "learned", and what is wrong there, which is left out."""
    problems: list[Problem] = []
    given = document.get("learned", {})

    def rows(part: str, wanted: Any, what: str) -> dict[str, Any]:
        found = {}
        values = given.get(part, {}) if isinstance(given, Mapping) else None
        if not isinstance(values, Mapping):
            problems.append(Problem(f"$.learned.{part}", "what was learned", "must be an object"))
            return {}
        for name, value in values.items():
            try:
                found[msgspec.convert(name, Id)] = msgspec.convert(value, wanted)
            except msgspec.ValidationError:
                problems.append(Problem(f"$.learned.{part}.{str(name)[:64]!r}", "what was learned", f"must be {what}"))
        return found

    traffic = rows("traffic", Traffic, f"a list of {HOURS_OF_WEEK} numbers of requests")
    creatives = rows("creatives", tuple[Times, Times], "[shown, clicks]")
    return Learned(traffic, creatives), tuple(problems)


def teach(inventory: Inventory, learned: Learned) -> Inventory:
    """The inventory with what was learned about its campaigns."""
    forecasts = _Forecasts(inventory.placements, learned.traffic)
    campaigns = []
    for campaign in inventory.campaigns:
        changes: dict[str, Any] = {}
        if campaign.pacing == "even":
            forecast = forecasts.of(campaign)
            if forecast:
                changes["forecast"] = forecast
        if campaign.optimize == "ctr" and len(campaign.creatives) > 1:
            changes["creatives"] = tuple(_optimised(campaign.creatives, learned.creatives))
        campaigns.append(msgspec.structs.replace(campaign, **changes) if changes else campaign)
    return Inventory(inventory.placements, tuple(campaigns))


class _Forecasts:
    """The forecast of each campaign: its own placements' traffic in the hours that it targets."""

    def __init__(self, placements: Sequence[Placement], traffic: Mapping[str, tuple[float, ...]]) -> None:
        self._placements = [placement for placement in placements if placement.id in traffic]
        self._traffic = traffic
        self._found: dict[object, tuple[int, ...]] = {}
        """Most campaigns have theirs in common with others."""

    def of(self, campaign: Campaign) -> tuple[int, ...]:
        shown = frozenset((creative.placement_size, creative.format) for creative in campaign.creatives)
        targeting = campaign.targeting
        key = shown, targeting.placements, targeting.hours, targeting.weekdays
        forecast = self._found.get(key)
        if forecast is None:
            traffics = [
                self._traffic[placement.id]
                for placement in self._placements
                if (not targeting.placements or placement.id in targeting.placements)
                and any(((placement.width, placement.height), form) in shown for form in placement.formats)
            ]
            forecast = self._found[key] = forecast_of(traffics, targeting.hours, targeting.weekdays)
        return forecast


def forecast_of(
    traffics: Iterable[Sequence[float]], hours: Sequence[int] = (), weekdays: Sequence[int] = ()
) -> tuple[int, ...]:
    """What part of a week's traffic, of FORECAST_TOTAL, has come by the end of each hour; () for a straight line."""
    targeted = [
        (not hours or hour % 24 in hours) and (not weekdays or hour // 24 in weekdays) for hour in range(HOURS_OF_WEEK)
    ]
    sums = [sum(column) for column in zip(*traffics, strict=True)] or [0.0] * HOURS_OF_WEEK
    rates = [rate if wanted else 0.0 for rate, wanted in zip(sums, targeted, strict=True)]
    if not any(rates):
        if all(targeted):
            return ()
        rates = [float(wanted) for wanted in targeted]
    passed = list(accumulate(rates))
    return tuple(round(FORECAST_TOTAL * part / passed[-1]) for part in passed)


def _optimised(creatives: Sequence[Creative], results: Mapping[str, tuple[int, int]]) -> Iterator[Creative]:
    """The creatives with the weights that Thompson sampling gives them, among those of their own size."""
    sizes: dict[tuple[int, int], list[Creative]] = {}
    for creative in creatives:
        sizes.setdefault(creative.placement_size, []).append(creative)
    weights = {}
    for rivals in sizes.values():
        chances = best_chances([results.get(creative.id, (0, 0)) for creative in rivals])
        weights.update({c.id: max(1, round(p * WEIGHTS_TOTAL)) for c, p in zip(rivals, chances, strict=True)})
    for creative in creatives:
        yield msgspec.structs.replace(creative, weight=weights[creative.id])


def best_chances(results: Sequence[tuple[int, int]]) -> list[float]:
    """For each (shown, clicks) the probability that its click rate is the highest of all.

    Thompson sampling draws a rate from each posterior and shows the highest, so it shows each with exactly this
    probability (Thompson, "On the likelihood that one unknown probability exceeds another in view of the evidence of
    two samples", Biometrika 25, 1933). As a weight it costs a decision nothing, stays until something is learned, and
    is in the log as `chance`. The posteriors are Beta(clicks + 1, others + 1); the chance of one is the integral of its
    density times all others' distributions, summed over points of its own in the logit of the rate, where no posterior
    is too narrow or too near to an end for them.
    """
    posteriors = [_Posterior(min(clicks, shown) + 1.0, max(shown - clicks, 0) + 1.0) for shown, clicks in results]
    # Whoever ends below where another one starts is not the best.
    start = max(posterior.points[0] for posterior in posteriors)
    rivals = [posterior for posterior in posteriors if posterior.points[-1] > start]
    chances = []
    for posterior in posteriors:
        chance = 0.0
        if posterior in rivals:
            others = [rival.below for rival in rivals if rival is not posterior]
            for point, mass in zip(posterior.points, posterior.masses, strict=True):
                for below in others:
                    mass *= below(point)
                chance += mass
        chances.append(chance)
    total = sum(chances)
    return [chance / total for chance in chances]


class _Posterior:
    """Beta(a, b) over the logit of the rate, as masses that stand at points of equal distance."""

    __slots__ = ("_sums", "masses", "points")

    def __init__(self, a: float, b: float) -> None:
        def density(logit: float) -> float:
            """The logarithm, to a constant."""
            # log(1 + e^x) without overflow
            soft = max(logit, 0.0) + log1p(exp(-abs(logit)))
            return a * (logit - soft) - b * soft

        mode = log(a / b)
        peak = density(mode)
        low, high = (_edge(density, mode, peak - DEPTH, side / (a * b / (a + b)) ** 0.5) for side in (-1, 1))
        step = (high - low) / (POINTS - 1)
        self.points = [low + step * number for number in range(POINTS)]
        masses = [exp(density(point) - peak) for point in self.points]
        total = sum(masses)
        self.masses = [mass / total for mass in masses]
        self._sums = [0.0, *accumulate(self.masses)]

    def below(self, point: float) -> float:
        """The distribution: the probability of a rate with a lower logit."""
        points = self.points
        # Each mass is spread evenly over a step, with its point in the middle.
        place = (point - points[0]) / (points[1] - points[0]) + 0.5
        if place <= 0.0:
            return 0.0
        if place >= POINTS:
            return 1.0
        number = int(place)
        return self._sums[number] + self.masses[number] * (place - number)


def _edge(density: Callable[[float], float], mode: float, depth: float, deviation: float) -> float:
    """How far out from the mode the density is above `depth`; `deviation` is a first guess, and its sign the side."""
    near, far = mode, mode + deviation
    while density(far) > depth:
        near, far = far, far + 2.0 * (far - mode)
    for _ in range(20):
        middle = (near + far) / 2.0
        near, far = (middle, far) if density(middle) > depth else (near, middle)
    return far
