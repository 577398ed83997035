"""The connection: requests in, answers out in the same order, and never more time or memory than its limits.

What arrives is parsed and answered in one go, synchronously. A plain request (plain.py) is answered by `data_received`
itself; all that is longer or odder goes to `_receive`. The answers of one turn of the event loop leave together at its
end, so that what they were answered on (`Http1Server.before_answers`) can be kept first, in one go for all of them.

No task and no future is made for a request or a connection; each connection has one timer, which is moved only when it
would come too late. After an answer that ends the connection nothing more is read as a request: the rest is taken and
dropped for a while, so that the peer gets the answer and not a reset that overtakes it (RFC 9112 9.6).

    open ──► lingering (half closed, dropping what comes) ──► gone
      └────► closing (flushing what is left) ───────────────► gone

Knows nothing of ads; a handler is given each request and gives the response.
"""

import asyncio
import logging
import socket
import time
from collections import Counter
from collections.abc import Callable
from enum import IntEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any, Protocol

from adcore.http1.histogram import Histogram
from adcore.http1.plain import PlainReader
from adcore.http1.request import Limits, Refusal, Request, RequestParser
from adcore.http1.response import Response, Tails, respond_error

__all__ = ["Handler", "Http1Protocol", "Http1Server", "Limits", "Statistics"]

log = logging.getLogger("adcore.http1")

Handler = Callable[[Request], Response]
Network = IPv4Network | IPv6Network

# A read is parsed in pieces of this size, with a look at the answers after each: of the smallest requests (26 bytes)
# 78 fit in, so that a peer that sends many at once has few more taken apart than are answered. Ordinary requests are
# smaller than a piece.
PIECE_BYTES = 2 * 1024
# Answers made before others get their turn, and one more. With an ordinary answer of 700 bytes this is 45 requests,
# half a millisecond.
OUTPUT_BYTES = 32 * 1024
# Bytes taken apart before others get their turn. The worst, chunks of blank lines, take 10 ms.
INPUT_BYTES = 64 * 1024
# Time after which others get their turn: an answer for a whole page of placements that nobody asked about yet takes
# 10 ms, and a peer can send ten such requests in a piece.
TURN_S = 0.005
# What all peers together may leave waiting: half of a request, or answers that they do not take and requests behind
# these. One can leave 64 KiB of a body, or 100 KiB of answers and 250 KiB of requests (uvloop reads that much at once).
# A parsed request with few headers takes REQUEST_BYTES. Past this those are cut that hold most, so that a crowd of
# them can't take the memory of the rest.
REQUEST_BYTES = 1024
HELD_BYTES_MAX = 64 * 1024 * 1024
# uvloop's own marks. The low one is set with it: set alone, the high one would leave the low at 16 KiB or at 0.
WRITE_HIGH_BYTES = 64 * 1024
WRITE_LOW_BYTES = 16 * 1024
# What a peer may still send after an answer that ends the connection: enough for a body sixteen times too large.
LINGER_BYTES = 1024 * 1024
# A drain waits this long for requests that are in the kernel already: at least one turn of the loop.
DRAIN_IDLE_S = 0.01
# ... and this long for the first request of a connection that was made at the last moment.
DRAIN_FIRST_REQUEST_S = 1.0
# libuv counts time in milliseconds, so that a timer may come this much early.
CLOCK_GRAIN_S = 0.001
# A handler that fails for every request must not fill the disk with tracebacks.
HANDLER_ERROR_LOG_INTERVAL_S = 1.0

STATUS_MAX = 600
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
OVERLOADED = Refusal(503, "too many connections")
TIMED_OUT = Refusal(408, "the request took too long to arrive")
CUT_SHORT = Refusal(400, "the request ended before it was complete")


class Loop(Protocol):
    """The part of an event loop that a connection uses."""

    def time(self) -> float: ...
    def call_soon(self, callback: Callable[[], object]) -> Any: ...
    def call_at(self, when: float, callback: Callable[[], object]) -> Any: ...


