"""Every fault at every operation, for many seeds: `python -m tests.simulation --seeds 10`.

`--seed N --at K --fault NAME` plays one run again and prints its operations; so does `--seed N --many`, one in which
faults come at random.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from tests.simulation.scenario import Outcome, many_faults, simulate
from tests.simulation.world import Fault

FORMS = ("msgpack", "json")


def play(seed: int, faults: dict[int, Fault]) -> Outcome:
    # Only frames have a checksum: in JSON many pieces of two processes may happen to read as one record.
    form = FORMS[seed % 2] if len(faults) < 2 else FORMS[0]
    with tempfile.TemporaryDirectory(prefix="adcore-") as folder:
        return simulate(Path(folder), seed, faults, form)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seeds", type=int, default=10, help="how many (default: 10)")
    parser.add_argument("--seed", type=int, default=0, help="the first or only one (default: 0)")
    parser.add_argument("--at", type=int, help="only this operation")
    parser.add_argument("--fault", type=Fault, choices=list(Fault), default=Fault.ERROR, help="what happens to it")
    parser.add_argument("--many", action="store_true", help="only faults at random")
    options = parser.parse_args()
    if options.at is not None or options.many:
        outcome = play(options.seed, many_faults(options.seed) if options.many else {options.at: options.fault})
        print(*outcome.trace, sep="\n")
        print(*outcome.problems, sep="\n", file=sys.stderr)
        return 1 if outcome.problems else 0
    failed = runs = 0
    for seed in range(options.seed, options.seed + options.seeds):
        count = len(play(seed, {}).trace)
        single = [({at: fault}, f"--at {at} --fault '{fault.value}'") for fault in Fault for at in range(1, count + 1)]
        for faults, how in [*single, (many_faults(seed), "--many")]:
            runs += 1
            if problems := play(seed, faults).problems:
                failed += 1
                print(f"--seed {seed} {how}: {'; '.join(problems)[:500]}", flush=True)
    print(f"{runs} runs, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
