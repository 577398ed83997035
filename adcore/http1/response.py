"""A response, as bytes that are ready to send.

A head is made once, where the answer is decided: status line and fields, without `Date`, `Connection` and the closing
blank line. Those belong to the connection and the second in which it is sent; `Tails` keeps them ready, so that
sending is one join of head, tail and body. Knows nothing of sockets.
"""

import json
import re
from collections.abc import Iterable
from email.utils import formatdate
from http import HTTPStatus

import msgspec

# Statuses whose answer has no content, and so no Content-Length either (RFC 9110 8.6, 15.3.5, 15.4.5).
BODILESS = frozenset({204, 304})
# Fields that only the connection may send, since it decides framing and persistence.
OWNED_BY_CONNECTION = frozenset({"connection", "content-length", "date", "transfer-encoding"})
# Fields whose value is another one for each visitor: remembering their lines would only push others out.
VARYING = frozenset({"Location", "Set-Cookie"})
# Constant header lines are few (a dozen in adcore); the bound only keeps a mistake from becoming a leak.
LINES_MAX = 512

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_STATUS_LINES = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus if status >= 200
}
_lines: dict[tuple[str, str], bytes] = {}


class Response(msgspec.Struct, gc=False):
    """What a handler answers: `head` and `body` as described above; `close` ends the connection after it.

    (A Struct is made in a third of the time of a class.)
    """

    status: int
    head: bytes
    body: bytes
    close: bool = False


def respond(
    status: int,
    body: bytes = b"",
    *,
    content_type: str | None = None,
    headers: Iterable[tuple[str, str]] = (),
    close: bool = False,
) -> Response:
    """Make a response; Content-Length is added where the status has content.

    Raises ValueError for a header that no peer may be sent (line breaks, NUL and other controls, characters beyond
    Latin-1, a name that is not a token or is the connection's own), a body where none is allowed, and a status that
    is not a final one.
    """
    try:
        pieces = [_STATUS_LINES[status]]
    except KeyError:
        raise ValueError(f"{status} is not a final status of HTTP") from None
    if status not in BODILESS:
        pieces.append(b"Content-Length: %d\r\n" % len(body))
    elif body:
        raise ValueError(f"a {status} has no body")
    if content_type is not None:
        header = ("Content-Type", content_type)
        pieces.append(_lines.get(header) or _encode_line(header))
    pieces.extend([_lines.get(header) or _encode_line(header) for header in headers])
    return Response(status, b"".join(pieces), body, close=close)


def respond_error(status: int, message: str) -> Response:
    """An answer of the connection's own, after which it closes."""
    return respond(
        status,
        json.dumps({"error": message}).encode(),
        content_type="application/json",
        headers=(("Cache-Control", "no-store"), ("X-Content-Type-Options", "nosniff")),
        close=True,
    )


def _encode_line(header: tuple[str, str]) -> bytes:
    name, value = header
    if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
        raise ValueError(f"not a header field: {name!r}: {value!r}")
    if name.lower() in OWNED_BY_CONNECTION:
        raise ValueError(f"{name} is set by the connection alone")
    line = f"{name}: {value}\r\n".encode("latin-1")
    if name not in VARYING and len(_lines) < LINES_MAX:
        _lines[header] = line
    return line


class Tails:
    """The ends of all heads sent within one second: Date (RFC 9110 6.6.1), Connection where needed, blank line."""

    __slots__ = ("close", "keep", "keep_http10", "second_wall")

    def __init__(self, second_wall: int) -> None:
        date = f"Date: {formatdate(second_wall, usegmt=True)}\r\n".encode()
        self.second_wall = second_wall
        self.keep = date + b"\r\n"
        # HTTP/1.0 persists only when both sides say so (RFC 9112 9.3).
        self.keep_http10 = date + b"Connection: keep-alive\r\n\r\n"
        self.close = date + b"Connection: close\r\n\r\n"
