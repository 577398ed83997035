"""The search for the input that costs most: for each surface, edited cases of those that cost most so far.

Two ways to measure a case. `count` runs the whole search in a process under callgrind, where each case is counted
exactly: the same cases and the same numbers each time, some twenty a second. `search` runs it by itself and ranks the
cases by CPU time, hundreds a second; time is noisy, so the worst cases of each surface are then counted, and only the
count says whether a promise is broken.
"""

import gc
import json
import random
import subprocess
import sys
import tempfile
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator, Sequence
from heapq import heapify, heappush, heapreplace
from pathlib import Path
from typing import NamedTuple

from perf.micro.allocations import steady_environment
from tests.fuzz import instructions
from tests.fuzz.cost import INSTRUCTIONS_PER_US, ColdServer, Spent
from tests.fuzz.mutation import Mutator
from tests.fuzz.surfaces import Surface, large_inventory, small_inventory, surfaces

ROOT = Path(__file__).parents[2]
# Cases of a surface that are edited further, and at the end of a search counted.
KEPT = 24
# One case in so many goes to the server with 5,000 campaigns, where it takes a hundred times as long.
LARGE_EVERY = 250
NS_PER_US = 1000.0
# Between parts of a search what was kept is measured this often again.
PARTS = 20
SETTLED = 3
# Garbage is collected between cases, and not in one; what is there before the first is not looked at again.
COLLECT_EVERY = 500


class Found(NamedTuple):
    """A case and its cost; the costliest sort last."""

    ratio: float
    surface: str
    payload: bytes
    spent: Spent
    us: float

    @property
    def us_per_byte(self) -> float:
        return self.us / self.spent.size

    def __str__(self) -> str:
        spent = self.spent
        return (
            f"{self.surface}: {self.us:,.0f} us for {spent.size:,} bytes, {spent.requests} requests and "
            f"{spent.slots} slots, the longest turn {self.us * max(spent.turns) / sum(spent.turns):,.0f} us; "
            f"{self.ratio:.0%} of what is allowed"
        )


