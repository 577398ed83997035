"""The time that one request may take, for all that works on it in its thread.

The WSGI guard starts the clock; database statements, image decoding and the reading of logs look at it. Outside a
request (a command, a migration) there is no limit. Knows nothing of Django.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from adcore.errors import AdcoreError

# nginx gives up after 60 s (tools/nginx/adcore-admin.conf), and people long before.
REQUEST_S_MAX = 40.0
# The largest page of a store with 5,000 campaigns asks for nothing that takes a second.
STATEMENT_S_MAX = 10.0


class OutOfTime(AdcoreError):
    """The request has used up its time."""


class _Clock(threading.local):
    """Both on the monotonic clock; None outside a request and before its first statement."""

    request_ends: float | None = None
    statement_ends: float | None = None


_clock = _Clock()
now: Callable[[], float] = time.monotonic


@contextmanager
def request(seconds: float = REQUEST_S_MAX) -> Iterator[None]:
    """The time of one request in this thread."""
    _clock.request_ends, _clock.statement_ends = now() + seconds, None
    try:
        yield
    finally:
        _clock.request_ends = _clock.statement_ends = None


def start_statement() -> None:
    if _clock.request_ends is not None:
        _clock.statement_ends = min(_clock.request_ends, now() + STATEMENT_S_MAX)


def statement_is_over() -> bool:
    """Whether the statement that this thread waits for has had its time."""
    return _clock.statement_ends is not None and now() > _clock.statement_ends


def remaining_s(at_most: float) -> float:
    """Seconds that one part of the request may take. Raises OutOfTime when there are none left."""
    if _clock.request_ends is None:
        return at_most
    left = _clock.request_ends - now()
    if left <= 0:
        raise OutOfTime("This took too long, and was given up")
    return min(at_most, left)
