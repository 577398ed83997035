"""Bytes to requests: httptools' callbacks, and the rules and limits that llhttp does not have.

`RequestParser.feed` takes what arrived and gives the requests that it completed. Bad input is a value, `refusal`,
with the status to answer; nothing is read after it. No leniency of llhttp is switched on. What llhttp 9.3 lets
through although RFC 9112 does not, and is checked here:

    request line   more than one space, RTSP/ or ICE/ for HTTP/, HTTP/0.9 and 2.0, bare CR or LF before it
    target         `*` and CONNECT outside their use, an absolute form without a valid host
    fields         Host missing, doubled or odd; doubled Content-Type, Expect; trailing space kept in values;
                   Host and other fields of message control in trailers
    framing        any transfer coding but chunked; any with HTTP/1.0; the body of a request that offers an Upgrade

The first is found by looking for the request line, as it must have been written, in the bytes as they came: one
`startswith`, which also tells HTTP/1.1 from 1.0 (httptools formats a string for that). Since httptools does not say how
far it is, it is given a part of a message at a time, so that each request is known to begin where the one before it
ended. Knows nothing of sockets, time and answers.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

import httptools
from httptools.parser.errors import HttpParserCallbackError, HttpParserInvalidMethodError

# Fields that say how a message is framed, or want more than an answer.
FRAMING = frozenset({b"content-length", b"expect", b"http2-settings", b"trailer", b"transfer-encoding", b"upgrade"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one peer may use, and for how long."""

    request_line_bytes: int = 8 * 1024
    """Method, target, version and the spaces between. nginx's large_client_header_buffers holds 8 KiB as well."""
    headers: int = 100
    """Header lines. Apache's LimitRequestFields and Node's maxHeadersCount are of this order; browsers send 20."""
    headers_bytes: int = 32 * 1024
    """All header lines, each counted as name, value and four bytes. nginx's default of 4 buffers of 8 KiB."""
    body_bytes: int = 64 * 1024
    """A decision described in JSON takes hundreds of bytes; this is the contract's limit for it."""
    request_s: float = 10.0
    """From the first byte of a request to its last, body included: at the limits, 85 kbit/s."""
    idle_s: float = 75.0
    """Between requests. Above the 60 s of nginx's upstream keepalive_timeout, so that nginx is the one to close."""
    write_s: float = 30.0
    """How long a peer may take none of what waits for it: half of nginx's send_timeout, with answers this small."""
    linger_s: float = 5.0
    """How long to read on, unheard, after an answer that ends the connection early: nginx's lingering_timeout."""
    connections: int = 20_000
    """At once. About 5 KiB each, so 100 MiB; set it below the limit on descriptors, whichever is lower."""


class Refusal(NamedTuple):
    """Why a request is not taken, and what to answer."""

    status: int
    reason: str


class RequestLine:
    """Method, path and raw query."""

    __slots__ = ("method", "path", "query", "shared")

    def __init__(self, method: bytes, path: bytes, query: bytes) -> None:
        self.method = method
        self.path = path
        self.query = query
        self.shared = False
        """Whether other requests with this line have the same object, so that things can be kept by it."""


class Request:
    """One request, whole.

    `headers` has lower-case names; repeated ones are joined with ", " (Cookie: "; "). `query` comes raw, without "?".
    `peer` is the address that the connection came from, "" on a unix socket; `trusted` says whether it may speak for
    others (X-Forwarded-For and its like). One that plain.py read is good until the next one of its connection.
    """

    __slots__ = ("body", "headers", "http10", "keep_alive", "line", "peer", "time", "trusted")

    def __init__(
        self,
        method: bytes = b"",
        path: bytes = b"",
        query: bytes = b"",
        headers: dict[bytes, bytes] | None = None,
        body: bytes = b"",
        peer: str = "",
        trusted: bool = False,
        keep_alive: bool = True,
        http10: bool = False,
        time: float = 0.0,
    ) -> None:
        self.line = RequestLine(method, path, query)
        self.headers = {} if headers is None else headers
        self.body = body
        self.peer = peer
        self.trusted = trusted
        self.keep_alive = keep_alive
        self.http10 = http10
        self.time = time
        """When it was read, in epoch seconds."""

    @property
    def method(self) -> bytes:
        return self.line.method

    @property
    def path(self) -> bytes:
        return self.line.path

    @property
    def query(self) -> bytes:
        return self.line.query


