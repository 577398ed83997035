"""A request in; response bytes and records out. No I/O: records go to a queue, everything else is in memory.

`Handlers` is the handler of the public listener: one method per path, found in one table of routes. What outlives a
reload of the configuration (counts, memories, statistics) is in `State`. A decision reads top to bottom in
`Handlers._fill`: who asks (facts), what they have seen (frequency), which ad (core), what is kept of it (record,
counters, cookie).
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from ipaddress import ip_address
from typing import Any, Literal, NamedTuple

import msgspec

from adcore.config import Config
from adcore.core.adtable import Ad, AdTable
from adcore.core.calendar import Calendar, Moment
from adcore.core.decision import NOBODY, NoAd, decide
from adcore.core.facts import Facts, parse_accept_language, parse_country, parse_user_agent, truncate_ip
from adcore.core.frequency import FrequencyMemory, History, Seen, campaign_key, capped
from adcore.core.inventory import Campaign, Creative
from adcore.core.once import OncePerWindow
from adcore.core.reason import Reason
from adcore.core.targeting import Dropped
from adcore.counters import Counters
from adcore.deliverylog.queue import RecordQueue
from adcore.deliverylog.record import Click, Impression, Unfilled, View
from adcore.http1.request import Request
from adcore.http1.response import Response, respond
from adcore.query import Query, QueryError, Visitor, parse_body, parse_query
from adcore.render import CompiledDecision, compile_decision, empty_frame, landing_location, tag_js
from adcore.tokens import FrequencyCookies, KeyRing, Token, TokenError, Tokens

NO_STORE = ("Cache-Control", "no-store")
NOSNIFF = ("X-Content-Type-Options", "nosniff")
ME = Visitor()
# Creatives that left the table while this process ran, kept for the clicks on pages that still show them.
DEPARTED_MAX = 10_000


class Statistics:
    """What the handlers have done since the process started."""

    __slots__ = (
        "clicks_repeated",
        "dropped",
        "filled",
        "requests",
        "tokens_refused",
        "unfilled",
        "views_repeated",
    )

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()
        """By route and status."""
        self.filled: Counter[str] = Counter()
        """Decisions by placement."""
        self.unfilled: dict[str, Counter[Reason]] = {}
        """Requests that got nothing, by placement and main reason."""
        self.dropped: dict[str, Counter[Reason]] = {}
        """Candidates that were not shown, by placement and first reason."""
        self.tokens_refused: Counter[str] = Counter()
        self.clicks_repeated = 0
        self.views_repeated = 0

    def to_status(self) -> dict[str, object]:
        requests: dict[str, dict[str, int]] = {}
        for (route, status), count in sorted(self.requests.items()):
            requests.setdefault(route, {})[str(status)] = count
        return {
            "requests": requests,
            "filled": dict(self.filled),
            "unfilled": {placement: dict(counts) for placement, counts in self.unfilled.items()},
            "dropped": {placement: dict(counts) for placement, counts in self.dropped.items()},
            "tokens_refused": dict(self.tokens_refused),
            "clicks_repeated": self.clicks_repeated,
            "views_repeated": self.views_repeated,
        }


class State:
    """What a process knows besides its configuration, and keeps when that is reloaded."""

    __slots__ = ("_departed", "clicks", "counters", "memory", "statistics", "table", "views")

    def __init__(self, counters: Counters, click_window_s: float) -> None:
        self.table: AdTable | None = None
        self.counters = counters
        self.memory = FrequencyMemory()
        self.clicks = OncePerWindow(click_window_s)
        self.views = OncePerWindow(click_window_s)
        self.statistics = Statistics()
        self._departed: dict[str, tuple[Campaign, Creative]] = {}

    def use(self, table: AdTable, moment: Moment) -> None:
        """Decide on this table from now on."""
        if self.table is not None:
            for creative_id in self.table.creatives.keys() - table.creatives.keys():
                self._departed[creative_id] = self.table.creatives[creative_id]
            for creative_id in list(self._departed)[:-DEPARTED_MAX]:
                del self._departed[creative_id]
        self.counters.use(table, moment)
        self.table = table

    def creative(self, creative_id: str) -> tuple[Campaign, Creative] | None:
        """The campaign and creative of a token; also of an ad that left the table after it was shown."""
        assert self.table is not None
        return self.table.creatives.get(creative_id) or self._departed.get(creative_id)


class Filled(NamedTuple):
    ad: Ad
    impression_id: str


class Who(NamedTuple):
    """The visitor: what the request, or the caller in its place, says about them."""

    device: str
    os: str
    country: str
    languages: tuple[str, ...]
    bot: bool
    ip: str
    """Truncated to /24 or /48, "" when unknown."""


class Page(NamedTuple):
    """What one request got: an ad or a refusal for each slot, and the cookies that remember it."""

    filled: list[Filled]
    refusals: list[NoAd]
    cookies: Sequence[str]
    now: float


class Handlers:
    """The public listener's handler. Synchronous: it never waits for anything."""

    def __init__(
        self,
        config: Config,
        state: State,
        *,
        keyring: KeyRing,
        calendar: Calendar,
        queue: RecordQueue,
        country_of: Callable[[str], str],
        host: str,
        impression_ids: Iterator[str],
        clock: Callable[[], float],
    ) -> None:
        self.state = state
        self.statistics = state.statistics
        self.calendar = calendar
        self.queue = queue
        self.country_of = country_of
        self.host = host
        self.impression_ids = impression_ids
        self.clock = clock
        self.public_url = config.public_url
        self.trusted_peers = config.trusted_peers
        self.cors_origins = frozenset(config.cors_origins)
        self.tokens = Tokens(keyring, config.token_lifetime)
        self.cookies = FrequencyCookies(keyring, secure=config.cookie_secure)
        self._user_key = keyring.derive(b"adcore user")
        self._tag = tag_js()
        self._compiled: dict[Ad, CompiledDecision] = {}
        self._compiled_for: AdTable | None = None
        self.routes: dict[bytes, tuple[str, frozenset[bytes], Callable[[Request], Response]]] = {
            b"/v1/decision": ("decision", frozenset({b"GET", b"HEAD", b"POST"}), self.decision),
            b"/v1/frame": ("frame", frozenset({b"GET", b"HEAD"}), self.frame),
            b"/v1/tag.js": ("tag", frozenset({b"GET", b"HEAD"}), self.tag),
            b"/v1/click": ("click", frozenset({b"GET", b"HEAD"}), self.click),
            b"/v1/view": ("view", frozenset({b"GET", b"HEAD", b"POST"}), self.view),
            b"/ping": ("ping", frozenset({b"GET", b"HEAD"}), self.ping),
        }

    def __call__(self, request: Request) -> Response:
        route = self.routes.get(request.path)
        if route is None:
            name, response = "other", _error(404, "there is nothing at this path")
        else:
            name, methods, answer = route
            if request.method in methods:
                response = answer(request)
            else:
                allow = ", ".join(sorted(method.decode() for method in methods))
                response = _error(405, f"this path takes {allow}", ("Allow", allow))
        self.statistics.requests[name, response.status] += 1
        return response

    # Routes

    def ping(self, request: Request) -> Response:
        if self.state.table is None:
            return respond(503, b"no ad table yet\n", content_type="text/plain", headers=(NO_STORE,))
        return respond(200, b"ok\n", content_type="text/plain", headers=(NO_STORE,))

    def tag(self, request: Request) -> Response:
        return respond(
            200,
            self._tag,
            content_type="text/javascript; charset=utf-8",
            headers=(("Cache-Control", "public, max-age=3600"), NOSNIFF),
        )

    def decision(self, request: Request) -> Response:
        table = self.state.table
        if table is None:
            return _error(503, "no ad table yet", ("Retry-After", "1"))
        try:
            query = parse_body(request.body) if request.method == b"POST" else parse_query(request.query)
            page = self._fill(table, request, query)
        except QueryError as error:
            return _error(400, str(error))
        headers = [
            NO_STORE,
            NOSNIFF,
            *self._cors(request),
            *(("Set-Cookie", cookie) for cookie in page.cookies),
        ]
        if not page.filled:
            return respond(204, headers=[*headers, ("X-No-Ad", page.refusals[0].reason)])
        bodies = [self._compile(table, ad).json(*self._signed(ad, id_, page.now)) for ad, id_ in page.filled]
        body = bodies[0] if query.single else b'{"decisions":[' + b",".join(bodies) + b"]}"
        return respond(200, body, content_type="application/json", headers=headers)

    def frame(self, request: Request) -> Response:
        table = self.state.table
        if table is None:
            return _error(503, "no ad table yet", ("Retry-After", "1"))
        try:
            query = parse_query(request.query)
            if not query.single:
                raise QueryError("a frame shows one placement; ask /v1/decision for several")
            page = self._fill(table, request, query)
        except QueryError as error:
            return _error(400, str(error))
        headers = [NO_STORE, NOSNIFF, *(("Set-Cookie", cookie) for cookie in page.cookies)]
        if page.filled:
            ad, impression_id = page.filled[0]
            compiled = self._compile(table, ad)
            body = compiled.frame(*self._signed(ad, impression_id, page.now))
            headers += compiled.frame_headers
        else:
            body, frame_headers = empty_frame()
            headers += [("X-No-Ad", page.refusals[0].reason), *frame_headers]
        return respond(200, body, content_type="text/html; charset=utf-8", headers=headers)

    def click(self, request: Request) -> Response:
        token = self._verify("click", request)
        if isinstance(token, Response):
            return token
        table = self.state.table
        known = self.state.creative(token.creative) if table is not None else None
        if table is None or known is None:
            return _error(404, "this ad is no longer known here")
        campaign, creative = known
        if creative.landing_url is None:
            return _error(404, "this ad leads nowhere")
        now = self.clock()
        if request.method != b"HEAD":
            if self.state.clicks.first(token.impression_id, now):
                who = self._visit(request, ME)
                self.queue.put(Click(**self._event(table, token, campaign.id, who, now)))
                if not who.bot:
                    self.state.counters.count_click(campaign, self.calendar.moment(now))
            else:
                self.statistics.clicks_repeated += 1
        location = landing_location(creative, token.impression_id)
        return respond(302, headers=(("Location", location), NO_STORE, NOSNIFF, ("Referrer-Policy", "no-referrer")))

    def view(self, request: Request) -> Response:
        token = self._verify("view", request)
        if isinstance(token, Response):
            return token
        table = self.state.table
        known = self.state.creative(token.creative) if table is not None else None
        if table is None or known is None:
            return _error(404, "this ad is no longer known here")
        now = self.clock()
        if request.method != b"HEAD":
            if self.state.views.first(token.impression_id, now):
                self.queue.put(View(**self._event(table, token, known[0].id, self._visit(request, ME), now)))
            else:
                self.statistics.views_repeated += 1
        return respond(204, headers=(NO_STORE, NOSNIFF, *self._cors(request)))

    # Deciding

    def _fill(self, table: AdTable, request: Request, query: Query) -> Page:
        """Decide every slot, and unless the request is a HEAD keep what was decided."""
        now = self.clock()
        moment = self.calendar.moment(now)
        who = self._visit(request, query.visitor or ME)
        facts = Facts(who.device, who.os, who.country, who.languages, query.keywords, query.key_values, who.bot)
        counts = request.method != b"HEAD"
        user = self.user_hash(query.user)
        history, cookie_names = self._history(request, user)
        seen: list[Seen] = []
        taken: set[str] = set()
        filled: list[Filled] = []
        refusals: list[NoAd] = []
        for placement in query.slots:
            impression_id = next(self.impression_ids)
            answer = decide(
                table,
                placement,
                facts,
                moment,
                impression_id,
                held=self.state.counters.held,
                capped=capped(history, table.caps, now) if history else NOBODY,
                taken=taken,
            )
            if isinstance(answer, NoAd):
                refusals.append(answer)
                if counts:
                    self._keep_refusal(table, answer, impression_id, facts, moment, who, user)
                continue
            ad = answer.ad
            campaign = ad.campaign
            filled.append(Filled(ad, impression_id))
            taken.add(campaign.id)
            if not counts:
                continue
            self.queue.put(
                Impression(
                    time=now,
                    id=impression_id,
                    placement=placement,
                    campaign=campaign.id,
                    creative=ad.creative.id,
                    revision=table.revision,
                    chance=answer.chance,
                    host=self.host,
                    device=facts.device,
                    os=facts.os,
                    country=facts.country,
                    languages=facts.languages,
                    keywords=facts.keywords,
                    key_values=facts.key_values,
                    hour=moment.hour,
                    weekday=moment.weekday,
                    ivt=facts.bot,
                    user=user,
                    ip=who.ip,
                    excluded=answer.excluded,
                )
            )
            self.statistics.filled[placement] += 1
            _add(self.statistics.dropped, placement, answer.dropped)
            if not facts.bot:
                self.state.counters.count_impression(campaign, moment)
                if campaign.frequency_cap is not None:
                    seen.append(Seen(campaign_key(campaign.id), int(now), 1))
        cookies: Sequence[str] = ()
        if seen and user:
            for one in seen:
                self.state.memory.record(user, one, table.caps, now)
        elif seen and not _private(request):
            cookies = self.cookies.write(seen, history, cookie_names, table.caps, now, next(self.impression_ids))
        return Page(filled, refusals, cookies, now)

    def _keep_refusal(
        self,
        table: AdTable,
        answer: NoAd,
        impression_id: str,
        facts: Facts,
        moment: Moment,
        who: Who,
        user: str,
    ) -> None:
        self.queue.put(
            Unfilled(
                time=moment.time,
                id=impression_id,
                placement=answer.placement,
                reason=answer.reason,
                reasons=dict(answer.dropped),
                revision=table.revision,
                host=self.host,
                device=facts.device,
                os=facts.os,
                country=facts.country,
                languages=facts.languages,
                keywords=facts.keywords,
                key_values=facts.key_values,
                hour=moment.hour,
                weekday=moment.weekday,
                ivt=facts.bot,
                user=user,
                ip=who.ip,
                excluded=answer.excluded,
            )
        )
        # Callers can make names up, so those of no placement share one row.
        placement = answer.placement if answer.placement in table.placements else ""
        self.statistics.unfilled.setdefault(placement, Counter())[answer.reason] += 1
        _add(self.statistics.dropped, placement, answer.dropped)

    # The visitor

    def _visit(self, request: Request, visitor: Visitor) -> Who:
        headers = request.headers
        if (visitor.ip is not None or visitor.country is not None) and not request.trusted:
            raise QueryError("visitor.ip and visitor.country are taken from trusted peers only")
        agent = parse_user_agent(
            headers.get(b"user-agent", b"").decode("latin-1") if visitor.user_agent is None else visitor.user_agent
        )
        languages = parse_accept_language(
            headers.get(b"accept-language", b"").decode("latin-1")
            if visitor.accept_language is None
            else visitor.accept_language
        )
        ip = self._client_ip(request) if visitor.ip is None else visitor.ip
        if visitor.country is not None:
            country = parse_country(visitor.country)
        elif request.trusted and b"x-country" in headers:
            country = parse_country(headers[b"x-country"].decode("latin-1"))
        else:
            country = self.country_of(ip)
        return Who(agent.device, agent.os, country, languages, agent.bot, truncate_ip(ip))

    def _client_ip(self, request: Request) -> str:
        """The peer, or behind trusted proxies the nearest address that is not one of them."""
        if not request.trusted:
            return request.peer
        headers = request.headers
        real_ip = headers.get(b"x-real-ip")
        if real_ip is not None:
            return real_ip.decode("latin-1").strip()
        for hop in reversed(headers.get(b"x-forwarded-for", b"").decode("latin-1").split(",")):
            text = hop.strip()
            try:
                address = ip_address(text)
            except ValueError:
                break
            if not any(address in network for network in self.trusted_peers):
                return text
        return request.peer

    def user_hash(self, user: str) -> str:
        """A key that tells visitors apart and can't be turned back without the secret."""
        return blake2b(user.encode(), digest_size=8, key=self._user_key).hexdigest() if user else ""

    def _history(self, request: Request, user: str) -> tuple[History, Sequence[str]]:
        """What this visitor has seen of capped campaigns, and the names of the cookies that said so."""
        if user:
            return self.state.memory.history(user), ()
        cookie = request.headers.get(b"cookie")
        if cookie is None or _private(request):
            return (), ()
        return self.cookies.read(cookie)

    # Answers

    def _compile(self, table: AdTable, ad: Ad) -> CompiledDecision:
        if table is not self._compiled_for:
            self._compiled = {}
            self._compiled_for = table
        compiled = self._compiled.get(ad)
        if compiled is None:
            compiled = compile_decision(ad.placement, ad.campaign.id, ad.creative, self.public_url)
            self._compiled[ad] = compiled
        return compiled

    def _signed(self, ad: Ad, impression_id: str, now: float) -> tuple[str, str, str]:
        """The impression id, the click token and the view token."""
        of = (impression_id, ad.placement.id, ad.creative.id, now)
        return impression_id, self.tokens.sign("click", *of), self.tokens.sign("view", *of)

    def _verify(self, purpose: Literal["click", "view"], request: Request) -> Token | Response:
        # Sites and mail programs append parameters of their own to links; ours comes first.
        name, _, text = request.query.partition(b"&")[0].partition(b"=")
        try:
            if name != b"t":
                raise TokenError("missing")
            return self.tokens.verify(purpose, text.decode("latin-1"), self.clock())
        except TokenError as error:
            self.statistics.tokens_refused[error.reason] += 1
            return _error(400, f"the token t is not good: {error.reason}")

    def _event(self, table: AdTable, token: Token, campaign: str, who: Who, now: float) -> dict[str, Any]:
        return {
            "time": now,
            "id": token.impression_id,
            "placement": token.placement,
            "campaign": campaign,
            "creative": token.creative,
            "revision": table.revision,
            "host": self.host,
            "device": who.device,
            "os": who.os,
            "country": who.country,
            "ivt": who.bot,
            "ip": who.ip,
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


def _private(request: Request) -> bool:
    """Global Privacy Control: nothing is read from or kept in this browser."""
    return request.headers.get(b"sec-gpc") == b"1"


def _error(status: int, message: str, *headers: tuple[str, str]) -> Response:
    body = msgspec.json.encode({"error": message})
    return respond(status, body, content_type="application/json", headers=(NO_STORE, NOSNIFF, *headers))


def _add(totals: dict[str, Counter[Reason]], placement: str, dropped: Dropped) -> None:
    if dropped:
        counter = totals.get(placement)
        if counter is None:
            counter = totals[placement] = Counter()
        for reason, count in dropped:
            counter[reason] += count
