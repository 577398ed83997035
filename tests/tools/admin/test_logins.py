"""How often a password may be tried: by network, by name, at once, and what a known browser may."""

import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from axes.models import AccessAttempt
from django.contrib.auth import hashers
from django.contrib.auth.hashers import MD5PasswordHasher
from django.contrib.auth.models import AnonymousUser, User
from django.core import signing
from django.db import OperationalError, connection, connections
from django.db.models import F
from django.test import Client, RequestFactory
from django.utils import timezone

from adtools.admin.admission import KNOWN_BROWSERS_PLACES, password_hashes
from adtools.admin.logins import COUNTINGS_MAX, LIMITS, count_try, note_failure, note_success
from adtools.admin.people import one_time_link
from adtools.admin.security import client_address
from tests import services
from tests.inventories import campaign, document
from tests.process import wait_for
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


def at_once(works: list[Callable[[], Any]]) -> list[Any]:
    """What each gives, or raises, in a thread of its own."""
    given: list[Any] = [None] * len(works)

    def work(number: int) -> None:
        try:
            given[number] = works[number]()
        except Exception as error:
            given[number] = error
        finally:
            connections.close_all()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    return given


def post(address: str) -> Any:
    request = RequestFactory().post("/login/", REMOTE_ADDR=address)
    request.user = AnonymousUser()
    return request


def test_tries_at_once_are_counted_one_by_one(source: str) -> None:
    """As those of several admins on one store, which share no turn."""
    given = at_once([lambda: count_try(post("2001:db8::1"), "anna") for _ in range(24)])
    assert (given.count(True), given.count(False)) == (5, 19)


def test_tries_and_logins_at_once_race_to_no_error(source: str) -> None:
    anna = User.objects.get(username="anna")

    def tries() -> set[bool]:
        seen = set()
        for _ in range(10):
            request = post("2001:db8::1")
            counted = count_try(request, "anna")
            seen.add(counted)
            if counted:
                note_success(request, anna)
        return seen

    def guesses() -> set[bool]:
        seen = set()
        for _ in range(10):
            request = post("2001:db8::1")
            seen.add(count_try(request, "anna"))
            note_failure(request)
        return seen

    def sweeps() -> set[bool]:
        for _ in range(10):
            AccessAttempt.objects.filter(user_agent="network").update(attempt_time=timezone.now() - timedelta(days=1))
        return set()

    for seen in at_once([tries, tries, tries, guesses, sweeps, sweeps]):
        assert isinstance(seen, set), seen
    # A click too much on "Log in", by real requests.
    AccessAttempt.objects.all().delete()
    assert set(at_once([lambda: log_in("192.0.2.7", PASSWORD)] * 2)) == {302}


