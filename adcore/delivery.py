"""What one request gets: the hot path, from the headers to the records. No I/O.

`Delivery.fill` reads top to bottom: who asks, what they have seen, which ad, what is kept of it. What repeats from
request to request is kept and looked up:

    request line ── Asked     the parsed query and its slots                     (handlers.py)
    header values ── Profile  device, system, country, languages, bot
    slot, profile ── Case     who is eligible, and what the records of alike visitors share
    ad ── Shown               the answer, compiled around an impression id and a token

A Case is good for one table, one set of campaigns held back, and a stretch of time in which neither the hour changes
nor a campaign of the placement starts or ends; a request that finds it stale makes a new one. Every memory is bounded,
and emptying one changes nothing but the time that the next requests take.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from ipaddress import ip_address
from itertools import count, islice

from adcore.backends import Backends, find_proxy_mark
from adcore.config import Config
from adcore.core.adtable import Ad, AdTable
from adcore.core.agents import parse_user_agent
from adcore.core.calendar import Calendar, Moment
from adcore.core.decision import NOBODY, Eligible, NoAd, draw, find_eligible
from adcore.core.facts import Facts, parse_accept_language, parse_country, truncate_ip
from adcore.core.frequency import History, Seen, campaign_key, capped
from adcore.core.reason import Reason
from adcore.counters import Counters
from adcore.deliverylog.queue import RecordQueue
from adcore.deliverylog.record import Unfilled
from adcore.http1.request import Request
from adcore.query import Query, Visitor
from adcore.render import CompiledDecision
from adcore.state import State
from adcore.tokens import COOKIE_PREFIX, FrequencyCookies, KeyRing, Tokens

# Distinct User-Agent, Accept-Language and X-Country together: some tens of thousands on a large site. Longer ones are
# not worth the memory; browsers' are 250 bytes.
PROFILES_MAX = 32_768
VALUES_BYTES_MAX = 1024
# Addresses come and go; each is some 300 bytes.
NETWORKS_MAX = 65_536
# The longest has 45 characters, and the name of an interface, of 15, may follow.
ADDRESS_BYTES_MAX = 64
# Values of X-Forwarded-For: reading one takes 4 µs.
FORWARDED_MAX = 8192
# Trusted proxies in a row; what is further back is not read. Each address takes 4 µs, and as many bytes.
HOPS_MAX = 16
# Slots times alike visitors, a kilobyte each; a larger one counts for several.
CASES_MAX = 16_384
CASE_BYTES = 1024
# Ads ready to be shown, two kilobytes each; a table may have hundreds of thousands. Markup has up to 256 KiB, more in
# JSON and once more in a frame, in each placement of its size: of all answers this many bytes.
SHOWN_MAX = 16_384
SHOWN_BYTES_MAX = 64 << 20
# Slots of a request that are decided in any case. The later ones are while it has taken no more than this: the bytes of
# its records, each of which names all campaigns that counts hold back, and a 16th of its answer's, with all markup.
SLOTS_SURE = 8
PAGE_BYTES_MAX = 64 * 1024
ANSWER_WEIGHT = 16

_COOKIE_PREFIX = COOKIE_PREFIX.encode()


class Profile:
    """What alike visitors have in common. There is one object for each, so that it can be looked up by."""

    __slots__ = ("bot", "country", "device", "languages", "os")

    def __init__(self, device: str, os: str, country: str, languages: tuple[str, ...], bot: bool) -> None:
        self.device = device
        self.os = os
        self.country = country
        self.languages = languages
        self.bot = bot


class Network:
    """A visitor's address, truncated to /24 or /48: as text ("" when unknown), and packed for records."""

    __slots__ = ("field", "text")

    def __init__(self, text: str, field: bytes) -> None:
        self.text = text
        self.field = field


class Slot:
    """One slot of a query, and the cases of those who asked for it if the query is `kept` for others."""

    __slots__ = ("cases", "kept", "number", "placement")

    def __init__(self, placement: str, kept: bool, number: int) -> None:
        self.placement = placement
        self.kept = kept
        self.number = number
        """128 bits that tell it from others of the same HTTP request; the same in every process."""
        self.cases: dict[Profile, Case] = {}


