"""Tells the service manager how this process is doing: sd_notify(3), the protocol of systemd's `Type=notify`.

One datagram to the unix socket that NOTIFY_SOCKET names, some `NAME=value` lines in it. Nothing here raises or waits:
a manager that is gone or busy must not touch the serving. Without NOTIFY_SOCKET every call does nothing.

Knows nothing of what it reports.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable, MutableMapping
from typing import NoReturn

from adcore.ticks import until_tick

log = logging.getLogger("adcore.notify")

# How often the manager hears of us; more often if it watches over the event loop.
REPORT_INTERVAL_S = 5.0
# systemd reads one page; a longer message is thrown away whole.
STATUS_CHARACTERS_MAX = 500


class Notifier:
    """The way to the manager that started this process.

    Takes NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID out of `environ`: no child may speak or be watched in our place.
    `watchdog_interval_s` is how often `alive` must be called, twice in the time after which systemd kills; None when
    it does not watch this process.
    """

    __slots__ = ("_address", "_ready_undelivered", "_socket", "watchdog_interval_s")

    def __init__(self, environ: MutableMapping[str, str] = os.environ) -> None:
        name = environ.pop("NOTIFY_SOCKET", "")
        self.watchdog_interval_s = _watchdog_interval_s(environ)
        self._ready_undelivered = False
        self._socket: socket.socket | None = None
        # "@name" is the abstract socket "\0name".
        self._address = "\0" + name[1:] if name.startswith("@") else name
        if name.startswith(("@", "/")):
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.setblocking(False)
        elif name:
            log.warning("NOTIFY_SOCKET is %r, and only a path or @name is understood: nothing is reported there", name)

    @property
    def wanted(self) -> bool:
        """Whether a manager waits to hear from us."""
        return self._socket is not None

    def ready(self, status: str) -> None:
        """Started, or done with a reload: requests may come. A manager that can't take this now hears it later."""
        error = self._send("READY=1", _status(status))
        self._ready_undelivered = error is not None
        if error is not None:
            log.warning("the service manager does not take READY at its NOTIFY_SOCKET (%s); it is said again", error)

    def reloading(self) -> None:
        """Until the next `ready`."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self, status: str) -> None:
        self._ready_undelivered = False
        self._send("STOPPING=1", _status(status))

    def alive(self, status: str) -> None:
        """The event loop turns."""
        lines = [_status(status)]
        if self.watchdog_interval_s is not None:
            lines.append("WATCHDOG=1")
        if self._ready_undelivered:
            lines.append("READY=1")
        if self._send(*lines) is None:
            self._ready_undelivered = False

    async def report(self, status: Callable[[], str]) -> NoReturn:
        """Show that the event loop turns, until cancelled."""
        while True:
            self.alive(status())
            await asyncio.sleep(until_tick(min(REPORT_INTERVAL_S, self.watchdog_interval_s or REPORT_INTERVAL_S)))

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, *lines: str) -> str | None:
        """What went wrong; None also when there is nobody to tell."""
        if self._socket is not None:
            try:
                self._socket.sendto("\n".join(lines).encode(), self._address)
            except OSError as error:
                return os.strerror(error.errno or 0)
        return None


def _status(text: str) -> str:
    """One line, whatever the text: an error quoted in it must not add a field of its own."""
    return "STATUS=" + "".join(c if c.isprintable() else " " for c in text[:STATUS_CHARACTERS_MAX])


def _watchdog_interval_s(environ: MutableMapping[str, str]) -> float | None:
    microseconds, pid = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
    if pid not in ("", str(os.getpid())) or not (microseconds.isascii() and microseconds.isdigit()):
        return None
    return int(microseconds) / 2e6 or None
