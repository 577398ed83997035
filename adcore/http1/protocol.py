"""One connection: bytes in, requests to the handler, responses out in the order of the requests.

The handler is synchronous and never waits, so pipelined requests are answered in order by answering each as soon as it
is complete; everything that one read completes goes out in one write. There is no task per connection or request: a
lazily re-armed timer watches each connection, and reading stops while the peer does not take what we wrote.

After an answer to something that was no request nothing more is read as a request: the connection is shut for writing
and what still arrives is thrown away for a moment, so that the peer gets to see the answer (RFC 9112, 9.6).
"""

import asyncio
import logging
import re
import time
from collections import Counter
from collections.abc import Callable
from email.utils import formatdate
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import NamedTuple, cast

import httptools

from adcore.http1.request import (
    BODY_BYTES_MAX,
    HEADER_BYTES_MAX,
    HEADERS_MAX,
    REQUEST_LINE_BYTES_MAX,
    Refused,
    Request,
    add_header,
    check_head,
    check_header_size,
    check_trailer,
)
from adcore.http1.response import Response, plain_error

log = logging.getLogger("adcore.http1")

Handler = Callable[[Request], Response]
Network = IPv4Network | IPv6Network

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_TOKEN_AND_SPACE = re.compile(rb"(?:\r?\n)*[!#$%&'*+.^_`|~0-9A-Za-z][!#$%&'*+.^_`|~0-9A-Za-z-]* ")
# Chunks may be of one byte in six; beyond this the framing is not there to carry a body.
_CHUNKED_BYTES_MAX = 8 * BODY_BYTES_MAX
_HEAD_BYTES_MAX = REQUEST_LINE_BYTES_MAX + HEADER_BYTES_MAX
# What the peer may leave unread before we stop reading from it, and where we start again. A decision is 1 KiB.
_WRITE_BUFFER_HIGH = 256 * 1024
_WRITE_BUFFER_LOW = 64 * 1024


class Limits(NamedTuple):
    """Seconds."""

    request_s: float = 10.0
    """From the first byte of a request to its last."""
    idle_s: float = 75.0
    """Between requests; above the 60 s for which nginx keeps an upstream connection."""
    write_s: float = 30.0
    """For which a peer may leave a full write buffer untouched."""
    linger_s: float = 2.0
    """For which what arrives after our last answer is thrown away."""


class Statistics:
    __slots__ = ("accepted", "handler_errors", "refused", "requests", "responses", "timeouts")

    def __init__(self) -> None:
        self.accepted = 0
        self.requests = 0
        self.responses: Counter[int] = Counter()
        """By status, of requests that reached the handler."""
        self.refused: Counter[int] = Counter()
        """By status, of what was no request or over a limit."""
        self.timeouts: Counter[str] = Counter()
        self.handler_errors = 0

    def to_status(self) -> dict[str, object]:
        return {
            "accepted": self.accepted,
            "requests": self.requests,
            "responses": {str(status): count for status, count in sorted(self.responses.items())},
            "refused": {str(status): count for status, count in sorted(self.refused.items())},
            "timeouts": dict(self.timeouts),
            "handler_errors": self.handler_errors,
        }


