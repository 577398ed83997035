"""A worker's seat: what its parent (workers.py) gives it, and all that the two say to each other.

They share four descriptors: the listening socket; a socket pair, on which the worker says once that it is ready, and
whose end means that the worker shall drain (the parent has closed it, or is dead); a page of memory in which every
worker keeps the number of its connections, so that each can see whether it has more than its share (acceptor.py); and
the fork server's socket (forkserver.py).

A worker is known by its number, 1 to N, which its successors inherit, and by its slot, which it shares with nobody who
lives: while a successor starts there are two of one number.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import socket
from collections.abc import MutableMapping
from dataclasses import dataclass
from pathlib import Path

from adcore.errors import StartError
from adcore.forkserver import ForkClient, Task

# Set by parents of earlier versions, which start each worker as a new interpreter. Not ADCORE_*: no setting.
VARIABLE = "_ADCORE_SEAT"
# What the fork server is asked to run for it.
WORKER = "worker"
READY = b"r"
# In the order in which they come with the request for a worker.
DESCRIPTORS = ("listener_fd", "parent_fd", "loads_fd", "forks_fd")
# Signals that wait, from the worker's first moment, until it has handlers for them.
HELD_BACK = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
# What a slot holds whose worker does not accept.
AWAY = -1
_CELL_BYTES = 4


@dataclass(frozen=True, slots=True)
class Seat:
    number: int
    slot: int
    slots: int
    """How many there are."""
    alone: bool
    """Whether nobody else serves: then it must answer, if only with 503, before it has a table."""
    listener_fd: int
    parent_fd: int
    loads_fd: int
    forks_fd: int | None = None

    @classmethod
    def take(cls, environ: MutableMapping[str, str] = os.environ) -> Seat | None:
        """That of a worker of a parent that has no fork server. Takes it out of `environ`. Raises StartError."""
        text = environ.pop(VARIABLE, None)
        if text is None:
            return None
        try:
            seat = cls(**json.loads(text))
            for fd in (seat.listener_fd, seat.parent_fd, seat.loads_fd):
                os.set_inheritable(fd, False)
        except (ValueError, TypeError, OverflowError, OSError) as error:
            raise StartError(f"{VARIABLE} is for workers that adcore starts itself: unset it") from error
        return seat

    @classmethod
    def of(cls, task: Task) -> Seat:
        """That of a worker which is forked for this."""
        return cls(**task.request["seat"], **dict(zip(DESCRIPTORS, task.fds, strict=True)))  # type: ignore[arg-type]

    def open_parent(self) -> socket.socket:
        sock = socket.socket(fileno=self.parent_fd)
        sock.setblocking(False)
        return sock

    def open_forks(self) -> ForkClient | None:
        return None if self.forks_fd is None else ForkClient(socket.socket(fileno=self.forks_fd))

    def open_loads(self) -> Loads:
        return Loads(self.loads_fd, self.slots)


def control_path(state_dir: Path, pid: int) -> Path:
    """Where the worker listens for its parent's questions. Orphans that drain may share the directory with others."""
    return state_dir / f"worker-{pid}.sock"


class Loads:
    """The number of open connections of each slot, in memory that all workers share.

    A cell is written by its worker, and by the parent once that is dead; it is read and written in one instruction, and
    nothing hangs on a number that is a moment old.
    """

    def __init__(self, fd: int, slots: int) -> None:
        self.fd = fd
        self._cells = memoryview(mmap.mmap(fd, slots * _CELL_BYTES)).cast("i")

    @classmethod
    def create(cls, slots: int) -> Loads:
        fd = os.memfd_create("adcore-loads")
        os.ftruncate(fd, slots * _CELL_BYTES)
        loads = cls(fd, slots)
        for slot in range(slots):
            loads.leave(slot)
        return loads

    def __getitem__(self, slot: int) -> int:
        return self._cells[slot]

    def __setitem__(self, slot: int, connections: int) -> None:
        self._cells[slot] = connections

    def leave(self, slot: int) -> None:
        self._cells[slot] = AWAY

    def least_of_others(self, slot: int) -> int | None:
        """The fewest connections that another accepting worker has; None when there is none."""
        others = [count for other, count in enumerate(self._cells) if other != slot and count != AWAY]
        return min(others, default=None)

    def mean(self) -> float:
        """Connections per accepting worker."""
        accepting = [count for count in self._cells if count != AWAY]
        return sum(accepting) / max(1, len(accepting))
