"""Disks that fail, fill up and dawdle, and a wall clock that steps, in real server processes.

`Faulty` is the hand on faulty.c, which is compiled when it is needed and preloaded into a server. `Volume` is a real
file system with little room: a tmpfs in a mount namespace of the server's own, which goes with it.
"""

import contextlib
import errno
import mmap
import os
import subprocess
import time
from pathlib import Path
from struct import Struct
from typing import Self

from tests.process import wait_for
from tests.services import program

SOURCE = Path(__file__).with_suffix(".c")
_CONTROL = Struct("=7q")
_OFFSET, _FAULT, _ERROR, _EVERY, _DELAY, _WRITES, _FAULTS = range(7)
FAIL, SHORT = 1, 2


class Faulty:
    """`variables` is for the environment of the servers; disk faults come to files whose path begins with `path`."""

    def __init__(self, folder: Path, path: Path | str) -> None:
        folder.mkdir(exist_ok=True)
        library = folder / "faulty.so"
        command = [program("gcc", "gcc"), "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror"]
        subprocess.run([*command, "-o", str(library), str(SOURCE)], check=True, timeout=60)
        control = folder / "control"
        control.write_bytes(_CONTROL.pack(0, 0, 0, 1, 0, 0, 0))
        with control.open("r+b") as file:
            self._words = memoryview(mmap.mmap(file.fileno(), _CONTROL.size)).cast("q")
        self.variables = {
            "LD_PRELOAD": str(library),
            "FAULTY_CONTROL": str(control),
            "FAULTY_PATH": str(path),
        }

    def fail(self, every: int, error: int = errno.EIO) -> None:
        """Let every so many-th write fail, counted over all processes."""
        self._words[_ERROR], self._words[_EVERY], self._words[_FAULT] = error, every, FAIL

    def cut_short(self, every: int) -> None:
        """Let every so many-th write take a third only."""
        self._words[_EVERY], self._words[_FAULT] = every, SHORT

    def be_slow(self, seconds: float) -> None:
        """Let each write and fsync take this much longer."""
        self._words[_DELAY] = int(seconds * 1e9)

    def heal(self) -> None:
        self._words[_FAULT] = self._words[_DELAY] = 0

    @property
    def writes(self) -> int:
        return self._words[_WRITES]

    @property
    def faults(self) -> int:
        """How many have come."""
        return self._words[_FAULTS]

    @property
    def clock_offset_s(self) -> float:
        """What the servers' wall clock is ahead of this process's."""
        return self._words[_OFFSET] / 1e9

    @clock_offset_s.setter
    def clock_offset_s(self, seconds: float) -> None:
        self._words[_OFFSET] = int(seconds * 1e9)

    def set_clock(self, wall: float) -> None:
        """Let the servers' wall clock say `wall` (epoch seconds) now, and go on from there."""
        self.clock_offset_s = wall - time.time()


class Volume:
    """A tmpfs of `size_bytes` on `folder`, for the server that `launcher` starts; others find it at `path`."""

    def __init__(self, folder: Path, size_bytes: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        namespaces = ["--mount"] if os.getuid() == 0 else ["--mount", "--user", "--map-current-user", "--keep-caps"]
        mount = f'mount -t tmpfs -o size={size_bytes},mode=777 tmpfs "$0" && exec "$@"'
        self.launcher = [program("unshare", "util-linux"), *namespaces, "sh", "-c", mount, str(folder)]
        self._folder = folder
        self._fd = -1

    def attach(self, pid: int) -> Self:
        """Hold it, also when its server has ended."""
        device = self._folder.stat().st_dev

        def is_mounted() -> bool:
            with contextlib.suppress(OSError):
                return Path(f"/proc/{pid}/root{self._folder}").stat().st_dev != device
            return False

        wait_for(is_mounted, lambda: f"no tmpfs on {self._folder}: may this user make namespaces?")
        self._fd = os.open(f"/proc/{pid}/root{self._folder}", os.O_RDONLY | os.O_DIRECTORY)
        return self

    @property
    def path(self) -> Path:
        return Path(f"/proc/{os.getpid()}/fd/{self._fd}")

    def fill(self) -> None:
        """Leave no byte free."""
        with (self.path / "filler").open("ab", buffering=0) as file:
            for size in (1 << 20, 4096, 1):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(b"\0" * size)

    def free(self) -> None:
        (self.path / "filler").unlink(missing_ok=True)

    def close(self) -> None:
        os.close(self._fd)
