"""One-time links and sessions: when each is good, and what ends it."""

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import Group, User
from django.db import connections
from django.test import Client

from adtools.admin import users
from adtools.admin.users import make_user, one_time_link
from tests import services
from tests.inventories import campaign, document
from tests.tools.admin import project

PASSWORD = "correct horse battery staple"
ANOTHER = "another horse battery staple"


@pytest.fixture(params=["sqlite", "mysql"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "mysql":
        mariadb: services.MariaDB = request.getfixturevalue("mariadb")
        mariadb.sql("CREATE DATABASE IF NOT EXISTS admin")
        url = mariadb.url("admin")
    else:
        url = f"sqlite://{tmp_path}/ads.db"
    project.use_store(url, document(campaign("spring")), tmp_path)
    yield url
    project.close()


def link_of(user: User) -> str:
    return one_time_link(user).removeprefix(project.URL)


def opened(link: str) -> tuple[Client, str]:
    """A browser with the link open, and where its form goes."""
    browser = Client(SERVER_NAME="127.0.0.1")
    page = browser.get(link, follow=True)
    assert "invalid" not in page.content.decode()
    return browser, page.redirect_chain[-1][0]


def is_good(link: str) -> bool:
    return "invalid" not in Client(SERVER_NAME="127.0.0.1").get(link, follow=True).content.decode()


def set_password(browser: Client, place: str, password: str = PASSWORD) -> bool:
    return browser.post(place, {"new_password1": password, "new_password2": password}).status_code == 302


def change(name: str, **fields: Any) -> None:
    """What an administrator does on the page of a person."""
    user = User.objects.get(username=name)
    role = user.groups.get().pk
    form = {"username": name, "role": role, "is_active": "on", **fields}
    answer = project.client("administrator").post(
        f"/auth/user/{user.pk}/change/", {key: value for key, value in form.items() if value is not None}
    )
    assert answer.status_code == 302


def deactivate() -> None:
    change("anna", is_active=None)


def deactivate_and_back() -> None:
    deactivate()
    change("anna")


def another_role() -> None:
    change("anna", role=Group.objects.get(name="viewer").pk)


def another_role_and_back() -> None:
    another_role()
    change("anna", role=Group.objects.get(name="editor").pk)


def by_command() -> None:
    make_user("anna", "viewer")


def newer_link() -> None:
    link_of(User.objects.get(username="anna"))


def newer_link_in_the_list() -> None:
    chosen = {"action": "give_link", "_selected_action": [str(User.objects.get(username="anna").pk)]}
    assert project.client("administrator").post("/auth/user/", chosen).status_code == 302


def deactivate_by_sql() -> None:
    User.objects.filter(username="anna").update(is_active=False)


def use_it() -> None:
    assert set_password(*opened(link_of(User.objects.get(username="anna"))))


CHANGES = (deactivate, deactivate_and_back, another_role, another_role_and_back, by_command, deactivate_by_sql, use_it)


@pytest.mark.parametrize("happens", [*CHANGES, newer_link, newer_link_in_the_list])
def test_a_link_is_void_after(source: str, happens: Callable[[], None]) -> None:
    link = link_of(make_user("anna", "editor"))
    assert is_good(link)
    happens()
    assert not is_good(link)


@pytest.mark.parametrize("happens", [*CHANGES, newer_link])
def test_a_link_that_is_open_is_void_after(source: str, happens: Callable[[], None]) -> None:
    browser, place = opened(link_of(make_user("anna", "editor")))
    happens()
    assert not set_password(browser, place, ANOTHER)
    assert not User.objects.get(username="anna").check_password(ANOTHER)


@pytest.mark.parametrize("happens", CHANGES)
def test_a_session_has_ended_after(source: str, happens: Callable[[], None]) -> None:
    project.person("anna", "editor", PASSWORD)
    browser = Client(SERVER_NAME="127.0.0.1")
    browser.post("/login/", {"username": "anna", "password": PASSWORD})
    assert browser.get("/adcore/campaign/").status_code == 200
    happens()
    assert browser.get("/adcore/campaign/").status_code == 302
    assert browser.post("/adcore/campaign/", {"action": "pause", "_selected_action": ["spring"]}).status_code == 302
    assert project.stored(source)["campaigns"][0]["status"] == "active"


def test_what_changes_no_access_ends_no_session(source: str) -> None:
    browser, link = project.client("editor", "anna"), link_of(make_user("anna", "editor"))
    make_user("anna", "editor")
    change("anna", first_name="Anna")
    assert browser.get("/adcore/campaign/").status_code == 200
    assert is_good(link)


def test_a_link_is_no_longer_good_with_another_address_or_person(source: str) -> None:
    anna, bob = make_user("anna", "viewer"), make_user("bob", "administrator")
    link = link_of(anna)
    token, bobs = re.sub(r".*/(.+)/$", r"\1", link), link_of(bob)
    assert not is_good(re.sub(r"[^/]+/$", f"{token}/", bobs))
    assert is_good(bobs)


def test_two_who_use_one_link_at_once_set_one_password(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = [opened(link_of_once) for link_of_once in [link_of(make_user("anna", "editor"))] * 2]
    # As in two admins on one store, which share no turn.
    monkeypatch.setattr(users, "password_turn", lambda request: nullcontext())
    together = threading.Barrier(2, timeout=60)
    check = users.LinkView.form_valid

    def form_valid(view: Any, form: Any) -> Any:
        together.wait()  # both have found the link to be good
        return check(view, form)

    monkeypatch.setattr(users.LinkView, "form_valid", form_valid)
    done: dict[str, object] = {}

    def use(page: tuple[Client, str], password: str) -> None:
        try:
            done[password] = set_password(*page, password)
        except Exception as error:
            done[password] = error
        finally:
            connections.close_all()

    threads = [
        threading.Thread(target=use, args=(page, password))
        for page, password in zip(pages, (PASSWORD, ANOTHER), strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(done.values(), key=str) == [False, True]
    (winner,) = [password for password, worked in done.items() if worked is True]
    assert User.objects.get(username="anna").check_password(winner)


def test_a_link_makes_a_browser_that_nobody_keeps_its_person_out_of(source: str) -> None:
    browser, place = opened(link_of(make_user("anna", "editor")))
    assert set_password(browser, place)
    for number in range(25):
        guesser = Client(SERVER_NAME="127.0.0.1", REMOTE_ADDR=f"198.51.100.{number}")
        guesser.post("/login/", {"username": "anna", "password": "guess"})
    assert browser.post("/login/", {"username": "anna", "password": PASSWORD}).status_code == 302
