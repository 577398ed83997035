"""Campaigns that compete for one day: narrow and wide ones, most of which can be delivered, and some that can't.

Goals are what the campaigns get when each request is given to one of those that its facts let in, at random, some being
favoured much over others. So all goals together take a known part (`load`) of the traffic, some campaigns need nearly
every request that they can have, and that it can be done is known beforehand. A few goals are then made too large.
"""

from collections import Counter
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

from adcore.core.adtable import bits, build_table
from adcore.core.calendar import Calendar
from adcore.core.inventory import Inventory, parse_inventory
from adtools.traffic import SyntheticDay

START = datetime(2026, 11, 2, tzinfo=UTC)
SIZES = ((300, 250), (728, 90), (160, 600))
CROWDED = (320, 50)
PLACEMENTS = 9
HOPELESS = 6


def make_inventory(campaigns: int, *, seed: int, requests: int, load: float) -> Inventory:
    """The campaigns' goals fit a day of so many requests of the same seed, without its drops and spikes."""
    random = Random(seed)
    placements = [
        {"id": f"slot-{number}", "width": SIZES[number % 3][0], "height": SIZES[number % 3][1]}
        for number in range(PLACEMENTS)
    ]
    rows = [_campaign(number, placements, random) for number in range(campaigns)]
    placements.append({"id": "crowded", "width": CROWDED[0], "height": CROWDED[1]})
    crowd = [_campaign(campaigns + number, placements[-1:], random) for number in range(HOPELESS)]
    document: dict[str, Any] = {"placements": placements, "campaigns": rows}
    inventory = parse_inventory(document)
    usual = SyntheticDay(inventory, requests=requests, start=START.timestamp(), seed=seed, drops=0, spikes=0)
    table = build_table(document, revision=1)
    calendar = Calendar(UTC)
    favour = {row["id"]: random.lognormvariate(0, 1.2) for row in rows}
    goals: Counter[str] = Counter()
    for visit in usual.visits():
        index = table.placements[visit.placement]
        mask, _ = index.match(visit.facts, calendar.moment(visit.time))
        here = [index.campaigns[position].id for position in bits(mask)]
        if here and random.random() < load:
            goals[random.choices(here, [favour[name] for name in here])[0]] += 1
    for number, row in enumerate(rows):
        row["goal"] = {"impressions": max(1, goals[row["id"]])}
        if number % 10 == 5:
            row["daily_cap"] = row["goal"]
    for row in crowd:
        row["goal"] = {"impressions": requests}
    rows += [*crowd, *(_house(size) for size in SIZES)]
    return parse_inventory(document)


def _campaign(number: int, placements: list[dict[str, Any]], random: Random) -> dict[str, Any]:
    kind = random.random()
    if kind < 0.4 or len(placements) == 1:
        shown_in = [random.choice(placements)]
    elif kind < 0.7:
        shown_in = random.sample(placements, 3)
    else:
        size = random.choice(SIZES)
        shown_in = [p for p in placements if (p["width"], p["height"]) == size]
    targeting: dict[str, Any] = {"placements": [p["id"] for p in shown_in]}
    if random.random() < 0.4:
        targeting["devices"] = random.choice((["mobile"], ["desktop"], ["mobile", "tablet"]))
    if random.random() < 0.3:
        targeting["countries"] = random.choice((["JP"], ["US", "DE"], ["JP", "KR"]))
    if random.random() < 0.2:
        targeting["keywords_any"] = random.sample(("manga", "news", "sports", "music", "games"), 2)
    if random.random() < 0.1:
        targeting["hours"] = list(range(random.randrange(6, 12), random.randrange(18, 24)))
    sizes = sorted({(p["width"], p["height"]) for p in shown_in})
    return {
        "id": f"c-{number:03}",
        "name": f"Campaign {number}",
        "priority": "standard",
        "weight": random.randrange(1, 11),
        "starts_at": START.isoformat(),
        "ends_at": (START + timedelta(days=1)).isoformat(),
        "pacing": "even",
        "targeting": targeting,
        "creatives": [_creative(f"c-{number:03}-{width}", (width, height)) for width, height in sizes],
    }


def _house(size: tuple[int, int]) -> dict[str, Any]:
    name = f"house-{size[0]}"
    return {"id": name, "name": name, "priority": "house", "creatives": [_creative(f"{name}-1", size)]}


def _creative(creative_id: str, size: tuple[int, int]) -> dict[str, Any]:
    return {
        "id": creative_id,
        "placement_size": list(size),
        "format": "text",
        "data": {"text": "Buy one"},
        "landing_url": "https://shop.example.net/",
    }
