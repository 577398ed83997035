"""The requests of both mixes, the same in every run.

`same` is one request again and again, as h2load sends it. `mixed` is a few thousand different ones: what a site's
visitors send through nginx on an afternoon, with the browsers, languages, countries and pages that vary there.
"""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from perf.macro.inventory import COUNTRIES, KEYWORDS, PLACEMENT

SEED = 20261101
# Each with an address and a page of its own, half of them with a cookie: 7,800 different header lines.
REQUESTS = 3000


class Request(NamedTuple):
    target: str
    headers: tuple[tuple[str, str], ...]

    def encode(self) -> bytes:
        lines = [f"GET {self.target} HTTP/1.1", "Host: ads.example.net", *(f"{n}: {v}" for n, v in self.headers)]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")


def same() -> Request:
    """A phone in Japan on a page about manga."""
    return Request(
        f"/v1/decision?placement={PLACEMENT}&keywords=manga,books",
        _headers(
            "Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) "
            "Version/17.5 Mobile/15E148 Safari/604.1",
            "ja,en-US;q=0.9,en;q=0.8",
            "https://www.example.net/manga/new/",
            "198.51.100.77",
            "JP",
        ),
    )


def mixed(count: int = REQUESTS) -> list[Request]:
    """`count` requests of many visitors; half of them bring a cookie of somebody else's."""
    draw = random.Random(SEED)
    agents = list(user_agents())
    requests = []
    for number in range(count):
        # A page is about one to three things, or about nothing that anybody named.
        words = draw.sample(KEYWORDS, draw.choice((0, 1, 1, 2, 3)))
        keywords = "&keywords=" + ",".join(map(quote, words)) if words else ""
        country = draw.choice((*COUNTRIES, "JP", "JP", "JP", "US", "NL", "PL"))
        address = f"{draw.randint(11, 99)}.{draw.randint(0, 255)}.{draw.randint(0, 255)}.{draw.randint(1, 254)}"
        if draw.random() < 0.2:
            address = f"2001:db8:{draw.randint(1, 0xFFFF):x}:{draw.randint(1, 0xFFFF):x}::{draw.randint(1, 0xFF):x}"
        headers = _headers(
            draw.choice(agents),
            draw.choice(ACCEPT_LANGUAGES),
            f"https://www.example.net/{words[0].replace(' ', '-') if words else 'start'}/{draw.randint(1, 4000)}.html",
            address,
            country,
        )
        if number % 2:
            session, visited = draw.getrandbits(128), draw.randint(1_750_000_000, 1_790_000_000)
            cookie = f"session={session:032x}; _ga=GA1.2.{draw.getrandbits(31)}.{visited}; theme=dark"
            headers = (*headers, ("Cookie", cookie))
        requests.append(Request(f"/v1/decision?placement={PLACEMENT}{keywords}", headers))
    return requests


def write(requests: list[Request], path: Path) -> None:
    """For load/main.go: each request as its length in four bytes, big-endian, and then itself."""
    encoded = [request.encode() for request in requests]
    path.write_bytes(b"".join(len(one).to_bytes(4, "big") + one for one in encoded))


