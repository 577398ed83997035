"""Requests that no form of ours makes: every view takes them with an answer below 500, whatever is in their fields.

The cases are drawn from one seed, and a failure names the seed and the case. ADMIN_FUZZ_CASES makes it longer.
"""

import io
import logging
import os
import random
import re
import sys
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote_from_bytes

import pytest
from django.contrib.auth.models import Group
from django.contrib.sessions.models import Session
from django.core.signals import got_request_exception
from django.core.wsgi import get_wsgi_application
from django.test import Client

from adtools.admin.guard import guarded
from adtools.admin.users import make_user, one_time_link
from tests import services
from tests.inventories import campaign, document, text_creative
from tests.tools.admin import project

SEED = int(os.environ.get("ADMIN_FUZZ_SEED", "16"))
CASES = int(os.environ.get("ADMIN_FUZZ_CASES", "2000"))
CASES_MYSQL = CASES // 5
TOKEN = "t" * 32
APPLICATION: Any = guarded(get_wsgi_application())

PIXEL = (
    b"GIF89a\x01\x00\x01\x00\x80\x00\x00\x00\x00\x00\xff\xff\xff!\xf9\x04\x01\x00\x00\x00\x00,\x00\x00\x00\x00"
    b"\x01\x00\x01\x00\x00\x02\x02D\x01\x00;"
)
# What a field may hold that its form never put there, as the bytes on the wire.
VALUES: tuple[bytes, ...] = (
    *(b"", b" ", b"\0", b"a\0b", b"\x01\x02", b"\r\nSet-Cookie: a=b", b"\xff\xfe", b"\xed\xa0\x80", b"\xc0\xaf"),
    *(b"-1", b"0", b"1e400", b"-1e400", b"NaN", b"Infinity", b"9" * 30, b"9" * 5000, b"-" + b"9" * 5000, b"0x10"),
    *("\uff11\uff12".encode(), "²".encode(), "\u0345".encode() * 3000, b"e\xcc\x81" * 2000, b"\xf0\x9f\xa4\xb7"),
    *(b"0001-01-01T00:00", b"9999-12-31T23:59", b"0001-01-01T00:00+14:00", b"9999-12-31T23:59-14:00"),
    *(b"0000-00-00", b"2026-02-30T25:61", b"2026-W01-1", b"20261101", b"0001-01-01 00:00:00+23:59"),
    *(b"[" * 5000, b'{"a":' * 3000, b"{}", b"[]", b"null", b"NaN", b'{"a": 1e400}', b'{"a": NaN}', b'{"a": "\\ud800"}'),
    *(b'{"a": ' + b"9" * 4000 + b"}", b'{"a": ' + b"9" * 5000 + b"}", b'{"a": 1, "a": 2}', b'{"\\u0000": "\\u0000"}'),
    *(b"javascript:alert(1)", b"//evil.example.net", b"/\\evil.example.net", b"http://[::1", b"https://a b/"),
    *(b"__proto__", b"__class__", b"pk", b"id", b"spring", b"house", b"side", b"pause", b"delete_selected"),
    *(b"give_link", b"activate", b"1" * 400, b"x" * 70_000, b"a," * 2000, b"=1+1", b"%s%n", b"{click_id}", b"../.."),
    *(b"728x90", b"0x0", b"999999x999999", b"300x", b"300x250x1", b"\xef\xbc\x93\xe2\x80\x8800x250", b"-1x-1"),
)
NAMES = (
    *("_to_field", "_popup", "_facets", "_saveasnew", "_addanother", "_continue", "_changelist_filters", "e", "p", "o"),
    *("q", "all", "next", "action", "index", "select_across", "_selected_action", "post", "_save", "is_active"),
    *("advertiser__regex", "id__in", "creatives__html__regex", "name__search", "pk", "status", "status__isnull"),
    *("action_time__gte", "action_time__year", "user__id__exact", "user__password__startswith", "priority__in"),
    *("creatives-TOTAL_FORMS", "creatives-INITIAL_FORMS", "creatives-MAX_NUM_FORMS", "creatives-MIN_NUM_FORMS"),
    *("creatives-__prefix__-id", "creatives-0-campaign", "creatives-7-id", "csrfmiddlewaretoken", "\0", "a[]"),
    *("campaign", "creative", "placement", "impression", "days", "time", "device", "kv.a", "_method"),
)


