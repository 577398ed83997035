"""What is fuzzed: for each target good cases, words that mean something to it, and what must hold for any bytes.

A target's `run` takes one case and raises when a promise is broken: an exception that nobody expects, an answer that
depends on how the bytes were split, a record that can't be read again.
"""

import base64
import copy
import io
import json
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from adcore.core.adtable import build_table
from adcore.core.frequency import Cap, Seen, campaign_key
from adcore.core.inventory import InventoryError, parse_inventory, to_document
from adcore.deliverylog.reader import Damage, read_records
from adcore.deliverylog.record import FORMS
from adcore.errors import SourceError
from adcore.http1.plain import PlainReader
from adcore.http1.request import Limits
from adcore.query import QueryError, parse_body
from adcore.sources import Revision, Rows
from adcore.sources.codec import decode_rows, encode_rows
from adcore.sources.lastgood import LastGood
from adcore.sources.reader import Ask, Reader
from adcore.sources.seal import Seals
from adcore.sources.snapshot import Head, Snapshot
from adcore.tokens import FrequencyCookies, KeyRing, TokenError, Tokens
from tests.http1.fakes import Connection
from tests.inprocess import NOW, Process
from tests.inventories import campaign, document, text_creative
from tests.records import click, view

CORPUS = Path(__file__).parents[1] / "data" / "http_requests.jsonl"
SAMPLE = Path(__file__).parents[2] / "adcore" / "sample_inventory.json"
KEYRING = KeyRing({"k1": b"k" * 32, "old": b"o" * 32})
DAY_S = 86_400.0


class Target(NamedTuple):
    seeds: list[bytes]
    words: list[bytes]
    run: Callable[[bytes], None]


# --- the connection, with all that stands behind it


def requests() -> list[bytes]:
    target = b"/v1/decision?placement=side&keywords=a,b&kv.s=x&user=u"
    body = b'{"placement":["side"],"n":2,"visitor":{"ip":"192.0.2.1","country":"JP","user_agent":"x"}}'
    token = Tokens(KEYRING, DAY_S).sign(b"0" * 32, Tokens.name("side", "a-1"), NOW)
    ours = [
        b"GET " + target + b" HTTP/1.1\r\nHost: a\r\nUser-Agent: Mozilla/5.0 (X11)\r\nAccept-Language: ja\r\n\r\n",
        b"GET /v1/frame?placement=side HTTP/1.1\r\nHost: a\r\nX-Country: JP\r\nX-Real-IP: 192.0.2.1\r\n\r\n",
        b"GET /v1/click?t=" + token + b" HTTP/1.1\r\nHost: a\r\nCookie: adcore_fc_x=y; a=b\r\n\r\n",
        b"GET /v1/view?t=" + token + b" HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 192.0.2.1, 10.0.0.1\r\n\r\n",
        b"POST /v1/decision HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body) + body,
        b"POST /v1/decision HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n%x;q=1\r\n" % len(body)
        + body
        + b"\r\n0\r\nX-T: 1\r\n\r\n",
        b"HEAD /ping HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
        b"GET /v1/decision?placement=side HTTP/1.1\r\nHost: a\r\nX-Request-ID: %032x\r\nSec-GPC: 1\r\n\r\n" % 7,
    ]
    chunked = b"POST /v1/decision HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n"
    trailers = (b"X-T: 1\r\n" * 100, b"X-T: 1\r\n" * 101, b"X-T: " + b"y" * 32_760 + b"\r\n", b"Cookie: a\r\n")
    ours += [chunked + fields + b"\r\n" for fields in trailers]
    ours += [one + other for one, other in pairwise(ours)]
    # The reads of this one each end where a request ends, but for one.
    ours.append(
        b"GET /v1/frame?placement=side HTTP/1.1\r\nHost: a\r\nX-CuntrIP: 192.0.2.1\r\n\r\n"
        b"GET /v1/click?t=k8~6b49~0i200sdde HTTP/1.1\r\nHost: a\r\nX-Country: JP\r\nX-Real-IPOSTP: 192.0.2.1\r\n\r\n"
        b"GET /v1/click?t=k1ecisio~6b49d200.~00000000000000000000000000000000~side~a9181832f533 HTTP/1.1\r\nHost: a\r\n"
        b"Cookie: adcore_fc_x=y; a=b\r\n\r\n"
    )
    rows = [json.loads(line) for line in CORPUS.read_text().splitlines()]
    return ours + [base64.b64decode(row["raw_b64"]) for row in rows]


