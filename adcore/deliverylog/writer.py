"""The log-writer coroutine: takes batches from the queue and appends them to the file.

All that touches the disk happens in one thread, since a disk may take its time; the coroutine alone decides the order.
A batch is one write; of several workers on one file each appends whole batches. One that was written in part goes on at
the very byte where it stopped, with the rest of that record alone. Where another worker appended in between, which is
seen from where the pieces lie, the record is written again whole. To look and to write is one step under the file's
lock, so that no rest of a record comes behind what it does not belong to. Without the lock (somebody keeps it, or there
is none) that can be, and then it may complete another's torn record by chance: so a record that seems torn is looked at
before it is written again. A failing disk is tried again with growing pauses while the bounded queue holds what comes.

USR1 means: drain what is waiting, close, open. If the open fails the old file stays in use. If the drain was stopped
inside a record, that record is written whole after the reopening, and what came before it is a torn record. A line that
was torn, by whomever, is ended with a mark first, so that it never takes the next record with it.
"""

import asyncio
import errno
import fcntl
import logging
import os
import stat
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from io import FileIO
from itertools import chain
from pathlib import Path

from adcore.background import BackgroundThread
from adcore.deliverylog.queue import Batch, RecordQueue
from adcore.errors import StartError
from adcore.files import open_own

log = logging.getLogger("adcore.deliverylog")

# Large enough that the system call does not matter, small enough that a reopen or exit waits for little.
BATCH_BYTES_MAX = 1 << 20
# How long the first record waits for others, and how many end the wait. A way to the thread and back, with its lock,
# takes 0.1 to 0.3 ms of CPU, as much as ten requests, so it is not gone for every few of them: at most ten times a
# second, until a write of these bytes costs less than one percent of the requests that brought them. The records are
# safe meanwhile, in the spool.
GATHER_S = 0.1
GATHER_BYTES = 256 * 1024
# What an exit in a hurry leaves for the rest, and then for a write in progress.
HURRY_S = 0.5
# Whoever may read the log can lock it too, and must not be able to stop the writer.
LOCK_TRIES = 200
LOCK_PAUSE_S = 0.001
RETRY_S = (0.05, 0.1, 0.2, 0.5)
"""Pauses after failed writes; the last one is repeated, so a disk that is back is used within half a second."""

Open = Callable[[Path], int]
Write = Callable[[int, bytes], int]
LINE_END = b"\n"
# Ends a torn line so that it can't be taken for a record, even if nothing but its end was missing: that record is
# written again, or counted as dropped.
TORN = b" torn\n"


def open_log(path: Path) -> int:
    """A descriptor to append to. Raises OSError; ENXIO for a pipe that nobody reads, which would block for ever."""
    return open_own(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640, regular=False)


def lies_at(fd: int, offset: int, data: bytes) -> bool:
    """Whether the file that `fd` appends to, whatever its name is by now, is seen to have `data` there."""
    try:
        with FileIO(f"/proc/self/fd/{fd}") as file:
            return os.pread(file.fileno(), len(data), offset) == data
    except OSError:
        return False


def ends_within_a_line(fd: int) -> bool:
    """Whether no line end is seen there: its writer was killed, its disk was full. One mark too many does no harm."""
    status = os.fstat(fd)
    return stat.S_ISREG(status.st_mode) and status.st_size > 0 and not lies_at(fd, status.st_size - 1, LINE_END)


def place(fd: int) -> int | None:
    """Where what was written to `fd` last ends; None for a pipe, which has no places."""
    try:
        return os.lseek(fd, 0, os.SEEK_CUR)
    except OSError:
        return None