def make_slots(query: Query, text: bytes, kept: bool) -> tuple[Slot, ...]:
    """The slots of the query that `text`, a query string or a body, asks for."""
    numbers = (blake2b(b"%d %b" % (index, text), digest_size=16).digest() for index in count())
    return tuple(Slot(placement, kept, int.from_bytes(next(numbers))) for placement in query.slots)


class Case:
    """A slot for alike visitors."""

    __slots__ = (
        "answers",
        "eligible",
        "end",
        "facts",
        "held",
        "moment",
        "packed",
        "placement",
        "size",
        "start",
    )

    def __init__(
        self,
        held: Mapping[str, Reason],
        stretch: tuple[float, float],
        placement: str,
        facts: Facts,
        moment: Moment,
        eligible: Eligible,
    ) -> None:
        self.held = held
        self.start, self.end = stretch
        self.placement = placement
        self.facts = facts
        self.moment = moment
        """Any one of the stretch: hour, weekday and day are those of all of it."""
        self.eligible = eligible
        self.packed = b""
        """What the records of these visitors share; made for the first of them."""
        self.size = 1
        """In CASE_BYTES."""
        self.answers = 0
        """Ads shown that the statistics do not have yet."""


class Shown:
    """An ad of the table, ready to be shown."""

    __slots__ = ("answer", "campaign_key", "delivered", "packed", "token_name")

    def __init__(self, ad: Ad, answer: CompiledDecision, counters: Counters, tokens: Tokens, packed: bytes) -> None:
        self.answer = answer
        self.packed = packed
        """What the records of this ad share."""
        self.token_name = tokens.name(ad.placement.id, ad.creative.id)
        self.delivered = counters.of(ad.campaign.id)
        self.campaign_key = campaign_key(ad.campaign.id) if ad.campaign.frequency_cap is not None else None
        """None when nobody needs to remember having seen it."""


Filled = tuple[CompiledDecision, bytes, bytes]
"""A slot that got an ad: its answer, the impression id, the token."""
Page = tuple[list[Filled], list[NoAd], Sequence[str]]
"""What one request got: an ad or a refusal for each slot, and the Set-Cookie values that remember it."""


