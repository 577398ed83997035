"""Every place where a visitor's bytes come in: what to put there, and how it is sent.

A surface takes a payload, any bytes, and makes of it what comes over one connection: the payload is escaped where it
would otherwise leave its place, so that the climb (climb.py) spends its cases behind the parser and not on it.
"""

import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import quote_from_bytes

from crawleruseragents import CRAWLER_USER_AGENTS_DATA

from adcore.core.frequency import Seen, campaign_key
from adcore.tokens import FrequencyCookies, Tokens
from tests.inprocess import KEYRING, NOW
from tests.inventories import campaign, text_creative

# What uvloop reads at once, and more than the limits of a request.
INPUT_BYTES_MAX = 70_000
# uvloop reads no more at once.
READ_BYTES_MAX = 256 * 1024 - 1000
LINE_BYTES_MAX = 8_000
HEADER_BYTES_MAX = 32_000
# More than may be answered in one turn, if each request costs what it can.
PIPELINE_BYTES = 6000

# Marks above and below, of different classes, which normal form has to sort; the longest decompositions.
MARKS = "\u0316\u0301" * 40
CONJOINING = "\u1112\u1161\u11ab" * 20
LENGTHENING = "\u0390\u1f82\ufb2c\U0001d160" * 10
WORDS = [
    *(b"a" + MARKS.encode(), MARKS.encode(), CONJOINING.encode(), LENGTHENING.encode(), "\u0130\u00df".encode()),
    *(b",", b",,,,", b"a,", b";", b"; ", b"=", b"&", b"&a", b"%", b"%41", b"%ff", b"+", b"-", b" ", b"\t", b"."),
    *(b"1", b"0." * 20, b"1.1.1.1,", b"::,", b"1:", b"a-b-", b"ja;q=0.5,", b";q=", b"*", b"9" * 400, b"e9", b"\\u0316"),
    *(
        b"\xf0\x9f\x98\x80",
        b"\xed\xa0\x80",
        b"\xff",
        b"\xc0\x80",
        b'"',
        b'\\"',
        b"[",
        b"]",
        b"{",
        b"}",
        b'{"a":',
        b"[[",
    ),
    *(b"kv.", b"&kv.a=b", b"&keywords=b", b"&placement=side", b"placement=side&n=32", b"w1,", b"x2,", b"n3", b"n4=a"),
    *(
        b"\r\n",
        b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n",
        b"Host: a\r\n",
        b"a: b\r\n",
        b"0\r\n",
        b"1\r\n\r\n\r\n",
        b"adcore_fc_",
    ),
]


class Surface(NamedTuple):
    name: str
    send: Callable[[bytes], bytes]
    """The payload as it comes over a connection."""
    seeds: list[bytes]
    payload_bytes_max: int
    words: list[bytes] = WORDS
    is_large: bool = False
    """Whether it is sent to a server with 5,000 campaigns in each of 32 placements."""
    last_reads: int = 0
    """How many of its last bytes come in a read each."""


def small_inventory() -> dict[str, Any]:
    """A campaign or more for each facet of targeting, and some that counts hold back."""
    targetings: list[dict[str, Any]] = [
        {},
        {"devices": ["mobile"]},
        {"languages": ["ja", "en"]},
        *({"keywords_any": [f"w{n}", "news"]} for n in range(4)),
        *({"keywords_none": [f"x{n}"]} for n in range(4)),
        *({"key_values": {f"n{n}": ["a", "b"], "s": ["a"]}} for n in range(8)),
    ]
    campaigns = [
        campaign(
            f"c{number}",
            targeting=targeting,
            goal={"impressions": 1000} if number % 2 else None,
            frequency_cap={"impressions": 9, "seconds": 3600} if number % 3 == 0 else None,
        )
        for number, targeting in enumerate(targetings)
    ]
    return {"placements": [{"id": "side", "width": 300, "height": 250}], "campaigns": campaigns}


