"""Everything at once, for long: `python -m tests.chaos.soak --minutes 30`.

Two workers under a steady load, with MariaDB and memcached, while at random and overlapping: a worker is killed; the
log volume is full, fails, writes short, is slow; the log is rotated; the stores are killed, stopped, refuse, cut, are
slow or answer garbage; inventory changes, rows are poisoned and mended; the wall clock steps by an hour.

Nothing that was answered may be lost, nothing logged twice or never sent, and only requests that a killed worker had in
hand may fail. Worker 1 is the one that is killed; the memory and descriptors of worker 2 and of the parent must stay
flat. What a worker remembers of requests fills up before, at full speed (a new table empties some of it, so that at the
pace of the rest it would be full only by chance, at some time). The slope of the memory is taken in the second half,
and judged if that has eight minutes or more.
"""

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tests.chaos.disks import VOLUME_BYTES
from tests.chaos.faulty import Faulty, Volume
from tests.chaos.kills import WRONG
from tests.chaos.restarts import WORKERS, pids
from tests.chaos.stores import FAULTS as STORE_FAULTS
from tests.chaos.stores import WHO, Stores, stores_in
from tests.load import Load, read_torn_log
from tests.process import Adcore, wait_for

CLIENTS = 6
# 250 requests a second in all: the log of half an hour has its place on the volume.
PAUSE_S = 0.02
SAMPLE_S = 1.0
WARM_UP_REQUESTS = 60_000
MEASURED = 0.5
JUDGED_S_MIN = 480.0
SLOPE_PERCENT_PER_HOUR_MAX = 1.0
HOUR_S = 3600.0
POISON = (
    "UPDATE creatives SET landing_url = 'javascript:alert(1)' WHERE id = 'c3-1'",
    "UPDATE creatives SET weight = -1 WHERE id = 'c4-1'",
    "UPDATE creatives SET landing_url = NULL WHERE id = 'c5-1'",
    "UPDATE campaigns SET targeting = '{' WHERE id = 'c6'",
    "UPDATE creatives SET landing_url = 'https://a/\r\nX: y' WHERE id = 'c7-1'",
)


class Sample(NamedTuple):
    """Of one process: memory in bytes, and open descriptors."""

    at_monotonic: float
    rss: int
    fds: int


class Outcome(NamedTuple):
    faults: Counter[str]
    counts: dict[str, int]
    rss_percent_per_hour: dict[str, float]
    fds: dict[str, tuple[float, float]]
    """Medians of the first and of the last quarter of what was measured."""
    measured_s: float
    rss_mib: dict[str, list[int]]
    """At each tenth of the time."""
    problems: list[str]


class Soak:
    """The faults, in three rows of which each has one at a time: stores, disk, and processes and clocks."""

    def __init__(self, server: Adcore, volume: Volume, faulty: Faulty, stores: Stores, seed: int) -> None:
        self.server = server
        self.volume = volume
        self.faulty = faulty
        self.stores = stores
        self.seed = seed
        self.done: Counter[str] = Counter()
        self.problems: list[str] = []
        self.samples: dict[str, list[Sample]] = {"worker": [], "parent": []}
        self._rotations = 0
        self._ending = threading.Event()

    def run(self, seconds: float) -> None:
        """Let it all happen for so long, and mend everything."""
        rows = (self._store_fault, self._disk_fault, self._process_fault)
        threads = [threading.Thread(target=self._repeat, args=(row,)) for row in rows]
        for thread in threads:
            thread.start()
        survivor = pids(self.server)[2]
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            for name, pid in (("worker", survivor), ("parent", self.server.process.pid)):
                self.samples[name].append(sample(pid))
            time.sleep(SAMPLE_S)
        self._ending.set()
        for thread in threads:
            thread.join()
        if pids(self.server).get(2) != survivor:
            self.problems.append("worker 2 has ended by itself")

    def _repeat(self, row: Callable[[random.Random], None]) -> None:
        chance = random.Random(f"{self.seed} {row.__name__}")
        try:
            while not self._ending.wait(chance.uniform(0.2, 2.0)):
                row(chance)
        except Exception as error:  # in a thread: it is told with the other problems
            self.problems.append(f"{row.__name__}: {error!r}")

    def _note(self, fault: str) -> None:
        self.done[fault] += 1

    def _store_fault(self, chance: random.Random) -> None:
        what = chance.choice(("away", "away", "change", "poison"))
        if what == "change":
            self.stores.change()
        elif what == "poison":
            self.stores.services["mysql"].sql(chance.choice(POISON), "chaos")  # type: ignore[attr-defined]
            self._ending.wait(chance.uniform(0.5, 2.0))
            self.stores.change()
        else:
            who, fault = chance.choice(WHO), chance.choice(STORE_FAULTS)
            what = f"{who} {fault}"
            self.stores.go(who, fault)
            self._ending.wait(chance.uniform(0.5, 12.0))
            self.stores.come_back(who, fault)
        self._note(what)

    def _disk_fault(self, chance: random.Random) -> None:
        what = chance.choice(("full", "fail", "short", "slow"))
        if what == "full":
            self.volume.fill()
        elif what == "fail":
            self.faulty.fail(chance.randint(1, 5))
        elif what == "short":
            self.faulty.cut_short(chance.randint(1, 5))
        else:
            self.faulty.be_slow(chance.uniform(0.01, 0.5))
        self._ending.wait(chance.uniform(0.2, 5.0))
        self.volume.free()
        self.faulty.heal()
        self._note(what)

    def _process_fault(self, chance: random.Random) -> None:
        what = chance.choice(("kill", "rotate", "rotate", "clock"))
        if what == "kill":
            before = pids(self.server).get(1)
            if before is None:
                return
            os.kill(before, signal.SIGKILL)
            wait_for(lambda: pids(self.server).get(1) not in (None, before), lambda: self.server.errors[-3000:])
        elif what == "rotate":
            self._rotate()
        else:
            self.faulty.clock_offset_s = chance.choice((-HOUR_S, HOUR_S))
            self._ending.wait(chance.uniform(0.5, 3.0))
            self.faulty.clock_offset_s = 0.0
        self._note(what)

    def _rotate(self) -> None:
        log = self.volume.path / "delivery.log"
        if log.exists():
            self._rotations += 1
            log.rename(f"{log}.{self._rotations}")
        self.server.signal(signal.SIGUSR1)


