"""When Python's garbage collector runs: when nobody waits for an answer, instead of whenever so much was allocated.

A full collection looks at every container there is, remembered answers too, and holds up all requests meanwhile: for
80 ms with 100,000 creatives. Answering requests and taking over tables leaves nothing to it, nor do disks and stores
that fail, for what refers to itself is taken apart by hand; a configuration that was read again does.
"""

import gc
import random
import time
from collections.abc import Callable

# After this many seconds, in the first turn without an answer.
IDLE_S = 60.0
# After so many in any case, or up to half as many: workers that were started together shall not stop together.
BUSY_S = 3600.0


class Collector:
    """Python's own, of which there is one per process; from now on it runs only when it is told to.

    `uniform` gives a random number in [0, 1).
    """

    def __init__(
        self,
        clock_monotonic: Callable[[], float] = time.monotonic,
        uniform: Callable[[], float] = random.random,
    ) -> None:
        gc.disable()
        self._clock = clock_monotonic
        self._answers = 0
        self._busy_s = BUSY_S * (1 - uniform() / 2)
        self._collected = clock_monotonic()

    def settle(self) -> None:
        """What there is now stays for good: it is never looked at again."""
        gc.collect()
        gc.freeze()
        self._collected = self._clock()

    def turn(self, answers: int) -> None:
        """Collect if it is time to. `answers` is how many there were since the start."""
        idle, self._answers = answers == self._answers, answers
        if self._clock() - self._collected >= (IDLE_S if idle else self._busy_s):
            gc.collect()
            self._collected = self._clock()