def large_inventory(placements: int = 32, campaigns: int = 5000) -> dict[str, Any]:
    """Campaigns that are all for any placement, with a word or a value of their own each, a fifth of them limited."""
    kinds: list[Callable[[int], dict[str, Any]]] = [
        lambda n: {},
        lambda n: {"keywords_any": [f"w{n % 400}", "news"]},
        lambda n: {"keywords_none": [f"x{n % 400}"]},
        lambda n: {"key_values": {f"n{n % 1000}": ["a", "b"], f"m{n % 7}": ["a"]}},
        lambda n: {"languages": ["ja", "en"], "devices": ["desktop", "other"]},
    ]
    return {
        "placements": [{"id": f"p{number}", "width": 300, "height": 250} for number in range(placements)],
        "campaigns": [
            campaign(
                f"c{n}",
                weight=1 + n % 7,
                priority=("standard", "standard", "house")[n % 3],
                targeting=kinds[n % 5](n),
                goal={"impressions": 1000} if n % 5 == 0 else None,
                frequency_cap={"impressions": 2, "seconds": 3600} if n % 11 == 0 else None,
                creatives=[text_creative(f"c{n}-{k}") for k in range(1 + n % 2)],
            )
            for n in range(campaigns)
        ],
    }


def surfaces() -> Iterator[Surface]:
    yield from _raw()
    yield from _lines()
    yield from _headers()
    yield from _bodies()
    yield from _links()
    yield from _large()


# --- the connection


def _raw() -> Iterator[Surface]:
    get = b"GET /v1/decision?placement=side HTTP/1.1\r\nHost: a\r\n\r\n"
    chunks = b"POST /v1/decision HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    seeds = [
        get,
        get * 1000,
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 2000,
        b"\r\n" * 30_000 + get,
        chunks + b"1\r\n{\r\n" * 9000 + b"0\r\n\r\n",
        chunks + b"1;a=b\r\n{\r\n" * 6000 + b"0\r\n\r\n",
        chunks + b"2\r\n\r\n\r\n" * 9000 + b"0\r\n\r\n",
        get[:-2] + b"a: b\r\n" * 5000 + b"\r\n",
        get[:-2] + b"".join(b"a%d: b\r\n" % n for n in range(98)) + b"\r\n",
        get[:-2] + b"cookie: a\r\n" * 96 + b"\r\n",
    ]
    yield Surface("connection", lambda payload: payload, seeds, INPUT_BYTES_MAX)
    fields = [
        *(b"a: b\r\n" * 40_000, b"".join(b"a%d: b\r\n" % n for n in range(20_000)), b"a: " + b"b" * 240_000),
        *(b"a: b\r\n" * 98, b"cookie: a\r\n" * 98, b"a: " + b"b" * 32_000 + b"\r\n", b"a: b\r\nhost: a\r\n"),
    ]
    yield Surface("fields", lambda payload: get[:-2] + payload + b"\r\n", fields, READ_BYTES_MAX)
    yield Surface("trailers", lambda payload: chunks + b"0\r\n" + payload + b"\r\n", fields, READ_BYTES_MAX)
    # What is not complete is copied with each read.
    whole = [b"a: " + b"b" * 30_000, b"a: b\r\n" * 98, b"a" * 30_000, b"a: b\r\n\r\n"]
    for name, before in (("fields byte by byte", get[:-2]), ("trailers byte by byte", chunks + b"0\r\n")):
        yield Surface(name, partial(bytes.__add__, before), whole, HEADER_BYTES_MAX, last_reads=200)
    # A peer may send as many requests at once as it likes, each of them new to the server.
    one = [
        b"/v1/decision?placement=side&kv.a=#",
        b"/v1/decision?placement=side&n=32&keywords=#",
        b"/v1/frame?placement=none&a=#",
    ]
    yield Surface("pipeline", _pipeline, one, 500)


def _pipeline(target: bytes) -> bytes:
    requests: list[bytes] = []
    size = 0
    safe = quote_from_bytes(target, safe="/?&=,.#%+").encode()
    while size < PIPELINE_BYTES:
        number = b"%d" % len(requests)
        headers = b"Host: a\r\nUser-Agent: Linux %b\r\nX-Real-IP: 10.0.%b.1\r\n" % (number, number[-2:])
        requests.append(b"GET %b HTTP/1.1\r\n%b\r\n" % (safe.replace(b"#", number), headers))
        size += len(requests[-1])
    return b"".join(requests)


