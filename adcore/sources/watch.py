"""A deadline for calls of a driver that has none: a thread that shuts the connection's socket down when it has passed.

The driver's own timeouts are for each wait, so a server that sends a byte now and then holds a call up without end. A
call that is cut off by this fails as it does when the server goes away.
"""

import contextlib
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Watch:
    """Gives the waits of one connection `seconds` in all, from the last `begin` on.

    Time that passes between two waits does not count: a busy host may take long to work on what was answered.
    """

    def __init__(self, name: str, seconds: float, clock_monotonic: Callable[[], float] = time.monotonic) -> None:
        self.seconds = seconds
        self.fired = False
        """Whether the deadline has passed since `begin`."""
        self._name = name
        self._clock = clock_monotonic
        self._left_s = seconds
        self._changed = threading.Condition()
        self._end: Callable[[], None] | None = None
        self._deadline_monotonic = 0.0
        self._wakes_monotonic = math.inf
        """When the thread looks again by itself. Statements follow each other, so it seldom has to be woken."""
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        self._left_s = self.seconds
        self.fired = False

    @contextmanager
    def waiting(self, end: Callable[[], None]) -> Iterator[None]:
        """Call `end`, in another thread, if what is within takes longer than what is left."""
        began_monotonic = self._clock()
        with self._changed:
            self._end = end
            self._deadline_monotonic = began_monotonic + max(0.0, self._left_s)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()
            if self._deadline_monotonic < self._wakes_monotonic:
                self._changed.notify()
        try:
            yield
        finally:
            with self._changed:
                self._end = None
            self._left_s -= self._clock() - began_monotonic

    def _run(self) -> None:
        with self._changed:
            while True:
                left_s = self._deadline_monotonic - self._clock()
                if left_s > 0:
                    self._wakes_monotonic = self._deadline_monotonic
                    self._changed.wait(left_s)
                elif self._end is None:
                    self._wakes_monotonic = math.inf
                    self._changed.wait()
                else:
                    self.fired = True
                    end, self._end = self._end, None
                    end()


def shut_down(fd: int) -> None:
    """Have every read and write of this socket fail from now on; the descriptor stays its owner's."""
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as connection:
        connection.shutdown(socket.SHUT_RDWR)


class Connecting:
    """The sockets that were opened to `peer` since this was made, while a driver is connecting and shows none.

    `peer` is a unix socket's path, or a port; None where the driver chooses.
    """

    def __init__(self, peer: str | int | None) -> None:
        self._peer = peer
        self._before = _sockets()

    def shut_down(self) -> None:
        for fd, inode in _sockets().items():
            if self._before.get(fd) != inode and self._is_to_peer(fd):
                shut_down(fd)

    def _is_to_peer(self, fd: int) -> bool:
        try:
            with socket.socket(fileno=os.dup(fd)) as connection:
                found = connection.getpeername()
        except OSError:  # not connected, or closed meanwhile
            return False
        return self._peer is None or bool((found[1] if isinstance(found, tuple) else found) == self._peer)


def _sockets() -> dict[int, str]:
    """The sockets of this process by descriptor, each with its inode."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{name}")
            if target.startswith("socket:"):
                found[int(name)] = target
    return found