class Http1Server:
    """What the connections of one listener share. Calling it makes a connection's protocol."""

    def __init__(
        self,
        handler: Handler,
        limits: Limits = Limits(),  # noqa: B008
        trusted_peers: tuple[Network, ...] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.handler = handler
        self.limits = limits
        self.trusted_peers = trusted_peers
        self.statistics = Statistics()
        self.draining = False
        self.connections: set[Http1Protocol] = set()
        self.all_closed = asyncio.Event()
        self._clock = clock
        self._date_second = 0
        self._date_line = b""

    def __call__(self) -> "Http1Protocol":
        return Http1Protocol(self)

    def start_drain(self) -> None:
        """Close what is idle; let requests that have begun finish, and close after each answer."""
        self.draining = True
        for connection in tuple(self.connections):
            connection.drain()
        if not self.connections:
            self.all_closed.set()

    def abort(self) -> None:
        """Close every connection at once."""
        for connection in tuple(self.connections):
            connection.abort()

    def date_line(self) -> bytes:
        """RFC 9110, 6.6.1; made once a second."""
        second = int(self._clock())
        if second != self._date_second:
            self._date_second = second
            self._date_line = f"Date: {formatdate(second, usegmt=True)}\r\n".encode()
        return self._date_line

    def trusts(self, peer: str) -> bool:
        try:
            address = ip_address(peer.partition("%")[0])
        except ValueError:
            return False
        mapped = getattr(address, "ipv4_mapped", None)
        return any((mapped or address) in network for network in self.trusted_peers)


class Http1Protocol(asyncio.Protocol):
    """One connection."""

    __slots__ = (
        "_answers",
        "_awaits_continue",
        "_body",
        "_body_bytes",
        "_body_raw_bytes",
        "_deadline",
        "_ending",
        "_head_done",
        "_head_raw_bytes",
        "_header_count",
        "_headers",
        "_loop",
        "_parser",
        "_path",
        "_peer",
        "_query",
        "_server",
        "_target",
        "_timer",
        "_timer_at",
        "_transport",
        "_trusted",
        "_under_way",
        "_waiting_for",
    )

    def __init__(self, server: Http1Server) -> None:
        # For the connection's life.
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._transport = cast(asyncio.Transport, None)
        self._parser = httptools.HttpRequestParser(self)
        self._peer = ""
        self._trusted = True
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._deadline = 0.0
        self._waiting_for = "idle"
        self._ending = False
        # For one read.
        self._answers: list[bytes] = []
        # For one request.
        self._start_request()

    def _start_request(self) -> None:
        self._under_way = False
        self._target = b""
        self._headers: dict[bytes, bytes] = {}
        self._header_count = 0
        self._head_raw_bytes = 0
        self._head_done = False
        self._path = b""
        self._query = b""
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._body_raw_bytes = 0
        self._awaits_continue = False

    # The protocol's interface

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        server = self._server
        server.connections.add(self)
        server.statistics.accepted += 1
        # Both marks: left alone, the lower one would be a quarter of the higher.
        self._transport.set_write_buffer_limits(high=_WRITE_BUFFER_HIGH, low=_WRITE_BUFFER_LOW)
        peername = transport.get_extra_info("peername")
        if isinstance(peername, tuple):
            self._peer = peername[0]
            self._trusted = server.trusts(self._peer)
        self._wait_for("idle", server.limits.idle_s)

    def connection_lost(self, exc: Exception | None) -> None:
        server = self._server
        server.connections.discard(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if server.draining and not server.connections:
            server.all_closed.set()

    def data_received(self, data: bytes) -> None:
        if self._ending:
            return
        if self._head_done:
            self._body_raw_bytes += len(data)
        else:
            self._head_raw_bytes += len(data)
        self._under_way = True
        try:
            self._parser.feed_data(data)
            self._check_raw_sizes()
        except httptools.HttpParserUpgrade:
            pass  # The answer has ended the connection: we do not switch protocols.
        except httptools.HttpParserError as error:
            # After an answer that ends the connection, what follows is no request whatever it is.
            if not self._ending:
                self._refuse(_as_refusal(error, data))
        except Refused as refused:
            self._refuse(refused)
        if self._awaits_continue:
            self._awaits_continue = False
            self._answers.append(_CONTINUE)
        if self._answers:
            self._flush()
        if not self._ending:
            if not self._under_way:
                self._wait_for("idle", self._server.limits.idle_s)
            elif self._waiting_for != "request":
                self._wait_for("request", self._server.limits.request_s)

    def eof_received(self) -> bool:
        # Whatever was complete has been answered already; closing flushes it.
        return False

    def pause_writing(self) -> None:
        self._transport.pause_reading()
        self._wait_for("write", self._server.limits.write_s)

    def resume_writing(self) -> None:
        self._transport.resume_reading()
        self._wait_for("idle", self._server.limits.idle_s)

    # The parser's callbacks

    def on_message_begin(self) -> None:
        self._under_way = True

    def on_url(self, part: bytes) -> None:
        self._target += part
        if len(self._target) > REQUEST_LINE_BYTES_MAX:
            raise Refused(414, f"a request line may have {REQUEST_LINE_BYTES_MAX} bytes")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_count += 1
        if self._header_count > HEADERS_MAX:
            raise Refused(431, f"a request may have {HEADERS_MAX} headers")
        if self._head_done:
            check_trailer(name)
        else:
            add_header(self._headers, name, value)

    def on_headers_complete(self) -> None:
        if self._ending:
            return
        parser = self._parser
        headers = self._headers
        version = parser.get_http_version()
        check_header_size(headers)
        self._path, self._query = check_head(parser.get_method(), self._target, version, headers)
        self._head_done = True
        self._awaits_continue = b"expect" in headers and version == "1.1"

    def on_body(self, part: bytes) -> None:
        self._awaits_continue = False
        self._body_bytes += len(part)
        if self._body_bytes > BODY_BYTES_MAX:
            raise Refused(413, f"a body may have {BODY_BYTES_MAX} bytes")
        self._body.append(part)

    def on_message_complete(self) -> None:
        if self._ending:
            return
        server = self._server
        parser = self._parser
        method = parser.get_method()
        request = Request(
            method, self._path, self._query, self._headers, b"".join(self._body), self._peer, self._trusted
        )
        server.statistics.requests += 1
        try:
            response = server.handler(request)
        except Exception:
            server.statistics.handler_errors += 1
            log.exception("the handler failed on %s %.200r", method.decode(), request.path)
            response = plain_error(500)
        server.statistics.responses[response.status] += 1
        keep = parser.should_keep_alive() and not response.close and not server.draining and not parser.should_upgrade()
        self._answer(response, keep, without_body=method == b"HEAD")
        self._start_request()

    # Answering

    def _answer(self, response: Response, keep: bool, *, without_body: bool = False) -> None:
        if not keep:
            connection = b"Connection: close\r\n"
            self._ending = True
        elif self._parser.get_http_version() == "1.0":
            connection = b"Connection: keep-alive\r\n"
        else:
            connection = b""
        self._answers += (response.head, self._server.date_line(), connection, b"\r\n")
        if not without_body:
            self._answers.append(response.body)

    def _refuse(self, refused: Refused) -> None:
        """Answer what was no request, and read no more requests."""
        self._server.statistics.refused[refused.status] += 1
        self._answer(plain_error(refused.status, refused.reason), keep=False)
        self._flush(linger=True)

    def _flush(self, *, linger: bool = False) -> None:
        transport = self._transport
        if self._answers:
            transport.write(b"".join(self._answers))
            self._answers.clear()
        if not self._ending or transport.is_closing():
            return
        if linger and transport.can_write_eof():
            # Closing with unread bytes would reset the connection, and the peer might never see the answer.
            transport.write_eof()
            self._wait_for("linger", self._server.limits.linger_s)
        elif self._waiting_for != "linger":
            transport.close()

    def _check_raw_sizes(self) -> None:
        """What the parser keeps to itself is bounded here: a header that never ends, chunks that carry nothing."""
        if not self._under_way:
            return
        if not self._head_done and self._head_raw_bytes > _HEAD_BYTES_MAX:
            raise Refused(431, f"headers may have {HEADER_BYTES_MAX} bytes")
        if self._body_raw_bytes > _CHUNKED_BYTES_MAX:
            raise Refused(413, f"a body may have {BODY_BYTES_MAX} bytes")

    # Timers, and the end

    def drain(self) -> None:
        """Close if nothing is under way; what is will be answered with Connection: close."""
        if not self._under_way and not self._ending:
            self._ending = True
            self._transport.close()

    def abort(self) -> None:
        self._transport.abort()

    def _wait_for(self, what: str, seconds: float) -> None:
        """Start waiting; an armed timer that fires too early only looks again, so most requests touch none."""
        self._waiting_for = what
        self._deadline = self._loop.time() + seconds
        if self._timer is None or self._timer_at > self._deadline:
            if self._timer is not None:
                self._timer.cancel()
            self._arm()

    def _arm(self) -> None:
        self._timer_at = self._deadline
        self._timer = self._loop.call_at(self._deadline, self._on_timer)

    def _on_timer(self) -> None:
        if self._loop.time() < self._deadline:
            self._arm()
            return
        self._timer = None
        self._server.statistics.timeouts[self._waiting_for] += 1
        if self._waiting_for == "request":
            self._refuse(Refused(408, "the request took too long"))
        elif self._waiting_for == "idle":
            self._ending = True
            self._transport.close()
        else:
            self._transport.abort()


def _as_refusal(error: httptools.HttpParserError, data: bytes) -> Refused:
    """The status for what llhttp did not accept."""
    if isinstance(error.__context__, Refused):
        return error.__context__
    if isinstance(error, httptools.HttpParserInvalidMethodError) and _TOKEN_AND_SPACE.match(data):
        return Refused(501, "this method is not known here")
    return Refused(400, "this is not an HTTP/1.1 request")
