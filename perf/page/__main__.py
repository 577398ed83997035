"""Write results into perf/README.rst: `perf/run page FILE...`, each a JSON of perf/run macro, macro --changing or idle.

The page has a block for each of these three, between two comments, that nothing else writes. Its first line names the
file that it comes from, so that a test can hold the page to the results that are kept beside it.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# `python perf/page` has this folder on the path, in which `import perf.page` finds nothing.
sys.path[0] = str(Path(__file__).resolve().parents[2])

from perf.macro.servers import CONTENDERS, ROOT  # noqa: E402

PAGE = ROOT / "perf" / "README.rst"
RESULTS = ROOT / "perf" / "results"
LABELS = {contender.name: contender.label for contender in CONTENDERS}
LATENCIES = ("p50", "p99", "p99.9")
Rows = list[list[str]]


class PageError(Exception):
    """A file is no result, or the page has no place for it."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="perf/run page", description="Write results into perf/README.rst.")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="of perf/results")
    parser.add_argument("--page", type=Path, default=PAGE, metavar="FILE", help="default: perf/README.rst")
    options = parser.parse_args(argv)
    try:
        page = options.page.read_text()
        for path in options.files:
            page = replaced(page, path)
    except (PageError, OSError) as error:
        print(f"perf/run page: {error}", file=sys.stderr)
        return 1
    options.page.write_text(page)
    return 0


def replaced(page: str, path: Path) -> str:
    """The page with the block that is for this file. Raises PageError."""
    kind = path.name.partition("-")[0]
    if kind not in BLOCKS:
        raise PageError(f"{path} is not called {', '.join(BLOCKS)}-DATE-COMMIT.json, as the runs call their results")
    start, end = f".. begin {kind}\n\n", f".. end {kind}\n"
    head, _, rest = page.partition(start)
    _, found_end, tail = rest.partition(end)
    if not found_end:
        raise PageError(f"the page has no two lines `{start.strip()}` and `{end.strip()}`")
    try:
        found = block(path)
    except (ValueError, KeyError, TypeError) as error:
        raise PageError(f"{path} is no result of perf/run: {error!r}") from error
    return f"{head}{start}{found}\n{end}{tail}"


def block(path: Path) -> str:
    """What the page says of a result."""
    result = json.loads(path.read_text())
    where = f"{result['machine']['cores']} cores of {result['machine']['cpu']}, {result['machine']['python']}"
    first = f"``results/{path.name}`` ({result['date'][:10]}, {where}):"
    return "\n\n".join([first, *BLOCKS[path.name.partition("-")[0]](result)]) + "\n"


def named_results(page: str) -> list[str]:
    """The files that the blocks come from."""
    return re.findall(r"^\.\. begin \w+\n\n``results/([^`]+)``", page, re.MULTILINE)


def rates(result: dict[str, Any]) -> list[str]:
    """CPU and latencies, a column for each rate."""
    by_name: dict[str, dict[float, dict[str, Any]]] = {}
    for one in result["open"]:
        by_name.setdefault(one["contender"], {})[one["rate"]] = one
    columns = sorted({one["rate"] for one in result["open"]})
    names = [f"{rate:,.0f}/s" for rate in columns]
    cpu: Rows = [["CPU µs per request", *names]]
    latency: Rows = [["p50 / p99 / p99.9, µs", *names]]
    for name, at in by_name.items():
        cpu.append([LABELS.get(name, name), *(_cpu(at.get(rate)) for rate in columns)])
        latency.append([LABELS.get(name, name), *(_latency(at.get(rate)) for rate in columns)])
    rounds = result["settings"]["rounds"]
    return [
        grid(cpu),
        f"All processes; medians of {rounds} round{'s' * (rounds > 1)}, in brackets the median and the range of the "
        "ratios to Go net/http\nin the same round. Latencies from when each request was due, medians of the rounds:",
        grid(latency),
        *_disturbed(result),
    ]


def idle(result: dict[str, Any]) -> list[str]:
    """CPU and memory, a line for each configuration."""
    rows: Rows = [["without a request", "processes", "CPU, % of a core", "PSS, MiB", "of it, MiB"]]
    for one in result["results"]:
        total = one["total"]
        parts = ", ".join(f"{name} {role['pss_mib']:.0f}" for name, role in one["roles"].items())
        what = f"{one['workers']} worker{'s' * (one['workers'] > 1)}, {one['creatives']:,} creatives"
        rows.append([what, str(total["processes"]), f"{total['cpu_percent']:.2f}", f"{total['pss_mib']:.0f}", parts])
    return [grid(rows)]


BLOCKS: dict[str, Callable[[dict[str, Any]], list[str]]] = {"macro": rates, "changing": rates, "idle": idle}


def grid(rows: Rows) -> str:
    """A simple table of reStructuredText."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    rule = "  ".join("=" * width for width in widths)
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([rule, lines[0], rule, *lines[1:], rule])


def _cpu(one: dict[str, Any] | None) -> str:
    if one is None:
        return "-"
    text = f"{one['cpu_us']['median']:.1f}"
    ratio = one["cpu_ratios"].get("nethttp")
    if ratio is not None and one["contender"] != "nethttp":
        low, high = f"{ratio['low']:.2f}", f"{ratio['high']:.2f}"
        text += f" ({ratio['median']:.2f}{'' if low == high else f'; {low} to {high}'})"
    return text


def _latency(one: dict[str, Any] | None) -> str:
    if one is None:
        return "-"
    if not one["kept_up"]:
        return "falls behind"
    return " / ".join(f"{one['latency_us'][name]:,.0f}" for name in LATENCIES)


def _disturbed(result: dict[str, Any]) -> list[str]:
    share = max(result["others_share"].values(), default=0.0)
    if share <= 0.03:
        return []
    return [f"Other programs took up to {share:.0%} of the contenders' core meanwhile: latencies are no result."]


if __name__ == "__main__":
    sys.exit(main())
