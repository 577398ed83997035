"""A delivery log as a busy site writes it, in both forms, encoded by adcore's own code."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from adcore.deliverylog.record import FORMS, AnyRecord, Click, Impression, Unfilled, View

START = 1_800_000_000.0
# Many in one country, some campaigns far busier than others: an hour has some ten thousand different rows.
COUNTRIES = ("JP",) * 40 + ("US", "TW", "KR", "FR", "DE", "TH", "", "", "", "")
CAMPAIGNS = [f"campaign-{number}" for number in range(200) for _ in range(1 + 100 // (number + 1))]
PER_SECOND = 2000.0
EVENT_FIELDS = tuple(name for name in Click.__struct_fields__ if name != "time")


def write(folder: Path, records: int, seed: int = 1) -> dict[str, Path]:
    """{form: path} of logs with the same records: about 62 impressions, 30 views, 3 clicks and 5 unfilled of 100."""
    paths = {name: folder / f"{name}.log" for name in FORMS}
    for name, form in FORMS.items():
        with paths[name].open("wb") as file:
            for record in make(records, seed):
                file.write(form.encode(record))
    return paths


def make(count: int, seed: int) -> Iterator[AnyRecord]:
    rng = random.Random(seed)
    recent: list[Impression] = []
    for number in range(count):
        time = START + number / PER_SECOND
        visitor: dict[str, Any] = {
            "time": time,
            "revision": 4711,
            "host": "ad1.example.net",
            "device": rng.choice(("mobile", "desktop", "tablet")),
            "os": rng.choice(("ios", "android", "windows")),
            "country": rng.choice(COUNTRIES),
            "ivt": rng.random() < 0.02,
            "ip": "192.0.2.0",
        }
        chance = rng.random()
        if recent and chance < 0.33:
            shown = recent[rng.randrange(len(recent))]
            kind: type[View | Click] = View if chance < 0.30 else Click
            # The same visitor's, whose device and country are those of the impression.
            yield kind(**{name: getattr(shown, name) for name in EVENT_FIELDS}, time=time)
            continue
        answer: dict[str, Any] = {
            "id": f"{rng.getrandbits(128):032x}",
            "placement": f"page-{rng.randrange(20)}",
            "languages": ("ja", "en-us", "en"),
            "keywords": ("manga", f"genre-{rng.randrange(30)}"),
            "key_values": (("section", "news"),),
            "hour": 9,
            "weekday": 2,
            "user": "",
            "excluded": {},
        }
        if chance > 0.95:
            yield Unfilled(**visitor, **answer, reason="daily_cap", reasons={"daily_cap": 3, "country": 12})
            continue
        campaign = rng.choice(CAMPAIGNS)
        creative = f"{campaign}-{rng.randrange(3)}"
        impression = Impression(**visitor, **answer, campaign=campaign, creative=creative, chance=rng.random())
        if len(recent) < 1000:
            recent.append(impression)
        else:
            recent[rng.randrange(1000)] = impression
        yield impression