class Delivery:
    """Fills slots with ads, for one configuration."""

    def __init__(
        self,
        config: Config,
        state: State,
        *,
        keyring: KeyRing,
        calendar: Calendar,
        queue: RecordQueue,
        country_of: Callable[[str], str] | None,
        host: str,
        impression_ids: Iterator[bytes],
        backends: Backends | None = None,
    ) -> None:
        """Without `backends`, those that the configuration names are told by their address alone."""
        self.state = state
        self.tokens = Tokens(keyring, config.token_lifetime)
        self._cookies = FrequencyCookies(keyring, secure=config.cookie_secure)
        self._user_key = keyring.derive(b"adcore user")
        self._public_url = config.public_url
        self._trusted_peers = config.trusted_peers
        self._backends = backends or Backends(config.backend_peers)
        self._nearest_stranger = lru_cache(FORWARDED_MAX)(self._find_nearest_stranger)
        self.calendar = calendar
        self.queue = queue
        self._keep = queue.impressions.append
        self._keep_robots = queue.robot_impressions.append
        self._country_of = country_of
        self.host = host
        self._impression_ids = impression_ids

        self._profiles_by_values: dict[tuple[bytes | None, bytes | None, bytes | None], Profile] = {}
        self._profiles: dict[tuple[str, str, str, tuple[str, ...], bool], Profile] = {}
        self._networks: dict[str | bytes, Network] = {}
        self._nobody = Network("", queue.form.fields({"ip": ""}))
        self._no_user = queue.form.fields({"user": ""})
        self._cases_size = 0
        self._slots_with_cases: list[Slot] = []
        self._left: list[dict[Profile, Case]] = []
        """Cases of the tables before, to be let go one by one: many at once would take milliseconds."""
        self._shown: OrderedDict[Ad, Shown] = OrderedDict()
        self._shown_bytes = 0
        self._table: AdTable | None = None
        """What the cases are of."""
        self._of_table = b""
        """What the records of a table share."""

    def fill(self, table: AdTable, request: Request, query: Query, slots: Sequence[Slot]) -> Page:
        """Decide every slot, and unless the request is a HEAD keep what was decided. Raises BackendError."""
        now = request.time
        state = self.state
        if table is not self._table:
            self._use(table)
        counters = state.counters
        held = counters.held
        visitor = query.visitor
        profile, network = self._who(request) if visitor is None else self._described(request, visitor)
        counts = request.line.method != b"HEAD"
        request_number = _request_number(request) if b"x-request-id" in request.headers else None

        user, user_field = "", self._no_user
        history: History = ()
        cookies: Sequence[str] = ()
        # Global Privacy Control: nothing is read from or kept in this browser.
        keeps_cookies = request.headers.get(b"sec-gpc") != b"1"
        if query.user:
            user = self.user_hash(query.user)
            user_field = self.queue.form.fields({"user": user})
            history = state.memory.history(user)
        elif keeps_cookies:
            header = request.headers.get(b"cookie")
            if header is not None and _COOKIE_PREFIX in header:
                history, cookies = self._cookies.read(header)
        over_cap = capped(history, table.caps, now) if history else NOBODY

        keep = self._keep_robots if profile.bot else self._keep
        taken: set[str] = set()
        seen: list[Seen] = []
        filled: list[Filled] = []
        refusals: list[NoAd] = []
        names_unknown = False
        page_bytes = 0
        for slot in slots:
            if page_bytes > PAGE_BYTES_MAX and len(filled) + len(refusals) >= SLOTS_SURE:
                refusals.append(self._pass_over(slot, counts))
                continue
            if request_number is None:
                impression_id = next(self._impression_ids)
            else:
                impression_id = b"%032x" % (request_number ^ slot.number)
            case = slot.cases.get(profile)
            if case is None or not case.start <= now < case.end:
                case = self._make_case(held, slot, query, profile, now)
            elif case.held is not held:
                # Mostly it is a campaign of another placement, or for other visitors, that is held back or let go.
                if case.eligible.holds_for(held):
                    case.held = held
                else:
                    case = self._make_case(held, slot, query, profile, now)
            eligible = case.eligible
            if over_cap or taken:
                eligible = eligible.without(over_cap, taken)
            drawing = eligible.drawing
            if drawing is None:
                refusal = eligible.refuse()
                refusals.append(refusal)
                if counts:
                    self._count_refusal(refusal)
                    # Names can be made up: the unknown ones of a request share the record of the first.
                    if refusal.reason is not Reason.UNKNOWN_PLACEMENT or not names_unknown:
                        page_bytes += self._keep_refusal(case, refusal, impression_id, now, network, user)
                    names_unknown = names_unknown or refusal.reason is Reason.UNKNOWN_PLACEMENT
                continue
            ad, chance = drawing.pick(draw(impression_id))
            shown = self._shown.get(ad) or self._make_shown(ad)
            token = self.tokens.sign(impression_id, shown.token_name, now)
            filled.append((shown.answer, impression_id, token))
            if len(slots) > 1:
                taken.add(ad.campaign.id)
                page_bytes += shown.answer.json_bytes // ANSWER_WEIGHT
            if not counts:
                continue
            if eligible is case.eligible and slot.kept:
                of_visitor = case.packed or self._pack_case(case)
                if not case.answers:
                    state.statistics.unread.append(case)
                case.answers += 1
            else:
                of_visitor = self._pack_visitor(case.facts, case.moment, eligible.excluded)
                state.statistics.add_filled(slot.placement, 1, eligible.dropped)
            page_bytes += len(of_visitor)
            keep((self._of_table, shown.packed, of_visitor, network.field, user_field, chance, now, impression_id))
            if not profile.bot:
                counters.count_impression(shown.delivered, case.moment.day, now)
                if shown.campaign_key is not None:
                    seen.append(Seen(shown.campaign_key, int(now), 1))
        set_cookies: Sequence[str] = ()
        if seen and user:
            for one in seen:
                state.memory.record(user, one, table.caps, now)
        elif seen and keeps_cookies:
            unique = next(self._impression_ids).decode()
            set_cookies = self._cookies.write(seen, history, cookies, table.caps, now, unique)
        return filled, refusals, set_cookies

    def frame(self, filled: Filled) -> bytes:
        """The document of the one slot that was just filled. Compiled for the first time, it counts as kept."""
        answer, impression_id, token = filled
        before_bytes = answer.kept_bytes
        body = answer.frame(impression_id, token)
        if answer.kept_bytes != before_bytes:
            self._shown_bytes += answer.kept_bytes - before_bytes
            self._forget_shown(SHOWN_MAX)
        return body

    def visit(self, request: Request) -> tuple[Profile, str]:
        """Who follows a link: the profile and the truncated address."""
        profile, network = self._who(request)
        return profile, network.text

    def user_hash(self, user: str) -> str:
        """A key that tells visitors apart and can't be turned back without the secret."""
        return blake2b(user.encode(), digest_size=8, key=self._user_key).hexdigest() if user else ""

    # The visitor

    def _who(self, request: Request) -> tuple[Profile, Network]:
        """The visitor that the headers speak of."""
        header = request.headers.get
        address: str | bytes
        if request.trusted:
            values = (header(b"user-agent"), header(b"accept-language"), header(b"x-country"))
            address = header(b"x-real-ip") or self._client_ip(request)
        else:
            values = (header(b"user-agent"), header(b"accept-language"), None)
            address = request.peer
        profile = self._profiles_by_values.get(values) or self._find_profile(values, address)
        return profile, self._networks.get(address) or self._find_network(address)

    def _find_profile(self, values: tuple[bytes | None, bytes | None, bytes | None], address: str | bytes) -> Profile:
        user_agent, accept_language, country = ((value or b"").decode("latin-1") for value in values)
        if values[2] is None and self._country_of is not None:
            return self._profile(user_agent, accept_language, self._country_of(_text(address)))
        profile = self._profile(user_agent, accept_language, parse_country(country))
        if len(user_agent) + len(accept_language) + len(country) <= VALUES_BYTES_MAX:
            if len(self._profiles_by_values) >= PROFILES_MAX:
                self._profiles_by_values.clear()
            self._profiles_by_values[values] = profile
        return profile

    def _profile(self, user_agent: str, accept_language: str, country: str) -> Profile:
        agent = parse_user_agent(user_agent.strip())
        key = (agent.device, agent.os, country, parse_accept_language(accept_language), agent.bot)
        profile = self._profiles.get(key)
        if profile is None:
            if len(self._profiles) >= PROFILES_MAX:
                # Cases are found by profile, and those of a forgotten one never again.
                self._profiles.clear()
                self._profiles_by_values.clear()
                self._forget_cases()
            profile = self._profiles[key] = Profile(*key)
        return profile

    def _find_network(self, address: str | bytes) -> Network:
        if not address:
            return self._nobody
        text = truncate_ip(_text(address))
        network = Network(text, self.queue.form.fields({"ip": text}))
        if len(address) <= ADDRESS_BYTES_MAX:
            if len(self._networks) >= NETWORKS_MAX:
                self._networks.clear()
            self._networks[address] = network
        return network

    def _described(self, request: Request, visitor: Visitor) -> tuple[Profile, Network]:
        """The visitor that a backend describes, with the request's own headers for what it leaves out. Raises
        BackendError."""
        self._backends.check(request)
        profile, network = self._who(request)
        address: str | bytes = self._client_ip(request)
        if visitor.ip is not None:
            address = visitor.ip
            network = self._find_network(address)

        def header(name: bytes) -> str:
            return request.headers.get(name, b"").decode("latin-1")

        country = visitor.country
        # A proxy in between (a token holds there too) says where the backend is.
        if country is None and request.trusted and b"x-country" in request.headers and not find_proxy_mark(request):
            country = header(b"x-country")
        if country is not None:
            country = parse_country(country)
        else:
            country = self._country_of(_text(address)) if self._country_of is not None else ""
        profile = self._profile(
            header(b"user-agent") if visitor.user_agent is None else visitor.user_agent,
            header(b"accept-language") if visitor.accept_language is None else visitor.accept_language,
            country,
        )
        return profile, network

    def _client_ip(self, request: Request) -> str:
        """The peer, or behind trusted proxies the nearest address that is not one of them."""
        if not request.trusted:
            return request.peer
        real_ip = request.headers.get(b"x-real-ip")
        if real_ip is not None:
            return real_ip.decode("latin-1").strip()
        forwarded_for = request.headers.get(b"x-forwarded-for")
        if forwarded_for is None:
            return request.peer
        if len(forwarded_for) > VALUES_BYTES_MAX:
            return self._find_nearest_stranger(forwarded_for) or request.peer
        return self._nearest_stranger(forwarded_for) or request.peer

    def _find_nearest_stranger(self, forwarded_for: bytes) -> str:
        """The last address of X-Forwarded-For that no trusted proxy has; "" when there is none, or nobody can tell."""
        for hop in reversed(forwarded_for.rsplit(b",", HOPS_MAX)[-HOPS_MAX:]):
            text = _text(hop.strip())
            try:
                address = ip_address(text)
            except ValueError:
                return ""
            if not any(address in network for network in self._trusted_peers):
                return text
        return ""

    # What is kept

    def _use(self, table: AdTable) -> None:
        """Keep the cases of the placements that are the same in both tables."""
        before, self._table = self._table, table
        self._of_table = self.queue.form.fields({"generation": table.generation, "revision": table.revision})
        if before is None:
            return
        kept = []
        for slot in self._slots_with_cases:
            index = before.placements.get(slot.placement)
            if index is not None and table.placements.get(slot.placement) is index:
                kept.append(slot)
            else:
                self._cases_size -= sum(case.size for case in slot.cases.values())
                self._left.append(slot.cases)
                slot.cases = {}
        self._slots_with_cases = kept

    def _make_case(self, held: Mapping[str, Reason], slot: Slot, query: Query, profile: Profile, now: float) -> Case:
        table = self._table
        assert table is not None
        if self._left:
            self._left.pop()
        self.state.statistics.read(2)
        index = table.placements.get(slot.placement)
        facts = Facts(
            profile.device,
            profile.os,
            profile.country,
            profile.languages,
            # Where there is no placement the words decide nothing, and are not kept.
            query.keywords if index is not None else (),
            query.key_values if index is not None else (),
            profile.bot,
        )
        moment = self.calendar.moment(now)
        start, end = self.calendar.stretch_at(now)
        if index is not None:
            window = index.window_at(now)
            start, end = max(start, window.start), min(end, window.end)
        eligible = find_eligible(table, slot.placement, facts, moment, held)
        case = Case(held, (start, end), slot.placement, facts, moment, eligible)
        if slot.kept:
            before = slot.cases.get(profile)
            self._cases_size += case.size - (before.size if before is not None else 0)
            if self._cases_size > CASES_MAX:
                self._forget_cases()
                self._cases_size = case.size
            if not slot.cases:
                self._slots_with_cases.append(slot)
            slot.cases[profile] = case
        return case

    def _forget_cases(self) -> None:
        for slot in self._slots_with_cases:
            slot.cases.clear()
        self._slots_with_cases.clear()
        self._left.clear()
        self._cases_size = 0
        self.state.statistics.read()

    def _make_shown(self, ad: Ad) -> Shown:
        assert self._table is not None
        answer = CompiledDecision(ad.placement, ad.campaign.id, ad.creative, self._public_url)
        packed = self.queue.form.fields(
            {
                "placement": ad.placement.id,
                "campaign": ad.campaign.id,
                "creative": ad.creative.id,
                "host": self.host,
            }
        )
        # Each new one looks after two others, so that those of tables before are gone soon after.
        for old in list(islice(self._shown, 2)):
            if self._table.has(old):
                self._shown.move_to_end(old)
            else:
                self._shown_bytes -= self._shown.pop(old).answer.kept_bytes
        self._shown_bytes += answer.kept_bytes
        self._forget_shown(SHOWN_MAX - 1)
        shown = self._shown[ad] = Shown(ad, answer, self.state.counters, self.tokens, packed)
        return shown

    def _forget_shown(self, count_max: int) -> None:
        """Evict the oldest entries until both bounds hold: their number and their bytes."""
        while self._shown and (len(self._shown) > count_max or self._shown_bytes > SHOWN_BYTES_MAX):
            _, oldest = self._shown.popitem(last=False)
            self._shown_bytes -= oldest.answer.kept_bytes

    def _pack_case(self, case: Case) -> bytes:
        """What the records of a case that is kept share: it names those kept back, mostly none, at times thousands."""
        packed = case.packed = self._pack_visitor(case.facts, case.moment, case.eligible.excluded)
        case.size += len(packed) // CASE_BYTES
        self._cases_size += len(packed) // CASE_BYTES
        return packed

    def _pack_visitor(self, facts: Facts, moment: Moment, excluded: Mapping[str, str]) -> bytes:
        """The part of an impression's record that alike visitors share."""
        return self.queue.form.fields(
            {
                "device": facts.device,
                "os": facts.os,
                "country": facts.country,
                "languages": facts.languages,
                "keywords": facts.keywords,
                "key_values": facts.key_values,
                "ivt": facts.bot,
                "hour": moment.hour,
                "weekday": moment.weekday,
                "excluded": excluded,
            }
        )

    def _pass_over(self, slot: Slot, counts: bool) -> NoAd:
        """The refusal of a slot that is not decided."""
        refusal = NoAd(slot.placement, Reason.PAGE_LIMIT, (), {})
        if counts:
            self._count_refusal(refusal)
        return refusal

    def _keep_refusal(
        self, case: Case, refusal: NoAd, impression_id: bytes, now: float, network: Network, user: str
    ) -> int:
        """The bytes that its record takes."""
        assert self._table is not None
        facts = case.facts
        return self.queue.put(
            Unfilled(
                time=now,
                id=impression_id.decode(),
                placement=refusal.placement,
                reason=refusal.reason,
                reasons=dict(refusal.dropped),
                generation=self._table.generation,
                revision=self._table.revision,
                host=self.host,
                device=facts.device,
                os=facts.os,
                country=facts.country,
                languages=facts.languages,
                keywords=facts.keywords,
                key_values=facts.key_values,
                hour=case.moment.hour,
                weekday=case.moment.weekday,
                ivt=facts.bot,
                user=user,
                ip=network.text,
                excluded=refusal.excluded,
            )
        )

    def _count_refusal(self, refusal: NoAd) -> None:
        assert self._table is not None
        # Callers can make names up, so those of no placement share one row.
        known = refusal.placement if refusal.placement in self._table.placements else ""
        self.state.statistics.add_unfilled(known, refusal)


def _request_number(request: Request) -> int | None:
    """The X-Request-ID that a trusted peer gives, as nginx does: 128 random bits in hexadecimal.

    Impression ids follow from it, so that a request that a proxy sends again gets the same ones, wherever it goes, and
    is counted once by whoever counts ids.
    """
    text = request.headers[b"x-request-id"]
    if not request.trusted or len(text) != 32 or not text.isalnum():
        return None
    try:
        return int(text, 16)
    except ValueError:
        return None


def _text(address: str | bytes) -> str:
    """The address to look for; "" when it is too long to be one, which a header of 32 KiB can bring."""
    if len(address) > ADDRESS_BYTES_MAX:
        return ""
    return address if isinstance(address, str) else address.decode("latin-1").strip()
