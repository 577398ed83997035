"""What a table swapped under load costs; `perf/run refresh` sets up what this needs. See perf/README.rst.

A real server on a unix socket serves 100,000 creatives at a fixed rate, while rows are changed in its store. Latencies
with and without such changes come from turns within one round, so that a machine's drift is in both of them.
"""

import argparse
import http.client
import json
import os
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

# `python perf/refresh` has this folder on the path, in which `import perf.refresh` finds nothing.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from perf.macro import cpu, machine, traffic
from perf.macro.errors import Missing, RunError
from perf.macro.golang import Go
from perf.macro.servers import ROOT, environment
from perf.refresh import inventory, picture

CONNECTIONS = 32
REQUESTS = 3000
REFRESH_S = 1.0
PATIENCE_S = 60.0
# One request in five is for the placement with 10,000 candidates.
BUSY_SHARE = 0.2
USUAL: dict[str, Any] = {"rounds": 3, "seconds": 20.0, "requests": 60_000, "wait": 60.0}
QUICK: dict[str, Any] = {"rounds": 1, "seconds": 5.0, "requests": 6000, "wait": 0.0}
# What is changed in a turn: nothing; a weight, a status and a text; a weight in a tenth of all campaigns.
EDITS: dict[str, tuple[str, ...]] = {
    "still": (),
    "few": (
        "UPDATE campaigns SET weight = 1 + (weight * 7 + :n) % 50 WHERE position = :at",
        "UPDATE campaigns SET status = iif(status = 'active', 'paused', 'active') WHERE position = :at + 1",
        "UPDATE creatives SET alt = 'Changed, ' || :n WHERE id = printf('c%04d-3', :at + 2)",
    ),
    "tenth": ("UPDATE campaigns SET weight = 1 + (weight * 7 + :n) % 50 WHERE position % 10 = :n % 10",),
}


class Turn(NamedTuple):
    """One turn of open load; latencies in µs from when each request was due."""

    round: int
    cores: int
    edits: str
    latency_us: dict[str, float]
    late_p99_us: float
    tables: int
    """How many were swapped in meanwhile."""
    histogram: list[tuple[float, float]]


def main(argv: Sequence[str] | None = None) -> int:
    options = parse_arguments(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that everything is cleaned up
    folder = Path(tempfile.mkdtemp(prefix="adcore-refresh-"))
    try:
        run = Run(options, folder)
        run.measure()
        run.report(options.output)
    except (RunError, Missing) as error:
        say(str(error))
        return 1
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="perf/run refresh", description="Measure what a refresh costs under load.")
    parser.add_argument("--campaigns", type=int, default=5000, help="of 20 creatives each (default: 5000)")
    parser.add_argument("--rate", type=float, default=2000.0, help="requests per second (default: 2000)")
    parser.add_argument("--every", type=float, default=4.0, help="seconds between two edits (default: 4)")
    parser.add_argument("--rounds", type=int, help="how often each turn is taken (default: 3)")
    parser.add_argument("--seconds", type=float, help="of each turn (default: 20)")
    parser.add_argument("--requests", type=int, help="of each turn that measures CPU (default: 60000)")
    parser.add_argument("--wait", type=float, help="seconds to wait for quiet cores before each turn (default: 60)")
    parser.add_argument("--quick", action="store_true", help="two minutes in all: one short round of everything")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "perf" / "results", metavar="FOLDER", help="default: perf/results"
    )
    options = parser.parse_args(argv)
    for name, value in (QUICK if options.quick else USUAL).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options


