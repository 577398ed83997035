"""Why campaigns were not shown, as the collector counts it: against an independent count, and exactly once."""

import gzip
import random
from collections import Counter
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from adcore.core.adtable import AdTable, build_table
from adcore.core.calendar import Calendar
from adcore.core.decision import Decision, decide
from adcore.core.hindsight import explain_again
from adcore.core.reason import Reason
from adcore.deliverylog.record import FORMS, Answer, AnyRecord, Impression, Unfilled
from adcore.sources import Revision, Rows, open_store, results
from adcore.sources.archive import TableArchive
from adtools.collect import Collector
from adtools.refusals import SAMPLE, is_chosen
from adtools.tables import past_of
from tests.inventories import campaign, document, text_creative
from tests.tools.traffic import traffic

INVENTORY = document(
    campaign("a", weight=2),
    campaign("b", targeting={"devices": ["mobile"]}, weight=3),
    campaign("c", status="paused"),
    campaign("d", targeting={"countries": ["JP"]}, priority="sponsorship"),
    campaign("e", creatives=[text_creative("e-1", (728, 90))], targeting={"keywords_any": ["news"]}),
)
GENERATION = "g"


def answers(count: int, seed: int) -> list[AnyRecord]:
    """What `traffic` asked for, as the table answers it; views and clicks as they are."""
    built = build_table(INVENTORY, revision=1, generation=GENERATION)
    draw = random.Random(seed)
    records: list[AnyRecord] = []
    for record in traffic(count, seed):
        if not isinstance(record, Answer):
            records.append(record)
            continue
        fields: dict[str, Any] = {name: getattr(record, name) for name in Answer.__struct_fields__}
        fields |= {"generation": GENERATION, "excluded": draw.choice([{}, {}, {"a": "daily_cap"}])}
        past = past_of(Answer(**fields))
        found = decide(built, record.placement, past.facts, past.moment, record.id, held=typed(past.excluded))
        fields["excluded"] = {name: str(why) for name, why in found.excluded.items()}
        if isinstance(found, Decision):
            ad = found.ad
            records.append(Impression(**fields, campaign=ad.campaign.id, creative=ad.creative.id, chance=found.chance))
        else:
            records.append(Unfilled(**fields, reason=found.reason, reasons={}))
    return records


def typed(excluded: Any) -> dict[str, Reason]:
    return {name: Reason(why) for name, why in excluded.items()}


def count(records: list[AnyRecord], zone: str, built: AdTable | None = None) -> Counter[tuple[str, str, str, str]]:
    """The table, from what `explain` says of each."""
    built = built or build_table(INVENTORY, revision=1)
    counts: Counter[tuple[str, str, str, str]] = Counter()
    for record in records:
        if not isinstance(record, Answer) or record.ivt or int(record.id[-2:], 16) % SAMPLE:
            continue
        index = built.placements.get(record.placement)
        if index is None:  # made up, so nobody was a candidate
            continue
        day = datetime.fromtimestamp(record.time, ZoneInfo(zone)).date().isoformat()
        for candidate in explain_again(built, past_of(record)).candidates:
            name = candidate.campaign
            if name not in index.positions and name not in index.absent:
                continue
            if isinstance(record, Impression) and record.campaign == name:
                continue
            reason = candidate.reasons[0] if candidate.reasons else "lost_draw"
            counts[day, name, record.placement, reason] += SAMPLE
    return counts


def collect(folder: Path, archive: Path | None, zone: str = "UTC", stop_after: int | None = None) -> list[str]:
    said: list[str] = []
    asked = iter(range(10**9))
    with closing(open_store(f"sqlite:///{folder}/ads.db")) as store:
        store.migrate()
        collector = Collector(
            *([folder / "delivery.log"], store, Calendar(ZoneInfo(zone)), 3600.0, said.append),
            lambda seconds: stop_after is not None and next(asked) >= stop_after,
            archive,
        )
        with closing(collector):
            collector.run_once()
    return said


def stored(folder: Path) -> dict[tuple[str, str, str, str], int]:
    with closing(open_store(f"sqlite:///{folder}/ads.db")) as store:
        rows = store.run(lambda db: db.query("SELECT * FROM refusals"))
    return {(row["day"], row["campaign"], row["placement"], row["reason"]): row["requests"] for row in rows}


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    folder = tmp_path / "tables"
    TableArchive(folder, days=1, bytes_max=1 << 30).keep(Rows(Revision(GENERATION, 1, 1), INVENTORY))
    return folder


def encode(records: list[AnyRecord], form: str) -> bytes:
    return b"".join(map(FORMS[form].encode, records))


@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo"])
@pytest.mark.parametrize("form", sorted(FORMS))
def test_first_reasons_are_counted_by_day(tmp_path: Path, archive: Path, form: str, zone: str) -> None:
    old, new = answers(4000, 1), answers(4000, 2)
    (tmp_path / "delivery.log.1.gz").write_bytes(gzip.compress(encode(old, form)))
    # Damage and blank lines in between are the ways in which a batch is not decoded in one go.
    (tmp_path / "delivery.log").write_bytes(encode(new[:2000], form) + b"torn\n\n" + encode(new[2000:], form))
    collect(tmp_path, archive, zone)
    expected = count(old + new, zone)
    assert stored(tmp_path) == expected
    assert {reason for *_, reason in expected} >= {"paused", "device", "country", "daily_cap", "lower_priority"}
    with closing(open_store(f"sqlite:///{tmp_path}/ads.db")) as store:
        shown = store.run(lambda db: results.read_refusals(db, "b"))
        none = store.run(lambda db: results.read_refusals(db, "b", "2001-01-01", "2001-12-31"))
    of_b = Counter({reason: 0 for *_, reason in expected})
    for (_, name, _, reason), requests in expected.items():
        of_b[reason] += requests if name == "b" else 0
    assert shown == +of_b
    assert list(shown.values()) == sorted(shown.values(), reverse=True)
    assert none == {}


def test_each_is_counted_once_however_often_it_runs(tmp_path: Path, archive: Path) -> None:
    records = answers(6000, 3)
    log = tmp_path / "delivery.log"
    for start in range(0, 6000, 1500):
        with log.open("ab") as file:
            file.write(encode(records[start : start + 1500], "json"))
        collect(tmp_path, archive, stop_after=start // 1500)
        collect(tmp_path, archive)
    collect(tmp_path, archive)
    assert stored(tmp_path) == count(records, "UTC")


def test_without_its_table_nothing_is_made_up(tmp_path: Path) -> None:
    (tmp_path / "delivery.log").write_bytes(encode(answers(3000, 4), "msgpack"))
    said = collect(tmp_path, tmp_path / "nowhere")
    assert stored(tmp_path) == {}
    assert len([text for text in said if "has no revision 1 of the store g" in text]) == 1
    collect(tmp_path, None)


def test_the_sample_has_nothing_to_do_with_the_draw() -> None:
    draw = random.Random(5)
    ids = [f"{draw.getrandbits(128):032x}" for _ in range(50_000)]
    chosen = [name for name in ids if is_chosen(name)]
    assert 600 < len(chosen) < 960
    low = sum(int(name[:13], 16) < 1 << 51 for name in chosen)
    assert abs(low - len(chosen) / 2) < 4 * (len(chosen) / 4) ** 0.5