# RFC 9110 9.3 and RFC 5789: methods whose content is the point, so one without framing is a mistake (411).
METHODS_WITH_CONTENT = frozenset({b"PATCH", b"POST", b"PUT"})
# Two of these in one request would leave it to chance which one counts. llhttp refuses a second Content-Length.
SINGLE = frozenset({b"content-length", b"content-type", b"expect", b"host", b"origin", b"transfer-encoding"})
# RFC 9110 6.5.1: fields of framing, routing, request control and authentication mean nothing after the content.
# Others are counted and dropped.
FORBIDDEN_TRAILERS = frozenset(
    {
        *(b"authorization", b"connection", b"content-length", b"cookie", b"expect", b"host"),
        *(b"proxy-connection", b"transfer-encoding", b"upgrade"),
    }
)
# In one-byte chunks a body takes six times its size on the wire. Extensions and trailers come out of the rest.
WIRE_BYTES_PER_BODY_BYTE = 8

# RFC 3986 3.2.2 without the comma, which a list of two hosts would bring in, and without user information.
HOST = re.compile(
    rb"(?:(?:[A-Za-z0-9._~!$&'()*+;=-]|%[0-9A-Fa-f]{2})+|\[[0-9A-Fa-f:.]+\])(?::[0-9]*)?",
)
_ABSOLUTE_FORM = re.compile(rb"(?i:https?)://(?:[^/?#@]*@)?([^/?#@]+)(.*)", re.DOTALL)
_METHOD_THEN_SPACE = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+(?: |\Z)")
# RFC 9112 2.2: those before a request are ignored.
_EMPTY_LINES = re.compile(rb"(?:\r\n)*")
_BLANK_LINE = b"\r\n\r\n"
_BLANK_LINE_BEGUN = len(_BLANK_LINE) - 1


class _EveryName(dict[bytes, bytes]):
    """Stands for the headers once they are complete, so that each trailer takes the path of a repeated header."""

    def __contains__(self, name: object) -> bool:
        return True


_TRAILERS = _EveryName()