# --- request lines


def _get(target: bytes, headers: bytes = b"") -> bytes:
    return b"GET %b HTTP/1.1\r\nHost: a\r\n%b\r\n" % (target, headers)


def _lines() -> Iterator[Surface]:
    def raw(path: bytes) -> Callable[[bytes], bytes]:
        return lambda payload: _get(path + quote_from_bytes(payload, safe="&=,.%+/?;:!*()").encode())

    def escaped(before: bytes, after: bytes = b"") -> Callable[[bytes], bytes]:
        return lambda payload: _get(before + quote_from_bytes(payload, safe="").encode() + after)

    many = [b"&a" * 3000, b"&a" * 250, b"&kv.a=b" * 200, b"&keywords=b,c" * 200, b"&" * 4000, b"&%41=%42" * 250]
    many += [b"&kv.%b=" % MARKS.encode() * 4, b"placement=side&n=32", b"placement=" + b"side," * 31 + b"side"]
    yield Surface("query", raw(b"/v1/decision?placement=side"), many, LINE_BYTES_MAX)
    yield Surface("path", raw(b"/"), [b"v1/tag.js?v=1", b"v1/decision", b"//////", b"a" * 4000], LINE_BYTES_MAX)
    values = [MARKS.encode(), CONJOINING.encode(), LENGTHENING.encode(), b"a," * 2000, b"," * 4000, b" " * 4000]
    values += [
        ",".join(f"{n}{MARKS[:8]}" for n in range(99)).encode(),
        b"a" * 4000,
        b"\xff" * 100,
        b",".join(SPELLINGS),
    ]
    where = b"/v1/decision?placement=side"
    for name in (b"keywords", b"kv.section", b"user", b"n", b"other"):
        yield Surface(f"?{name.decode()}", escaped(where + b"&%b=" % name), values, LINE_BYTES_MAX)
    yield Surface("?kv.NAME", escaped(where + b"&kv.", b"=a"), values, LINE_BYTES_MAX)
    yield Surface("?placement", escaped(b"/v1/decision?placement="), [*values, b"side"], LINE_BYTES_MAX)


SPELLINGS = [bytes(c ^ 32 if n >> k & 1 else c for k, c in enumerate(b"abcdefg")) for n in range(128)]


# --- headers


