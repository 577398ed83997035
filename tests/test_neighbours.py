"""What a memcached that others can write to, or that is another program altogether, can do to a server."""

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from pymemcache import Client

from adcore.sources import Revision, Rows
from adcore.sources.codec import encode_rows
from adcore.sources.seal import Seals
from adcore.sources.snapshot import Head, Snapshot
from tests import services
from tests.inventories import campaign, document
from tests.process import adctl, descendant, serving, wait_for
from tests.rogue import Rogue, trickle

BROWSER = "Mozilla/5.0 (X11; Linux x86_64)"


@pytest.fixture
def url(tmp_path: Path) -> str:
    url = f"sqlite://{tmp_path}/ads.db"
    apply(url, campaign("genuine", daily_cap={"impressions": 100_000}))
    return url


@pytest.fixture
def client(memcached: services.Service) -> Iterator[Client]:
    with closing(Client(f"unix:{memcached.path}", default_noreply=False)) as client:
        client.flush_all()
        yield client


def apply(url: str, *campaigns: dict[str, Any]) -> None:
    applied = adctl("apply", "--source", url, "-", stdin=json.dumps(document(*campaigns)))
    assert applied.returncode == 0, applied.stderr


def shown(server: Any) -> str | None:
    answer = server.ask("/v1/decision?placement=side", user_agent=BROWSER)
    return answer.json()["campaign"] if answer.status == 200 else None


def health(server: Any, part: str, label: str) -> dict[str, Any]:
    status = server.status()
    sources = status["refresh"]["sources"] if part == "refresh" else status["counts"]["sharing"]["sources"]
    found: dict[str, Any] = next(source for source in sources if source["source"].startswith(label))
    return found


def endless(connection: socket.socket) -> None:
    while connection.recv(1 << 16):
        for _ in iter(int, 1):
            connection.sendall(b"VALUE adcore:rows2:head 0 4000000000\r\n" + b"x" * (1 << 16))


def trickling(connection: socket.socket) -> None:
    while connection.recv(1 << 16):
        trickle(connection, b"VALUE adcore:rows2:head 0 4000\r\n" + b"x" * 4000, 0.1)


@pytest.mark.parametrize("serve", [endless, trickling])
def test_an_answer_without_end_holds_up_no_start_and_takes_no_memory(
    tmp_path: Path, url: str, serve: Callable[[socket.socket], None]
) -> None:
    with Rogue(serve) as rogue, serving(tmp_path / "s", "--source", url, "--memcached", rogue.address) as server:
        assert shown(server) == "genuine"
        assert health(server, "refresh", "memcached")["ok"] is False
        wait_for(lambda: health(server, "counts", "memcached")["ok"] is False)
        helper = descendant("adcore counts", server)
        assert helper is not None
        assert helper.memory_info().rss < 150 << 20
        assert server.stop() == 0


@pytest.mark.parametrize("keys", [None, (b"another secret's",)])
def test_a_forged_snapshot_shows_nothing_and_is_replaced(
    tmp_path: Path, url: str, memcached: services.Service, client: Client, keys: tuple[bytes, ...] | None
) -> None:
    address = f"unix:{memcached.path}"
    args = ["--source", url, "--memcached", address, "--refresh", "0.3"]
    with serving(tmp_path / "s", *args) as server:
        revision = server.status()["table"]["revision"]
        generation = msgspec.msgpack.decode(client.get("adcore:rows2:head")[20:], type=Head).revision.generation
        forged = Rows(Revision(generation, revision + 10**9, revision + 10**9), document(campaign("forged")))
        for prefix in ("rows1", "rows2"):
            snapshot = Snapshot(address, "adcore:", "me", Seals(keys or (b"any",)))
            snapshot._prefix = f"adcore:{prefix}:"
            snapshot._head_key = snapshot._prefix + "head"
            snapshot.publish(forged)
            if keys is None:
                head = client.get(snapshot._head_key)
                client.set(snapshot._head_key, head[20:])
            snapshot.close()
        apply(url, campaign("new"))
        wait_for(lambda: shown(server) == "new", lambda: str(server.status()["refresh"]))
        assert server.status()["table"]["revision"] < revision + 10**9
        problem = health(server, "refresh", "memcached")["last_error"]
        assert "the snapshot there is ignored: signed with another secret" in problem
        assert encode_rows(forged) not in client.get("adcore:rows2:head")
        # The store is gone, and only the forger answers.
        snapshot = Snapshot(address, "adcore:", "me", Seals((b"any",)))
        snapshot.publish(forged)
        snapshot.close()
        (tmp_path / "ads.db").rename(tmp_path / "away.db")
        wait_for(lambda: health(server, "refresh", "sqlite")["ok"] is False)
        assert shown(server) == "new"
        assert server.stop() == 0


def test_poisoned_counters_hold_no_campaign(
    tmp_path: Path, url: str, memcached: services.Service, client: Client
) -> None:
    args = ["--source", url, "--memcached", f"unix:{memcached.path}", "--refresh", "0.3"]
    with serving(tmp_path / "s", *args) as server:
        for _ in range(5):
            assert shown(server) == "genuine"
        wait_for(lambda: any(b"count2" in key for key in keys(client)))
        before = server.status()["counts"]["sharing"]["exchanges"]
        while server.status()["counts"]["sharing"]["exchanges"] < before + 4:
            for key in keys(client):
                client.set(key, b"999999999999")
        assert shown(server) == "genuine"
        assert server.status()["counts"]["held"] == {}
        assert health(server, "counts", "memcached")["last_error"] is not None
        wait_for(lambda: health(server, "counts", "memcached")["ok"] is True)
        assert server.stop() == 0


def keys(client: Client) -> list[bytes]:
    lines = client.raw_command(b"lru_crawler metadump all", b"END\r\n").splitlines()
    return [line.split()[0].removeprefix(b"key=").replace(b"%3A", b":") for line in lines if line.startswith(b"key=")]
