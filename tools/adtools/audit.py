"""Do the shares in a log match the weights? Pearson's chi-square test, for each choice that was made often enough.

That each choice follows from its impression's id is for replay to say; that the ids are random is seen here. All
answers of one placement among the same ads with the same chances are one test. With many tests some look bad by chance:
each p-value is adjusted by Holm's method (1979), so that an audit of a good log fails once in 1 / ALPHA times.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from adcore.core.adtable import Drawing

ALPHA = 0.001
# The test is an approximation that holds for at least so many expected in each cell (Cochran, 1954).
EXPECTED_MIN = 5.0
# Choices looked up by their object; forgetting them costs only the time to find them again.
DRAWINGS_MAX = 4096


class Choice(NamedTuple):
    """What decides about an ad in a placement: the ads that can be drawn and their chances."""

    placement: str
    chances: tuple[tuple[str, float], ...]
    """By creative, sorted."""


class Verdict(NamedTuple):
    """One test: how often each creative was shown and should have been, and how probable so large a difference is."""

    choice: Choice
    shown: Counter[str]
    chi_square: float
    degrees: int
    p_value: float
    p_adjusted: float

    @property
    def failed(self) -> bool:
        return self.p_adjusted < ALPHA


class Audit:
    """Counts what was shown, choice by choice."""

    def __init__(self) -> None:
        self._by_drawing: dict[Drawing, Counter[str]] = {}
        self._shown: dict[Choice, Counter[str]] = {}

    def add(self, placement: str, drawing: Drawing, creative: str) -> None:
        shown = self._by_drawing.get(drawing)
        if shown is None:
            chances = tuple(sorted((ad.creative.id, chance) for ad, chance in drawing.chances()))
            shown = self._shown.setdefault(Choice(placement, chances), Counter())
            if len(self._by_drawing) >= DRAWINGS_MAX:
                self._by_drawing.clear()
            self._by_drawing[drawing] = shown
        shown[creative] += 1

    def verdicts(self) -> list[Verdict]:
        """The tests that could be made, the worst first."""
        tests = []
        for choice, shown in self._shown.items():
            statistic, degrees = pearson(shown, choice.chances)
            if degrees:
                tests.append((chi_square_tail(statistic, degrees), statistic, degrees, choice))
        tests.sort()
        adjusted = holm([test[0] for test in tests])
        return [
            Verdict(choice, self._shown[choice], statistic, degrees, p_value, p_adjusted)
            for (p_value, statistic, degrees, choice), p_adjusted in zip(tests, adjusted, strict=True)
        ]

    def choices(self) -> int:
        return len(self._shown)


def pearson(shown: Counter[str], chances: Sequence[tuple[str, float]]) -> tuple[float, int]:
    """Pearson's statistic and its degrees of freedom (0: too few to tell). Rare ones are taken together.

    What has no chance is left out: replay names it.
    """
    total = sum(shown[creative] for creative, _ in chances)
    cells = []
    rare_shown, rare_expected = 0, 0.0
    for creative, chance in chances:
        expected = chance * total
        if expected < EXPECTED_MIN:
            rare_shown, rare_expected = rare_shown + shown[creative], rare_expected + expected
        else:
            cells.append((shown[creative], expected))
    if rare_expected >= EXPECTED_MIN:
        cells.append((rare_shown, rare_expected))
    elif cells and rare_expected:
        least = min(range(len(cells)), key=lambda at: cells[at][1])
        cells[least] = cells[least][0] + rare_shown, cells[least][1] + rare_expected
    if len(cells) < 2:
        return 0.0, 0
    return math.fsum((seen - expected) ** 2 / expected for seen, expected in cells), len(cells) - 1


def chi_square_tail(statistic: float, degrees: int) -> float:
    """P(X >= statistic) of a chi-square distribution: for whole degrees a finite sum.

    Abramowitz and Stegun, 26.4.4 and 26.4.5. scipy.stats.chi2.sf is the same; it would bring 100 MB for it.
    """
    half = statistic / 2
    if half <= 0:
        return 1.0
    odd = degrees % 2
    powers = [at + odd / 2 for at in range(degrees // 2)]
    terms = [math.exp(power * math.log(half) - half - math.lgamma(power + 1)) for power in powers]
    return min(1.0, math.fsum([math.erfc(math.sqrt(half)) if odd else 0.0, *terms]))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values of tests whose own are in ascending order."""
    adjusted, least = [], 0.0
    for at, p_value in enumerate(p_values):
        least = max(least, min(1.0, (len(p_values) - at) * p_value))
        adjusted.append(least)
    return adjusted
