"""Requests that two servers could read differently, sent to adcore and to nginx in front of it: it never sees one more
than nginx has forwarded, and what it answers is what the corpus says."""

import base64
import json
import random
import re
import socket
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

from tests import services
from tests.http1.test_protocol import CORPUS, corpus
from tests.process import KINDS, PATIENCE_S, connect, serving, serving_over, wait_for

INNER = b"GET /v1/decision?placement=top&kv.n=smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
LINE = b"POST /v1/decision?placement=top HTTP/1.1\r\nHost: a\r\n"
CHUNK = b"%x\r\n%b\r\n0\r\n\r\n" % (len(INNER), INNER)
CODINGS = tuple(
    value.encode("latin-1")
    for value in (
        *("Transfer-Encoding: chunked", "Transfer-Encoding : chunked", "Transfer-Encoding:\tchunked"),
        *("TRANSFER-ENCODING: chunked", "Transfer-Encoding: xchunked", "Transfer-Encoding: chunked, identity"),
        *("Transfer-Encoding: identity, chunked", "Transfer-Encoding: gzip, chunked", "Transfer-Encoding: \vchunked"),
        *("Transfer-Encoding: chunked\r\nTransfer-Encoding: x", "Transfer-Encoding:\r\n chunked"),
        *("X: y\rTransfer-Encoding: chunked", "X: y\nTransfer-Encoding: chunked", "Transfer_Encoding: chunked"),
        *('Transfer-Encoding: "chunked"', "Transfer-Encoding: chunked;q=1", "Transfer-Encoding: chunked\0"),
        " Transfer-Encoding: chunked",
    )
)
LENGTHS = tuple(
    value.encode("latin-1")
    for value in (
        *("Content-Length: 0", f"Content-Length: {len(INNER)}", f"Content-Length: {len(CHUNK)}", "Content-Length: 00"),
        *("Content-Length: +5", "Content-Length: -1", "Content-Length: 0x5", "Content-Length: 5 5"),
        *("Content-Length: 0, 5", "Content-Length: 0\r\nContent-Length: 5", "Content-Length: 1e1", "Content-Length:"),
        *("Content-Length: 99999999999999999999", "Content-Length:\v0", "Content-Length: 0\0", "Content_Length: 5"),
    )
)
TARGET = b"/v1/decision?placement=top"
GET = b"GET " + TARGET + b" HTTP/1.1\r\n"
CHUNKED = LINE + b"Transfer-Encoding: chunked\r\n\r\n"
# The body of a GET, and a URL with another host than Host's, are no doubt.
CLEAR = (
    GET + b"Host: a\r\nContent-Length: %d\r\n\r\n" % len(INNER) + INNER + INNER,
    GET.replace(b" /", b" http://b/") + b"Host: a\r\n\r\n" + INNER,
)
DOUBTFUL = (
    GET + b"Host: a\r\nUpgrade: h2c\r\nConnection: upgrade\r\nContent-Length: 5\r\n\r\n" + INNER,
    GET.replace(b"1.1", b"1.0") + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNK,
    GET.replace(b"1.1", b"0.9") + b"\r\n" + INNER,
    GET.replace(b"1.1", b"1.2") + b"Host: a\r\n\r\n" + INNER,
    GET.replace(b" HTTP/1.1", b"") + b"\r\n" + INNER,
    *(
        GET + b"Host:" + host + b"\r\n\r\n" + INNER
        for host in (b" a\r\nHost: b", b" a,b", b"", b" u@a", b" a/b", b" a b")
    ),
    GET + b"\r\n" + INNER,
    GET + b"Host: a\r\nX: y\0\r\n\r\n" + INNER,
    GET + b"Host: a\r\nX: \x01\r\n\r\n" + INNER,
    GET + b"Host: a\r\nX: y\r\n z\r\n\r\n" + INNER,
    GET + b"Host: a\r\n" + b"X: " + b"y" * 66_000 + b"\r\n\r\n" + INNER,
    GET.replace(b"?", b"?" + b"x" * 66_000) + b"Host: a\r\n\r\n" + INNER,
    GET.replace(TARGET, b"*") + b"Host: a\r\n\r\n" + INNER,
    b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n" + INNER,
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + INNER,
    *(
        CHUNKED + rest + INNER
        for rest in (
            *(b"0;\r\n\r\n", b"1;\x01\r\na\r\n0\r\n\r\n", b"1\na\r\n0\r\n\r\n", b"1\r\nab\r\n0\r\n\r\n", b" 0\r\n\r\n"),
            *(
                b"0x0\r\n\r\n",
                b"-0\r\n\r\n",
                b"0\r\nContent-Length: 5\r\n\r\n",
                b"0\r\nHost: b\r\n\r\n",
                b"f" * 17 + b"\r\n",
            ),
        )
    ),
)


def payloads() -> list[bytes]:
    """What the corpus has, led to a path that nginx forwards, and every framing with every other."""
    made = [
        re.sub(rb"^(\r\n)*(\S+) \S+", rb"\1\2 /v1/decision?placement=top", raw, count=1) + INNER
        for _, _, raw in corpus()
    ]
    for length in (*LENGTHS, b"X: y"):
        for coding in (*CODINGS, b"X: y"):
            for fields in ((length, coding), (coding, length)):
                made += [LINE + b"\r\n".join(fields) + b"\r\n\r\n" + body for body in (CHUNK + INNER, INNER)]
    return made


