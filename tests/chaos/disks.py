"""A log volume that is full, fails, writes short or is slow, under load: `python -m tests.chaos.disks --seconds 30`.

No request may fail. While the bounded queue holds, every record must come to the log once; what did not fit must be
exactly what /status says was dropped. The log must be written again within a second of the disk's return, and no half
record may be in it. (Where several workers write one file, a piece of a record may stand between two others: its
record stands whole further on, and readers pass over the piece.)
"""

import argparse
import errno
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tests.chaos.faulty import Faulty, Volume
from tests.load import Load, read_torn_log
from tests.process import Adcore, wait_for

RECOVERED_S_MAX = 1.0
VOLUME_BYTES = 1 << 30
# Holds some tenths of a second of the load below.
SMALL_QUEUE_BYTES = 1 << 16
# Holds a minute of it. (The default held 29 s of it once.)
LARGE_QUEUE_BYTES = 1 << 28


class Disk(NamedTuple):
    """A server whose log is on a volume of its own."""

    server: Adcore
    volume: Volume
    faulty: Faulty

    def logs(self) -> list[dict[str, Any]]:
        """What each worker says of its log."""
        status = self.server.status()
        return [one["log"] for one in status.get("workers", [status]) if "log" in one]

    def total(self, name: str) -> int:
        """Of all workers and types."""
        return sum(sum(log[name].values()) for log in self.logs())

    def is_written_out(self) -> bool:
        return all(log["waiting_bytes"] == 0 for log in self.logs())


class Outcome(NamedTuple):
    what: str
    counts: dict[str, int]
    recovered_s: float
    """From the disk's return until the log grew again."""
    problems: list[str]


@contextmanager
def serving_on_volume(folder: Path, *args: str) -> Iterator[Disk]:
    volume = Volume(folder / "volume", VOLUME_BYTES)
    log = folder / "volume" / "delivery.log"
    faulty = Faulty(folder / "faulty", log)
    state = folder / "state"
    address = ("--unix", f"{state}/ad.sock", "--log", str(log))
    variables: dict[str, Any] = faulty.variables
    server = Adcore(state, *address, *args, launcher=volume.launcher, **variables)
    try:
        volume.attach(server.process.pid)
        server.wait_until_ready()
        yield Disk(server, volume, faulty)
    finally:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()
        volume.close()


def full(disk: Disk, seconds: float) -> Callable[[], None]:
    disk.volume.fill()
    time.sleep(seconds)  # the fault itself: it lasts this long
    return disk.volume.free


def failing(disk: Disk, seconds: float) -> Callable[[], None]:
    """EIO at each n-th write, for one n after the other, and then at every one."""
    for every in (7, 5, 3, 2, 1):
        disk.faulty.fail(every, errno.EIO)
        time.sleep(seconds / 5)
    return disk.faulty.heal


def short(disk: Disk, seconds: float) -> Callable[[], None]:
    for every in (5, 2, 1):
        disk.faulty.cut_short(every)
        time.sleep(seconds / 3)
    return disk.faulty.heal


def slow(disk: Disk, seconds: float) -> Callable[[], None]:
    for delay_s in (0.05, 0.5):
        disk.faulty.be_slow(delay_s)
        time.sleep(seconds / 2)
    return disk.faulty.heal


FAULTS = {fault.__name__: fault for fault in (full, failing, short, slow)}


def suffer(
    fault: Callable[[Disk, float], Callable[[], None]], folder: Path, seconds: float, *args: str, drops: bool = False
) -> Outcome:
    """Let a server under load have a fault for so long. `drops`: its queue is too small for that."""
    args = (*args, "--log-queue-bytes", str(SMALL_QUEUE_BYTES if drops else LARGE_QUEUE_BYTES))
    problems = []
    with serving_on_volume(folder, *args) as disk, Load(disk.server.address) as load:
        load.wait_for(200)
        end = fault(disk, seconds)
        written = disk.total("written")
        errors = sum(log["write_errors"] for log in disk.logs())
        end()
        began_monotonic = time.monotonic()
        wait_for(lambda: disk.total("written") > written)
        recovered_s = time.monotonic() - began_monotonic
        load.wait_for(200)
        load.end()
        wait_for(disk.is_written_out, lambda: f"records still wait: {disk.logs()}")
        dropped = disk.total("dropped")
        if disk.server.stop():
            problems.append(f"the server did not end well: {disk.server.errors[-1000:]}")
        records, damage = read_torn_log(disk.volume.path / "delivery.log")
        counts = {**load.check(records), "dropped": dropped, "write_errors": errors, "torn": len(damage)}
        if fault in (full, failing) and not errors:
            problems.append("no write failed")
        if fault is short and not disk.faulty.faults:
            problems.append("no write was short")
    if drops and not dropped:
        problems.append("nothing was dropped")
    if counts["lost"] != dropped or (dropped and not drops):
        problems.append(f"{counts['lost']} lost, and {dropped} counted as dropped")
    problems += [f"{counts[what]} {what}" for what in ("failed", "doubled", "unanswered", "phantom") if counts[what]]
    if damage and "--workers" not in args:
        problems.append(f"half a record: {damage[:3]}")
    return Outcome(fault.__name__, counts, recovered_s, [*problems, *load.failures[:3]])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.disks", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=30.0, help="how long each fault lasts (default: 30)")
    parser.add_argument("--only", choices=FAULTS, action="append", help="faults (default: all)")
    options = parser.parse_args()
    failed = False
    for name in options.only or FAULTS:
        for args, drops in (((), False), (("--workers", "2"), False), ((), True)):
            if drops and name == "short":  # which keeps nothing waiting
                continue
            with tempfile.TemporaryDirectory(prefix="adcore-") as folder:
                outcome = suffer(FAULTS[name], Path(folder), options.seconds, *args, drops=drops)
            late = outcome.recovered_s > RECOVERED_S_MAX
            print(
                f"{name}{' ' if args else ''}{' '.join(args)}{' with a small queue' if drops else ''}: "
                f"written again after {outcome.recovered_s:.2f} s; "
                + ", ".join(f"{count} {what}" for what, count in outcome.counts.items()),
                flush=True,
            )
            for problem in outcome.problems:
                print(f"  {problem}")
            failed |= bool(outcome.problems or late)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
