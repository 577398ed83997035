"""A process that can't serve any more ends, whatever it does with TERM."""

import subprocess
import sys

import pytest

from tests.process import PATIENCE_S, environment

WATCHED = """
import re, sys, threading, time
from adcore.notify import Notifier
from adtools.admin.watchdog import Watchdog
watchdog = Watchdog(Notifier({}), "", stuck_s=%s, request_s=%s)
def request():
    watchdog.begin()
    %s
    watchdog.end()
watchdog.start()
print("started", flush=True)
threading.Thread(target=request, daemon=True).start()
time.sleep(600)
"""
BACKTRACK = 're.match("(a+)+$", "a" * 60 + "b")'


@pytest.mark.parametrize(
    ("stuck_s", "request_s", "work", "status", "said"),
    [
        (1.0, 600.0, BACKTRACK, 1, "Timeout"),
        (600.0, 0.5, "time.sleep(600)", 70, "a request has run for"),
        (600.0, 0.5, "\n    while True: pass", 70, "a request has run for"),
    ],
    ids=["the interpreter's lock", "a wait", "a loop"],
)
def test_a_stuck_process_ends_whatever_it_does_with_term(
    stuck_s: float, request_s: float, work: str, status: int, said: str
) -> None:
    script = WATCHED % (stuck_s, request_s, work)
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    ) as process:
        _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == status
    assert said in errors
    assert "in request" in errors, "where it stood"


def test_requests_that_end_keep_no_process_from_serving() -> None:
    script = WATCHED.replace("time.sleep(600)\n", "time.sleep(2)\n") % (1.0, 0.5, "pass")
    with subprocess.Popen(
        [sys.executable, "-c", script], stderr=subprocess.PIPE, text=True, env=environment()
    ) as process:
        _, errors = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, errors) == (0, "")
