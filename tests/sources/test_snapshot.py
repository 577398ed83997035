"""The memcached snapshot on a real memcached, and the last good rows on disk."""

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from pymemcache import Client

from adcore.errors import SourceError
from adcore.sources import Revision, Rows
from adcore.sources.codec import decode_rows, encode_rows
from adcore.sources.lastgood import LastGood
from adcore.sources.memcached import LINE_BYTES_MAX
from adcore.sources.seal import Seals
from adcore.sources.snapshot import CHUNK_BYTES, LOCK_S, Head, Snapshot
from tests import services
from tests.inventories import campaign, document
from tests.rogue import Rogue, trickle

KEY = b"k" * 32
SEALS = Seals([KEY])
ROWS = Rows(Revision("g", 7, 6), document(campaign("a")))
LARGE = Rows(Revision("g", 8, 8), {"placements": [], "campaigns": [{"id": "x" * (3 * CHUNK_BYTES)}]})


@pytest.fixture
def client(memcached: services.Service) -> Iterator[Client]:
    client = Client(f"unix:{memcached.path}", default_noreply=False)
    client.flush_all()
    yield client
    client.close()


@pytest.fixture
def snapshot(memcached: services.Service, client: Client) -> Iterator[Snapshot]:
    snapshot = Snapshot(f"unix:{memcached.path}", "t:", "me", SEALS)
    yield snapshot
    snapshot.close()


def head_of(client: Client) -> Head:
    return msgspec.msgpack.decode(SEALS.unseal("t:rows2:head", client.get("t:rows2:head")), type=Head)


@pytest.mark.parametrize("rows", [ROWS, LARGE], ids=["small", "three chunks and more"])
def test_what_is_published_is_loaded(snapshot: Snapshot, rows: Rows) -> None:
    assert snapshot.load() is None
    assert snapshot.revision() is None
    snapshot.publish(rows)
    assert snapshot.load() == rows
    assert snapshot.revision() == rows.revision


def test_a_prefix_keeps_sites_apart(memcached: services.Service, snapshot: Snapshot) -> None:
    snapshot.publish(ROWS)
    with closing(Snapshot(f"unix:{memcached.path}", "other:", "me", SEALS)) as other:
        assert other.load() is None


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"garbage",
        b"\x80",
        msgspec.msgpack.encode({"revision": ["g", 1, 1], "hash": "a", "chunks": 0}),
        msgspec.msgpack.encode({"revision": ["g", 1, 1], "hash": "a", "chunks": 10**9}),
        msgspec.msgpack.encode({"revision": ["g", 1, 1], "hash": "a b", "chunks": 1}),
        msgspec.msgpack.encode({"revision": 1, "confirmed": 1, "hash": "a", "chunks": 1}),
    ],
)
def test_a_head_that_makes_no_sense_is_no_snapshot(snapshot: Snapshot, client: Client, head: bytes) -> None:
    client.set("t:rows2:head", SEALS.seal("t:rows2:head", head))
    assert snapshot.load() is None
    assert snapshot.problem is None


def test_a_chunk_that_is_missing_or_changed_is_no_snapshot(snapshot: Snapshot, client: Client) -> None:
    for number in range(4):
        snapshot.publish(LARGE)
        head = head_of(client)
        assert head.chunks == 4
        key = f"t:rows2:{head.hash}:{number}"
        chunk = client.get(key)
        client.delete(key)
        assert snapshot.load() is None
        client.set(key, chunk[:-1] + bytes([chunk[-1] ^ 1]))
        assert snapshot.load() is None
        client.set(key, chunk)
        assert snapshot.load() == LARGE


