"""Who gets in, what each role may do, and what guards a session."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.contrib.auth.models import Group, User
from django.core.management import call_command
from django.test import Client

from adtools.admin.roles import ROLES
from adtools.admin.users import make_user, one_time_link, somebody_can_log_in
from tests.inventories import campaign, document
from tests.tools.admin import project

PASSWORD = "correct horse battery staple"


@pytest.fixture(autouse=True)
def source(tmp_path: Path) -> Iterator[str]:
    url = f"sqlite://{tmp_path}/ads.db"
    project.use_store(url, document(campaign("spring")), tmp_path)
    yield url
    project.close()


def visitor(**facts: Any) -> Client:
    return Client(SERVER_NAME="127.0.0.1", **facts)


def log_in(browser: Client, name: str, password: str) -> Any:
    return browser.post("/login/?next=/", {"username": name, "password": password})


@pytest.mark.parametrize(
    "place",
    [
        "",
        "//evil.example",
        "https://evil.example",
        "/\\evil.example",
        "javascript:alert(1)",
        "http://127.0.0.1@evil.example",
    ],
)
def test_a_login_leads_to_pages_of_this_admin_alone(place: str) -> None:
    project.person("anna", "editor", PASSWORD)
    browser = visitor()
    form = {"username": "anna", "password": PASSWORD, "next": place}
    assert browser.post("/login/", form)["Location"] == "/"
    assert browser.get("/login/", {"next": place})["Location"] == "/"
    assert "Location" not in browser.post("/logout/", {"next": place}).headers


def test_the_models_and_the_migrations_agree() -> None:
    call_command("makemigrations", check=True, dry_run=True, verbosity=0)


def test_django_finds_nothing_to_warn_of() -> None:
    call_command("check", deploy=True, fail_level="ERROR")


def test_every_role_is_a_group_with_its_permissions() -> None:
    for role, (_, permissions) in ROLES.items():
        found = Group.objects.get(name=role).permissions.all()
        assert {f"{one.content_type.app_label}.{one.codename}" for one in found} == set(permissions)


PAGES = {
    "/adcore/campaign/": "viewer",
    "/adcore/campaign/spring/change/": "viewer",
    "/adcore/campaign/spring/history/": "viewer",
    "/adcore/placement/": "viewer",
    "/adcore/placement/side/change/": "viewer",
    "/explain/": "viewer",
    "/delivery/": "viewer",
    "/preview/?creative=spring-1": "viewer",
    "/admin/logentry/": "viewer",
    "/adcore/campaign/add/": "editor",
    "/adcore/campaign/spring/delete/": "editor",
    "/adcore/placement/add/": "editor",
    "/adcore/placement/side/delete/": "editor",
    "/auth/user/": "administrator",
    "/auth/user/add/": "administrator",
}


@pytest.mark.parametrize("role", ROLES)
def test_which_pages_a_role_sees(role: str) -> None:
    browser, order = project.client(role), list(ROLES)
    statuses = {page: browser.get(page).status_code for page in PAGES}
    assert statuses == {
        page: 200 if order.index(role) >= order.index(needed) else 403 for page, needed in PAGES.items()
    }


def test_a_stranger_sees_only_the_login() -> None:
    for page in PAGES:
        answer = visitor().get(page)
        assert answer.status_code == 302, page
        assert answer.headers["Location"].startswith("/login/?next=")
    assert visitor().get("/login/").status_code == 200


def test_a_viewer_sees_every_field_and_changes_none(source: str) -> None:
    before, browser = project.stored(source), project.client("viewer")
    page = browser.get("/adcore/campaign/spring/change/").content.decode()
    assert "The campaign spring" in page
    assert "Buy one" in page
    assert 'name="_save"' not in page
    for target in ("/adcore/campaign/spring/change/", "/adcore/campaign/spring/delete/", "/adcore/campaign/add/"):
        assert browser.post(target, {"post": "yes", "name": "X"}).status_code == 403
    browser.post("/adcore/campaign/", {"action": "pause", "_selected_action": ["spring"]})
    assert project.stored(source) == before


def test_history_cannot_be_changed_by_anybody() -> None:
    editor = project.client("editor")
    editor.post("/adcore/campaign/", {"action": "pause", "_selected_action": ["spring"]})
    administrator = project.client("administrator")
    shown = administrator.get("/admin/logentry/").content.decode()
    assert "status: active → paused" in shown
    assert administrator.post("/admin/logentry/add/").status_code == 403
    for verb in ("change", "delete"):
        assert administrator.post(f"/admin/logentry/1/{verb}/", {"post": "yes"}).status_code == 403


def test_people_are_not_deleted_since_their_changes_would_go_with_them() -> None:
    made = make_user("anna", "editor")
    assert project.client("administrator").post(f"/auth/user/{made.pk}/delete/", {"post": "yes"}).status_code == 403


def test_an_editor_makes_nobody_an_administrator() -> None:
    made = make_user("anna", "viewer")
    role = Group.objects.get(name="administrator").pk
    answer = project.client("editor").post(f"/auth/user/{made.pk}/change/", {"username": "anna", "role": role})
    assert answer.status_code == 403


def test_a_new_person_sets_a_password_by_a_link_that_works_once() -> None:
    administrator = project.client("administrator")
    role = Group.objects.get(name="editor").pk
    saved = administrator.post("/auth/user/add/", {"username": "bob", "role": role, "is_active": "on"}, follow=True)
    (link,) = set(re.findall(rf"{project.URL}(/password/[\w/-]+)", saved.content.decode()))
    bob = User.objects.get(username="bob")
    assert (bob.is_staff, bob.is_superuser, bob.has_usable_password()) == (True, False, False)
    assert [group.name for group in bob.groups.all()] == ["editor"]
    browser = visitor()
    form = browser.get(link, follow=True)
    place = form.redirect_chain[-1][0]
    weak = browser.post(place, {"new_password1": "short", "new_password2": "short"})
    assert "at least 12 characters" in weak.content.decode()
    assert browser.post(place, {"new_password1": PASSWORD, "new_password2": PASSWORD}).status_code == 302
    again = visitor().get(link, follow=True)
    assert "invalid" in again.content.decode()
    assert log_in(browser, "bob", PASSWORD).status_code == 302
    assert browser.get("/adcore/campaign/").status_code == 200


def test_an_old_link_does_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    link = one_time_link(make_user("anna", "editor")).removeprefix(project.URL)
    monkeypatch.setattr(settings, "PASSWORD_RESET_TIMEOUT", -1)
    assert "invalid" in visitor().get(link, follow=True).content.decode()


def test_whether_somebody_can_log_in_asks_for_an_administrator() -> None:
    project.person("anna", "editor", PASSWORD)
    make_user("carl", "administrator")
    assert not somebody_can_log_in()
    project.person("bob", "administrator", PASSWORD)
    assert somebody_can_log_in()


def test_who_was_locked_out_of_the_admin_is_out_at_once() -> None:
    browser = project.client("editor", "anna")
    assert browser.get("/adcore/campaign/").status_code == 200
    User.objects.filter(username="anna").update(is_active=False)
    assert browser.get("/adcore/campaign/").status_code == 302


def test_guessing_passwords_is_stopped_for_the_one_who_guesses() -> None:
    project.person("anna", "editor", PASSWORD)
    guesser, anna = visitor(REMOTE_ADDR="192.0.2.1"), visitor(REMOTE_ADDR="192.0.2.2")
    statuses = [log_in(guesser, "anna", f"guess {number}").status_code for number in range(6)]
    assert statuses == [200, 200, 200, 200, 429, 429]
    locked = log_in(guesser, "anna", PASSWORD)
    assert locked.status_code == 429
    assert b"Too many attempts" in locked.content
    assert log_in(anna, "anna", PASSWORD).status_code == 302


def test_forwarded_addresses_are_not_believed_by_the_pages_themselves() -> None:
    project.person("anna", "editor", PASSWORD)
    for number in range(5):
        log_in(visitor(HTTP_X_FORWARDED_FOR=f"192.0.2.{number}"), "anna", "guess")
    assert log_in(visitor(HTTP_X_FORWARDED_FOR="192.0.2.77"), "anna", PASSWORD).status_code == 429


def test_a_form_of_another_site_is_refused() -> None:
    browser = Client(SERVER_NAME="127.0.0.1", enforce_csrf_checks=True)
    browser.cookies.update(project.client("editor").cookies)
    chosen = {"action": "pause", "_selected_action": ["spring"]}
    assert browser.post("/adcore/campaign/", chosen).status_code == 403
    assert browser.post("/preview/", {"format": "html"}).status_code == 403


def test_another_host_name_is_refused() -> None:
    assert Client(SERVER_NAME="evil.example.net").get("/login/").status_code == 400


def test_every_page_has_a_policy_and_cannot_be_framed() -> None:
    for browser, page in ((visitor(), "/login/"), (project.client("editor"), "/adcore/campaign/spring/change/")):
        headers = browser.get(page).headers
        assert "script-src 'self'" in headers["Content-Security-Policy"]
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        assert headers["X-Frame-Options"] == "DENY"
        assert headers["X-Content-Type-Options"] == "nosniff"


def test_session_cookies_are_out_of_reach_of_scripts_and_other_sites() -> None:
    project.person("anna", "editor", PASSWORD)
    browser = visitor()
    log_in(browser, "anna", PASSWORD)
    session = browser.cookies["adcore_session"]
    assert (session["httponly"], session["samesite"], session["max-age"]) == (True, "Lax", "")
    assert browser.cookies["adcore_csrf"]["httponly"]


def test_a_preview_is_of_nobodys_origin_and_counts_nowhere() -> None:
    fields = {"format": "html", "size": "300x250", "html": "<script>1</script>", "landing_url": ""}
    for answer in (
        project.client("viewer").get("/preview/?creative=spring-1"),
        project.client("viewer").post("/preview/", fields),
    ):
        policy = answer.headers["Content-Security-Policy"]
        assert "sandbox" in policy
        assert "allow-same-origin" not in policy
        assert "frame-ancestors 'self'" in policy
        assert answer.headers["X-Frame-Options"] == "SAMEORIGIN"
        assert b"https://preview.invalid/v1/view" in answer.content


def test_a_preview_of_what_is_wrong_says_so() -> None:
    fields = {"format": "html", "size": "300x250", "html": "", "landing_url": "javascript:alert(1)"}
    shown = project.client("viewer").post("/preview/", fields).content.decode()
    assert "html: Is missing" in shown
    assert "landing_url: Must be an http or https URL" in shown
