"""Compare adcore with its peers; `perf/run macro` sets up what this needs. See perf/README.rst.

Every contender is started anew for each of its turns, asked whether it does the whole job, warmed up and measured,
while the others are down.
"""

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

# `python perf/macro` has this folder on the path, in which `import perf.macro` finds nothing.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from perf.macro import changes, check, cpu, inventory, machine, picture, table, traffic
from perf.macro.errors import Missing, RunError
from perf.macro.golang import Go
from perf.macro.load import H2load, MixedLoad
from perf.macro.results import ClosedSample, OpenSample, summarise_closed, summarise_open, to_object
from perf.macro.servers import CONTENDERS, ROOT, Bench, Contender, Server, serving

CONNECTIONS = 32
# With --changing: a turn has one change, and a poll each second.
CHANGING_REFRESH_S = 1.0
CHANGING: dict[str, Any] = {"seconds": changes.EVERY_S}
# What the kernel itself and a clock tick at each end come to.
QUIET_SHARE = 0.03
# Spinning, the load sends within microseconds; more than this would show in a p99.
LATE_US = 50.0
USUAL: dict[str, Any] = {
    "rounds": 5,
    "requests": 100_000,
    "rates": [500.0, 2000.0, 5000.0, 10_000.0],
    # As long as adcore's refresh interval: every turn has one poll of the store and two exchanges of counts.
    "seconds": 5.0,
    "wait": 60.0,
}
QUICK: dict[str, Any] = {"rounds": 1, "requests": 10_000, "rates": [1000.0], "seconds": 1.0, "wait": 0.0}
Measure = Callable[[int, Contender, Server], list[str]]
LABELS = {contender.name: contender.label for contender in CONTENDERS}


def main(argv: Sequence[str] | None = None) -> int:
    options = parse_arguments(argv)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))  # so that everything is cleaned up
    chosen = [contender for contender in CONTENDERS if contender.name in options.only]
    folder = Path(tempfile.mkdtemp(prefix="adcore-macro-"))
    run = None
    try:
        run = Run(options, folder)
        run.measure(chosen)
        run.report(options.output)
    except RunError as error:
        say(str(error))
        return 1
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    finally:
        if run is not None:
            run.bench.running.close()
        shutil.rmtree(folder, ignore_errors=True)
    return 1 if run.missing and not options.allow_missing else 0


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="perf/run macro", description="Compare adcore with its peers.")
    names = ",".join(LABELS)
    parser.add_argument("--only", type=_names, default=list(LABELS), metavar="A,B", help=f"of {names}")
    parser.add_argument("--rounds", type=_count, help="how often each contender takes its turn (default: 5)")
    parser.add_argument(
        "--requests", type=_count, help="per contender, round and mix in the closed loop (default: 100000)"
    )
    parser.add_argument("--rates", type=_rates, help="of the open loop, or none (default: 500,2000,5000,10000)")
    parser.add_argument("--seconds", type=float, help="at each rate, contender and round (default: 5, --changing 4)")
    parser.add_argument("--no-closed", action="store_true", help="leave out the closed loop")
    parser.add_argument(
        "--changing",
        action="store_true",
        help="adcore has 5,000 campaigns, some of which change every 4 s, and polls each second; implies --no-closed",
    )
    parser.add_argument(
        "--wait", type=float, help="seconds to wait for other programs to leave the cores before each (default: 60)"
    )
    parser.add_argument("--quick", action="store_true", help="a minute in all: one small round of everything")
    parser.add_argument("--allow-missing", action="store_true", help="exit with 0 though a contender is missing")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "perf" / "results", metavar="FOLDER", help="default: perf/results"
    )
    options = parser.parse_args(argv)
    usual = QUICK if options.quick else {**USUAL, **CHANGING} if options.changing else USUAL
    for name, value in usual.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    options.no_closed |= options.changing
    if options.no_closed and not options.rates:
        parser.error("with --no-closed or --changing and no --rates there is nothing to measure")
    return options


