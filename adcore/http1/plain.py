"""The ordinary request, read cheaply: all of it in one read, without a body, and with nothing odd about it.

Nearly every request is one, and nearly every line of it was seen before: pages repeat request lines, browsers repeat
what they accept, a visit repeats its addresses. So a request is taken apart at its line ends, and each line looked up
among those that were judged before. One that was not is held against the grammar, and remembered when it is plain and
comes again. (llhttp reads a byte at a time, and its callbacks make two objects for each field: twice the time.)

Whatever this cannot vouch for is left to RequestParser (httptools), which knows all the rules and reads the same bytes
from their start. So a mistake here could only be to accept; what is accepted is held against RequestParser by tests.
"""

import re
from array import array
from typing import TypeVar

from adcore.http1.request import FRAMING, HOST, Limits, Request, RequestLine

# Lines remembered, of requests and of fields each: some 6 MB. A site has some thousands of pages and browsers;
# addresses and cookies come and go. With room for a quarter of this 3,000 visitors took a third more CPU (perf/run
# macro, mixed). Forgetting this many takes a millisecond.
KNOWN_MAX = 16384
# Places for hashes of lines that came once, of requests and of fields each: 128 KB.
NEWCOMERS = 16384
# Longer ones are not worth the memory.
KNOWN_BYTES_MAX = 512

# Lines are cut at LF, so each has its CR; an LF without one, or a CR anywhere else, is not plain.
_REQUEST_LINE = re.compile(rb"(GET|HEAD) (/[!\"$-~]*) HTTP/1\.1\r")
# RFC 9110 5.1 and 5.5, with obs-text, which browsers send in cookies. Space after the value goes with rstrip. Neither
# part gives back what it took: to try every division of the space between them takes the square of its length.
_FIELD_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*+([\t -~\x80-\xff]*+)\r")
# Another one for each request.
_NEVER_REMEMBERED = b"x-request-id"
# llhttp takes it for Connection.
_LEFT_TO_PARSER = FRAMING | {b"proxy-connection"}

Field = tuple[bytes, bytes]
"""Name in lower case, and value."""
Known = TypeVar("Known")


class NotPlain(Exception):
    """It never leaves this file."""


class KnownLines(dict[bytes, Known]):
    """What the lines are that came before.

    One that comes once only is kept out: many pages put a number into each request, against caches. This is the
    doorkeeper of TinyLFU (Einziger, Friedman, Manes: TinyLFU: A Highly Efficient Cache Admission Policy, 2017), with a
    table of hashes, which Python knows already, for its Bloom filter. Each newcomer takes the place of an earlier one.
    """

    __slots__ = ("_newcomers",)

    def __init__(self) -> None:
        self._newcomers = array("q", bytes(8 * NEWCOMERS))

    def remember(self, raw: bytes, known: Known) -> bool:
        """Do so if it came before and is not too long; whether that was done."""
        if len(raw) > KNOWN_BYTES_MAX:
            return False
        newcomers = self._newcomers
        number = hash(raw)
        place = number % len(newcomers)
        if newcomers[place] != number:
            newcomers[place] = number
            return False
        if len(self) >= KNOWN_MAX:
            self.clear()
        self[raw] = known
        return True


class RequestLines(KnownLines[RequestLine]):
    """The plain request lines, each found out when it is first asked for. Raises NotPlain for any other."""

    __slots__ = ()

    def __missing__(self, raw: bytes) -> RequestLine:
        found = _REQUEST_LINE.fullmatch(raw)
        if found is None:
            raise NotPlain
        path, _, query = found[2].partition(b"?")
        line = RequestLine(found[1], path, query)
        line.shared = self.remember(raw, line)
        return line


class FieldLines(KnownLines[Field]):
    """The same for the lines of fields that mean nothing for the connection."""

    __slots__ = ()

    def __missing__(self, raw: bytes) -> Field:
        found = _FIELD_LINE.fullmatch(raw)
        if found is None:
            raise NotPlain
        name, value = found[1].lower(), found[2].rstrip()
        if (
            name in _LEFT_TO_PARSER
            or (name == b"host" and not HOST.fullmatch(value))
            or (name == b"connection" and value.lower() != b"keep-alive")
        ):
            raise NotPlain
        field = (name, value)
        if name != _NEVER_REMEMBERED:
            self.remember(raw, field)
        return field


class PlainReader:
    """Reads the plain requests of a server's connections."""

    __slots__ = ("_bytes_max", "_field_of", "_lines_max", "field_lines", "request_lines")

    def __init__(self, limits: Limits) -> None:
        # What is shorter than each of the limits keeps within all of them.
        self._bytes_max = min(limits.request_line_bytes, limits.headers_bytes)
        self._lines_max = 1 + limits.headers + 2
        self.request_lines = RequestLines()
        self.field_lines = FieldLines()
        self._field_of = self.field_lines.__getitem__

    def read(self, data: bytes, request: Request) -> bool:
        """Whether `data` is one plain request; then its line and headers are in `request`."""
        if len(data) > self._bytes_max or not data.endswith(b"\r\n\r\n"):
            return False
        lines = data.split(b"\n")
        if len(lines) > self._lines_max:
            return False
        try:
            line = self.request_lines[lines[0]]
            # One call into C looks all of them up. An empty line, as between two requests, is not plain.
            headers = dict(map(self._field_of, lines[1:-2]))
        except NotPlain:
            return False
        if len(headers) + 3 != len(lines) or b"host" not in headers:
            return False  # a field is there twice, or the one that must be is not
        request.line = line
        request.headers = headers
        return True
