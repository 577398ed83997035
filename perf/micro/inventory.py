"""What the stages decide on: inventories of a given size, and the requests of visitors who differ."""

from typing import Any

PLACEMENT = "side"
SIZE = (300, 250)
CANDIDATES = 50
VISITORS = 64
"""Requests that differ, so that nothing is fast only because the same bytes came again."""

_TARGETING: tuple[dict[str, Any], ...] = (
    {},
    {"devices": ["mobile", "tablet"]},
    {"countries": ["JP", "KR"]},
    {"languages": ["ja", "en"]},
    {"keywords_any": ["manga", "news"], "keywords_none": ["gossip"]},
)
_AGENTS = (
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36",
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:127.0) Gecko/20100101 Firefox/127.0",
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.5 "
    "Safari/605.1.15",
    "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/125.0.0.0 Safari/537.36",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.5 "
    "Mobile/15E148 Safari/604.1",
    "Mozilla/5.0 (iPad; CPU OS 16_7 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/16.6 "
    "Mobile/15E148 Safari/604.1",
    "Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Mobile Safari/537.36",
    "Mozilla/5.0 (Linux; Android 14; SM-S918B) AppleWebKit/537.36 (KHTML, like Gecko) SamsungBrowser/25.0 "
    "Chrome/121.0.0.0 Mobile Safari/537.36",
)
_LANGUAGES = ("ja,en-US;q=0.9,en;q=0.8", "ja-JP,ja;q=0.9", "en-GB,en;q=0.5", "ko-KR,ko;q=0.9,en;q=0.8")
_COUNTRIES = ("JP", "DE")
_KEYWORDS = ("manga,romance", "news,politics", "sports,football")


def document(campaigns: int, creatives_each: int = 1, *, frequency_cap: bool = False) -> dict[str, Any]:
    """Campaigns for one placement, every fifth of them for anybody, every tenth with a goal to be counted."""
    return {
        "placements": [{"id": PLACEMENT, "width": SIZE[0], "height": SIZE[1]}],
        "campaigns": [_campaign(number, creatives_each, frequency_cap) for number in range(campaigns)],
    }


def visitor_request(number: int, cookie: str = "") -> bytes:
    """The request of one of `VISITORS` browsers, with eight headers of its own and the two that nginx adds.

    The cookie, if any, is a ninth.
    """
    lines = [
        f"GET /v1/decision?placement={PLACEMENT}&keywords={_KEYWORDS[number % 3]}&kv.section=front HTTP/1.1",
        "Host: ads.example.net",
        f"User-Agent: {_AGENTS[number % 8]}",
        "Accept: application/json",
        f"Accept-Language: {_LANGUAGES[number // 8 % 4]}",
        "Accept-Encoding: gzip, deflate, br",
        f"Referer: https://www.example.net/articles/{number:08}",
        "Sec-Fetch-Mode: cors",
        "Sec-Fetch-Site: same-site",
        f"X-Real-IP: 198.51.100.{100 + number}",
        f"X-Country: {_COUNTRIES[number // 32 % 2]}",
    ]
    if cookie:
        lines.append(f"Cookie: {cookie}")
    return "\r\n".join([*lines, "", ""]).encode()


def _campaign(number: int, creatives_each: int, frequency_cap: bool) -> dict[str, Any]:
    # Ids of one length, so that the bytes of an answer do not depend on the draw.
    campaign_id = f"campaign-{number:05}"
    return {
        "id": campaign_id,
        "name": f"Campaign {number}",
        "advertiser": "Example Shop",
        "priority": "standard",
        "weight": 1 + number % 3,
        "goal": {"impressions": 1_000_000_000} if number % 10 == 0 else None,
        "frequency_cap": {"impressions": 100, "seconds": 86_400} if frequency_cap else None,
        "targeting": _TARGETING[number % len(_TARGETING)],
        "creatives": [_creative(f"{campaign_id}-{index:02}") for index in range(creatives_each)],
    }


def _creative(creative_id: str) -> dict[str, Any]:
    return {
        "id": creative_id,
        "placement_size": list(SIZE),
        "format": "image",
        "image_url": f"https://img.example.net/{creative_id}.png",
        "alt": "Everything for your garden",
        "landing_url": "https://shop.example.net/garden?c={click_id}",
    }
