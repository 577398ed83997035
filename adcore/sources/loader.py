"""The Reader in a process of its own, so that what it does never holds up a request.

A thread would: it shares the interpreter's lock with the loop, and reading, decoding and checking 100,000 creatives
keeps that for seconds. The process is started when there is something to ask, gives way to the server while that has a
table to answer requests with, and ends after it has loaded one, so that its memory goes with it; between loads it is
small. It holds no socket of the server's, and leaves with it: its standard input ends when the server does, however
that came to be.

Frames go both ways: four bytes of length, big-endian, then msgpack.
"""

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import msgspec

from adcore.errors import AdcoreError
from adcore.sources import open_store
from adcore.sources.archive import TableArchive
from adcore.sources.lastgood import LastGood
from adcore.sources.reader import Answer, Ask, Note, Reader

# A driver's own timeouts end a call long before; this is for a process that was stopped or makes no progress.
ANSWER_S = 300.0
# A tenth of a core that the server fills, all of one that is idle. SCHED_IDLE would never come to an end on a full one.
NICENESS = 10


class LoaderError(AdcoreError):
    """The process ended in the middle of a look."""


class Sources(msgspec.Struct, frozen=True):
    """What the process opens."""

    source: str
    memcached: str | None
    memcached_prefix: str
    owner: str
    """Of the lock in memcached."""
    last_good: str
    archive: str
    archive_days: float
    archive_bytes: int


# Instead of an Ask: keep the rows of the last offer.
KEEP = b""

_encode = msgspec.msgpack.encode


class Loader:
    """The process, seen from the server; used like the Reader that it has. Calls block and belong in one thread."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False

    def look(self, ask: Ask) -> tuple[Answer, list[bytes]]:
        """As Reader.look. Raises LoaderError when the process ended; the next call starts another one."""
        with self._asking(_encode(ask)) as pipe:
            answer = msgspec.msgpack.decode(self._read(pipe), type=Answer)
            parts = [self._read(pipe) for _ in range(answer.offer.parts)] if answer.offer is not None else []
        return answer, parts

    def keep(self) -> list[Note]:
        """As Reader.keep. The process has done its work then."""
        try:
            with self._asking(KEEP) as pipe:
                return msgspec.msgpack.decode(self._read(pipe), type=list[Note])
        finally:
            self._end()

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
    def _asking(self, frame: bytes) -> Iterator[IO[bytes]]:
        """Send a frame; the pipe that the answer comes from."""
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        watchdog = threading.Timer(ANSWER_S, process.kill)
        watchdog.daemon = True
        watchdog.start()
        try:
            _write(process.stdin, frame)
            yield process.stdout
        except OSError as error:
            raise self._ended() from error
        finally:
            watchdog.cancel()

    def _read(self, pipe: IO[bytes]) -> bytes:
        frame = _read(pipe)
        if frame is None:
            raise self._ended()
        return frame

    def _start(self) -> "subprocess.Popen[bytes]":
        if self._closed:
            raise LoaderError("the loader is closed")
        # Every other descriptor is closed in it, so it keeps no listening socket open.
        process = self._process = subprocess.Popen(
            [sys.executable, "-m", "adcore.sources.loader"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        if self._closed:
            process.kill()
        assert process.stdin is not None
        try:
            _write(process.stdin, _encode(self._sources))
        except OSError as error:
            raise self._ended() from error
        return process

    def _ended(self) -> LoaderError:
        status = self._end()
        assert status is not None
        how = f"by signal {-status}" if status < 0 else f"with status {status}"
        return LoaderError(f"the loader process ended {how}; another one is started for the next look")

    def _end(self) -> int | None:
        """How it ended; None when there is none."""
        process, self._process = self._process, None
        if process is None:
            return None
        process.kill()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except OSError:  # what was left to be written
                pass
        return process.wait()


def main() -> None:
    """In the process."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        # Meant for the server, of whose group this is; when that leaves, so do we.
        signal.signal(number, signal.SIG_IGN)
    incoming, outgoing = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing that a driver prints comes between frames
    first = _read(incoming)
    if first is None:
        return
    sources = msgspec.msgpack.decode(first, type=Sources)
    gives_way = False
    asked: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(incoming, asked), daemon=True).start()
    snapshot = None
    if sources.memcached is not None:
        from adcore.sources.snapshot import Snapshot

        snapshot = Snapshot(sources.memcached, sources.memcached_prefix, sources.owner)
    archive = TableArchive(Path(sources.archive), days=sources.archive_days, bytes_max=sources.archive_bytes)
    reader = Reader(open_store(sources.source), snapshot, LastGood(Path(sources.last_good)), archive)
    while True:
        frame = asked.get()
        if frame == KEEP:
            _write(outgoing, _encode(reader.keep()))
            continue
        ask = msgspec.msgpack.decode(frame, type=Ask)
        if ask.compared is not None and not gives_way:
            # Without a table there are no requests to give way to.
            with suppress(PermissionError):  # a sandbox may forbid it, and tables come all the same
                os.nice(NICENESS)
            gives_way = True
        answer, parts = reader.look(ask)
        _write(outgoing, _encode(answer), *parts)


def _receive(incoming: IO[bytes], asked: "queue.SimpleQueue[bytes]") -> None:
    """Pass on what is asked; when the server is gone, stop whatever is under way."""
    while (frame := _read(incoming)) is not None:
        asked.put(frame)
    os._exit(0)


def _write(pipe: IO[bytes], *frames: bytes) -> None:
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


if __name__ == "__main__":
    main()