def test_a_snapshot_without_our_seal_is_named_and_made_anew(snapshot: Snapshot, client: Client) -> None:
    snapshot.publish(ROWS)
    good = client.get("t:rows2:head")
    head = msgspec.msgpack.encode(msgspec.structs.replace(head_of(client), revision=Revision("g", 10**9, 10**9)))
    forged = {
        "not signed": head[:10],
        "another secret": Seals([b"other" * 4]).seal("t:rows2:head", head),
        "its signature is wrong": good[:20] + head,
        # What is signed is signed for its own name: not for another site's, and not as a counter.
        "signature is wrong": SEALS.seal("other:rows2:head", head),
    }
    for problem, value in forged.items():
        client.set("t:rows2:head", value)
        assert snapshot.load() is None
        assert problem in str(snapshot.problem)
        assert snapshot.label in str(snapshot.problem)
    for at in range(len(good)):
        client.set("t:rows2:head", good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        assert snapshot.revision() is None
    snapshot.publish(ROWS)
    assert snapshot.load() == ROWS
    assert snapshot.problem is None


def test_a_secret_is_replaced_key_by_key(memcached: services.Service, snapshot: Snapshot) -> None:
    with closing(Snapshot(f"unix:{memcached.path}", "t:", "me", Seals([b"n" * 32, KEY]))) as ahead:
        snapshot.publish(ROWS)
        assert ahead.load() == ROWS
        ahead.publish(ROWS)
        assert snapshot.load() is None
        assert "another secret" in str(snapshot.problem)
        snapshot.seals = Seals([KEY, b"n" * 32])
        assert snapshot.load() == ROWS


def test_a_head_is_good_for_its_own_rows_alone(snapshot: Snapshot, client: Client) -> None:
    snapshot.publish(ROWS)
    head = msgspec.structs.replace(head_of(client), revision=Revision("g", 8, 8))
    client.set("t:rows2:head", SEALS.seal("t:rows2:head", msgspec.msgpack.encode(head)))
    assert snapshot.load() is None


@pytest.mark.parametrize("what", ["endless", "trickle", "trickling chunk", "endless chunk", "endless line"])
def test_an_answer_without_end_has_one_here(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bytes and in time, for all of the answer and not for each piece of it."""
    monkeypatch.setattr("adcore.sources.snapshot.TIMEOUT_S", 0.3)
    monkeypatch.setattr("adcore.sources.snapshot.CHUNK_S", 0.3)
    key, sent = "t:rows2:head", []
    sealed = SEALS.seal(key, msgspec.msgpack.encode(Head(ROWS.revision, "ab", 1)))

    def serve(connection: socket.socket) -> None:
        while asked := connection.recv(1000):
            if "chunk" in what and b"head" in asked:
                connection.sendall(b"VALUE %b 0 %d\r\n%b\r\nEND\r\n" % (key.encode(), len(sealed), sealed))
                continue
            if what != "endless line":
                connection.sendall(b"VALUE %b 0 4000000000\r\n" % asked.split()[1])
            if "trickl" in what:
                trickle(connection, b"x", 0.05)
            for _ in iter(int, 1):
                connection.sendall(b"x" * 4096)
                sent.append(4096)

    with Rogue(serve) as rogue:
        snapshot = Snapshot(rogue.address, "t:", "me", SEALS)
        snapshot.begin()
        with pytest.raises(SourceError, match="timed out" if "trickl" in what else "more than [0-9]+ bytes"):
            snapshot.load()
        snapshot.close()
    # What the sockets' buffers take besides.
    assert sum(sent) < (CHUNK_BYTES if "chunk" in what else LINE_BYTES_MAX) + (8 << 20)


def test_a_look_has_a_time_and_a_size_for_all_that_it_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    key = "t:rows2:head"
    value = SEALS.seal(key, msgspec.msgpack.encode(Head(ROWS.revision, "ab", 1)))
    answer = b"VALUE %b 0 %d\r\n%b\r\nEND\r\n" % (key.encode(), len(value), value)

    def serve(connection: socket.socket) -> None:
        while connection.recv(1000):
            connection.sendall(answer)

    with Rogue(serve) as rogue:
        snapshot = Snapshot(rogue.address, "t:", "me", SEALS)
        snapshot._cache._clock = snapshot._cache._sockets._clock = lambda: now
        monkeypatch.setattr("adcore.sources.snapshot.LOOK_BYTES_MAX", 3 * len(answer))
        snapshot.begin()
        for _ in range(3):
            now += 3.0
            assert snapshot.revision() == ROWS.revision
        with pytest.raises(SourceError, match="more than"):
            snapshot.revision()
        now += 3.0
        with pytest.raises(SourceError, match="timed out"):
            snapshot.revision()
        snapshot.begin()
        assert snapshot.revision() == ROWS.revision
        snapshot.close()


def test_one_process_has_the_lock_and_opens_only_its_own(memcached: services.Service, snapshot: Snapshot) -> None:
    with closing(Snapshot(f"unix:{memcached.path}", "t:", "other", SEALS)) as other:
        assert snapshot.lock()
        assert snapshot.lock()  # its first answer may have been lost
        assert not other.lock()
        other.unlock()
        assert not other.lock()
        snapshot.unlock()
        assert other.lock()


def test_a_memcached_that_is_away_or_hangs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adcore.sources.snapshot.TIMEOUT_S", 0.3)
    with services.memcached(tmp_path) as service:
        snapshot = Snapshot(f"unix:{service.path}", "t:", "me", SEALS)
        snapshot.publish(ROWS)
        service.signal(signal.SIGSTOP)
        with pytest.raises(SourceError, match="memcached unix:"):
            snapshot.load()
        service.signal(signal.SIGCONT)
        assert snapshot.load() == ROWS
        service.kill()
        for call in (snapshot.load, snapshot.lock, snapshot.unlock, snapshot.revision):
            with pytest.raises(SourceError, match="memcached unix:"):
                call()
        service.start()
        assert snapshot.load() is None
        snapshot.close()


def test_rows_too_large_for_memcached_are_an_error(snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adcore.sources.snapshot.CHUNK_BYTES", 2 << 20)
    with pytest.raises(SourceError, match="memcached unix:"):
        snapshot.publish(LARGE)
    assert snapshot.load() is None


def test_the_payload_is_data_that_cannot_run() -> None:
    assert decode_rows(encode_rows(ROWS)) == ROWS
    for payload in (b"", b"\x80", b"\x80\x04N.", encode_rows(ROWS)[:-1], encode_rows(ROWS) + b"\x00", b"\xc1" * 9):
        assert decode_rows(payload) is None


def test_the_last_good_rows_survive_on_disk(tmp_path: Path) -> None:
    last_good = LastGood(tmp_path / "rows")
    assert last_good.load() is None
    last_good.save(ROWS)
    last_good.save(LARGE)
    os.utime(tmp_path / "rows", (1000.0, 1000.0))
    assert LastGood(tmp_path / "rows").load() == (LARGE, 1000.0)
    assert [path.name for path in tmp_path.iterdir()] == ["rows"]


def test_a_damaged_file_is_named_and_not_served(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    last_good = LastGood(path)
    last_good.save(ROWS)
    whole = path.read_bytes()
    for at in range(0, len(whole), 5):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(SourceError, match="damaged"):
            last_good.load()
        path.write_bytes(whole[:at])
        with pytest.raises(SourceError, match="damaged"):
            last_good.load()


def test_a_disk_that_takes_nothing_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="cannot keep"):
        LastGood(tmp_path / "nowhere" / "rows").save(ROWS)
    (tmp_path / "file").touch()
    with pytest.raises(SourceError, match="cannot keep"):
        LastGood(tmp_path / "file" / "rows").save(ROWS)


def test_what_does_not_speak_memcached_is_named(tmp_path: Path) -> None:
    def answer(listener: socket.socket) -> None:
        for reply in (
            b"HTTP/1.1 400 Bad Request\r\n\r\n",
            b"VALUE\r\n",
            b"VALUE t:rows2:head 0 x\r\n",
            b"\x00\xff\r\n",
        ):
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(reply)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()
        thread = threading.Thread(target=answer, args=(listener,))
        thread.start()
        snapshot = Snapshot(f"unix:{tmp_path}/socket", "t:", "me", SEALS)
        for _ in range(4):
            with pytest.raises(SourceError, match="memcached unix:"):
                snapshot.head()
        thread.join(20)


def test_the_lock_ends_by_itself_if_its_holder_is_killed(snapshot: Snapshot, client: Client) -> None:
    assert snapshot.lock()
    seconds_left = int(client.raw_command(b"mg t:rows2:lock t").split(b" t")[1])
    assert LOCK_S - 20 < seconds_left <= LOCK_S


def test_the_chunks_of_the_snapshot_before_are_taken_away(snapshot: Snapshot, client: Client) -> None:
    snapshot.publish(LARGE)
    head = head_of(client)
    keys = [f"t:rows2:{head.hash}:{number}" for number in range(head.chunks)]
    assert len(client.get_many(keys)) == head.chunks > 1
    snapshot.publish(ROWS)
    assert client.get_many(keys) == {}
    assert snapshot.load() == ROWS
