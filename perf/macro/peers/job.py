"""The job of an ad server, for the three Python peers: the same as adcore's, without what adcore adds around it.

Written as somebody would who knows Python's costs: headers are parsed once and remembered, targeting is an index of
integer masks, answers are joined from pieces made at the start, signatures start from a keyed state, and records are
msgspec structs that go to a buffered file. It shares no code with adcore, so that a change there changes one contender.
"""

import io
import json
import os
import re
import socket
import time
from bisect import bisect_right
from collections.abc import Iterator
from functools import lru_cache
from hashlib import blake2b
from ipaddress import IPv4Address, ip_address
from itertools import accumulate
from typing import Any, NamedTuple
from urllib.parse import unquote_plus

import msgspec

JSON_HEADERS = (
    ("content-type", "application/json"),
    ("cache-control", "no-store"),
    ("x-content-type-options", "nosniff"),
)
# Written at once when so much is waiting, and by the app's timer every second.
BUFFER_BYTES = 1 << 18
FLUSH_S = 1.0


class Agent(NamedTuple):
    device: str
    os: str
    bot: bool


class Record(msgspec.Struct, tag_field="type", tag="impression"):
    """The fields of adcore's record of an impression."""

    v: int
    time: float
    id: str
    placement: str
    generation: str
    revision: int
    host: str
    device: str
    os: str
    country: str
    ivt: bool
    ip: str
    languages: tuple[str, ...]
    keywords: tuple[str, ...]
    key_values: tuple[tuple[str, str], ...]
    hour: int
    weekday: int
    user: str
    excluded: dict[str, str]
    campaign: str
    creative: str
    chance: float


class Ad(NamedTuple):
    """A creative with its campaign; `pieces` are the answer around the id and the two tokens."""

    campaign: int
    campaign_id: str
    creative_id: str
    weight: float
    pieces: tuple[bytes, bytes, bytes]


class Index:
    """One facet: the campaigns that accept a value, as a mask; `indifferent` do not ask."""

    def __init__(self, wanted: list[list[str]]) -> None:
        self.indifferent = sum(1 << bit for bit, values in enumerate(wanted) if not values)
        self.naming: dict[str, int] = {}
        for bit, values in enumerate(wanted):
            for value in values:
                self.naming[value.lower()] = self.naming.get(value.lower(), 0) | 1 << bit

    def accepting(self, values: tuple[str, ...]) -> int:
        mask = self.indifferent
        for value in values:
            mask |= self.naming.get(value, 0)
        return mask