def sample(pid: int) -> Sample:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return Sample(time.monotonic(), pages * os.sysconf("SC_PAGE_SIZE"), len(os.listdir(f"/proc/{pid}/fd")))


def percent_per_hour(samples: list[Sample]) -> float:
    """The slope of the line through the memory, in parts of its mean."""
    line = statistics.linear_regression([s.at_monotonic for s in samples], [s.rss for s in samples])
    return line.slope * 3600 / statistics.mean(s.rss for s in samples) * 100


@contextmanager
def server_for(folder: Path, stores: Stores, volume: Volume, faulty: Faulty) -> Iterator[Adcore]:
    arguments = ("--unix", f"{folder}/state/ad.sock", "--log", f"{folder}/volume/delivery.log")
    variables: dict[str, Any] = faulty.variables
    workers = ("--workers", str(WORKERS))
    server = Adcore(folder / "state", *arguments, *workers, *stores.arguments, launcher=volume.launcher, **variables)
    try:
        volume.attach(server.process.pid)
        server.wait_until_ready()
        wait_for(lambda: len(pids(server)) == WORKERS)
        yield server
    finally:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()
        volume.close()


def soak(folder: Path, seconds: float, seed: int, warm_up_requests: int = 100) -> Outcome:
    volume = Volume(folder / "volume", VOLUME_BYTES // 2)
    faulty = Faulty(folder / "faulty", folder / "volume")
    with stores_in(folder) as stores, server_for(folder, stores, volume, faulty) as server:
        run = Soak(server, volume, faulty, stores, seed)
        with Load(server.address, CLIENTS, repeats=False) as load:
            for _ in range(0, warm_up_requests, 100):
                load.wait_for(100)
            load.pause_s = PAUSE_S
            run.run(seconds)
            load.wait_for(100)
        wait_for(lambda: all(one["log"]["waiting_bytes"] == 0 for one in server.status()["workers"]))
        dropped = sum(sum(one["log"]["dropped"].values()) for one in server.status()["workers"])
        problems = run.problems
        if server.stop():
            problems.append(f"the parent did not end well: {server.errors[-1000:]}")
        if left := list((folder / "state").glob("*.spool")):
            problems.append(f"records were left in the spool: {left}")
        records, damage = read_torn_log(*volume.path.glob("delivery.log*"))
        counts = {**load.check(records), "dropped": dropped, "torn": len(damage), "files": run._rotations + 1}
        if any(counts[what] for what in WRONG):
            shutil.copytree(volume.path, folder / "logs")
    problems += [f"{counts[what]} {what}" for what in (*WRONG, "dropped") if counts[what]]
    if counts["failed"] > run.done["kill"] * CLIENTS:
        problems.append(f"{counts['failed']} requests failed: {load.failures[-3:]}")
    slopes, fds = {}, {}
    measured_s = 0.0
    for name, samples in run.samples.items():
        kept = samples[int(len(samples) * MEASURED) :]
        quarter = max(1, len(kept) // 4)
        measured_s = kept[-1].at_monotonic - kept[0].at_monotonic
        slopes[name] = percent_per_hour(kept)
        first, last = (statistics.median(s.fds for s in part) for part in (kept[:quarter], kept[-quarter:]))
        fds[name] = first, last
        if last > first + CLIENTS:
            problems.append(f"the {name} has {last} descriptors open, and had {first}")
        if measured_s >= JUDGED_S_MIN and slopes[name] >= SLOPE_PERCENT_PER_HOUR_MAX:
            problems.append(f"the {name}'s memory grows by {slopes[name]:.2f} % an hour")
    tenths = {
        name: [samples[len(samples) * tenth // 10].rss >> 20 for tenth in range(10)]
        for name, samples in run.samples.items()
    }
    return Outcome(run.done, counts, slopes, fds, measured_s, tenths, problems)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.soak", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=30.0, help="how long (default: 30)")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32), help="(default: another one each time)")
    options = parser.parse_args()
    print("seed", options.seed, flush=True)
    folder = Path(tempfile.mkdtemp(prefix="adcore-"))
    with ExitStack() as at_end:
        at_end.callback(shutil.rmtree, folder, ignore_errors=True)
        outcome = soak(folder, options.minutes * 60, options.seed, WARM_UP_REQUESTS)
        if outcome.problems:
            at_end.pop_all()
            print(f"what the server said, and its logs if a record is wrong, are left in {folder}")
    print(json.dumps({"minutes": options.minutes, "faults": dict(sorted(outcome.faults.items())), **outcome.counts}))
    for name, slope in outcome.rss_percent_per_hour.items():
        first, last = outcome.fds[name]
        print(
            f"{name}: memory {slope:+.2f} % an hour over the last {outcome.measured_s / 60:.1f} minutes; "
            f"{first:g} descriptors at first, {last:g} at last; MiB at each tenth: {outcome.rss_mib[name]}"
        )
    for problem in outcome.problems:
        print(f"  {problem}")
    return 1 if outcome.problems else 0


if __name__ == "__main__":
    sys.exit(main())