class Target(NamedTuple):
    """One view, and the fields that a browser would send to it."""

    path: str
    get: tuple[str, ...] = ()
    form: Mapping[str, Any] | None = None
    files: tuple[str, ...] = ()


LIST = ("q", "o", "p", "all", "e", "_facets", "_popup", "_to_field")
EXPLAIN = (
    *("placement", "device", "os", "country", "languages", "keywords", "key_values", "user", "time"),
    *("impression", "campaign"),
)
CREATIVE = {
    "format": "image",
    "size": "300x250",
    "image_url": "https://i.example.net/1.png",
    "alt": "",
    "title": "",
    "text": "",
    "html": "",
    "data": "",
    "landing_url": "https://shop.example.net/",
    "weight": "1",
    "id": "x",
}


def targets(browser: Client) -> list[Target]:
    def of_page(path: str) -> dict[str, Any]:
        return project.posted(browser.get(path))

    spring, add, side = "/adcore/campaign/spring/change/", "/adcore/campaign/add/", "/adcore/placement/side/change/"
    link = one_time_link(make_user("carl", "viewer")).removeprefix(project.URL)
    role, anna = Group.objects.get(name="editor").pk, make_user("anna", "editor").pk
    person = {"username": "dora", "role": str(role), "first_name": "", "last_name": "", "email": "", "is_active": "on"}
    chosen = {"action": "pause", "index": "0", "select_across": "0", "_selected_action": "spring"}
    passwords = {"new_password1": "short", "new_password2": "short"}
    return [
        Target("/adcore/campaign/", (*LIST, "status", "priority", "advertiser"), chosen),
        Target("/adcore/placement/", LIST, {**chosen, "action": "delete_selected", "post": "yes"}),
        Target("/admin/logentry/", (*LIST, "action_time__gte", "action_time__lt", "user__id__exact"), chosen),
        Target("/auth/user/", LIST, {**chosen, "action": "give_link", "_selected_action": str(anna)}),
        Target(spring, ("_to_field", "_popup", "_changelist_filters"), of_page(spring), ("creatives-0-upload",)),
        Target(spring, (), of_page(spring), ("creatives-1-upload",)),
        Target(add, ("id", "weight", "starts_at"), {**of_page(add), **new()}),
        Target(add, (), of_page(add), ("creatives-0-upload",)),
        Target(side, (), of_page(side)),
        Target("/adcore/placement/add/", ("width",), of_page("/adcore/placement/add/")),
        Target("/adcore/campaign/spring/delete/", ("_to_field",), {"post": "", "_popup": "1"}),
        Target("/adcore/campaign/spring/history/", ("p", "all")),
        Target("/adcore/placement/side/delete/", ("_to_field",), {"post": "yes"}),
        Target("/auth/user/add/", (), person),
        Target(f"/auth/user/{anna}/change/", (), {**person, "username": "anna"}),
        Target(f"/auth/user/{anna}/history/", ("p",)),
        Target("/explain/", EXPLAIN),
        Target("/delivery/", ("campaign", "days")),
        Target("/preview/", ("creative",), CREATIVE, ("upload",)),
        Target("/login/", ("next",), {"username": "anna", "password": "guess", "next": "/"}),
        Target("/logout/", ("next",), {"next": "/"}),
        Target("/password_change/", (), {"old_password": "a", **passwords}),
        Target(link, ("a",)),
        Target(re.sub(r"/[^/]+/$", "/set-password/", link), (), passwords),
        Target("/jsi18n/", ("a",)),
        Target("/autocomplete/", ("term", "app_label", "model_name", "field_name")),
    ]


def new() -> dict[str, str]:
    return {
        "id": "summer",
        "name": "Summer",
        "advertiser": "Shop",
        "placements": "side",
        "hours": "2",
        "weekdays": "1",
        **{f"creatives-0-{name}": value for name, value in CREATIVE.items()},
    }


PATHS = (
    *("/adcore/campaign/{}/change/", "/adcore/campaign/{}/delete/", "/adcore/campaign/{}/history/"),
    *("/adcore/placement/{}/change/", "/auth/user/{}/change/", "/auth/user/{}/history/", "/admin/logentry/{}/change/"),
    *("/admin/logentry/{}/history/", "/password/{}/x-y/", "/password/MQ/{}/", "/creatives/{}", "/static/{}", "/{}"),
    *("/r/{}/1/", "/adcore/{}/", "/{}/campaign/", "/adcore/campaign/{}"),
)


