"""Accepting on a socket that several workers share, so that each gets its share of the connections.

Whoever is idle is woken first, so one worker could take most of a burst and keep it: connections from nginx live for
thousands of requests. Therefore each takes one connection at a time, and one that has more than the least loaded by
`SLACK` stands back for a moment. What is still waiting then it takes all the same: a worker that hangs delays others'
connections by that moment, and never keeps them out. On a busy machine that is not enough, so a worker that has too
many all the same is told how many to give up (`excess`). perf/README.rst has what this and its alternatives measured.

Knows nothing of HTTP or ads.
"""

import asyncio
import errno
import logging
import socket
from collections.abc import Callable

from adcore.seat import Loads

log = logging.getLogger("adcore.acceptor")

# A difference that nobody feels, and that lets a burst be taken without standing back for each connection.
SLACK = 2
# Long for an idle worker that is woken, which takes some 50 µs; short for a visitor.
STAND_BACK_S = 0.005
# ... and how many are taken after it: 3200 a second by a worker whose neighbour hangs.
STOOD_BACK_BATCH = 16
# Of the mean; fewer than this are not worth the 0.2 ms of CPU that a new connection takes.
EXCESS_MIN = 0.05
# Without descriptors or memory accept fails for ever and the socket stays readable (asyncio waits as long).
EXHAUSTED_S = 1.0
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Acceptor:
    """Gives each accepted connection a protocol of `factory`. `connections` says how many are open now."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        listener: socket.socket,
        factory: Callable[[], asyncio.BaseProtocol],
        connections: Callable[[], int],
        loads: Loads,
        slot: int,
    ) -> None:
        self._loop = loop
        self._listener = listener
        self._factory = factory
        self._connections = connections
        self._loads = loads
        self._slot = slot
        self._arriving: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        listener.setblocking(False)

    def start(self) -> None:
        self._publish()
        self._loop.add_reader(self._listener, self._on_readable)

    async def close(self) -> None:
        """Accept nothing more; what was accepted has its protocol when this returns. The socket stays open."""
        self._loop.remove_reader(self._listener)
        if self._timer is not None:
            self._timer.cancel()
        self._loads.leave(self._slot)
        if self._arriving:
            await asyncio.wait(self._arriving)

    def excess(self) -> int:
        """How many connections this worker should give up, for the others to take."""
        own = self._publish()
        return max(0, int(own - self._loads.mean() * (1 + EXCESS_MIN) - 1))

    def _publish(self) -> int:
        # One that has just arrived counts twice for a moment, which is better than not at all.
        count = self._loads[self._slot] = self._connections() + len(self._arriving)
        return count

    def _on_readable(self) -> None:
        least = self._loads.least_of_others(self._slot)
        if least is None or self._publish() < least + SLACK:
            self._accept()
        else:
            self._pause(STAND_BACK_S)

    def _pause(self, seconds: float) -> None:
        self._loop.remove_reader(self._listener)
        self._timer = self._loop.call_later(seconds, self._resume)

    def _resume(self) -> None:
        self._timer = None
        for _ in range(STOOD_BACK_BATCH):
            if not self._accept():
                break
        if self._timer is None:
            self._loop.add_reader(self._listener, self._on_readable)

    def _accept(self) -> bool:
        """Take one connection; whether there was one."""
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):  # another was quicker, or the peer has gone again
            return False
        except OSError as error:
            if error.errno not in _EXHAUSTED:
                raise
            log.error("cannot accept a connection: %s", error.strerror)
            self._pause(EXHAUSTED_S)
            return False
        connection.setblocking(False)
        task = self._loop.create_task(self._connect(connection))
        self._arriving.add(task)
        task.add_done_callback(self._arriving.discard)
        self._publish()
        return True

    async def _connect(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._factory, connection)
        except OSError as error:  # the peer has gone again
            log.info("a connection was lost on arrival: %s", error)
            connection.close()
