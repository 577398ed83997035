"""A transport and a loop that do nothing by themselves: bytes and time move when the test says so."""

import asyncio
import socket
from collections.abc import Callable
from copy import copy
from typing import Any, NamedTuple

from adcore.http1.protocol import Handler, Http1Protocol, Http1Server, Limits
from adcore.http1.request import Request
from adcore.http1.response import Response, respond

READ_BYTES = 16 * 1024


class FakeTimer:
    def __init__(self, when: float, callback: Callable[[], object]) -> None:
        self.when = when
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class FakeLoop:
    def __init__(self) -> None:
        self.now = 1000.0
        self.timers: list[FakeTimer] = []
        self.soon: list[Callable[[], object]] = []

    def time(self) -> float:
        return self.now

    def call_soon(self, callback: Callable[[], object]) -> None:
        self.soon.append(callback)

    def call_at(self, when: float, callback: Callable[[], object]) -> FakeTimer:
        timer = FakeTimer(when, callback)
        self.timers.append(timer)
        return timer

    def turn(self) -> None:
        soon, self.soon = self.soon, []
        for callback in soon:
            callback()

    def pass_time(self, seconds: float) -> None:
        """Move the clock, firing each timer at its time."""
        end = self.now + seconds
        while due := [timer for timer in self.timers if not timer.cancelled and timer.when <= end]:
            timer = min(due, key=lambda timer: timer.when)
            self.timers.remove(timer)
            self.now = max(self.now, timer.when)
            timer.callback()
        self.now = end


class Socket(NamedTuple):
    family: int


class FakeTransport(asyncio.Transport):
    """Keeps what is written; `stuck` makes it a peer that never reads."""

    def __init__(self, peername: object = "", family: int = socket.AF_UNIX) -> None:
        super().__init__({"peername": peername, "socket": Socket(family)})
        self.writes: list[bytes] = []
        self.reading = True
        self.stuck = False
        self.ended = ""
        self.protocol: Any = None
        self.high = 0

    def write(self, data: Any) -> None:
        assert not self.ended, "written after the end"
        self.writes.append(bytes(data))
        if self.stuck and sum(map(len, self.writes)) > self.high:
            self.protocol.pause_writing()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        assert high is not None
        assert low is not None
        self.high = high

    def get_write_buffer_size(self) -> int:
        return sum(map(len, self.writes)) if self.stuck else 0

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def write_eof(self) -> None:
        self.ended = "eof"

    def close(self) -> None:
        self.ended = "closed"

    def abort(self) -> None:
        self.ended = "aborted"


class Connection:
    """One connection to a server, with the requests that the handler saw."""

    def __init__(
        self,
        handler: Handler | None = None,
        limits: Limits | None = None,
        transport: FakeTransport | None = None,
        **options: Any,
    ) -> None:
        self.requests: list[Request] = []
        self.answer: Handler = handler or (lambda request: respond(200, request.path))
        self.loop = FakeLoop()
        options = {"clock": lambda: 784111777.0, "stopwatch": self.loop.time, **options}
        self.server = Http1Server(self._handle, limits, loop=self.loop, **options)
        self.transport = transport or FakeTransport()
        self.protocol: Http1Protocol = self.server()
        self.transport.protocol = self.protocol
        self.protocol.connection_made(self.transport)

    def _handle(self, request: Request) -> Response:
        # As it is now: a plain one is good until the next one of its connection.
        self.requests.append(copy(request))
        return self.answer(request)

    def receive(self, *pieces: bytes) -> bytes:
        """Let the pieces arrive, each as one read at most; everything written so far."""
        for piece in pieces:
            left = piece
            while left and self.transport.reading and self.transport.ended in ("", "eof"):
                self.protocol.data_received(left[:READ_BYTES])
                self.server.end_turn()
                left = left[READ_BYTES:]
        return self.written

    @property
    def written(self) -> bytes:
        return b"".join(self.transport.writes)
