"""What a campaign loses in clicks before it knows its best creative, by how its creatives share the impressions.

The same visitors click the same creatives, whoever chooses. Decisions are the server's; what it learns reaches it once
per `interval` impressions, as it does through `adctl learn` and a new table. Sampled Thompson learns after each one and
draws for each: no server with a table could do that, so it is the measure.
"""

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from adcore.core.adtable import AdTable, build_table
from adcore.core.calendar import Moment
from adcore.core.decision import Decision, decide
from adcore.core.facts import Facts

NOBODY = Facts("desktop", "linux", "", (), (), (), False)
MOMENT = Moment(0.0, 0, 0, 1)
Choose = Callable[[int, str], int]
"""The number of the creative to show, given how many were shown and the impression's id."""


def regrets(rates: Sequence[float], *, impressions: int, interval: int, seed: int) -> dict[str, float]:
    """The clicks to be expected less than from the best creative alone, by method."""
    found = {}
    for name, make in (("plain weights", _plain), ("adcore", _learned), ("sampled Thompson", _sampled)):
        random = Random(seed)
        shown, clicks = [0] * len(rates), [0] * len(rates)
        choose = make(shown, clicks, interval, Random(seed + 1))
        lost = 0.0
        for number in range(impressions):
            impression_id, luck = f"{random.getrandbits(128):032x}", random.random()
            chosen = choose(number, impression_id)
            shown[chosen] += 1
            clicks[chosen] += luck < rates[chosen]
            lost += max(rates) - rates[chosen]
        found[name] = lost
    return found


def _plain(shown: list[int], clicks: list[int], interval: int, random: Random) -> Choose:
    table = _table(shown, clicks, optimize=None)
    return lambda number, impression_id: _decide(table, impression_id)


def _learned(shown: list[int], clicks: list[int], interval: int, random: Random) -> Choose:
    table = _table(shown, clicks, optimize="ctr")

    def choose(number: int, impression_id: str) -> int:
        nonlocal table
        if number % interval == 0:
            table = _table(shown, clicks, optimize="ctr")
        return _decide(table, impression_id)

    return choose


def _sampled(shown: list[int], clicks: list[int], interval: int, random: Random) -> Choose:
    def choose(number: int, impression_id: str) -> int:
        draws = [random.betavariate(c + 1, s - c + 1) for s, c in zip(shown, clicks, strict=True)]
        return draws.index(max(draws))

    return choose


def _decide(table: AdTable, impression_id: str) -> int:
    answer = decide(table, "side", NOBODY, MOMENT, impression_id)
    assert isinstance(answer, Decision)
    return int(answer.ad.creative.id)


def _table(shown: list[int], clicks: list[int], optimize: str | None) -> AdTable:
    creatives: list[dict[str, Any]] = [
        {
            "id": str(number),
            "placement_size": [300, 250],
            "format": "text",
            "data": {"text": "Buy one"},
            "landing_url": "https://shop.example.net/",
        }
        for number in range(len(shown))
    ]
    results = {str(number): pair for number, pair in enumerate(zip(shown, clicks, strict=True))}
    campaign = {"id": "c", "name": "c", "priority": "standard", "optimize": optimize, "creatives": creatives}
    return build_table(
        {
            "placements": [{"id": "side", "width": 300, "height": 250}],
            "campaigns": [campaign],
            "learned": {"creatives": results},
        },
        revision=1,
    )
