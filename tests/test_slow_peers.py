"""Peers that send slowly, leave early or never read, against records: what is written of whom, and when."""

import json
import socket
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.inventories import campaign, document
from tests.process import PATIENCE_S, Adcore, adctl, connect, serving, wait_for

BODY = json.dumps({"placement": "side", "keywords": ["slow"]}).encode()
POST = b"POST /v1/decision HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(BODY)
GET = b"GET /v1/decision?placement=side&kv.n=%d HTTP/1.1\r\nHost: a\r\n\r\n"
HEADER_TIMEOUT_S = 1.0
# Answers that wait for a peer: protocol's WRITE_HIGH_BYTES and OUTPUT_BYTES, and what both sockets hold (a unix socket:
# 208 KiB each way). An answer has 700 bytes or so.
UNREAD_MAX = (64 + 32 + 2 * 208) * 1024 // 600


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Adcore]:
    source = f"sqlite:///{tmp_path}/ads.db"
    applied = adctl("apply", "--source", source, "-", stdin=json.dumps(document(campaign("a"))))
    assert applied.returncode == 0, applied.stderr
    with serving(tmp_path / "state", "--source", source, "--header-timeout", str(HEADER_TIMEOUT_S)) as server:
        yield server


def everything(peer: socket.socket) -> bytes:
    received = b""
    try:
        while data := peer.recv(1 << 16):
            received += data
    except ConnectionResetError:
        pass
    return received


def records_when_done(server: Adcore) -> list[dict[str, object]]:
    wait_for(lambda: server.status()["connections"]["open"] == 0)
    assert server.stop() == 0
    return server.records()


def test_a_body_that_drips_has_one_time_for_all_of_it_and_no_record(server: Adcore) -> None:
    """Each byte comes in time; the request does not."""
    with connect(server.address) as peer:
        peer.sendall(POST)
        peer.settimeout(HEADER_TIMEOUT_S / 20)
        sent, answer = 0, b""
        while not answer:
            assert sent < len(BODY) - 1, "it may take as long as it likes"
            peer.sendall(BODY[sent : sent + 1])
            sent += 1
            try:
                answer = peer.recv(1 << 16)
            except TimeoutError:
                pass
        assert answer.startswith(b"HTTP/1.1 408 ")
    assert records_when_done(server) == []


@pytest.mark.parametrize("sent", [POST[:20], POST, POST + BODY[:-1]])
@pytest.mark.parametrize("way", ["close", "half"])
def test_a_request_that_never_ends_has_no_record(server: Adcore, sent: bytes, way: str) -> None:
    with connect(server.address) as peer:
        peer.sendall(sent)
        if way == "half":
            peer.shutdown(socket.SHUT_WR)
            assert everything(peer).startswith(b"HTTP/1.1 400 ")
    assert records_when_done(server) == []


def test_a_peer_that_has_said_all_and_only_listens_is_answered_once(server: Adcore) -> None:
    with connect(server.address) as peer:
        peer.sendall(POST + BODY)
        peer.shutdown(socket.SHUT_WR)
        assert everything(peer).count(b"HTTP/1.1 200 ") == 1
    (record,) = records_when_done(server)
    assert record["keywords"] == ["slow"]


def test_a_record_has_the_time_of_the_whole_request_and_not_of_its_first_byte(server: Adcore) -> None:
    with connect(server.address) as peer:
        peer.sendall(POST + BODY[:-1])
        wait_for(lambda: server.status()["connections"]["open"] == 1)
        before = time.time()
        peer.sendall(BODY[-1:])
        assert peer.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
        after = time.time()
    (record,) = records_when_done(server)
    assert isinstance(record["time"], float)
    assert before - 0.1 <= record["time"] <= after + 0.1


def test_who_leaves_before_the_answer_has_one_record_for_each_request_that_was_answered(server: Adcore) -> None:
    """Nobody can tell whether an answer arrived. The tag's view says that an ad was seen."""
    for number in range(20):
        with connect(server.address) as peer:
            peer.sendall(GET % number)
    answered = server.status()["connections"]["requests"]
    records = records_when_done(server)
    assert len(records) >= answered
    counts = Counter(json.dumps(record["key_values"]) for record in records)
    assert set(counts.values()) <= {1}
    assert {record["type"] for record in records} <= {"impression"}


def test_who_never_reads_is_answered_only_as_far_as_answers_may_wait(server: Adcore) -> None:
    """Ten thousand requests on a connection make no ten thousand records, and hold up nobody's queue or spool."""
    with connect(server.address) as peer:
        peer.setblocking(False)
        data, sent = b"".join(GET % number for number in range(10_000)), 0
        deadline_monotonic = time.monotonic() + PATIENCE_S
        seen = -1
        while time.monotonic() < deadline_monotonic:
            try:
                sent += peer.send(data[sent : sent + 65536])
            except BlockingIOError:
                requests = server.status()["connections"]["requests"]
                if requests == seen:
                    break
                seen = requests
                time.sleep(0.1)
        assert sent < len(data)
        log = server.status()["log"]
        assert sum(log["dropped"].values()) == 0
        accepted = log["accepted"]["impression"]
        assert 1 < accepted <= UNREAD_MAX
        # Others go on.
        assert server.ask("/v1/decision?placement=side").status == 200
        wait_for(lambda: server.status()["log"]["waiting"] == 0)
    numbers = Counter(json.dumps(record["key_values"]) for record in records_when_done(server))
    assert set(numbers.values()) == {1}
    assert len(numbers) == accepted + 1


def test_slow_bodies_hold_neither_queue_nor_spool(server: Adcore) -> None:
    count = 64
    peers = [connect(server.address) for _ in range(count)]
    for peer in peers:
        peer.sendall(POST + BODY[:-1])
    wait_for(lambda: server.status()["connections"]["open"] == count)
    log = server.status()["log"]
    assert (log["waiting"], log["waiting_bytes"], log["accepted"]) == (0, 0, {})
    for number in range(50):
        assert server.ask(f"/v1/decision?placement=side&kv.n={number}").status == 200
    wait_for(lambda: server.status()["connections"]["timeouts"].get("request") == count)
    for peer in peers:
        peer.close()
    assert len(records_when_done(server)) == 50