def inventory() -> dict[str, Any]:
    spring = campaign(
        "spring",
        goal={"impressions": 1000},
        starts_at="2026-11-01T00:00:00+01:00",
        targeting={"placements": ["side"], "keywords_any": ["manga"], "key_values": {"s": ["a", "b"]}},
        creatives=[text_creative("spring-1"), text_creative("spring-2")],
    )
    return document(spring, campaign("house", priority="house"))


class Case:
    """One request: the method, the path with its query, and the body with its type."""

    def __init__(self, random_: random.Random, target: Target) -> None:
        self._random = random_
        self.path = target.path.encode()
        if random_.random() < 0.08:
            self.path = random_.choice(PATHS).encode().replace(b"{}", self._word())
        posts = target.form is not None and random_.random() < 0.75
        query = self._fields({}, target.get) if not posts or random_.random() < 0.2 else []
        self.query = "&".join(f"{quote_from_bytes(name)}={self._quoted(value)}" for name, value in query)
        self.method = (
            "POST"
            if posts
            else "GET"
            if random_.random() < 0.9
            else random_.choice(("HEAD", "OPTIONS", "PUT", "TRACE"))
        )
        self.body, self.type = b"", "text/plain"
        self.address = random_.choice(("127.0.0.1", "", "localhost", "::1", "::ffff:192.0.2.1", "fe80::1%eth0", "\0"))
        if target.form is not None and posts:
            fields = self._fields(target.form, ())
            if (target.files and random_.random() < 0.5) or random_.random() < 0.2:
                self._multipart(fields, target.files)
            else:
                self.type = "application/x-www-form-urlencoded"
                self.body = "&".join(f"{quote_from_bytes(n)}={self._quoted(v)}" for n, v in fields).encode()
        if random_.random() < 0.03:
            self.type = random_.choice(
                ("application/json", "multipart/form-data", "text/plain; charset=\0", "a/b; c=d")
            )

    def __str__(self) -> str:
        return f"{self.method} {self.path!r} ?{self.query[:300]} {self.type} {self.body[:1500]!r}"

    def environ(self, cookies: str) -> dict[str, Any]:
        return {
            "REQUEST_METHOD": self.method,
            "PATH_INFO": self.path.decode("latin-1"),
            "QUERY_STRING": self.query,
            "CONTENT_TYPE": self.type,
            "CONTENT_LENGTH": str(len(self.body)),
            "HTTP_COOKIE": cookies,
            "HTTP_X_CSRFTOKEN": TOKEN,
            "SCRIPT_NAME": "",
            "SERVER_NAME": "127.0.0.1",
            "SERVER_PORT": "8081",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "REMOTE_ADDR": self.address,
            "wsgi.input": io.BytesIO(self.body),
            "wsgi.errors": io.StringIO(),
            "wsgi.url_scheme": "http",
            "wsgi.version": (1, 0),
            "wsgi.multithread": True,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
        }

    def _word(self) -> bytes:
        return self._random.choice(VALUES)[: self._random.choice((50, 300))]

    def _quoted(self, value: bytes) -> str:
        return value.decode("latin-1") if self._random.random() < 0.02 else quote_from_bytes(value)

    def _fields(self, form: Mapping[str, Any], get: tuple[str, ...]) -> list[tuple[bytes, bytes]]:
        """A form as pairs, with some of them left out, doubled, renamed or filled in with what is no such value."""
        pairs = [
            (name.encode(), str(item).encode())
            for name, value in form.items()
            for item in (value if isinstance(value, list) else [value])
        ]
        pairs += [(name.encode(), self._random.choice(VALUES)) for name in get if self._random.random() < 0.4]
        for _ in range(self._random.choice((1, 1, 1, 2, 3, 8))):
            kind = self._random.random()
            place = self._random.randrange(len(pairs)) if pairs else None
            if place is None or kind < 0.15:
                pairs.append((self._random.choice(NAMES).encode(), self._random.choice(VALUES)))
            elif kind < 0.30:
                del pairs[place]
            elif kind < 0.40:
                pairs.append((pairs[place][0], self._random.choice(VALUES)))
            else:
                pairs[place] = (pairs[place][0], self._random.choice(VALUES))
        return pairs

    def _multipart(self, fields: list[tuple[bytes, bytes]], files: tuple[str, ...]) -> None:
        boundary = b"BoUnDaRy"
        parts = []
        for name, value in fields:
            # A file where text is expected.
            filename = b'; filename="a.txt"' if self._random.random() < 0.03 else b""
            name = name.replace(b"\0", b"%00")
            parts.append(b'Content-Disposition: form-data; name="' + name + b'"' + filename + b"\r\n\r\n" + value)
        for file in files:
            content = self._random.choice((PIXEL, PIXEL[:20], b"", b"\x89PNG\r\n\x1a\n" + bytes(50), b"%!PS-Adobe-3.0"))
            filename = self._random.choice(
                (b"; filename=a.png", b"", b'; filename="\0"', b"; filename*=x'y", b"; filename=..")
            )
            parts.append(b"Content-Disposition: form-data; name=" + file.encode() + filename + b"\r\n\r\n" + content)
        self.type = "multipart/form-data; boundary=BoUnDaRy"
        self.body = b"".join(b"--" + boundary + b"\r\n" + part + b"\r\n" for part in parts)
        if self._random.random() < 0.95:
            self.body += b"--" + boundary + b"--\r\n"


