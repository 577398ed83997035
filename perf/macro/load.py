"""The load: h2load for one request again and again, load/main.go for mixed requests and fixed rates.

Both are pinned to a core of their own. An answer that is not a 200 ends the run: it would be cheaper than a decision.
"""

import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from perf.macro import cpu
from perf.macro.errors import Missing, RunError
from perf.macro.servers import Server
from perf.macro.traffic import Request

# adcore and the peers write their logs within this, or a share of their second that costs next to nothing.
SETTLE_S = 0.2
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
    requests: int
    """Answered."""


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

    def open(self, server: Server, rate: float, seconds: float) -> tuple[Open, cpu.Usage]:
        """What came of it, and what it cost: without the connections, which are open before and after."""
        command = self._command(server, "-hold", "-rate", str(rate), "-seconds", str(seconds))
        with holding(server, self.core, command) as go_on:
            before = server.usage()
            outcome = checked(server, go_on())
            # What is still on its way to the log is part of the price.
            time.sleep(SETTLE_S)
            after = server.usage()
        return parse_open(outcome, rate), cpu.difference(before, after)

    def _run(self, server: Server, *options: str) -> dict[str, Any]:
        return checked(server, run(server, self.core, self._command(server, *options)))

    def _command(self, server: Server, *options: str) -> list[str]:
        return [
            *(str(self.binary), "-connect", server.address, "-requests", str(self.requests)),
            *("-connections", str(self.connections), *options),
        ]


def checked(server: Server, text: str) -> dict[str, Any]:
    """What the load in Go prints. Raises RunError unless every answer was a 200."""
    outcome: dict[str, Any] = json.loads(text)
    wrong = {status: count for status, count in outcome["statuses"].items() if status != "200"}
    if wrong:
        raise RunError(f"{server.name} answered {wrong}")
    return outcome


@contextmanager
def holding(server: Server, core: int, command: list[str]) -> Iterator[Callable[[], str]]:
    """The load, connected; a call runs it and returns its result. Then it stays connected. Raises RunError."""
    with subprocess.Popen(
        ["taskset", "-c", str(core), *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        stdin, stdout, stderr = process.stdin, process.stdout, process.stderr

        def read() -> str:
            line = stdout.readline()
            if not line:
                raise RunError(f"{server.name}: {stderr.read().strip()[-300:]} {server.failure()}".strip())
            return line

        def go_on() -> str:
            stdin.write("\n")
            stdin.flush()
            return read()

        try:
            read()  # it is connected
            yield go_on
        finally:
            process.kill()


def parse_open(outcome: dict[str, Any], rate: float) -> Open:
    asked = outcome["requests"] + outcome["unanswered"]
    # What is on its way when the clock stops is no backlog: the connections, or a hundredth.
    kept_up = outcome["unanswered"] == 0 and outcome["backlog"] <= max(outcome["connections"], asked / 100)
    late_p99 = outcome["late_p99_us"]
    return Open(rate, outcome["latency_us"], kept_up, outcome["backlog"], late_p99, outcome["requests"])


def run(server: Server, core: int, command: list[str]) -> str:
    """What the load prints. Raises RunError."""
    done = subprocess.run(["taskset", "-c", str(core), *command], capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[-300:]
        raise RunError(f"{server.name}: {said} {server.failure()}".strip())
    return done.stdout
