"""What the plain reader accepts, RequestParser accepts too, and reads alike."""

import base64
import json
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from adcore.http1.plain import KNOWN_MAX, NEWCOMERS, PlainReader
from adcore.http1.request import Limits, Request, RequestParser

CORPUS = Path(__file__).parents[1] / "data" / "http_requests.jsonl"
ORDINARY = (
    b"GET /v1/decision?placement=top&kv.a=b HTTP/1.1\r\nHost: ads.example.net\r\nUser-Agent: Mozilla/5.0 (X11)\r\n"
    b"Accept: */*\r\nAccept-Language: ja,en;q=0.5\r\nConnection: keep-alive\r\n"
    b"X-Country: JP \r\nCookie: a=b; c=d\r\n\r\n"
)
PIECES = [
    *(
        b"\r\n",
        b"\n",
        b"\r",
        b" ",
        b"\t",
        b":",
        b"\0",
        b",",
        b"\x80",
        b"\r\n ",
        b"\r\n\r\n",
        b"#",
        b"*",
        b"HTTP/1.0",
        b"@",
    ),
    *(b"Host: b\r\n", b"host: c\r\n", b"Content-Length: 0\r\n", b"Transfer-Encoding: chunked\r\n", b"Upgrade: x\r\n"),
    *(b"Connection: close\r\n", b"Expect: 100-continue\r\n", b"GET /x HTTP/1.1\r\nHost: d\r\n\r\n", b"POST", b"HEAD"),
]


def read_plainly(data: bytes, reader: PlainReader | None = None) -> Request | None:
    request = Request(trusted=True)
    return request if (reader or PlainReader(Limits())).read(data, request) else None


def hold_against_the_parser(data: bytes) -> bool:
    """Whether the plain reader took it."""
    plain = read_plainly(data)
    if plain is None:
        return False
    parser = RequestParser(Limits(), "", True)
    (strict,) = parser.feed(data)
    assert parser.refusal is None
    assert not parser.begun
    for name in ("method", "path", "query", "headers", "body", "keep_alive", "http10", "peer", "trusted"):
        assert getattr(plain, name) == getattr(strict, name), name
    return True


def test_an_ordinary_request_is_plain() -> None:
    assert hold_against_the_parser(ORDINARY)
    assert hold_against_the_parser(ORDINARY.replace(b"GET", b"HEAD"))
    assert hold_against_the_parser(b"GET / HTTP/1.1\r\nHOST: a\r\n\r\n")


def test_nothing_of_the_corpus_is_taken_that_the_parser_refuses() -> None:
    taken = 0
    for line in CORPUS.read_text().splitlines():
        raw = base64.b64decode(json.loads(line)["raw_b64"])
        for data in (raw, raw.replace(b"\r\n", b"\r\nHost: a\r\n", 1)):
            taken += hold_against_the_parser(data)
    assert taken > 3


@settings(max_examples=3000, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, len(ORDINARY)), st.integers(0, 6), st.sampled_from(PIECES) | st.binary(max_size=3)),
        max_size=3,
    )
)
@example([(len(ORDINARY) - 2, 0, b"Content-Length: 5\r\n")])
def test_no_edited_request_is_taken_that_the_parser_refuses(edits: list[tuple[int, int, bytes]]) -> None:
    data = ORDINARY
    for at, cut, piece in edits:
        data = data[:at] + piece + data[at + cut :]
    hold_against_the_parser(data)


def test_what_was_left_to_the_parser_does_not_spoil_the_next_request() -> None:
    reader = PlainReader(Limits())
    for odd in (ORDINARY[:-2], b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", ORDINARY * 2, b"\x16\x03\x01\r\n\r\n"):
        assert read_plainly(odd, reader) is None
        assert read_plainly(ORDINARY, reader) is not None


def test_limits_hold_for_plain_requests() -> None:
    def taken(data: bytes, limits: Limits) -> bool:
        return PlainReader(limits).read(data, Request())

    assert taken(ORDINARY, Limits(headers=7))
    assert not taken(ORDINARY, Limits(headers=6))
    assert not taken(ORDINARY, Limits(request_line_bytes=40))
    assert not taken(ORDINARY, Limits(headers_bytes=80))


def test_what_is_remembered_is_bounded() -> None:
    reader = PlainReader(Limits())
    for number in range(KNOWN_MAX + 10):
        for _ in range(2):
            request = read_plainly(b"GET /%d HTTP/1.1\r\nHost: a\r\nX-%d: 1\r\n\r\n" % (number, number), reader)
            assert request is not None
            assert request.path == b"/%d" % number
            assert request.headers == {b"host": b"a", b"x-%d" % number: b"1"}
    # The fields were one more, the host's.
    assert (len(reader.request_lines), len(reader.field_lines)) == (10, 12)
    long = b"GET /%s HTTP/1.1\r\nHost: a\r\nX-Long: %s\r\n\r\n" % (b"x" * 600, b"y" * 600)
    for _ in range(3):
        assert read_plainly(long, reader) is not None
    assert (len(reader.request_lines), len(reader.field_lines)) == (10, 12)


def test_what_comes_once_is_not_remembered() -> None:
    reader = PlainReader(Limits())
    for number in range(NEWCOMERS + 10):
        request = read_plainly(b"GET /?%d HTTP/1.1\r\nHost: a\r\n\r\n" % number, reader)
        assert request is not None
        assert not request.line.shared
    assert len(reader.request_lines) == 0


def test_one_that_comes_once_takes_the_place_of_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adcore.http1.plain.NEWCOMERS", 1)
    reader = PlainReader(Limits())
    shared = []
    for path in (b"/a", b"/b", b"/a", b"/b", b"/b", b"/b", b"/a"):
        request = read_plainly(b"GET %s HTTP/1.1\r\nHost: a\r\n\r\n" % path, reader)
        assert request is not None
        shared.append(request.line.shared)
    # The first that is kept is /b's second in a row.
    assert shared == [False, False, False, False, True, True, False]


def test_requests_with_the_same_line_share_it() -> None:
    reader = PlainReader(Limits())
    _, one, other = (read_plainly(ORDINARY, reader) for _ in range(3))
    assert one is not None
    assert other is not None
    assert one.line is other.line