@pytest.mark.parametrize("times", [1, 2, 99])
def test_a_row_that_another_process_sweeps_away_is_made_again(source: str, times: int) -> None:
    left = [times]

    def sweep(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if left[0] and sql.startswith("SELECT") and "axes_accessattempt" in sql and "failures_since_start" in sql:
            left[0] -= 1
            with connection.cursor() as cursor:
                cursor.execute("DELETE FROM axes_accessattempt WHERE user_agent = 'network'")
        return execute(sql, params, many, context)

    request = post("192.0.2.1")
    with connection.execute_wrapper(sweep):
        assert count_try(request, "anna") is (times < COUNTINGS_MAX)
    assert left[0] == max(0, times - COUNTINGS_MAX)
    assert getattr(request, "axes_locked_out", False) is (times >= COUNTINGS_MAX)


def test_a_deadlock_is_tried_again_and_nothing_else(source: str) -> None:
    errors = [OperationalError(1213, "Deadlock found"), OperationalError(2006, "gone away")]

    def fail(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if errors and "failures_since_start" in sql and sql.startswith("SELECT"):
            raise errors.pop(0)
        return execute(sql, params, many, context)

    with connection.execute_wrapper(fail), pytest.raises(OperationalError, match="gone away"):
        count_try(post("192.0.2.1"), "anna")
    errors[:] = [OperationalError(1213, "Deadlock found")]
    with connection.execute_wrapper(fail):
        assert count_try(post("192.0.2.1"), "anna")


def test_an_ipv6_site_has_sixty_tries(source: str) -> None:
    tries = LIMITS["site"].tries
    statuses = [log_in(f"2001:db8:1:{number:x}::1", name=f"name{number}") for number in range(tries + 1)]
    assert statuses == [200] * (tries - 1) + [429, 429]
    assert log_in("2001:db8:1:ffff::1", PASSWORD) == 429
    assert log_in("2001:db8:2::1", PASSWORD) == 302
    # Addresses of IPv4 beside each other belong to others.
    assert [log_in(f"192.0.2.{number}", name=f"other{number}") for number in range(tries + 5)] == [200] * (tries + 5)


class SlowHasher(MD5PasswordHasher):
    """Counts the passwords that are being looked at, and holds each until the test opens the gate."""

    lock = threading.Lock()
    gate = threading.Event()
    at_work = most = looked_at = 0

    def encode(self, password: str, salt: str) -> str:
        with self.lock:
            SlowHasher.at_work += 1
            SlowHasher.looked_at += 1
            SlowHasher.most = max(SlowHasher.most, SlowHasher.at_work)
        assert self.gate.wait(60)
        with self.lock:
            SlowHasher.at_work -= 1
        return str(super().encode(password, salt))


@pytest.fixture
def slow_hasher(monkeypatch: pytest.MonkeyPatch) -> type[SlowHasher]:
    slow = SlowHasher()
    for name in ("at_work", "most", "looked_at"):
        monkeypatch.setattr(SlowHasher, name, 0)
    monkeypatch.setattr(hashers, "identify_hasher", lambda encoded: slow)
    monkeypatch.setattr(hashers, "get_hasher", lambda algorithm="default": slow)
    monkeypatch.setattr(password_hashes, "wait_s", 60.0)
    SlowHasher.gate.clear()
    return SlowHasher


def test_one_password_is_hashed_at_a_time_and_few_wait(source: str, slow_hasher: type[SlowHasher]) -> None:
    slow_hasher.gate.set()
    annas = browser("203.0.113.1")
    assert log_in(annas, PASSWORD) == 302
    del annas.cookies["adcore_session"]
    slow_hasher.gate.clear()
    slow_hasher.looked_at = 0
    AccessAttempt.objects.all().delete()
    busy: list[Any] = []
    done: list[int] = []

    def guess(number: int) -> None:
        page = browser(f"2001:db8:{number:x}::1").post("/login/", {"username": f"name{number}", "password": "guess"})
        if page.status_code == 429:
            busy.append(page)
        else:
            done.append(page.status_code)
        connections.close_all()

    def log_anna_in() -> None:
        done.append(log_in(annas, PASSWORD))
        connections.close_all()

    threads = [threading.Thread(target=guess, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    try:
        strangers = password_hashes.threads - KNOWN_BROWSERS_PLACES
        wait_for(lambda: len(busy) == 12 - strangers)
        # A browser that is known has a place that no stranger takes.
        threads.append(threading.Thread(target=log_anna_in))
        threads[-1].start()
        wait_for(lambda: len(password_hashes._queue) == password_hashes.threads - 1)
        # There is no try of those that were refused.
        names = AccessAttempt.objects.filter(user_agent="person and network").count()
        assert names <= strangers
        # The page is there for all that.
        assert browser("192.0.2.1").get("/login/").status_code == 200
        thief = project.client("viewer", "bob")
        refused = thief.post("/password_change/", {"old_password": "guess"})
        assert refused.status_code == 429
    finally:
        slow_hasher.gate.set()
        for thread in threads:
            thread.join(60)
    assert sorted(done) == [200] * strangers + [302]
    assert slow_hasher.most == 1
    for page in (*busy, refused):
        assert 1 <= int(page.headers["Retry-After"]) <= 60
        assert "Other passwords are being checked at the moment" in page.content.decode()


def test_a_link_hashes_in_turn_too(source: str, slow_hasher: type[SlowHasher]) -> None:
    slow_hasher.gate.set()
    place = one_time_link(User.objects.get(username="anna")).removeprefix(project.URL)
    annas = browser("192.0.2.1")
    form = {"new_password1": "new horse battery", "new_password2": "new horse battery"}
    page = annas.get(place)["Location"]
    with password_hashes.turn():
        # As if others waited.
        password_hashes._queue.extend([(0, threading.Event())] * (password_hashes.threads - 1))
        (refused,) = at_once([lambda: annas.post(page, form)])
        password_hashes._queue.clear()
    assert refused.status_code == 429
    assert annas.post(page, form).status_code == 302


def test_a_page_of_a_used_up_limit_says_when_to_come_back(source: str) -> None:
    for _ in range(5):
        log_in("192.0.2.1")
    page = browser("192.0.2.1").post("/login/", {"username": "anna", "password": PASSWORD})
    assert (page.status_code, page.headers["Retry-After"]) == (429, "900")
