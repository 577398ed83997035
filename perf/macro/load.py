"""The load: h2load for one request again and again, load/main.go for mixed requests and fixed rates.

Both are pinned to a core of their own. An answer that is not a 200 ends the run: it would be cheaper than a decision.
"""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

from perf.macro.errors import Missing, RunError
from perf.macro.servers import Server
from perf.macro.traffic import Request

_RATE = re.compile(r"finished in [^,]+, ([0-9.]+) req/s")
_REQUESTS = re.compile(r"requests: (\d+) total, \d+ started, (\d+) done, (\d+) succeeded, (\d+) failed, (\d+) errored")


class Closed(NamedTuple):
    """A closed loop that is over."""

    requests: int
    per_second: float


class Open(NamedTuple):
    """A fixed rate that is over; latencies in µs from when each request was due."""

    rate: float
    latency: dict[str, float]
    kept_up: bool
    backlog: int
    """Due and not answered when the last request was due."""
    late_p99: float
    """How late the load itself sent, on a free connection."""


class H2load:
    """The mix `same`."""

    def __init__(self, core: int, connections: int) -> None:
        self.core = core
        self.connections = connections
        if shutil.which("h2load") is None:
            raise Missing("h2load is not installed (Debian: nghttp2-client)")

    def closed(self, server: Server, request: Request, count: int) -> Closed:
        if server.address.startswith("unix:"):
            target = ["-B", server.address, f"http://localhost{request.target}"]
        else:
            target = [f"http://{server.address}{request.target}"]
        headers = [part for name, value in request.headers for part in ("-H", f"{name.lower()}: {value}")]
        command = ["h2load", "--h1", "-t1", f"-c{self.connections}", f"-n{count}", *headers, *target]
        return parse_h2load(run(server, self.core, command), count)


def parse_h2load(text: str, count: int) -> Closed:
    """Raises RunError unless every request got its 200."""
    rate, requests = _RATE.search(text), _REQUESTS.search(text)
    if rate is None or requests is None:
        raise RunError(f"h2load: {text.strip()[-300:]}")
    if [int(number) for number in requests.groups()] != [count, count, count, 0, 0]:
        raise RunError(f"h2load: {requests[0]}")
    return Closed(count, float(rate[1]))


class MixedLoad:
    """The mix `mixed`, and fixed rates of it."""

    def __init__(self, core: int, connections: int, binary: Path, requests: Path) -> None:
        self.core = core
        self.connections = connections
        self.binary = binary
        self.requests = requests

    def closed(self, server: Server, request: Request, count: int) -> Closed:
        """Of `request` it is no use: it has its own."""
        outcome = self._run(server, "-n", str(count))
        return Closed(count, count / outcome["seconds"])

    def open(self, server: Server, rate: float, seconds: float) -> Open:
        return parse_open(self._run(server, "-rate", str(rate), "-seconds", str(seconds)), rate)

    def _run(self, server: Server, *options: str) -> dict[str, Any]:
        command = [
            *(str(self.binary), "-connect", server.address, "-requests", str(self.requests)),
            *("-connections", str(self.connections), *options),
        ]
        outcome: dict[str, Any] = json.loads(run(server, self.core, command))
        wrong = {status: count for status, count in outcome["statuses"].items() if status != "200"}
        if wrong:
            raise RunError(f"{server.name} answered {wrong}")
        return outcome


def parse_open(outcome: dict[str, Any], rate: float) -> Open:
    asked = outcome["requests"] + outcome["unanswered"]
    # What is on its way when the clock stops is no backlog: the connections, or a hundredth.
    kept_up = outcome["unanswered"] == 0 and outcome["backlog"] <= max(outcome["connections"], asked / 100)
    return Open(rate, outcome["latency_us"], kept_up, outcome["backlog"], outcome["late_p99_us"])


def run(server: Server, core: int, command: list[str]) -> str:
    """What the load prints. Raises RunError."""
    done = subprocess.run(["taskset", "-c", str(core), *command], capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[-300:]
        raise RunError(f"{server.name}: {said} {server.failure()}".strip())
    return done.stdout
