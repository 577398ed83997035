"""/profile: where the CPU time of this process goes, sampled while it serves.

The kernel's profiling timer (ITIMER_PROF) counts the CPU time of the process and sends SIGPROF after each few
milliseconds of it. Python runs the signal's handler in the main thread, between two instructions of whatever the loop
is doing, so the stack is the true one. (A sampling thread is not as honest: it gets the interpreter mostly when the
loop lets go of it, which is when it waits for the network. An outside profiler like py-spy needs the right to trace
the process, which a hardened service does not give.) Each thread's stack is weighed by the CPU time that this thread
has used since the sample before. An idle process is not woken and makes no samples; time in C, such as a system call,
counts for the Python function that called it.

Knows nothing of HTTP; the forms in which a profile is shown are in profile_formats.py.
"""

import asyncio
import signal
import sys
import threading
import time
from types import CodeType, FrameType
from typing import NamedTuple

from adcore.errors import AdcoreError

SECONDS_MAX = 60.0
# Of CPU time. Kernels tick every 4 ms or so; a sample of four threads takes 13 µs, 0.3 % of this.
INTERVAL_S = 0.005
# Deeper than any stack here; what is further out is left away.
DEPTH_MAX = 128


class ProfileError(AdcoreError):
    """There is no profile; the text says why."""


class Frame(NamedTuple):
    """A function."""

    module: str
    function: str
    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.module}.{self.function}"


Stack = tuple[Frame, ...]
"""The outermost call first."""


class Profile(NamedTuple):
    seconds: float
    """How long it was taken."""
    threads: dict[str, list[tuple[Stack, int]]]
    """By thread: the samples in order, each with its CPU time in nanoseconds."""

    def stacks(self) -> dict[Stack, int]:
        """CPU time in nanoseconds by stack; a thread's name is the outermost call."""
        totals: dict[Stack, int] = {}
        for thread, samples in self.threads.items():
            root = Frame("", thread, "", 0)
            for stack, cpu_ns in samples:
                totals[root, *stack] = totals.get((root, *stack), 0) + cpu_ns
        return totals


class Profiler:
    """Takes one profile at a time, on the event loop of the main thread."""

    def __init__(self) -> None:
        self.ends_monotonic: float | None = None
        """When the profile under way will be done."""
        self._frames: dict[CodeType, Frame] = {}
        self._samples: dict[int, list[tuple[Stack, int]]] = {}
        self._cpu_ns: dict[int, int] = {}

    async def take(self, seconds: float) -> Profile:
        """Sample for so long. Raises ProfileError when another one is being taken."""
        if self.ends_monotonic is not None:
            left_s = max(0.0, self.ends_monotonic - time.monotonic())
            raise ProfileError(f"a profile is being taken already; try again in {left_s:.0f} s")
        started_monotonic = time.monotonic()
        self.ends_monotonic = started_monotonic + seconds
        self._frames, self._samples, self._cpu_ns = {}, {}, {}
        self._measure()
        signal.signal(signal.SIGPROF, self._on_tick)
        signal.siginterrupt(signal.SIGPROF, False)
        signal.setitimer(signal.ITIMER_PROF, INTERVAL_S, INTERVAL_S)
        try:
            await asyncio.sleep(seconds)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            # Not the default, which would end the process if one more is on its way.
            signal.signal(signal.SIGPROF, signal.SIG_IGN)
            self.ends_monotonic = None
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        return Profile(
            time.monotonic() - started_monotonic,
            {names.get(ident, f"thread {ident}"): samples for ident, samples in self._samples.items()},
        )

    def _on_tick(self, number: int, interrupted: FrameType | None) -> None:
        if interrupted is None or interrupted.f_code in OWN_CODE:  # a tick during a tick
            return
        running = sys._current_frames()
        running[threading.get_ident()] = interrupted  # and not this function
        for ident, cpu_ns in self._measure().items():
            if cpu_ns > 0 and ident in running:
                self._samples.setdefault(ident, []).append((self._stack(running[ident]), cpu_ns))

    def _measure(self) -> dict[int, int]:
        """CPU time in nanoseconds that each thread has used since the last look."""
        used = {}
        # A thread that is listed here cannot end before the interpreter is given to it, so its clock is there.
        for ident in sys._current_frames():
            now_ns = time.clock_gettime_ns(time.pthread_getcpuclockid(ident))
            used[ident] = now_ns - self._cpu_ns.get(ident, now_ns)
            self._cpu_ns[ident] = now_ns
        return used

    def _stack(self, frame: FrameType | None) -> Stack:
        stack: list[Frame] = []
        while frame is not None and len(stack) < DEPTH_MAX:
            code = frame.f_code
            known = self._frames.get(code)
            if known is None:
                module = str(frame.f_globals.get("__name__", "?"))
                known = Frame(module, code.co_qualname, code.co_filename, code.co_firstlineno)
                self._frames[code] = known
            stack.append(known)
            frame = frame.f_back
        return tuple(reversed(stack))


OWN_CODE = {function.__code__ for function in (Profiler._on_tick, Profiler._measure, Profiler._stack)}
