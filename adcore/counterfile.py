"""Where processes keep their delivery counts over a restart: small files in the state directory, one per process.

A process takes the first file whose lock is free, goes on with the counts in it, and alone writes it. What was
delivered in all is the sum of the files, whoever writes them now or did once: workers, the successor that starts
while its predecessor drains, more or fewer of them than the last time.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from adcore.counts import CounterState
from adcore.errors import StartError
from adcore.files import open_own, read_own, replace_own

# Far above --workers and those that drain; past this something starts processes without end.
FILES_MAX = 1024


class Kept(msgspec.Struct, forbid_unknown_fields=True):
    """What a file holds; tally.py says what the last two are for."""

    counts: CounterState = {}
    """What the processes that had the file have counted themselves."""
    shared: dict[str, tuple[int, int, int]] = {}
    """{counter in memcached: (its tag, how much of it is of these counts, how much of that is in doubt)}"""
    elsewhere: CounterState = {}
    """What was counted and stands in no file of this state directory."""


class CounterFile:
    """This process's counts on disk, replaced whole by rename, so that a crash leaves the old or the new ones.

    `first` is the first file's path; the others have a number in their name. `path` is the one of them that this is
    for, where somebody else holds its lock.
    """

    def __init__(self, first: Path, path: Path | None = None) -> None:
        self._first = first
        self.path = first if path is None else path
        self._lock_fd: int | None = None
        self._others: dict[Path, tuple[tuple[int, ...], Kept]] = {}
        """What each other file was when it was read (_version), and what it held."""

    def lock(self) -> None:
        """Take a file for this process. Raises StartError."""
        assert self._lock_fd is None
        for number in range(FILES_MAX):
            path = self._first if number == 0 else self._first.with_stem(f"{self._first.stem}-{number}")
            fd = _lock(path.with_suffix(".lock"))
            if fd is not None:
                self.path, self._lock_fd = path, fd
                return
        raise StartError(f"{FILES_MAX} processes keep their counts in {self._first.parent}; see --state-dir")

    @property
    def lock_fds(self) -> tuple[int, ...]:
        """The descriptor that holds the lock, for a process that writes the file in our stead."""
        return () if self._lock_fd is None else (self._lock_fd,)

    def load(self) -> Kept:
        """What this process goes on with. Raises StartError for a file that can't be read."""
        return _load(self.path)

    def others(self) -> tuple[dict[Path, Kept], list[str]]:
        """What the other files hold, and what is wrong with those that can't be read; what they held before counts."""
        found, problems = {}, []
        for path in sorted(self._first.parent.glob(f"{self._first.stem}*.json")):
            if path == self.path:
                continue
            try:
                version = _version(path)
                if path not in self._others or self._others[path][0] != version:
                    self._others[path] = version, _load(path)
            except (StartError, OSError) as error:
                problems.append(str(error))
            if path in self._others:
                found[path] = self._others[path][1]
        return found, problems

    def is_alone(self) -> bool:
        """Whether no other process has a file here; one may have a lock and not have written its file yet."""
        for path in self._first.parent.glob(f"{self._first.stem}*.lock"):
            if path != self.path.with_suffix(".lock"):
                fd = _lock(path)
                if fd is None:
                    return False
                os.close(fd)
        return True

    @contextmanager
    def taken(self, path: Path) -> Iterator["CounterFile | None"]:
        """One of the other files for a while, if no process has it."""
        fd = _lock(path.with_suffix(".lock"))
        if fd is None:
            yield None
            return
        try:
            yield CounterFile(self._first, path)
        finally:
            os.close(fd)

    def save(self, kept: Kept) -> None:
        """Write the counts. Raises OSError, with the old file left in place."""
        aside = self.path.with_suffix(".new").name
        replace_own(self.path, msgspec.json.encode(kept), mode=0o640, aside=aside)

    def close(self) -> None:
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None


def _lock(path: Path) -> int | None:
    """A descriptor that holds the lock; None while another process does."""
    try:
        fd = open_own(path, os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise StartError(f"cannot open {path}: {error.strerror}; see --state-dir") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


def _version(path: Path) -> tuple[int, ...]:
    status = path.stat()
    return status.st_ino, status.st_mtime_ns, status.st_size


def _load(path: Path) -> Kept:
    try:
        raw, _ = read_own(path)
        try:
            return msgspec.json.decode(raw, type=Kept)
        except msgspec.ValidationError:  # the first versions wrote nothing but the counts
            return Kept(msgspec.json.decode(raw, type=CounterState))
    except FileNotFoundError:
        return Kept()
    except (OSError, msgspec.DecodeError) as error:
        raise StartError(
            f"cannot read the delivery counts in {path} ({error}); remove the file to count from zero"
        ) from error
