"""Rows that other hands wrote with SQL: every page shows them as text, and leads nowhere that a browser runs."""

import os
import random
import re
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.admin.utils import quote as admin_quote
from django.contrib.auth.models import User
from django.contrib.contenttypes.models import ContentType
from django.db import IntegrityError, connection
from django.test import Client

from adtools.admin.models import Campaign
from tests.inventories import campaign, document, text_creative
from tests.tools.admin import project

SEED = 16
# Of the values, in each column.
SAMPLE = int(os.environ.get("ADMIN_ROWS_SAMPLE", "3"))
MARKUP = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>"
VALUES: tuple[Any, ...] = (
    *(MARKUP, "javascript:alert(1)", "JaVaScRiPt:alert(1)", " javascript:alert(1)", "java\nscript:alert(1)"),
    *(
        "data:text/html,<script>alert(1)</script>",
        "vbscript:x",
        "//evil.example.net",
        "https://a.example.net/\njavascript:",
    ),
    *("", "a\nb", "a/b?c#d", "..", "\u202e\u2028", "=1+1", "x" * 5000, "{wanted} {0} {", "%s", "é" * 100),
    *("9999-12-31T23:59:59-12:00", "0001-01-01T00:00:00+14:00", "2026-13-01", "2026-11-01T00:00:00"),
    *(None, -1, 0, 2**62, 1.5, b"\xff\x00bytes"),
    *("[" * 3000, '{"placements": 5}', '{"placements": [null, 5, {}]}', '{"key_values": []}', "NaN", "[]", "{}", '"a"'),
    *('{"hours": "all", "devices": {"a": 1}}', '{"text": ["a"], "title": 5}', '{"placements": {"side": 1}}'),
)
COLUMNS = {
    "placements": ("id", "position", "width", "height", "formats"),
    "campaigns": (
        *("id", "name", "advertiser", "priority", "weight", "status", "starts_at", "ends_at", "goal_impressions"),
        *(
            "daily_cap_clicks",
            "pacing",
            "optimize_for",
            "frequency_cap_impressions",
            "frequency_cap_seconds",
            "targeting",
        ),
    ),
    "creatives": (
        *("id", "position", "width", "height", "format", "weight", "image_url", "alt", "html", "data", "landing_url"),
    ),
    "results": ("placement", "campaign", "creative", "device", "country", "impressions"),
    "delivered": ("campaign", "day", "impressions"),
    "django_admin_log": ("object_id", "object_repr", "change_message"),
}


@pytest.fixture
def source(tmp_path: Path) -> Iterator[str]:
    url = f"sqlite://{tmp_path}/ads.db"
    spring = campaign(
        "spring",
        goal={"impressions": 1000},
        starts_at="2026-11-01T00:00:00+01:00",
        ends_at="2026-12-01T00:00:00+01:00",
        creatives=[text_creative("spring-1"), text_creative("spring-2", format="html", html="<b>x</b>", data=None)],
    )
    project.use_store(url, document(spring, campaign("house", priority="house")), tmp_path)
    yield url
    project.close()


