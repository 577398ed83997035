"""What a request may take: look-ups, words, forms, and time in the database."""

import gzip
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import OperationalError, connection
from django.test import Client, RequestFactory

from adcore.errors import AdcoreError
from adtools.admin import deadline, explain
from adtools.admin.models import Campaign
from adtools.admin.statements import is_over_limit
from adtools.admin.urls import site
from tests import services
from tests.inventories import campaign, document, text_creative
from tests.process import ask
from tests.tools.admin import project
from tests.tools.admin.served import Admin, make_store

BACKTRACKS = "(a+)+$"


def inventory() -> dict[str, Any]:
    spring = campaign("spring", advertiser="a" * 40, creatives=[text_creative("spring-1"), text_creative("spring-2")])
    return document(spring, campaign("house", priority="house"))


@pytest.fixture(params=["sqlite", "mysql"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "mysql":
        mariadb: services.MariaDB = request.getfixturevalue("mariadb")
        mariadb.sql("CREATE DATABASE IF NOT EXISTS admin")
        url = mariadb.url("admin")
    else:
        url = f"sqlite://{tmp_path}/ads.db"
    project.use_store(url, inventory(), tmp_path)
    yield url
    project.close()


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[str]:
    with project.sqlite_store(tmp_path, inventory()) as url:
        yield url


# Lists

LISTS = ("/adcore/campaign/", "/adcore/placement/", "/admin/logentry/", "/auth/user/")
LOOKUPS = (
    *("advertiser__regex", "advertiser__iregex", "id__in", "id__contains", "name__icontains", "pk", "id", "weight__gt"),
    *("creatives__html__regex", "user__password__startswith", "user__password__regex", "groups__name", "password"),
    *(
        "password__startswith",
        "last_login__year",
        "action_time__year",
        "action_time__date",
        "status__isnull",
        "position",
    ),
    *("content_type__model__regex", "targeting__contains", "delivered_impressions__gt", "_facets", "_to_field", "x"),
)


@pytest.mark.parametrize("lookup", LOOKUPS)
def test_no_list_filters_by_what_it_has_no_link_for(sqlite: str, lookup: str) -> None:
    browser = project.client("administrator")
    for page in LISTS:
        answer = browser.get(page, {lookup: BACKTRACKS})
        assert answer.status_code == 400, page
        assert "These pages send nothing like this request" in answer.content.decode()


def test_django_is_told_which_look_ups_a_list_has() -> None:
    request = RequestFactory().get("/")
    for admin in site._registry.values():
        assert not any(admin.lookup_allowed(lookup, BACKTRACKS, request) for lookup in LOOKUPS)
    assert site._registry[Campaign].lookup_allowed("advertiser", "Example Shop", request)


def test_every_link_of_a_list_works(source: str) -> None:
    browser = project.client("administrator")
    for person in (browser, project.client("editor")):
        person.post("/adcore/campaign/", {"action": "pause", "_selected_action": ["spring"]})
    seen = set()
    for page in LISTS:
        links = set(re.findall(r'href="(\?[^"]*)"', browser.get(page).content.decode()))
        links |= set(re.findall(r'href="(\?[^"]*)"', browser.get(page, {"q": "a", "o": "1.-2"}).content.decode()))
        for link in links:
            assert browser.get(page + link.replace("&amp;", "&")).status_code == 200, page + link
        seen |= {part.partition("=")[0] for link in links for part in link[1:].replace("&amp;", "&").split("&")}
    assert {"status", "priority", "advertiser", "action_time__gte", "user__id__exact", "o"} <= seen


@pytest.mark.parametrize(
    "query",
    [
        "status=a&status=b",
        "status=" + "a" * 201,
        "o=" + ".".join("1" * 40),
        "o=name",
        "p=" + "9" * 5000,
        "action_time__gte=9999-12-31 23:59:59%2B00:00",
        "user__id__exact=" + "9" * 40,
        "all=" + "1" * 40,
    ],
)
def test_no_value_of_a_list_is_more_than_its_links_have(sqlite: str, query: str) -> None:
    browser = project.client("administrator")
    for page in ("/adcore/campaign/", "/admin/logentry/"):
        assert browser.get(f"{page}?{query}").status_code == 400


def test_a_page_far_behind_the_end_is_none(source: str) -> None:
    browser = project.client("viewer")
    assert browser.get("/adcore/campaign/?p=999999999", follow=True).status_code == 200
    assert browser.get("/adcore/campaign/spring/history/?p=999999999").status_code == 200


def test_a_search_is_of_some_words(source: str) -> None:
    browser = project.client("viewer")
    assert "The campaign spring" in browser.get("/adcore/campaign/", {"q": "The campaign spring"}).content.decode()
    for words in ("a " * 9, "a" * 201, "a " * 4000):
        page = browser.get("/adcore/campaign/", {"q": words})
        assert "A search is of at most 8 words and 200 characters." in page.content.decode()
        assert page.context["cl"].result_count == 0


@pytest.mark.parametrize(
    ("page", "action", "chosen", "status"),
    [
        ("/adcore/campaign/", "pause", ["spring"] * 201, 400),
        ("/adcore/campaign/", "pause", [f"c{number}" for number in range(5000)], 400),
        ("/adcore/campaign/", "pause", ["c" * 5000], 400),
        ("/auth/user/", "give_link", ["anna"], 400),
        ("/auth/user/", "give_link", ["9" * 40], 400),
        ("/auth/user/", "give_link", ["1e400"], 400),
        ("/adcore/placement/", "delete_selected", ["a\0b"], 400),
        ("/adcore/campaign/", "__class__", ["spring"], 302),
        ("/adcore/campaign/", "delete_model", ["spring"], 302),
    ],
)
def test_an_action_is_on_rows_of_the_page(source: str, page: str, action: str, chosen: list[str], status: int) -> None:
    before = project.stored(source)
    answer = project.client("administrator").post(page, {"action": action, "_selected_action": chosen})
    assert answer.status_code == status
    assert project.stored(source) == before


# Forms

SPRING = "/adcore/campaign/spring/change/"


@pytest.mark.parametrize(
    "changes",
    [
        {"creatives-TOTAL_FORMS": "0", "creatives-INITIAL_FORMS": "0"},
        {"creatives-TOTAL_FORMS": "1", "creatives-INITIAL_FORMS": "1"},
        {"creatives-TOTAL_FORMS": "1"},
        {"creatives-TOTAL_FORMS": "-1"},
        {"creatives-INITIAL_FORMS": "-1"},
        {"creatives-INITIAL_FORMS": "0"},
        {"creatives-TOTAL_FORMS": "x"},
        {"creatives-1-id": "spring-1"},
        {"creatives-1-id": "house-1"},
        {"creatives-1-id": ""},
    ],
)
def test_a_form_with_other_creatives_than_are_stored_changes_nothing(source: str, changes: dict[str, str]) -> None:
    before, editor = project.stored(source), project.client("editor")
    answer = editor.post(SPRING, project.posted(editor.get(SPRING), weight="7", **changes))
    assert answer.status_code == 200
    assert "The form did not come whole" in str(project.errors(answer)) or answer.context["errors"]
    assert project.stored(source) == before


def test_no_form_is_made_of_a_number_alone(source: str) -> None:
    editor = project.client("editor")
    answer = editor.post(SPRING, project.posted(editor.get(SPRING), weight="x", **{"creatives-TOTAL_FORMS": "1000000"}))
    assert len(answer.context["inline_admin_formsets"][0].formset.forms) == 2


def test_no_field_has_a_null_character(sqlite: str) -> None:
    browser = project.client("administrator")
    for page in ("/login/", "/preview/", SPRING, "/adcore/placement/add/", "/auth/user/add/", "/password_change/"):
        for form in ({"a": "b\0c"}, {"a\0": "b"}):
            answer = browser.post(page, form)
            assert answer.status_code == 400, page
            assert b"null character" in answer.content


def test_who_has_not_logged_in_sends_little(sqlite: str) -> None:
    stranger = Client(SERVER_NAME="127.0.0.1")
    for page in ("/login/", "/preview/", "/adcore/campaign/add/", "/password/MQ/x-y/"):
        answer = stranger.post(page, {"a": "b" * 70_000})
        assert answer.status_code == 413, page
        assert b"Log in before you send this much" in answer.content


# Time in the database


@pytest.fixture
def short_statements(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadline, "STATEMENT_S_MAX", 0.05)


ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"


@pytest.mark.usefixtures("short_statements")
def test_sqlite_ends_a_statement_of_a_request_and_of_nothing_else(sqlite: str) -> None:
    with deadline.request(), connection.cursor() as cursor, pytest.raises(OperationalError) as refused:
        cursor.execute(ENDLESS)
    assert is_over_limit(refused.value)
    bounded = ENDLESS.replace("FROM n)", "FROM n WHERE i < 300000)")
    with connection.cursor() as cursor:
        cursor.execute(bounded)
        assert cursor.fetchone() == (300_000,)


def test_sqlite_runs_no_regular_expression_in_this_process(sqlite: str) -> None:
    with connection.cursor() as cursor, pytest.raises(OperationalError, match="user-defined function raised exception"):
        cursor.execute("SELECT 'a' REGEXP 'b'")


def test_mariadb_ends_a_statement_that_takes_too_long(mariadb: services.MariaDB, tmp_path: Path) -> None:
    mariadb.sql("CREATE DATABASE IF NOT EXISTS admin")
    project.use_store(mariadb.url("admin"), inventory(), tmp_path)
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT @@max_statement_time, @@sql_mode")
            assert cursor.fetchone() == (deadline.STATEMENT_S_MAX, "STRICT_TRANS_TABLES")
            cursor.execute("SET SESSION max_statement_time = 0.05")
            with pytest.raises(OperationalError) as refused:
                cursor.execute("SELECT count(*) FROM {0} a, {0} b, {0} c".format("information_schema.columns"))
        assert is_over_limit(refused.value)
    finally:
        project.close()


@pytest.mark.usefixtures("short_statements")
def test_a_page_that_takes_too_long_says_so(sqlite: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from adtools.admin import delivery

    def endless(*_: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute(ENDLESS)

    monkeypatch.setattr(delivery, "lines", endless)
    with deadline.request():
        answer = project.client("viewer").get("/delivery/")
    assert answer.status_code == 503
    assert b"This took too long" in answer.content


def test_a_store_that_is_away_is_a_page(sqlite: str, tmp_path: Path) -> None:
    browser = project.client("viewer")
    browser.raise_request_exception = False
    project.connect(f"mysql://root@/x?unix_socket={tmp_path}/none.sock")
    for answer in (browser.get("/delivery/"), browser.post("/login/", {"username": "a", "password": "b"})):
        assert answer.status_code == 503
        assert b"The store does not answer" in answer.content


def test_an_image_for_visitors_depends_on_no_cookie(sqlite: str, tmp_path: Path) -> None:
    name = f"{'0' * 40}.png"
    (tmp_path / "creatives").mkdir()
    (tmp_path / "creatives" / name).write_bytes(b"x")
    shown: Any = Client(SERVER_NAME="127.0.0.1").get(f"/creatives/{name}")
    assert b"".join(shown.streaming_content) == b"x"
    assert "Vary" not in shown.headers


def test_logs_are_searched_for_ten_seconds(sqlite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the log has: records, damage, or a compressed file that grows when it is read."""
    clock = iter(range(1000))
    monkeypatch.setattr(deadline, "now", lambda: next(clock) * explain.LOG_S_MAX / 4)
    log = tmp_path / "delivery.log"
    for name, content in (
        ("delivery.log", b'{"type":"view"}\n' * (1 << 20)),
        ("delivery.log", bytes(20 << 20)),
        ("delivery.log.1.gz", gzip.compress(bytes(20 << 20))),
    ):
        (tmp_path / name).write_bytes(content)
        with deadline.request(), pytest.raises(AdcoreError, match=r"too large to be searched in 10 s.* adctl explain"):
            explain.logged_answer([log], "f" * 32)
        (tmp_path / name).unlink()


def test_what_is_found_beside_a_log_is_a_file(sqlite: str, tmp_path: Path) -> None:
    """A pipe would hold the thread for ever."""
    os.mkfifo(tmp_path / "delivery.log.1")
    with pytest.raises(AdcoreError, match=r"delivery\.log\.1 cannot be read"):
        explain.logged_answer([tmp_path / "delivery.log"], "f" * 32)


# The admin as it runs


@pytest.mark.parametrize(
    ("request_line", "headers", "body", "status"),
    [
        ("PUT /login/", {}, b"", 405),
        ("OPTIONS /adcore/campaign/", {}, b"", 405),
        ("GET /login/?" + "a" * 20_000, {}, b"", 414),
        ("GET /login/?" + "a&" * 300, {}, b"", 414),
        ("GET /" + "a" * 5000, {}, b"", 414),
        ("GET /login/?next=%00", {}, b"", 400),
        ("GET /%00/", {}, b"", 400),
        ("POST /login/", {"Content-Type": "application/json"}, b"{}", 415),
        ("POST /login/", {"Content-Type": "text/plain; charset=zlib_codec"}, b"a", 415),
        ("POST /login/", {"Content-Type": "application/x-www-form-urlencoded; charset=utf-7"}, b"a", 415),
        ("POST /login/", {"Content-Type": "multipart/form-data; boundary=a; charset=idna"}, b"a", 415),
        ("POST /login/", {"Content-Type": "multipart/form-data; boundary=" + "a" * 500}, b"a", 415),
        ("POST /login/", {"Content-Type": "multipart/form-data"}, b"a", 415),
        ("POST /login/", {"Content-Type": "application/x-www-form-urlencoded"}, b"a" * 70_000, 413),
        ("POST /login/", {"Content-Type": "application/x-www-form-urlencoded"}, b"a=1", 403),
        ("GET /login/", {"Cookie": "adcore_session=x; adcore_browser=x; =; ;;"}, b"", 200),
        ("GET /login/", {"X-Forwarded-For": "2001:db8::1"}, b"", 200),
        ("GET /login/", {"X-Forwarded-For": "::ffff:192.0.2.1"}, b"", 200),
        ("GET /login/", {"X-Forwarded-For": "x, y,, [::1]:80"}, b"", 200),
        ("GET /login/", {"X-Forwarded-For": "a" * 2000}, b"", 200),
    ],
)
def test_the_server_answers_what_no_browser_sends(
    served: Admin, request_line: str, headers: dict[str, str], body: bytes, status: int
) -> None:
    method, _, target = request_line.partition(" ")
    answer = ask(served.url.removeprefix("http://"), target, method, body or None, Host="127.0.0.1", **headers)
    assert (answer.status, len(answer.body) > 20) == (status, True)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Admin]:
    state = tmp_path_factory.mktemp("state")
    make_store(state)
    with Admin(state, "--unix", str(state / "admin.sock")) as admin:
        yield admin
