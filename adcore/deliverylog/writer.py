"""The log-writer coroutine: takes batches from the queue and appends them to the file.

The writes happen in one thread, since a disk may take its time; the coroutine alone decides their order. A batch that
was written in part goes on at the very byte where it stopped, so the file never has half a record in its middle. A
failing disk is tried again with growing pauses while the bounded queue holds what comes.

USR1 means: drain what is waiting, close, open. If the open fails the old file stays in use. If the drain was stopped
inside a record, that record is written whole to the new file, and the old one ends in a torn tail.
"""

import asyncio
import logging
import os
import stat
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from adcore.background import BackgroundThread
from adcore.deliverylog.queue import RecordQueue, Waiting
from adcore.errors import StartError

log = logging.getLogger("adcore.deliverylog")

# Large enough that the system call does not matter, small enough that a reopen or exit waits for little.
BATCH_BYTES_MAX = 1 << 20
RETRY_S = (0.05, 0.1, 0.2, 0.5)
"""Pauses after failed writes; the last one is repeated, so a disk that is back is used within half a second."""

Open = Callable[[Path], int]
Write = Callable[[int, bytes], int]


def open_log(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)


class LogWriter:
    """Appends the queue's records to the file at `path`."""

    def __init__(self, queue: RecordQueue, path: Path, *, open: Open = open_log, write: Write = os.write) -> None:
        self.queue = queue
        self.path = path
        self.written: Counter[str] = Counter()
        self.bytes_written = 0
        self.write_errors = 0
        self.last_error: str | None = None
        self.reopens = 0
        self.reopen_failures = 0
        self._open = open
        self._write = write
        self._fd = -1
        self._thread = BackgroundThread("log-writer")
        self._wake = asyncio.Event()
        self._reopen_wanted = False
        self._closing = False
        self._give_up = False
        self._batch: list[Waiting] = []
        self._data = b""
        self._offset = 0

    def open(self) -> None:
        """Open the file. Raises StartError."""
        try:
            self._fd = self._open(self.path)
            self._end_torn_line()
        except OSError as error:
            raise StartError(
                f"cannot open the delivery log {self.path}: {os.strerror(error.errno or 0)}; "
                "create its directory or choose another --log"
            ) from error

    async def run(self) -> None:
        """Write until `close`, and then what is left."""
        self.queue.on_first = self._wake.set
        if len(self.queue):
            self._wake.set()
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
        self._drop_rest()
        os.close(self._fd)
        self._fd = -1
        self._thread.shutdown()

    def reopen(self) -> None:
        """Write what is waiting to the old file, then open the path again; several calls may be one reopening."""
        self._reopen_wanted = True
        self._wake.set()

    async def close(self, running: "asyncio.Task[None]", timeout_s: float) -> None:
        """Write what is left within `timeout_s`, then close; what could not be written is counted as dropped."""
        self._closing = True
        self._wake.set()
        done, _ = await asyncio.wait([running], timeout=timeout_s)
        if not done:
            self._give_up = True
            self._wake.set()
            # A write that hangs in the kernel can't be called back; it must not hold up the exit.
            done, _ = await asyncio.wait([running], timeout=1.0)
            if not done:
                running.cancel()
                self._drop_rest()

    def statistics(self) -> dict[str, object]:
        queue = self.queue
        return {
            "path": str(self.path),
            "waiting": len(queue) + len(self._batch),
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

    async def _write_out(self, batch: list[Waiting]) -> None:
        """Write the batch to its end, however often that takes, unless `close` gives up meanwhile."""
        self._batch = batch
        self._data = b"".join(record.data for record in batch)
        self._offset = 0
        loop = asyncio.get_running_loop()
        failures = 0
        while self._offset < len(self._data):
            try:
                count = await loop.run_in_executor(self._thread, self._write, self._fd, self._data[self._offset :])
            except OSError as error:
                self._note_failure(error)
                if self._give_up:
                    return
                if self._reopen_wanted and failures:
                    # The old file does not recover: perhaps the new one is on a disk that works.
                    await self._reopen()
                await self._pause(RETRY_S[min(failures, len(RETRY_S) - 1)])
                failures += 1
            else:
                if failures:
                    log.warning("the delivery log %s can be written again", self.path)
                    failures = 0
                self._offset += count
                self.bytes_written += count
        self.written.update(record.type for record in self._batch)
        self.queue.release(len(self._data))
        self._batch, self._data, self._offset = [], b"", 0

    async def _pause(self, seconds: float) -> None:
        """Wait, or less when a reopening or the end is asked for."""
        self._wake.clear()
        try:
            await asyncio.wait_for(self._wake.wait(), seconds)
        except TimeoutError:
            pass

    def _note_failure(self, error: OSError) -> None:
        self.write_errors += 1
        text = os.strerror(error.errno or 0)
        if text != self.last_error:
            log.error("cannot write the delivery log %s: %s; records wait and it is tried again", self.path, text)
        self.last_error = text

    async def _reopen(self) -> None:
        self._reopen_wanted = False
        loop = asyncio.get_running_loop()
        try:
            fd = await loop.run_in_executor(self._thread, self._open, self.path)
        except OSError as error:
            self.reopen_failures += 1
            self.last_error = os.strerror(error.errno or 0)
            log.error("cannot reopen the delivery log %s: %s; the old file stays in use", self.path, self.last_error)
            return
        os.close(self._fd)
        self._fd = fd
        self._end_torn_line()
        self.reopens += 1
        self._rewind_to_record()

    def _rewind_to_record(self) -> None:
        """After a change of files, go on at the start of the record that was under way."""
        start = 0
        for position, record in enumerate(self._batch):
            if start + len(record.data) > self._offset:
                written = self._batch[:position]
                self.written.update(done.type for done in written)
                self.queue.release(start)
                self._batch = self._batch[position:]
                self._data = self._data[start:]
                break
            start += len(record.data)
        self._offset = 0

    def _end_torn_line(self) -> None:
        """A file of lines that ends within one (its writer was killed) gets its line end; frames need none."""
        if self._fd < 0 or not stat.S_ISREG(os.fstat(self._fd).st_mode) or not os.fstat(self._fd).st_size:
            return
        with self.path.open("rb") as file:
            first = file.read(1)
            file.seek(-1, os.SEEK_END)
            if first == b"{" and file.read(1) != b"\n":
                self._write(self._fd, b"\n")

    def _drop_rest(self) -> None:
        """Count what is left as dropped; a record that is written in part is among it."""
        self._rewind_to_record()
        rest = self._batch + self.queue.take(self.queue.bytes_max + 1)
        self._batch, self._data = [], b""
        if rest:
            self.queue.drop(rest)
            log.error("%d records could not be written to %s and are lost", len(rest), self.path)
