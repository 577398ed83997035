"""What is served while tables are swapped: 100,000 creatives in 5,000 campaigns over 51 placements, and edits of it.

A tenth of the campaigns is for the placement `busy`, which so has 10,000 creatives as candidates, all of one tier; the
others name one to three of 50 placements of five sizes. Targeting varies as in macro/inventory.py; a fifth has a goal,
a tenth of those others a frequency cap. (None of `busy`: of the five campaigns with which its 500 are compared no tenth
can have one, and an answer that sets a cookie costs more than the rest of the decision.)
"""

import random
from typing import Any

from perf.macro.inventory import COUNTRIES, KEYWORDS, LANGUAGES

SEED = 20261123
BUSY = "busy"
PLACEMENTS = 50
SIZES = ((728, 90), (300, 250), (160, 600), (320, 50), (970, 250))
BUSY_SIZE = (1200, 300)
CREATIVES_EACH = 20
PLACEMENT_IDS = tuple(f"p{number:02}" for number in range(PLACEMENTS))
TIERS = ("standard",) * 8 + ("house",) * 2

Document = dict[str, Any]


def document(campaigns: int = 5000) -> Document:
    """The inventory as `adctl apply` takes it; always the same one."""
    draw = random.Random(SEED)
    placements = [
        {"id": name, "width": SIZES[number % 5][0], "height": SIZES[number % 5][1]}
        for number, name in enumerate(PLACEMENT_IDS)
    ]
    placements.append({"id": BUSY, "width": BUSY_SIZE[0], "height": BUSY_SIZE[1]})
    return {"placements": placements, "campaigns": [_campaign(draw, number) for number in range(campaigns)]}


def hundred() -> Document:
    """The same with 100 creatives, all of them candidates for the busy placement."""
    there = document(50)
    busy = [campaign for campaign in there["campaigns"] if campaign["targeting"]["placements"] == [BUSY]]
    return {**there, "campaigns": busy}


def text_bytes(there: Document) -> int:
    """What the creatives hold of their own."""
    return sum(
        len(value.encode())
        for campaign in there["campaigns"]
        for creative in campaign["creatives"]
        for value in creative.values()
        if isinstance(value, str)
    )


def _campaign(draw: random.Random, number: int) -> Document:
    if number % 10 == 0:
        size, wanted = BUSY_SIZE, [BUSY]
    else:
        group = draw.randrange(5)
        size = SIZES[group]
        wanted = [f"p{at * 5 + group:02}" for at in draw.sample(range(PLACEMENTS // 5), draw.choice((1, 2, 2, 3)))]
    targeting: Document = {"placements": sorted(wanted)}
    if draw.random() < 0.3:
        targeting["devices"] = draw.choice((["mobile"], ["desktop"], ["mobile", "tablet"]))
    if draw.random() < 0.3:
        targeting["countries"] = draw.sample(COUNTRIES, draw.randint(1, 3))
    if draw.random() < 0.2:
        targeting["languages"] = draw.sample(LANGUAGES, draw.randint(1, 2))
    if draw.random() < 0.2:
        targeting["keywords_any"] = draw.sample(KEYWORDS, draw.randint(1, 3))
    name = f"c{number:04}"
    return {
        "id": name,
        "name": f"Campaign {number}",
        "advertiser": f"Shop {number % 700}",
        "priority": "standard" if wanted == [BUSY] else draw.choice(TIERS),
        "weight": draw.randint(1, 20),
        "status": "paused" if draw.random() < 0.05 else "active",
        "goal": {"impressions": 10**9} if draw.random() < 0.2 else None,
        "frequency_cap": {"impressions": 10, "seconds": 86_400} if draw.random() < 0.1 and wanted != [BUSY] else None,
        "targeting": targeting,
        "creatives": [_creative(draw, f"{name}-{at}", size) for at in range(CREATIVES_EACH)],
    }


def _creative(draw: random.Random, name: str, size: tuple[int, int]) -> Document:
    return {
        "id": name,
        "placement_size": list(size),
        "format": "image",
        "weight": draw.randint(1, 5),
        "image_url": f"https://img.example.net/{draw.getrandbits(64):016x}/{name}.webp",
        "alt": f"What {name} shows, in the words of the shop that booked it",
        "landing_url": f"https://shop.example.net/offers/{draw.getrandbits(48):012x}?utm_campaign={name}&c={{click_id}}",
    }
