"""`adctl simulate`: what an inventory would deliver on given traffic.

Decides the requests of delivery logs again (--traffic), or a made-up day of them (--requests), with the server's own
decisions, counts and pacing and a clock that the traffic moves, so that a day takes seconds. It says for each campaign
what was delivered of what was wanted, whether the traffic had enough for it and all that it competes with, and why it
was not shown.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator, Sequence
from datetime import date, datetime, time, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from adcore.core.adtable import AdTable, build_table
from adcore.core.calendar import YEARS, Calendar
from adcore.core.inventory import check_inventory, parse_inventory
from adcore.deliverylog.reader import open_log
from adcore.errors import ConfigError
from adcore.sources import open_store
from adtools.forecast import Forecast, Totals, forecasts, on_schedule
from adtools.inventory import read_document
from adtools.learn import site_calendar
from adtools.progress import DELAY_S, with_progress
from adtools.simulation import REFRESH_S, Outcome, Processes, simulate
from adtools.terminal import unguarded
from adtools.traffic import SyntheticDay, Visit, read_visits

DAY_S = 86_400
REASONS_SHOWN = 3
# Of a made-up day. More takes days; and many times three times the traffic is no number.
REQUESTS_MAX = 1_000_000_000
STRETCHES_MAX = 100
# A log does not say how long it is; of a made-up day as many are explained.
EXPLAINED = 2000
EXPLAIN_EVERY = 101

EPILOG = """\
The inventory is that of the store, with what the store has learned, or that of a file. Campaigns with a schedule that
began earlier start on it, without a debt. Visitors are told apart by the user key in the log; those with a cookie are
not, so their frequency caps hold nobody back, and pages with several slots are decided slot by slot. Nobody clicks.

examples:
  adctl simulate --traffic /var/log/adcore/delivery.log.*.gz --starting 2026-12-07
                               what would be delivered from December 7 on, on traffic like that of these logs
  adctl simulate --inventory booked.json --requests 200000 --seed 7
                               an inventory that is not applied, on a made-up day with two drops and two spikes
  adctl simulate --processes 4 --refresh 5 --json --requests 100000
                               four processes, which exchange their counts each five seconds

