"""A process beside the server that answers its questions, so that what it does never holds up a request.

A thread would: it shares the interpreter's lock with the loop. The process is started when there is something to ask.
It holds no socket of the server's, and leaves with it: its standard input ends when the server does, however that came
to be.

Frames go both ways: four bytes of length, big-endian, then msgpack.
"""

import logging
import os
import queue
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, TypeVar

from adcore.errors import AdcoreError
from adcore.forkserver import ForkClient, Forked, ForkError, name_process
from adcore.memory import limit_memory

log = logging.getLogger("adcore.sources")

P = TypeVar("P")

# A driver's own timeouts end a call long before; this is for a process that was stopped or makes no progress.
ANSWER_S = 300.0
# The status of a process that came to the end of its memory.
OUT_OF_MEMORY = 12
READ_BYTES_MAX = 1 << 20


class ChildError(AdcoreError):
    """The process ended before it had answered."""


class Child:
    """The process, seen from the server. Calls block and belong in one thread; the next one after an error starts
    another process."""

    def __init__(
        self,
        module: str,
        name: str,
        first: bytes,
        pass_fds: tuple[int, ...] = (),
        memory_bytes: int = 0,
        forks: ForkClient | None = None,
    ) -> None:
        """The process runs the main() of `module`, and is told `first`; people know it by `name`.

        Its address space has `memory_bytes`, without a bound for 0: what it reads is as long as others make it. The
        fork server starts it, if there is one.
        """
        self._module = module
        self._name = name
        self._first = first
        self._pass_fds = pass_fds
        self._memory_bytes = memory_bytes
        self._forks = forks
        self._process: subprocess.Popen[bytes] | Forked | None = None
        self._to_fd = self._from_fd = -1
        """The process's standard input and output."""
        self._deadline_monotonic = 0.0
        """When the question under way must be answered."""
        self._closed = False

    def close(self) -> None:
        """End the process; may be called from any thread, and waits for nothing."""
        self._closed = True
        process = self._process
        if process is not None:
            process.kill()

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    @contextmanager
    def _asking(self, frames: Iterable[bytes]) -> Iterator[None]:
        """Send frames as they come; then `_read` the answer. Raises ChildError."""
        if self._process is None:
            self._start()
        self._deadline_monotonic = time.monotonic() + ANSWER_S
        try:
            for frame in frames:
                self._send(frame)
            yield
        except OSError as error:  # TimeoutError is one
            raise self._ended() from error

    def _send(self, frame: bytes) -> None:
        rest = memoryview(len(frame).to_bytes(4, "big") + frame)
        while rest:
            self._wait_for(self._to_fd, select.POLLOUT)
            rest = rest[os.write(self._to_fd, rest) :]

    def _read(self) -> bytes:
        return self._read_bytes(int.from_bytes(self._read_bytes(4), "big"))

    def _read_bytes(self, size: int) -> bytes:
        pieces = []
        while size:
            self._wait_for(self._from_fd, select.POLLIN)
            piece = os.read(self._from_fd, min(size, READ_BYTES_MAX))
            if not piece:
                raise self._ended()
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)

    def _wait_for(self, fd: int, event: int) -> None:
        """Wait until the pipe is ready. Raises TimeoutError after the deadline: no thread has to watch over that."""
        poll = select.poll()
        poll.register(fd, event)
        if not poll.poll(max(0.0, self._deadline_monotonic - time.monotonic()) * 1000):
            raise TimeoutError

    def _start(self) -> None:
        if self._closed:
            raise ChildError(f"the {self._name} is closed")
        try:
            process = self._process = self._fork() or self._launch(self._start_interpreter)
        except OSError as error:
            raise ChildError(
                f"the {self._name} process cannot be started: {error.strerror}; it is tried again when it is asked"
            ) from error
        if self._closed:
            process.kill()
        # A write takes what there is room for, so that one to a process that does not read waits no longer than it may.
        os.set_blocking(self._to_fd, False)
        self._deadline_monotonic = time.monotonic() + ANSWER_S
        try:
            self._send(self._first)
        except OSError as error:
            raise self._ended() from error

    def _fork(self) -> Forked | None:
        """The process, from the fork server; None without one. Raises OSError."""
        if self._forks is None:
            return None
        try:
            return self._launch(self._ask_fork_server)
        except ForkError as error:
            log.warning("%s; the %s process is a new interpreter from now on", error, self._name)
            self._forks = None
            return None

    def _launch(self, start: Callable[[int, int], P]) -> P:
        """Start it with pipes of its own as its standard input and output. Raises OSError, ForkError."""
        its_input, self._to_fd = os.pipe()
        self._from_fd, its_output = os.pipe()
        try:
            return start(its_input, its_output)
        except BaseException:
            self._close_pipes()
            raise
        finally:
            os.close(its_input)
            os.close(its_output)

    def _ask_fork_server(self, its_input: int, its_output: int) -> Forked:
        assert self._forks is not None
        request = {"run": self._module, "memory_bytes": self._memory_bytes}
        return self._forks.start(request, [its_input, its_output, *self._pass_fds])

    def _start_interpreter(self, its_input: int, its_output: int) -> "subprocess.Popen[bytes]":
        """Every other descriptor is closed in it, so it keeps no listening socket open."""
        command = [sys.executable, "-m", self._module]
        process = subprocess.Popen(command, stdin=its_input, stdout=its_output, pass_fds=self._pass_fds)
        if self._memory_bytes:
            limit_memory(process.pid, self._memory_bytes)
        return process

    def _ended(self) -> ChildError:
        status = self._end()
        if status == OUT_OF_MEMORY:
            return ChildError(
                f"the {self._name} process needed more than the {self._memory_bytes >> 20} MiB that --helper-bytes "
                "gives it; another one is started when it is asked again"
            )
        how = "" if status is None else f" by signal {-status}" if status < 0 else f" with status {status}"
        return ChildError(f"the {self._name} process ended{how}; another one is started when it is asked again")

    def _end(self) -> int | None:
        """How it ended; None when there is none, or only the fork server knew."""
        process, self._process = self._process, None
        if process is None:
            return None
        process.kill()
        self._close_pipes()
        return process.wait()

    def _close_pipes(self) -> None:
        os.close(self._to_fd)
        os.close(self._from_fd)