def agents() -> list[bytes]:
    """What ua-parser and crawler-user-agents look for, as many of them in one header as are read."""
    names = sorted({str(one["pattern"]).replace("\\", "") for one in CRAWLER_USER_AGENTS_DATA}, key=len)
    packed = [" ".join(names[start:]).encode()[:1024] for start in range(0, len(names), 150)]
    repeated = [
        b"Android ",
        b"Windows NT 5.1 ",
        b"CPU OS 9_",
        b"Linux ",
        b"aft",
        b"dtv ",
        b"smart",
        b"playstation ",
        b"tablets ",
    ]
    return [
        *packed,
        *(word * (1024 // len(word)) for word in repeated),
        b"(" * 1000,
        b"1." * 500,
        b" " * 1000,
        b"x" * 8000,
    ]


def cookies() -> list[bytes]:
    signed = FrequencyCookies(KEYRING)
    seen = [Seen(campaign_key(f"c{n % 15}"), int(NOW) - n, 1) for n in range(100)]
    values = [signed.write(seen[: n % 100 + 1], (), (), {}, NOW, str(n)) for n in range(60)]
    pairs = [value.partition(";")[0].encode() for (value,) in values]
    return [
        b"; ".join(pairs[:12]),
        b"; ".join(sorted(pairs, key=len)[:30]),
        b"adcore_fc_a=k.;" * 200,
        b";" * 8000,
        pairs[0],
    ]


def _headers() -> Iterator[Surface]:
    def header(name: bytes) -> Callable[[bytes], bytes]:
        table = bytes(32 if c in b"\r\n\0" else c for c in range(256))
        where = b"/v1/tag.js" if name == b"If-None-Match" else b"/v1/decision?placement=side"
        return lambda payload: _get(where, name + b": " + payload.translate(table) + b"\r\n")

    hops = [
        b"1.1.1.1," * 1000 + b"1.1.1.1",
        b"10.0.0.1, " * 1000 + b"10.0.0.1",
        b"::," * 2000 + b"::",
        b"a," * 2000,
        b"," * 4000,
        b"1" * 9000,
        b"::1" + b"%" * 500,
    ]
    languages = [
        b"a," * 250,
        b"a-b-c-d-e," * 50,
        b"ja;q=0.5," * 56,
        b"ja" + b" " * 500 + b";q=1",
        b"," * 512,
        b"a-" * 250,
    ]
    hosts = [b"a" * 500, b"%41" * 200, b"[" + b":" * 500 + b"]", b"a:" + b"1" * 500]
    by_name: dict[bytes, list[bytes]] = {
        b"User-Agent": agents(),
        b"Accept-Language": languages,
        b"X-Forwarded-For": hops,
        b"X-Real-IP": hops,
        b"Forwarded": hops,
        b"X-Country": [b"JP", b" " * 4000 + b"JP", b" " * 7000 + b"\x01", "\xdf".encode()],
        b"Cookie": cookies(),
        b"Sec-GPC": [b"1", b"1" * 4000],
        b"Origin": [b"https://www.example.com", b"https://" * 500],
        b"If-None-Match": [b'"' * 4000, b'"aaaaaaaaaaaa",' * 300],
        b"X-Request-ID": [b"0f" * 16, b"0f" * 4000, "\xb2".encode() * 16],
        b"Connection": [b"keep-alive", b"keep-alive, " * 300, b"close," * 500],
        b"Content-Type": [b"text/plain;" * 300],
        b"Upgrade": [b"h2c, " * 500],
        b"Expect": [b"100-continue", b"100-continue," * 300],
    }
    for name, seeds in by_name.items():
        yield Surface(name.decode(), header(name), seeds, HEADER_BYTES_MAX)

    def host(payload: bytes) -> bytes:
        return b"GET /ping HTTP/1.1\r\nHost: %b\r\n\r\n" % payload.translate(None, b"\r\n\0")

    def absolute(payload: bytes) -> bytes:
        return b"GET http://%b/ping HTTP/1.1\r\nHost: a\r\n\r\n" % payload.translate(None, b"\r\n\0 ")

    yield Surface("Host", host, hosts, HEADER_BYTES_MAX)
    yield Surface("http://HOST", absolute, [*hosts, b"a@" * 500, b"/@" * 500], LINE_BYTES_MAX)


# --- bodies


def post(body: bytes) -> bytes:
    return b"POST /v1/decision HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


def _bodies() -> Iterator[Surface]:
    ordinary = (
        b'{"placement":["side"],"n":2,"keywords":["a"],"key_values":{"s":["x","y"]},"user":"u","visitor":{"ip":"::1"}}'
    )
    raw = [
        ordinary,
        *(b'{"placement":"side","keywords":' + b"[" * 60_000, b"[" * 64_000, b'{"placement":' + b'{"a":' * 12_000),
        *(b"{%b}" % b'"user":"u",' * 5000, b'{"placement":"side",%b"n":1}' % (b'"visitor":{},' * 4000)),
        *(b'{"placement":"side","n":%b}' % (b"9" * 4000), b'{"placement":"side","n":1%b.5e-300}' % (b"0" * 4000)),
        b'{"placement":%b}' % json.dumps(["side"] * 8000).encode(),
        b'{"placement":%b,"n":1}' % json.dumps(["side"] * 32).encode(),
        b'{"placement":"side","key_values":{%b}}' % b",".join(b'"a":"b"' for _ in range(8000)),
        b'{"placement":"side","key_values":{%b}}' % b",".join(b'"%d":"b"' % n for n in range(4000)),
        b'{"placement":"side","key_values":{"a":%b}}' % json.dumps(["x"] * 10_000).encode(),
        b'{"placement":"side","keywords":%b}' % json.dumps([str(n) for n in range(7000)]).encode(),
        b'{"placement":"side","keywords":%b}' % json.dumps(["a"] * 12_000).encode(),
    ]
    yield Surface("body", post, raw, INPUT_BYTES_MAX - 2000)
    head = b"POST /v1/decision HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"

    def chunked(payload: bytes) -> bytes:
        return head + b"".join(b"1\r\n%c\r\n" % byte for byte in payload) + b"0\r\n\r\n"

    yield Surface("body in chunks", chunked, [ordinary, b" " * 4000 + ordinary], LINE_BYTES_MAX)
    texts = [
        *(("a" + MARKS * 200).encode(), (CONJOINING * 200).encode(), (LENGTHENING * 200).encode(), b"a" * 60_000),
        *(b"a," * 30_000, b"," * 60_000, b" " * 60_000, b"\x01" * 5000, b",".join(SPELLINGS)),
        ",".join(f"{n}{MARKS * 3}" for n in range(120)).encode(),
    ]

    def field(form: str) -> Callable[[bytes], bytes]:
        before, _, after = form.partition("#")

        def send(payload: bytes) -> bytes:
            text = json.dumps(payload.decode("utf-8", "replace"), ensure_ascii=False)[1:-1]
            return post((before + text + after).encode())

        return send

    for form in (
        *('{"placement":"#"}', '{"placement":"side","keywords":"#"}', '{"placement":"side","keywords":["b","#"]}'),
        *('{"placement":"side","key_values":{"#":"a"}}', '{"placement":"side","key_values":{"a":["b","#"]}}'),
        *('{"placement":"side","user":"#"}', '{"placement":"side","visitor":{"ip":"#"}}'),
        *('{"placement":"side","visitor":{"country":"#"}}', '{"placement":"side","#":1}'),
    ):
        yield Surface(form, field(form), texts, INPUT_BYTES_MAX - 2000)
    hops = [b"1.1.1.1", b"1" * 6000]
    yield Surface(
        '{"visitor":{"user_agent":"#"}}', field('{"placement":"side","visitor":{"user_agent":"#"}}'), agents(), 60_000
    )
    form = '{"placement":"side","visitor":{"accept_language":"#"}}'
    yield Surface('{"visitor":{"accept_language":"#"}}', field(form), [b"a," * 250, b"ja;q=0.5," * 6000, *hops], 60_000)


# --- links


def _links() -> Iterator[Surface]:
    token = Tokens(KEYRING, 86_400.0).sign(b"0f" * 16, Tokens.name("side", "c0-1"), NOW)
    seeds = [token, token + b"&a=b" * 500, token * 20, b"~" * 4000, b"t=" * 1000, b"k~" + b"0" * 300]
    for path in (b"click", b"view"):
        send = b"/v1/%b?t=" % path
        yield Surface(
            f"{path.decode()}?t",
            lambda payload, send=send: _get(send + quote_from_bytes(payload, safe="~&=.-_%").encode()),  # type: ignore[misc]
            seeds,
            LINE_BYTES_MAX,
        )


# --- thousands of campaigns


def _large() -> Iterator[Surface]:
    every = "&".join(f"placement=p{number}" for number in range(32)).encode()
    names = b"&".join(b"kv.n%d=a" % n for n in range(16)) + b"&" + b"&".join(b"kv.m%d=a" % n for n in range(7))
    words = ",".join(f"w{n}" for n in range(16)).encode() + b"," + ",".join(f"x{n}" for n in range(16)).encode()
    seeds = [
        every,
        every + b"&keywords=" + words + b"&" + names,
        b"placement=p1&n=32&keywords=" + words,
        b"placement=p1&n=32&" + names,
        b"placement=p1",
        b"placement=p1,p2,p3,none",
    ]
    pieces = [
        b"&keywords=",
        b"w1,",
        b"x2,",
        b"&kv.n3=a",
        b"&kv.m1=a",
        b"&kv.m2=b",
        b",p3",
        b"&n=16",
        b"news",
        b"&user=u",
    ]

    def send(payload: bytes) -> bytes:
        query = quote_from_bytes(payload, safe="&=,.%+").encode()
        return _get(b"/v1/decision?" + query, b"Accept-Language: ja\r\nUser-Agent: Linux X11\r\n")

    yield Surface("32 placements of 5,000 campaigns", send, seeds, LINE_BYTES_MAX, pieces, True)