REQUEST_WORDS = [
    *(b"Host: a\r\n", b"Host: b\r\n", b"Content-Length: 5\r\n", b"Content-Length: 0\r\n", b"Connection: close\r\n"),
    *(
        b"Transfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: gzip\r\n",
        b"Upgrade: h2c\r\n",
        b"Expect: 100-continue\r\n",
    ),
    *(
        b"GET / HTTP/1.1\r\n",
        b"HTTP/1.0",
        b"HTTP/2.0",
        b"POST ",
        b"HEAD ",
        b"0\r\n\r\n",
        b"1;a=b\r\n",
        b"\r\n ",
        b"?",
        b"&",
    ),
    *(
        b"Cookie: adcore_fc_",
        b"X-Request-ID: ",
        b"X-Forwarded-For: 1.1.1.1\r\n",
        b"%00",
        b"%ed%a0%80",
        b"http://a/",
        b"*",
    ),
]


class ConnectionTarget:
    """A connection in front of the real handlers, fed whole and in pieces: the same requests, the same statuses."""

    def __init__(self, folder: Path) -> None:
        self._process = Process(
            folder, campaign("a", frequency_cap={"impressions": 3, "seconds": 3600}), campaign("b"), keyring=KEYRING
        )
        # One for all cases, as a server has: what it remembers of one is used in the next.
        self._reader = PlainReader(Limits())

    def run(self, case: bytes) -> None:
        whole = self._talk(case, [len(case)])
        # Anywhere, but always there for the same case.
        cuts = sorted({1 + sum(case[:at]) % len(case) for at in (1, 7, 40)} | {len(case)}) if case else [0]
        apart = self._talk(case, cuts)
        assert whole == apart, (whole, apart)

    def _talk(self, case: bytes, cuts: list[int]) -> tuple[list[object], bool]:
        """The requests that were answered, and whether something was refused."""
        connection = Connection(self._process.handlers, before_answers=self._process.queue.commit)
        connection.server.clock = lambda: NOW
        connection.server.reader = self._reader
        for start, end in pairwise([0, *cuts]):
            connection.receive(case[start:end])
            connection.loop.turn()
        if not connection.transport.ended:
            connection.protocol.eof_received()
        assert connection.transport.ended, "a peer that has ended must be let go"
        connection.protocol.connection_lost(None)
        statistics = connection.server.statistics
        assert statistics.handler_errors == 0
        self._process.records()
        requests = [
            (r.method, r.path, r.query, r.body, r.keep_alive, sorted(r.headers.items())) for r in connection.requests
        ]
        return [*requests], bool(statistics.refused)


# --- what is signed


class TokenTarget:
    """No text but what was signed verifies, and nothing but TokenError comes out."""

    def __init__(self) -> None:
        self._tokens = Tokens(KEYRING, DAY_S)
        self.good = [self._tokens.sign(b"%032x" % n, Tokens.name(f"p{n}", f"c-{n}"), NOW + n) for n in range(8)]
        self.old = Tokens(KeyRing({"old": b"o" * 32}), DAY_S).sign(b"f" * 32, Tokens.name("p", "c"), NOW)

    def run(self, case: bytes) -> None:
        with suppress(TokenError):
            self._tokens.verify(case.decode("latin-1"), NOW)
            assert case in (*self.good, self.old), "it was never signed"


class CookieTarget:
    """Only what was set counts, and what is set again fits in a header."""

    def __init__(self) -> None:
        self._cookies = FrequencyCookies(KEYRING)
        self._caps = {campaign_key(name): Cap(3, 3600, name) for name in "abc"}
        self._set = [self._write(name, str(n)) for n, name in enumerate("abcabcabcab")]
        self.good = [b"; ".join(self._set[:n]) for n in range(1, 12)]

    def _write(self, name: str, unique: str) -> bytes:
        (value,) = self._cookies.write([Seen(campaign_key(name), int(NOW), 1)], (), (), self._caps, NOW, unique)
        return value.partition(";")[0].encode()

    def run(self, case: bytes) -> None:
        history, cookies = self._cookies.read(case)
        pairs = [pair.strip(b" \t") for pair in case.split(b";")]
        known = sum(1 for pair in pairs if pair in self._set)
        assert len(history) <= known, "it was never set"
        for value in self._cookies.write(
            [Seen(campaign_key("a"), int(NOW), 1)], history, cookies, self._caps, NOW, "x"
        ):
            assert value.isascii()
            assert value.isprintable(), value
            assert len(value) < 4096


# --- what is read from files, bodies and other servers


