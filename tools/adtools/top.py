"""`adctl top`: a live view of a running server: rates, latencies, the table's age, the busiest campaigns.

Ctrl-C ends it. Without a terminal, or with --once, it prints one view. Rates and percentiles are those between two
looks.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from typing import Any

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from adtools.control import CONTROL_HELP, ControlError, Host, address, ask_host
from adtools.terminal import printable, unguarded

CAMPAIGNS_SHOWN = 10
# When a number is shown in yellow, and when in red.
TABLE_AGE_S = (60, 600)
LOG_QUEUE_SHARE = (0.5, 0.9)
LAG_US = (20_000, 100_000)


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "top",
        help="a live view of a running server",
        description=__doc__.partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--control", metavar="ADDR", help=CONTROL_HELP)
    parser.add_argument("--interval", type=_interval, default=2.0, metavar="SECONDS", help="between looks (default: 2)")
    parser.add_argument("--once", action="store_true", help="print one view and end")
    parser.set_defaults(run=run)


def _interval(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"must be 0.1 to 3600 seconds, not {text!r}")
    return seconds


def run(args: argparse.Namespace) -> int:
    """Show the server until Ctrl-C; 0, or 1 when there was never an answer."""
    control = address(args.control)
    poller = f"top-{os.getpid()}"
    console = Console(file=unguarded(sys.stdout))
    host = look(control, poller)
    if args.once or not console.is_terminal:
        console.print(view(host))
        return 0
    with Live(view(host), console=console, screen=True, auto_refresh=False) as live:
        try:
            while True:
                time.sleep(args.interval)
                try:
                    live.update(view(look(control, poller)), refresh=True)
                except ControlError as error:  # it may be restarting
                    live.update(Text(printable(str(error)), style="bold red"), refresh=True)
        except KeyboardInterrupt:
            return 0


def look(control: str, poller: str) -> Host:
    return ask_host(control, poller, campaigns=str(CAMPAIGNS_SHOWN))


def view(host: Host) -> RenderableType:
    """All that is shown."""
    if not host.workers:
        return Text(printable("no worker answers: " + "; ".join(host.missing.values())), style="bold red")
    head = Text.assemble(
        ("adcore ", "bold"),
        printable(f"{next(host.each('version', 'version'))} on {next(host.each('process', 'host'))}, "),
        f"{len(host.workers)} worker{'s' if len(host.workers) > 1 else ''}, ",
        f"up {_duration(host.worst('process', 'uptime_s'))}",
    )
    lines: list[RenderableType] = [head, Text()]
    for name, why in host.missing.items():
        lines.insert(1, Text(printable(f"worker {name}: {why}"), style="bold red"))
    lines += [Columns([_rates(host), _durations(host), _health(host)], padding=(0, 3)), Text(), _campaigns(host)]
    return Group(*lines)


def _grid(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="right" if place else "left", no_wrap=True)
    return table


def _rates(host: Host) -> Table:
    table = _grid("per second", "")
    for label, name in (
        ("requests", "requests"),
        ("impressions", "impression"),
        ("views", "view"),
        ("clicks", "click"),
        ("unfilled", "unfilled"),
    ):
        table.add_row(label, _number(host.total("rates", "per_second", name)))
    cpu = host.total("rates", "per_second", "cpu_s")
    table.add_row("CPU", "-" if cpu is None else f"{cpu:.0%}")
    return table


def _durations(host: Host) -> Table:
    table = _grid("", "p50", "p99", "p99.9")
    for label, name in (("latency", "latency_us"), ("loop lag", "lag_us"), ("gc pause", "gc_pause_us")):
        found = [host.worst("rates", name, percentile) for percentile in ("p50", "p99", "p99.9")]
        shown = [Text(_microseconds(us), style=_style(us, LAG_US)) for us in found]
        table.add_row(label, *shown)
    return table


def _health(host: Host) -> Table:
    table = _grid("health", "")
    age, queue = host.worst("refresh", "age_s"), host.log_queue_share()
    paid, unpaid = host.drops() or (None, None)
    revision = host.worst("table", "revision")
    table.add_row("table", "none yet" if revision is None else f"revision {revision:.0f}")
    table.add_row("table age", Text("-" if age is None else _duration(age), style=_style(age, TABLE_AGE_S)))
    table.add_row("log queue", Text("-" if queue is None else f"{queue:.1%}", style=_style(queue, LOG_QUEUE_SHARE)))
    table.add_row("records lost", Text(_number(paid), style="bold red" if paid else ""))
    table.add_row("unpaid ones", Text(_number(unpaid), style="yellow" if unpaid else ""))
    table.add_row("connections", _number(host.total("connections", "open")))
    table.add_row("memory", f"{(host.total('process', 'rss_bytes') or 0) / 1e6:.0f} MB")
    return table


def _campaigns(host: Host) -> Table:
    totals: dict[str, list[int]] = {}
    for busiest in host.each("campaigns"):
        for campaign in busiest:
            # Each worker counts what the others have delivered too.
            counts = totals.setdefault(campaign["campaign"], [0, 0])
            counts[0] = max(counts[0], campaign["impressions_today"])
            counts[1] = max(counts[1], campaign["clicks_today"])
    table = _grid("campaign", "impressions today", "clicks", "CTR")
    for name, (impressions, clicks) in sorted(totals.items(), key=lambda item: -item[1][0])[:CAMPAIGNS_SHOWN]:
        table.add_row(
            Text(printable(name)),
            f"{impressions:,}",
            f"{clicks:,}",
            f"{clicks / impressions:.2%}" if impressions else "-",
        )
    return table


def _style(value: float | None, limits: tuple[float, float]) -> str:
    if value is None or value < limits[0]:
        return ""
    return "yellow" if value < limits[1] else "bold red"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.1f}"


def _microseconds(us: float | None) -> str:
    if us is None:
        return "-"
    return f"{us:.0f} µs" if us < 1000 else f"{us / 1000:.1f} ms" if us < 1e6 else f"{us / 1e6:.1f} s"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = int(seconds) // 60
    days, hours, minutes = minutes // 1440, minutes // 60 % 24, minutes % 60
    return (f"{days} d " if days else "") + (f"{hours} h " if hours or days else "") + f"{minutes} min"
