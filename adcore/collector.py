"""When Python's garbage collector runs: when nobody waits for an answer, instead of whenever so much was allocated.

A full collection looks at every container there is, remembered answers too, and holds up all requests meanwhile: for
80 ms with 100,000 creatives. Answering requests and taking over tables leaves nothing to it, for what refers to itself
is taken apart by hand; a configuration that was read again does.
"""

import gc
import time
from collections.abc import Callable

# After this many seconds, in the first second without a request.
IDLE_S = 60.0
# After so many in any case.
BUSY_S = 3600.0


class Collector:
    """Python's own, of which there is one per process; nothing is collected before `settle`."""

    def __init__(self, clock_monotonic: Callable[[], float] = time.monotonic) -> None:
        gc.disable()
        self._clock = clock_monotonic
        self._requests = 0
        self._collected = clock_monotonic()

    def settle(self) -> None:
        """What there is now stays for good: it is never looked at again."""
        gc.collect()
        gc.freeze()
        self._collected = self._clock()

    def turn(self, requests: int) -> None:
        """Once a second: collect if it is time to. `requests` is how many there were since the start."""
        idle, self._requests = requests == self._requests, requests
        if self._clock() - self._collected >= (IDLE_S if idle else BUSY_S):
            gc.collect()
            self._collected = self._clock()