@pytest.fixture(params=["sqlite", "mysql"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "mysql":
        mariadb: services.MariaDB = request.getfixturevalue("mariadb")
        mariadb.sql("CREATE DATABASE IF NOT EXISTS admin")
        url = mariadb.url("admin")
    else:
        url = f"sqlite://{tmp_path}/ads.db"
    project.use_store(url, inventory(), tmp_path)
    logging.disable(logging.CRITICAL)  # a page of text for each refusal
    yield url
    logging.disable(logging.NOTSET)
    project.close()


class Answer(NamedTuple):
    status: int
    content: bytes
    fault: str
    """The exception behind a 500, and where it was raised."""


def ask(case: Case, browser: Client) -> Answer:
    """As the WSGI server asks the application."""
    statuses: list[str] = []
    faults: list[str] = []

    def note(**_: Any) -> None:
        faults.append(fault_of(sys.exc_info()[1]))

    cookies = "; ".join(f"{name}={cookie.value}" for name, cookie in browser.cookies.items())
    got_request_exception.connect(note)
    try:
        content = APPLICATION(
            case.environ(f"{cookies}; adcore_csrf={TOKEN}"),
            lambda status, headers, exc_info=None: statuses.append(status),
        )
        body = b"".join(content)
        getattr(content, "close", lambda: None)()
    except Exception as error:
        return Answer(500, b"", fault_of(error))
    finally:
        got_request_exception.disconnect(note)
    return Answer(int(statuses[0].split()[0]), body, faults[0] if faults else "")


def fault_of(error: BaseException | None) -> str:
    assert error is not None
    places = [
        f"{frame.filename.rpartition('/')[2]}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)
    ]
    return f"{type(error).__name__} at {' '.join(places[-4:])}: {error}"[:300]


def test_no_request_is_an_error_of_ours(source: str, tmp_path: Path) -> None:
    cases = CASES if source.startswith("sqlite") else CASES_MYSQL
    random_ = random.Random(SEED)
    fallen: dict[str, str] = {}
    statuses: Counter[int] = Counter()
    for number in range(cases):
        if number % 100 == 0:  # saved and deleted meanwhile
            project.use_store(source, inventory(), tmp_path)
            browser = project.client("administrator")
            all_targets = targets(browser)
        case = Case(random_, random_.choice(all_targets))
        answer = ask(case, browser)
        statuses[answer.status] += 1
        what = f"seed {SEED}, case {number}: {answer.status} {case}"
        if answer.status >= 500:
            fallen.setdefault(answer.fault or str(answer.status), what)
        if answer.status >= 400 and case.method != "HEAD" and len(answer.content) < 20:
            fallen.setdefault("nothing to read", what)
        if not Session.objects.filter(session_key=browser.cookies["adcore_session"].value).exists():
            browser = project.client("administrator")
    print(dict(statuses))
    assert not fallen, "\n\n".join(f"{why}\n{what}" for why, what in fallen.items())
