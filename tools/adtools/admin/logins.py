"""How often passwords may be tried: counted before a password is looked at, so that tries at once count each.

There are five limits, each with a pause when it is used up (LIMITS). One network has five tries at a person's password,
and twenty at all passwords together. An IPv6 site (/48), in which one customer can have 65,536 networks, has sixty.
IPv4 has no such level: the addresses beside one belong to others, and one already stands for many people behind a NAT.
A person's password takes twenty tries from all networks together, then that name pauses for an hour: a thousand
networks get no more. So that this keeps no person out, a browser in which the person has logged in before has a limit
of its own, which no stranger can use up (OWASP calls this device cookies). Setting the password by a one-time link
makes a browser known, too.

A hash takes a quarter of a second of CPU, and one is computed at a time (admission.py): the limits bound what can be
guessed, and the turn bounds what all guesses together take.

The counts are rows of axes' table of attempts, whose user agent says which limit a row is of. Names are kept as keyed
hashes: one may be a password that was typed into the wrong field.
"""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from axes.handlers.database import AxesDatabaseHandler
from axes.models import AccessAttempt
from django.conf import settings
from django.contrib.auth.models import User
from django.core import signing
from django.db import OperationalError, transaction
from django.db.models import F
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils import timezone
from django.utils.crypto import get_random_string, salted_hmac

from adtools.admin import statements
from adtools.admin.admission import KNOWN_BROWSERS_PLACES, password_hashes
from adtools.admin.security import NO_ADDRESS, Answer, client_address, site_of

log = logging.getLogger("adtools.admin")

# A browser that is used once a quarter stays known.
BROWSER_SECONDS = 120 * 86_400
_SALT = "adtools.admin.logins"
# Rows that count nothing any more go, this many with each try.
_SWEPT_MAX = 200
# A row that is swept away between two statements, or a deadlock, is rare once and practically never comes twice.
COUNTINGS_MAX = 3


class Limit(NamedTuple):
    tries: int
    pause: timedelta
    """After the last one of them."""


LIMITS = {
    # A person who mistypes has five tries and then a pause; a program has twenty an hour.
    "person and network": Limit(5, timedelta(minutes=15)),
    "network": Limit(20, timedelta(minutes=15)),
    # An IPv6 /48. A provider may divide one among 256 homes (/56), so it has more than one network has.
    "site": Limit(60, timedelta(minutes=15)),
    # At most 480 guesses a day, of passwords of twelve characters.
    "person": Limit(20, timedelta(hours=1)),
    "browser": Limit(5, timedelta(minutes=15)),
}
_PAUSE_MAX = max(limit.pause for limit in LIMITS.values())


class Counter(NamedTuple):
    """What is counted: the columns of one row."""

    limit: str
    username: str
    ip_address: str
    user_agent: str


def password_turn(request: HttpRequest) -> AbstractContextManager[None]:
    """The turn to hash a password; a browser in which a person has logged in before has a place that others lack."""
    known = request.user.is_authenticated or _browser_cookie(request) is not None
    return password_hashes.turn(reserved=0 if known else KNOWN_BROWSERS_PLACES)


def count_try(request: HttpRequest, name: str) -> bool:
    """Count one try of a person's password, if none of its limits is used up. False: look at no password."""
    counters = _counters(request, name)
    now = timezone.now()
    _sweep(now - 2 * _PAUSE_MAX)
    for _ in range(COUNTINGS_MAX):
        try:
            # Outside of the transaction: two that insert the same row would wait for each other.
            AccessAttempt.objects.bulk_create([_row(counter) for counter in counters], ignore_conflicts=True)
            counted = _count(counters, now)
        except OperationalError as error:
            if not statements.is_deadlock(error):
                raise
            counted = None
        if counted is not None:
            break
    if not counted:
        # Where the rows keep going away, a try that is not counted is none.
        request.axes_locked_out = True  # type: ignore[attr-defined]
        return False
    request.adcore_counted = counters  # type: ignore[attr-defined]
    return True


def _count(counters: list[Counter], now: datetime) -> bool | None:
    """Count a try in each row, unless one of them is used up (False). None: another process swept a row away."""
    keys = [_find(counter).values_list("pk", flat=True).first() for counter in counters]
    with transaction.atomic():
        # In one order, so that two never wait for each other.
        locked = AccessAttempt.objects.select_for_update().filter(pk__in=keys).order_by("pk")
        rows = {row.pk: row for row in locked}
        if len(rows) < len(counters):
            return None
        for key, counter in zip(keys, counters, strict=True):
            row, limit = rows[key], LIMITS[counter.limit]
            if row.attempt_time + limit.pause <= now:
                row.failures_since_start = 0
            if row.failures_since_start >= limit.tries:
                return False
        for row in rows.values():
            AccessAttempt.objects.filter(pk=row.pk).update(
                failures_since_start=row.failures_since_start + 1, attempt_time=now
            )
    return True


