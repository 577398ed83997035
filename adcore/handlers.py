"""A request in; response bytes and records out. No I/O: records go to a queue, everything else is in memory.

`Handlers` is the handler of the public listener: one method per path, found in one table of routes. What a decision
costs is spent in delivery.py; here its answer is put into words.
"""

from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any

import msgspec

from adcore.backends import BackendError
from adcore.config import Config
from adcore.core.adtable import AdTable
from adcore.delivery import Delivery, Profile, Slot, make_slots
from adcore.deliverylog.record import Click, View
from adcore.demo import Demo
from adcore.fetchmetadata import CORS, is_navigation, is_unseen
from adcore.http1.request import Request, RequestLine
from adcore.http1.response import Response, respond
from adcore.query import Query, QueryError, parse_body, parse_query
from adcore.render import empty_frame, landing_location, tag_js
from adcore.tokens import Token, TokenError

NO_STORE = ("Cache-Control", "no-store")
NOSNIFF = ("X-Content-Type-Options", "nosniff")
UNSEEN = (
    "no page can show this answer: fetch it from a page that is not in a sandbox, not as an image, script or prefetch"
)
# Distinct request lines kept with what they ask for; far more than a site has pages and slots.
ASKED_MAX = 4096
# Lengths of answers whose heads are kept: every creative has its own.
HEADS_MAX = 4096


class Asked:
    """What a request line asks for: the route's method and statistics, and of a decision the query and its slots."""

    __slots__ = ("answer", "error", "query", "slots", "statuses")

    def __init__(self, answer: "Answer", statuses: list[int]) -> None:
        self.answer = answer
        self.statuses = statuses
        self.query: Query | None = None
        self.slots: tuple[Slot, ...] = ()
        self.error = ""
        """What is wrong with the query."""


Answer = Callable[[Request, Asked], Response]


