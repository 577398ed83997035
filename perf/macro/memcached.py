"""A memcached on a unix socket, through which adcore exchanges counts while it is measured."""

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

from perf.macro.errors import Missing

# Only how long to wait before a start is called failed.
PATIENCE_S = 10.0


class Memcached:
    """Starts when it is first asked for, on the cores of this process. It is a service of its own: no contender's."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "memcached.sock"
        self._process: subprocess.Popen[bytes] | None = None

    def address(self) -> str:
        """For --memcached. Raises Missing."""
        if self._process is None:
            self._start()
        return f"unix:{self._path}"

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _start(self) -> None:
        program = shutil.which("memcached")
        if program is None:
            raise Missing("memcached is not installed (Debian: memcached)")
        user = [] if os.getuid() else ["-u", "root"]
        process = self._process = subprocess.Popen(
            [program, "-s", str(self._path), "-m", "64", *user],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C reaches only us, who end it
        )
        deadline_monotonic = time.monotonic() + PATIENCE_S
        while not self._answers():
            if process.poll() is not None or time.monotonic() > deadline_monotonic:
                self.close()
                raise Missing("memcached does not start")
            time.sleep(0.01)

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(self._path))
            except OSError:
                return False
            return True
