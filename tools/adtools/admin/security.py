"""Middleware: what a request may be, whether its session still stands, and what every answer says to browsers."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from http import HTTPStatus
from ipaddress import IPv6Address, IPv6Network, ip_address

from django.conf import settings
from django.contrib.auth import logout
from django.db import OperationalError
from django.http import HttpRequest, HttpResponse
from django.template.loader import render_to_string

from adtools.admin import people, statements
from adtools.admin.admission import Busy, slow_work
from adtools.admin.deadline import OutOfTime
from adtools.admin.project import CONTENT_SECURITY_POLICY

log = logging.getLogger("adtools.admin")

HEADER = "Content-Security-Policy"
# Before somebody has logged in there are a name, a password and a token.
STRANGERS_BODY_BYTES_MAX = 64 << 10
# Django takes 40 µs for each part of a multipart form, and the smallest has 60 bytes: this many take 0.2 s, 16 MiB in
# 20,000 fields nearly one. The form of a campaign with 50 creatives has some 120 KiB.
LARGE_BODY_BYTES = 256 << 10
# A client that tries again after an overload or a restart of the store.
STORE_RETRY_S = 60
# The address of a visitor that says none: all of these share one.
NO_ADDRESS = "::"

Answer = Callable[[HttpRequest], HttpResponse]


def content_security_policy(get_response: Answer) -> Answer:
    """Middleware: the policy, unless a view has one of its own."""

    def answer(request: HttpRequest) -> HttpResponse:
        response = get_response(request)
        response.headers.setdefault(HEADER, CONTENT_SECURITY_POLICY)
        return response

    return answer


def refused(request: HttpRequest, status: HTTPStatus, reason: str, retry_after_s: int | None = None) -> HttpResponse:
    """A page that says why there is no other."""
    context = {"title": status.phrase, "reason": reason}
    # Where the admin or the store is at fault, the page asks neither who this is.
    page = render_to_string("adtools/refused.html", context, request if status < 500 else None)
    response = HttpResponse(page, status=status)
    if retry_after_s is not None:
        response.headers["Retry-After"] = str(retry_after_s)
    return response


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Django's handler of status 400."""
    reason = "These pages send nothing like this request. Go back to the page before, and load it again."
    return refused(request, HTTPStatus.BAD_REQUEST, str(exception) if isinstance(exception, Unreadable) else reason)


def forbidden(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Django's handler of status 403."""
    reason = "This page is not for your role. An administrator can change that."
    return refused(request, HTTPStatus.FORBIDDEN, reason)


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Django's handler of status 404."""
    return refused(request, HTTPStatus.NOT_FOUND, "There is no such page, or what it shows was deleted.")


def server_error(request: HttpRequest) -> HttpResponse:
    """Django's handler of status 500; it runs while the error is being handled."""
    page = failure(request, sys.exc_info()[1])
    reason = "The admin has failed at this; its log says why."
    return page or refused(request, HTTPStatus.INTERNAL_SERVER_ERROR, reason)


class Unreadable(Exception):
    """A request that no form of ours makes; the text says what is wrong, for a person."""


def failure(request: HttpRequest, error: BaseException | None) -> HttpResponse | None:
    """The page of an error that is the request's or the store's; None for any other."""
    if isinstance(error, Unreadable):
        return bad_request(request, error)
    if isinstance(error, Busy):
        return refused(request, error.status, str(error), error.retry_after_s)
    if isinstance(error, OutOfTime) or (isinstance(error, OperationalError) and statements.is_over_limit(error)):
        log.warning("given up after its time: %s %s", request.method, request.path)
        reason = "This took too long, and was given up. Ask for less, or try again later."
        return refused(request, HTTPStatus.SERVICE_UNAVAILABLE, reason, STORE_RETRY_S)
    if isinstance(error, OperationalError):
        log.error("the store does not answer: %s", error)
        reason = "The store does not answer. Nothing was changed; try again in a minute."
        return refused(request, HTTPStatus.SERVICE_UNAVAILABLE, reason, STORE_RETRY_S)
    return None


class Failures:
    """Middleware: a page instead of an error, where the request or the store is at fault."""

    def __init__(self, get_response: Answer) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        response = self._get_response(request)
        if response.status_code == HTTPStatus.METHOD_NOT_ALLOWED and not response.content:
            page = refused(request, HTTPStatus.METHOD_NOT_ALLOWED, "This page is not asked for in this way.")
            page.headers["Allow"] = response.headers["Allow"]
            return page
        return response

    def process_exception(self, request: HttpRequest, error: Exception) -> HttpResponse | None:
        """Called by Django for what a view raises."""
        return failure(request, error)


def standing_session(get_response: Answer) -> Answer:
    """Middleware: ends the session of a person whose access was taken away or changed after it began."""

    def answer(request: HttpRequest) -> HttpResponse:
        # Without a cookie nothing asks for the person: an image for visitors must not depend on one.
        named = settings.SESSION_COOKIE_NAME in request.COOKIES
        if named and request.user.is_authenticated and not people.session_stands(request):
            logout(request)
        return get_response(request)

    return answer


def bounded_form(get_response: Answer) -> Answer:
    """Middleware: a form of a size that this person may send, without what no field of a form can hold."""

    def answer(request: HttpRequest) -> HttpResponse:
        if request.method != "POST":
            return get_response(request)
        length = int(request.META.get("CONTENT_LENGTH") or 0)
        if length > STRANGERS_BODY_BYTES_MAX and not request.user.is_authenticated:
            return refused(request, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "Log in before you send this much.")
        if length <= LARGE_BODY_BYTES:
            return parsed(request)
        try:
            with slow_work.turn():
                return parsed(request)
        except Busy as error:
            return refused(request, error.status, str(error), error.retry_after_s)

    def parsed(request: HttpRequest) -> HttpResponse:
        for name, values in request.POST.lists():
            if "\0" in name or any("\0" in value for value in values):
                return bad_request(request, Unreadable("A field of this form has a null character in it."))
        return get_response(request)

    return answer


def client_address(request: HttpRequest) -> str:
    """The network that a visitor is limited by, as its first address: IPv4's whole address, IPv6's /64.

    The WSGI server has the address: nginx's word where only nginx can connect, else that of the connection. A home or a
    phone has a /64 to itself, and may take any address in it.
    """
    text = str(request.META.get("REMOTE_ADDR", "")).strip().partition("%")[0]
    if len(text) > 45:  # the longest form of an address
        return NO_ADDRESS
    try:
        address = ip_address(text)
    except ValueError:
        return NO_ADDRESS
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(IPv6Network((address, 64), strict=False).network_address)
    return str(address)


def site_of(network: str) -> str:
    """The IPv6 /48 that a network of `client_address` is in, as its first address; empty for IPv4 and for none."""
    address = ip_address(network)
    if isinstance(address, IPv6Address) and network != NO_ADDRESS:
        return str(IPv6Network((address, 48), strict=False).network_address)
    return ""
