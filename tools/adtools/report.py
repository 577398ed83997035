"""`adctl report`: what was delivered, as `adctl collect` has counted it."""

import argparse
import csv
import io
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from datetime import UTC, date, datetime, timedelta, tzinfo
from math import sqrt
from pathlib import Path
from statistics import NormalDist
from typing import Any, NamedTuple

import msgspec
from rich.console import Console
from rich.table import Table

from adcore.config import load_config
from adcore.core.adtable import check_document
from adcore.core.calendar import Calendar
from adcore.core.pacing import Line
from adcore.errors import AdcoreError, ConfigError
from adcore.sources import open_store, results
from adcore.sources.results import ALWAYS, RESULT_NUMBERS, Span, Sums
from adtools import reconcile
from adtools.forecast import flight_line
from adtools.terminal import printable, unguarded

EPILOG = """\
examples:
  adctl report                                             the campaigns, for a person
  adctl report --by day,placement --format csv             for a spreadsheet
  adctl report --by hour --from 2026-11-24 --format json   for a program
  adctl report --format html > report.html                 one page with plots, without network (adcore[report])
  adctl report --campaign spring --format html > spring.html
  adctl report --check /var/lib/adcore/delivery.log        served = logged = counted?

Days and hours are those of --time-zone. Views and clicks are counted in the hour in which they came. ivt is invalid
traffic (known bots), of whatever type, and in no other column. CTR is clicks per impression, with its 95 % confidence
interval (Wilson). Rows that have no campaign or creative in their keys also say how many requests got nothing.

Exit status: 0 done, 1 the store failed or --check found a difference, 2 usage.
"""

