"""The latencies as a picture: how many requests took longer than what, with and without edits."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from perf.refresh.__main__ import Turn

COLOURS = {"still": "#888888", "few": "#4878a8", "tenth": "#e0893b"}
LABELS = {"still": "no edits", "few": "a few campaigns at a time", "tenth": "a tenth of all campaigns at a time"}


def draw(path: Path, turns: "Sequence[Turn]", title: str) -> None:
    """Write an SVG, the same for the same results."""
    # Only now: the tests of the rest do without.
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "adcore", "svg.fonttype": "none", "font.size": 9})
    from matplotlib import pyplot

    sets = sorted({turn.cores for turn in turns})
    figure, all_axes = pyplot.subplots(len(sets), 1, figsize=(9, 4 * len(sets)), squeeze=False, layout="constrained")
    for row, cores in enumerate(sets):
        axes = all_axes[row][0]
        for edits, colour in COLOURS.items():
            counts: dict[float, float] = {}
            for turn in turns:
                if (turn.cores, turn.edits) == (cores, edits):
                    for least, count in turn.histogram:
                        counts[least] = counts.get(least, 0.0) + count
            left = total = sum(counts.values())
            latencies, shares = [], []
            for least, count in sorted(counts.items()):
                latencies.append(least)
                shares.append(left / total)
                left -= count
            axes.plot(latencies, shares, color=colour, label=LABELS[edits], drawstyle="steps-pre")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.axhline(0.001, color="#bbbbbb", linewidth=0.8)
        axes.set_xlabel("µs from when a request was due")
        axes.set_ylabel("share of requests that took longer")
        axes.set_title(f"the server on {cores} core{'s' if cores > 1 else ''}")
        axes.legend(loc="upper right")
    figure.suptitle(title)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
