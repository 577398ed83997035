"""The ordinary request, read cheaply: all of it in one read, without a body, and with nothing odd about it.

Nearly every request is one. Its header fields go from llhttp straight into a dict, without a call into Python for each;
what is left to know of it is known from others: pages repeat request lines, browsers repeat the order of their fields,
and sites have few hosts, so each distinct one is judged once and remembered (`Vocabulary`, bounded).

`PlainReader.read` says None to whatever it cannot vouch for, and RequestParser, which knows all the rules, then reads
the same bytes from their start. So a mistake here could only be to accept; what is accepted is held against
RequestParser by tests.
"""

import re
from collections.abc import Callable

import httptools

from adcore.http1.request import HOST, FieldNames, Limits, Request, RequestLine

# Request lines and hosts remembered, each. Far above what a site has; the rest is a client that makes them up.
KNOWN_MAX = 4096
# Longer ones are not worth the memory.
KNOWN_BYTES_MAX = 1024
# Sequences of field names remembered: browsers have some dozens, and each may be as large as a request.
NAMES_MAX = 512

BLANK_LINE = b"\r\n\r\n"
_PLAIN_LINE = re.compile(rb"(GET|HEAD) (/[!\"$-~]*) HTTP/1\.1")


class Vocabulary:
    """What the connections of a server have learnt."""

    __slots__ = ("hosts", "lines", "names")

    def __init__(self) -> None:
        self.lines: dict[bytes, RequestLine] = {}
        self.names: dict[tuple[bytes, ...], FieldNames] = {}
        self.hosts: set[bytes] = set()

    def learn_line(self, raw: bytes) -> RequestLine | None:
        """The line, if it is a plain one."""
        found = _PLAIN_LINE.fullmatch(raw)
        if found is None:
            return None
        path, _, query = found[2].partition(b"?")
        line = RequestLine(found[1], path, query)
        if len(raw) <= KNOWN_BYTES_MAX:
            if len(self.lines) >= KNOWN_MAX:
                self.lines.clear()
            self.lines[raw] = line
        return line

    def learn_names(self, names: tuple[bytes, ...]) -> FieldNames:
        known = FieldNames(names)
        if len(self.names) >= NAMES_MAX:
            self.names.clear()
        self.names[names] = known
        return known

    def learn_host(self, host: bytes) -> bool:
        """Whether it is a host."""
        if not HOST.fullmatch(host):
            return False
        if len(self.hosts) >= KNOWN_MAX:
            self.hosts.clear()
        self.hosts.add(host)
        return True


class PlainReader:
    """Reads the plain requests of one connection. `request` is the last one, and the next one takes its place."""

    __slots__ = ("_bytes_max", "_feed", "_fields", "_lines_max", "_vocabulary", "on_header", "request")

    _feed: Callable[[bytes], None]

    def __init__(self, vocabulary: Vocabulary, limits: Limits, request: Request) -> None:
        # What is shorter than each of the limits keeps within all of them.
        self._bytes_max = min(limits.request_line_bytes, limits.headers_bytes)
        self._lines_max = limits.headers + 2
        self._vocabulary = vocabulary
        self._fields = request.fields
        self.request = request
        self.on_header = request.fields.__setitem__
        self._feed = httptools.HttpRequestParser(self).feed_data

    def read(self, data: bytes) -> Request | None:
        """The one request that `data` is, or None."""
        if len(data) > self._bytes_max or not data.endswith(BLANK_LINE):
            return None
        known = self._vocabulary
        raw_line = data[: data.find(b"\r\n")]
        line = known.lines.get(raw_line) or known.learn_line(raw_line)
        if line is None:
            return None
        fields = self._fields
        fields.clear()
        try:
            self._feed(data)
        except httptools.HttpParserError:
            return self._leave()
        # One line for each field, one for the request and the blank one: no field twice, none folded, no second request
        # and no body.
        lines = data.count(b"\n")
        if lines != len(fields) + 2 or lines > self._lines_max:
            return self._leave()
        sequence = tuple(fields)
        names = known.names.get(sequence) or known.learn_names(sequence)
        if names.host is None or not names.is_plain:
            return self._leave()
        host = fields[names.host]
        if host not in known.hosts and not known.learn_host(host):
            return self._leave()
        if names.connection is not None and fields[names.connection].lower() != b"keep-alive":
            return self._leave()
        request = self.request
        request.line = line
        request.names = names
        return request

    def _leave(self) -> Request | None:
        """None. llhttp may be anywhere in what it was fed, so the next request gets a new one."""
        self._feed = httptools.HttpRequestParser(self).feed_data
        return None

    def close(self) -> None:
        """Let go of httptools' parser, which holds this one in a circle."""
        del self._feed
