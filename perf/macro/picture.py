"""The results as a picture: CPU per request beside nginx's, the same at each rate, and latency at each rate."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from perf.macro.results import FLOOR, ClosedSummary, OpenSummary

COLOURS = {"same": "#4878a8", "mixed": "#e0893b"}
SHADES = {"p50": "#9ecae1", "p99": "#4292c6", "p99.9": "#08306b"}


def draw(
    path: Path,
    closed: Sequence[ClosedSummary],
    opened: Sequence[OpenSummary],
    labels: Mapping[str, str],
    title: str,
) -> None:
    """Write an SVG, the same for the same results."""
    # Only now: the tests of the rest do without.
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "adcore", "svg.fonttype": "none", "font.size": 9})
    from matplotlib import pyplot

    rates = list(dict.fromkeys(one.rate for one in opened))
    heights = [5.5] * (bool(closed) + bool(rates)) + [3.2] * len(rates)
    figure, all_axes = pyplot.subplots(
        len(heights), 1, figsize=(10, sum(heights)), height_ratios=heights, squeeze=False, layout="constrained"
    )
    panels = [row[0] for row in all_axes]
    if closed:
        _draw_closed(panels.pop(0), closed, labels)
    if rates:
        _draw_rates(panels.pop(0), opened, labels)
    for axes, rate in zip(panels, rates, strict=True):
        _draw_latencies(axes, rate, [one for one in opened if one.rate == rate], labels)
        if rate == rates[0]:
            axes.legend(loc="upper right")
    figure.suptitle(title)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _draw_closed(axes: Any, closed: Sequence[ClosedSummary], labels: Mapping[str, str]) -> None:
    names = list(dict.fromkeys(one.contender for one in closed))
    mixes = list(dict.fromkeys(one.mix for one in closed))
    height = 0.8 / max(len(mixes), 1)
    for shift, mix in enumerate(mixes):
        for one in closed:
            if one.mix != mix:
                continue
            at = names.index(one.contender) + (shift - (len(mixes) - 1) / 2) * height
            middle, low, high = one.cpu_us
            axes.barh(at, middle, height, color=COLOURS[mix], xerr=[[middle - low], [high - middle]])
            ratio = f", {one.ratio.median:.2f} times nginx" if one.ratio and one.contender != FLOOR else ""
            axes.text(high, at, f"   {middle:.1f}{ratio}", va="center", fontsize=8)
        axes.barh(0, 0, color=COLOURS[mix], label=mix)
    axes.set_yticks(range(len(names)), [labels[name] for name in names])
    axes.invert_yaxis()
    # Room for the figures beside the longest bar.
    axes.set_xlim(0, max(one.cpu_us.high for one in closed) * 1.4)
    axes.set_xlabel("µs of CPU per request in the closed loop, median and range of the rounds")
    axes.legend(loc="upper right")


def _draw_rates(axes: Any, opened: Sequence[OpenSummary], labels: Mapping[str, str]) -> None:
    for number, name in enumerate(dict.fromkeys(one.contender for one in opened)):
        here = [one for one in opened if one.contender == name]
        medians = [one.cpu_us.median for one in here]
        ranges = [
            [one.cpu_us.median - one.cpu_us.low for one in here],
            [one.cpu_us.high - one.cpu_us.median for one in here],
        ]
        axes.errorbar([one.rate for one in here], medians, ranges, label=labels[name], marker="osD^vP*Xh"[number % 9])
    axes.set_xscale("log")
    rates = sorted({one.rate for one in opened})
    axes.set_xticks(rates, [f"{rate:,.0f}" for rate in rates])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel("requests/s")
    axes.set_ylabel("µs of CPU per request, median and range of the rounds")
    axes.legend(loc="upper right")


def _draw_latencies(axes: Any, rate: float, here: Sequence[OpenSummary], labels: Mapping[str, str]) -> None:
    for shift, (name, colour) in enumerate(SHADES.items()):
        places = [number + (shift - 1) * 0.27 for number in range(len(here))]
        axes.barh(places, [one.latency_us[name] for one in here], 0.27, color=colour, label=name)
    axes.set_yticks(
        range(len(here)), [labels[one.contender] + ("" if one.kept_up else " (falls behind)") for one in here]
    )
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel(f"µs from when it was due, at {rate:,.0f} requests/s")