KEYS = ("campaign", "placement", "creative", "day", "hour")
# Starts a formula in a spreadsheet, in half or full width, or is skipped before one (OWASP, CSV injection).
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
# Of the keys, those that requests which got nothing have too.
UNFILLED_KEYS = frozenset({"placement", "day", "hour"})
Z_95 = NormalDist().inv_cdf(0.975)


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "report",
        help="what was delivered",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--by", metavar="KEY[,KEY]", default="campaign", help=f"{', '.join(KEYS)} (default: %(default)s)"
    )
    parser.add_argument("--format", choices=tuple(FORMATS), default="table", help="default: %(default)s")
    parser.add_argument("--from", dest="first", metavar="DATE", help="from this day on (default: all)")
    parser.add_argument("--to", dest="last", metavar="DATE", help="up to the end of this day (default: all)")
    parser.add_argument("--campaign", metavar="ID", help="of this campaign alone, with why it was not shown")
    parser.add_argument("--source", metavar="URL", help="the store (default: the server's)")
    parser.add_argument("--time-zone", metavar="ZONE", help="of days and hours (default: the server's)")
    parser.add_argument(
        "--check", action="store_true", help="compare what was served, logged (in FILEs) and counted, by type"
    )
    parser.add_argument("--control", metavar="ADDR", help="for --check: a server's control listener")
    parser.add_argument("files", metavar="FILE", nargs="*", type=Path, help="for --check (default: the server's --log)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    config = load_config({} if args.time_zone is None else {"time_zone": args.time_zone})
    if not args.check and (args.files or args.control):
        raise ConfigError("FILE and --control are for --check; say it too")
    with closing(open_store(args.source or config.source)) as store:
        if args.check:
            return reconcile.run(
                store, args.files or [config.log], config, args.control or config.control, as_json=args.format == "json"
            )
        keys = parse_keys(args.by)
        report = read_report(store, keys, parse_span(args.first, args.last, config.time_zone), config.time_zone, args)
    FORMATS[args.format](report)
    return 0


def parse_keys(text: str) -> tuple[str, ...]:
    """Raises ConfigError."""
    keys = tuple(dict.fromkeys(text.split(",")))
    for key in keys:
        if key not in KEYS:
            raise ConfigError(f"--by {key}: there is {', '.join(KEYS)}")
    return keys


def parse_span(first: str | None, last: str | None, zone: tzinfo) -> Span:
    """From the start of a day to the end of another one. Raises ConfigError."""

    def start_of(name: str, text: str, days: int) -> int:
        try:
            day = date.fromisoformat(text) + timedelta(days)
            return int(datetime(day.year, day.month, day.day, tzinfo=zone).timestamp())
        except (ValueError, OverflowError):
            raise ConfigError(f"{name} must be a date such as 2026-11-24, not {text!r}") from None

    span = Span(
        ALWAYS.start if first is None else start_of("--from", first, 0),
        ALWAYS.end if last is None else start_of("--to", last, 1),
    )
    if span.start >= span.end:
        raise ConfigError(f"--from {first} is after --to {last}")
    return span


class Report(NamedTuple):
    """What all formats are made of; `rows` have the keys that were asked for and the numbers."""

    keys: tuple[str, ...]
    rows: list[Sums]
    numbers: tuple[str, ...]
    span: Span
    zone: tzinfo
    campaign: str | None
    refusals: Mapping[str, int]
    """Why the one campaign was not shown where it could have been: requests by reason, the most frequent first."""
    by_hour: list[Sums]
    """Hour, campaign, creative, placement, and the numbers."""
    unfilled: list[Sums]
    """Hour, reason, and the numbers."""
    campaigns: list[Mapping[str, Any]]
    """The documents of those that there are now."""
    lines: Mapping[str, Line]
    """Of those whose goal is delivered evenly, by campaign."""


def read_report(store: Any, keys: tuple[str, ...], span: Span, zone: tzinfo, args: argparse.Namespace) -> Report:
    """Everything, at one moment of the store. Raises SourceError; AdcoreError for a campaign nobody has heard of."""
    rows = store.load()
    campaigns = [one for one in rows.document["campaigns"] if args.campaign in (None, one["id"])]
    calendar = Calendar(zone)
    lines = {}
    for valid in check_document(rows.document)[0].campaigns:
        if valid.starts_at is not None and (line := flight_line(valid, calendar, valid.starts_at.timestamp())):
            lines[valid.id] = line

    def read(db: Any) -> Report:
        with db.reading():
            by_hour = results.read_results(db, ("hour", "campaign", "creative", "placement"), span, args.campaign)
            unfilled = [] if args.campaign else results.read_unfilled(db, ("hour", "placement", "reason"), span)
            refusals: Mapping[str, int] = {}
            if args.campaign:
                days = [results.day_of(max(0, min(end, LAST_HOUR)), calendar) for end in (span.start, span.end - 1)]
                refusals = results.read_refusals(db, args.campaign, days[0], days[1])
        numbers: tuple[str, ...] = RESULT_NUMBERS
        summed = fold(by_hour, keys, RESULT_NUMBERS, calendar)
        if UNFILLED_KEYS.issuperset(keys) and not args.campaign:
            numbers = (*numbers, "unfilled")
            # Their ivt is in the page alone: a total of ivt is the same by whatever key.
            requests = [{**row, "unfilled": row["requests"], "ivt": 0} for row in unfilled]
            summed = fold([*by_hour, *requests], keys, numbers, calendar)
        return Report(keys, summed, numbers, span, zone, args.campaign, refusals, by_hour, unfilled, campaigns, lines)

    report: Report = store.run(read)
    if args.campaign and not campaigns and not report.by_hour:
        raise AdcoreError(f"there is no campaign {args.campaign}, and nothing was delivered for it")
    return report


# The end of what datetimes reach.
LAST_HOUR = 250_000_000_000


def fold(
    rows: Iterable[Mapping[str, Any]], keys: Sequence[str], numbers: Sequence[str], calendar: Calendar
) -> list[Sums]:
    """Rows by hour, summed up by keys, of which `day` and `hour` are local time as ISO 8601 text."""
    texts: dict[int, tuple[str, str]] = {}
    sums: dict[tuple[str, ...], list[int]] = {}
    for row in rows:
        hour = row["hour"]
        if hour not in texts:
            local = calendar.local(hour).isoformat(timespec="minutes")
            texts[hour] = results.day_of(hour, calendar), local
        day, text = texts[hour]
        key = tuple(day if key == "day" else text if key == "hour" else row[key] for key in keys)
        total = sums.setdefault(key, [0] * len(numbers))
        for place, number in enumerate(numbers):
            total[place] += row.get(number, 0)
    return [
        {**dict(zip(keys, key, strict=True)), **dict(zip(numbers, total, strict=True))}
        for key, total in sorted(sums.items())
    ]


def wilson(clicks: int, impressions: int) -> tuple[float, float]:
    """The 95 % confidence interval of a share (Wilson 1927), which holds for few and for none as well."""
    # Clicks of an hour may be those of the impressions of the hour before.
    trials = max(clicks, impressions)
    if not trials:
        return 0.0, 1.0
    share = clicks / trials
    middle = share + Z_95**2 / (2 * trials)
    reach = Z_95 * sqrt(share * (1 - share) / trials + Z_95**2 / (4 * trials**2))
    scale = 1 + Z_95**2 / trials
    return max(0.0, (middle - reach) / scale), min(1.0, (middle + reach) / scale)


# The formats


def print_json(report: Report) -> None:
    print(msgspec.json.format(msgspec.json.encode(report.rows), indent=1).decode())


def print_csv(report: Report) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, [*report.keys, *report.numbers], lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: csv_cell(value) for name, value in row.items()} for row in report.rows)
    print(text.getvalue(), end="")


