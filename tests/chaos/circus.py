"""Reload the workers of tools/circus/adcore.ini under load, by a real circusd: `python -m tests.chaos.circus`.

Fails unless every request was answered and is in the log once.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from tests.circusd import running
from tests.load import Load, read_log


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.circus", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--count", type=int, default=100, help="reloads (default: 100)")
    count = parser.parse_args().count
    with tempfile.TemporaryDirectory() as folder, running(Path(folder)) as circus:
        with Load(circus.address, placement="top") as load:
            load.wait_for(500)
            for number in range(count):
                circus.reload()
                print(f"chaos/circus: reload {number + 1} of {count}", file=sys.stderr)
                load.wait_for(50)
        circus.stop()
        counts = load.check(read_log(circus.log))
    print(json.dumps({"reloads": count, **counts}))
    for failure in load.failures[:10]:
        print(f"chaos/circus: {failure}", file=sys.stderr)
    return 1 if any(counts[name] for name in ("failed", "lost", "doubled", "unanswered")) else 0


if __name__ == "__main__":
    sys.exit(main())