def note_failure(request: HttpRequest) -> None:
    """The password was a wrong one: the try that uses a limit up says so."""
    for counter in getattr(request, "adcore_counted", ()):
        if (_find(counter).values_list("failures_since_start", flat=True).first() or 0) >= LIMITS[counter.limit].tries:
            log.warning("no more tries of a password for now, by %s: from %s", counter.limit, client_address(request))
            request.axes_locked_out = True  # type: ignore[attr-defined]


def note_success(request: HttpRequest, user: Any) -> None:
    """The password was right: this try counts nowhere, and those before it from here no more."""
    for counter in getattr(request, "adcore_counted", ()):
        if counter.limit in ("person and network", "browser"):
            # Not deleted: another try may be about to count there. The sweep has it later.
            _find(counter).update(failures_since_start=0)
        else:
            _find(counter).filter(failures_since_start__gt=0).update(failures_since_start=F("failures_since_start") - 1)
    remember_browser(request, user)


# Browsers in which somebody has logged in


def remember_browser(request: HttpRequest, user: Any) -> None:
    """Have the answer tell the browser that this person was here."""
    request.adcore_browser = signing.dumps([user.pk, get_random_string(12)], salt=_SALT)  # type: ignore[attr-defined]


def known_browser(get_response: Answer) -> Answer:
    """Middleware: gives the browser its cookie."""

    def answer(request: HttpRequest) -> HttpResponse:
        response = get_response(request)
        value = getattr(request, "adcore_browser", None)
        if value is not None:
            response.set_cookie(
                settings.ADCORE_BROWSER_COOKIE,
                value,
                BROWSER_SECONDS,
                secure=settings.SESSION_COOKIE_SECURE,
                httponly=True,
                samesite="Strict",
            )
        return response

    return answer


def _browser_of(request: HttpRequest, person: int | None) -> str:
    """The name of this browser, if this person has logged in there; else empty."""
    owner, browser = _browser_cookie(request) or (None, "")
    return browser if owner == person and person is not None else ""


def _browser_cookie(request: HttpRequest) -> tuple[object, str] | None:
    """The person who logged in there last, and the browser's name; None unless this admin has written it."""
    cookie = request.COOKIES.get(settings.ADCORE_BROWSER_COOKIE, "")
    try:
        owner, browser = signing.loads(cookie, salt=_SALT, max_age=BROWSER_SECONDS)
    except (signing.BadSignature, ValueError):
        return None
    return owner, str(browser)


# Rows


def _counters(request: HttpRequest, name: str) -> list[Counter]:
    # As the store compares names: some take Anna for anna.
    person = User.objects.filter(username=name).values_list("pk", flat=True).first()
    known = f"person {person}" if person is not None else f"name {name.casefold()}"
    key = salted_hmac(_SALT, known).hexdigest()
    if browser := _browser_of(request, person):
        return [Counter("browser", key, NO_ADDRESS, f"browser {browser}")]
    network = client_address(request)
    site = site_of(network)
    return [
        Counter("person and network", key, network, "person and network"),
        Counter("network", "", network, "network"),
        *([Counter("site", "", site, "site")] if site else []),
        Counter("person", key, NO_ADDRESS, "person"),
    ]


def _row(counter: Counter) -> AccessAttempt:
    return AccessAttempt(
        **{name: value for name, value in counter._asdict().items() if name != "limit"},
        failures_since_start=0,
        http_accept="",
        path_info="",
        get_data="",
        post_data="",
    )


def _find(counter: Counter) -> Any:
    return AccessAttempt.objects.filter(
        username=counter.username, ip_address=counter.ip_address, user_agent=counter.user_agent
    )


def _sweep(before: Any) -> None:
    stale = list(AccessAttempt.objects.filter(attempt_time__lt=before).values_list("pk", flat=True)[:_SWEPT_MAX])
    if stale:
        AccessAttempt.objects.filter(pk__in=stale).delete()


class LoginLimits(AxesDatabaseHandler):  # type: ignore[misc]
    """Axes asks this before and tells it after each login."""

    def is_allowed(self, request: HttpRequest, credentials: dict[str, Any] | None = None) -> bool:
        return count_try(request, str((credentials or {}).get("username") or ""))

    def user_login_failed(self, sender: Any, credentials: Any, request: Any = None, **_: Any) -> None:
        if request is not None:
            note_failure(request)

    def user_logged_in(self, sender: Any, request: Any, user: Any, **_: Any) -> None:
        note_success(request, user)

    def user_logged_out(self, sender: Any, request: Any, user: Any, **_: Any) -> None:
        """A logout changes no count."""


def locked_out(request: HttpRequest, *_: Any) -> HttpResponse:
    """The page of a limit that is used up."""
    page = render(request, "adtools/locked.html", status=429)
    page.headers["Retry-After"] = str(round(min(limit.pause for limit in LIMITS.values()).total_seconds()))
    return page