def csv_cell(value: object) -> object:
    """Marks text that a spreadsheet would take for a formula as text, with an apostrophe. No valid id starts so."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def print_table(report: Report) -> None:
    console = Console(file=unguarded(sys.stdout), highlight=False, emoji=False, markup=False)
    if not console.is_terminal:
        console.width = 1000  # whoever reads it cuts nothing off
    table = Table(box=None, show_footer=len(report.rows) > 1, pad_edge=False)
    total = {number: sum(row[number] for row in report.rows) for number in report.numbers}
    for place, key in enumerate(report.keys):
        table.add_column(key, "" if place else "all", no_wrap=True)
    for number in report.numbers:
        table.add_column(number, f"{total[number]:,}", justify="right", no_wrap=True)
    table.add_column("CTR %", show_share(total), justify="right", no_wrap=True)
    for row in report.rows:
        table.add_row(
            *(printable(str(row[key])) for key in report.keys),
            *(f"{row[number]:,}" for number in report.numbers),
            show_share(row),
        )
    console.print(table)
    if not report.rows:
        console.print("nothing was counted; adctl collect does that")
    if report.refusals:
        console.print(f"\nwhy {printable(str(report.campaign))} was not shown")
        for reason, requests, share in shares(report.refusals):
            console.print(f"{share:7.1%}  {printable(reason)}  ({requests:,})")


def print_html(report: Report) -> None:
    from adtools import report_page  # matplotlib takes a while to import, and need not be installed

    sys.stdout.write(report_page.render(report, datetime.now(UTC)))


FORMATS: dict[str, Callable[[Report], None]] = {
    "table": print_table,
    "csv": print_csv,
    "json": print_json,
    "html": print_html,
}


def show_share(row: Mapping[str, Any]) -> str:
    """CTR in per cent, with its interval."""
    if not row["impressions"]:
        return "-"
    low, high = wilson(row["clicks"], row["impressions"])
    return f"{100 * row['clicks'] / row['impressions']:.2f} ({100 * low:.2f} to {100 * high:.2f})"


def shares(counts: Mapping[str, int]) -> list[tuple[str, int, float]]:
    total = sum(counts.values())
    return [(reason, count, count / total) for reason, count in counts.items()]
