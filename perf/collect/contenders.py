"""Ways from a delivery log to counts. Each takes the log's path and gives the sums that a report would be made of."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from adcore.core.calendar import Calendar
from adcore.sources import open_store, results
from adtools.aggregate import COUNTED, Aggregator
from adtools.collect import EVENTS_MAX, Collector
from adtools.tail import MemoryPositions, Tail

Sums = dict[str, int]
"""How many rows each way ended with, and of what in all: what must be equal for all that do the whole job."""

WINDOW_S = 3600.0

# Dates become hours by arithmetic, as the time zone is UTC. A view or click counts once per impression, type and ivt.
DUCKDB = """
    SELECT floor(time / 3600)::BIGINT * 3600 AS hour, placement, campaign, creative, device, country, reason,
        count(*) FILTER (type = 'impression' AND NOT ivt) AS impressions,
        count(DISTINCT id) FILTER (type = 'view' AND NOT ivt) AS views,
        count(DISTINCT id) FILTER (type = 'click' AND NOT ivt) AS clicks,
        count(*) FILTER (type = 'unfilled' AND NOT ivt) AS unfilled,
        count(*) FILTER (type IN ('impression', 'unfilled') AND ivt)
            + count(DISTINCT id || type) FILTER (type IN ('view', 'click') AND ivt) AS ivt
    FROM read_json(?, format = 'newline_delimited', columns = {
        type: 'VARCHAR', time: 'DOUBLE', id: 'VARCHAR', placement: 'VARCHAR', campaign: 'VARCHAR', creative: 'VARCHAR',
        device: 'VARCHAR', country: 'VARCHAR', ivt: 'BOOLEAN', reason: 'VARCHAR'})
    GROUP BY ALL
"""


def aggregate(path: Path, folder: Path) -> Sums:
    """adcore without a store: read, decode, count; views and clicks are left as they came."""
    aggregator = Aggregator(Calendar(ZoneInfo("UTC")))
    sums = {"impressions": 0, "unfilled": 0, "events": 0}

    def take() -> None:
        tally, aggregator.tally = aggregator.tally, results.Tally()
        sums["impressions"] += sum(numbers[results.IMPRESSIONS] for numbers in tally.results.values())
        sums["unfilled"] += sum(requests for requests, _ in tally.unfilled.values())
        sums["events"] += len(tally.events)

    with closing(Tail(path, MemoryPositions(), COUNTED)) as tail:
        while (batch := tail.next()) is not None:
            aggregator.add(batch.records)
            tail.commit(batch)
            # As often as the collector gives them to the store.
            if len(aggregator.tally.events) >= EVENTS_MAX:
                take()
    take()
    return sums


def collect(path: Path, folder: Path) -> Sums:
    """All of `adctl collect`, into a new SQLite file."""
    database = folder / "collected.db"
    for left in folder.glob("collected.db*"):
        left.unlink()
    with closing(open_store(f"sqlite://{database}")) as store:
        store.migrate()
        collector = Collector([path], store, Calendar(ZoneInfo("UTC")), WINDOW_S, print, lambda seconds: False)
        with closing(collector):
            collector.run_once()
        (counted,) = store.run(
            lambda db: db.query(
                "SELECT sum(impressions) AS impressions, sum(views) AS views, sum(clicks) AS clicks, sum(ivt) AS ivt "
                "FROM results"
            )
        )
        (unfilled,) = store.run(lambda db: db.query("SELECT sum(requests) AS requests, sum(ivt) AS ivt FROM unfilled"))
    return {**counted, "unfilled": unfilled["requests"], "ivt": counted["ivt"] + unfilled["ivt"]}


def duckdb(path: Path, folder: Path) -> Sums:
    """duckdb's own reader and GROUP BY, on one thread."""
    import duckdb as driver  # what perf/run installs; the tests do without

    connection: Any = driver.connect(config={"threads": 1})
    with closing(connection):
        rows = connection.execute(DUCKDB, [str(path)]).fetchall()
    names = ("impressions", "views", "clicks", "unfilled", "ivt")
    return {name: sum(row[7 + place] for row in rows) for place, name in enumerate(names)}


CONTENDERS: dict[str, tuple[str, Callable[[Path, Path], Sums]]] = {
    "adcore, msgpack": ("msgpack", aggregate),
    "adcore, json": ("json", aggregate),
    "duckdb, json": ("json", duckdb),
    "adcore into SQLite, msgpack": ("msgpack", collect),
    "adcore into SQLite, json": ("json", collect),
}
