"""Where a process keeps its delivery counts over a restart: one small file in the state directory.

One process writes it, the first to take its lock. Another that shares the directory (the successor that starts while
this one drains, say) counts on in memory, and takes the file over, with what was written meanwhile, once the lock is
free.
"""

import fcntl
import os
from pathlib import Path

import msgspec

from adcore.counters import CounterState
from adcore.errors import StartError


class CounterFile:
    """The counts on disk, replaced whole by rename, so that a crash leaves the old or the new ones."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock_fd: int | None = None

    @property
    def locked(self) -> bool:
        return self._lock_fd is not None

    def lock(self) -> bool:
        """Take the file for this process; False while another has it. Raises StartError."""
        if self._lock_fd is not None:
            return True
        path = self.path.with_suffix(".lock")
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StartError(f"cannot open {path}: {os.strerror(error.errno or 0)}; see --state-dir") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return False
        self._lock_fd = fd
        return True

    def load(self) -> CounterState:
        """The counts saved last; none when there is no file. Raises StartError for one that can't be read."""
        try:
            return msgspec.json.decode(self.path.read_bytes(), type=CounterState)
        except FileNotFoundError:
            return {}
        except (OSError, msgspec.DecodeError) as error:
            raise StartError(
                f"cannot read the delivery counts in {self.path} ({error}); remove the file to count from zero"
            ) from error

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
