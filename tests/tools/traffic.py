"""Records of a made-up site, as one or more hosts log them, and an independent count of them."""

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import msgspec

from adcore.deliverylog.record import Answer, AnyRecord, Click, Impression, Unfilled, View, type_of

START = 1_800_000_000.0
ANSWER: dict[str, Any] = {
    "languages": ("ja", "en"),
    "keywords": ("manga",),
    "key_values": (("section", "news"),),
    "hour": 3,
    "weekday": 2,
    "user": "",
    "excluded": {},
}


def traffic(count: int, seed: int, *, span_s: float = 7200.0, host: str = "h") -> list[AnyRecord]:
    """`count` records over `span_s` seconds: impressions, views and clicks of them (some again and again), unfilled."""
    rng = random.Random(seed)
    shown: list[Impression] = []
    records: list[AnyRecord] = []
    for number in range(count):
        time = START + number * span_s / count
        recent = [impression for impression in shown[-50:] if time - impression.time < 1800]
        common: dict[str, Any] = {"revision": 1, "os": "ios", "ip": "192.0.2.0", "host": host, "time": time}
        visitor: dict[str, Any] = {
            "device": rng.choice(["mobile", "desktop"]),
            "country": rng.choice(["JP", "US", ""]),
            "ivt": rng.random() < 0.1,
        }
        kind = rng.choices(["impression", "view", "click", "unfilled"], [60, 25, 10, 5])[0]
        names: dict[str, Any]
        if kind in ("view", "click") and recent:
            of = rng.choice(recent)
            event = Click if kind == "click" else View
            names = {"id": of.id, "placement": of.placement, "campaign": of.campaign, "creative": of.creative}
            records.append(event(**common, **visitor, **names))
        elif kind == "unfilled":
            reason = rng.choice(["no_campaigns", "daily_cap", "unknown_placement"])
            placement = f"made-up-{rng.randrange(1000)}" if reason == "unknown_placement" else "side"
            names = {"id": f"{rng.getrandbits(128):032x}", "placement": placement, "reason": reason}
            records.append(Unfilled(**common, **visitor, **ANSWER, **names, reasons={reason: 1}))
        else:
            campaign = rng.choice(["spring", "summer", "中"])
            names = {"id": f"{rng.getrandbits(128):032x}", "placement": rng.choice(["top", "side"])}
            ad: dict[str, Any] = {"campaign": campaign, "creative": f"{campaign}-{rng.randrange(2)}", "chance": 0.5}
            shown.append(Impression(**common, **visitor, **ANSWER, **names, **ad))
            records.append(shown[-1])
    return records


def asked_again(records: Iterable[AnyRecord], after_s: float) -> list[AnyRecord]:
    """The answers among them once more and that much later: a proxy asked again, since it had heard nothing."""
    return [msgspec.structs.replace(one, time=one.time + after_s) for one in records if isinstance(one, Answer)]


Count = dict[str, dict[tuple[Any, ...], int]]


def count(logs: Iterable[Sequence[AnyRecord]], zone: str = "UTC", window_s: float = 3600.0) -> Count:
    """What the tables should say, reckoned record by record: {"results": {(keys..., column): n}, ...} without zeros.

    Views and clicks count by the first of their impression's id, type and ivt; right only if all come within a window.
    """
    results: Counter[tuple[Any, ...]] = Counter()
    unfilled: Counter[tuple[Any, ...]] = Counter()
    delivered: Counter[tuple[Any, ...]] = Counter()
    seen = set()
    for record in (record for log in logs for record in log):
        local = datetime.fromtimestamp(record.time, ZoneInfo(zone))
        hour = int(local.replace(minute=0, second=0, microsecond=0).timestamp())
        match record:
            case Unfilled():
                placement = "" if record.reason == "unknown_placement" else record.placement
                unfilled[hour, placement, record.reason, "ivt" if record.ivt else "requests"] += 1
                continue
            case View() | Click() if window_s:
                if (name := (type_of(record), record.id, record.ivt)) in seen:
                    continue
                seen.add(name)
        column = "ivt" if record.ivt else type_of(record) + "s"
        names = (record.placement, record.campaign, record.creative, record.device, record.country)
        results[(hour, *names, column)] += 1
        if column in ("impressions", "clicks"):
            delivered[record.campaign, local.date().isoformat(), column] += 1
    return {"results": dict(results), "unfilled": dict(unfilled), "delivered": dict(delivered)}
