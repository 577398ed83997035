"""What every contender serves: one placement with 50 candidates, the same in every run.

With more campaigns the others are for ten placements that are never asked for: a larger table, and the same decision.

Most campaigns target something (a few sponsorships tightly, house ads nothing), so that a request is refused by some
facet of most of them and several remain to draw from. A fifth has a goal, far enough away to be counted and never
reached. None has a frequency cap: its signed cookie is adcore's own, and no peer would be asked for one.
"""

import json
from typing import Any

PLACEMENT = "top"
CAMPAIGNS = 50
# A site with a season's bookings: some 10,000 creatives.
CAMPAIGNS_MANY = 5000
OTHER_PLACEMENTS = 10
COUNTRIES = ("JP", "US", "DE", "FR", "GB", "KR", "TW", "BR", "IN", "ES")
LANGUAGES = ("ja", "en", "de", "fr", "ko", "zh", "pt", "es", "en-gb", "pt-br")
KEYWORDS = ("manga", "anime", "games", "board games", "news", "music", "travel", "food", "cars", "books")


def document(campaigns: int = CAMPAIGNS) -> dict[str, Any]:
    """The inventory as `adctl apply` takes it."""
    others = range(OTHER_PLACEMENTS if campaigns > CAMPAIGNS else 0)
    return {
        "placements": [
            {"id": PLACEMENT, "width": 728, "height": 90},
            *({"id": f"other-{number}", "width": 300, "height": 250} for number in others),
        ],
        "campaigns": [
            *map(_campaign, range(min(campaigns, CAMPAIGNS))),
            *map(_other_campaign, range(CAMPAIGNS, campaigns)),
        ],
    }


def campaign_id(number: int) -> str:
    return f"campaign-{number:02}"


def as_json(campaigns: int = CAMPAIGNS) -> str:
    """The same as a file has it."""
    return json.dumps(document(campaigns))


def creatives(document: dict[str, Any]) -> int:
    """How many it has."""
    return sum(len(campaign["creatives"]) for campaign in document["campaigns"])


def _other_campaign(number: int) -> dict[str, Any]:
    return {
        **_campaign(number),
        "priority": "standard",
        "targeting": {**_targeting(number), "placements": [f"other-{number % OTHER_PLACEMENTS}"]},
        "creatives": [_creative(f"creative-{number}-{part}", 1 + part, 300, 250) for part in range(2)],
    }


def _campaign(number: int) -> dict[str, Any]:
    priority = "sponsorship" if number < 3 else "house" if number >= CAMPAIGNS - 5 else "standard"
    return {
        "id": campaign_id(number),
        "name": f"Campaign {number}",
        "advertiser": f"Advertiser {number % 17}",
        "priority": priority,
        "weight": 1 + number * 7 % 13,
        "goal": {"impressions": 1_000_000_000} if number % 5 == 0 else None,
        "targeting": {} if priority == "house" else _targeting(number),
        "creatives": [_creative(f"creative-{number:02}-{part}", 1 + part) for part in range(1 + (number % 3 == 0))],
    }


def _targeting(number: int) -> dict[str, list[str]]:
    targeting: dict[str, list[str]] = {}
    if number < 3:
        targeting["keywords_any"] = ["board games"]
    if number % 2 == 0:
        targeting["devices"] = [("mobile", "desktop", "tablet")[number // 2 % 3], "mobile"]
    if number % 3 == 0:
        targeting["countries"] = [COUNTRIES[number % len(COUNTRIES)], COUNTRIES[(number + 3) % len(COUNTRIES)]]
    if number % 4 == 1:
        targeting["languages"] = [LANGUAGES[number % len(LANGUAGES)], LANGUAGES[(number // 4) % len(LANGUAGES)]]
    if number % 5 == 3:
        targeting["keywords_any"] = [KEYWORDS[(number + shift) % len(KEYWORDS)] for shift in (0, 2, 5)]
    if number % 7 == 4:
        targeting["keywords_none"] = [KEYWORDS[(number + 1) % len(KEYWORDS)]]
    return {name: sorted(set(values)) for name, values in targeting.items()}


def _creative(creative_id: str, weight: int, width: int = 728, height: int = 90) -> dict[str, Any]:
    return {
        "id": creative_id,
        "placement_size": [width, height],
        "format": "image",
        "weight": weight,
        "image_url": f"https://img.example.net/banners/2026/{creative_id}/{width}x{height}.webp",
        "alt": f"An offer of the season ({creative_id})",
        "landing_url": "https://shop.example.net/landing?utm_source=ads&c={click_id}",
    }