class Run:
    """One run: what was measured, and what was missing."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options = options
        self.folder = folder
        self.name = "changing" if options.changing else "macro"
        self.missing: dict[str, str] = {}
        self.closed: list[ClosedSample] = []
        self.open: list[OpenSample] = []
        self.body_bytes: dict[str, int] = {}
        self.started = datetime.now(UTC)
        self.machine = machine.describe()
        self.stolen_s = machine.stolen_s()
        self.others: dict[str, float] = {}
        """By contender, the largest share of its core that other programs took while it was measured."""
        cores = sorted(os.sched_getaffinity(0))
        self.server_core, self.load_core = cores[0], cores[-1]
        if len(cores) == 1:
            say("there is one core only: the load and what it measures get into each other's way")
        os.sched_setaffinity(0, {self.load_core})
        cache = ROOT / ".adcore" / "go-cache"
        self.go = Go(folder / "go", cache)
        self.bench = Bench(folder, self.server_core, self.go)
        if options.changing:
            self.bench.campaigns, self.bench.refresh_s = inventory.CAMPAIGNS_MANY, CHANGING_REFRESH_S
        self.same: H2load | None = None
        self.mixed: MixedLoad | None = None
        try:
            self.same = H2load(self.load_core, CONNECTIONS)
        except Missing as error:
            self.note_missing("mix same", error)
        try:
            requests = folder / "requests"
            traffic.write(traffic.mixed(), requests)
            self.mixed = MixedLoad(self.load_core, CONNECTIONS, self.go.build("load"), requests)
        except Missing as error:
            self.note_missing("mix mixed and all rates", error)

    def measure(self, chosen: list[Contender]) -> None:
        """In each round first the closed loops of all: the less time between a contender and nginx, the better."""
        self.bench.apply()
        passes: list[Measure] = [] if self.options.no_closed else [self._measure_closed]
        if self.mixed is not None and self.options.rates:
            passes.append(self._measure_open)
        for number in range(self.options.rounds):
            # There and back, so that nobody always follows the same one.
            turns = chosen if number % 2 == 0 else chosen[::-1]
            for measure in passes:
                for contender in turns:
                    if contender.name not in self.missing:
                        self._take_turn(number, contender, measure)

    def _take_turn(self, number: int, contender: Contender, measure: Measure) -> None:
        cores = self.server_core, self.load_core
        if self.options.wait and not cpu.wait_until_quiet(cores, self.options.wait):
            say(f"other programs keep the cores busy: {contender.name} is measured beside them")
        request = traffic.same()
        try:
            with serving(contender, self.bench) as server:
                check.wait_until_ready(server, request)
                self.body_bytes[contender.name] = check.does_the_job(contender, server, request, self.bench.body)
                start_monotonic, core_before = time.monotonic(), self._others_s(server)
                figures = measure(number, contender, server)
                others = (self._others_s(server) - core_before) / (time.monotonic() - start_monotonic)
        except Missing as error:
            self.note_missing(contender.name, error)
            return
        self.others[contender.name] = max(others, self.others.get(contender.name, 0.0))
        say(f"round {number + 1} of {self.options.rounds}: {contender.name}: {', '.join(figures)}")

    def _measure_closed(self, number: int, contender: Contender, server: Server) -> list[str]:
        return [
            self._closed(number, contender, server, mix, load)
            for mix, load in (("same", self.same), ("mixed", self.mixed))
            if load is not None
        ]

    def _measure_open(self, number: int, contender: Contender, server: Server) -> list[str]:
        assert self.mixed is not None
        self.mixed.closed(server, traffic.same(), self._warm_up())
        server.wait_for_rest()
        figures = []
        for rate in self.options.rates:
            server.empty_log()
            with self._changes():
                opened, used = self.mixed.open(server, rate, self.options.seconds)
            count = opened.requests
            sample = OpenSample(
                *(number, contender.name, rate, opened.latency, opened.kept_up, opened.backlog, opened.late_p99),
                {name: seconds * 1e6 / count for name, seconds in used.seconds.items()},
                used.voluntary / count,
                used.involuntary / count,
            )
            self.open.append(sample)
            figures.append(f"{sample.total_us:.1f} µs and p99 {opened.latency['p99']:,.0f} at {rate:,.0f}/s")
        return figures

    def _changes(self) -> AbstractContextManager[None]:
        if not self.options.changing:
            return nullcontext()
        return changes.changing(self.bench.store, self.bench.campaigns)

    def _warm_up(self) -> int:
        # Every mixed request once at least, so that what remembers has something to remember.
        count: int = max(traffic.REQUESTS, self.options.requests // 10)
        return count

    def _others_s(self, server: Server) -> float:
        return cpu.core_seconds(self.server_core) - sum(server.usage().seconds.values())

    def _closed(self, number: int, contender: Contender, server: Server, mix: str, load: H2load | MixedLoad) -> str:
        count, request = self.options.requests, traffic.same()
        load.closed(server, request, self._warm_up())
        logged = server.empty_log()
        before = server.usage()
        outcome = load.closed(server, request, count)
        # What is still on its way to the log is part of the price.
        if contender.decides and not check.grows(server, logged + count * check.RECORD_BYTES_MIN):
            raise RunError(f"{contender.name}: {count} requests added {server.log_bytes()} bytes to its log")
        used = cpu.difference(before, server.usage())
        cpu_us = {name: seconds * 1e6 / count for name, seconds in used.seconds.items()}
        sample = ClosedSample(number, contender.name, mix, count, cpu_us, outcome.per_second)
        self.closed.append(sample)
        return f"{mix} {sample.total_us:.1f} µs"

    def note_missing(self, name: str, error: Missing) -> None:
        self.missing[name] = str(error)
        say(f"missing: {name}: {error}")

    def report(self, output: Path) -> None:
        """Print the tables; write JSON and picture."""
        closed, opened = summarise_closed(self.closed), summarise_open(self.open)
        commit = machine.commit()
        seconds = (datetime.now(UTC) - self.started).total_seconds()
        stolen_s = machine.stolen_s() - self.stolen_s
        where = f"{self.machine['cores']} cores of {self.machine['cpu']}"
        blocks = [f"adcore {commit}, {self.started:%Y-%m-%d %H:%M} UTC, {where}"]
        if closed:
            blocks.append(table.closed_table(closed, LABELS))
        if opened:
            blocks += [table.rates_table(opened, LABELS), table.open_table(opened, LABELS)]
        if self.missing:
            blocks.append(table.missing_table(self.missing))
        if stolen_s > seconds / 100:
            blocks.append(f"The host took {stolen_s:.1f} s of CPU for others meanwhile: expect a spread.")
        if (late_us := max((one.late_p99_us for one in opened), default=0.0)) > LATE_US:
            blocks.append(f"The load itself was up to {late_us:,.0f} µs late (p99): its core was not quiet either.")
        if disturbed := [name for name, share in self.others.items() if share > QUIET_SHARE]:
            worst = max(self.others.values())
            blocks.append(
                f"Other programs took up to {worst:.0%} of the contenders' core, so latencies are too high of: "
                + ", ".join(disturbed)
            )
        print("\n\n".join(blocks), flush=True)
        document = {
            "date": self.started.isoformat(timespec="seconds"),
            "seconds": seconds,
            "commit": commit,
            "machine": self.machine,
            "stolen_s": stolen_s,
            "others_share": self.others,
            "versions": machine.versions(self.go.version()),
            "settings": {
                "connections": CONNECTIONS,
                "rounds": self.options.rounds,
                "requests": self.options.requests,
                "rates": self.options.rates,
                "seconds": self.options.seconds,
                "campaigns": self.bench.campaigns,
                "changing": self.options.changing,
                "refresh_s": self.bench.refresh_s,
                "server_core": self.server_core,
                "load_core": self.load_core,
            },
            "missing": self.missing,
            "body_bytes": self.body_bytes,
            "closed": closed,
            "open": opened,
            "rounds": {"closed": self.closed, "open": self.open},
        }
        output.mkdir(parents=True, exist_ok=True)
        path = output / f"{self.name}-{self.started:%Y-%m-%d}-{commit}.json"
        path.write_text(json.dumps(to_object(document), indent=1, ensure_ascii=False) + "\n")
        say(f"written: {path}")
        if not closed and not opened:
            return
        try:
            picture.draw(path.with_suffix(".svg"), closed, opened, LABELS, f"adcore {commit}, {self.started:%Y-%m-%d}")
        except ImportError as error:
            self.note_missing("picture", Missing(str(error)))


def say(text: str) -> None:
    print(f"perf/run macro: {text}", file=sys.stderr, flush=True)


def _names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in LABELS]:
        raise argparse.ArgumentTypeError(f"no contender is called {unknown[0]!r}; there are {', '.join(LABELS)}")
    return names


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return count


def _rates(text: str) -> list[float]:
    return [] if text == "none" else [float(rate) for rate in text.split(",")]


if __name__ == "__main__":
    sys.exit(main())
