"""Waits of a second and more that end together, so that a process with nothing to do wakes up once a second.

To wake costs more than what most timers do: the core has slept, and its caches hold something else. Each process has a
phase of its own, so that those of a host do not all wake at once.
"""

import asyncio
import math
import os

TICK_S = 1.0
# A timer may be early by as much as the loop rounds; then its tick has come.
EARLY_S = 0.005


def until_tick(seconds: float, now: float | None = None) -> float:
    """A wait of `seconds`, or less: until one of the process's ticks. What is shorter than a tick stays as it is.

    `now` is by the event loop's clock; None for the one that runs.
    """
    if seconds < TICK_S:
        return seconds
    # The loop's own clock stands still while callbacks run, and the timers that they set end in one and the same turn.
    if now is None:
        now = asyncio.get_running_loop().time()
    phase = os.getpid() * 381 % 1000 / 1000 * TICK_S
    return math.floor((now + seconds + EARLY_S - phase) / TICK_S) * TICK_S + phase - now
