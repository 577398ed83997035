"""Counts what requests cost that come one by one, as they do on a usual site: no clock takes part.

Each request leaves a pause after the answer to the one before, so that every one of them finds the server asleep. What
is counted follows from the number of requests and from the time that they took, whatever else the machine does:

=================  ===================================================================================================
``system_calls``   of all threads and processes, by strace, in a window of its own: being watched makes them wait
``voluntary``      context switches in which a thread went to sleep, from /proc/PID/task/*/status
``writes``         wakes of the log's writer, from /status
=================  ===================================================================================================
"""

import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from perf.macro import cpu, inventory, traffic
from tests import services
from tests.process import PATIENCE_S, Adcore, adctl, connect, serving, wait_for

# The pause of 2,000 requests a second, less what an answer takes.
PAUSE_S = 0.0004
REQUESTS = 5000
# A tenth of the rate, for what happens with time and not with requests.
SLOW_PAUSE_S = 0.01
SLOW_REQUESTS = 500
WARM_UP = 200
# Short, so that a window has some polls of the store and some exchanges of counts.
REFRESH_S = 1.0
ANSWER_BYTES_MAX = 1 << 16
MEASURES = ("system_calls", "voluntary", "writes")


class CountError(Exception):
    """There is nothing to count with, or no whole answer."""


class Counts(NamedTuple):
    """What one window of requests took."""

    requests: int
    seconds: float
    counted: dict[str, float]
    """By measure."""
    names: dict[str, int]
    """System calls by name, where these were counted."""


@contextmanager
def served(folder: Path, launcher: Sequence[str] = ()) -> Iterator[Adcore]:
    """A server with all that users have, warm and at rest."""
    document = folder / "inventory.json"
    document.write_text(inventory.as_json())
    source = f"sqlite://{folder}/ads.db"
    applied = adctl("apply", "--source", source, str(document))
    if applied.returncode:
        raise CountError(applied.stderr.strip())
    with services.memcached(folder) as memcached:
        options = ("--source", source, "--memcached", f"unix:{memcached.path}", "--refresh", str(REFRESH_S))
        state = folder / "state"
        address = f"unix:{state}/ad.sock"
        with serving(state, *options, "--unix", f"{state}/ad.sock", address=address, launcher=launcher) as server:
            send(server, WARM_UP, 0.0)
            time.sleep(2 * REFRESH_S)  # the process that polls is started with the first poll
            try:
                yield server
            finally:
                server.stop()  # with its processes, so that none of them writes into the folder any more


def send(server: Adcore, count: int, pause_s: float) -> float:
    """Send mixed requests one by one, with a pause after each answer; the seconds that they took."""
    requests = [one.encode() for one in traffic.mixed(min(count, traffic.REQUESTS))]
    with connect(server.address) as connection:
        started = time.monotonic()
        for number in range(count):
            connection.sendall(requests[number % len(requests)])
            answer = connection.recv(ANSWER_BYTES_MAX)
            if not answer.startswith(b"HTTP/1.1 200 ") or not answer.endswith(b"}"):
                raise CountError(f"not a whole answer with an ad: {answer[:100]!r}")
            time.sleep(pause_s)
        return time.monotonic() - started


def count_unwatched(server: Adcore, folder: Path, requests: int, pause_s: float) -> Counts:
    """Switches and writes."""
    pid = server.process.pid
    writes, before = server.status()["log"]["writes"], cpu.usage(pid)
    seconds = send(server, requests, pause_s)
    used = cpu.difference(before, cpu.usage(pid))
    writes = server.status()["log"]["writes"] - writes
    return Counts(requests, seconds, {"voluntary": float(used.voluntary), "writes": float(writes)}, {})


def count_system_calls(server: Adcore, folder: Path, requests: int, pause_s: float) -> Counts:
    """Raises CountError."""
    output = folder / "strace.txt"
    with tracing(server.process.pid, output):
        seconds = send(server, requests, pause_s)
    names = parse_strace(output.read_text())
    return Counts(requests, seconds, {"system_calls": float(sum(names.values()))}, names)


WAYS = (count_unwatched, count_system_calls)
"""Each in a window of its own."""


@contextmanager
def tracing(pid: int, output: Path) -> Iterator[None]:
    """strace counts the system calls of the process and its descendants meanwhile, and leaves its table there."""
    program = shutil.which("strace")
    if program is None:
        raise CountError("strace is not installed (Debian: strace)")
    pids = [word for one in sorted(cpu.family(pid)) for word in ("-p", str(one))]
    with subprocess.Popen(
        [program, "-c", "-f", "-q", "-o", str(output), *pids], stderr=subprocess.PIPE, text=True
    ) as tracer:
        try:
            wait_for(lambda: tracer.poll() is not None or is_traced(pid, tracer.pid), lambda: "strace does not attach")
            if tracer.poll() is not None:
                assert tracer.stderr is not None
                raise CountError(
                    f"strace cannot attach: {tracer.stderr.read().strip()} "
                    "(a plain user may when sysctl kernel.yama.ptrace_scope is 0)"
                )
            yield
        finally:
            tracer.terminate()
            tracer.wait(PATIENCE_S)


def is_traced(pid: int, tracer: int) -> bool:
    """Whether each thread of the process and its descendants is."""
    threads = [task for one in cpu.family(pid) for task in Path(f"/proc/{one}/task").iterdir()]
    return all(f"\nTracerPid:\t{tracer}\n" in (thread / "status").read_text() for thread in threads)


_ROW = re.compile(r"^\s*[\d.]+\s+[\d.]+\s+\d+\s+(\d+)\s+(?:\d+\s+)?(\w+)$", re.MULTILINE)


def parse_strace(text: str) -> dict[str, int]:
    """Calls by name, the most frequent first."""
    found = {name: int(count) for count, name in _ROW.findall(text) if name != "total"}
    if not found:
        raise CountError(f"not the table of strace -c: {text[:200]!r}")
    return dict(sorted(found.items(), key=lambda one: -one[1]))
