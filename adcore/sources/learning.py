"""From the results in the store to what delivery learns of them, in the same store.

Rows are written only where the difference matters: each write raises the revision, and every server loads what is new.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from adcore.core.calendar import Calendar
from adcore.core.learned import Learned
from adcore.core.traffic import HOUR_S, WEEKS, expected_traffic, is_other_traffic
from adcore.sources.sqlstore import Dialect, read_learned_rows, read_revision

# A creative's results have changed when so large a part of them is new.
GROWTH_MIN = 0.05


class Lesson(NamedTuple):
    """The placements and creatives that were learned about, those of them that were written, and the revision since."""

    placements: list[str]
    creatives: list[str]
    written: list[str]
    revision: int


def learn(db: Dialect, now: float, calendar: Calendar) -> Lesson:
    """Learn from the hours that are over at `now`, of the last WEEKS. What nothing is known of is forgotten."""
    since = int(now) - WEEKS * 7 * 86_400
    learned = Learned(_read_traffic(db, since, now, calendar), _read_creatives(db, since))
    with db.writing():
        before = read_revision(db)
        stored = read_learned_rows(db)
        written = _write(
            db,
            "placement_traffic",
            "placement",
            {name: (msgspec.json.encode(hours).decode(),) for name, hours in learned.traffic.items()},
            {
                name
                for name, hours in stored.traffic.items()
                if name in learned.traffic and not is_other_traffic(hours, learned.traffic[name])
            },
            stored.traffic,
        )
        written += _write(
            db,
            "creative_results",
            "creative",
            learned.creatives,
            {
                name
                for name, results in stored.creatives.items()
                if name in learned.creatives and not _is_news(results, learned.creatives[name])
            },
            stored.creatives,
        )
        if before.confirmed == before.number:
            # Nobody's inventory has changed, so what was confirmed still is.
            db.execute("UPDATE revision SET confirmed = revision WHERE id = 1")
        revision = read_revision(db)
    return Lesson(sorted(learned.traffic), sorted(learned.creatives), written, revision.number)


def _read_traffic(db: Dialect, since: int, now: float, calendar: Calendar) -> dict[str, tuple[float, ...]]:
    requests: dict[str, dict[int, int]] = {}
    for sql in (
        "SELECT placement, hour, SUM(impressions) AS requests FROM results",
        "SELECT placement, hour, SUM(requests) AS requests FROM unfilled",
    ):
        mark = db.placeholder
        rows = db.query(
            f"{sql} WHERE hour >= {mark} AND hour <= {mark} GROUP BY placement, hour", (since, int(now) - HOUR_S)
        )
        for row in rows:
            hours = requests.setdefault(row["placement"], {})
            hours[row["hour"]] = hours.get(row["hour"], 0) + int(row["requests"])
    observed = {hour for hours in requests.values() for hour in hours}
    known = {row["id"] for row in db.query("SELECT id FROM placements")}
    found = {name: expected_traffic(hours, observed, calendar) for name, hours in requests.items() if name in known}
    return {name: traffic for name, traffic in found.items() if traffic is not None and any(traffic)}


def _read_creatives(db: Dialect, since: int) -> dict[str, tuple[int, int]]:
    rows = db.query(
        "SELECT creatives.campaign AS campaign, results.creative AS creative, SUM(results.impressions) AS impressions, "
        "SUM(results.views) AS views, SUM(results.clicks) AS clicks "
        "FROM results JOIN creatives ON creatives.id = results.creative "
        "JOIN campaigns ON campaigns.id = creatives.campaign "
        f"WHERE campaigns.optimize_for = 'ctr' AND results.hour >= {db.placeholder} "
        "GROUP BY creatives.campaign, results.creative",
        (since,),
    )
    # A page that does not use the tag reports no views, and its impressions must do.
    sees = {row["campaign"] for row in rows if row["views"]}
    return {
        row["creative"]: (int(row["views"] if row["campaign"] in sees else row["impressions"]), int(row["clicks"]))
        for row in rows
    }


def _is_news(before: tuple[int, int], after: tuple[int, int]) -> bool:
    return any(abs(b - a) > GROWTH_MIN * a for a, b in zip(before, after, strict=True))


def _write(
    db: Dialect,
    table: str,
    key: str,
    wanted: Mapping[str, tuple[Any, ...]],
    same: set[str],
    stored: Mapping[str, object],
) -> list[str]:
    """Make the table's rows those that are wanted, except where they are the `same` as before; who was written."""
    changed = sorted((wanted.keys() | stored.keys()) - same)
    mark = db.placeholder
    for name in changed:
        if name in stored:
            db.execute(f"DELETE FROM {table} WHERE {key} = {mark}", (name,))
        if name in wanted:
            values = (name, *wanted[name])
            db.execute(f"INSERT INTO {table} VALUES ({', '.join([mark] * len(values))})", values)
    return changed
