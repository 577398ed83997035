"""The pid file: one running server per file.

The lock, not the number, says whether the owner lives: the kernel drops it with the process, however that
ends. A number without a lock may be another program's: a running process older than the file wrote it, and is
left alone; a younger one only reuses the pid, and the file is stale.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from types import TracebackType

from adcore.errors import StartError
from adcore.files import FILE_MODE, open_own

_CLOCK_SLACK_S = 2.0  # /proc counts in ticks and a file's time comes from a coarser clock


class PidFile:
    """`with PidFile(path):` holds the file for the life of the block. Raises StartError if it cannot."""

    __slots__ = ("_fd", "path")

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd: int | None = None

    def __enter__(self) -> PidFile:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def acquire(self) -> None:
        fd = self._open_locked()
        try:
            pid = _read_pid(fd)
            if pid is not None and pid != os.getpid() and _wrote(pid, os.fstat(fd).st_mtime):
                raise StartError(self._refusal(pid))
            os.ftruncate(fd, 0)
            os.pwrite(fd, b"%d\n" % os.getpid(), 0)
        except OSError as error:
            os.close(fd)
            why = os.strerror(error.errno or 0)
            raise StartError(f"cannot write the pid file {self.path}: {why}") from error
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd

    def release(self) -> None:
        """Remove the file if it is the one we locked and still holds our pid; a successor's file stays."""
        if self._fd is None:
            return
        if _is_at(self._fd, self.path) and _read_pid(self._fd) == os.getpid():
            self.path.unlink(missing_ok=True)
        os.close(self._fd)
        self._fd = None

    def _open_locked(self) -> int:
        while True:
            try:
                # Not for every user: who may read a file may lock it, and no server would start then.
                fd = open_own(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, FILE_MODE)
            except OSError as error:
                raise StartError(
                    f"cannot open the pid file {self.path}: {error.strerror}; "
                    f"check {self.path.parent} or choose another --pid-file"
                ) from error
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pid = _read_pid(fd)
                os.close(fd)
                raise StartError(self._refusal(pid)) from None
            if _is_at(fd, self.path):
                return fd
            os.close(fd)  # its owner removed it between our open and our lock

    def _refusal(self, pid: int | None) -> str:
        owner = "a running process" if pid is None else f"the running process {pid}"
        return f"the pid file {self.path} belongs to {owner}; stop it or choose another --pid-file"


def _read_pid(fd: int) -> int | None:
    text = os.pread(fd, 32, 0).strip()
    return int(text) if text.isdigit() else None


def _is_at(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.lstat(path))
    except FileNotFoundError:
        return False


def _wrote(pid: int, written_wall: float) -> bool:
    """Whether the process with this pid is old enough to have written a file at that time."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        uptime_s = float(Path("/proc/uptime").read_text().split()[0])
    except (OSError, ValueError, IndexError):  # no such process, or no /proc
        return False
    if fields[0] in ("Z", "X"):
        return False
    start_ticks = int(fields[19])  # proc(5): field 22, starttime; `fields` begins after "pid (comm)"
    age_s = uptime_s - start_ticks / os.sysconf("SC_CLK_TCK")
    return time.time() - age_s <= written_wall + _CLOCK_SLACK_S