class Server:
    """An adcore of its own, on some cores."""

    def __init__(self, folder: Path, source: str, cores: Sequence[int]) -> None:
        self.address = f"{folder}/s"
        self.errors = folder / "stderr.txt"
        self._control = f"{folder}/c"
        self.folder = folder
        self.source = source
        self.cores = cores

    def start(self) -> float:
        """Start it; the seconds until its first answer."""
        for path in (self.address, self._control):
            Path(path).unlink(missing_ok=True)
        command = [
            *("taskset", "-c", ",".join(map(str, self.cores))),
            *(sys.executable, "-m", "adcore", "--unix", self.address, "--control", f"unix:{self._control}"),
            *("--source", self.source, "--state-dir", str(self.folder), "--refresh", str(REFRESH_S)),
        ]
        started = time.monotonic()
        with self.errors.open("ab") as errors:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors, env=environment({})
            )
        while True:
            try:
                if ask(self.address, f"/v1/decision?placement={inventory.BUSY}")[0] in (200, 204):
                    return time.monotonic() - started
            except OSError:
                pass
            if self.process.poll() is not None or time.monotonic() > started + PATIENCE_S:
                raise RunError(f"adcore does not answer: {self.errors.read_text(errors='replace')[-500:]}")
            time.sleep(0.005)

    def status(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(ask(self._control, "/status")[1])
        return answer

    def wait_for_rest(self) -> None:
        """Until the first table is there, kept on disk, and nothing more happens."""
        quiet = 0
        while quiet < 5:
            before = cpu.family(self.process.pid), self.cpu_s()
            time.sleep(0.3)
            # A loader that works ends when it is done.
            same = cpu.family(self.process.pid) == before[0] and self.cpu_s() - before[1] < 0.03
            quiet = quiet + 1 if same else 0

    def cpu_s(self) -> float:
        return cpu.seconds([self.process.pid])

    def memory_kib(self, field: str) -> dict[str, int]:
        """VmRSS or VmHWM of the server and of what it started."""
        return {
            "server" if pid == self.process.pid else "loader": kib(pid, field) for pid in cpu.family(self.process.pid)
        }

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


class Run:
    """One run and what it found."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options = options
        self.folder = folder
        self.started = datetime.now(UTC)
        self.machine = machine.describe()
        cores = sorted(os.sched_getaffinity(0))
        self.load_core = cores[-1]
        self.sets = {1: cores[:1], 2: [cores[0], cores[-1]]} if len(cores) < 3 else {1: cores[:1], 2: cores[:2]}
        if len(cores) < 3:
            say("there are fewer than three cores: with two, the server shares one of them with the load")
        os.sched_setaffinity(0, {self.load_core})
        self.go = Go(folder / "go", ROOT / ".adcore" / "go-cache")
        self.load = self.go.build("load")
        self.turns: list[Turn] = []
        self.decision_us: list[dict[str, float]] = []
        self.start_s: dict[str, list[float]] = {}
        self.memory_kib: dict[str, dict[str, int]] = {}
        self.numbers = random.Random(inventory.SEED)
        self.edits_made = 0
        self.large = self._store("large", inventory.document(options.campaigns))
        self.small = self._store("small", inventory.hundred())

    def measure(self) -> None:
        for number in range(self.options.rounds):
            for cores in self.sets:
                self._measure_swaps(number, cores)
            self._measure_decisions()
        self._measure_starts()

    def _measure_swaps(self, number: int, cores: int) -> None:
        with self._serving("large", self.sets[cores]) as server:
            self._open(server, 3.0, inventory.PLACEMENT_IDS)
            turns = list(EDITS) if number % 2 == 0 else list(EDITS)[::-1]
            for edits in turns:
                self._quiet()
                before = swapped(server)
                done = threading.Event()
                editing = threading.Thread(target=self._edit, args=(done, EDITS[edits]))
                editing.start()
                try:
                    outcome = self._open(server, self.options.seconds, inventory.PLACEMENT_IDS)
                finally:
                    done.set()
                    editing.join()
                turn = Turn(
                    *(number, cores, edits, outcome["latency_us"], outcome["late_p99_us"]),
                    *(swapped(server) - before, outcome["histogram"]),
                )
                self.turns.append(turn)
                figures = ", ".join(f"{name} {value:,.0f}" for name, value in turn.latency_us.items())
                say(f"round {number + 1}: cores {cores}, {edits}: {figures} µs; {turn.tables} tables")
                server.wait_for_rest()
            self.memory_kib[f"cores {cores}, after edits"] = server.memory_kib("VmRSS")
            self.memory_kib[f"cores {cores}, highest"] = server.memory_kib("VmHWM")

    def _measure_decisions(self) -> None:
        """CPU of a decision among 10,000 creatives of 100,000, and among 100 of 100."""
        found: dict[str, float] = {}
        with self._serving("small", self.sets[1]) as small, self._serving("large", self.sets[1]) as large:
            for turns in ((small, large), (large, small)):
                for server in turns:
                    self._closed(server, max(self.options.requests, 2 * REQUESTS))
                    self._quiet()
                    before = server.cpu_s()
                    self._closed(server, self.options.requests)
                    spent = (server.cpu_s() - before) * 1e6 / self.options.requests
                    name = server.folder.name
                    found[name] = found.get(name, 0.0) + spent / 2
        self.decision_us.append(found)
        say("CPU per request: " + ", ".join(f"{name} {us:.1f} µs" for name, us in found.items()))

    def _measure_starts(self) -> None:
        """From exec to the first answer; with a store, and with nothing but the last good table on disk."""
        for name in ("small", "large"):
            for what, away in (("store", False), ("last good", True)):
                for _ in range(self.options.rounds):
                    self._quiet()
                    server = Server(self.folder / name, getattr(self, name), self.sets[1])
                    if away:
                        server.source = f"sqlite:///{self.folder}/nowhere.db"
                    else:
                        for kept in server.folder.glob("last-good*"):
                            kept.unlink()
                    try:
                        took = server.start()
                        self.start_s.setdefault(f"{name}, {what}", []).append(took)
                        server.wait_for_rest()
                        self.memory_kib[f"{name}, started from {what}"] = server.memory_kib("VmRSS")
                    finally:
                        server.stop()
            say(f"first answer of {name}: " + ", ".join(f"{k}: {median(v):.2f} s" for k, v in self.start_s.items()))

    # The parts

    def _store(self, name: str, document: dict[str, Any]) -> str:
        folder = self.folder / name
        folder.mkdir()
        path = folder / "inventory.json"
        path.write_text(json.dumps(document))
        source = f"sqlite:///{folder}/ads.db"
        command = [sys.executable, "-m", "adtools", "apply", "--source", source, str(path)]
        applied = subprocess.run(command, env=environment({}), capture_output=True, text=True, check=False)
        if applied.returncode:
            raise RunError(f"adctl apply: {applied.stderr.strip()}")
        return source

    @contextmanager
    def _serving(self, name: str, cores: Sequence[int]) -> Iterator[Server]:
        server = Server(self.folder / name, getattr(self, name), cores)
        try:
            server.start()
            server.wait_for_rest()
            yield server
        finally:
            server.stop()

    def _edit(self, done: threading.Event, statements: Sequence[str]) -> None:
        """Change rows in the store as an admin would, in one transaction each time."""
        if not statements:
            return
        # Away from the load's beginning and end, so that every refresh is seen by it.
        while not done.wait(self.options.every if self.edits_made else 0.5):
            connection = sqlite3.connect(self.large.removeprefix("sqlite://"), timeout=PATIENCE_S)
            connection.execute("PRAGMA synchronous = OFF")
            self.edits_made += 1
            at = self.numbers.randrange(self.options.campaigns - 2)
            with connection:
                for statement in statements:
                    connection.execute(statement, {"n": self.edits_made, "at": at})
            connection.close()

    def _requests(self, placements: Sequence[str]) -> Path:
        path = self.folder / f"requests-{len(placements)}"
        if not path.exists():
            draw = random.Random(inventory.SEED)
            requests = []
            for one in traffic.mixed(REQUESTS):
                placement = inventory.BUSY if draw.random() < BUSY_SHARE else draw.choice(placements)
                requests.append(one._replace(target=one.target.replace("placement=top", f"placement={placement}")))
            traffic.write(requests, path)
        return path

    def _open(self, server: Server, seconds: float, placements: Sequence[str]) -> dict[str, Any]:
        return self._run_load(server, placements, "-rate", str(self.options.rate), "-seconds", str(seconds))

    def _closed(self, server: Server, count: int) -> dict[str, Any]:
        return self._run_load(server, [inventory.BUSY], "-n", str(count))

    def _run_load(self, server: Server, placements: Sequence[str], *options: str) -> dict[str, Any]:
        command = [
            *("taskset", "-c", str(self.load_core), str(self.load), "-connect", f"unix:{server.address}"),
            *("-requests", str(self._requests(placements)), "-connections", str(CONNECTIONS), *options),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RunError(f"{done.stderr.strip()} {server.errors.read_text(errors='replace')[-500:]}")
        outcome: dict[str, Any] = json.loads(done.stdout)
        if wrong := outcome["statuses"].keys() - {"200", "204"}:
            raise RunError(f"adcore answered {wrong}")
        return outcome

    def _quiet(self) -> None:
        if self.options.wait and not cpu.wait_until_quiet(
            {self.load_core, *(core for cores in self.sets.values() for core in cores)}, self.options.wait
        ):
            say("other programs keep the cores busy: this is measured beside them")

    # The result

    def report(self, output: Path) -> None:
        commit = machine.commit()
        lines = [
            f"adcore {commit}, {self.started:%Y-%m-%d %H:%M} UTC, {self.machine['cores']} cores of "
            f"{self.machine['cpu']}; {self.options.campaigns * inventory.CREATIVES_EACH:,} creatives, "
            f"{self.options.rate:,.0f} requests/s",
            "",
            "cores  edits        p50      p99    p99.9      max   p99.9 more than still (range)  tables",
        ]
        for cores in self.sets:
            for edits in EDITS:
                here = [turn for turn in self.turns if (turn.cores, turn.edits) == (cores, edits)]
                us = {name: median(turn.latency_us[name] for turn in here) for name in ("p50", "p99", "p99.9", "max")}
                more = self._more(cores, edits)
                cells = " ".join(f"{value:8,.0f}" for value in us.values())
                tables = sum(turn.tables for turn in here)
                lines.append(
                    f"{cores:5}  {edits:5} {cells} µs  "
                    f"{median(more):+8,.0f} µs ({min(more):+,.0f} to {max(more):+,.0f})  {tables:6}"
                )
        ratios = [found["large"] / found["small"] for found in self.decision_us]
        small, large = (self.memory_kib[f"{name}, started from last good"]["server"] for name in ("small", "large"))
        text = inventory.text_bytes(inventory.document(self.options.campaigns))
        creatives = self.options.campaigns * inventory.CREATIVES_EACH
        lines += [
            "",
            f"A decision among 10,000 costs {median(ratios):.2f} times ({min(ratios):.2f} to {max(ratios):.2f}) "
            "what one among 100 costs.",
            f"Memory per creative: {(large - small) * 1024 / creatives:,.0f} bytes, of which {text / creatives:,.0f} "
            "are its own text.",
            *(
                f"First answer, {name}: {median(took):.2f} s ({min(took):.2f} to {max(took):.2f})"
                for name, took in self.start_s.items()
            ),
            *(
                f"MiB, {name}: " + ", ".join(f"{part} {kib / 1024:.0f}" for part, kib in parts.items())
                for name, parts in self.memory_kib.items()
            ),
        ]
        print("\n".join(lines), flush=True)
        output.mkdir(parents=True, exist_ok=True)
        path = output / f"refresh-{self.started:%Y-%m-%d}-{commit}.json"
        document = {
            "date": self.started.isoformat(timespec="seconds"),
            "commit": commit,
            "machine": self.machine,
            "settings": {name: value for name, value in vars(self.options).items() if name != "output"},
            "table": lines,
            "decision_us": self.decision_us,
            "start_s": self.start_s,
            "memory_kib": self.memory_kib,
            "text_bytes": text,
            "turns": [{**turn._asdict(), "histogram": coarse(turn.histogram)} for turn in self.turns],
        }
        path.write_text(json.dumps(document, indent=1) + "\n")
        say(f"written: {path}")
        try:
            picture.draw(path.with_suffix(".svg"), self.turns, f"adcore {commit}, {self.started:%Y-%m-%d}")
        except ImportError as error:
            say(f"no picture: {error}")

    def _more(self, cores: int, edits: str) -> list[float]:
        """How much higher p99.9 is than without edits, in each round."""
        p999 = {(t.round, t.edits): t.latency_us["p99.9"] for t in self.turns if t.cores == cores}
        return [value - p999[number, "still"] for (number, name), value in p999.items() if name == edits]


def swapped(server: Server) -> int:
    loads: dict[str, int] = server.status()["refresh"]["loads"]
    return sum(loads.values())


def kib(pid: int, field: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except FileNotFoundError:  # a loader that has just ended
        return 0
    for line in lines:
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0])
    return 0


def coarse(histogram: Sequence[tuple[float, float]]) -> list[tuple[float, int]]:
    """Of sixteen buckets in each power of two: enough for a picture, and not too much to keep."""
    counts: dict[float, int] = {}
    for least, count in histogram:
        step = 2.0 ** (max(int(least), 1).bit_length() - 5)
        counts[least // step * step] = counts.get(least // step * step, 0) + int(count)
    return sorted(counts.items())


def ask(path: str, target: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("localhost", timeout=PATIENCE_S)
    connection.sock = socket.socket(socket.AF_UNIX)
    try:
        connection.sock.settimeout(PATIENCE_S)
        connection.sock.connect(path)
        connection.request("GET", target)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def say(text: str) -> None:
    print(f"perf/run refresh: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
