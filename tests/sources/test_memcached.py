"""The client on a real memcached: many keys to a trip, lists that grow, and a memcached that hangs or is gone."""

import signal
from collections.abc import Iterator

import pytest
from pymemcache import Client

from adcore.errors import SourceError
from adcore.sources.memcached import TRIP_MAX, Memcached
from tests import services


@pytest.fixture
def client(memcached: services.Service) -> Iterator[Client]:
    client = Client(f"unix:{memcached.path}", default_noreply=False)
    client.flush_all()
    yield client
    client.close()


@pytest.fixture
def cache(memcached: services.Service, client: Client) -> Iterator[Memcached]:
    cache = Memcached(f"unix:{memcached.path}", 1.0)
    yield cache
    cache.close()


def test_ten_thousand_keys_are_few_trips(cache: Memcached, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {f"{'x' * 150}:{number}": b"%d" % number for number in range(10_000)}
    keys = list(values)
    for start in range(0, len(keys), TRIP_MAX):
        cache.set_many({key: values[key] for key in keys[start : start + TRIP_MAX]}, 60)
    trips = 0
    get_many = cache.client.get_many

    def counting(some: list[str]) -> dict[str, bytes]:
        nonlocal trips
        trips += 1
        found: dict[str, bytes] = get_many(some)
        return found

    monkeypatch.setattr(cache.client, "get_many", counting)
    assert cache.get_many([*keys, "missing"]) == values
    assert trips == 21
    assert cache.get_many([]) == {}


def test_a_value_expires(cache: Memcached, client: Client) -> None:
    cache.set_many({"a": b"1"}, 60)
    cache.append("b", b"1", 60)
    for key in (b"a", b"b"):
        assert 55 <= int(client.raw_command(b"mg %b t" % key).split(b"t")[-1]) <= 60


def test_what_is_appended_comes_behind_what_is_there(cache: Memcached, client: Client) -> None:
    for piece in (b"1", b"22", b"333"):
        cache.append("list", piece, 60)
    assert cache.get_many(["list"]) == {"list": b"122333"}


def test_a_list_that_another_begins_at_this_moment_has_both(cache: Memcached, client: Client) -> None:
    add = cache.client.add

    def add_after_another(key: str, value: bytes, expire: int) -> bool:
        client.set(key, b"theirs")
        return bool(add(key, value, expire=expire))

    cache.client.add = add_after_another
    cache.append("list", b"ours", 60)
    assert client.get("list") == b"theirsours"


def test_a_value_that_is_not_taken_is_an_error(cache: Memcached) -> None:
    with pytest.raises(SourceError, match="memcached unix:"):
        cache.set_many({"a": b"x" * (2 << 20)}, 60)


def test_a_memcached_that_hangs_or_is_gone_is_an_error_and_can_come_back(
    memcached: services.Service, client: Client
) -> None:
    cache = Memcached(f"unix:{memcached.path}", 0.1)
    cache.set_many({"a": b"1"}, 60)
    memcached.signal(signal.SIGSTOP)
    try:
        with pytest.raises(SourceError, match="timed out"):
            cache.set_many({"a": b"2"}, 60)
        cache.begin(0.1, 1000)
        with pytest.raises(SourceError, match="timed out"):
            cache.get_many(["a"])
    finally:
        memcached.signal(signal.SIGCONT)
    cache.begin(60, 1000)
    # It was sent, so it may have been done.
    assert cache.get_many(["a"]) in ({"a": b"1"}, {"a": b"2"})
    cache.close()
    gone = Memcached("unix:/nonexistent.sock", 0.1)
    with pytest.raises(SourceError, match=r"memcached unix:/nonexistent\.sock: .*No such file"):
        gone.get_many(["a"])
