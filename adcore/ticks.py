"""Rounds waits of two seconds or more down to a common tick of the process, so that its idle timers fire together.

Waking a sleeping core costs more than most timers do: 0.2 ms, of whatever the process does then. Each process draws its
phase at random, so those of a host, or of several, do not ask a store in step.
"""

import asyncio
import math
import os
import random

TICK_S = 2.0
# A timer may be early by as much as the loop rounds; then its tick has come.
EARLY_S = 0.005

_phases: dict[int, float] = {}
"""By pid: a fork has another one."""


def until_tick(seconds: float, now: float | None = None) -> float:
    """`seconds`, shortened by less than a tick so that the wait ends on one (or EARLY_S after it).

    A wait that is shorter than a tick stays as it is. `now` is by the event loop's clock; None for the one that runs.
    """
    if seconds < TICK_S:
        return seconds
    # The loop's own clock stands still while callbacks run, and the timers that they set end in one and the same turn.
    if now is None:
        now = asyncio.get_running_loop().time()
    phase = _phases.setdefault(os.getpid(), random.randrange(int(TICK_S * 1000)) / 1000)
    return math.floor((now + seconds + EARLY_S - phase) / TICK_S) * TICK_S + phase - now
