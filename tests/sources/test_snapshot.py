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
from adcore.sources.snapshot import CHUNK_BYTES, LOCK_S, Head, Snapshot
from tests import services
from tests.inventories import campaign, document

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
    snapshot = Snapshot(f"unix:{memcached.path}", "t:", "me")
    yield snapshot
    snapshot.close()


@pytest.mark.parametrize("rows", [ROWS, LARGE], ids=["small", "three chunks and more"])
def test_what_is_published_is_loaded(snapshot: Snapshot, rows: Rows) -> None:
    assert snapshot.load() is None
    assert snapshot.revision() is None
    snapshot.publish(rows)
    assert snapshot.load() == rows
    assert snapshot.revision() == rows.revision


def test_a_prefix_keeps_sites_apart(memcached: services.Service, snapshot: Snapshot) -> None:
    snapshot.publish(ROWS)
    with closing(Snapshot(f"unix:{memcached.path}", "other:", "me")) as other:
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
    client.set("t:rows1:head", head)
    assert snapshot.load() is None


def test_a_chunk_that_is_missing_or_changed_is_no_snapshot(snapshot: Snapshot, client: Client) -> None:
    for number in range(4):
        snapshot.publish(LARGE)
        head = msgspec.msgpack.decode(client.get("t:rows1:head"), type=Head)
        assert head.chunks == 4
        key = f"t:rows1:{head.hash}:{number}"
        chunk = client.get(key)
        client.delete(key)
        assert snapshot.load() is None
        client.set(key, chunk[:-1] + bytes([chunk[-1] ^ 1]))
        assert snapshot.load() is None
        client.set(key, chunk)
        assert snapshot.load() == LARGE


def test_one_process_has_the_lock_and_opens_only_its_own(memcached: services.Service, snapshot: Snapshot) -> None:
    with closing(Snapshot(f"unix:{memcached.path}", "t:", "other")) as other:
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
        snapshot = Snapshot(f"unix:{service.path}", "t:", "me")
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
            b"VALUE t:rows1:head 0 x\r\n",
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
        snapshot = Snapshot(f"unix:{tmp_path}/socket", "t:", "me")
        for _ in range(4):
            with pytest.raises(SourceError, match="memcached unix:"):
                snapshot.head()
        thread.join(20)


def test_the_lock_ends_by_itself_if_its_holder_is_killed(snapshot: Snapshot, client: Client) -> None:
    assert snapshot.lock()
    seconds_left = int(client.raw_command(b"mg t:rows1:lock t").split(b" t")[1])
    assert LOCK_S - 20 < seconds_left <= LOCK_S


def test_the_chunks_of_the_snapshot_before_are_taken_away(snapshot: Snapshot, client: Client) -> None:
    snapshot.publish(LARGE)
    head = msgspec.msgpack.decode(client.get("t:rows1:head"), type=Head)
    keys = [f"t:rows1:{head.hash}:{number}" for number in range(head.chunks)]
    assert len(client.get_many(keys)) == head.chunks > 1
    snapshot.publish(ROWS)
    assert client.get_many(keys) == {}
    assert snapshot.load() == ROWS
