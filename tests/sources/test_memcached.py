"""Counters on a real memcached: many to a trip, and what it says of those that are not there."""

import signal
from collections.abc import Iterator

import pytest
from pymemcache import Client

from adcore.errors import SourceError
from adcore.sources.memcached import TRIP_MAX, Add, Increase, Memcached
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


def test_each_command_has_its_answer(cache: Memcached) -> None:
    commands: list[Add | Increase] = [
        Increase("a", 1),
        Add("a", 5, 60),
        Add("a", 6, 60),
        Increase("a", 2),
        Add("b", 1 << 63, 60),
    ]
    assert cache.count(commands) == [None, 5, None, 7, 1 << 63]
    assert cache.counters(["a", "b", "c"]) == {"a": 7, "b": 1 << 63}
    assert cache.count([]) == []
    assert cache.counters([]) == {}


def test_ten_thousand_counters_are_few_trips(cache: Memcached, client: Client) -> None:
    keys = [f"count:{'x' * 150}:{number}" for number in range(10_000)]
    assert cache.count([Add(key, 1, 60) for key in keys]) == [1] * len(keys)
    trips = 0
    send = cache.client.send_together

    def counting(commands: list[bytes]) -> list[bytes]:
        nonlocal trips
        trips += 1
        return send(commands)

    cache.client.send_together = counting  # type: ignore[method-assign]
    assert cache.count([Increase(key, number) for number, key in enumerate(keys)]) == list(range(1, 10_001))
    assert trips == 10_000 / TRIP_MAX == 20
    assert cache.counters(keys) == {key: number for number, key in enumerate(keys, 1)}
    assert client.stats()[b"incr_hits"] >= 10_000


def test_a_counter_expires(cache: Memcached, client: Client) -> None:
    cache.count([Add("soon", 1, 1), Add("later", 1, 60)])
    ttl = client.raw_command("mg later t")
    assert 55 <= int(ttl.split(b"t")[-1]) <= 60


@pytest.mark.parametrize("value", [b"text", b"", b"-1"])
def test_a_key_that_holds_something_else_is_an_error(cache: Memcached, client: Client, value: bytes) -> None:
    client.set("a", value)
    with pytest.raises(SourceError, match="memcached unix:"):
        cache.count([Increase("a", 1)])
    if value != b"-1":
        with pytest.raises(SourceError, match="does not answer like memcached"):
            cache.counters(["a"])
    client.delete("a")
    assert cache.count([Add("a", 1, 60)]) == [1]


def test_a_memcached_that_hangs_or_is_gone_is_an_error_and_can_come_back(
    memcached: services.Service, client: Client
) -> None:
    cache = Memcached(f"unix:{memcached.path}", 0.1)
    cache.count([Add("a", 1, 60)])
    memcached.signal(signal.SIGSTOP)
    try:
        with pytest.raises(SourceError, match="timed out"):
            cache.count([Increase("a", 1)])
    finally:
        memcached.signal(signal.SIGCONT)
    # It was sent, so it counts; nobody can have known.
    assert cache.counters(["a"]) in ({"a": 1}, {"a": 2})
    cache.close()
    gone = Memcached("unix:/nonexistent.sock", 0.1)
    with pytest.raises(SourceError, match=r"memcached unix:/nonexistent\.sock: .*No such file"):
        gone.counters(["a"])
