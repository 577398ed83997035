"""Charts as the coordinates of SVG shapes; a template draws them, so that colours follow the page's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

WIDTH, HEIGHT = 720, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 8, 10, 26
_LABELS_MAX = 8


class Bar(NamedTuple):
    x: float
    y: float
    width: float
    height: float
    text: str


class Label(NamedTuple):
    """Of an axis: `at` is its x, or its y."""

    at: float
    text: str


class Chart(NamedTuple):
    bars: list[Bar]
    lines: list[str]
    """The points of each polyline, as SVG writes them."""
    x_labels: list[Label]
    y_labels: list[Label]
    left: int = _LEFT
    right: int = WIDTH - _RIGHT
    base: int = HEIGHT - _BOTTOM
    width: int = WIDTH
    height: int = HEIGHT


def bar_chart(points: Sequence[tuple[str, int]]) -> Chart:
    """A bar for each (label, count)."""
    top = round_up(max((count for _, count in points), default=0))
    step = (WIDTH - _LEFT - _RIGHT) / max(len(points), 1)
    bars = []
    for number, (label, count) in enumerate(points):
        y = _y(count, top)
        bars.append(
            Bar(
                round(_LEFT + (number + 0.1) * step, 1),
                y,
                round(step * 0.8, 1),
                round(HEIGHT - _BOTTOM - y, 1),
                f"{label}: {count:,}",
            )
        )
    return Chart(bars, [], _x_labels([label for label, _ in points], step), _y_labels(top))


def line_chart(labels: Sequence[str], lines: Sequence[Sequence[float | None]]) -> Chart:
    """A line for each series; a label stands for each of its values, and None ends the line."""
    top = round_up(max((value for line in lines for value in line if value is not None), default=0))
    step = (WIDTH - _LEFT - _RIGHT) / max(len(labels), 1)
    drawn = [
        " ".join(
            f"{_LEFT + (number + 0.5) * step:.1f},{_y(value, top)}"
            for number, value in enumerate(line)
            if value is not None
        )
        for line in lines
    ]
    return Chart([], drawn, _x_labels(labels, step), _y_labels(top))


def round_up(value: float) -> int:
    """The next number of the form 1, 2 or 5 times a power of ten."""
    power = 1
    while power * 10 < value:
        power *= 10
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= value)


def _y(value: float, top: int) -> float:
    return round(HEIGHT - _BOTTOM - value / top * (HEIGHT - _TOP - _BOTTOM), 1)


def _x_labels(labels: Sequence[str], step: float) -> list[Label]:
    every = -(-len(labels) // _LABELS_MAX)
    return [Label(round(_LEFT + (n + 0.5) * step, 1), text) for n, text in enumerate(labels) if n % max(every, 1) == 0]


def _y_labels(top: int) -> list[Label]:
    values = (0, top // 2, top) if top > 1 else (0, top)
    return [Label(_y(value, top), _short(value)) for value in values]


def _short(count: int) -> str:
    for unit, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= unit:
            return f"{count / unit:g}{letter}"
    return str(count)
