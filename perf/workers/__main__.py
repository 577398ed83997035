"""What a second worker costs, and whether the load spreads; `perf/run workers` sets up what this needs.

Each way of sharing connections among workers runs behind nginx under a closed loop of kept-alive connections, first as
started, then after the workers were replaced one by one under that load. See perf/README.rst.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

# `python perf/workers` has this folder on the path, in which `import perf.workers` finds nothing.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from perf.macro import cpu, inventory, machine, traffic
from perf.macro.errors import Missing, RunError
from perf.macro.load import parse_h2load
from perf.macro.servers import ROOT, Part, _nginx, environment, free_port
from tests.process import Connection

PATIENCE_S = 60.0
WARM_UP = 3000
# Workers look five times a second whether they have too much.
SETTLE_S = 3.0
LOCATION = """
        location /v1/ {
            proxy_pass http://adcore;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $host;
            proxy_set_header X-Forwarded-For "";
        }"""


class Way(NamedTuple):
    """One way for workers to get their connections."""

    name: str
    label: str
    workers: int
    variant: str = "share"
    tcp: bool = False
    sockets_in_nginx: bool = False
    """Whether nginx names a socket for each, which then are processes of their own."""


def ways(workers: int) -> list[Way]:
    return [
        Way("one", "1 process, unix", 1),
        Way("share", f"{workers} workers, unix, by share (what adcore does)", workers),
        Way("chance", f"{workers} workers, unix, one accept a turn", workers, "chance"),
        Way("libuv", f"{workers} workers, unix, uvloop's own server", workers, "libuv"),
        Way("each", f"{workers} sockets in nginx's upstream", workers, sockets_in_nginx=True),
        Way("one-tcp", "1 process, TCP", 1, tcp=True),
        Way("share-tcp", f"{workers} workers, TCP, by share (what adcore does)", workers, tcp=True),
        Way("libuv-tcp", f"{workers} workers, TCP, uvloop's own server", workers, "libuv", tcp=True),
        Way("reuseport", f"{workers} workers, TCP, SO_REUSEPORT", workers, "reuseport", tcp=True),
    ]


class Sample(NamedTuple):
    """One way in one round."""

    way: str
    round: int
    cpu_us: float
    """User and system time of the workers per request."""
    per_second: float
    spread: float
    """The most requests of a worker, divided by the mean."""
    spread_after: float | None
    """The same after all workers were replaced under load."""


class Running:
    """adcore and nginx, started one way."""

    def __init__(self, way: Way, folder: Path, source: str, keepalive: int) -> None:
        self.way = way
        self.keepalive = keepalive
        self.folder = folder
        self.processes: list[subprocess.Popen[bytes]] = []
        self.controls: list[str] = []
        self._source = source

    def start(self) -> None:
        way, folder = self.way, self.folder
        sockets = [folder / f"ad{number}.sock" for number in range(way.workers if way.sockets_in_nginx else 1)]
        self.controls = [f"unix:{path}.control" for path in sockets]
        servers = []
        for path, control in zip(sockets, self.controls, strict=True):
            listen = ["--unix", str(path)]
            servers.append(f"server unix:{path};")
            if way.tcp:
                port = free_port()
                listen = ["--host", "127.0.0.1", "--port", str(port), "--trusted-peers", "127.0.0.0/8"]
                servers[-1] = f"server 127.0.0.1:{port};"
            count = 1 if way.sockets_in_nginx else way.workers
            self._start(
                [
                    *(sys.executable, str(ROOT / "perf/workers/variant.py"), way.variant, *listen),
                    *("--control", control, "--workers", str(count), "--state-dir", f"{path}.state"),
                    *("--source", self._source),
                ]
            )
        nginx: Part = _nginx(folder, LOCATION, f"upstream adcore {{ {' '.join(servers)} keepalive {self.keepalive}; }}")
        for control in self.controls:
            wait_for(lambda control=control: self._serves(control))  # type: ignore[misc]
        self._start(nginx.command)
        wait_for(lambda: (folder / "s").exists())

    def _start(self, command: list[str]) -> None:
        with (self.folder / "stderr.txt").open("ab") as errors:
            self.processes.append(
                subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors, env=environment({}))
            )

    def _serves(self, control: str) -> bool:
        for process in self.processes:
            if process.poll() is not None:
                raise RunError(f"{self.way.name} ended: {(self.folder / 'stderr.txt').read_text()[-500:]}")
        try:
            found = workers_of(control)
        except (OSError, ValueError):
            return False
        wanted = self.way.workers if not self.way.sockets_in_nginx else 1
        return len(found) == wanted and all("error" not in one and one["table"]["revision"] for one in found)

    def workers(self) -> list[dict[str, Any]]:
        return [one for control in self.controls for one in workers_of(control)]

    def requests(self) -> dict[int, int]:
        """By pid."""
        return {one["process"]["pid"]: one["connections"]["requests"] for one in self.workers() if "error" not in one}

    def load(self, request: traffic.Request, count: int, connections: int) -> "subprocess.Popen[str]":
        headers = [part for name, value in request.headers for part in ("-H", f"{name.lower()}: {value}")]
        return subprocess.Popen(
            [
                *("h2load", "--h1", "-t1", f"-c{connections}", f"-n{count}", *headers),
                *("-B", f"unix:{self.folder}/s", f"http://localhost{request.target}"),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def replace_all(self) -> None:
        """HUP, and wait until nobody of before is left. Independent processes have no HUP of this kind."""
        before = {one["pid"] for one in self.workers()}

        def replaced() -> bool:
            now = {one["pid"] for one in self.workers() if "error" not in one and one["state"] == "serving"}
            return not before & now and len(now) == self.way.workers

        self.processes[0].send_signal(signal.SIGHUP)
        wait_for(replaced)

    def stop(self) -> None:
        for process in reversed(self.processes):
            process.terminate()
        for process in self.processes:
            try:
                process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()


def workers_of(control: str) -> list[dict[str, Any]]:
    connection = Connection(control)
    try:
        connection.request("GET", "/status")
        status = json.loads(connection.getresponse().read())
    finally:
        connection.close()
    return status.get("workers", [status])  # type: ignore[no-any-return]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline_monotonic = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline_monotonic:
            raise RunError("it did not start in time")
        time.sleep(0.02)


@contextmanager
def running(way: Way, folder: Path, source: str, keepalive: int) -> Iterator[Running]:
    folder.mkdir()
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        started = Running(way, folder, source, keepalive)
        stack.callback(started.stop)
        started.start()
        yield started


def spread(before: dict[int, int], after: dict[int, int]) -> float:
    counts = [after[pid] - before.get(pid, 0) for pid in after]
    return max(counts) * len(counts) / sum(counts)


def measure(way: Way, number: int, one: Running, requests: int, connections: int) -> Sample:
    request = traffic.same()
    finish(one.load(request, WARM_UP, connections), WARM_UP)
    pids = list(one.requests())
    before, used = one.requests(), cpu.seconds(pids)
    per_second = finish(one.load(request, requests, connections), requests)
    cpu_us = (cpu.seconds(pids) - used) * 1e6 / requests
    fresh = spread(before, one.requests())
    after = None
    if way.workers > 1 and not way.sockets_in_nginx:
        load = one.load(request, 100 * requests, connections)
        one.replace_all()
        time.sleep(SETTLE_S)
        replaced = one.requests()
        wait_for(lambda: sum(one.requests().values()) - sum(replaced.values()) >= requests)
        after = spread(replaced, one.requests())
        load.terminate()
        load.communicate()
    return Sample(way.name, number, cpu_us, per_second, fresh, after)


def finish(load: "subprocess.Popen[str]", count: int) -> float:
    """Requests per second. Raises RunError unless each got its 200."""
    output, _ = load.communicate(timeout=600)
    return parse_h2load(output, count).per_second


def summarise(samples: list[Sample], chosen: list[Way]) -> list[dict[str, Any]]:
    rows = []
    base = {way.tcp: {s.round: s.cpu_us for s in samples if s.way == way.name} for way in chosen if way.workers == 1}
    for way in chosen:
        own = [sample for sample in samples if sample.way == way.name]
        afters = [s.spread_after for s in own if s.spread_after is not None]
        floor = base.get(way.tcp, {})
        rows.append(
            {
                "way": way.name,
                "label": way.label,
                "cpu_us": round(median(s.cpu_us for s in own), 2),
                "to_one": round(median(s.cpu_us / floor[s.round] for s in own), 3) if floor else None,
                "per_second": round(median(s.per_second for s in own)),
                "spread": [round(f(s.spread for s in own), 3) for f in (median, max)],
                "spread_after": [round(f(afters), 3) for f in (median, max)] if afters else None,
            }
        )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    lines = [f"{'':52} {'CPU µs':>7} {'to one':>7} {'req/s':>7} {'spread':>13} {'replaced':>13}"]
    for row in rows:
        spreads = [
            "".join(f"{value:>6.2f}" for value in row[name]) if row[name] else "-"
            for name in ("spread", "spread_after")
        ]
        to_one = "-" if row["to_one"] is None else f"{row['to_one']:.2f}"
        lines.append(
            f"{row['label']:52} {row['cpu_us']:>7.1f} {to_one:>7} {row['per_second']:>7} "
            f"{spreads[0]:>13} {spreads[1]:>13}"
        )
    lines.append("spread: most requests of a worker / mean; median and largest of the rounds. replaced: after HUP.")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="perf/run workers", description="What a second worker costs and brings.")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="default: 2")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="default: 5")
    parser.add_argument("--requests", type=int, default=60_000, metavar="N", help="per way and round (default: 60000)")
    parser.add_argument("--connections", type=int, default=64, metavar="N", help="kept alive (default: 64)")
    parser.add_argument(
        "--keepalive", type=int, default=64, metavar="N", help="that nginx keeps to the workers (default: 64)"
    )
    parser.add_argument("--only", metavar="WAY,WAY", help=f"of {','.join(way.name for way in ways(2))}")
    parser.add_argument("--output", type=Path, default=ROOT / "perf/results", metavar="FOLDER")
    options = parser.parse_args(argv)
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, lambda *_: sys.exit(1))  # so that everything is cleaned up
    names = options.only.split(",") if options.only else [way.name for way in ways(options.workers)]
    chosen = [way for way in ways(options.workers) if way.name in names]
    folder = Path(tempfile.mkdtemp(prefix="adcore-workers-"))
    samples: list[Sample] = []
    about = machine.describe()
    try:
        source = f"sqlite:///{folder}/ads.db"
        (folder / "inventory.json").write_text(json.dumps(inventory.document()))
        subprocess.run(
            [sys.executable, "-m", "adtools", "apply", "--source", source, str(folder / "inventory.json")],
            env=environment({}),
            check=True,
            stdout=subprocess.DEVNULL,
        )
        for number in range(options.rounds):
            # There and back, so that nobody always follows the same one.
            for way in chosen if number % 2 == 0 else chosen[::-1]:
                with running(way, folder / f"{number}-{way.name}", source, options.keepalive) as one:
                    samples.append(measure(way, number, one, options.requests, options.connections))
                print(f"round {number + 1}: {samples[-1]}", file=sys.stderr)
    except (RunError, Missing, subprocess.CalledProcessError) as error:
        print(f"perf/run workers: {error}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    rows = summarise(samples, chosen)
    print(table(rows))
    name = f"workers-{datetime.now(UTC):%Y-%m-%d}-{machine.commit()}.json"
    result = {
        "machine": about,
        "versions": machine.versions(""),
        "options": {
            "workers": options.workers,
            "requests": options.requests,
            "connections": options.connections,
            "keepalive": options.keepalive,
        },
        "ways": rows,
        "samples": [sample._asdict() for sample in samples],
    }
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / name).write_text(json.dumps(result, indent=1) + "\n")
    print(f"written to {options.output / name}")
    return 0


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(main())
