"""A worker's seat: what its parent (workers.py) hands to it through exec, and all that the two say to each other.

They share three descriptors: the listening socket; a socket pair, on which the worker says once that it is ready, and
whose end means that the worker shall drain (the parent has closed it, or is dead); and a page of memory in which every
worker keeps the number of its connections, so that each can see whether it has more than its share (acceptor.py).

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
from dataclasses import asdict, dataclass
from pathlib import Path

from adcore.errors import StartError

# Not ADCORE_*: it is no setting, and nobody but a parent may give it.
VARIABLE = "_ADCORE_SEAT"
READY = b"r"
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

    @classmethod
    def take(cls, environ: MutableMapping[str, str] = os.environ) -> Seat | None:
        """This process's seat, None when it is no worker. Takes it out of `environ`. Raises StartError."""
        text = environ.pop(VARIABLE, None)
        if text is None:
            return None
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError) as error:
            raise StartError(f"{VARIABLE} is for workers that adcore starts itself: unset it") from error

    def to_variable(self) -> str:
        return json.dumps(asdict(self))

    def open_parent(self) -> socket.socket:
        sock = socket.socket(fileno=self.parent_fd)
        sock.set_inheritable(False)
        sock.setblocking(False)
        return sock

    def open_loads(self) -> Loads:
        os.set_inheritable(self.loads_fd, False)
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
