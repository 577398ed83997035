"""What the log does not have yet, in memory that outlives a killed process.

A record waits some milliseconds for the writer, and on a bad disk much longer; a process that is killed meanwhile
(SIGKILL, the OOM killer, a crash) would take it along, though its answer has left. So each record is also copied into
a file that is mapped into memory: what is there belongs to the kernel, at the price of a memcpy and no system call. It
is a ring, of which the bytes from `head` to `tail` may be missing in the log:

    offset  size  (of this machine's byte order)
    0       8     magic
    8       8     head, counted from the first byte that ever was in the ring
    16      8     tail
    24      24    device, inode and size of the log when what follows `head` was begun to be written there
    4096          the ring

Whoever starts next finds the files of dead processes (`take_over`), looks in the log for what was written after all,
and gives the rest to its own writer. A live process holds a lock on its file.

The file's pages are those of its file system: on tmpfs (/run, /dev/shm) no disk ever holds up an answer.

A process has two files, one for each lane of its queue: unpaid records can fill only their own.
"""

import contextlib
import errno
import fcntl
import logging
import mmap
import os
import secrets
from collections.abc import Iterator
from io import BufferedIOBase, BytesIO
from pathlib import Path
from struct import Struct

from adcore.deliverylog.queue import RecordQueue
from adcore.deliverylog.reader import Damage, read_records
from adcore.deliverylog.record import AnyRecord, type_of
from adcore.errors import StartError
from adcore.files import create_own, open_own

log = logging.getLogger("adcore.deliverylog")

# A fifth of a second at 70,000 records a second. While more than this waits for a bad disk, it is in memory alone.
RING_BYTES = 8 << 20
# For unpaid records: 50 ms at that rate. A disk that works takes 10 ms.
UNPAID_RING_BYTES = 2 << 20
HEADER_BYTES = 4096
MAGIC = b"adcspool"
SUFFIX = ".spool"
_HEADER = Struct("=8s5Q")
# Places in the header as 8-byte words. Each is written at once, so that a reader never sees half of one.
_HEAD, _TAIL, _DEVICE, _INODE, _SIZE = range(1, 6)


class NoSpaceError(StartError):
    """There is no room for the file now."""


class Spool:
    """The file of this process; also while nothing waits. A RecordQueue fills and releases it."""

    def __init__(self, directory: Path, ring_bytes: int = RING_BYTES) -> None:
        """Raises StartError, which is NoSpaceError on a disk that is full."""
        self.ring_bytes = ring_bytes
        self.path = directory / f"{secrets.token_hex(8)}{SUFFIX}"
        self._head = self._tail = 0
        self.complete = True
        """Whether all that waits is here; if not, nothing more is taken in until all of it is written."""
        try:
            self._fd, self._map = self._create()
        except OSError as error:
            kind = NoSpaceError if error.errno in (errno.ENOSPC, errno.EDQUOT) else StartError
            raise kind(
                f"cannot keep {(HEADER_BYTES + ring_bytes) >> 20} MiB for records in {directory}: {error.strerror}; "
                "see --spool-dir"
            ) from error
        whole = memoryview(self._map)
        self._words = whole[: _HEADER.size].cast("Q")
        self._ring = whole[HEADER_BYTES:]

    def _create(self) -> tuple[int, mmap.mmap]:
        fd = create_own(self.path, self._fill)
        try:
            return fd, mmap.mmap(fd, HEADER_BYTES + self.ring_bytes)
        except BaseException:
            with contextlib.suppress(OSError):
                self.path.unlink()
            os.close(fd)
            raise

    def _fill(self, fd: int) -> None:
        # Locked before it has a name that `take_over` looks for, so that it is not taken for a dead process's.
        fcntl.flock(fd, fcntl.LOCK_EX)
        # All of it now: a page that finds no room later ends the process.
        os.posix_fallocate(fd, 0, HEADER_BYTES + self.ring_bytes)
        os.pwrite(fd, _HEADER.pack(MAGIC, 0, 0, 0, 0, 0), 0)

    def append(self, data: bytes) -> None:
        """Keep these whole records, if all that came before them is kept and there is room."""
        size = len(data)
        tail = self._tail + size
        if not self.complete or tail - self._head > self.ring_bytes:
            self.complete = False
            return
        start = self._tail % self.ring_bytes
        end = start + size
        if end <= self.ring_bytes:
            self._ring[start:end] = data
        else:
            fits = self.ring_bytes - start
            self._ring[start:] = data[:fits]
            self._ring[: size - fits] = data[fits:]
        # Only now, when all of it is there.
        self._tail = self._words[_TAIL] = tail

    def release(self, size: int, rest: int) -> None:
        """The oldest `size` bytes are in the log; `rest` more wait."""
        self._head = self._words[_HEAD] = self._tail if rest == 0 else min(self._head + size, self._tail)
        if rest == 0:
            self.complete = True

    def cut(self, rest: int) -> None:
        """The newest bytes are given up; the oldest `rest` wait."""
        if rest <= self._tail - self._head:
            self._tail = self._words[_TAIL] = self._head + rest
            self.complete = True

    def note_log(self, fd: int) -> None:
        """What follows `head` will be written to this file, from its present end on."""
        status = os.fstat(fd)
        if self._words[_INODE] != status.st_ino or self._words[_DEVICE] != status.st_dev:
            # Nothing names a place in the wrong file at any moment.
            self._words[_SIZE] = 0
            self._words[_INODE] = status.st_ino
            self._words[_DEVICE] = status.st_dev
        self._words[_SIZE] = status.st_size

    def close(self) -> None:
        """Remove the file, unless something in it is in no log."""
        if self._head == self._tail:
            self.path.unlink(missing_ok=True)
        self._words.release()
        self._ring.release()
        self._map.close()
        os.close(self._fd)


