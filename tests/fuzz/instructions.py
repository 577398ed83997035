"""Instructions of single operations, counted exactly, whatever else the machine does.

Virtual machines rarely let perf_event_open count instructions, so callgrind does: the counting process runs under it,
and asks it, by a request that valgrind knows from others (instructions.c), to write down what was counted. Only what
happens between `start` and the last look is translated for counting; importing is not. The counted code runs some
fifty times slower than it does by itself.
"""

import ctypes
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".c")
_EVENTS = re.compile(rb"^events-1: (\d+)$", re.MULTILINE)
# Between two reads of the file of callgrind's answers it is emptied.
_ANSWERS_BYTES_MAX = 1 << 20


class CallgrindMissing(Exception):
    """Nothing can be counted here; the text says why."""


def command(folder: Path, arguments: list[str]) -> list[str]:
    """Python with these arguments, in a process that can count. `folder` holds what it needs."""
    if shutil.which("valgrind") is None:
        raise CallgrindMissing("counting instructions needs valgrind: apt-get install valgrind")
    compiler = os.environ.get("CC", "cc")
    compile_it = [compiler, "-shared", "-fPIC", "-O2", "-o", str(_library(folder)), str(SOURCE)]
    try:
        subprocess.run(compile_it, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise CallgrindMissing(f"counting instructions needs a C compiler, and there is no {compiler}") from None
    except subprocess.CalledProcessError as error:
        raise CallgrindMissing(f"counting instructions needs valgrind/callgrind.h:\n{error.stderr}") from None
    callgrind = ["--tool=callgrind", "--instr-atstart=no", "--callgrind-out-file=/dev/null"]
    return ["valgrind", *callgrind, f"--log-file={_answers(folder)}", sys.executable, *arguments]


class Counter:
    """The instructions of this process, which `command` has started. `folder` is the same."""

    def __init__(self, folder: Path) -> None:
        self._library = ctypes.PyDLL(str(_library(folder)))
        if not self._library.is_counted():
            raise CallgrindMissing("this process does not run under callgrind")
        self._answers = _answers(folder).open("r+b", buffering=0)
        self._counts = False

    def start(self) -> None:
        """Count from here on, for the rest of the process."""
        self._library.start_counting()
        self._counts = True
        self._library.begin_anew()

    def take(self) -> int:
        """Instructions since the last call, with some 1,500 of this one and the last; 0 before `start`."""
        if not self._counts:
            return 0
        self._library.write_down()
        answers = self._answers.read()
        found = _EVENTS.findall(answers)
        assert len(found) == 1, answers
        if self._answers.tell() > _ANSWERS_BYTES_MAX:
            # Valgrind appends at its own offset, and the hole behind takes no room.
            self._answers.truncate(0)
        count = int(found[0])
        self._library.begin_anew()
        return count


def _library(folder: Path) -> Path:
    return folder / "instructions.so"


def _answers(folder: Path) -> Path:
    return folder / "callgrind.log"