class Placement:
    def __init__(self, placement: dict[str, Any], campaigns: list[dict[str, Any]]) -> None:
        self.id = placement["id"]
        self.campaigns = campaigns
        self.ids = [campaign["id"] for campaign in campaigns]
        facets = ("devices", "countries", "languages", "keywords_any", "keywords_none")
        self.devices, self.countries, self.languages, self.keywords_any, self.keywords_none = (
            Index([campaign["targeting"].get(facet, []) for campaign in campaigns]) for facet in facets
        )
        self.tiers = [
            sum(1 << bit for bit, campaign in enumerate(campaigns) if campaign["priority"] == priority)
            for priority in ("sponsorship", "standard", "house")
        ]
        self.goals = [(campaign["goal"] or {}).get("impressions", 0) for campaign in campaigns]
        self.counts = [0] * len(campaigns)
        self.live = (1 << len(campaigns)) - 1
        self.ads = [
            [self._ad(bit, campaign, creative) for creative in campaign["creatives"]]
            for bit, campaign in enumerate(campaigns)
        ]
        self.drawings: dict[int, tuple[list[float], list[Ad]]] = {}

    def eligible(self, device: str, country: str, languages: tuple[str, ...], keywords: tuple[str, ...]) -> int:
        """The campaigns that accept the request, as a mask."""
        mask = self.live & self.devices.accepting((device,)) & self.countries.accepting((country.lower(),))
        mask &= self.languages.accepting(languages) & self.keywords_any.accepting(keywords)
        for word in keywords:
            mask &= ~self.keywords_none.naming.get(word, 0)
        return mask

    def pick(self, mask: int, draw: float) -> tuple[Ad, float] | None:
        """An ad of the first tier that has any, by weight, and the chance it had."""
        drawing = self.drawings.get(mask)
        if drawing is None:
            tier = next((mask & tier for tier in self.tiers if mask & tier), 0)
            ads = [ad for bit, ads in enumerate(self.ads) if tier >> bit & 1 for ad in ads]
            drawing = self.drawings[mask] = list(accumulate(ad.weight for ad in ads)), ads
        bounds, ads = drawing
        if not ads:
            return None
        ad = ads[min(bisect_right(bounds, draw * bounds[-1]), len(ads) - 1)]
        return ad, ad.weight / bounds[-1]

    def count(self, campaign: int) -> None:
        self.counts[campaign] += 1
        if self.counts[campaign] == self.goals[campaign]:
            self.live &= ~(1 << campaign)

    def _ad(self, bit: int, campaign: dict[str, Any], creative: dict[str, Any]) -> Ad:
        width, height = creative["placement_size"]
        static = {
            "placement": self.id,
            "campaign": campaign["id"],
            "creative": {
                "id": creative["id"],
                "format": creative["format"],
                "width": width,
                "height": height,
                "image_url": creative["image_url"],
                "alt": creative["alt"],
            },
        }
        share = creative["weight"] / sum(one["weight"] for one in campaign["creatives"])
        return Ad(
            bit,
            campaign["id"],
            creative["id"],
            campaign["weight"] * share,
            (
                b'",' + json.dumps(static, separators=(",", ":")).encode()[1:-1] + b',"click_url":"/v1/click?t=',
                b'","view_url":"/v1/view?t=',
                b'"}',
            ),
        )


