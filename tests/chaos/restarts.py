"""Replace workers again and again under load: `python -m tests.chaos.restarts --count 100`.

Over a unix path, TCP and an inherited descriptor in turn. No request may fail, and every id must be in the log exactly
once. Every third time it is one worker that is ended by hand; otherwise HUP rolls over all of them.
"""

import argparse
import os
import signal
import sys
import tempfile
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

from tests.load import WRONG, Load, read_log
from tests.process import KINDS, Adcore, serving_over, wait_for

WORKERS = 2


class Outcome(NamedTuple):
    replaced: int
    counts: dict[str, int]
    problems: list[str]


def server_on(kind: str, folder: Path, *more: str, **variables: Any) -> AbstractContextManager[Adcore]:
    """A server with several workers that listens on a socket of this kind."""
    return serving_over(kind, folder, "--workers", str(WORKERS), "--graceful-timeout", "20", *more, **variables)


def pids(server: Adcore) -> dict[int, int]:
    """The pid of each number's worker that serves."""
    return {one["number"]: one["pid"] for one in server.status()["workers"] if one["state"] == "serving"}


def restart(kind: str, folder: Path, count: int) -> Outcome:
    """Replace at least `count` workers under load."""
    with server_on(kind, folder) as server:
        wait_for(lambda: len(pids(server)) == WORKERS)
        replaced = turn = 0
        with Load(server.address) as load:
            while replaced < count:
                before = pids(server)
                turn += 1
                if turn % 3:
                    leaving = set(before.values())
                    server.signal(signal.SIGHUP)
                else:
                    one = before[1 + turn % WORKERS]
                    leaving = {one}
                    os.kill(one, signal.SIGTERM)
                wait_for(
                    lambda leaving=leaving: len(pids(server)) == WORKERS and not leaving & set(pids(server).values()),
                    lambda: server.errors[-3000:],
                )
                load.wait_for(20)
                replaced += len(leaving)
        status = server.stop()
        counts = load.check(read_log(server.log))
        problems = [*load.failures, *(f"{counts[kind]} {kind}" for kind in WRONG if counts[kind])]
        if status:
            problems.append(f"the parent ended with {status}: {server.errors[-1000:]}")
        return Outcome(replaced, counts, problems)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.restarts", description="Restarts under load.")
    parser.add_argument("--count", type=int, default=100, help="workers replaced, over each kind (default: 100)")
    parser.add_argument("--only", choices=KINDS, action="append", help="kinds of socket (default: all)")
    options = parser.parse_args()
    failed = False
    for kind in options.only or KINDS:
        with tempfile.TemporaryDirectory(prefix="adcore-") as folder:
            outcome = restart(kind, Path(folder) / "state", options.count)
        print(
            f"{kind}: {outcome.replaced} workers replaced; "
            + ", ".join(f"{count} {what}" for what, count in outcome.counts.items())
        )
        for problem in outcome.problems[:20]:
            print(f"  {problem}")
        failed |= bool(outcome.problems)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