class LogTarget:
    """Damage is told with its place, in order, and never takes the record behind it along."""

    def __init__(self) -> None:
        self._last = [form.encode(click(77)) for form in FORMS.values()]
        self.good = [
            b"".join(form.encode(make(n)) for n in range(3) for make in (click, view)) for form in FORMS.values()
        ]
        self.good.append(b"".join(self.good))

    def run(self, case: bytes) -> None:
        for last in self._last:
            # The writer ends a torn line before it goes on.
            data = case + (b"\n" if last.startswith(b"{") else b"") + last
            found = list(read_records(io.BytesIO(data)))
            assert found[-1] == click(77), "the record after the damage is lost"
            damages = [one for one in found if isinstance(one, Damage)]
            for one, other in pairwise(damages):
                assert one.offset + one.length <= other.offset
            assert all(one.offset >= 0 and one.offset + one.length <= len(data) for one in damages)


def run_body(case: bytes) -> None:
    """A query or a QueryError; and what a query says can be written to the log."""
    with suppress(QueryError):
        query = parse_body(case)
        msgspec.json.encode(query)
        msgspec.msgpack.encode(query)


class Peer:
    """A socket on which a memcached says all that it will say at once."""

    def __init__(self, said: bytes) -> None:
        self._said = io.BytesIO(said)

    def sendall(self, data: bytes) -> None:
        pass

    def recv(self, size: int) -> bytes:
        return self._said.read(size)

    def close(self) -> None:
        pass


def hash_of(payload: bytes) -> str:
    return blake2b(payload, digest_size=16).hexdigest()


SEAL_KEYS = (bytes(range(32)),)


class SnapshotTarget:
    """What a memcached says: its protocol, the head, the rows. Rows, or None, or SourceError; and a table of the rows.

    A case that starts with "P" is a payload that has its right hash and seal; any other is what comes over the wire.
    """

    def __init__(self, folder: Path) -> None:
        self._seals = Seals(SEAL_KEYS)
        self._snapshot = Snapshot(f"unix:{folder}/m.sock", "t:", "me", self._seals)
        self._reader = Reader(self, self._snapshot, LastGood(folder / "last-good"))
        rows = Rows(Revision("g", 7, 6), document(campaign("a"), campaign("b", weight=2)))
        payload = encode_rows(rows)
        self.good = [self._wire(payload), b"P" + payload, b"P" + encode_rows(Rows(Revision("g", 1, 1), {}))]
        self.taken = 0

    def _wire(self, payload: bytes) -> bytes:
        # The rows' own revision, where there is one: a head that speaks of another has no snapshot.
        rows = decode_rows(payload)
        revision = Revision("g", 7, 6) if rows is None else rows.revision
        head = self._seals.seal("t:rows2:head", msgspec.msgpack.encode(Head(revision, hash_of(payload), 1)))
        # The reader asks for the head's revision first, and then loads.
        items = (("head", head), ("head", head), (f"{hash_of(payload)}:0", payload))
        return b"".join(
            b"VALUE t:rows2:%b 0 %d\r\n%b\r\nEND\r\n" % (key.encode(), len(value), value) for key, value in items
        )

    # The store is away.
    label = "store"

    def revision(self) -> Revision:
        raise SourceError("away")

    def load(self) -> Rows:
        raise SourceError("away")

    def close(self) -> None:
        pass

    def run(self, case: bytes) -> None:
        said = self._wire(case[1:]) if case.startswith(b"P") else case
        self._snapshot._client.sock = Peer(said)
        answer, parts = self._reader.look(Ask(None, None, 0, b"", b"", SEAL_KEYS))
        self._snapshot.close()
        if answer.offer is not None:
            self.taken += 1
            assert answer.offer.parts == len(parts)
            for part in parts:
                msgspec.msgpack.decode(part)


ODD_VALUES: list[Any] = [
    *(None, True, 0, -1, 1, 10**30, -0.0, 1e308, float("inf"), float("nan"), "", " ", "a", "x" * 300, "\0", "\ud800"),
    *(
        "javascript:alert(1)",
        "https://a b/",
        "https://[::1",
        "//a/",
        "https://あ.jp/\r\nX: y",
        "9999-12-31T23:59:59-23:59",
    ),
    *("2026-11-01T00:00:00+09:00", "image", "html", "paused", [], {}, [[]], ["a", "a"], [None], {"": ""}, {"a": [{}]}),
]


