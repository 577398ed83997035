"""A real circusd with the file that is shipped, tools/circus/adcore.ini, its paths moved into a temporary folder."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.process import PATIENCE_S, ROOT, ask, environment, wait_for

# Where the shipped file has things, and where they are here.
PLACES = {
    "/run/adcore": "run",
    "/etc/adcore": "etc",
    "/var/lib/adcore": "state",
}


class Circusd:
    """circusd and its workers; `address` is the socket that it holds."""

    def __init__(self, folder: Path, more: str = "") -> None:
        self.folder = folder
        text = (ROOT / "tools/circus/adcore.ini").read_text()
        for shipped, here in PLACES.items():
            assert shipped in text
            text = text.replace(shipped, f"{folder}/{here}")
            (folder / here).mkdir()
        assert "/opt/adcore/venv/bin/adcore" in text
        text = text.replace("/opt/adcore/venv/bin/adcore", f"{sys.executable} -m adcore")
        self.ini = folder / "adcore.ini"
        self.ini.write_text(f"{text}\n[env:adcore]\nPYTHONPATH = {ROOT}\n{more}")
        self.config = folder / "etc/adcore.toml"
        self.config.write_text("refresh = 2\n")
        self.address = f"unix:{folder}/run/ad.sock"
        self.log = folder / "state/delivery.log"
        self.output = folder / "circusd.out"
        self.endpoint = f"ipc://{folder}/run/circusd.sock"
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "circus.circusd", str(self.ini)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment(),
                cwd=folder,
            )

    def ctl(self, *args: str) -> Any:
        """What circusd answers, as JSON."""
        done = subprocess.run(
            [
                *(sys.executable, "-m", "circus.circusctl", "--json"),
                *("--endpoint", self.endpoint, "--timeout", str(int(PATIENCE_S)), *args),
            ],
            capture_output=True,
            text=True,
            env=environment(),
            timeout=2 * PATIENCE_S,
            check=False,
        )
        assert done.returncode == 0, f"{done.stdout}{done.stderr}\n{self.output.read_text()}"
        return json.loads(done.stdout)

    def pids(self) -> set[int]:
        return set(self.ctl("list", "adcore")["pids"])

    def answers(self) -> bool:
        assert self.process.poll() is None, self.output.read_text()
        try:
            return ask(self.address, "/ping").status == 200
        except OSError:
            return False

    def is_started(self) -> bool:
        """Every worker; before, circusd forgets a TERM that comes."""
        return self.answers() and self.ctl("status", "adcore")["status"] == "active"

    def reload(self) -> None:
        """As the README says; every worker is another one afterwards."""
        before = self.pids()
        self.ctl("reload", "adcore", "--waiting")
        wait_for(lambda: len(self.pids()) == len(before), self.output.read_text)
        assert not before & self.pids(), self.output.read_text()

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(PATIENCE_S)


@contextmanager
def running(folder: Path, more: str = "") -> Iterator[Circusd]:
    """A circusd whose workers answer, gone afterwards with all of them."""
    circusd = Circusd(folder, more)
    try:
        wait_for(circusd.is_started, circusd.output.read_text)
        yield circusd
    finally:
        left = Path(f"/proc/{circusd.process.pid}/task/{circusd.process.pid}/children")
        if circusd.process.poll() is None:
            workers = left.read_text().split()
            try:
                circusd.stop()
            except subprocess.TimeoutExpired:
                for pid in (circusd.process.pid, *map(int, workers)):
                    os.kill(pid, signal.SIGKILL)
                circusd.process.wait()
                raise