class RequestParser:
    """The reading side of one connection."""

    __slots__ = (  # noqa: RUF023
        # The connection
        "_limits",
        "_parser",
        "_peer",
        "_trusted",
        "refusal",
        "surplus",
        # What was fed last, back to the start of a head that is not complete
        "_complete",
        "_fed",
        "_raw",
        "_received_bytes",
        "_start",
        # The request being read
        "_body",
        "_body_seen",
        "_body_seen_at",
        "_content_length",
        "_headers",
        "_repeated",
        "_request",
        "_target",
        "_trailers",
        "_trailers_bytes",
        "awaits_continue",
        "begun",
    )

    def __init__(self, limits: Limits, peer: str = "", trusted: bool = False) -> None:
        self._limits = limits
        self._peer = peer
        self._trusted = trusted
        self.refusal: Refusal | None = None
        self.surplus = False
        """Whether more came after a request that ends the connection."""

        self._complete: list[Request] = []
        self._raw = b""
        self._start = 0
        """Where in `_raw` the request being read begins, or the empty lines before it."""
        self._fed = 0
        """Where the part ends that httptools has been given, in `_raw` or behind it."""
        self._received_bytes = 0

        self.begun = False
        """Whether a part of a request is here."""
        self.awaits_continue = False
        """Whether the peer waits for 100 (Continue) before it sends the body; to be cleared by who sends that."""
        self._target = b""
        self._headers: dict[bytes, bytes] = {}
        self._repeated = 0
        self._request: Request | None = None
        """Set between the head and the end of the body."""
        self._body = bytearray()
        self._content_length: int | None = None
        """Of the body being read; None if it comes in chunks."""
        self._trailers = self._trailers_bytes = 0
        self._body_seen = self._body_seen_at = 0
        """Size of the body after the last read that brought a part of it, and `received_bytes` then."""

        self._parser: Any = httptools.HttpRequestParser(self)

    def feed(self, data: bytes) -> list[Request]:
        """Read on; the requests that are complete now, in order. Nothing may be fed after a refusal."""
        requests = self._complete = []
        raw = self._raw = self._raw + data if self._raw else data
        size = len(raw)
        fed = size - len(data)
        self._received_bytes += len(data)
        while fed < size:
            # A message ends with its Content-Length, or with a blank line: that of its head, or of its last chunk.
            if self._request is not None and self._content_length is not None:
                end = fed + self._content_length - len(self._body)
            else:
                found = raw.find(_BLANK_LINE, fed - _BLANK_LINE_BEGUN if fed > _BLANK_LINE_BEGUN else 0)
                end = size if found < 0 else found + len(_BLANK_LINE)
                # A part each would take long for thousands. (Behind a head they may be of its body.)
                if self._request is not None or (end - fed == len(b"\r\n") and not self.begun):
                    end = _after_empty_lines(raw, end)
            part = raw[fed:end]
            fed = self._fed = end
            try:
                self._parser.feed_data(part)
            except httptools.HttpParserUpgrade:
                pass  # An offer that nobody has to take up (RFC 9110 7.8): what follows is the next request.
            except httptools.HttpParserError as error:
                self._on_parser_error(error)
                break
        if self._request is None:
            self._start = _after_empty_lines(raw, self._start)
            self._received_bytes = size - self._start
        if self.refusal is None and not self.surplus:
            self._check_received()
        # Of a body nothing is needed but what may be the beginning of a blank line.
        self._raw = raw[self._start :] if self._request is None else raw[-_BLANK_LINE_BEGUN:]
        self._start = 0
        return requests

    def close(self) -> None:
        """Let go of httptools' parser, which holds this one in a circle."""
        self._parser = None

    @property
    def received_bytes(self) -> int:
        """Of the request being read; what is kept of it is less."""
        return self._received_bytes

    @property
    def is_within_line_end(self) -> bool:
        """Whether the LF of an empty line is still to come."""
        return bool(self._raw) and not self.begun

    @property
    def reads_head_request(self) -> bool:
        """Whether the request being read is known to be a HEAD, whose answer has no body."""
        return bool(self._target) and self._parser.get_method() == b"HEAD"

    # Parser callbacks

    def on_message_begin(self) -> None:
        self.begun = True

    def on_url(self, url: bytes) -> None:
        self._target = url = self._target + url if self._target else url
        if len(url) > self._limits.request_line_bytes:
            self._refuse(414, "the request line is too long")

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        headers = self._headers
        if name in headers:
            self._on_repeated_header(name, value.rstrip())
        else:
            headers[name] = value.rstrip()  # llhttp leaves the space after a value in it

    def on_headers_complete(self) -> None:
        parser = self._parser
        method = parser.get_method()
        target = self._target
        headers = self._headers
        self._headers = _TRAILERS
        line = b"%b %b HTTP/1.1\r\n" % (method, target)
        http10 = not self._raw.startswith(line, self._start) and self._is_http10(method, target)
        self._check_limits(method, target, headers)
        has_body = self._check_framing(method, headers, http10)

        host = headers.get(b"host")
        if host is None:
            if not http10:
                self._refuse(400, "HTTP/1.1 needs a Host header")
        elif not HOST.fullmatch(host):
            self._refuse(400, "the Host header is not one host")
        if target[0] == 0x2F and b"#" not in target:
            path, _, query = target.partition(b"?")
        else:
            path, query = self._split_target(method, target, headers)

        expect = headers.get(b"expect")
        if expect is not None and not http10:  # RFC 9110 10.1.1: an HTTP/1.0 client can't mean it
            if expect.lower() != b"100-continue":
                self._refuse(417, "Expect takes 100-continue only")
            self.awaits_continue = has_body
        keep_alive = parser.should_keep_alive() and not (http10 and b"connection" not in headers)
        self._request = Request(method, path, query, headers, b"", self._peer, self._trusted, keep_alive, http10)

    def on_body(self, data: bytes) -> None:
        self.awaits_continue = False
        self._body += data
        if len(self._body) > self._limits.body_bytes:
            self._refuse(413, "the body is too large")

    def on_message_complete(self) -> None:
        request = self._request
        assert request is not None
        if self._body:
            request.body = bytes(self._body)
            self._body = bytearray()
        self._headers = {}
        self._repeated = 0
        self._request = None
        self._target = b""
        self.awaits_continue = self.begun = False
        self._complete.append(request)
        self._start = self._fed
        self._received_bytes = len(self._raw) - self._fed

    # What is rare

    def _on_repeated_header(self, name: bytes, value: bytes) -> None:
        if self._request is not None:
            self._on_trailer(name, value)
            return
        if name in SINGLE:
            self._refuse(400, f"there is more than one {name.decode()} header")
        self._repeated += 1
        # Each one copies all before it, and a read may bring thousands.
        if self._repeated >= self._limits.headers:
            self._refuse(431, "there are too many headers")
        self._headers[name] += (b"; " if name == b"cookie" else b", ") + value

    def _on_trailer(self, name: bytes, value: bytes) -> None:
        """Check a field that follows a body in chunks, by the limits of headers; it is not kept."""
        if name in FORBIDDEN_TRAILERS:
            self._refuse(400, "a trailer may not frame or route the request")
        self._trailers += 1
        self._trailers_bytes += len(name) + len(value) + 4
        if self._trailers > self._limits.headers:
            self._refuse(431, "there are too many trailers")
        if self._trailers_bytes > self._limits.headers_bytes:
            self._refuse(431, "the trailers are too large")

    def _is_http10(self, method: bytes, target: bytes) -> bool:
        """Of a request line that does not stand where it should, saying HTTP/1.1."""
        raw = self._raw
        start = b"%b %b HTTP/1." % (method, target)
        at = self._request_start()
        end = at + len(start)
        minor = raw[end : end + 3]
        if raw.startswith(start, at) and minor in (b"0\r\n", b"1\r\n"):
            return minor == b"0\r\n"
        if self._parser.get_http_version() not in ("1.0", "1.1"):
            self._refuse(505, "this server speaks HTTP/1.1")
        return self._refuse(400, "the request line is not METHOD TARGET HTTP/1.1 with single spaces")

    def _request_start(self) -> int:
        """Where in `_raw` the request being read starts."""
        return _after_empty_lines(self._raw, self._start)

    def _check_limits(self, method: bytes, target: bytes, headers: Mapping[bytes, bytes]) -> None:
        limits = self._limits
        if len(headers) + self._repeated > limits.headers:
            self._refuse(431, "there are too many headers")
        # What came in fewer bytes than a limit need not be counted.
        if (
            self._received_bytes > limits.request_line_bytes
            and len(method) + len(target) + len("  HTTP/1.1") > limits.request_line_bytes
        ):
            self._refuse(414, "the request line is too long")
        if (
            self._received_bytes > limits.headers_bytes
            and sum(len(name) + len(value) + 4 for name, value in headers.items()) > limits.headers_bytes
        ):
            self._refuse(431, "the headers are too large")

    def _split_target(self, method: bytes, target: bytes, headers: dict[bytes, bytes]) -> tuple[bytes, bytes]:
        """Path and query of a target in any other form than a plain origin-form (RFC 9112 3.2)."""
        if target == b"*":
            if method != b"OPTIONS":
                self._refuse(400, "the target * is for OPTIONS")
            return target, b""
        if not target.startswith(b"/"):
            absolute = _ABSOLUTE_FORM.fullmatch(target)
            if absolute is None or not HOST.fullmatch(absolute[1]):
                self._refuse(400, "the target is neither a path nor an http URL")
            headers[b"host"] = absolute[1]  # RFC 9112 3.2.2: the Host header is ignored
            target = absolute[2]
        path, _, query = target.partition(b"#")[0].partition(b"?")
        return path or b"/", query

    def _check_framing(self, method: bytes, headers: Mapping[bytes, bytes], http10: bool) -> bool:
        """Whether a body follows (RFC 9112 6), and how long it is."""
        coding = headers.get(b"transfer-encoding")
        length = headers.get(b"content-length")
        if method == b"CONNECT":
            self._refuse(501, "this server is not a proxy")
        if coding is not None:
            if http10:
                self._refuse(400, "HTTP/1.0 has no Transfer-Encoding")
            if coding.lower() != b"chunked":
                self._refuse(501, "the only transfer coding here is chunked")
            self._content_length = None
            self._trailers = self._trailers_bytes = 0
            self._body_seen = -1
            has_body = True
        elif length is not None:
            # llhttp lets only digits (and the space after them) pass, up to 2**64 - 1.
            self._content_length = int(length)
            if self._content_length > self._limits.body_bytes:
                self._refuse(413, "the body is too large")
            has_body = self._content_length > 0
        elif method in METHODS_WITH_CONTENT:
            self._refuse(411, "this method needs a Content-Length")
        else:
            return False
        # httptools tells llhttp to skip the body of every request that offers an Upgrade, so the body would be read
        # as the next request.
        if has_body and self._parser.should_upgrade():
            self._refuse(400, "a request with a body can't offer an Upgrade here")
        return has_body

    def _check_received(self) -> None:
        """Bound what is held of a request that llhttp has not taken apart yet, such as half a header.

        Before one there is nothing but empty lines, which are gone, and the CR of another.
        """
        limits = self._limits
        head_bytes_max = limits.request_line_bytes + limits.headers_bytes
        if not self.begun:
            if self._raw[self._start :] not in (b"", b"\r"):
                self.refusal = Refusal(400, "this is not HTTP/1.1: a line ends with CR LF")
        elif self._request is None:
            if self._received_bytes > head_bytes_max:
                if self._target:
                    self.refusal = Refusal(431, "the headers are too large")
                else:
                    self.refusal = Refusal(414, "the request line is too long")
        elif self._received_bytes > head_bytes_max + WIRE_BYTES_PER_BODY_BYTE * limits.body_bytes:
            self.refusal = Refusal(413, "the body comes in too many pieces")
        elif self._content_length is None:
            # httptools copies a trailer that is not complete with each read.
            if len(self._body) != self._body_seen:
                self._body_seen, self._body_seen_at = len(self._body), self._received_bytes
            elif self._received_bytes - self._body_seen_at > head_bytes_max:
                self.refusal = Refusal(431, "the trailers, or the extensions of a chunk, are too large")

    # Refusing

    def _refuse(self, status: int, reason: str) -> NoReturn:
        """Called in a callback: an exception is the one way to make llhttp stop there."""
        self.refusal = Refusal(status, reason)
        raise _Refused

    def _on_parser_error(self, error: httptools.HttpParserError) -> None:
        if self.refusal is not None:
            return
        if isinstance(error, HttpParserCallbackError):  # a mistake of ours, or someone's wish to stop
            raise error.__context__ or error
        reason = str(error)
        if self._complete and not self._complete[-1].keep_alive:
            self.surplus = True
        elif isinstance(error, HttpParserInvalidMethodError):
            self.refusal = self._refuse_method()
        elif reason.startswith("Invalid method for HTTP"):  # one of RTSP, which llhttp knows too
            self.refusal = Refusal(501, "this method is not known here")
        elif reason == "Invalid HTTP version" or self._parser.get_method() == b"PRI":
            self.refusal = Refusal(505, "this server speaks HTTP/1.1")
        else:
            self.refusal = Refusal(400, f"this is not HTTP/1.1: {reason}")

    def _refuse_method(self) -> Refusal:
        """501 for a token, as far as it is here, and 400 for what can't be a method (RFC 9110 9.1)."""
        if _METHOD_THEN_SPACE.match(self._raw, self._request_start()):
            return Refusal(501, "this method is not known here")
        return Refusal(400, "this is not HTTP/1.1: it starts with no method")


def _after_empty_lines(raw: bytes, at: int) -> int:
    found = _EMPTY_LINES.match(raw, at)
    assert found is not None
    return found.end()


class _Refused(Exception):
    """It never leaves this file."""
