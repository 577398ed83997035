"""The Python process itself: memory, garbage collections and their pauses, and how late the event loop is.

Everything here is measured by this process or read from the kernel; what nobody measures is None.
"""

import asyncio
import gc
import os
import platform
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from adcore.http1.histogram import Histogram
from adcore.ticks import until_tick

# How often the loop is asked to be on time. A look takes 1.2 µs, and on a core that sleeps 50 µs to wake it: so a loop
# that has answered nothing since the last look is asked less often.
LAG_INTERVAL_S = 0.05
LAG_IDLE_INTERVAL_S = 2.0
# A loop that hung for longer than this many looks was measured enough.
LAG_MISSED_MAX = 1200
# As many as Go's runtime keeps.
PAUSES_MAX = 256


class GcWatch:
    """Counts garbage collections, and times them: everything else in the process waits meanwhile."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.count = 0
        self.pauses = Histogram()
        self.pause_last_s: float | None = None
        self.pause_max_s = 0.0
        self.pause_total_s = 0.0
        self.last_wall: float | None = None
        """When the last one ended, in epoch seconds."""
        self.recent: deque[float] = deque(maxlen=PAUSES_MAX)
        """The last pauses in seconds, the newest last."""
        self._clock = clock
        self._started = 0.0

    def start(self) -> None:
        gc.callbacks.append(self.on_gc)

    def stop(self) -> None:
        gc.callbacks.remove(self.on_gc)

    def on_gc(self, phase: str, info: dict[str, int]) -> None:
        """For gc.callbacks."""
        if phase == "start":
            self._started = self._clock()
            return
        pause_s = self._clock() - self._started
        self.count += 1
        self.pauses.add(pause_s)
        self.pause_last_s = pause_s
        self.pause_max_s = max(self.pause_max_s, pause_s)
        self.pause_total_s += pause_s
        self.last_wall = time.time()
        self.recent.append(pause_s)

    def to_status(self) -> dict[str, object]:
        return {
            "count": self.count,
            "collections": [generation["collections"] for generation in gc.get_stats()],
            "last": self.last_wall,
            "pause_last_s": self.pause_last_s,
            "pause_max_s": self.pause_max_s,
            "pause_total_s": self.pause_total_s,
        }


class Timer(Protocol):
    def cancel(self) -> None: ...


class Loop(Protocol):
    """The part of an event loop that is measured."""

    def time(self) -> float: ...

    def call_later(self, delay: float, callback: Callable[[], object]) -> Timer: ...


class LoopLag:
    """How late the event loop runs what is due: what a request may wait before anybody looks at it.

    A timer says when it is due and looks at the clock when it runs. While the loop hangs no timer runs, so that one
    long hang would count as a single look; the looks that fell into it are counted too, each with its own lateness.
    libuv counts in milliseconds: up to one of them is not the loop's fault.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.histogram = Histogram()
        self.max_s = 0.0
        self._clock = clock
        self._work: Callable[[], object] = object
        self._worked: object = None
        self._interval_s = LAG_INTERVAL_S
        self._loop: Loop | None = None
        self._timer: Timer | None = None
        self._due = 0.0

    def start(self, loop: Loop, work: Callable[[], object] = object) -> None:
        """`work` gives something else whenever the loop has had work since it was last asked."""
        self._loop = loop
        self._work = work
        self._wait()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _wait(self) -> None:
        assert self._loop is not None
        before, self._worked = self._worked, self._work()
        self._interval_s = (
            until_tick(LAG_IDLE_INTERVAL_S, self._loop.time()) if self._worked == before else LAG_INTERVAL_S
        )
        self._due = self._clock() + self._interval_s
        self._timer = self._loop.call_later(self._interval_s, self._on_timer)

    def _on_timer(self) -> None:
        late_s = max(0.0, self._clock() - self._due)
        self.max_s = max(self.max_s, late_s)
        for missed in range(min(int(late_s / self._interval_s), LAG_MISSED_MAX) + 1):
            self.histogram.add(late_s - missed * self._interval_s)
        self._wait()

    def to_status(self) -> dict[str, object]:
        return {"lag_us": self.histogram.percentiles_us(), "lag_max_us": int(self.max_s * 1e6)}


class Runtime:
    """One per process; `start` it on its event loop."""

    def __init__(self) -> None:
        self.started_monotonic = time.monotonic()
        self.gc = GcWatch()
        self.lag = LoopLag()

    def start(self, work: Callable[[], object]) -> None:
        """`work` gives something else whenever the loop has had work since it was last asked."""
        self.gc.start()
        self.lag.start(asyncio.get_running_loop(), work)

    def stop(self) -> None:
        self.gc.stop()
        self.lag.stop()

    def process(self) -> dict[str, object]:
        """This process as it and the kernel see it."""
        memory = read_memory()
        return {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "time": time.time(),
            "uptime_s": round(time.monotonic() - self.started_monotonic, 3),
            "python": platform.python_version(),
            "cpu_count": len(os.sched_getaffinity(0)),
            "cpu_s": time.process_time(),
            "workers": 1,
            "tasks": len(asyncio.all_tasks()),
            "threads": threading.active_count(),
            "fds": count_descriptors(),
            "rss_bytes": memory["VmRSS"],
            "memory": {
                "rss_max_bytes": memory["VmHWM"],
                "private_bytes": memory["RssAnon"],
                "virtual_bytes": memory["VmSize"],
                "data_bytes": memory["VmData"],
                "stack_bytes": memory["VmStk"],
                "allocated_blocks": sys.getallocatedblocks(),
                # CPython keeps no count of these.
                "allocated_bytes": None,
                "total_allocated_bytes": None,
                "mallocs": None,
                "frees": None,
            },
        }


def count_descriptors(path: str = "/proc/self/fd") -> int:
    """How many are open. Linux 6.2 and later say so (proc_pid_fd(5)); a list of 10,000 takes some milliseconds."""
    return os.stat(path).st_size or len(os.listdir(path))


def read_memory(path: Path = Path("/proc/self/status")) -> dict[str, int | None]:
    """The kernel's figures about this process's memory in bytes, by its own names; None for one that it lacks."""
    found: dict[str, int | None] = dict.fromkeys(("VmRSS", "VmHWM", "VmSize", "VmData", "VmStk", "RssAnon"))
    for line in path.read_text().splitlines():
        name, _, rest = line.partition(":")
        if name in found:
            found[name] = int(rest.split()[0]) * 1024
    return found