class Handlers:
    """The public listener's handler. Synchronous: it never waits for anything."""

    def __init__(self, config: Config, delivery: Delivery) -> None:
        self.delivery = delivery
        self.state = delivery.state
        self.statistics = delivery.state.statistics
        self.calendar = delivery.calendar
        self.queue = delivery.queue
        self.host = delivery.host
        self.cors_origins = frozenset(config.cors_origins)
        self._tag = tag_js()
        self._tag_version = blake2b(self._tag, digest_size=6).hexdigest()
        self._heads: dict[int, bytes] = {}
        self._asked: dict[RequestLine, Asked] = {}
        self.routes: dict[bytes, tuple[str, frozenset[bytes], Answer]] = {
            b"/v1/decision": ("decision", frozenset({b"GET", b"HEAD", b"POST"}), self.decision),
            b"/v1/frame": ("frame", frozenset({b"GET", b"HEAD"}), self.frame),
            b"/v1/tag.js": ("tag", frozenset({b"GET", b"HEAD"}), self.tag),
            b"/v1/click": ("click", frozenset({b"GET", b"HEAD"}), self.click),
            b"/v1/view": ("view", frozenset({b"GET", b"HEAD", b"POST"}), self.view),
            b"/ping": ("ping", frozenset({b"GET", b"HEAD"}), self.ping),
        }
        if config.demo:
            demo = Demo(delivery)
            self.routes[b"/"] = ("demo", frozenset({b"GET", b"HEAD"}), lambda request, asked: demo.page(request))
            self.routes[b"/demo/numbers"] = ("demo", frozenset({b"GET"}), lambda request, asked: demo.numbers(request))

    def __call__(self, request: Request) -> Response:
        asked = self._asked.get(request.line) or self._ask(request)
        response = asked.answer(request, asked)
        asked.statuses[response.status] += 1
        return response

    def _ask(self, request: Request) -> Asked:
        """Find out what the request line asks for, and keep it with lines that others will send too."""
        line = request.line
        name, methods, answer = self.routes.get(line.path) or ("other", frozenset({line.method}), self.nothing_here)
        if line.method not in methods:
            answer = self.not_allowed
        asked = Asked(answer, self.statistics.requests_of(name))
        # Each link is followed once or twice.
        kept = line.shared and name not in ("click", "view")
        if name in ("decision", "frame") and line.method != b"POST":
            try:
                asked.query = parse_query(line.query)
                asked.slots = make_slots(asked.query, line.query, kept)
            except QueryError as error:
                asked.error = str(error)
        if kept:
            if len(self._asked) >= ASKED_MAX:
                self._asked.clear()
            self._asked[line] = asked
        return asked

    # Routes

    def nothing_here(self, request: Request, asked: Asked) -> Response:
        return _error(404, "there is nothing at this path")

    def not_allowed(self, request: Request, asked: Asked) -> Response:
        _, methods, _ = self.routes[request.line.path]
        allow = ", ".join(sorted(method.decode() for method in methods))
        return _error(405, f"this path takes {allow}", ("Allow", allow))

    def ping(self, request: Request, asked: Asked) -> Response:
        if self.state.table is None:
            return respond(503, b"no ad table yet\n", content_type="text/plain", headers=(NO_STORE,))
        return respond(200, b"ok\n", content_type="text/plain", headers=(NO_STORE,))

    def tag(self, request: Request, asked: Asked) -> Response:
        """`?v=VERSION` (the ETag) may be kept for ever, since another version has another one."""
        etag = f'"{self._tag_version}"'
        is_pinned = request.line.query == f"v={self._tag_version}".encode()
        headers = (
            ("Cache-Control", "public, max-age=31536000, immutable" if is_pinned else "public, max-age=3600"),
            ("ETag", etag),
            NOSNIFF,
        )
        if etag.encode() in request.headers.get(b"if-none-match", b""):
            return respond(304, headers=headers)
        return respond(200, self._tag, content_type="text/javascript; charset=utf-8", headers=headers)

    def decision(self, request: Request, asked: Asked) -> Response:
        table = self.state.table
        if table is None:
            return _error(503, "no ad table yet", ("Retry-After", "1"))
        headers = request.headers
        # Nothing more is done for a page of this host, and for a backend. (Two looks: 1 % of a request.)
        if (b"origin" in headers or headers.get(b"sec-fetch-mode", CORS) != CORS) and is_unseen(headers, framed=False):
            return _error(403, UNSEEN)
        query, slots = asked.query, asked.slots
        try:
            if query is None:
                query, slots = self._query(request, asked)
            filled, refusals, cookies = self.delivery.fill(table, request, query, slots)
        except QueryError as error:
            return _error(400, str(error))
        except BackendError as error:
            return _error(403, str(error))
        if not filled:
            fields = [NO_STORE, NOSNIFF, *self._cors(request), *_set(cookies)]
            return respond(204, headers=[*fields, ("X-No-Ad", refusals[0].reason)])
        if query.single:
            answer, impression_id, token = filled[0]
            body = answer.json(impression_id, token)
        else:
            bodies = [answer.json(impression_id, token) for answer, impression_id, token in filled]
            body = b'{"decisions":[' + b",".join(bodies) + b"]}"
        if not cookies and not self.cors_origins:
            return Response(200, self._heads.get(len(body)) or self._make_head(body), body)
        fields = [NO_STORE, NOSNIFF, *self._cors(request), *_set(cookies)]
        return respond(200, body, content_type="application/json", headers=fields)

    def frame(self, request: Request, asked: Asked) -> Response:
        table = self.state.table
        if table is None:
            return _error(503, "no ad table yet", ("Retry-After", "1"))
        if is_unseen(request.headers, framed=True):
            return _error(403, UNSEEN)
        try:
            query, slots = self._query(request, asked)
            if not query.single:
                raise QueryError("a frame shows one placement; ask /v1/decision for several")
            filled, refusals, cookies = self.delivery.fill(table, request, query, slots)
        except QueryError as error:
            return _error(400, str(error))
        headers = [NO_STORE, NOSNIFF, *_set(cookies)]
        if filled:
            body = self.delivery.frame(filled[0])
            headers += filled[0][0].frame_headers
        else:
            body, frame_headers = empty_frame()
            headers += [("X-No-Ad", refusals[0].reason), *frame_headers]
        return respond(200, body, content_type="text/html; charset=utf-8", headers=headers)

    def click(self, request: Request, asked: Asked) -> Response:
        token = self._verify(request)
        if isinstance(token, Response):
            return token
        table = self.state.table
        known = self.state.creative(token.creative) if table is not None else None
        if table is None or known is None:
            return _error(404, "this ad is no longer known here")
        campaign, creative = known
        if creative.landing_url is None:
            return _error(404, "this ad leads nowhere")
        now = request.time
        if request.line.method != b"HEAD" and is_navigation(request.headers):
            if self.state.clicks.first(token.impression_id, now):
                profile, ip = self.delivery.visit(request)
                self.queue.put(Click(**self._event(table, token, campaign.id, profile, ip, now)))
                if not profile.bot:
                    self.state.counters.count_click(self.state.counters.of(campaign.id), self.calendar.moment(now))
            else:
                self.statistics.clicks_repeated += 1
        location = landing_location(creative, token.impression_id)
        return respond(302, headers=(("Location", location), NO_STORE, NOSNIFF, ("Referrer-Policy", "no-referrer")))

    def view(self, request: Request, asked: Asked) -> Response:
        token = self._verify(request)
        if isinstance(token, Response):
            return token
        table = self.state.table
        known = self.state.creative(token.creative) if table is not None else None
        if table is None or known is None:
            return _error(404, "this ad is no longer known here")
        now = request.time
        if request.line.method != b"HEAD":
            if self.state.views.first(token.impression_id, now):
                profile, ip = self.delivery.visit(request)
                self.queue.put(View(**self._event(table, token, known[0].id, profile, ip, now)))
            else:
                self.statistics.views_repeated += 1
        return respond(204, headers=(NO_STORE, NOSNIFF, *self._cors(request)))

    # What they share

    def _query(self, request: Request, asked: Asked) -> tuple[Query, tuple[Slot, ...]]:
        """The query of the request line or of the body. Raises QueryError."""
        if asked.query is not None:
            return asked.query, asked.slots
        if asked.error:
            raise QueryError(asked.error)
        query = parse_body(request.body)
        return query, make_slots(query, request.body, kept=False)

    def _make_head(self, body: bytes) -> bytes:
        head = respond(200, body, content_type="application/json", headers=(NO_STORE, NOSNIFF)).head
        if len(self._heads) >= HEADS_MAX:
            self._heads.clear()
        self._heads[len(body)] = head
        return head

    def _verify(self, request: Request) -> Token | Response:
        # Sites and mail programs append parameters of their own to links; ours comes first.
        name, _, text = request.line.query.partition(b"&")[0].partition(b"=")
        try:
            if name != b"t":
                raise TokenError("missing")
            return self.delivery.tokens.verify(text.decode("latin-1"), request.time)
        except TokenError as error:
            self.statistics.tokens_refused[error.reason] += 1
            return _error(400, f"the token t is not good: {error.reason}")

    def _event(
        self, table: AdTable, token: Token, campaign: str, profile: Profile, ip: str, now: float
    ) -> dict[str, Any]:
        return {
            "time": now,
            "id": token.impression_id,
            "placement": token.placement,
            "campaign": campaign,
            "creative": token.creative,
            "revision": table.revision,
            "host": self.host,
            "device": profile.device,
            "os": profile.os,
            "country": profile.country,
            "ivt": profile.bot,
            "ip": ip,
        }

    def _cors(self, request: Request) -> tuple[tuple[str, str], ...]:
        """Lets pages of the configured origins read the answer; others of the same origin need no leave."""
        origin = request.headers.get(b"origin", b"").decode("latin-1")
        if origin in self.cors_origins:
            return (
                ("Access-Control-Allow-Origin", origin),
                ("Access-Control-Allow-Credentials", "true"),
                ("Access-Control-Expose-Headers", "X-No-Ad"),
                ("Vary", "Origin"),
            )
        return ()


def _set(cookies: Sequence[str]) -> list[tuple[str, str]]:
    return [("Set-Cookie", cookie) for cookie in cookies]


def _error(status: int, message: str, *headers: tuple[str, str]) -> Response:
    body = msgspec.json.encode({"error": message})
    return respond(status, body, content_type="application/json", headers=(NO_STORE, NOSNIFF, *headers))
