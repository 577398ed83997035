"""Starts a server's processes as forks of one that has imported all they need, so that they share its memory.

Half of a worker's memory, and nearly all of the time that its start takes, are modules and compiled expressions, the
same in each. The fork server imports them once; a fork shares its pages until it writes to them, and is there within
milliseconds. It has one thread and no event loop: a fork has only the thread that forks, and no lock of another one
stays held in it.

Requests come from the parent (for workers) and from workers (for their helpers) over one shared SOCK_SEQPACKET pair.
The fork server exits once all ends of that are closed and all its processes are reaped. A request is a JSON object,
with descriptors. Of these the first is a `line`, for the answers; the others are the new process's own.

    line ◄── pid, with a pidfd          the process is there
    line ──► GO                         it may begin; it exits if the line is closed instead
    line ◄── error                      there is none
    line ◄── status                     it has ended, with this status (negative: by that signal)

So a request whose asker has given up starts nothing, however late it is read. A line that ends without a status is that
of a fork server that was killed; the pidfd still says when the process ends.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import socket
import threading
from collections.abc import MutableMapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from adcore.errors import StartError

# Not ADCORE_*: it is no setting, and only a parent gives it.
VARIABLE = "_ADCORE_FORK_SERVER"
REQUEST_BYTES_MAX = 64 << 10
DESCRIPTORS_MAX = 16
GO = b"g"
# Timeouts for the answer to a request and for a status, which normally take milliseconds.
START_S = 10.0
STATUS_S = 5.0
# The kernel's own bound for the name of a process, as `ps -o comm` and `top` show it (proc(5)).
NAME_CHARACTERS_MAX = 15


class ForkError(StartError):
    """The fork server could not start the process, or is gone."""


class Task(NamedTuple):
    """The request that a fork was made for, and the descriptors that came with it."""

    request: dict[str, Any]
    fds: list[int]


class Forked:
    """A process that the fork server has started, as its requester sees it."""

    def __init__(self, line: socket.socket, pid: int, pidfd: int) -> None:
        self.pid = pid
        self.pidfd = pidfd
        """Readable from the process's end on."""
        self.line = line
        self._lock = threading.Lock()
        self._is_gone = False

    def send_signal(self, number: int) -> None:
        """As Popen.send_signal: nothing happens to one that has ended. Any thread may call this."""
        with self._lock, suppress(ProcessLookupError):
            if not self._is_gone:
                signal.pidfd_send_signal(self.pidfd, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self, status_s: float = STATUS_S) -> int | None:
        """Block until it has ended; the status, as Popen.returncode has it.

        None if the fork server was killed, or has not reported it within `status_s` after the end.
        """
        is_readable(self.pidfd)
        status = None
        with suppress(OSError, ValueError):
            self.line.settimeout(status_s)
            try:
                answer = self.line.recv(REQUEST_BYTES_MAX)
            except ConnectionResetError:  # killed before it took GO: the status is behind that error
                answer = self.line.recv(REQUEST_BYTES_MAX)
            status = int(json.loads(answer)["status"])
        with self._lock:
            self._is_gone = True
            self.line.close()
            os.close(self.pidfd)
        return status


class ForkClient:
    """The socket to the fork server, at the end of those who ask. Any thread may."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def start(self, request: dict[str, Any], fds: Sequence[int]) -> Forked:
        """Start a process, and wait until it is there. Raises ForkError."""
        line = self.ask(request, fds)
        if is_readable(line.fileno(), START_S):
            return read_answer(line)
        line.close()
        raise ForkError(f"the fork server has not answered within {START_S:.0f} s")

    def ask(self, request: dict[str, Any], fds: Sequence[int]) -> socket.socket:
        """Send a request; the line on which it is answered. Raises ForkError."""
        mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with its:
            try:
                socket.send_fds(self.sock, [json.dumps(request).encode()], [its.fileno(), *fds], socket.MSG_DONTWAIT)
            except OSError as error:
                mine.close()
                raise ForkError(f"the fork server cannot be asked: {error.strerror}") from error
        return mine

    def close(self) -> None:
        self.sock.close()


def read_answer(line: socket.socket) -> Forked:
    """The process, once the line is readable. Raises ForkError, with the line closed."""
    error = "it has ended"
    fds: list[int] = []
    with suppress(OSError):
        data, fds, _, _ = socket.recv_fds(line, REQUEST_BYTES_MAX, 1, socket.MSG_CMSG_CLOEXEC)
        answer: dict[str, Any] = json.loads(data) if data else {"error": error}
        if fds:
            line.send(GO)
            return Forked(line, answer["pid"], fds[0])
        error = answer.get("error", "the process's descriptor did not arrive (is the limit on open files reached?)")
    line.close()
    for fd in fds:
        os.close(fd)
    raise ForkError(f"the fork server has started nothing: {error}")


def is_readable(fd: int, within_s: float | None = None) -> bool:
    """Wait until it is readable; False after `within_s`."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(None if within_s is None else within_s * 1000))