def edit_document(chance: random.Random) -> Any:
    """A good document with one to three values or names in it replaced, doubled or left out."""
    value = copy.deepcopy(chance.choice(INVENTORIES))
    for _ in range(chance.randrange(1, 4)):
        at: Any = value
        while True:
            key: Any = chance.choice(list(at) if isinstance(at, dict) else range(len(at)))
            if not (isinstance(at[key], dict | list) and at[key]) or chance.random() < 0.1:
                break
            at = at[key]
        match chance.randrange(4):
            case 0 if isinstance(at, dict) or len(at) > 1:
                del at[key]
            case 1 if isinstance(at, dict):
                at[chance.choice(["id", "", "\ud800", "weight", "creatives"])] = at[key]
            case 2 if isinstance(at, list):
                at.append(copy.deepcopy(at[key]))
            case _:
                at[key] = copy.deepcopy(chance.choice(ODD_VALUES))
        if not value:
            break
    return value


def run_inventory(case: bytes) -> None:
    """Errors with their paths, or an inventory that comes out as it went in; and a table in any case.

    Bytes that are no JSON choose what is changed in a good document.
    """
    try:
        value = msgspec.json.decode(case)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        value = edit_document(random.Random(case))
    table = build_table(value, revision=1)
    try:
        inventory = parse_inventory(value)
    except InventoryError:
        assert table.rejected
        assert all(str(problem).isprintable() for problem in table.rejected)
        return
    assert not table.rejected
    assert parse_inventory(msgspec.json.decode(msgspec.json.encode(to_document(inventory)))) == inventory


INVENTORIES = [
    document(),
    document(campaign("a")),
    document(
        campaign(
            "b",
            starts_at="2026-11-01T00:00:00+09:00",
            goal={"impressions": 100},
            daily_cap={"clicks": 5},
            frequency_cap={"impressions": 3, "seconds": 86400},
            pacing="even",
            targeting={"devices": ["mobile"], "hours": [0, 23], "key_values": {"s": ["m"]}, "placements": ["side"]},
            creatives=[
                text_creative("b-1"),
                text_creative("b-2", format="html", html="<b>{click_url}</b>", data=None),
                text_creative("b-3", format="image", image_url="https://i.example.net/1.png", alt="x", data=None),
                text_creative("b-4", format="native", data={"title": "t", "deep": [{"er": 1.5}]}),
            ],
        )
    ),
]
INVENTORY_WORDS = [
    *(
        b'"id":"a"',
        b'"weight":0',
        b'"weight":-1',
        b'"javascript:alert(1)"',
        b'"https://a b/"',
        b'"\\ud800"',
        b'"\\u0000"',
    ),
    *(
        b"1e400",
        b"true",
        b'"paused"',
        b'"2026-02-30T00:00:00Z"',
        b'"9999-12-31T23:59:59-23:59"',
        b'"../x"',
        b"{}",
        b"[]",
    ),
    *(b'"https://[::1"', b'"https://xn--a"', b'"https://\xe3\x81\x82.jp/"', b'"{click_id}"', b'"hours":[24]'),
]


def targets(folder: Path) -> Iterator[tuple[str, Callable[[], Target]]]:
    """Every target by its name, made when it is called for."""

    def make_snapshot() -> Target:
        target = SnapshotTarget(folder)
        return Target(target.good, [b"VALUE ", b"END\r\n", b"\x81", b"\xdf\xff\xff\xff\xff", b"P"], target.run)

    def make_token() -> Target:
        target = TokenTarget()
        return Target([*target.good, target.old], [b"~", b"k1", b"old", b"%00", b"."], target.run)

    def make_cookie() -> Target:
        target = CookieTarget()
        return Target(target.good, [b"adcore_fc_", b"; ", b";", b"=", b".", b"k1."], target.run)

    yield "connection", lambda: Target(requests(), REQUEST_WORDS, ConnectionTarget(folder).run)
    yield "token", make_token
    yield "cookie", make_cookie
    yield (
        "log",
        lambda: Target(LogTarget().good, [b"\n{", b'{"v":1', b'"type":"click"', b"\xc1\xad\0\0"], LogTarget().run),
    )
    yield (
        "body",
        lambda: Target(
            [
                b'{"placement":["top","side"],"keywords":["a"],"key_values":{"s":["x","y"]},"user":"u"}',
                b'{"placement":"top","n":3,"visitor":{"user_agent":"x","accept_language":"ja","ip":"::1","country":"JP"}}',
            ],
            [b'"\\ud800"', b'"\\u0000"', b'"n":99999999999999999999', b'"visitor":null', b'"placement":""', b","],
            run_body,
        ),
    )
    yield "snapshot", make_snapshot
    yield (
        "inventory",
        lambda: Target(
            [SAMPLE.read_bytes(), *map(msgspec.json.encode, INVENTORIES)],
            INVENTORY_WORDS,
            run_inventory,
        ),
    )
