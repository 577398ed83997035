"""Ends the process when it can't serve any more, so that the service manager starts it anew.

Two things can stand still. Code that holds the interpreter's lock (a regular expression that backtracks) stops every
thread and even TERM: faulthandler's own thread, which needs no lock, then ends the process. A request that runs far
beyond its time keeps one of a few threads: the watching thread ends the process. Both write where the code stood.

Knows nothing of Django or of the web server.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from typing import TextIO

from adcore.notify import Notifier

# The interpreter's lock changes hands every 5 ms; no honest code keeps it for a second, even on a busy machine.
STUCK_S_MAX = 20.0
# Twice what a request may take by the clock that its own parts look at.
REQUEST_S_MAX = 90.0
LOOK_INTERVAL_S = 1.0
# Of sysexits.h, "internal software error": no `systemctl stop` ends so, and Restart= starts it again.
EXIT_STATUS = 70


class Watchdog:
    """One for the process; `begin` and `end` are called by the thread of each request."""

    def __init__(
        self,
        notifier: Notifier,
        status: str,
        *,
        stuck_s: float = STUCK_S_MAX,
        request_s: float = REQUEST_S_MAX,
        errors: TextIO | None = None,
    ) -> None:
        self._notifier, self._status = notifier, status
        self._stuck_s, self._request_s = stuck_s, request_s
        self._errors = errors or sys.stderr
        self._started: dict[int, float] = {}
        """The requests at work: thread, and when it began (monotonic)."""

    def start(self) -> None:
        self._arm()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def begin(self) -> None:
        self._started[threading.get_ident()] = time.monotonic()

    def end(self) -> None:
        self._started.pop(threading.get_ident(), None)

    def _arm(self) -> None:
        """Put the end of the process off. Called in vain while something holds the interpreter's lock."""
        faulthandler.dump_traceback_later(self._stuck_s, exit=True, file=self._errors)

    def _watch(self) -> None:
        pause = min(LOOK_INTERVAL_S, self._stuck_s / 4, self._notifier.watchdog_interval_s or LOOK_INTERVAL_S)
        while True:
            self._arm()
            self._notifier.alive(self._status)
            oldest = min(self._started.copy().values(), default=None)
            if oldest is not None and time.monotonic() - oldest > self._request_s:
                self._errors.write(f"adctl admin: a request has run for {self._request_s:g} s; the process ends\n")
                self._errors.flush()
                faulthandler.dump_traceback(file=self._errors)
                os._exit(EXIT_STATUS)
            time.sleep(pause)