@contextmanager
def within_its_memory() -> Iterator[None]:
    """All that the process does: without memory for it, it ends at once, and the server says why."""
    try:
        yield
    except MemoryError:
        os._exit(OUT_OF_MEMORY)


class Asker:
    """The server, seen from the process. To be made once, before anything is printed."""

    def __init__(self, name: str) -> None:
        """`name` is what `ps` and `top` show."""
        name_process(f"adcore {name}")
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
            # Meant for the server, of whose group this is; when that leaves, so do we.
            signal.signal(number, signal.SIG_IGN)
        self._outgoing = os.fdopen(os.dup(1), "wb")
        os.dup2(2, 1)  # nothing that a driver prints comes between frames
        self._asked: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        threading.Thread(target=self._receive, args=(sys.stdin.buffer,), daemon=True).start()

    def give_way(self, niceness: int) -> None:
        """Let the server go first from now on."""
        with suppress(OSError):  # a sandbox may forbid it; the work is done in any case
            os.nice(niceness)
        with suppress(OSError):
            # A process of this policy takes the core from no other one when it wakes up.
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))

    def next(self) -> bytes:
        """The frame that is sent next, `first` first; when the server is gone the process ends here."""
        return self._asked.get()

    def answer(self, *frames: bytes) -> None:
        _write(self._outgoing, frames)

    def _receive(self, incoming: IO[bytes]) -> None:
        """Pass on what is asked; when the server is gone, stop whatever is under way."""
        while (frame := _read(incoming)) is not None:
            self._asked.put(frame)
        os._exit(0)


def _write(pipe: IO[bytes], frames: Iterable[bytes]) -> None:
    for frame in frames:
        pipe.write(len(frame).to_bytes(4, "big") + frame)
    pipe.flush()


def _read(pipe: IO[bytes]) -> bytes | None:
    """A frame; None at the end."""
    head = pipe.read(4)
    if len(head) < 4:
        return None
    size = int.from_bytes(head, "big")
    frame = pipe.read(size)
    return frame if len(frame) == size else None
