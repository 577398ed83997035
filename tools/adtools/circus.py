"""Hooks for Circus (tools/circus/adcore.ini): a worker that has started is waited for until it says that it is ready.

Circus takes a process for ready as soon as it exists: a reload would end the old workers while the new ones still
import their modules, and end them too when the new ones cannot start. adcore says when it is ready, by the protocol
of systemd's `Type=notify`; here is who listens. circusd does nothing else while it waits, so the wait is bounded.

Runs inside circusd and imports nothing of it.
"""

import logging
import os
import socket
import struct
import time
from typing import Any

log = logging.getLogger("circus")

# A start takes half a second; one that must wait for its store may take this long before it counts as failed.
READY_TIMEOUT_S = 10.0
POLL_S = 0.05
# struct ucred: pid, uid, gid.
CREDENTIALS = struct.Struct("3i")

_heard: socket.socket | None = None


def before_spawn(watcher: Any, **_: object) -> bool:
    """Give the worker to come a NOTIFY_SOCKET."""
    watcher.env["NOTIFY_SOCKET"] = "@" + _name()
    _messages()  # what the others have said meanwhile: the kernel keeps a few, and then takes no more
    return True


def after_spawn(watcher: Any, pid: int, **_: object) -> bool:
    """Wait until the worker is ready. False, at which Circus ends it, only if there is an old one that can stay."""
    if _becomes_ready(pid):
        return True
    replaces_another = len(watcher.processes) > watcher.numprocesses
    what = "it is ended and the old one stays" if replaces_another else "it is left to try"
    log.error("the worker %d of %s is not ready after %g s: %s", pid, watcher.name, READY_TIMEOUT_S, what)
    return not replaces_another


def _name() -> str:
    return f"adcore-circusd-{os.getpid()}"


def _socket() -> socket.socket:
    global _heard
    if _heard is None:
        _heard = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        # Any user may send to an abstract name; the kernel says which process did.
        _heard.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        _heard.bind("\0" + _name())
        _heard.setblocking(False)
    return _heard


def _becomes_ready(pid: int) -> bool:
    deadline_monotonic = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline_monotonic and _is_running(pid):
        if any(sender == pid and "READY=1" in lines for sender, lines in _messages()):
            return True
        time.sleep(POLL_S)
    return False


def _messages() -> list[tuple[int, list[str]]]:
    """What has come since the last look: the sender's pid, and the lines."""
    found = []
    try:
        while True:
            data, ancillary, _, _ = _socket().recvmsg(4096, socket.CMSG_SPACE(CREDENTIALS.size))
            for level, kind, credentials in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
                    sender = CREDENTIALS.unpack(credentials[: CREDENTIALS.size])[0]
                    found.append((sender, data.decode(errors="replace").split("\n")))
    except BlockingIOError:
        return found


def _is_running(pid: int) -> bool:
    """Not ended: circusd, which waits here, has not yet collected the exit status of one that has."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