class Climb:
    """Runs cases of every surface, and keeps the costliest."""

    def __init__(self, folder: Path, take: Callable[[], int], units_per_us: float, only: Sequence[str] = ()) -> None:
        self._units_per_us = units_per_us
        self._is_noisy = units_per_us == NS_PER_US
        self.surfaces = {one.name: one for one in surfaces() if not only or one.name in only}
        self._servers: dict[bool, ColdServer] = {}
        for is_large in {one.is_large for one in self.surfaces.values()}:
            home = folder / ("large" if is_large else "small")
            home.mkdir()
            inventory = large_inventory() if is_large else small_inventory()
            self._servers[is_large] = ColdServer(home, inventory, take, units_per_us)
        self.best: dict[str, list[Found]] = {name: [] for name in self.surfaces}
        """By surface; each list is a heap."""
        self.cases = 0

    def warm_up(self) -> None:
        """Let happen what happens once in a process, such as the compilation of expressions."""
        for surface in self.surfaces.values():
            for seed in surface.seeds[: 1 if surface.is_large else None]:
                self._servers[surface.is_large].spend(surface.send(seed), surface.last_reads)
        gc.collect()
        gc.freeze()

    def climb(self, cases: int, seed: int) -> None:
        """Every seed, and edited cases up to `cases` in all."""
        chance = random.Random(seed)
        for surface in self.surfaces.values():
            for payload in surface.seeds:
                self.measure(surface, payload)
        mutators = {one.name: Mutator(one.seeds, one.words, chance.getrandbits(32)) for one in self.surfaces.values()}
        small, large = ([one for one in self.surfaces.values() if one.is_large is size] for size in (False, True))
        while self.cases < cases:
            some = large if large and (not small or self.cases % LARGE_EVERY == 0) else small
            surface = some[self.cases % len(some)] if some is large else chance.choice(some)
            best = self.best[surface.name]
            parent = chance.choice(best).payload if chance.random() < 0.8 else chance.choice(surface.seeds)
            self.measure(surface, self._edit(mutators[surface.name], surface, parent, chance))

    def measure(self, surface: Surface, payload: bytes) -> Found:
        best = self.best[surface.name]
        found = self._spend(surface, payload)
        if self._is_noisy and len(best) == KEPT and found > best[0]:
            # Something else may have taken the time.
            found = min(found, self._spend(surface, payload))
        if len(best) < KEPT:
            heappush(best, found)
        elif found > best[0]:
            heapreplace(best, found)
        self.cases += 1
        if self.cases % COLLECT_EVERY == 0:
            gc.collect()
        return found

    def settle(self) -> None:
        """Measure again what was kept, so that no case stays for time that something else took."""
        for name, best in self.best.items():
            for at, found in enumerate(best):
                best[at] = min(found, *(self._spend(self.surfaces[name], found.payload) for _ in range(SETTLED)))
            heapify(best)

    def _spend(self, surface: Surface, payload: bytes) -> Found:
        server = self._servers[surface.is_large]
        spent = server.spend(surface.send(payload), surface.last_reads)
        us = sum(spent.turns) / self._units_per_us
        return Found(spent.ratio(server.campaigns, self._units_per_us), surface.name, payload, spent, us)

    @staticmethod
    def _edit(mutator: Mutator, surface: Surface, parent: bytes, chance: random.Random) -> bytes:
        """As the other fuzzers edit cases; or a piece of it again and again, up to any size."""
        size_max = surface.payload_bytes_max
        if chance.random() < 0.7 or not parent:
            return mutator.mutate(parent, size_max)
        start = chance.randrange(len(parent))
        piece = parent[start : start + chance.choice((1, 2, 3, 8, 40, 400))]
        at = chance.randrange(len(parent) + 1)
        room = max(0, size_max - len(parent)) // len(piece)
        return (parent[:at] + piece * chance.choice((2, 30, 500, room, room // 4)) + parent[at:])[:size_max]


def search(cases: int, seed: int) -> list[Found]:
    """Rank cases by CPU time, and count the costliest; what was counted, the worst first."""
    with tempfile.TemporaryDirectory(prefix="adcore-") as name:
        folder = Path(name)
        gc.disable()
        last_ns = time.thread_time_ns()

        def take() -> int:
            nonlocal last_ns
            before_ns, last_ns = last_ns, time.thread_time_ns()
            return last_ns - before_ns

        climb = Climb(folder, take, NS_PER_US)
        climb.warm_up()
        began_monotonic = time.monotonic()
        for part in range(PARTS):
            climb.climb(cases * (part + 1) // PARTS, seed + part)
            climb.settle()
            if (part + 1) % (PARTS // 10) == 0:
                print(f"cost: {climb.cases} cases in {time.monotonic() - began_monotonic:.0f} s", flush=True)
        gc.unfreeze()
        gc.enable()
        timed = [found for best in climb.best.values() for found in best]
        counted = count(0, seed, [(found.surface, found.payload) for found in timed])
        print(f"cost: {_instructions_per_us(timed, counted):,.0f} instructions took a microsecond here", flush=True)
        return counted


def _instructions_per_us(timed: list[Found], counted: list[Found]) -> float:
    """What this machine did, on these very cases."""
    times_us = {(found.surface, found.payload): found.us for found in timed}
    pairs = [(found.us * INSTRUCTIONS_PER_US, times_us[found.surface, found.payload]) for found in counted]
    return sum(count for count, _ in pairs) / sum(us for _, us in pairs)


def count(cases: int, seed: int, given: Sequence[tuple[str, bytes]] = (), only: Sequence[str] = ()) -> list[Found]:
    """Search in a process that counts, or count the cases that are given; all that was kept, the worst first."""
    with tempfile.TemporaryDirectory(prefix="adcore-") as name:
        folder = Path(name)
        wanted = {"cases": cases, "seed": seed, "only": [*only] or sorted({surface for surface, _ in given})}
        wanted["given"] = [(surface, b64encode(payload).decode()) for surface, payload in given]
        (folder / "wanted.json").write_text(json.dumps(wanted))
        command = instructions.command(folder, ["-m", "tests.fuzz.climb", str(folder)])
        done = subprocess.run(command, cwd=ROOT, env=steady_environment(), stdout=subprocess.PIPE, text=True)
        if done.returncode:
            raise AssertionError(f"the counting process failed: {(folder / 'callgrind.log').read_text()[-2000:]}")
        return sorted(map(_from_line, done.stdout.splitlines()), reverse=True)


def _count_here(folder: Path) -> None:
    """In the process that counts."""
    wanted = json.loads((folder / "wanted.json").read_text())
    counter = instructions.Counter(folder)
    gc.disable()
    climb = Climb(folder, counter.take, INSTRUCTIONS_PER_US, wanted["only"])
    climb.warm_up()
    counter.start()
    if wanted["given"]:
        found = [climb.measure(climb.surfaces[name], b64decode(text)) for name, text in wanted["given"]]
    else:
        climb.climb(wanted["cases"], wanted["seed"])
        found = [one for best in climb.best.values() for one in best]
    for one in found:
        print(_to_line(one))


def _to_line(found: Found) -> str:
    return json.dumps([found.ratio, found.surface, b64encode(found.payload).decode(), found.spent, found.us])


def _from_line(line: str) -> Found:
    ratio, surface, payload, spent, us = json.loads(line)
    turns, *others = spent
    return Found(ratio, surface, b64decode(payload), Spent(tuple(turns), *others), us)


def report(found: list[Found]) -> Iterator[str]:
    """The costliest case of each surface."""
    for name in dict.fromkeys(one.surface for one in found):
        here = [one for one in found if one.surface == name]
        yield f"{max(one.us_per_byte for one in here):8.3f} us/byte at most; worst is {max(here)}"


def main(cases: int, seed: int) -> int:
    """`python -m tests.fuzz cost`."""
    found = search(cases, seed)
    print(*report(found), sep="\n")
    broken = [one for one in found if one.ratio > 1]
    for number, one in enumerate(broken[:10]):
        path = Path(f"fuzz-cost-{number}.case")
        path.write_bytes(one.payload)
        print(f"breaks a promise, and is in {path}: {one}", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    _count_here(Path(sys.argv[1]))
