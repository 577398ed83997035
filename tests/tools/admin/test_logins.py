"""How often a password may be tried: by network, by name, at once, and what a known browser may."""

import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from axes.models import AccessAttempt
from django.conf import settings
from django.contrib.auth.hashers import MD5PasswordHasher
from django.core import signing
from django.db import connections
from django.db.models import F
from django.test import Client, RequestFactory

from adtools.admin.logins import LIMITS
from adtools.admin.security import client_address
from tests import services
from tests.inventories import campaign, document
from tests.tools.admin import project

PASSWORD = "correct horse battery staple"


@pytest.fixture(params=["sqlite", "mysql"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "mysql":
        mariadb: services.MariaDB = request.getfixturevalue("mariadb")
        mariadb.sql("CREATE DATABASE IF NOT EXISTS admin")
        url = mariadb.url("admin")
    else:
        url = f"sqlite://{tmp_path}/ads.db"
    project.use_store(url, document(campaign("spring")), tmp_path)
    project.person("anna", "editor", PASSWORD)
    yield url
    project.close()


def browser(address: str) -> Client:
    return Client(SERVER_NAME="127.0.0.1", REMOTE_ADDR=address)


def log_in(address: str | Client, password: str = "guess", name: str = "anna") -> int:
    client = browser(address) if isinstance(address, str) else address
    return client.post("/login/", {"username": name, "password": password}).status_code


def wait(pause: timedelta) -> None:
    """As if all that was counted had been so much earlier."""
    AccessAttempt.objects.update(attempt_time=F("attempt_time") - pause)


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("2001:db8:1:2:ffff:ffff:ffff:ffff", "2001:db8:1:2::"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("::FFFF:c000:201", "192.0.2.1"),
        ("fe80::1%eth0", "fe80::"),
        ("::1", "::"),
        ("", "::"),
        ("localhost", "::"),
        ("192.0.2.1, 192.0.2.2", "::"),
        ("unix:", "::"),
        ("1" * 100, "::"),
        ("192.0.2.1\0", "::"),
    ],
)
def test_an_address_counts_as_its_network(address: str, network: str) -> None:
    assert client_address(RequestFactory().get("/", REMOTE_ADDR=address)) == network


def test_a_whole_ipv6_network_has_five_tries(source: str) -> None:
    statuses = [log_in(f"2001:db8::{number:x}") for number in range(1, 7)]
    assert statuses == [200, 200, 200, 200, 429, 429]
    assert log_in("2001:db8::77", PASSWORD) == 429
    assert log_in("2001:db8:0:1::1", PASSWORD) == 302


def test_an_address_is_the_same_mapped_or_not(source: str) -> None:
    for number in range(5):
        log_in("192.0.2.1" if number % 2 else "::ffff:192.0.2.1")
    assert log_in("::ffff:c000:201", PASSWORD) == log_in("192.0.2.1", PASSWORD) == 429


def test_a_pause_ends(source: str) -> None:
    for _ in range(6):
        log_in("192.0.2.1")
    wait(LIMITS["person and network"].pause - timedelta(seconds=30))
    assert log_in("192.0.2.1", PASSWORD) == 429
    wait(timedelta(minutes=1))
    assert log_in("192.0.2.1", PASSWORD) == 302


def test_what_is_refused_makes_no_pause_longer(source: str) -> None:
    for _ in range(5):
        log_in("192.0.2.1")
    for _ in range(5):
        wait(timedelta(minutes=3, seconds=1))
        last = log_in("192.0.2.1", PASSWORD)
    assert last == 302


def test_one_network_tries_twenty_names_in_all(source: str) -> None:
    statuses = [log_in("192.0.2.1", name=f"name{number}") for number in range(LIMITS["network"].tries + 1)]
    assert statuses[-3:] == [200, 429, 429]
    assert log_in("192.0.2.1", PASSWORD) == 429
    assert log_in("192.0.2.2", PASSWORD) == 302


def test_a_name_is_slowed_whatever_networks_try_it(source: str) -> None:
    tries = LIMITS["person"].tries
    # MariaDB takes it for the same name, SQLite does not.
    another = "ANNA" if source.startswith("mysql") else " anna "
    statuses = [log_in(f"198.51.100.{number}", name=another if number % 2 else "anna") for number in range(tries + 5)]
    assert statuses.count(429) >= 5
    assert log_in("203.0.113.1", PASSWORD) == 429
    wait(LIMITS["person"].pause)
    assert log_in("203.0.113.1", PASSWORD) == 302


def test_nobody_keeps_a_person_out_of_the_browser_that_they_use(source: str) -> None:
    annas = browser("203.0.113.1")
    assert log_in(annas, PASSWORD) == 302
    del annas.cookies["adcore_session"]
    for number in range(LIMITS["person"].tries):
        log_in(f"198.51.100.{number}")
    for _ in range(LIMITS["network"].tries):
        log_in("203.0.113.1", name="bob")
    assert log_in("203.0.113.1", PASSWORD) == 429
    assert log_in(annas, PASSWORD) == 302
    # It has tries of its own, and no more.
    del annas.cookies["adcore_session"]
    assert [log_in(annas) for _ in range(6)] == [200, 200, 200, 200, 429, 429]


def test_a_browser_is_known_for_one_person_and_by_our_word_alone(source: str) -> None:
    project.person("bob", "viewer", PASSWORD)
    bobs = browser("203.0.113.1")
    assert log_in(bobs, PASSWORD, "bob") == 302
    cookie = bobs.cookies["adcore_browser"]
    assert (cookie["httponly"], cookie["samesite"]) == (True, "Strict")
    for number in range(LIMITS["person"].tries):
        log_in(f"198.51.100.{number}")
    for value in (cookie.value, cookie.value[:-1] + "x", "", signing.dumps(["x"], salt="adtools.admin.logins"), "\0"):
        thief = browser("203.0.113.2")
        thief.cookies["adcore_browser"] = value
        assert log_in(thief, PASSWORD) == 429, value


def test_who_logs_in_uses_no_try_up(source: str) -> None:
    assert [log_in(f"198.51.100.{number}", PASSWORD) for number in range(40)] == [302] * 40
    assert [log_in("192.0.2.1", PASSWORD) for _ in range(40)] == [302] * 40


def test_the_old_password_is_not_to_be_guessed_by_a_stolen_session(source: str) -> None:
    thief = project.client("viewer")
    passwords = {"old_password": "guess", "new_password1": "new horse battery", "new_password2": "new horse battery"}
    statuses = [thief.post("/password_change/", passwords).status_code for _ in range(7)]
    assert statuses == [200, 200, 200, 200, 429, 429, 429]


def test_a_new_password_that_is_too_weak_is_no_guess(source: str) -> None:
    annas = browser("192.0.2.1")
    assert log_in(annas, PASSWORD) == 302
    weak = {"old_password": PASSWORD, "new_password1": "short", "new_password2": "short"}
    assert [annas.post("/password_change/", weak).status_code for _ in range(8)] == [200] * 8


def test_no_name_and_no_password_is_stored(source: str) -> None:
    log_in("192.0.2.1", name=PASSWORD)
    for row in AccessAttempt.objects.values_list():
        assert PASSWORD not in str(row)
        assert "guess" not in str(row)


def test_what_is_counted_goes_when_it_counts_no_more(source: str) -> None:
    for number in range(10):
        log_in(f"198.51.100.{number}", name=f"n{number}")
    assert AccessAttempt.objects.count() == 30
    wait(timedelta(days=1))
    log_in("192.0.2.1")
    assert AccessAttempt.objects.count() == 3


class SlowHasher(MD5PasswordHasher):
    """Counts the passwords that are looked at, and holds each until all who try have come this far or were refused."""

    algorithm = "slow"
    looked_at = 0
    lock = threading.Lock()
    gate = threading.Event()

    def verify(self, password: str, encoded: str) -> bool:
        with self.lock:
            SlowHasher.looked_at += 1
        assert self.gate.wait(60)
        return bool(super().verify(password, encoded))


def test_tries_at_once_are_counted_one_by_one(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hasher = f"{__name__}.SlowHasher"
    monkeypatch.setattr(settings, "PASSWORD_HASHERS", [hasher])
    from django.contrib.auth import hashers

    slow = SlowHasher()
    monkeypatch.setattr(hashers, "get_hashers", lambda: [slow])
    monkeypatch.setattr(hashers, "identify_hasher", lambda encoded: slow)
    monkeypatch.setattr(hashers, "get_hasher", lambda algorithm="default": slow)
    monkeypatch.setattr(SlowHasher, "looked_at", 0)
    SlowHasher.gate.clear()
    project.person("carl", "viewer", PASSWORD)
    statuses: list[Any] = []

    def attempt() -> None:
        try:
            statuses.append(log_in("192.0.2.1", name="carl"))
        except Exception as error:
            statuses.append(error)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=attempt) for _ in range(24)]
    for thread in threads:
        thread.start()
    # Nineteen are refused while five wait at the gate.
    for thread in threads:
        thread.join(0.01)
    opener = threading.Timer(0, lambda: _open_when(lambda: len(statuses) >= 19))
    opener.start()
    for thread in threads:
        thread.join(60)
    opener.join(60)
    assert SlowHasher.looked_at == 5
    assert statuses.count(429) >= 20  # the five that failed were the last ones, and say so
    assert set(statuses) <= {200, 429}


def _open_when(condition: Any) -> None:
    from tests.process import wait_for

    try:
        wait_for(condition)
    finally:
        SlowHasher.gate.set()