class Job:
    """Facts, decision, signature, record. `answer` is called for each request; `flush` every FLUSH_S."""

    def __init__(self, inventory: dict[str, Any], log_path: str, key: bytes) -> None:
        campaigns = inventory["campaigns"]
        self.placements = {one["id"]: Placement(one, campaigns) for one in inventory["placements"]}
        self.host = socket.gethostname()
        self._keyed = blake2b(key=key, person=b"token", digest_size=16)
        self._encode = msgspec.msgpack.Encoder().encode
        self._log = io.BufferedWriter(io.FileIO(log_path, "a"), BUFFER_BYTES)
        self._ids: Iterator[str] = iter(())
        self._hour_end = 0.0
        self._hour = self._weekday = 0

    @classmethod
    def from_environment(cls) -> "Job":
        with open(os.environ["JOB_INVENTORY"], encoding="utf-8") as file:
            inventory = json.load(file)
        return cls(inventory, os.environ["JOB_LOG"], bytes.fromhex(os.environ["JOB_KEY"]))

    def answer(self, query: str, user_agent: str, accept_language: str, country: str, ip: str) -> bytes | None:
        """The JSON of a decision; None when there is none to give (204)."""
        placement_id, keywords = parse_query(query)
        placement = self.placements.get(placement_id)
        if placement is None:
            return None
        agent = parse_user_agent(user_agent)
        languages = parse_accept_language(accept_language)
        impression_id = self._next_id()
        mask = placement.eligible(agent.device, country, languages, keywords)
        picked = placement.pick(mask, int(impression_id[:13], 16) / 0x10_0000_0000_0000)
        if picked is None:
            return None
        ad, chance = picked
        if not agent.bot:
            placement.count(ad.campaign)
        now = time.time()
        if now >= self._hour_end:
            self._turn_hour(now)
        self._log.write(
            self._encode(
                Record(
                    1,
                    now,
                    impression_id,
                    placement_id,
                    "79ddfa69df9cf7a5",
                    1,
                    self.host,
                    agent.device,
                    agent.os,
                    country,
                    agent.bot,
                    truncate_ip(ip),
                    languages,
                    keywords,
                    (),
                    self._hour,
                    self._weekday,
                    "",
                    {},
                    ad.campaign_id,
                    ad.creative_id,
                    chance,
                )
            )
        )
        text = f"k001~{int(now):x}~{impression_id}~{placement_id}~{ad.creative_id}".encode()
        keyed = self._keyed.copy()
        keyed.update(text)
        token = text + b"~" + keyed.hexdigest().encode()
        to_click, to_view, end = ad.pieces
        return b"".join(
            (
                b'{"impression_id":"',
                impression_id.encode(),
                to_click,
                token,
                to_view,
                token,
                end,
            )
        )

    def flush(self) -> None:
        self._log.flush()

    def close(self) -> None:
        self._log.close()

    def _next_id(self) -> str:
        for one in self._ids:
            return one
        # One system call for many.
        block = os.urandom(16 * 256).hex()
        self._ids = iter([block[start : start + 32] for start in range(0, len(block), 32)])
        return next(self._ids)

    def _turn_hour(self, now: float) -> None:
        local = time.gmtime(now)
        self._hour, self._weekday = local.tm_hour, local.tm_wday
        self._hour_end = (now // 3600 + 1) * 3600


@lru_cache(maxsize=4096)
def parse_query(query: str) -> tuple[str, tuple[str, ...]]:
    """The placement, and the keywords sorted."""
    placement, keywords = "", set[str]()
    for part in query.split("&"):
        name, _, value = part.partition("=")
        if name == "placement":
            placement = unquote_plus(value)
        elif name == "keywords":
            keywords |= {" ".join(word.lower().split()) for word in unquote_plus(value).split(",")}
    return placement, tuple(sorted(keywords - {""}))


@lru_cache(maxsize=4096)
def parse_accept_language(text: str) -> tuple[str, ...]:
    """Best first, each followed by the wider ones that it belongs to."""
    ranges = []
    for part in text.lower().split(","):
        tag, _, value = part.partition(";q=")
        ranges.append((-float(value or 1), tag.strip()))
    languages: dict[str, None] = {}
    for quality, tag in sorted(ranges, key=lambda one: one[0]):
        while tag and quality:
            languages.setdefault(tag)
            tag = tag.rpartition("-")[0]
    return tuple(languages)


@lru_cache(maxsize=8192)
def parse_user_agent(text: str) -> Agent:
    lower = text.lower()
    system = next((name for name, marks in _SYSTEMS if any(mark in lower for mark in marks)), "other")
    return Agent(_device(lower, system), system, _BOT.search(lower) is not None)


@lru_cache(maxsize=4096)
def truncate_ip(text: str) -> str:
    """The /24 or /48 of an address, "" of none."""
    try:
        address = ip_address(text)
    except ValueError:
        return ""
    kept = 8 if isinstance(address, IPv4Address) else 80
    return str(type(address)(int(address) >> kept << kept))


_BOT = re.compile("bot|crawl|spider|slurp|facebookexternalhit")
_SYSTEMS = (
    ("other", ("web0s",)),
    ("windows", ("windows",)),
    ("ios", ("iphone", "ipad", "ipod")),
    ("macos", ("mac os x",)),
    ("android", ("android",)),
    ("chromeos", ("cros ",)),
    ("linux", ("linux",)),
)


def _device(lower: str, system: str) -> str:
    if "smarttv" in lower or "smart-tv" in lower or "appletv" in lower:
        return "tv"
    if "ipad" in lower or ("tablet" in lower and system != "windows"):
        return "tablet"
    if "mobi" in lower or "iphone" in lower:
        return "mobile"
    if system == "android":
        return "tablet"
    return "desktop" if system in ("windows", "macos", "linux", "chromeos") else "other"