class LogWriter:
    """Appends the queue's records to the file at `path`."""

    def __init__(
        self,
        queue: RecordQueue,
        path: Path,
        *,
        open: Open = open_log,
        write: Write = os.write,
        before_batch: Callable[[int], None] = lambda fd: None,
        thread: Executor | None = None,
    ) -> None:
        """`before_batch` is told the descriptor that the next records go to, in `thread`, the writer's own."""
        self.queue = queue
        self.path = path
        self._before_batch = before_batch
        self.written: Counter[str] = Counter()
        self.bytes_written = 0
        self.writes = 0
        """How often the thread was asked for one, each with a lock and two switches between threads."""
        self.write_errors = 0
        self.last_error: str | None = None
        self.reopens = 0
        self.reopen_failures = 0
        self._open = open
        self._write = write
        self._fd = -1
        self._waits_for_lock = True
        self._thread = thread or BackgroundThread("log-writer")
        self._wake = asyncio.Event()
        self._reopen_wanted = False
        self._closing = False
        self._give_up = False
        self._taken: list[Batch] = []
        self._data = b""
        self._offset = 0

    def open(self) -> None:
        """Open the file. Raises StartError."""
        try:
            self._fd = self._open(self.path)
        except OSError as error:
            raise StartError(
                f"cannot open the delivery log {self.path}: {describe(error)}; "
                "create its directory or choose another --log"
            ) from error

    async def run(self) -> None:
        """Write until `close`, and then what is left."""
        self.queue.on_ready = self._wake.set
        try:
            while not self._give_up:
                if self._reopen_wanted:
                    await self._write_out(self.queue.take(self.queue.bytes_max + 1))
                    if self._reopen_wanted:
                        await self._reopen()
                elif self._closing and not len(self.queue):
                    break
                else:
                    await self._gather()
                    if taken := self.queue.take(BATCH_BYTES_MAX):
                        await self._write_out(taken)
        finally:
            self._drop_rest()
            # Behind a write that hangs, if there is one: the number may be another file's by then.
            self._thread.submit(os.close, self._fd)
            self._fd = -1
            self._thread.shutdown()

    def reopen(self) -> None:
        """Write what is waiting to the old file, then open the path again; several calls may be one reopening."""
        self._reopen_wanted = True
        self._wake.set()

    async def close(
        self, running: "asyncio.Task[None]", within: Callable[[Awaitable[object]], Awaitable[None]]
    ) -> None:
        """Write what is left, as long as `within` waits for it; what could not be written is counted as dropped."""
        self._closing = True
        self._wake.set()
        await within(asyncio.wait([running]))
        # A disk that works needs no more than this, in a hurry too.
        await asyncio.wait([running], timeout=HURRY_S)
        if not running.done():
            self._give_up = True
            self._wake.set()
            # A write that hangs in the kernel can't be called back; it must not hold up the exit.
            await asyncio.wait([running], timeout=HURRY_S)
            running.cancel()
            await asyncio.wait([running])

    def statistics(self) -> dict[str, object]:
        queue = self.queue
        return {
            "path": str(self.path),
            "waiting": len(queue) + sum(len(batch.lengths) for batch in self._taken),
            "waiting_bytes": queue.bytes,
            "waiting_bytes_unpaid": queue.unpaid.bytes,
            "waiting_bytes_high": queue.bytes_high,
            "waiting_bytes_max": queue.bytes_max,
            "waiting_bytes_unpaid_max": queue.unpaid.bytes_max,
            "accepted": dict(queue.accepted),
            "dropped": dict(queue.dropped),
            "dropped_paid": dict(queue.dropped_paid),
            "dropped_late": dict(queue.dropped_late),
            "written": dict(self.written),
            "written_bytes": self.bytes_written,
            "writes": self.writes,
            "write_errors": self.write_errors,
            "last_error": self.last_error,
            "reopens": self.reopens,
            "reopen_failures": self.reopen_failures,
        }

    async def _gather(self) -> None:
        """Wait for a first record, and then for others; less when a reopening or the end is asked for."""
        enough = min(GATHER_BYTES, self.queue.bytes_max // 4)
        for ready_bytes, patience_s in ((1, None), (enough, GATHER_S)):
            if self._closing or self._reopen_wanted:
                return
            if self.queue.bytes < ready_bytes:
                self._wake.clear()
                self.queue.ready_bytes = ready_bytes
                await self._wait_for_wake(patience_s)

    async def _wait_for_wake(self, patience_s: float | None) -> None:
        """asyncio.wait_for would make a future and a callback more each time."""
        timer = None if patience_s is None else asyncio.get_running_loop().call_later(patience_s, self._wake.set)
        await self._wake.wait()
        if timer is not None:
            timer.cancel()

    async def _write_out(self, taken: list[Batch]) -> None:
        """Write what was taken to its end, however often that takes, unless `close` gives up meanwhile."""
        self._taken = taken
        self._data = b"".join([batch.data for batch in taken])
        self._offset = 0
        loop = asyncio.get_running_loop()
        failures = 0
        while self._offset < len(self._data):
            self.writes += 1
            try:
                count, offset = await loop.run_in_executor(self._thread, self._write_rest)
            except OSError as error:
                self._note_failure(error, is_first=not failures)
                if self._give_up:
                    return
                if self._reopen_wanted and failures:
                    # The old file does not recover: perhaps the new one is on a disk that works.
                    await self._reopen()
                await self._pause(RETRY_S[min(failures, len(RETRY_S) - 1)])
                failures += 1
            else:
                self.bytes_written += count
                is_joined = offset == self._offset + count
                self._offset = offset
                if not is_joined:
                    self._rewind_to_record()
        if failures:
            log.warning("the delivery log %s can be written again", self.path)
        for kind, lengths, _ in self._taken:
            self.written[kind] += len(lengths)
        self.queue.release(len(self._data))
        self._taken, self._data, self._offset = [], b"", 0

    def _write_rest(self) -> tuple[int, int]:
        """In the thread: how many bytes were written, and how many of `_data` lie in the file now, in one piece."""
        fd, offset, data = self._fd, self._offset, self._data
        with self._locked(fd):
            if offset == 0:
                self._before_batch(fd)
            start, end = self._record_under_way()
            if start < offset:
                count = 0
                at = place(fd)
                if at is None or at == os.fstat(fd).st_size:
                    count = self._write(fd, data[offset:end])
                    if at is None or place(fd) == at + count:
                        return count, offset + count
                assert at is not None
                is_whole = lies_at(fd, at - (offset - start), data[start:end])
                return count, end if is_whole else start
            if self.queue.form.lines and ends_within_a_line(fd) and self._write(fd, TORN) < len(TORN):
                return 0, offset
            count = self._write(fd, data[offset:])
            return count, offset + count

    @contextmanager
    def _locked(self, fd: int) -> Iterator[None]:
        """Alone with the file among those who lock it, if that can be had."""
        is_locked = self._lock(fd)
        if self._waits_for_lock and not is_locked:
            log.warning("the delivery log %s cannot be locked now; it is written all the same", self.path)
        self._waits_for_lock = is_locked
        try:
            if fd != self._fd:
                raise OSError(errno.EBADF, "the writer has ended meanwhile")
            yield
        finally:
            if is_locked:
                fcntl.flock(fd, fcntl.LOCK_UN)

    def _lock(self, fd: int) -> bool:
        try:
            if place(fd) is None:
                # The reader of a pipe can stop its writers anyway, and what several write at once gets mixed.
                fcntl.flock(fd, fcntl.LOCK_EX)
                return True
            for _ in range(LOCK_TRIES if self._waits_for_lock else 1):
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return True
                except BlockingIOError:
                    time.sleep(LOCK_PAUSE_S)
        except OSError:
            pass  # the file system has no locks
        return False

    def _record_under_way(self) -> tuple[int, int]:
        """Where in `_data` the record begins and ends that the byte at `_offset` is of."""
        start = end = 0
        for length in chain.from_iterable(batch.lengths for batch in self._taken):
            start, end = end, end + length
            if end > self._offset:
                break
        return start, end

    async def _pause(self, seconds: float) -> None:
        """Wait, or less when a reopening or the end is asked for."""
        self._wake.clear()
        await self._wait_for_wake(seconds)

    def _note_failure(self, error: OSError, is_first: bool) -> None:
        self.write_errors += 1
        text = describe(error)
        if is_first or text != self.last_error:
            log.error("cannot write the delivery log %s: %s; records wait and it is tried again", self.path, text)
        self.last_error = text

    async def _reopen(self) -> None:
        self._reopen_wanted = False
        loop = asyncio.get_running_loop()
        try:
            fd = await loop.run_in_executor(self._thread, self._open, self.path)
        except OSError as error:
            self.reopen_failures += 1
            self.last_error = describe(error)
            log.error("cannot reopen the delivery log %s: %s; the old file stays in use", self.path, self.last_error)
            return
        self._thread.submit(os.close, self._fd)
        self._fd = fd
        self.reopens += 1
        log.info("the delivery log %s is opened anew", self.path)
        self._rewind_to_record()

    def _rewind_to_record(self) -> None:
        """After a change of files, go on at the start of the record that was under way."""
        start = 0
        rest: list[Batch] = []
        for kind, lengths, data in self._taken:
            whole = size = 0
            # Behind the record under way there is nothing that was written, however short it is.
            while not rest and whole < len(lengths) and start + lengths[whole] <= self._offset:
                start += lengths[whole]
                size += lengths[whole]
                whole += 1
            if whole:
                self.written[kind] += whole
            if whole < len(lengths):
                rest.append(Batch(kind, lengths[whole:], data[size:]))
        if start:
            self.queue.release(start)
        self._taken, self._data, self._offset = rest, self._data[start:], 0

    def _drop_rest(self) -> None:
        """Count what is left as dropped; a record that is written in part is among it."""
        self._rewind_to_record()
        rest = self._taken + self.queue.take(self.queue.bytes_max + 1)
        self._taken, self._data = [], b""
        count = sum(len(batch.lengths) for batch in rest)
        if count:
            fate = "wait for the next start" if self.queue.is_kept else "are lost"
            self.queue.drop(rest)
            log.error("%d records could not be written to %s and %s", count, self.path, fate)


def describe(error: OSError) -> str:
    if error.errno == errno.ENXIO:
        return "it is a pipe that nobody reads"
    return error.strerror or os.strerror(error.errno or 0)
