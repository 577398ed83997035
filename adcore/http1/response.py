"""A response as bytes: the head is put together once, where it can be before the request is there.

The connection adds what only it knows: Date, Connection, and whether a body may follow.
"""

import re
from collections.abc import Iterable
from http import HTTPStatus

STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n" for status in HTTPStatus}
# Without a body and its length: RFC 9110, 8.6 and 15.4.5.
BODILESS = frozenset({204, 304})

_FIELD_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_FIELD_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")


class Response:
    """`head` is the status line and the fields, each with its CRLF; `close` asks for the connection to end."""

    __slots__ = ("body", "close", "head", "status")

    def __init__(self, status: int, head: bytes, body: bytes = b"", *, close: bool = False) -> None:
        self.status = status
        self.head = head
        self.body = body
        self.close = close


def respond(
    status: int,
    body: bytes = b"",
    *,
    content_type: str | None = None,
    headers: Iterable[tuple[str, str]] = (),
    close: bool = False,
) -> Response:
    """Build a response. Raises ValueError for a field that could end its line, whoever its text is from."""
    lines = [STATUS_LINES[status]]
    if status not in BODILESS:
        lines.append(f"Content-Length: {len(body)}\r\n")
    elif body:
        raise ValueError(f"a {status} has no body")
    if content_type is not None:
        lines.append(f"Content-Type: {content_type}\r\n")
    for name, value in headers:
        if not _FIELD_NAME.fullmatch(name) or not _FIELD_VALUE.fullmatch(value):
            raise ValueError(f"not a header field: {name!r}: {value!r}")
        lines.append(f"{name}: {value}\r\n")
    return Response(status, "".join(lines).encode("latin-1"), body, close=close)


def plain_error(status: int, reason: str = "") -> Response:
    """The connection's own answer to what is no request; the connection ends after it."""
    body = f"{status} {reason or HTTPStatus(status).phrase}\n".encode("latin-1")
    return respond(status, body, content_type="text/plain", close=True)
