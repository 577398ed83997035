"""kill -9 of workers at random instants under load: `python -m tests.chaos.kills --count 50`.

Over a unix path, TCP and an inherited descriptor in turn. What was answered must be in the log exactly once, nothing
that was never sent may be there, and another worker must serve in the killed one's place within a second. A request
that the killed worker was about to answer fails, and may be in the log.
"""

import argparse
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from adcore.workers import STABLE_S
from tests.chaos.restarts import WORKERS, pids, server_on
from tests.load import Load, read_torn_log
from tests.process import KINDS, wait_for

# What no kill may cause.
WRONG = ("lost", "doubled", "phantom")
REPLACED_S_MAX = 1.0


class Outcome(NamedTuple):
    counts: dict[str, int]
    replaced_s: list[float]
    """How long it took until all workers served again, for each kill."""
    problems: list[str]


def kill(kind: str, folder: Path, count: int, chance: random.Random, form: str = "msgpack") -> Outcome:
    """Kill `count` workers, one at a time."""
    replaced_s = []
    with server_on(kind, folder, "--log-format", form) as server:
        wait_for(lambda: len(pids(server)) == WORKERS)
        with Load(server.address, repeats=False) as load:
            for _ in range(count):
                # One that dies again before it has served for this long is given a pause first.
                time.sleep(chance.uniform(STABLE_S, STABLE_S + 0.5))
                load.wait_for(chance.randrange(1, 300))
                time.sleep(chance.uniform(0, 0.02))  # the very instant: in the middle of anything
                victim = chance.choice(list(pids(server).values()))
                os.kill(victim, signal.SIGKILL)
                killed_monotonic = time.monotonic()
                wait_for(
                    lambda victim=victim: victim not in pids(server).values() and len(pids(server)) == WORKERS,
                    lambda: server.errors[-3000:],
                )
                replaced_s.append(time.monotonic() - killed_monotonic)
        status = server.stop()
        counts = load.check(read_torn_log(server.log)[0])
        problems = [f"{counts[what]} {what}" for what in WRONG if counts[what]]
        if status:
            problems.append(f"the parent ended with {status}: {server.errors[-1000:]}")
        if list(folder.glob("*.spool")):
            problems.append("records were left in the spool")
    return Outcome(counts, replaced_s, problems)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.kills", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--count", type=int, default=50, help="kills, over each kind (default: 50)")
    parser.add_argument("--only", choices=KINDS, action="append", help="kinds of socket (default: all)")
    parser.add_argument("--log-format", choices=("msgpack", "json"), default="msgpack")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32), help="(default: another one each time)")
    options = parser.parse_args()
    print("seed", options.seed)
    failed = False
    for kind in options.only or KINDS:
        with tempfile.TemporaryDirectory(prefix="adcore-") as folder:
            chance = random.Random(f"{options.seed} {kind}")
            outcome = kill(kind, Path(folder) / "state", options.count, chance, options.log_format)
        late = sum(seconds > REPLACED_S_MAX for seconds in outcome.replaced_s)
        print(
            f"{kind}: {options.count} kills; replaced within {statistics.median(outcome.replaced_s):.2f} s (median), "
            f"{max(outcome.replaced_s):.2f} s at most, {late} later than {REPLACED_S_MAX} s; "
            + ", ".join(f"{number} {what}" for what, number in outcome.counts.items())
        )
        for problem in outcome.problems:
            print(f"  {problem}")
        failed |= bool(outcome.problems or late)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
