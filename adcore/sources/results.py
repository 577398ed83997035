"""What was delivered, in SQL, the same for SQLite and MySQL: counted in exactly once, and read again for reports.

A `Tally` is what some stretches of log files say. `add_tally` adds it to the tables and moves the files' positions in
one transaction, in which nobody else does the same; a stretch that somebody else has counted meanwhile takes all of it
back (`Overtaken`). So whoever counts may be killed, run twice or beside another one.

Functions take a Dialect: `store.run(lambda db: results.add_tally(db, ...))`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date
from itertools import islice
from typing import Any, NamedTuple

import msgspec

from adcore.core.calendar import Calendar
from adcore.errors import AdcoreError
from adcore.sources.sqlstore import Dialect

ResultKey = tuple[int, str, str, str, str, str]
"""Hour, placement, campaign, creative, device, country."""
UnfilledKey = tuple[int, str, str]
"""Hour, placement, reason."""
Sums = dict[str, Any]
"""A row by column: keys, and whole numbers."""
RESULT_KEYS = ("hour", "placement", "campaign", "creative", "device", "country")
RESULT_NUMBERS = ("impressions", "views", "clicks", "ivt")
IMPRESSIONS, VIEWS, CLICKS, IVT = range(4)
UNFILLED_KEYS = ("hour", "placement", "reason")
UNFILLED_NUMBERS = ("requests", "ivt")
RefusalKey = tuple[str, str, str, str]
"""Day, campaign, placement, reason."""
REFUSAL_KEYS = ("day", "campaign", "placement", "reason")

# Values in one IN (...); SQLite takes 32,766, and MySQL's parser likes short statements.
IN_MAX = 500
# Past what anything delivers, and exact in every language that reads /status.
COUNT_MAX = 1 << 53
# Old events dropped in one transaction, at least: far more than a second brings, and quickly done.
PRUNE_MIN = 10_000


class Overtaken(AdcoreError):
    """Somebody else has counted the same stretch of a log."""


class Event(msgspec.Struct, frozen=True, gc=False):
    """A view or click, which counts once per window."""

    event: int
    """Which one it is: 64 bits, signed."""
    time: float
    row: ResultKey
    column: int
    """VIEWS, CLICKS, or IVT."""


class Tally:
    """Counts to be added: four numbers by ResultKey, two by UnfilledKey, and events in the order of the log."""

    def __init__(self) -> None:
        self.results: dict[ResultKey, list[int]] = {}
        self.unfilled: dict[UnfilledKey, list[int]] = {}
        self.events: list[Event] = []
        self.refusals: dict[RefusalKey, int] = {}
        """Requests for which a campaign was not shown."""


class Progress(NamedTuple):
    """Bytes `start` to `end` of the file known as `identity` are counted; `done`: nothing can follow."""

    identity: str
    start: int
    end: int
    done: bool


def position(db: Dialect, identity: str) -> tuple[int, bool]:
    """How far this file was counted, and whether it is done."""
    rows = db.query(f"SELECT position, done FROM collected_files WHERE identity = {db.placeholder}", (identity,))
    return (rows[0]["position"], bool(rows[0]["done"])) if rows else (0, False)


def read_delivered(db: Dialect, campaigns: Sequence[str], day: str) -> dict[str, tuple[int, int, int, int]]:
    """What is collected: {campaign: (impressions, clicks, impressions on `day`, clicks on `day`)}.

    `day` is a date of the site's time zone, YYYY-MM-DD. A campaign of which nothing is collected is missing.
    """
    delivered = {}
    for start in range(0, len(campaigns), IN_MAX):
        some = campaigns[start : start + IN_MAX]
        rows = db.query(
            "SELECT campaign, SUM(impressions) AS impressions, SUM(clicks) AS clicks, "
            f"SUM(CASE WHEN day = {db.placeholder} THEN impressions ELSE 0 END) AS impressions_today, "
            f"SUM(CASE WHEN day = {db.placeholder} THEN clicks ELSE 0 END) AS clicks_today "
            f"FROM delivered WHERE campaign IN ({', '.join([db.placeholder] * len(some))}) GROUP BY campaign",
            (day, day, *some),
        )
        for row in rows:
            delivered[row["campaign"]] = (
                *(_count(row["impressions"]), _count(row["clicks"])),
                *(_count(row["impressions_today"]), _count(row["clicks_today"])),
            )
    return delivered


def _count(value: Any) -> int:
    """A sum from 0 to COUNT_MAX: what else stands there, by other hands than ours, has to fit into every counter."""
    try:
        return max(0, min(int(value), COUNT_MAX))
    except (TypeError, ValueError, OverflowError):
        return 0


def add_tally(
    db: Dialect, tally: Tally, progress: Sequence[Progress], *, calendar: Calendar, window_s: float, now: float
) -> int:
    """Add the counts and move the positions, or do nothing at all; how many events were repeated.

    `now` is wall time in seconds. Raises Overtaken.
    """
    with db.writing():
        for step in progress:
            _move(db, step, now)
        fresh = _first_events(db, tally.events, window_s, now)
        results = {row: [*numbers] for row, numbers in tally.results.items()}
        for event in fresh:
            results.setdefault(event.row, [0, 0, 0, 0])[event.column] += 1
        _add(db, "results", RESULT_KEYS, RESULT_NUMBERS, results.items())
        _add(db, "unfilled", UNFILLED_KEYS, UNFILLED_NUMBERS, tally.unfilled.items())
        _add(db, "delivered", ("campaign", "day"), ("impressions", "clicks"), _delivered(results, calendar).items())
        _add(db, "refusals", REFUSAL_KEYS, ("requests",), [(key, [count]) for key, count in tally.refusals.items()])
        _prune_events(db, now, max(PRUNE_MIN, 2 * len(fresh)))
    return len(tally.events) - len(fresh)


def _move(db: Dialect, step: Progress, now: float) -> None:
    mark = db.placeholder
    known = db.query(f"SELECT position FROM collected_files WHERE identity = {mark}", (step.identity,))
    if (known[0]["position"] if known else 0) != step.start:
        raise Overtaken(f"{db.label}: somebody else has counted the same records")
    if known:
        db.execute(
            f"UPDATE collected_files SET position = {mark}, done = {mark}, seen_at = {mark} WHERE identity = {mark}",
            (step.end, int(step.done), int(now), step.identity),
        )
    else:
        db.execute(
            f"INSERT INTO collected_files (identity, position, done, seen_at) VALUES ({mark}, {mark}, {mark}, {mark})",
            (step.identity, step.end, int(step.done), int(now)),
        )


def _first_events(db: Dialect, events: Sequence[Event], window_s: float, now: float) -> list[Event]:
    """Those that were not seen within their window, which are remembered for as long."""
    if not window_s:
        return [*events]
    seen: dict[int, float] = {}
    for some in _chunks({event.event for event in events}, IN_MAX):
        marks = ", ".join([db.placeholder] * len(some))
        for row in db.query(f"SELECT event, seen_at FROM collected_events WHERE event IN ({marks})", some):
            seen[row["event"]] = row["seen_at"]
    stored = {*seen}
    fresh = first_of(events, seen, window_s)
    changed = {event.event for event in fresh}
    for some in _chunks(changed & stored, IN_MAX):
        db.execute(f"DELETE FROM collected_events WHERE event IN ({', '.join([db.placeholder] * len(some))})", some)
    mark = db.placeholder
    kept_until = int(now + window_s) + 1
    db.execute_many(
        f"INSERT INTO collected_events (event, seen_at, kept_until) VALUES ({mark}, {mark}, {mark})",
        [(event, seen[event], kept_until) for event in sorted(changed)],
    )
    return fresh


def first_of(events: Sequence[Event], seen: dict[int, float], window_s: float) -> list[Event]:
    """Those that were not `seen` within the window around them, at what time; they are seen then. All if it is 0."""
    fresh = []
    for event in events:
        before = seen.get(event.event)
        if before is None or abs(event.time - before) >= window_s:
            fresh.append(event)
            seen[event.event] = event.time
    return fresh


def _prune_events(db: Dialect, now: float, rows_max: int) -> None:
    """Forget events whose window is over; MySQL takes no LIMIT in the subquery itself."""
    db.execute(
        "DELETE FROM collected_events WHERE event IN (SELECT event FROM (SELECT event FROM collected_events "
        f"WHERE kept_until < {db.placeholder} ORDER BY kept_until LIMIT {rows_max}) AS oldest)",
        (int(now),),
    )


def _delivered(results: Mapping[ResultKey, Sequence[int]], calendar: Calendar) -> dict[tuple[str, str], list[int]]:
    """Impressions and clicks by campaign and local day."""
    days = {hour: day_of(hour, calendar) for hour in {hour for hour, *_ in results}}
    delivered: dict[tuple[str, str], list[int]] = {}
    for (hour, _, campaign, *_), numbers in results.items():
        if numbers[IMPRESSIONS] or numbers[CLICKS]:
            sums = delivered.setdefault((campaign, days[hour]), [0, 0])
            sums[0] += numbers[IMPRESSIONS]
            sums[1] += numbers[CLICKS]
    return delivered


def day_of(hour: int, calendar: Calendar) -> str:
    """The local date, as the tables have it."""
    return date.fromordinal(calendar.moment(hour).day).isoformat()


def _add(
    db: Dialect,
    table: str,
    keys: Sequence[str],
    numbers: Sequence[str],
    rows: Iterable[tuple[tuple[int | str, ...], Sequence[int]]],
) -> None:
    """Add the numbers to the rows of these keys, which are made where they are missing."""
    columns = (*keys, *numbers)
    marks = ", ".join([db.placeholder] * len(columns))
    db.execute_many(
        f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks}) {db.adding(keys, numbers)}",
        [(*key, *sums) for key, sums in sorted(rows)],
    )


def _chunks(values: Iterable[int], size: int) -> Iterator[list[int]]:
    following = iter(values)
    while some := list(islice(following, size)):
        yield some


# Reading


class Span(NamedTuple):
    """Hours from `start` up to and without `end`, in epoch seconds."""

    start: int
    end: int


ALWAYS = Span(0, 1 << 60)


def read_results(db: Dialect, keys: Sequence[str], span: Span = ALWAYS, campaign: str | None = None) -> list[Sums]:
    """RESULT_NUMBERS summed up by these of RESULT_KEYS, in their order."""
    return _sums(db, "results", keys, RESULT_NUMBERS, span, {} if campaign is None else {"campaign": campaign})


def read_unfilled(db: Dialect, keys: Sequence[str], span: Span = ALWAYS) -> list[Sums]:
    """UNFILLED_NUMBERS summed up by these of UNFILLED_KEYS, in their order."""
    return _sums(db, "unfilled", keys, UNFILLED_NUMBERS, span, {})


def read_refusals(db: Dialect, campaign: str, first_day: str = "", last_day: str = "9999-12-31") -> dict[str, int]:
    """Why a campaign was not shown where it could have been: requests by reason, the most frequent first.

    Days are local dates, both included.
    """
    mark = db.placeholder
    rows = db.query(
        f"SELECT reason, SUM(requests) AS requests FROM refusals WHERE campaign = {mark} AND day >= {mark} "
        f"AND day <= {mark} GROUP BY reason ORDER BY requests DESC, reason",
        (campaign, first_day, last_day),
    )
    return {row["reason"]: int(row["requests"]) for row in rows}


def _sums(
    db: Dialect, table: str, keys: Sequence[str], numbers: Sequence[str], span: Span, wanted: Mapping[str, str]
) -> list[Sums]:
    mark = db.placeholder
    conditions = [f"hour >= {mark}", f"hour < {mark}", *(f"{name} = {mark}" for name in wanted)]
    grouping = f"GROUP BY {', '.join(keys)} ORDER BY {', '.join(keys)}" if keys else ""
    rows = db.query(
        f"SELECT {', '.join([*keys, *(f'SUM({number}) AS {number}' for number in numbers)])} FROM {table} "
        f"WHERE {' AND '.join(conditions)} {grouping}",
        (*span, *wanted.values()),
    )
    # Sums are NULL when there is no row at all, and decimals in MySQL.
    return [{**row, **{number: int(row[number] or 0) for number in numbers}} for row in rows]