def take(environ: MutableMapping[str, str] = os.environ) -> socket.socket | None:
    """The socket of this process if it shall be a fork server. Takes it out of `environ`. Raises StartError."""
    text = environ.pop(VARIABLE, None)
    if text is None:
        return None
    try:
        sock = socket.socket(fileno=int(text))
        sock.set_inheritable(False)
        if sock.family == socket.AF_UNIX and sock.type == socket.SOCK_SEQPACKET:
            return sock
    except (ValueError, OverflowError, OSError):
        pass
    raise StartError(f"{VARIABLE} is for processes that adcore starts itself: unset it")


def serve(requests: socket.socket) -> Task | None:
    """Fork for each request. Returns in each fork, with what it is for, and None in the fork server at its end."""
    # A collection in a fork would write to these shared pages.
    gc.collect()
    gc.freeze()
    return ForkServer(requests).run()


class ForkServer:
    """The fork server, in its own process."""

    def __init__(self, requests: socket.socket) -> None:
        self._requests = requests
        self._poll = select.poll()
        self._poll.register(requests, select.POLLIN)
        self._living: dict[int, tuple[int, socket.socket]] = {}
        """The pid and the line of each process, by its pidfd."""

    def run(self) -> Task | None:
        while self._requests.fileno() >= 0 or self._living:
            for fd, _ in self._poll.poll():
                if fd in self._living:
                    self._see_off(fd)
                    continue
                try:
                    data, fds, _, _ = socket.recv_fds(
                        self._requests, REQUEST_BYTES_MAX, DESCRIPTORS_MAX, socket.MSG_CMSG_CLOEXEC
                    )
                except OSError:  # without a free descriptor the request is lost, and its line with it
                    continue
                if not data:
                    self._poll.unregister(self._requests)
                    self._requests.close()
                    break
                if not fds:
                    continue
                line, *own = fds
                if self._fork(socket.socket(fileno=line)):
                    return Task(json.loads(data), own)
                for one in own:
                    os.close(one)
        return None

    def _fork(self, line: socket.socket) -> bool:
        """Whether this is the fork."""
        try:
            pid = os.fork()
        except OSError as error:
            return self._refuse(line, error)
        if pid == 0:
            self._leave()
            wait_for_go(line)
            return True
        try:
            pidfd = os.pidfd_open(pid)
        except OSError as error:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return self._refuse(line, error)
        self._living[pidfd] = pid, line
        self._poll.register(pidfd, select.POLLIN)
        _say(line, {"pid": pid}, pidfd)
        return False

    def _refuse(self, line: socket.socket, error: OSError) -> bool:
        with line:
            _say(line, {"error": error.strerror})
        return False

    def _leave(self) -> None:
        """In the fork: close what belongs to the fork server and to other processes."""
        self._requests.close()
        for pidfd, (_, line) in self._living.items():
            os.close(pidfd)
            line.close()

    def _see_off(self, pidfd: int) -> None:
        """Reap the process and report its status."""
        pid, line = self._living.pop(pidfd)
        self._poll.unregister(pidfd)
        os.close(pidfd)
        _, status = os.waitpid(pid, 0)
        with line:
            _say(line, {"status": os.waitstatus_to_exitcode(status)})


def wait_for_go(line: socket.socket) -> None:
    """In the fork: exit if the requester has given up."""
    go = b""
    with suppress(OSError), line:
        go = line.recv(len(GO))
    if go != GO:
        os._exit(0)


def _say(line: socket.socket, answer: dict[str, object], *fds: int) -> None:
    with suppress(OSError):  # the requester is gone
        socket.send_fds(line, [json.dumps(answer).encode()], fds, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


def name_process(name: str) -> None:
    """Have `ps` and `top` show what this process is, whose command line is that of the one it was forked from."""
    with suppress(OSError):
        Path("/proc/self/comm").write_text(name[:NAME_CHARACTERS_MAX])
