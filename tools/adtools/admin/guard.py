"""The WSGI application around Django: refuses what Django would read before any view could judge it.

Every bound here is far beyond what our own pages send. Knows nothing of Django but its application.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from adtools.admin import deadline
from adtools.admin.watchdog import Watchdog

# "Why not showing?" with every field filled; nginx takes 8 KiB of request line.
QUERY_BYTES_MAX = 16 << 10
PATH_BYTES_MAX = 2048
QUERY_PARAMETERS_MAX = 200
METHODS = ("GET", "HEAD", "POST")
# What forms are sent as. Another character set than UTF-8 would be the sender's choice of a codec.
_FORM = re.compile(
    r"(?:application/x-www-form-urlencoded|multipart/form-data; ?boundary=[!-~]{1,70})(?:; ?charset=utf-8)?",
    re.ASCII | re.IGNORECASE,
)

Environ = dict[str, Any]
Application = Callable[[Environ, Callable[..., Any]], Iterable[bytes]]


class Refusal(NamedTuple):
    status: str
    reason: str


def refusal(environ: Environ) -> Refusal | None:
    """Why a request goes no further, if it does not."""
    path, query = environ.get("PATH_INFO", ""), environ.get("QUERY_STRING", "")
    if environ["REQUEST_METHOD"] not in METHODS:
        return Refusal("405 Method Not Allowed", "The admin answers GET, HEAD and POST.")
    if len(path) > PATH_BYTES_MAX or len(query) > QUERY_BYTES_MAX or query.count("&") >= QUERY_PARAMETERS_MAX:
        return Refusal("414 URI Too Long", "The address is longer than any that these pages have.")
    if "\0" in path or "\0" in query or "%00" in query:
        return Refusal("400 Bad Request", "The address has a null character in it.")
    content_type = environ.get("CONTENT_TYPE", "")
    if environ["REQUEST_METHOD"] == "POST" and content_type and _FORM.fullmatch(content_type) is None:
        return Refusal("415 Unsupported Media Type", "The admin takes forms in UTF-8, as browsers send them.")
    return None


def guarded(application: Application, watchdog: Watchdog | None = None) -> Application:
    """`application` behind these bounds, with the clock of each request running."""

    def answer(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        refused = refusal(environ)
        if refused is not None:
            return _page(refused, environ, start_response)
        if environ["REQUEST_METHOD"] != "POST":
            # Django reads a type where there is no form, too.
            environ.pop("CONTENT_TYPE", None)
        with deadline.request(), _watched(watchdog):
            return application(environ, start_response)

    return answer


@contextmanager
def _watched(watchdog: Watchdog | None) -> Iterator[None]:
    if watchdog is None:
        yield
        return
    watchdog.begin()
    try:
        yield
    finally:
        watchdog.end()


def _page(refused: Refusal, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
    body = f"{refused.status[4:]}: {refused.reason}\n".encode()
    headers = [
        ("Content-Type", "text/plain; charset=utf-8"),
        ("Content-Length", str(len(body))),
        ("X-Content-Type-Options", "nosniff"),
        *([("Allow", ", ".join(METHODS))] if refused.status.startswith("405") else []),
    ]
    start_response(refused.status, headers)
    return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]