Exit status: 0 done, 1 the store failed or the traffic is empty, 2 usage.
"""


class Run(NamedTuple):
    """A simulation and what it found."""

    outcome: Outcome
    campaigns: list[Forecast]
    totals: Totals


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "simulate",
        help="say what an inventory would deliver on given traffic",
        description=__doc__.partition("\n\n")[2],
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--source", metavar="URL", help="the store: sqlite:///PATH or mysql://USER:PASSWORD@HOST/DATABASE"
    )
    what.add_argument("--inventory", metavar="FILE", help="an inventory file instead of a store; - is standard input")
    traffic = parser.add_mutually_exclusive_group()
    traffic.add_argument("--traffic", nargs="+", metavar="FILE", help="delivery logs, .gz too")
    traffic.add_argument("--requests", type=_positive, default=100_000, help="of a made-up day (default: 100000)")
    parser.add_argument("--starting", type=_day, metavar="DATE", help="move the traffic's first day there")
    parser.add_argument("--seed", type=int, default=1, help="of the made-up day")
    parser.add_argument(
        "--drops", type=_stretches, default=2, help="times when few come to the made-up day (default: 2)"
    )
    parser.add_argument("--spikes", type=_stretches, default=2, help="times when many come (default: 2)")
    parser.add_argument("--processes", type=_positive, default=1, help="that share the traffic (default: 1)")
    parser.add_argument(
        "--refresh", type=_interval, default=REFRESH_S, metavar="S", help="how often these exchange counts (default: 5)"
    )
    parser.add_argument("--no-bound", action="store_true", help="do not work out what can be delivered at most")
    parser.add_argument("--time-zone", metavar="NAME", help="the site's (default: the server's)")
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    calendar = site_calendar(args.time_zone)
    document = _read_document(args)
    explain_every = EXPLAIN_EVERY
    if args.traffic:
        visits = _move(_open_traffic(args.traffic), args.starting, calendar)
    else:
        day = _made_up_day(args, document, calendar)
        document["learned"] = {**document.get("learned", {}), "traffic": day.learned_traffic(calendar)}
        visits = _with_progress(day.visits(), args.requests)
        explain_every = max(1, args.requests // EXPLAINED)
    table = build_table(document, revision=1)
    for problem in table.rejected:
        print(f"adctl simulate: a row is not valid and not delivered: {problem}", file=sys.stderr)
    found = run_simulation(
        table,
        visits,
        calendar,
        processes=args.processes,
        refresh_s=args.refresh,
        explain_every=explain_every,
        bound=not args.no_bound,
    )
    if found is None:
        print("adctl simulate: there is no request in this traffic", file=sys.stderr)
        return 1
    print(json.dumps(as_object(found, calendar), indent=2) if args.json else as_text(found, calendar))
    return 0


def run_simulation(
    table: AdTable,
    visits: Iterator[Visit],
    calendar: Calendar,
    *,
    processes: int = 1,
    refresh_s: float = REFRESH_S,
    explain_every: int = 0,
    bound: bool = True,
) -> Run | None:
    """Decide the visits as so many processes would; None when there is no visit."""
    first = next(visits, None)
    if first is None:
        return None
    before = on_schedule(table, calendar, first.time)
    outcome = simulate(
        table,
        _and_then(first, visits),
        calendar,
        lambda start: Processes(table, calendar, start, number=processes, refresh_s=refresh_s, delivered=before),
        explain_every=explain_every,
    )
    assert outcome is not None
    return Run(outcome, *forecasts(table, outcome, calendar, before, bound=bound))


def as_object(found: Run, calendar: Calendar) -> dict[str, Any]:
    times = (calendar.local(time).isoformat() for time in (found.outcome.start, found.outcome.end))
    return {
        **dict(zip(("start", "end"), times, strict=True)),
        **found.totals._asdict(),
        "campaigns": [one._asdict() for one in found.campaigns],
    }


def as_text(found: Run, calendar: Calendar) -> str:
    """A table for a person: those who got least of what they wanted first."""
    totals = found.totals
    start, end = (calendar.local(time).strftime("%Y-%m-%d %H:%M") for time in (found.outcome.start, found.outcome.end))
    lines = [f"{start} to {end}: {totals.requests} requests, {totals.filled} filled"]
    if totals.campaigns:
        lines.append(
            f"of {totals.campaigns} campaigns with a goal within reach {totals.full:.1%} end within 1 % of it; at the "
            f"worst hour {totals.on_line:.1%} are within 10 % of their line"
        )
    width = max((len(one.campaign) for one in found.campaigns), default=8)
    lines.append(f"{'campaign':<{width}}  {'delivered':>10}  {'wanted':>10}  {'share':>7}  enough  why not more often")
    for one in sorted(found.campaigns, key=lambda one: (one.share is None, one.share)):
        share = "-" if one.share is None else f"{one.share:.1%}"
        enough = {None: "-", True: "yes", False: "no"}[one.deliverable]
        why = ", ".join(f"{reason} {part:.0%}" for reason, part in list(one.reasons.items())[:REASONS_SHOWN])
        wanted = "-" if one.wanted is None else one.wanted
        lines.append(f"{one.campaign:<{width}}  {one.delivered:>10}  {wanted:>10}  {share:>7}  {enough:<6}  {why}")
    return "\n".join(lines)


def _read_document(args: argparse.Namespace) -> dict[str, Any]:
    if args.inventory is not None:
        try:
            document = read_document(args.inventory)
        except OSError as error:
            raise ConfigError(f"cannot read {args.inventory}: {error.strerror}") from None
        parse_inventory(document)
        assert isinstance(document, dict)
        return document
    store = open_store(args.source)
    try:
        return store.load().document
    finally:
        store.close()


def _made_up_day(args: argparse.Namespace, document: dict[str, Any], calendar: Calendar) -> SyntheticDay:
    day = args.starting or date.today()
    start = datetime.combine(day, time.min, calendar.zone).timestamp()
    inventory, _ = check_inventory(document)
    if not inventory.placements:
        raise ConfigError("the inventory has no placement, so there is nothing to ask for")
    return SyntheticDay(
        inventory, requests=args.requests, start=start, seed=args.seed, drops=args.drops, spikes=args.spikes
    )


def _open_traffic(names: Sequence[str]) -> Iterator[Visit]:
    files = []
    for name in names:
        path = Path(name)
        try:
            total = None if path.suffix == ".gz" else path.stat().st_size
            files.append(with_progress(open_log(path), total, path.name))
        except OSError as error:
            raise ConfigError(f"cannot read {name}: {error.strerror}") from None
    return read_visits(files)


def _move(visits: Iterator[Visit], day: date | None, calendar: Calendar) -> Iterator[Visit]:
    """The visits, the first of them on `day`, at the same time of the day."""
    first = next(visits, None)
    if first is None:
        return
    days = 0 if day is None else day.toordinal() - calendar.moment(first.time).day
    if days % 7:
        print("adctl simulate: --starting names another weekday than the traffic's first", file=sys.stderr)
    for visit in _and_then(first, visits):
        if not days:
            yield visit
            continue
        local = calendar.local(visit.time) + timedelta(days=days)
        yield visit._replace(time=local.timestamp())


def _and_then(first: Visit, visits: Iterator[Visit]) -> Iterator[Visit]:
    yield first
    yield from visits


def _with_progress(visits: Iterator[Visit], total: int) -> Iterator[Visit]:
    bar: tqdm[Visit] = tqdm(
        visits,
        total=total,
        unit=" requests",
        delay=DELAY_S,
        file=unguarded(sys.stderr),
        disable=not sys.stderr.isatty(),
        leave=False,
    )
    yield from bar


def _positive(text: str) -> int:
    return _whole(text, 1, REQUESTS_MAX)


def _stretches(text: str) -> int:
    return _whole(text, 0, STRETCHES_MAX)


def _whole(text: str, low: int, high: int) -> int:
    number = int(text) if re.fullmatch(r"[0-9]{1,18}", text) else -1
    if not low <= number <= high:
        raise argparse.ArgumentTypeError(f"must be a whole number from {low} to {high}, not {text!r}")
    return number


def _interval(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= DAY_S:
        raise argparse.ArgumentTypeError(f"must be 0.1 to {DAY_S} seconds, not {text!r}")
    return seconds


def _day(text: str) -> date:
    """A day with room for what is learned before it, and for the traffic after it."""
    try:
        day = date.fromisoformat(text)
        if YEARS[0] < day.year < YEARS[1]:
            return day
    except ValueError:
        pass
    years = f"{YEARS[0] + 1} to {YEARS[1] - 1}"
    raise argparse.ArgumentTypeError(f"must be a date such as 2026-11-24, in the years {years}, not {text!r}")
