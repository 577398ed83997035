"""Admission control: bounds how many of the server's threads slow work and password hashes may take.

Each kind of work runs one request at a time. A few more wait for their turn, in order and for a bounded time, and any
other is refused at once: a request that waits holds a thread, too. The server has a thread for each of these places and
some that neither kind can take (THREADS), so that a page is always served. Knows nothing of Django.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus

from adcore.errors import AdcoreError
from adtools.admin import deadline


class Busy(AdcoreError):
    """The work was not admitted. The text is for a person; nothing was done yet."""

    def __init__(self, reason: str, status: HTTPStatus, retry_after_s: int) -> None:
        super().__init__(reason)
        self.status = status
        self.retry_after_s = retry_after_s


class Admission:
    """One thread at work at a time, and at most `waiting` others in the queue, each for at most `wait_s`."""

    def __init__(self, *, waiting: int, wait_s: float, reason: str, status: HTTPStatus) -> None:
        self.threads = 1 + waiting
        """How many it can take."""
        self.wait_s = wait_s
        self._reason, self._status = reason, status
        self._lock = threading.Lock()
        self._worker: int | None = None
        """The thread at work, which may enter again."""
        self._queue: deque[tuple[int, threading.Event]] = deque()

    @contextmanager
    def turn(self, *, reserved: int = 0) -> Iterator[None]:
        """A turn at the work, leaving the last `reserved` places of the queue to others. Raises Busy, and OutOfTime."""
        if self._worker == threading.get_ident():
            yield
            return
        self._enter(reserved)
        try:
            yield
        finally:
            self._leave()

    def _enter(self, reserved: int) -> None:
        with self._lock:
            if self._worker is None:
                self._worker = threading.get_ident()
                return
            if len(self._queue) >= self.threads - 1 - reserved:
                raise self._busy()
            place = (threading.get_ident(), threading.Event())
            self._queue.append(place)
        try:
            called = place[1].wait(deadline.remaining_s(self.wait_s))
        except BaseException:
            if not self._give_up(place):
                self._leave()
            raise
        if not called and self._give_up(place):
            raise self._busy()

    def _give_up(self, place: tuple[int, threading.Event]) -> bool:
        """Leave the queue. False: the turn has come at the last moment."""
        with self._lock:
            if place in self._queue:
                self._queue.remove(place)
                return True
            return False

    def _leave(self) -> None:
        with self._lock:
            # Handed over, so that no newcomer overtakes the queue.
            if self._queue:
                self._worker, called = self._queue.popleft()
                called.set()
            else:
                self._worker = None

    def _busy(self) -> Busy:
        return Busy(self._reason, self._status, max(1, round(self.wait_s)))


# Explanations, log look-ups, reports, images, and forms of many creatives: up to some ten seconds each. They share the
# interpreter's lock, so that two at once would end no sooner than one after the other.
slow_work = Admission(
    waiting=2,
    wait_s=10.0,
    reason="The admin is at other work that takes long: explanations, reports, images or large campaigns. Nothing was "
    "changed: go back, and try again in a few seconds.",
    status=HTTPStatus.SERVICE_UNAVAILABLE,
)
# A hash takes a quarter of a second of CPU. Strangers get one place in the queue, a browser in which the person has
# logged in before the other one, too: no flood of guesses takes that.
password_hashes = Admission(
    waiting=2,
    wait_s=5.0,
    reason="Other passwords are being checked at the moment. Yours was not looked at, and this was not counted as a "
    "try: go back, and try again in a few seconds.",
    status=HTTPStatus.TOO_MANY_REQUESTS,
)
KNOWN_BROWSERS_PLACES = 1
# For all other pages, which take milliseconds.
PAGE_THREADS = 2
# Each has at most one connection to the store.
THREADS = slow_work.threads + password_hashes.threads + PAGE_THREADS