class Spools:
    """The two files of this process."""

    def __init__(
        self, directory: Path, ring_bytes: int = RING_BYTES, unpaid_ring_bytes: int = UNPAID_RING_BYTES
    ) -> None:
        """Raises as Spool does, and leaves no file then."""
        self.paid = Spool(directory, ring_bytes)
        try:
            self.unpaid = Spool(directory, unpaid_ring_bytes)
        except BaseException:
            self.paid.close()
            raise

    def note_log(self, fd: int) -> None:
        """What the files hold will be written to this log, from its present end on."""
        self.paid.note_log(fd)
        self.unpaid.note_log(fd)

    def close(self) -> None:
        self.paid.close()
        self.unpaid.close()


def take_over(directory: Path, log_path: Path, queue: RecordQueue) -> int:
    """Put into the queue what processes that were killed left in `directory`; how many records."""
    count = 0
    taken: set[tuple[str, str]] = set()
    for path in sorted(directory.glob(f"*{SUFFIX}")):
        try:
            fd = open_own(path, os.O_RDONLY)
        except FileNotFoundError:
            continue  # another one has taken it over
        except OSError as error:
            log.error("%s is not taken over: %s", path, error.strerror)
            continue
        with contextlib.suppress(OSError), os.fdopen(fd, "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue  # its process lives
            if os.fstat(file.fileno()).st_nlink:
                count += _take_over(file.read(), path, log_path, queue, taken)
                path.unlink()
    if count:
        log.warning("%d records of a process that was killed go to %s", count, log_path)
    return count


def _take_over(content: bytes, path: Path, log_path: Path, queue: RecordQueue, taken: set[tuple[str, str]]) -> int:
    """`taken` are the keys of what other files have: one who was killed while it took over has copies of another's."""
    ring = content[HEADER_BYTES:]
    if len(content) < HEADER_BYTES or not content.startswith(MAGIC):
        log.error("%s is no spool of adcore, and is removed", path)
        return 0
    _, head, tail, device, inode, size = _HEADER.unpack_from(content)
    if not ring or not 0 <= tail - head <= len(ring):
        log.error("%s is damaged, and is removed; records of a process that was killed are lost", path)
        return 0
    start = head % len(ring)
    waiting = (ring[start:] + ring[:start])[: tail - head]
    if not waiting:
        return 0
    records = [record for record in _records(BytesIO(waiting)) if _key(record) not in taken]
    written: set[tuple[str, str]] = set()
    # Without an inode the process had not begun to write any of it.
    if inode:
        keys = {_key(record) for record in records}
        # The log may have grown for days since; remembered are only keys of what the ring holds.
        written = {key for record in _written_since(log_path, device, inode, size) if (key := _key(record)) in keys}
    missing = [record for record in records if _key(record) not in written]
    taken.update(map(_key, missing))
    for record in missing:
        queue.put(record)
    return len(missing)


def _written_since(log_path: Path, device: int, inode: int, size: int) -> Iterator[AnyRecord]:
    """What is in the log from `size` on; it may have been renamed since."""
    for path in _names(log_path):
        with contextlib.suppress(OSError), os.fdopen(open_own(path, os.O_RDONLY), "rb") as file:
            # Of the open file: the name may be another one's by now.
            status = os.fstat(file.fileno())
            if (status.st_dev, status.st_ino) == (device, inode):
                file.seek(size)
                yield from _records(file)
                return
    log.warning("the log that a killed process wrote to is not beside %s: some records may be there twice", log_path)


def _names(log_path: Path) -> Iterator[Path]:
    """What a log may be called by now. One that is renamed meanwhile is found by its new name."""
    yield log_path
    for _ in range(2):  # logrotate may have shifted all of them during the first walk
        yield from sorted(log_path.parent.glob(f"{log_path.name}*"))


def _records(file: BufferedIOBase) -> Iterator[AnyRecord]:
    for found in read_records(file):
        if not isinstance(found, Damage):
            yield found


def _key(record: AnyRecord) -> tuple[str, str]:
    return type_of(record), record.id
