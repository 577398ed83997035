"""How fast `adctl collect` counts, beside duckdb; `perf/run collect` sets up what this needs. See perf/README.rst.

All read the same log from the page cache, in turns. The result is CPU time, user and system of all threads, since on a
shared machine the wall's is mostly other people's.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

# `python perf/collect` has this folder on the path, in which `import perf.collect` finds nothing.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from perf.collect import traffic
from perf.collect.contenders import CONTENDERS, Sums
from perf.macro import machine
from perf.macro.errors import RunError
from perf.macro.servers import ROOT


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="perf/run collect", description="Measure how fast logs are counted.")
    parser.add_argument("--records", type=int, default=500_000, help="in the log (default: 500000)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each (default: 5)")
    parser.add_argument("--quick", action="store_true", help="50,000 records, one round")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "perf" / "results", metavar="FOLDER", help="default: perf/results"
    )
    options = parser.parse_args(argv)
    records, rounds = (50_000, 1) if options.quick else (options.records, options.rounds)
    try:
        cpu_s = measure(records, rounds)
    except RunError as error:
        print(f"perf/run collect: {error}", file=sys.stderr)
        return 1
    print(format_table(records, cpu_s))
    result = {"machine": machine.describe(), "commit": machine.commit(), "records": records, "cpu_s": cpu_s}
    path = options.output / f"collect-{datetime.now(UTC):%Y-%m-%d}-{machine.commit()}.json"
    options.output.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"in {path}")
    return 0


def measure(records: int, rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each turn, by contender. Raises RunError when two that do the same job disagree."""
    cpu_s: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    with tempfile.TemporaryDirectory(prefix="adcore-collect-") as name:
        folder = Path(name)
        print(f"perf/run collect: writing {records:,} records in two forms", file=sys.stderr)
        paths = traffic.write(folder, records)
        for number in range(rounds):
            print(f"perf/run collect: round {number + 1} of {rounds}", file=sys.stderr)
            found = {}
            order = list(CONTENDERS) if number % 2 == 0 else [*reversed(CONTENDERS)]
            for contender in order:
                form, count = CONTENDERS[contender]
                started = time.process_time()
                found[contender] = count(paths[form], folder)
                cpu_s[contender].append(time.process_time() - started)
            check(found)
    return cpu_s


def check(found: dict[str, Sums]) -> None:
    """All that count the same have the same sums."""
    for kind in (("adcore, msgpack", "adcore, json"), [name for name in found if "SQLite" in name or "duckdb" in name]):
        first, *others = kind
        for other in others:
            if found[first] != found[other]:
                raise RunError(f"{first} counts {found[first]}, {other} {found[other]}")


def format_table(records: int, cpu_s: dict[str, list[float]]) -> str:
    lines = [f"{'':28} {'records/s of CPU':>16} {'µs/record':>10}  (best to worst round)"]
    for name, seconds in cpu_s.items():
        each = [one / records * 1e6 for one in seconds]
        lines.append(
            f"{name:28} {1e6 / median(each):>16,.0f} {median(each):>10.2f}  ({min(each):.2f} to {max(each):.2f})"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
