"""From llhttp's callbacks to a request: the limits, and the rules that llhttp leaves to us.

llhttp (through httptools, none of its leniencies on) checks the grammar. What it accepts and a front end could read
another way is refused here (RFC 9110 and 9112; the section stands beside each rule), since two readings of one request
are how requests are smuggled. A refusal is a value, `Refused`, with the status to answer; the connection ends after it.
"""

import re
from urllib.parse import urlsplit

# nginx's large_client_header_buffers: 4 of 8 KiB, and a request line must fit one of them.
REQUEST_LINE_BYTES_MAX = 8 * 1024
HEADERS_MAX = 100
HEADER_BYTES_MAX = 32 * 1024
# A server-side caller's JSON for a page of slots is a few KiB.
BODY_BYTES_MAX = 64 * 1024

# What a resource can be asked for; any other token is a method we do not have (RFC 9110, 9.1: 501).
METHODS = frozenset({b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS", b"TRACE"})
# Of these a body is expected, so its length must be announced (RFC 9110, 15.5.12: 411).
_WITH_BODY = frozenset({b"POST", b"PUT", b"PATCH"})
# Fields of which a second line contradicts the first (RFC 9110, 5.3: only lists may be repeated).
_SINGLE = frozenset({b"host", b"content-length", b"content-type", b"transfer-encoding", b"authorization", b"expect"})
_NOT_IN_TRAILERS = frozenset({b"host", b"content-length", b"transfer-encoding", b"authorization", b"expect"})
# RFC 3986 reg-name, IPv4 or [IPv6], and a port; no user-info, path or comma (RFC 9112, 3.2).
_HOST = re.compile(rb"(?:[A-Za-z0-9._~!$&'()*+;=%-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?")
_NOT_IN_VALUE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")


class Refused(Exception):
    """This is not a request that we serve: the status to answer, and why."""

    def __init__(self, status: int, reason: str) -> None:
        self.status = status
        self.reason = reason
        super().__init__(f"{status} {reason}")


class Request:
    """A request as the handlers see it.

    Header names are in lower case; lines of one name are joined with ", ", those of Cookie with "; ". `query` is
    without its question mark. `peer` is the address of the other end, "" on a unix socket; `trusted` says whether its
    word on the visitor's address and country counts.
    """

    __slots__ = ("body", "headers", "method", "path", "peer", "query", "trusted")

    def __init__(
        self,
        method: bytes,
        path: bytes,
        query: bytes,
        headers: dict[bytes, bytes],
        body: bytes,
        peer: str,
        trusted: bool,
    ) -> None:
        self.method = method
        self.path = path
        self.query = query
        self.headers = headers
        self.body = body
        self.peer = peer
        self.trusted = trusted


def add_header(headers: dict[bytes, bytes], name: bytes, value: bytes) -> None:
    """Add a header line. Raises Refused for a repeated one that must be alone."""
    name = name.lower()
    if _NOT_IN_VALUE.search(value):
        raise Refused(400, "a control character in a header")  # RFC 9110, 5.5
    before = headers.get(name)
    if before is None:
        headers[name] = value
    elif name in _SINGLE:
        raise Refused(400, f"{name.decode('latin-1')} is given twice")
    else:
        headers[name] = before + (b"; " if name == b"cookie" else b", ") + value


def check_header_size(headers: dict[bytes, bytes]) -> None:
    """Raises Refused for more than the limit, counted as they are kept."""
    if sum(map(len, headers)) + sum(map(len, headers.values())) > HEADER_BYTES_MAX:
        raise Refused(431, f"headers may have {HEADER_BYTES_MAX} bytes")


def check_trailer(name: bytes) -> None:
    """Trailers are thrown away, and refused where a proxy could take them for headers (RFC 9110, 6.5.1)."""
    if name.lower() in _NOT_IN_TRAILERS:
        raise Refused(400, "a trailer that is not allowed there")


def check_head(method: bytes, target: bytes, version: str, headers: dict[bytes, bytes]) -> tuple[bytes, bytes]:
    """The path and query of a request whose headers are complete. Raises Refused."""
    if version not in ("1.1", "1.0"):
        raise Refused(505, "this server speaks HTTP/1.1")
    if method not in METHODS:
        raise Refused(501, "this method is not known here")
    host = headers.get(b"host")
    if host is None:
        if version == "1.1":
            raise Refused(400, "Host is missing")  # RFC 9112, 3.2
    elif not _HOST.fullmatch(host):
        raise Refused(400, "Host is not one host")
    coding = headers.get(b"transfer-encoding")
    if coding is not None:
        if version == "1.0":
            raise Refused(400, "Transfer-Encoding in HTTP/1.0")  # RFC 9112, 6.1
        if b"content-length" in headers:
            raise Refused(400, "Content-Length beside Transfer-Encoding")  # RFC 9112, 6.1
        if coding.lower() != b"chunked":
            raise Refused(501, "the only transfer coding known here is chunked")
    elif (length := headers.get(b"content-length")) is not None:
        if not length.isdigit():
            raise Refused(400, "Content-Length is not a number")  # RFC 9110, 8.6
        if len(length) > 15 or int(length) > BODY_BYTES_MAX:
            raise Refused(413, f"a body may have {BODY_BYTES_MAX} bytes")
    elif method in _WITH_BODY:
        raise Refused(411, "a body's length must be announced")
    if b"expect" in headers and headers[b"expect"].lower() != b"100-continue":
        raise Refused(417, "the only expectation known here is 100-continue")
    return _split_target(target)


def _split_target(target: bytes) -> tuple[bytes, bytes]:
    if target.startswith(b"/"):
        path, _, query = target.partition(b"?")
    else:
        # absolute-form, which a server must accept (RFC 9112, 3.2.2); "*" and authority-form lead nowhere here.
        try:
            parts = urlsplit(target)
            good = parts.scheme in (b"http", b"https") and bool(_HOST.fullmatch(parts.netloc))
        except ValueError:
            good = False
        if not good:
            raise Refused(400, "the request target is neither a path nor an http URL")
        path, query = parts.path or b"/", parts.query
    return path, query.partition(b"#")[0]
