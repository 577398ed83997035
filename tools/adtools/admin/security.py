"""What every answer says to browsers, and from where a request came."""

from __future__ import annotations

from collections.abc import Callable

from django.http import HttpRequest, HttpResponse

from adtools.admin.project import CONTENT_SECURITY_POLICY

HEADER = "Content-Security-Policy"


def content_security_policy(
    get_response: Callable[[HttpRequest], HttpResponse],
) -> Callable[[HttpRequest], HttpResponse]:
    """Middleware: the policy, unless a view has one of its own."""

    def answer(request: HttpRequest) -> HttpResponse:
        response = get_response(request)
        response.headers.setdefault(HEADER, CONTENT_SECURITY_POLICY)
        return response

    return answer


def client_address(request: HttpRequest) -> str:
    """The visitor's address, as the WSGI server has it: nginx's word, where only nginx can connect."""
    return str(request.META.get("REMOTE_ADDR", ""))
