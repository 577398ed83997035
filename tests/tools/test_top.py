"""`adctl top`: on a terminal that is made up, and once on a real one."""

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from io import StringIO
from pathlib import Path
from typing import Any

import pyte
import pytest
from rich.console import Console

from adtools import cli
from adtools.control import Host
from adtools.top import view
from tests.inventories import campaign, document
from tests.process import adctl, environment, serving, wait_for
from tests.tools.statuses import answering, of_workers, status


def shown(answer: Any, width: int = 110, color: bool = False) -> str:
    console = Console(file=StringIO(), width=width, force_terminal=color, color_system="standard" if color else None)
    console.print(view(Host(answer)))
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def test_a_host_at_a_glance() -> None:
    text = shown(status())
    assert "adcore 0.1.0 on ads1, 1 worker, up 1 d 2 h 3 min" in text
    rows = {" ".join(line.split()) for line in text.splitlines()}
    for part in (
        *("requests 1,234", "impressions 1,000", "clicks 2.5", "CPU 25%", "latency 40 µs 400 µs 1.5 ms"),
        *("loop lag 16 µs 1.0 ms -", "revision 7", "table age 2 s", "log queue 50.0%", "records lost 0", "50 MB"),
    ):
        assert any(part in row for row in rows), (part, text)
    assert "spring 1,500 15 1.00%" in rows
    assert "[red]odd 0 0 -" in rows  # a name is text, not markup


def test_workers_are_added_up_and_the_worst_is_shown() -> None:
    text = shown(of_workers(status(), status(refresh={"age_s": 7200}), {"error": "no connection"}))
    rows = {" ".join(line.split()) for line in text.splitlines()}
    assert "2 workers" in text
    assert "worker 3: no connection" in text
    for part in ("requests 2,469", "table age 2 h 0 min", "connections 24", "CPU 50%"):
        assert any(part in row for row in rows), (part, text)
    assert "spring 1,500 15 1.00%" in rows  # each worker knows what all have delivered
    assert "no worker answers: gone" in shown(of_workers({"error": "gone"}))


def test_a_server_without_a_table_or_requests() -> None:
    bare = status(table={"revision": None}, refresh={"age_s": None}, log={"waiting_bytes": 0})
    bare["rates"] = {"interval_s": 0.0, "counted": {}, "per_second": {}}
    text = shown(bare)
    assert "none yet" in text
    assert re.search(r"table age +-", text)


@pytest.mark.parametrize(
    ("changes", "text", "colour"),
    [
        ({"refresh": {"age_s": 61}}, "61 s", "\x1b[33m"),
        ({"refresh": {"age_s": 601}}, "10 min", "\x1b[1;31m"),
        ({"log": {"waiting_bytes": 950}}, "95.0%", "\x1b[1;31m"),
        ({"rates": {"counted": {"log_dropped": 4, "log_dropped_paid": 4}}}, "4", "\x1b[1;31m"),
        ({"rates": {"counted": {"log_dropped": 4, "log_dropped_paid": 0}}}, "4", "\x1b[33m"),
        ({"rates": {"lag_us": {"p50": 1, "p99": 2, "p99.9": 150_000}}}, "150.0 ms", "\x1b[1;31m"),
    ],
)
def test_what_is_wrong_has_a_colour(changes: dict[str, Any], text: str, colour: str) -> None:
    styled = re.compile(re.escape(colour) + " *" + re.escape(text))
    assert styled.search(shown(status(**changes), color=True))
    assert not styled.search(shown(status(log={"waiting_bytes": 0}), color=True))


def test_once_without_a_terminal(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with answering(status()) as address:
        assert cli.main(["top", "--control", address]) == 0
    assert "requests" in capsys.readouterr().out
    assert cli.main(["top", "--control", f"unix:{tmp_path}/none.sock"]) == 1
    assert "no answer from" in capsys.readouterr().err
    assert cli.main(["top", "--interval", "0"]) == 2
    assert "must be 0.1 to 3600 seconds" in capsys.readouterr().err


class Terminal:
    """A program on a pseudo-terminal of 100 by 30, and what its screen shows."""

    def __init__(self, *command: str) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
        self.screen = pyte.Screen(100, 30)
        self.raw = b""
        self._stream = pyte.ByteStream(self.screen)
        variables = environment(TERM="xterm-256color")
        self.process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=variables)
        os.close(slave)
        os.set_blocking(self.master, False)

    def text(self) -> str:
        try:
            while data := os.read(self.master, 65536):
                self.raw += data
                self._stream.feed(data)
        except OSError:  # nothing more at the moment, or for good
            pass
        return "\n".join(self.screen.display)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.master)


def test_a_real_terminal_follows_a_real_server_until_ctrl_c(tmp_path: Path) -> None:
    source = f"sqlite:///{tmp_path}/ads.db"
    adctl("apply", "--source", source, "-", stdin=json.dumps(document(campaign("a"))))
    with serving(tmp_path / "state", "--source", source) as server:
        terminal = Terminal(sys.executable, "-m", "adtools", "top", "--control", server.control, "--interval", "0.1")
        try:
            wait_for(lambda: "1 worker" in terminal.text(), terminal.text)
            for _ in range(7):
                server.ask("/v1/decision?placement=side")
            wait_for(lambda: re.search(r"^a +7 +0 ", terminal.text(), re.MULTILINE), terminal.text)
            assert server.stop() == 0
            wait_for(lambda: "no answer from" in terminal.text(), terminal.text)
            terminal.process.send_signal(signal.SIGINT)
            assert terminal.process.wait(20) == 0
            terminal.text()
            assert b"\x1b[?1049h" in terminal.raw  # a screen of its own,
            assert b"\x1b[?1049l" in terminal.raw  # and the old one again
        finally:
            terminal.close()