class Statistics:
    """What a server's connections have done. Plain numbers: reading them costs the connections nothing."""

    __slots__ = (
        "accepted",
        "handler_errors",
        "latency",
        "refused",
        "responses",
        "timeouts",
        "turned_away",
    )

    def __init__(self) -> None:
        self.accepted = 0
        self.turned_away = 0
        """Beyond Limits.connections."""
        self.latency = Histogram()
        """From the turn's first request to the leaving of its answers, for each of them."""
        self.responses = [0] * STATUS_MAX
        """By status, the connection's own included."""
        self.refused: Counter[int] = Counter()
        """Requests refused by the connection, by status."""
        self.timeouts: Counter[str] = Counter()
        """Connections ended by the clock: "request" (408), "idle", "write", "linger"; or to make room: "crowded"."""
        self.handler_errors = 0
        """Requests answered 500 because the handler raised."""

    @property
    def requests(self) -> int:
        """Given to the handler."""
        return sum(self.responses) - self.refused.total()

    def to_status(self) -> dict[str, object]:
        return {
            "accepted": self.accepted,
            "turned_away": self.turned_away,
            "requests": self.requests,
            "latency_us": self.latency.percentiles_us(),
            "responses": {str(status): count for status, count in enumerate(self.responses) if count},
            "refused": {str(status): count for status, count in sorted(self.refused.items())},
            "timeouts": dict(self.timeouts),
            "handler_errors": self.handler_errors,
        }