class Links(HTMLParser):
    """Where a page leads and what it loads, and the elements that it is made of."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.urls: list[str] = []
        self.handlers: list[str] = []
        self.scripts = 0
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script" and "src" not in dict(attrs) and dict(attrs).get("type") != "application/json"
        for name, value in attrs:
            if name in ("href", "src", "action", "formaction", "srcdoc", "data", "poster", "xlink:href"):
                self.urls.append(value or "")
            if name.startswith("on"):
                self.handlers.append(name)


def is_harmless(url: str) -> bool:
    """An address of the admin itself, or a web page elsewhere."""
    ours = re.match(r"(?:/(?![/\\])|\?|#|data:,\Z|\Z)", url) is not None and url.isprintable()
    return ours or url.lower().startswith(("http://", "https://"))


def pages(browser: Client) -> list[str]:
    with connection.cursor() as cursor:
        found = [
            *("/adcore/campaign/", "/adcore/placement/", "/admin/logentry/", "/delivery/"),
            *("/explain/?placement=side&device=mobile", "/adcore/campaign/add/"),
        ]
        for table, model in (("campaigns", "campaign"), ("placements", "placement")):
            cursor.execute(f"SELECT id FROM {table} ORDER BY rowid LIMIT 1")
            for (key,) in cursor.fetchall():
                if key:
                    found += [f"/adcore/{model}/{quoted(key)}/{verb}/" for verb in ("change", "delete", "history")]
        cursor.execute("SELECT id FROM creatives ORDER BY rowid LIMIT 1")
        found += [f"/preview/?creative={quoted(key, '')}" for (key,) in cursor.fetchall()]
    return found


def quoted(key: Any, admin: str = "admin") -> str:
    return quote(str(admin_quote(str(key)) if admin else key), safe="")


def write(table: str, column: str, value: Any) -> bool:
    """Whether the store took it."""
    with connection.cursor() as cursor:
        cursor.execute("PRAGMA foreign_keys = OFF")
        try:
            cursor.execute(f"UPDATE {table} SET {column} = %s WHERE rowid = (SELECT min(rowid) FROM {table})", [value])
        except IntegrityError:
            return False
    return True


def fill() -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO results VALUES (%s, 'side', 'spring', 'spring-1', 'mobile', 'JP', 5, 3, 1, 0)",
            [int(time.time()) // 3600 * 3600],
        )
        cursor.execute(
            "INSERT INTO delivered (campaign, day, impressions, clicks) VALUES ('spring', '2026-11-02', 5, 1)"
        )
    LogEntry.objects.create(
        user=User.objects.get(username="administrator"),
        content_type=ContentType.objects.get_for_model(Campaign),
        object_id="spring",
        object_repr="Spring",
        action_flag=CHANGE,
        change_message="x",
    )


@pytest.mark.parametrize(
    ("written", "linked"),
    [
        ("https://shop.example.net/?c={click_id}", True),
        ("HTTP://shop.example.net", True),
        ("javascript:alert(1)", False),
        ("JaVaScRiPt:alert(1)//https://a.example.net", False),
        (" https://a.example.net", False),
        ("java\nscript:alert(1)", False),
        ("https://a.example.net/\njavascript:alert(1)", True),
        ("data:text/html,<script>alert(1)</script>", False),
        ("//evil.example.net", False),
        ("\x01javascript:alert(1)", False),
        ("", False),
        (None, False),
        (b"\xff", False),
    ],
)
def test_only_web_pages_are_linked_to(source: str, written: Any, linked: bool) -> None:
    write("creatives", "landing_url", written)
    for role in ("viewer", "editor"):
        page = project.client(role).get("/adcore/campaign/spring/change/").content.decode()
        assert page.count("Open the landing page") == 1 + linked  # the other creative has one


@pytest.mark.parametrize("table", COLUMNS)
def test_no_row_is_more_than_text(source: str, table: str, tmp_path: Path) -> None:
    random_ = random.Random(f"{SEED} {table}")
    fallen = []
    browser = project.client("administrator")
    browser.raise_request_exception = False
    fill()
    plain = {page: Links(browser.get(page).content.decode()) for page in pages(browser)}
    for column in COLUMNS[table]:
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT {column} FROM {table} WHERE rowid = (SELECT min(rowid) FROM {table})")
            before = cursor.fetchone()[0]
        for value in random_.sample(VALUES, SAMPLE):
            if not write(table, column, value):
                continue
            for page in pages(browser):
                answer = browser.get(page)
                what = f"{table}.{column} = {value!r:.60}: {page[:80]}"
                if answer.status_code >= 500:
                    fallen.append(f"{what} {getattr(answer, 'exc_info', ' ')[1]!r:.150}")
                    continue
                if answer.headers["Content-Type"].startswith("text/html") and "/preview/" not in page:
                    links = Links(answer.content.decode())
                    bad = [url for url in links.urls if not is_harmless(url)]
                    if bad or links.handlers or links.scripts:
                        fallen.append(f"{what} {bad} {links.handlers} {links.scripts}")
            write(table, column, before)
    assert plain
    assert not fallen, f"{len(fallen)} fell:\n" + "\n".join(fallen[:60])
