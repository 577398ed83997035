"""The results as a picture: CPU per request beside nginx's, and latency at each rate."""

from collections.abc import Mapping, Sequence
from pathlib import Path

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
    figure, all_axes = pyplot.subplots(
        1 + len(rates),
        1,
        figsize=(10, 5.5 + 3.2 * len(rates)),
        height_ratios=[5.5, *[3.2] * len(rates)],
        squeeze=False,
        layout="constrained",
    )
    axes = all_axes[0][0]
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
    if closed:
        # Room for the figures beside the longest bar.
        axes.set_xlim(0, max(one.cpu_us.high for one in closed) * 1.4)
    axes.set_xlabel("µs of CPU per request, median and range of the rounds")
    axes.legend(loc="upper right")
    for panel, rate in enumerate(rates, 1):
        axes = all_axes[panel][0]
        here = [one for one in opened if one.rate == rate]
        for shift, (name, colour) in enumerate(SHADES.items()):
            places = [number + (shift - 1) * 0.27 for number in range(len(here))]
            axes.barh(places, [one.latency_us[name] for one in here], 0.27, color=colour, label=name)
        axes.set_yticks(
            range(len(here)), [labels[one.contender] + ("" if one.kept_up else " (falls behind)") for one in here]
        )
        axes.invert_yaxis()
        axes.set_xscale("log")
        axes.set_xlabel(f"µs from when it was due, at {rate:,.0f} requests/s")
        if panel == 1:
            axes.legend(loc="upper right")
    figure.suptitle(title)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
