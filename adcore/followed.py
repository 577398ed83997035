"""Which links were followed, remembered by all processes of a host together, so that each counts once in its window.

A link that is followed again may come to any worker, and to one that has just been restarted. So what was followed is
in a file that all of them map into memory, beside their spools: a hash table of fixed size, where an impression's id
leads to a bucket, and the rest of it is its fingerprint there.

    offset      size  (of this machine's byte order)
    0           8     magic
    256 n       128   bucket n, from 1: 16 fingerprints, 0 where there is none
    256 n + 128 128   when each was followed first, epoch seconds, float64

Whoever reads or writes a bucket holds a lock on a byte of the file (fcntl: two system calls) for some microseconds; of
a process that dies the kernel takes it back. Nobody waits for one that is stopped while it holds it: after a thousand
tries the link counts as followed, because whoever holds the lock is most likely counting the same.
"""

import contextlib
import fcntl
import mmap
import os
from pathlib import Path

from adcore.errors import StartError
from adcore.files import create_own, open_own

MAGIC = b"adcseen1"
# 16 MiB for a million links: with the window of an hour, 290 a second. Past that the oldest of a bucket is forgotten.
BUCKETS = 65_535
PLACES = 16
_BUCKET_BYTES = 2 * 8 * PLACES
_TRIES_MAX = 1000
_FINGERPRINTS = (1 << 64) - 1


class Followed:
    """The links of one kind (clicks, or views) that were followed within `window_s` seconds."""

    def __init__(self, fd: int, window_s: float) -> None:
        """On an open file of this form, which is this object's from now on."""
        self.window_s = window_s
        self._fd = fd
        self._map = mmap.mmap(fd, 0)
        self._buckets = len(self._map) // _BUCKET_BYTES - 1
        self._bytes = memoryview(self._map)
        self._fingerprints = self._bytes.cast("Q")
        self._times = self._bytes.cast("d")

    @classmethod
    def open(cls, path: Path, window_s: float) -> "Followed":
        """The file at `path`, made when there is none; of two processes that start at once both get the same. Raises
        StartError."""
        try:
            if not path.exists():
                with contextlib.suppress(FileExistsError):
                    os.close(create_own(path, _fill))
            fd = open_own(path, os.O_RDWR, settles=True)
        except OSError as error:
            raise StartError(
                f"cannot keep {_size(BUCKETS) >> 20} MiB for the links followed in {path}: {error.strerror}; "
                "see --spool-dir"
            ) from error
        if os.fstat(fd).st_size != _size(BUCKETS) or os.pread(fd, len(MAGIC), 0) != MAGIC:
            os.close(fd)
            raise StartError(f"{path} is not what adcore keeps there: remove it to have a new one made")
        return cls(fd, window_s)

    @classmethod
    def in_memory(cls, window_s: float, buckets: int = 1024) -> "Followed":
        """For this process and its children alone."""
        fd = os.memfd_create("adcore-followed")
        os.ftruncate(fd, _size(buckets))
        return cls(fd, window_s)

    def first(self, impression_id: str, now: float) -> bool:
        """Whether the link of this impression (32 hexadecimal digits) is followed for the first time in its window,
        which starts `now` (epoch seconds) if so."""
        number = int(impression_id, 16)
        bucket = 1 + (number >> 64) % self._buckets
        if not self._lock(bucket):
            return False
        try:
            return self._note(bucket * _BUCKET_BYTES // 8, number & _FINGERPRINTS or 1, now)
        finally:
            fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, bucket)

    def close(self) -> None:
        for view in (self._fingerprints, self._times, self._bytes):
            view.release()
        self._map.close()
        os.close(self._fd)

    def _lock(self, bucket: int) -> bool:
        for _ in range(_TRIES_MAX):
            try:
                fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, bucket)
                return True
            except (BlockingIOError, PermissionError):  # either, says fcntl(2)
                os.sched_yield()
        return False

    def _note(self, at: int, fingerprint: int, now: float) -> bool:
        fingerprints = self._fingerprints[at : at + PLACES].tolist()
        times = self._times[at + PLACES : at + 2 * PLACES]
        # In either direction: a clock that was set keeps nothing for more than a window.
        if fingerprint in fingerprints:
            place = fingerprints.index(fingerprint)
            if abs(now - times[place]) < self.window_s:
                return False
        elif 0 in fingerprints:
            place = fingerprints.index(0)
        else:
            place = max(range(PLACES), key=lambda one: abs(now - times[one]))
        # The time first: a process that dies in between has then made another link younger, and no link old.
        times[place] = now
        self._fingerprints[at + place] = fingerprint
        return True


def _size(buckets: int) -> int:
    return (buckets + 1) * _BUCKET_BYTES


def _fill(fd: int) -> None:
    # All of it now: a page that finds no room later ends the process.
    os.posix_fallocate(fd, 0, _size(BUCKETS))
    os.pwrite(fd, MAGIC, 0)
