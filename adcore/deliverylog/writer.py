"""The log-writer coroutine: takes batches from the queue and appends them to the file.

All that touches the disk happens in one thread, since a disk may take its time; the coroutine alone decides the order.
A batch is one write; of several workers on one file each appends whole batches. One that was written in part goes on at
the very byte where it stopped, with the rest of that record alone. Where another worker appended in between, which is
seen from where the pieces lie, the record is written again whole. To look and to write is one step under the file's
lock: no rest of a record ever comes behind what it does not belong to, where it could complete a torn one by chance.
A failing disk is tried again with growing pauses while the bounded queue holds what comes.

USR1 means: drain what is waiting, close, open. If the open fails the old file stays in use. If the drain was stopped
inside a record, that record is written whole after the reopening, and what came before it is a torn record. A line that
was torn is ended with a mark first, so that it never takes the next record with it.
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
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path

from adcore.background import BackgroundThread
from adcore.deliverylog.queue import Batch, RecordQueue
from adcore.errors import StartError

log = logging.getLogger("adcore.deliverylog")

# Large enough that the system call does not matter, small enough that a reopen or exit waits for little.
BATCH_BYTES_MAX = 1 << 20
# How long the first record waits for others. A way to the thread and back takes 0.1 ms of CPU, as much as
# ten requests, so it must not be gone for every few of them.
GATHER_S = 0.01
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
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o640)
    os.set_blocking(fd, True)
    return fd


def ends_within_a_line(path: Path) -> bool:
    """Whether a line end is missing, as far as can be seen: its writer was killed, or its disk was full."""
    try:
        with path.open("rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode) or not file.seek(0, os.SEEK_END):
                return False
            file.seek(-1, os.SEEK_END)
            return file.read(1) != LINE_END
    except OSError:
        return True  # one mark too many does no harm


def place(fd: int) -> int | None:
    """Where what was written to `fd` last ends; None for a pipe, which has no places."""
    try:
        return os.lseek(fd, 0, os.SEEK_CUR)
    except OSError:
        return None


@contextmanager
def locked(fd: int) -> Iterator[None]:
    """Alone with the file among those who lock it, unless another one has it for long, or it knows no locks."""
    for _ in range(LOCK_TRIES):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            time.sleep(LOCK_PAUSE_S)
        except OSError:
            break
    try:
        yield
    finally:
        with suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_UN)


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
        self.write_errors = 0
        self.last_error: str | None = None
        self.reopens = 0
        self.reopen_failures = 0
        self._open = open
        self._write = write
        self._fd = -1
        self._torn = False
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
            self._fd, self._torn = self._open_file()
        except OSError as error:
            raise StartError(
                f"cannot open the delivery log {self.path}: {describe(error)}; "
                "create its directory or choose another --log"
            ) from error

    async def run(self) -> None:
        """Write until `close`, and then what is left."""
        self.queue.on_first = self._wake.set
        if len(self.queue):
            self._wake.set()
        try:
            while not self._give_up:
                if self._reopen_wanted:
                    await self._write_out(self.queue.take(self.queue.bytes_max + 1))
                    if self._reopen_wanted:
                        await self._reopen()
                elif len(self.queue):
                    await self._write_out(self.queue.take(BATCH_BYTES_MAX))
                elif self._closing:
                    break
                else:
                    await self._wake.wait()
                    self._wake.clear()
                    if not (self._closing or self._reopen_wanted):
                        await self._pause(GATHER_S)
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
            "waiting_bytes_high": queue.bytes_high,
            "waiting_bytes_max": queue.bytes_max,
            "accepted": dict(queue.accepted),
            "dropped": dict(queue.dropped),
            "written": dict(self.written),
            "written_bytes": self.bytes_written,
            "write_errors": self.write_errors,
            "last_error": self.last_error,
            "reopens": self.reopens,
            "reopen_failures": self.reopen_failures,
        }

    async def _write_out(self, taken: list[Batch]) -> None:
        """Write what was taken to its end, however often that takes, unless `close` gives up meanwhile."""
        self._taken = taken
        self._data = b"".join([batch.data for batch in taken])
        self._offset = 0
        loop = asyncio.get_running_loop()
        failures = 0
        while self._offset < len(self._data):
            try:
                count, joins = await loop.run_in_executor(self._thread, self._write_rest)
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
                if failures and count:
                    log.warning("the delivery log %s can be written again", self.path)
                    failures = 0
                self.bytes_written += count
                if joins:
                    self._offset += count
                else:
                    self._torn = self.queue.form.lines
                    self._rewind_to_record()
        for kind, lengths, _ in self._taken:
            self.written[kind] += len(lengths)
        self.queue.release(len(self._data))
        self._taken, self._data, self._offset = [], b"", 0

    def _write_rest(self) -> tuple[int, bool]:
        """In the thread: how many bytes were written, and whether they lie right behind those before."""
        with locked(self._fd):
            if self._offset == 0:
                self._before_batch(self._fd)
            end = self._record_end()
            if end > self._offset:
                return self._write_rest_of_record(end)
            if self._torn:
                self._torn = self._write(self._fd, TORN) < len(TORN)
                if self._torn:
                    return 0, True
            return self._write(self._fd, self._data[end:]), True

    def _write_rest_of_record(self, end: int) -> tuple[int, bool]:
        before = place(self._fd)
        if before is not None and before != os.fstat(self._fd).st_size:
            return 0, False
        count = self._write(self._fd, self._data[self._offset : end])
        # Of one who does not lock.
        return count, before is None or place(self._fd) == before + count

    def _record_end(self) -> int:
        """Where the record ends that is written in part; `_offset` if there is none."""
        end = 0
        if self._offset:
            for length in chain.from_iterable(batch.lengths for batch in self._taken):
                if end >= self._offset:
                    break
                end += length
        return end

    async def _pause(self, seconds: float) -> None:
        """Wait, or less when a reopening or the end is asked for."""
        self._wake.clear()
        try:
            await asyncio.wait_for(self._wake.wait(), seconds)
        except TimeoutError:
            pass

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
            fd, torn = await loop.run_in_executor(self._thread, self._open_file)
        except OSError as error:
            self.reopen_failures += 1
            self.last_error = describe(error)
            log.error("cannot reopen the delivery log %s: %s; the old file stays in use", self.path, self.last_error)
            return
        self._thread.submit(os.close, self._fd)
        self._fd, self._torn = fd, torn
        self.reopens += 1
        log.info("the delivery log %s is opened anew", self.path)
        self._rewind_to_record()

    def _open_file(self) -> tuple[int, bool]:
        """The descriptor, and whether a line end must come first."""
        fd = self._open(self.path)
        return fd, self.queue.form.lines and ends_within_a_line(self.path)

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
            self.queue.drop(rest)
            keeper = self.queue.keeper
            fate = "are lost" if keeper is None or not keeper.complete else "wait for the next start"
            log.error("%d records could not be written to %s and %s", count, self.path, fate)


def describe(error: OSError) -> str:
    if error.errno == errno.ENXIO:
        return "it is a pipe that nobody reads"
    return os.strerror(error.errno or 0)
