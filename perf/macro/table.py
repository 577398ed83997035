"""The results as text for a terminal."""

from collections.abc import Mapping, Sequence

from perf.macro.results import FLOOR, PEER, PERCENTILES, ClosedSummary, OpenSummary, Spread

MIXES = {"same": "one request again and again (h2load)", "mixed": "mixed requests (load/main.go)"}


def closed_table(summaries: Sequence[ClosedSummary], labels: Mapping[str, str]) -> str:
    """For each mix, a line per contender, and one per program of those that have several."""
    blocks = []
    for mix in dict.fromkeys(one.mix for one in summaries):
        rows: list[tuple[str, ...]] = [("", "CPU µs/request", "times nginx", "requests/s")]
        for one in summaries:
            if one.mix != mix:
                continue
            ratio = _spread(one.ratio, 2) if one.ratio else "-"
            rows.append((labels[one.contender], _spread(one.cpu_us, 1), ratio, _spread(one.per_second, 0)))
            rows += [(f"  of it {part}", _spread(parts, 1), "", "") for part, parts in one.parts_us.items()]
        blocks.append(f"Closed loop, {MIXES[mix]}: median (lowest to highest round)\n{_align(rows)}")
    return "\n\n".join(blocks)


def open_table(summaries: Sequence[OpenSummary], labels: Mapping[str, str]) -> str:
    rows: list[tuple[str, ...]] = [("requests/s", "latency in µs", *PERCENTILES, "")]
    for one in summaries:
        figures = [f"{one.latency_us[name]:,.0f}" for name in PERCENTILES]
        rows.append((f"{one.rate:,.0f}", labels[one.contender], *figures, "" if one.kept_up else "does not keep up"))
    return f"Open loop, mixed requests, from when each was due: medians of the rounds\n{_align(rows)}"


def rates_table(summaries: Sequence[OpenSummary], labels: Mapping[str, str]) -> str:
    """What a request costs at each rate, and what part of it each program has."""
    rows: list[tuple[str, ...]] = [
        ("requests/s", "", "CPU µs/request", "times nginx", "times net/http", "switches: voluntary", "involuntary")
    ]
    for one in summaries:
        ratios = [_spread(one.cpu_ratios[name], 2) if name in one.cpu_ratios else "-" for name in (FLOOR, PEER)]
        switches = f"{one.voluntary.median:.2f}", f"{one.involuntary.median:.2f}"
        rows.append((f"{one.rate:,.0f}", labels[one.contender], _spread(one.cpu_us, 1), *ratios, *switches))
        rows += [("", f"  of it {part}", _spread(parts, 1), "", "", "", "") for part, parts in one.parts_us.items()]
    return f"Open loop, mixed requests, CPU of all processes: median (lowest to highest round)\n{_align(rows)}"


def missing_table(missing: Mapping[str, str]) -> str:
    return "Missing\n" + _align([(name, reason) for name, reason in missing.items()])


def _spread(spread: Spread, digits: int) -> str:
    median, low, high = (f"{value:,.{digits}f}" for value in spread)
    return median if low == high else f"{median} ({low} to {high})"


def _align(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
