"""Where processes keep their delivery counts over a restart: small files in the state directory, one per process.

A process takes the first file whose lock is free, goes on with the counts in it, and alone writes it. What was
delivered in all is the sum of the files, whoever writes them now or did once: workers, the successor that starts
while its predecessor drains, more or fewer of them than the last time.
"""

import fcntl
import logging
import os
from pathlib import Path

import msgspec

from adcore.counters import CounterState, add_counts
from adcore.errors import StartError

log = logging.getLogger("adcore.counterfile")

# Far above --workers and those that drain; past this something starts processes without end.
FILES_MAX = 1024


class CounterFile:
    """This process's counts on disk, replaced whole by rename, so that a crash leaves the old or the new ones.

    `path` is the first file's; the others have a number in their name.
    """

    def __init__(self, path: Path) -> None:
        self._first = path
        self.path = path
        self._lock_fd: int | None = None
        self._others: dict[Path, CounterState] = {}

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

    def load(self) -> CounterState:
        """The counts that this process goes on with. Raises StartError for a file that can't be read."""
        return _load(self.path)

    def load_others(self) -> CounterState:
        """The sum of all other files. Raises StartError for one that can't be read and could not be before."""
        total: CounterState = {}
        for path in sorted(self._first.parent.glob(f"{self._first.stem}*.json")):
            if path != self.path:
                try:
                    self._others[path] = _load(path)
                except StartError as error:
                    if path not in self._others:
                        raise
                    log.error("%s; what it said before still counts", error)
                add_counts(total, self._others[path])
        return total

    def save(self, state: CounterState) -> None:
        """Write the counts. Raises OSError, with the old file left in place."""
        aside = self.path.with_suffix(".new")
        with aside.open("wb") as file:
            file.write(msgspec.json.encode(state))
            file.flush()
            os.fsync(file.fileno())
        aside.replace(self.path)

    def close(self) -> None:
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None


def _lock(path: Path) -> int | None:
    """A descriptor that holds the lock; None while another process does."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StartError(f"cannot open {path}: {os.strerror(error.errno or 0)}; see --state-dir") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


def _load(path: Path) -> CounterState:
    try:
        return msgspec.json.decode(path.read_bytes(), type=CounterState)
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.DecodeError) as error:
        raise StartError(
            f"cannot read the delivery counts in {path} ({error}); remove the file to count from zero"
        ) from error