def talk(sock: socket.socket, data: bytes) -> bytes:
    """Send it all and read until the other side ends it."""
    received = b""
    with sock, suppress(ConnectionError, TimeoutError):
        sock.settimeout(PATIENCE_S)
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        while more := sock.recv(1 << 16):
            received += more
    return received


def answers(received: bytes) -> list[tuple[int, bool]]:
    """Each answer's status, and whether it ends the connection."""
    found = []
    while head := re.match(rb"HTTP/1\.1 (\d{3}) [^\r]*\r\n(.*?)\r\n\r\n", received, re.DOTALL):
        length = re.search(rb"(?i)(?:^|\r\n)content-length: (\d+)", head[2])
        found.append((int(head[1]), b"connection: close" in head[2].lower()))
        received = received[head.end() + (int(length[1]) if length else 0) :]
    assert received == b"", received
    return found


def is_good(length: bytes, coding: bytes) -> bool:
    """Whether these two fields, in whatever order, frame a body (RFC 9112 6.3)."""
    # An underscore makes it another field.
    lengths = {b"Content-Length: 0", b"Content-Length: 00", LENGTHS[1], LENGTHS[2]}
    chunked = coding.lower() in (b"transfer-encoding: chunked", b"transfer-encoding:\tchunked")
    without_length = length in (b"X: y", b"Content_Length: 5")
    without_coding = coding in (b"X: y", b"Transfer_Encoding: chunked")
    return (chunked and without_length) or (without_coding and length in lengths)


@pytest.mark.parametrize("kind", KINDS)
def test_framing_that_is_in_doubt_is_refused_and_nothing_after_it_answered(tmp_path: Path, kind: str) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    chance = random.Random(seed)
    wrong = []
    with serving_over(kind, tmp_path) as server:
        pairs = [(length, coding) for length in (*LENGTHS, b"X: y") for coding in (*CODINGS, b"X: y")]
        for length, coding in pairs if kind == "unix" else chance.sample(pairs, 60):
            fields = [length, coding]
            chance.shuffle(fields)
            raw = LINE + b"\r\n".join(fields) + b"\r\n\r\n" + CHUNK + INNER
            got = answers(talk(connect(server.address), raw))
            refused = len(got) == 1 and got[0][1] and 400 <= got[0][0] <= 501
            if refused == is_good(length, coding):
                wrong.append((fields, got))
        for raw in DOUBTFUL:
            got = answers(talk(connect(server.address), raw))
            if not (len(got) == 1 and got[0][1] and 400 <= got[0][0] <= 505):
                wrong.append(([raw[:200]], got))
        for raw in CLEAR:
            got = answers(talk(connect(server.address), raw))
            if [status for status, _ in got] != [200, 200]:
                wrong.append(([raw], got))
        assert server.stop() == 0
    assert wrong == []


@pytest.mark.parametrize("kind", KINDS)
def test_the_corpus_on_a_socket(tmp_path: Path, kind: str) -> None:
    wrong = []
    with serving_over(kind, tmp_path) as server:
        for name, accept, raw in corpus():
            got = answers(talk(connect(server.address), raw + (b"" if accept else INNER)))
            # There is nothing at the paths of the corpus. What is not taken ends the connection.
            statuses = {status for status, _ in got}
            refused = not got or (got[-1][1] and got[-1][0] in (400, 411, 413, 414, 417, 431, 501, 505))
            if not (statuses == {404} if accept else refused):
                wrong.append((name, got))
        # And each that is taken needs its Host, unless it is of HTTP/1.0.
        for line in CORPUS.read_text().splitlines():
            row = json.loads(line)
            raw = base64.b64decode(row["raw_b64"])
            if not row["has_host"] and b" HTTP/1.1\r\n" in raw.partition(b"\n")[0] + b"\n":
                got = answers(talk(connect(server.address), raw))
                if got and got[0][0] < 400:
                    wrong.append((row["name"], got))
        assert server.stop() == 0
        records = server.records()
    assert wrong == []
    assert not any(dict(record.get("key_values", ())).get("n") == "smuggled" for record in records)


def test_adcore_never_counts_more_requests_than_nginx_forwarded(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    chance = random.Random(seed)
    log = tmp_path / "nginx" / "access.log"

    def forwarded() -> int:
        """Requests that nginx has sent, each attempt one."""
        lines = log.read_text().splitlines() if log.exists() else []
        statuses = [json.loads(line)["upstream_status"] for line in lines]
        return sum(len(status.split(",")) for status in statuses if status not in ("", "-"))

    with (
        serving(tmp_path / "state") as server,
        services.nginx(tmp_path / "nginx", tmp_path / "state" / "ad.sock") as front,
    ):

        def seen() -> int:
            connections = server.status()["connections"]
            return int(connections["requests"] + sum(connections["refused"].values()))

        before = seen()
        cases = payloads()
        told: Counter[bytes] = Counter()
        for raw in [*CLEAR, *DOUBTFUL, *chance.sample(cases, 600)]:
            # nginx answers HTTP/0.9 in kind, without any head.
            told.update(re.findall(rb"HTTP/1\.1 (\d+) ", talk(connect(f"unix:{front.path}"), raw)))
        # nginx writes its line when the answer has left.
        wait_for(lambda: forwarded() >= seen() - before, lambda: f"adcore {seen() - before}, nginx {forwarded()}")
        assert forwarded() > 50, "hardly anything passed"
        assert seen() - before == forwarded()
        assert told[b"400"] > 50
        assert server.stop() == 0
