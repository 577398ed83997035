"""Compare ways to pace delivery on the same days: `perf/run pacing`."""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC
from pathlib import Path
from typing import Any

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from adcore.core.adtable import AdTable, build_table
from adcore.core.calendar import Calendar, Moment
from adcore.core.inventory import to_document
from adtools.forecast import Totals, forecasts
from adtools.simulation import Pacing, Processes, simulate
from adtools.traffic import SyntheticDay
from perf.pacing.inventory import START, make_inventory
from perf.pacing.methods import HighWaterMark, HoldOnly, Multiplicative, Proportional, Supply
from perf.pacing.regret import regrets

Make = Callable[[AdTable, Calendar, Moment, Supply], Pacing]
# (what it is called, whether campaigns know a forecast, what decides who is held back)
METHODS: tuple[tuple[str, bool, Make], ...] = (
    ("straight line, hold", False, lambda table, calendar, start, _: HoldOnly(table, calendar, start)),
    ("forecast, hold", True, lambda table, calendar, start, _: HoldOnly(table, calendar, start)),
    ("straight line, behind first", False, lambda table, calendar, start, _: Processes(table, calendar, start)),
    ("forecast, behind first (adcore)", True, lambda table, calendar, start, _: Processes(table, calendar, start)),
    (
        "  the same, 4 processes, 5 s",
        True,
        lambda table, calendar, start, _: Processes(table, calendar, start, number=4),
    ),
    ("multiplicative throttle", True, lambda table, calendar, start, _: Multiplicative(table, calendar, start)),
    ("proportional, dead band", True, lambda table, calendar, start, _: Proportional(table, calendar, start)),
    ("high water mark", True, lambda table, calendar, start, supply: HighWaterMark(table, calendar, start, supply)),
)


RATES = ((0.01, 0.02), (0.002, 0.0025, 0.003, 0.004), (0.01, 0.01, 0.01))


def main() -> None:
    parser = argparse.ArgumentParser(prog="perf/run pacing", description=__doc__)
    parser.add_argument("--campaigns", type=int, default=200)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--load", type=float, default=0.8, help="part of the usual traffic that the goals take")
    parser.add_argument("--seeds", type=int, default=3, help="days to compare on (default: 3)")
    parser.add_argument("--regret", action="store_true", help='compare what "optimize": "ctr" loses instead')
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.regret:
        print(regret_text(args.requests, args.seeds))
        return
    rows = []
    bar = tqdm(total=args.seeds * len(METHODS), file=sys.stderr, disable=not sys.stderr.isatty(), leave=False)
    for seed in range(1, args.seeds + 1):
        for name, totals, cpu_s in run_day(args.campaigns, args.requests, args.load, seed, bar.update):
            rows.append({"seed": seed, "method": name, "cpu_s": round(cpu_s, 1), **totals._asdict()})
    bar.close()
    print(json.dumps(rows, indent=2) if args.json else as_text(rows))


def run_day(
    campaigns: int, requests: int, load: float, seed: int, done: Callable[[], object] = lambda: None
) -> list[tuple[str, Totals, float]]:
    """Each method's totals on one day, and the CPU time that the simulation took."""
    calendar = Calendar(UTC)
    inventory = make_inventory(campaigns, seed=seed, requests=requests, load=load)
    document = to_document(inventory)

    def day(**events: int) -> SyntheticDay:
        return SyntheticDay(inventory, requests=requests, start=START.timestamp(), seed=seed, **events)

    learned = {**document, "learned": {"traffic": day().learned_traffic(calendar)}}
    tables = {False: build_table(document, revision=1), True: build_table(learned, revision=1)}
    usual = simulate(tables[True], day(drops=0, spikes=0).visits(), calendar, _everybody)
    assert usual is not None
    found = []
    for name, knows, make in METHODS:
        before_s = time.process_time()
        outcome = simulate(
            tables[knows], day().visits(), calendar, _maker(make, tables[knows], calendar, usual.kinds())
        )
        cpu_s = time.process_time() - before_s
        assert outcome is not None
        # All are held against the line that knows the forecast.
        _, totals = forecasts(tables[True], outcome, calendar, {}, bound=True)
        found.append((name, totals, cpu_s))
        done()
    return found


def as_text(rows: list[dict[str, Any]]) -> str:
    lines = [f"{'':32}  {'within 1 %':>20}  {'on line, worst hour':>20}  {'on line, all hours':>20}  over cap"]
    for name, *_ in METHODS:
        mine = [row for row in rows if row["method"] == name]
        cells = [_median([row[key] for row in mine]) for key in ("full", "on_line", "always_on_line")]
        lines.append(f"{name:32}  {'  '.join(f'{cell:>20}' for cell in cells)}  {max(r['over_cap'] for r in mine)}")
    lines.append(f"{rows[0]['campaigns']} campaigns can be delivered in full; medians and ranges over the seeds")
    return "\n".join(lines)


def regret_text(impressions: int, seeds: int) -> str:
    """Clicks lost against the best creative, for several campaigns."""
    lines = []
    for rates in RATES:
        days = [
            regrets(rates, impressions=impressions, interval=impressions // 24, seed=s) for s in range(1, seeds + 1)
        ]
        lines.append(f"rates {', '.join(f'{rate:.2%}' for rate in rates)}; {impressions} impressions, learned 24 times")
        lines += [f"  {name:18} {statistics.median(day[name] for day in days):8.1f}" for name in days[0]]
    return "\n".join(lines)


def _median(values: list[float]) -> str:
    return f"{statistics.median(values):.1%} ({min(values):.0%} to {max(values):.0%})"


def _maker(
    make: Make, table: AdTable, calendar: Calendar, supply: Mapping[tuple[str, int], int]
) -> Callable[[Moment], Pacing]:
    return lambda start: make(table, calendar, start, supply)


class _Nobody:
    """Holds nobody back: for counting who could be shown."""

    def held(self, *_: object) -> dict[str, Any]:
        return {}

    def count(self, *_: object) -> None:
        pass

    click = pass_time = count


def _everybody(_: Moment) -> Pacing:
    return _Nobody()


if __name__ == "__main__":
    main()