def user_agents() -> Iterator[str]:
    """Well over 200 that differ as real ones do: in system, device, browser and version."""
    chrome = "AppleWebKit/537.36 (KHTML, like Gecko) Chrome/{}.0.0.0"
    for version in range(118, 138):
        desktop = chrome.format(version) + " Safari/537.36"
        yield f"Mozilla/5.0 (Windows NT 10.0; Win64; x64) {desktop}"
        yield f"Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) {desktop}"
        yield f"Mozilla/5.0 (Windows NT 10.0; Win64; x64) {desktop} Edg/{version}.0.0.0"
        yield f"Mozilla/5.0 (Linux; Android 10; K) {chrome.format(version)} Mobile Safari/537.36"
        yield f"Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:{version}.0) Gecko/20100101 Firefox/{version}.0"
        yield f"Mozilla/5.0 (Android 14; Mobile; rv:{version}.0) Gecko/{version}.0 Firefox/{version}.0"
    for version in range(128, 138):
        yield f"Mozilla/5.0 (X11; Linux x86_64) {chrome.format(version)} Safari/537.36"
        yield f"Mozilla/5.0 (X11; CrOS x86_64 14541.0.0) {chrome.format(version)} Safari/537.36"
        yield f"Mozilla/5.0 (X11; Ubuntu; Linux x86_64; rv:{version}.0) Gecko/20100101 Firefox/{version}.0"
        yield f"Mozilla/5.0 (Linux; Android 13; SM-X700) {chrome.format(version)} Safari/537.36"
    webkit = "AppleWebKit/605.1.15 (KHTML, like Gecko) Version/{}.{}"
    for major in range(14, 19):
        for minor in range(7):
            safari = webkit.format(major, minor)
            yield (
                f"Mozilla/5.0 (iPhone; CPU iPhone OS {major}_{minor} like Mac OS X) {safari} Mobile/15E148 Safari/604.1"
            )
            yield f"Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) {safari} Safari/605.1.15"
            if minor % 2:
                yield f"Mozilla/5.0 (iPad; CPU OS {major}_{minor} like Mac OS X) {safari} Mobile/15E148 Safari/604.1"
    for model in ("SM-S918B", "SM-A546E", "Pixel 8", "Pixel 7a", "SO-51D", "SC-53D", "2201116SG", "CPH2451", "A303SO"):
        yield (
            f"Mozilla/5.0 (Linux; Android 14; {model} Build/UP1A.231005.007; wv) AppleWebKit/537.36 "
            "(KHTML, like Gecko) Version/4.0 Chrome/126.0.6478.71 Mobile Safari/537.36"
        )
    yield "Mozilla/5.0 (Web0S; Linux/SmartTV) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/94.0.4606.128 Safari/537.36"
    yield "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)"
    yield "Mozilla/5.0 (compatible; bingbot/2.0; +http://www.bing.com/bingbot.htm)"


ACCEPT_LANGUAGES = (
    "ja",
    "ja-JP,ja;q=0.9",
    "ja,en-US;q=0.9,en;q=0.8",
    "ja-JP,ja;q=0.9,en-US;q=0.8,en;q=0.7",
    "en-US,en;q=0.9",
    "en-US,en;q=0.5",
    "en-GB,en;q=0.9,en-US;q=0.8",
    "en",
    "de-DE,de;q=0.9,en-US;q=0.8,en;q=0.7",
    "de,en-US;q=0.7,en;q=0.3",
    "fr-FR,fr;q=0.9,en-US;q=0.8,en;q=0.7",
    "fr,fr-FR;q=0.8,en-US;q=0.5,en;q=0.3",
    "ko-KR,ko;q=0.9,en-US;q=0.8,en;q=0.7",
    "zh-TW,zh;q=0.9,en-US;q=0.8,en;q=0.7",
    "zh-CN,zh;q=0.9",
    "pt-BR,pt;q=0.9,en-US;q=0.8,en;q=0.7",
    "pt-PT,pt;q=0.8,en;q=0.5,en-US;q=0.3",
    "es-ES,es;q=0.9,en;q=0.8",
    "es-419,es;q=0.9",
    "nl-NL,nl;q=0.9,en-US;q=0.8,en;q=0.7",
    "pl,en-US;q=0.7,en;q=0.3",
    "hi-IN,hi;q=0.9,en-IN;q=0.8,en;q=0.7",
)


def _headers(agent: str, accept_language: str, referer: str, address: str, country: str) -> tuple[tuple[str, str], ...]:
    """Eight of a browser, and the two that the nginx in front adds."""
    return (
        ("User-Agent", agent),
        ("Accept", "application/json, text/plain, */*"),
        ("Accept-Language", accept_language),
        ("Accept-Encoding", "gzip, deflate, br, zstd"),
        ("Referer", referer),
        ("Sec-Fetch-Dest", "empty"),
        ("Sec-Fetch-Mode", "cors"),
        ("Sec-Fetch-Site", "same-site"),
        ("X-Real-IP", address),
        ("X-Country", country),
    )
