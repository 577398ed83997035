"""`adctl report --check`: served = logged = counted, by type, or by how much not.

Served is what a running server says of itself since it started (with several workers, since the youngest did); logged
is what stands in the files, of that host and from then on. Counted is what the store has for the hours in the files;
a view or click that came again is not expected there, and what is still waiting for `adctl collect` neither.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from math import inf
from pathlib import Path
from typing import NamedTuple

import msgspec

from adcore.config import Config
from adcore.core.calendar import Calendar
from adcore.deliverylog.record import TYPES, Decoder, T
from adcore.errors import ConfigError
from adcore.sources import Store, results
from adcore.sources.results import RESULT_NUMBERS
from adtools.aggregate import COUNTED, Aggregator
from adtools.collect import StorePositions
from adtools.control import ask_host
from adtools.tail import MemoryPositions, Positions, Tail

# The log grows while it is read: a difference is one that is there again.
TRIES_MAX = 3
COLUMNS = (*RESULT_NUMBERS, "unfilled")


class Line(NamedTuple):
    """One comparison: what ought to be equal, by type or column."""

    name: str
    expected: dict[str, int]
    found: dict[str, int]
    note: str

    @property
    def differences(self) -> dict[str, int]:
        names = [*self.expected, *(name for name in self.found if name not in self.expected)]
        differences = {name: self.found.get(name, 0) - self.expected.get(name, 0) for name in names}
        return {name: difference for name, difference in differences.items() if difference}


def run(store: Store, files: Sequence[Path], config: Config, control: str | None, *, as_json: bool) -> int:
    """Print both comparisons; the exit status."""
    for path in files:
        if not Tail(path, MemoryPositions(), COUNTED).is_there():
            raise ConfigError(f"there is no file {path}, and none that was renamed from it")
    lines: list[Line] = []
    for _ in range(TRIES_MAX):
        lines = [*([compare_served(files, control)] if control else []), compare_counted(store, files, config)]
        if not any(line.differences for line in lines):
            break
    if as_json:
        print(
            msgspec.json.format(
                msgspec.json.encode([{**line._asdict(), "differences": line.differences} for line in lines]), indent=1
            ).decode()
        )
    else:
        for line in lines:
            print(f"{line.name}: {show(line)}{line.note}")
    if not control:
        print("adctl report: no --control, so what was served is not compared", file=sys.stderr)
    return 1 if any(line.differences for line in lines) else 0


def show(line: Line) -> str:
    total = sum(line.expected.values())
    if not line.differences:
        return f"equal, {total:,} records"
    parts = (f"{name} {difference:+,}" for name, difference in line.differences.items())
    return f"DIFFERENT, {total:,} records and {', '.join(parts)}"


class Stamp(msgspec.Struct, frozen=True, gc=False):
    """The fields of a record that say whether and as what a server counted it."""

    v: int
    type: str
    time: float
    host: str


STAMPS: Decoder[Stamp] = Decoder(Stamp)


def compare_served(files: Sequence[Path], control: str) -> Line:
    """Raises ControlError."""
    host = ask_host(control, "adctl-report")
    name = next(host.each("process", "host"))
    since = max(
        time - uptime
        for time, uptime in zip(host.each("process", "time"), host.each("process", "uptime_s"), strict=True)
    )
    logged: Counter[str] = Counter()
    positions = MemoryPositions()
    for path in files:
        for batch in read(path, positions, STAMPS):
            logged.update(record.type for record in batch if record.host == name and record.time >= since)
    dropped = sum(host.counts("log", "dropped").values())
    waiting = int(host.total("log", "waiting") or 0)
    notes = [
        f"since {since:.0f}",
        f"{waiting} wait to be logged" if waiting else "",
        f"{dropped} dropped" if dropped else "",
    ]
    if len(host.workers) > 1 or host.missing:
        notes.append("of several workers: exact only if all have run since then")
    served = {kind: count for kind, count in host.records().items() if kind in TYPES and count}
    return Line("served = logged", served, dict(logged), f" ({'; '.join(filter(None, notes))})")


def compare_counted(store: Store, files: Sequence[Path], config: Config) -> Line:
    """Raises SourceError and TailError."""
    positions = StorePositions(store)
    waiting = sum(len(batch) for path in files for batch in read(path, positions, COUNTED))
    # At once, before the collector goes on; reading the log takes longer.
    by_hour = store.run(lambda db: results.read_results(db, ("hour",)))
    unfilled = store.run(lambda db: results.read_unfilled(db, ("hour",)))
    logged, hours = count(files, positions.stored, Calendar(config.time_zone), config.click_window)
    found: Counter[str] = Counter()
    for row in (*by_hour, *({**row, "unfilled": row["requests"]} for row in unfilled)):
        if hours and min(hours) <= row["hour"] <= max(hours):
            found.update({name: row[name] for name in COLUMNS if name in row})
    expected, counted = ({name: one[name] for name in COLUMNS if one[name]} for one in (logged, found))
    return Line("logged = counted", expected, counted, f" ({waiting} wait to be counted)" if waiting else "")


def count(
    files: Sequence[Path], until: Callable[[str], float], calendar: Calendar, window_s: float
) -> tuple[Counter[str], set[int]]:
    """What the store should have by column, of what stands before these places of the files; and in which hours."""
    aggregator = Aggregator(calendar)
    positions = MemoryPositions()
    found: Counter[str] = Counter()
    hours: set[int] = set()
    seen: dict[int, float] = {}
    for path in files:
        for batch in read(path, positions, COUNTED, until):
            aggregator.add(batch)
            tally, aggregator.tally = aggregator.tally, results.Tally()
            hours.update(row[0] for row in tally.results)
            hours.update(row[0] for row in tally.unfilled)
            hours.update(event.row[0] for event in tally.events)
            for numbers in tally.results.values():
                found.update(dict(zip(RESULT_NUMBERS, numbers, strict=True)))
            for requests, ivt in tally.unfilled.values():
                found.update({"unfilled": requests, "ivt": ivt})
            found.update(RESULT_NUMBERS[event.column] for event in results.first_of(tally.events, seen, window_s))
    return found, hours


def read(
    path: Path, positions: Positions, decoder: Decoder[T], until: Callable[[str], float] = lambda identity: inf
) -> Iterator[list[T]]:
    """The batches of records behind the positions."""
    with closing(Tail(path, positions, decoder, until)) as tail:
        while (batch := tail.next()) is not None:
            yield batch.records
            tail.commit(batch)
