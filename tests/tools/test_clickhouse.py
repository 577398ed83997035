"""tools/clickhouse: the same log gives the same results there as `adctl collect` counts into the store."""

import json
import subprocess
import sys
from collections import Counter
from contextlib import closing
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from adcore.core.calendar import Calendar
from adcore.deliverylog.record import FORMS, AnyRecord
from adcore.sources import open_store
from adcore.sources.results import RESULT_KEYS, RESULT_NUMBERS
from adcore.sources.sqlstore import split_statements
from adtools.collect import Collector
from tests.process import ROOT, environment
from tests.tools.traffic import START, asked_again, traffic

FOLDER = ROOT / "tools" / "clickhouse"
SCHEMA = split_statements((FOLDER / "schema.sql").read_text())
BY_KEY, UNFILLED = split_statements((FOLDER / "report.sql").read_text())
INSERT = "INSERT INTO delivery_log SELECT * FROM file({file:String}, 'JSONEachRow')"
KEYS = ("campaign", "placement", "creative", "device", "country", "day", "hour")

Rows = list[dict[str, Any]]
Statement = tuple[str, dict[str, object]]


def ask_clickhouse(*statements: Statement) -> list[Rows]:
    ran = subprocess.run(
        [sys.executable, "-m", "tests.tools.clickhouse"],
        input=json.dumps(statements),
        capture_output=True,
        text=True,
        env=environment(),
        cwd=ROOT,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    answers: list[Rows] = json.loads(ran.stdout)
    return answers


def insert(log: Path) -> Statement:
    return f"{INSERT} SETTINGS input_format_skip_unknown_fields = 1", {"file": str(log)}


def collected(folder: Path, zone: str, window_s: float) -> dict[str, Rows]:
    """The store's tables, from all logs of the folder."""
    url = f"sqlite:///{folder}/ads.db"
    with closing(open_store(url)) as store:
        store.migrate()
        logs = sorted(folder.glob("*.log"))
        collector = Collector(logs, store, Calendar(ZoneInfo(zone)), window_s, lambda text: None, lambda seconds: False)
        with closing(collector):
            collector.run_once()
        return {
            table: [dict(row) for row in store.run(lambda db, table=table: db.query(f"SELECT * FROM {table}"))]  # type: ignore[misc]
            for table in ("results", "unfilled")
        }


def sums(rows: Rows, keys: tuple[str, ...], numbers: tuple[str, ...]) -> Counter[tuple[str, ...]]:
    """Of each number, by the keys and the number's name, without zeros: ClickHouse quotes large integers."""
    found: Counter[tuple[str, ...]] = Counter()
    for row in rows:
        for number in numbers:
            found[(*(str(row[key]) for key in keys), number)] += int(row[number])
    return +found


def write(path: Path, records: list[AnyRecord]) -> Path:
    path.write_bytes(b"".join(map(FORMS["json"].encode, records)))
    return path


def with_some_asked_again(records: list[AnyRecord]) -> list[AnyRecord]:
    """Some answers have a second one, within their hour."""
    again = asked_again((record for record in records[::7] if record.time % 3600 < 3598), 1.5)
    assert len(again) > len(records) / 20
    return sorted([*records, *again], key=lambda record: record.time)


@pytest.mark.parametrize(
    ("zone", "window_s"),
    [("UTC", 3600.0), ("Asia/Tokyo", 600.0), ("Asia/Kolkata", 0.0), ("America/New_York", 86_400.0)],
)
def test_the_same_log_gives_the_same_report(tmp_path: Path, zone: str, window_s: float) -> None:
    hosts = [with_some_asked_again(traffic(1500, n, span_s=90_000.0, host=f"h{n}")) for n in range(2)]
    logs = [write(tmp_path / f"h{n}.log", records) for n, records in enumerate(hosts)]
    span: dict[str, object] = {"since": 0, "until": 4e9, "zone": zone}
    of_views = {**span, "window_s": window_s}
    schema: list[Statement] = [(statement, {}) for statement in SCHEMA]
    # The second log is sent twice, as a shipper does whose acknowledgement was lost.
    inserted = [insert(logs[0]), insert(logs[1]), insert(logs[1])]
    reports: list[Statement] = [(BY_KEY, {**of_views, "by": key}) for key in KEYS]
    whole: list[Statement] = [
        (
            "SELECT * FROM results(zone = {zone:String}, window_s = {window_s:Float64}, since = {since:Float64}, "
            "until = {until:Float64})",
            of_views,
        ),
        (UNFILLED, span),
    ]
    answers = ask_clickhouse(*schema, *inserted, *reports, *whole)[len(schema) + len(inserted) :]

    stored = collected(tmp_path, zone, window_s)
    assert sums(answers[-2], RESULT_KEYS, RESULT_NUMBERS) == sums(stored["results"], RESULT_KEYS, RESULT_NUMBERS)
    of_unfilled = (("placement", "reason"), ("requests", "ivt"))
    assert sums(answers[-1], *of_unfilled) == sums(stored["unfilled"], *of_unfilled)
    for row in stored["results"]:
        row["day"] = datetime.fromtimestamp(row["hour"], ZoneInfo(zone)).date().isoformat()
    for key, report in zip(KEYS, answers, strict=False):
        expected = sums(stored["results"], (key,), RESULT_NUMBERS)
        assert len(expected) > len(RESULT_NUMBERS)
        assert sums(report, ("key",), RESULT_NUMBERS) == expected, key


def test_a_span_cuts_nothing_out_of_the_middle_of_a_window(tmp_path: Path) -> None:
    """Hours that are asked for one by one give what all of them together give."""
    log = write(tmp_path / "h.log", traffic(1500, 7, span_s=4 * 3600.0))
    hours = [START + 3600 * n for n in range(5)]
    spans = [(hours[0], hours[4]), *pairwise(hours)]
    whole, *parts = ask_clickhouse(
        *((statement, {}) for statement in SCHEMA),
        insert(log),
        *(
            (BY_KEY, {"by": "campaign", "zone": "UTC", "window_s": 1200, "since": since, "until": until})
            for since, until in spans
        ),
    )[len(SCHEMA) + 1 :]
    together = sum((sums(part, ("key",), RESULT_NUMBERS) for part in parts), Counter())
    assert together == sums(whole, ("key",), RESULT_NUMBERS)


def test_a_key_that_there_is_not_is_named(tmp_path: Path) -> None:
    log = write(tmp_path / "h.log", traffic(10, 1))
    asked = (BY_KEY, {"by": "weather", "zone": "UTC", "window_s": 0, "since": 0, "until": 4e9})
    with pytest.raises(AssertionError, match="by is campaign, placement"):
        ask_clickhouse(*((statement, {}) for statement in SCHEMA), insert(log), asked)
