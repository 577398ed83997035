"""Count system calls, context switches and writes to the log at the rate of a usual site; `perf/run paced` sets up what
this needs. See perf/README.rst."""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

# This checkout's adcore is what is counted, and its tests have what starts it. This folder's files are perf.paced.*.
sys.path[0] = str(Path(__file__).resolve().parents[2])

from perf.paced import baseline, counting  # noqa: E402
from perf.paced.counting import CountError, Counts  # noqa: E402
from tests.process import Adcore  # noqa: E402

FAST, SLOW = "fast", "slow"
WINDOWS = {
    FAST: (counting.REQUESTS, counting.PAUSE_S, baseline.TOLERANCE),
    SLOW: (counting.SLOW_REQUESTS, counting.SLOW_PAUSE_S, baseline.SLOW_TOLERANCE),
}
# Other programs can add to a count: they keep a thread from its lock, which then waits twice. None takes away from what
# a revision does, so it is enough to pass once.
ATTEMPTS = 3
UPDATE_ROUNDS = 3


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="perf/run paced", description="Count what requests cost that come one by one."
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--check", action="store_true", help="exit status 1 when there is more than the baseline allows")
    what.add_argument("--update", action="store_true", help="write down what was counted as the baseline")
    parser.add_argument("--baseline", type=Path, default=baseline.BASELINE, metavar="FILE")
    options = parser.parse_args(argv)
    folder = Path(tempfile.mkdtemp(prefix="adcore-paced-"))
    try:
        held_to = baseline.read(options.baseline) if options.check else None
        with counting.served(folder) as server:
            if held_to is not None:
                return check(held_to, server, folder)
            found = measure(server, folder, UPDATE_ROUNDS if options.update else 1)
    except (CountError, baseline.NoBaseline) as error:
        say(str(error))
        return 2
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(describe_model(found))
    if options.update:
        baseline.write(options.baseline, found)
        say(f"written: {options.baseline}")
    return 0


def measure(server: Adcore, folder: Path, rounds: int) -> baseline.Model:
    models = []
    for number in range(rounds):
        counts = {
            name: [way(server, folder, requests, pause_s) for way in counting.WAYS]
            for name, (requests, pause_s, _) in WINDOWS.items()
        }
        models.append(baseline.fit(counts[FAST], counts[SLOW]))
        for name, ways in counts.items():
            say(f"round {number + 1} of {rounds}, {name}: {'; '.join(map(describe_counts, ways))}")
    return baseline.middle(models)


def check(held_to: baseline.Model, server: Adcore, folder: Path) -> int:
    """The exit status."""
    failed: list[str] = []
    better: list[str] = []
    for name, (requests, pause_s, tolerance) in WINDOWS.items():
        for way in counting.WAYS:
            for attempt in range(ATTEMPTS):
                counts = way(server, folder, requests, pause_s)
                found = baseline.regressions(held_to, counts, tolerance)
                if not found:
                    break
                say(f"attempt {attempt + 1} of {ATTEMPTS}: {'; '.join(found.values())}")
            failed += found.values()
            if name == FAST:
                better += baseline.improvements(held_to, counts)
            print(f"{name}: {describe_counts(counts)}")
    for line in better:
        print(f"better: {line}")
    for line in failed:
        print(f"FAILED: {line}")
    return 1 if failed else 0


def describe_counts(counts: Counts) -> str:
    rate = counts.requests / counts.seconds
    figures = ", ".join(f"{count:,.0f} {measure}" for measure, count in counts.counted.items())
    return f"{figures} for {counts.requests:,} requests at {rate:,.0f}/s"


def describe_model(model: baseline.Model) -> str:
    """As people ask for it."""
    lines = [f"{'':14} per request  per second  of 1,000 requests at {baseline.RATE:,}/s"]
    for measure in counting.MEASURES:
        thousand = model.expected(measure, 1000, 1000 / baseline.RATE)
        lines.append(
            f"{measure:14} {model.per_request[measure]:11.3f}  {model.per_second[measure]:10.1f}  {thousand:,.0f}"
        )
    names = sorted(model.names, key=lambda name: -model.names[name])
    lines.append("of these system calls: " + ", ".join(f"{model.names[name]:,.0f} {name}" for name in names[:10]))
    return "\n".join(lines)


def say(text: str) -> None:
    print(f"perf/run paced: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