class Http1Server:
    """Makes the protocol of each connection, as a factory for `loop.create_server`, and ends them all in order.

    `handler` and `trusted_peers` may be replaced while it runs: requests and connections that come later get the new
    ones. `before_answers` is called before the answers of a turn leave. `loop` is the running one unless given.
    """

    __slots__ = (
        "_handler_error_logged_wall",
        "_held",
        "_held_bytes",
        "all_closed",
        "answers",
        "before_answers",
        "clock",
        "connections",
        "draining",
        "handler",
        "idle_deadline_monotonic",
        "limits",
        "loop",
        "now_wall",
        "reader",
        "statistics",
        "stopwatch",
        "tails",
        "trusted_peers",
    )

    def __init__(
        self,
        handler: Handler,
        limits: Limits | None = None,
        trusted_peers: tuple[Network, ...] = (),
        *,
        before_answers: Callable[[], None] = lambda: None,
        loop: Loop | None = None,
        clock: Callable[[], float] = time.time,
        stopwatch: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.handler = handler
        self.before_answers = before_answers
        self.limits = limits or Limits()
        self.trusted_peers = trusted_peers
        self.loop = loop
        self.statistics = Statistics()
        self.connections: set[Http1Protocol] = set()
        self.draining = False
        self.all_closed = asyncio.Event()
        """Set when the server drains and its last connection is gone."""
        self.reader = PlainReader(self.limits)
        self.clock = clock
        self.stopwatch = stopwatch
        """Tells how long one connection has had its turn."""
        self.tails = Tails(int(clock()))
        """The ends of heads for this second."""
        self._handler_error_logged_wall = float("-inf")
        self._held: dict[Http1Protocol, int] = {}
        """What waits for whom, in bytes."""
        self._held_bytes = 0

        self.now_wall: float | None = None
        """When this turn's first request was read; None before it."""
        self.idle_deadline_monotonic = 0.0
        """How long a connection that is answered in this turn may be idle."""
        self.answers: list[tuple[Http1Protocol, Response]] = []
        """Those of this turn, to plain requests."""

    def __call__(self) -> "Http1Protocol":
        return Http1Protocol(self)

    def start_drain(self) -> None:
        """Close idle connections, and every other after the answer that it waits for; then `all_closed` is set.

        The listening socket is the caller's to close first.
        """
        self.draining = True
        for connection in list(self.connections):
            connection.start_drain()
        if not self.connections:
            self.all_closed.set()

    def abort(self) -> None:
        """Cut every connection that is left, whatever it is doing."""
        for connection in list(self.connections):
            connection.abort()

    # For the connections

    def hold(self, connection: "Http1Protocol", size: int) -> None:
        """Note that `size` bytes wait for this peer now; make room if that is too much."""
        self._held_bytes += size - self._held.get(connection, 0)
        self._held[connection] = size
        if self._held_bytes > HELD_BYTES_MAX:
            self._make_room()

    def _make_room(self) -> None:
        """Cut those that hold most, of equal ones the first; a quarter at once, so that there is room for a while."""
        for connection in sorted(self._held, key=self._held.__getitem__, reverse=True):
            if self._held_bytes <= HELD_BYTES_MAX * 3 // 4:
                break
            self.release(connection)
            self.statistics.timeouts["crowded"] += 1
            connection.abort()

    def release(self, connection: "Http1Protocol") -> None:
        """Nothing waits for it any more."""
        self._held_bytes -= self._held.pop(connection, 0)

    def begin_turn(self) -> float:
        """Look at the clocks, once for all requests of a turn; `now_wall`."""
        if self.now_wall is None:
            assert self.loop is not None
            now_wall = self.now_wall = self.clock()
            self.idle_deadline_monotonic = self.loop.time() + self.limits.idle_s
            if not 0 <= now_wall - self.tails.second_wall < 1:
                self.tails = Tails(int(now_wall))
            # Called when all that can be read now was read, and before the loop waits again.
            self.loop.call_soon(self.end_turn)
        return self.now_wall

    def end_turn(self) -> None:
        """Let the answers leave. Those that a connection writes by itself come after a call of this."""
        began_wall = self.now_wall
        if began_wall is None:
            return
        self.now_wall = None
        answers, self.answers = self.answers, []
        self.before_answers()
        tail = self.tails.keep
        statuses = self.statistics.responses
        for connection, response in answers:
            connection.transport.write(b"".join((response.head, tail, response.body)))
            statuses[response.status] += 1
        self.statistics.latency.add(self.clock() - began_wall, len(answers))

    def identify_peer(self, transport: asyncio.BaseTransport) -> tuple[str, bool]:
        """The peer's IP address ("" on a unix socket), and whether it may speak for others."""
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family == socket.AF_UNIX:
            return "", True
        peername = transport.get_extra_info("peername")
        if not peername:  # gone again already
            return "", False
        address: IPv4Address | IPv6Address = ip_address(peername[0])
        if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped  # a listener on :: serves IPv4 as well
        return str(address), any(address in network for network in self.trusted_peers)

    def on_handler_error(self, request: Request, now_wall: float) -> Response:
        """Called while the exception is being handled."""
        self.statistics.handler_errors += 1
        if not 0 <= now_wall - self._handler_error_logged_wall < HANDLER_ERROR_LOG_INTERVAL_S:
            self._handler_error_logged_wall = now_wall
            log.exception(
                "the handler failed on %r %r (%d failures so far; one a second is logged)",
                request.method,
                request.path,
                self.statistics.handler_errors,
            )
        return respond_error(500, "internal error")

    def on_connection_gone(self, connection: "Http1Protocol") -> None:
        self.connections.discard(connection)
        if self.answers:
            self.answers = [answer for answer in self.answers if answer[0] is not connection]
        if self.draining and not self.connections:
            self.all_closed.set()


class Phase(IntEnum):
    OPEN = 0
    LINGERING = 1
    CLOSING = 2


class Http1Protocol(asyncio.Protocol):
    """One connection.

    (An asyncio.BufferedProtocol spares uvloop a bytes object for each read, and costs two calls into Python and a
    copy: it was 0.3 µs slower.)
    """

    __slots__ = (  # noqa: RUF023
        # The connection
        "_deadline_monotonic",
        "_loop",
        "_parser",
        "_phase",
        "_request",
        "_server",
        "_timer",
        "_timer_monotonic",
        "transport",
        # The request being read, and the answers under way
        "_at_start",
        "_dropped_bytes",
        "_reads_request",
        "_unanswered",
        "_unread",
        "_write_paused",
    )

    _loop: Loop
    _parser: RequestParser
    _request: Request
    transport: Any  # asyncio.Transport; uvloop's does not derive from it

    def __init__(self, server: Http1Server) -> None:
        self._server = server
        self._phase = Phase.OPEN
        self._timer: Any = None
        self._timer_monotonic = 0.0
        self._deadline_monotonic = 0.0
        self._at_start = False
        """Whether the next byte begins a request, and nothing stands in the way of answering it."""
        self._reads_request = False
        self._unanswered: list[Request] = []
        self._unread = b""
        """Parsed, and read, and waiting until earlier answers have left. Nothing more is read meanwhile."""
        self._write_paused = False
        self._dropped_bytes = 0

    # Protocol interface

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        server = self._server
        self.transport = transport
        loop = server.loop
        if loop is None:
            loop = server.loop = asyncio.get_running_loop()
        self._loop = loop
        self.transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES, low=WRITE_LOW_BYTES)
        peer, trusted = server.identify_peer(transport)
        self._parser = RequestParser(server.limits, peer, trusted)
        self._request = Request(peer=peer, trusted=trusted)
        server.connections.add(self)
        if len(server.connections) > server.limits.connections:
            server.statistics.turned_away += 1
            self._refuse(OVERLOADED)
            self._close()
            return
        server.statistics.accepted += 1
        self._at_start = True
        self._set_deadline(DRAIN_FIRST_REQUEST_S if server.draining else server.limits.idle_s)

    def data_received(self, data: bytes) -> None:
        if self._at_start:
            server = self._server
            request = self._request
            if server.reader.read(data, request):
                request.time = server.now_wall or server.begin_turn()
                try:
                    response = server.handler(request)
                except Exception:
                    response = server.on_handler_error(request, request.time)
                if response.close or server.draining or request.line.method == b"HEAD":
                    self._finish(request, response)
                else:
                    server.answers.append((self, response))
                    # The timer is there, and sees that its time has moved when it goes off.
                    self._deadline_monotonic = server.idle_deadline_monotonic
                return
        if self._phase is Phase.OPEN:
            self._receive(data)
        else:
            self._dropped_bytes += len(data)
            if self._dropped_bytes > LINGER_BYTES:
                self.transport.abort()

    def eof_received(self) -> bool:
        if self._phase is Phase.OPEN:
            if self._parser.begun:
                self._refuse(CUT_SHORT)
            self._close()
        return False  # the transport flushes what is left, and closes

    def pause_writing(self) -> None:
        self._write_paused = True
        self._at_start = False
        if self._phase is Phase.OPEN:
            self.transport.pause_reading()
            self._set_deadline(self._server.limits.write_s)
            self._server.hold(self, self.transport.get_write_buffer_size() + self._waiting_bytes)

    def resume_writing(self) -> None:
        self._write_paused = False
        self._server.release(self)
        if self._phase is Phase.OPEN:
            self._wait_for_request()
            self._read_on()

    def connection_lost(self, exc: Exception | None) -> None:
        self._phase = Phase.CLOSING
        self._let_go()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._at_start = False
        self._parser.close()
        self._server.on_connection_gone(self)

    # Draining

    def start_drain(self) -> None:
        """Close soon if nothing is under way; what is under way will see `draining` when it is answered."""
        if self._phase is Phase.OPEN and not (
            self._reads_request or self._unanswered or self._unread or self._write_paused
        ):
            # A deadline that no request has moved: its client may only just have connected.
            is_new = self._deadline_monotonic == self._timer_monotonic
            self._set_deadline(DRAIN_FIRST_REQUEST_S if is_new else DRAIN_IDLE_S)

    def abort(self) -> None:
        self._phase = Phase.CLOSING
        self._at_start = False
        self.transport.abort()

    # Answering

    def _finish(self, request: Request, response: Response) -> None:
        """Send an answer that has no body or ends the connection."""
        out: list[bytes] = []
        end = self._encode(request, response, True, out)
        self._write(out)
        if end is None:
            self._wait_for_request()
        else:
            self._close()

    def _receive(self, data: bytes, goes_on: bool = False) -> None:
        """Parse and answer `data`, or as much of it as may be answered now, after what waited; it may go on a read."""
        self._at_start = False
        out: list[bytes] = []
        stopwatch = self._server.stopwatch
        until = stopwatch() + TURN_S
        end = self._answer(out, until) if self._unanswered else None
        rest_bytes = len(data) - INPUT_BYTES
        while data and end is None and not self._unanswered:
            self._unanswered = self._parser.feed(data[:PIECE_BYTES])
            data = data[PIECE_BYTES:]
            end = self._answer(out, until)
            if sum(map(len, out)) > OUTPUT_BYTES or len(data) <= rest_bytes or stopwatch() > until:
                break
        if end is None:
            self._unread = data
        elif data:
            end = Phase.LINGERING
        if out:
            self._write(out)
            if self._phase is not Phase.OPEN:  # cut, because it takes nothing
                return
        if end is Phase.LINGERING:
            self._linger()
        elif end is Phase.CLOSING:
            self._close()
        elif self._unread or self._unanswered:
            self.transport.pause_reading()
            if not self._write_paused:
                self._server.hold(self, self._waiting_bytes)
                self._loop.call_soon(self._read_on)
        elif not self._write_paused and (out or self._parser.begun or goes_on):
            self._wait_for_request()
        elif not self._write_paused:  # an empty line: it moves no deadline
            self._at_start = not self._parser.is_within_line_end

    def _answer(self, out: list[bytes], until: float) -> Phase | None:
        """Put the answers to what is parsed into `out`, as many as may be made now; how the connection ends after them.

        Then `_unanswered` is empty, unless some have to wait, since there is much output or it is past `until`.
        """
        parser = self._parser
        requests, self._unanswered = self._unanswered, []
        if requests:
            self._reads_request = False
            server = self._server
            size = sum(map(len, out))
            for position, request in enumerate(requests, 1):
                request.time = server.begin_turn()
                try:
                    response = server.handler(request)
                except Exception:
                    response = server.on_handler_error(request, request.time)
                is_last = position == len(requests)
                if self._encode(request, response, is_last, out) is not None:
                    more_came = not is_last or parser.begun or parser.surplus or parser.refusal is not None
                    return Phase.LINGERING if more_came else Phase.CLOSING
                size += len(response.head) + len(response.body)
                if not is_last and (size > OUTPUT_BYTES or server.stopwatch() > until):
                    self._unanswered = requests[position:]
                    return None
        if parser.refusal is not None:
            self._encode_refusal(parser.refusal, out)
            return Phase.LINGERING
        if parser.awaits_continue:
            parser.awaits_continue = False
            out.append(CONTINUE)
        return None

    def _encode(self, request: Request, response: Response, is_last: bool, out: list[bytes]) -> Phase | None:
        """Put the answer into `out`; whether and how the connection ends after it."""
        server = self._server
        server.statistics.responses[response.status] += 1
        tails = server.tails
        ends = not request.keep_alive or response.close or (server.draining and is_last)
        out += (response.head, tails.close if ends else tails.keep_http10 if request.http10 else tails.keep)
        if request.line.method != b"HEAD":
            out.append(response.body)
        return Phase.CLOSING if ends else None

    def _read_on(self) -> None:
        """Take up again what waited until earlier answers had left."""
        if self._phase is not Phase.OPEN or self._write_paused:
            return
        data, self._unread = self._unread, b""
        self.transport.resume_reading()
        if data or self._unanswered:
            self._receive(data, goes_on=True)

    def _refuse(self, refusal: Refusal) -> None:
        out: list[bytes] = []
        self._encode_refusal(refusal, out)
        self._write(out)

    def _encode_refusal(self, refusal: Refusal, out: list[bytes]) -> None:
        counts = self._server.statistics
        counts.refused[refusal.status] += 1
        counts.responses[refusal.status] += 1
        response = respond_error(refusal.status, refusal.reason)
        self._server.begin_turn()
        out += (response.head, self._server.tails.close)
        if not self._parser.reads_head_request:
            out.append(response.body)

    def _write(self, out: list[bytes]) -> None:
        self._server.end_turn()
        self.transport.write(b"".join(out))

    # Ending

    def _linger(self) -> None:
        """Say that nothing more will come, and drop what the peer still sends until it has seen that."""
        self._server.end_turn()
        if self._phase is not Phase.OPEN:  # cut, because of what it did not take
            return
        self._phase = Phase.LINGERING
        self._at_start = False
        self._let_go()
        self.transport.write_eof()
        self.transport.resume_reading()
        self._set_deadline(self._server.limits.linger_s)

    def _close(self) -> None:
        self._server.end_turn()
        self._phase = Phase.CLOSING
        self._at_start = False
        self._let_go()
        self.transport.close()
        self._set_deadline(self._server.limits.write_s)

    @property
    def _waiting_bytes(self) -> int:
        return len(self._unread) + len(self._unanswered) * REQUEST_BYTES

    def _let_go(self) -> None:
        """Nothing that waits will be answered."""
        self._unanswered = []
        self._unread = b""
        self._server.release(self)

    # Timers

    def _wait_for_request(self) -> None:
        """Wait for the next request, or for the rest of one."""
        limits = self._server.limits
        if not self._parser.begun:
            self._server.release(self)
            self._at_start = not (self._write_paused or self._parser.is_within_line_end)
            self._reads_request = False
            self._set_deadline(DRAIN_IDLE_S if self._server.draining else limits.idle_s)
        else:
            self._server.hold(self, self._parser.received_bytes)
            if not self._reads_request:
                self._reads_request = True
                self._set_deadline(limits.request_s)

    def _set_deadline(self, delay_s: float) -> None:
        """Only a deadline before the timer's touches the timer; a later one is seen when that goes off."""
        deadline_monotonic = self._deadline_monotonic = self._loop.time() + delay_s
        if self._timer is None or deadline_monotonic < self._timer_monotonic:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_monotonic = deadline_monotonic
            self._timer = self._loop.call_at(deadline_monotonic, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        if self._deadline_monotonic - self._loop.time() > CLOCK_GRAIN_S:
            self._timer_monotonic = self._deadline_monotonic
            self._timer = self._loop.call_at(self._deadline_monotonic, self._on_timer)
        elif self._phase is Phase.OPEN:
            self._on_deadline()
        else:
            if self._phase is Phase.LINGERING:
                self._server.statistics.timeouts["linger"] += 1
            else:
                self._server.statistics.timeouts["write"] += 1
            self.transport.abort()

    def _on_deadline(self) -> None:
        timeouts = self._server.statistics.timeouts
        if self._write_paused:
            timeouts["write"] += 1
            self.transport.abort()
        elif self._reads_request:
            timeouts["request"] += 1
            self._refuse(TIMED_OUT)
            self._linger()
        else:
            if not self._server.draining:
                timeouts["idle"] += 1
            self._close()
