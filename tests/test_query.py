import json
from typing import Any

import pytest

from adcore.query import SLOTS_MAX, Query, QueryError, Visitor, parse_body, parse_query


def query(*slots: str, single: bool = True, **fields: Any) -> Query:
    return Query(slots, **{"keywords": (), "key_values": (), "user": "", "visitor": None, "single": single, **fields})


GOOD: list[tuple[bytes, Query]] = [
    (b"placement=top", query("top")),
    (b"placement=top&", query("top")),
    (b"placement=top,side", query("top", "side", single=False)),
    (b"placement=top&placement=side", query("top", "side", single=False)),
    (b"placement=top&n=1", query("top", single=False)),
    (b"placement=top&n=3", query("top", "top", "top", single=False)),
    (b"placement=a,b&n=2", query("a", "a", "b", "b", single=False)),
    (b"placement=top&keywords=Manga,news", query("top", keywords=("manga", "news"))),
    (b"placement=top&keywords=%E6%BC%AB%E7%94%BB", query("top", keywords=("漫画",))),
    (b"placement=top&kv.section=Manga", query("top", key_values=(("section", "manga"),))),
    (
        b"placement=top&kv.a=1,2&kv.b=x+y",
        query("top", key_values=(("a", "1"), ("a", "2"), ("b", "x y"))),
    ),
    (b"placement=top&user=u%2F1", query("top", user="u/1")),
    (b"placement=top&utm_source=x&_=123", query("top")),
]


@pytest.mark.parametrize(("raw", "expected"), GOOD, ids=[raw.decode() for raw, _ in GOOD])
def test_a_query_string(raw: bytes, expected: Query) -> None:
    assert parse_query(raw) == expected


BAD: list[tuple[bytes, str]] = [
    (b"", "placement is missing"),
    (b"placement=", "placement is missing"),
    (b"placement=a,,b", "placement must be"),
    (b"placement=" + b"x" * 65, "placement must be"),
    (b"placement=a%0d%0aX:1", "placement must be"),
    (b"placement=a&n=0", "n must be"),
    (b"placement=a&n=-1", "n must be"),
    (b"placement=a&n=x", "n must be"),
    (b"placement=a&n=%D9%A1", "n must be"),
    (b"placement=a&n=99999999", "n must be"),
    (b"placement=a&n=%d" % (SLOTS_MAX + 1), "n must be"),
    (b"placement=a,b&n=%d" % SLOTS_MAX, "n must be"),
    (b"placement=a&n=1&n=2", "n is given twice"),
    (b"placement=a&user=b&user=c", "user is given twice"),
    (b"placement=a&user=" + b"x" * 257, "user must be"),
    (b"placement=%ff", "percent-encoded UTF-8"),
    (b"placement=\xff", "percent-encoded UTF-8"),
    (b"placement=a&keywords=" + b",".join(b"w%d" % n for n in range(100)), "keywords"),
    (b"placement=a&kv.x=" + b"v" * 200, "kv.x"),
]


@pytest.mark.parametrize(("raw", "message"), BAD, ids=[raw[:40].hex() for raw, _ in BAD])
def test_a_bad_query_string_names_the_parameter(raw: bytes, message: str) -> None:
    with pytest.raises(QueryError, match=message.replace(".", r"\.")):
        parse_query(raw)


BODIES: list[tuple[dict[str, Any], Query]] = [
    ({"placement": "top"}, query("top")),
    ({"placement": ["top"]}, query("top", single=False)),
    ({"placement": "a,b"}, query("a", "b", single=False)),
    ({"placement": "a", "n": 2}, query("a", "a", single=False)),
    ({"placement": "a", "n": 1}, query("a", single=False)),
    ({"placement": "a", "keywords": ["X", "y"]}, query("a", keywords=("x", "y"))),
    ({"placement": "a", "keywords": "X,y"}, query("a", keywords=("x", "y"))),
    (
        {"placement": "a", "key_values": {"s": "m", "t": ["1", "2"]}},
        query("a", key_values=(("s", "m"), ("t", "1"), ("t", "2"))),
    ),
    (
        {"placement": "a", "user": "u", "visitor": {"user_agent": "UA", "ip": "192.0.2.1", "country": "JP"}},
        query("a", user="u", visitor=Visitor("UA", None, "192.0.2.1", "JP")),
    ),
]


@pytest.mark.parametrize(("body", "expected"), BODIES, ids=[str(body)[:60] for body, _ in BODIES])
def test_a_body(body: dict[str, Any], expected: Query) -> None:
    assert parse_body(json.dumps(body).encode()) == expected


BAD_BODIES: list[tuple[bytes, str]] = [
    (b"", "the body is not the JSON expected"),
    (b"[]", "Expected `object`"),
    (b'{"placement": 1}', "placement"),
    (b"{}", "placement"),
    (b'{"placement": []}', "placement is missing"),
    (b'{"placement": "a", "plcement": 1}', "plcement"),
    (b'{"placement": "a", "n": 1.5}', "n"),
    (b'{"placement": "a", "n": -1}', "n must be"),
    (b'{"placement": "a", "visitor": {"cookie": "x"}}', "cookie"),
    (b'{"placement": "\xff"}', "the body is not the JSON expected"),
]


@pytest.mark.parametrize(("body", "message"), BAD_BODIES, ids=[body.hex()[:40] for body, _ in BAD_BODIES])
def test_a_bad_body_names_the_field(body: bytes, message: str) -> None:
    with pytest.raises(QueryError, match=message):
        parse_body(body)
