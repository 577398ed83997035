"""What logs, stores and servers hold is text on a terminal, and nothing that it obeys."""

import json
import os
import pty
import subprocess
import sys
from io import StringIO
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from adcore.deliverylog.record import FORMS
from adtools.control import Host
from adtools.terminal import printable
from adtools.top import view
from tests.process import PATIENCE_S, adctl, environment
from tests.records import click
from tests.tools.statuses import status

# Title, colour, clear, C1's CSI, bell, backspace, carriage return, right-to-left override, delete, a tag.
HOSTILE = "a\x1b]0;t\x07b\x1b[31mc\x1b[2Jd\x9b1me\x08f\rg\u202eh\x7fi\U000e0041j"
CONTROLS = {"\x1b", "\x07", "\x9b", "\x08", "\u202e", "\x7f", "\U000e0041"}


def on_a_terminal(*args: str, **variables: str) -> str:
    """What adctl writes to a terminal, stderr with it."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "adtools", *args],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment(TERM="xterm-256color", **variables),
    ) as child:
        os.close(theirs)
        written = b""
        try:
            while data := os.read(ours, 1 << 16):
                written += data
        except OSError:  # the other end is closed
            pass
        child.wait(PATIENCE_S)
    os.close(ours)
    return written.decode()


def test_what_prints_is_left_alone_and_json_stays_the_same() -> None:
    plain = "déjà vu\t漫画\n{}"
    assert printable(plain) == plain
    assert printable(HOSTILE).isprintable()
    text = json.dumps(HOSTILE, ensure_ascii=False)
    assert json.loads(printable(text)) == HOSTILE
    assert printable("\ud800") == "\\ud800"


@pytest.mark.parametrize("form", sorted(FORMS))
def test_log_cat_shows_hostile_records_as_text(tmp_path: Path, form: str) -> None:
    path = tmp_path / "delivery.log"
    record = msgspec.structs.replace(click(), placement=HOSTILE, campaign=HOSTILE, host=HOSTILE)
    unknown = FORMS["json"].encode(record).replace(b'"click"', '"x\u202e\x9b"'.encode())
    path.write_bytes(FORMS[form].encode(record) + unknown)
    for options in ((), ("--json",)):
        shown = on_a_terminal("log", "cat", *options, str(path))
        assert not CONTROLS & set(shown), shown
        assert "\\u001b[31mc" in shown
        assert "are no record" in shown
        assert shown.count("\r") == shown.count("\r\n")
    # A program gets it as it is.
    piped = adctl("log", "cat", "--json", str(path))
    assert json.loads(piped.stdout.splitlines()[0])["placement"] == HOSTILE


def test_errors_show_hostile_names_as_text(tmp_path: Path) -> None:
    for args in (
        ("apply", "--source", f"sqlite:///{tmp_path}/a.db", HOSTILE),
        ("explain", "--inventory", HOSTILE, "a=b"),
    ):
        shown = on_a_terminal(*args)
        assert shown
        assert not CONTROLS & set(shown), shown


def test_top_shows_hostile_names_as_text() -> None:
    found = status()
    found["campaigns"] = [{"campaign": HOSTILE, "impressions_today": 1, "clicks_today": 1}]
    found["process"]["host"] = HOSTILE
    console = Console(file=StringIO(), width=200)
    console.print(view(Host(found)))
    assert isinstance(console.file, StringIO)
    text = console.file.getvalue()
    assert not CONTROLS & set(text), text
    assert text.count("\\u001b[31mc") == 2
