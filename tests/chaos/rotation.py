"""Rotate the log of several workers under load, ten times a second: `python -m tests.chaos.rotation --seconds 60`.

By rename and USR1, over each kind of socket, and by the real logrotate with the file that is shipped, which compresses
what it renamed before. Every record must be in one of the files, once, and no file may be damaged. (logrotate is run
again when all workers have taken the new file: the file that it compresses is nobody's any more then.)
"""

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import NamedTuple

from tests.chaos.restarts import WORKERS, pids, server_on
from tests.load import WRONG, Load, read_torn_log
from tests.logrotate import Logrotate
from tests.process import KINDS, Adcore, wait_for

INTERVAL_S = 0.1


class Outcome(NamedTuple):
    rotations: int
    files: int
    counts: dict[str, int]
    problems: list[str]


def rotate(kind: str, folder: Path, seconds: float, *, by_logrotate: bool = False) -> Outcome:
    """Under load for so long."""
    with server_on(kind, folder / "state", "--pid-file", f"{folder}/1.pid") as server:
        wait_for(lambda: len(pids(server)) == WORKERS)
        turn = _by_logrotate(server, folder) if by_logrotate else _by_signal(server)
        rotations = 0
        with Load(server.address, pause_s=0.001) as load:
            ends = time.monotonic() + seconds
            while (began := time.monotonic()) < ends:
                turn()
                rotations += 1
                time.sleep(max(0.0, began + INTERVAL_S - time.monotonic()))
        problems = [f"the server did not end well: {server.errors[-1000:]}"] if server.stop() else []
        files = sorted(server.log.parent.glob(f"{server.log.name}*"))
        records, damage = read_torn_log(*files)
        counts = load.check(records)
        problems += [f"{counts[what]} {what}" for what in (*WRONG, "phantom") if counts[what]]
        problems += [f"half a record: {one}" for one in damage[:3]]
    return Outcome(rotations, len(files), counts, [*problems, *load.failures[:3]])


def _by_signal(server: Adcore) -> Callable[[], None]:
    numbers = count(1)

    def turn() -> None:
        if server.log.exists():
            server.log.rename(f"{server.log}.{next(numbers)}")
        server.signal(signal.SIGUSR1)

    return turn


def _by_logrotate(server: Adcore, folder: Path) -> Callable[[], None]:
    logrotate = Logrotate(folder / "logrotate", server.log, f"{folder}/*.pid", kept=100_000)

    def turn() -> None:
        before = _reopens(server)
        size = server.log.stat().st_size if server.log.exists() else 0
        logrotate.rotate()
        if size:
            wait_for(lambda: _reopens(server) >= before + WORKERS)

    return turn


def _reopens(server: Adcore) -> int:
    return sum(one["log"]["reopens"] for one in server.status()["workers"])


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos.rotation", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="how long, each time (default: 60)")
    seconds = parser.parse_args().seconds
    failed = False
    for kind, by_logrotate in (*((kind, False) for kind in KINDS), (KINDS[0], True)):
        with tempfile.TemporaryDirectory(prefix="adcore-") as folder:
            outcome = rotate(kind, Path(folder), seconds, by_logrotate=by_logrotate)
        print(
            f"{'logrotate' if by_logrotate else 'rename and USR1'}, {kind}: {outcome.rotations} rotations, "
            f"{outcome.files} files; " + ", ".join(f"{number} {what}" for what, number in outcome.counts.items()),
            flush=True,
        )
        for problem in outcome.problems:
            print(f"  {problem}")
        failed |= bool(outcome.problems)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
