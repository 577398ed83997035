"""Both stores through one contract: what goes in comes out, all or nothing, and every change raises the revision."""

import json
import re
import signal
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from adcore.core.adtable import build_table
from adcore.core.calendar import Calendar
from adcore.core.inventory import Inventory, check_inventory, parse_inventory
from adcore.errors import ConfigError, SourceError
from adcore.sources import Revision, Rows, Store, open_store
from adcore.sources.codec import decode_rows, encode_rows
from adcore.sources.learning import learn
from adcore.sources.mysql import parse_url
from adcore.sources.sqlstore import migrations, split_statements
from tests.inventories import campaign, document, text_creative
from tests.process import ROOT
from tests.services import MariaDB
from tests.services import mariadb as mariadb_service

FULL = campaign(
    "full",
    priority="sponsorship",
    weight=7,
    status="paused",
    starts_at="2026-11-01T00:00:00+09:00",
    ends_at="2027-01-01T00:00:00Z",
    goal={"impressions": 100_000},
    daily_cap={"clicks": 5},
    pacing="even",
    optimize="ctr",
    frequency_cap={"impressions": 3, "seconds": 86400},
    targeting={
        "placements": ["side", "top"],
        "devices": ["mobile"],
        "countries": ["JP"],
        "keywords_any": ["漫画", "O'Reilly"],
        "hours": [0, 23],
        "key_values": {"section": ["manga", 'a"b']},
    },
    creatives=[
        text_creative("full-2", weight=3, data={"text": "漫画 ✨🎉 100% \\ 'quoted'", "title": "t"}),
        text_creative("full-1", (728, 90), format="html", data=None, html="<b>%s</b>" * 1000, landing_url=None),
        text_creative("full-3", format="native", data={"deep": {"list": [1, 2.5, None, True]}}),
        text_creative("full-4", format="image", data=None, image_url="https://img.example.net/1.png", alt="A & B"),
    ],
)


@pytest.fixture(params=["sqlite", "mariadb"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where there is nothing yet."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/ads.db"
    created: str = request.getfixturevalue("mariadb").create("contract")
    return created


@pytest.fixture
def store(url: str) -> Any:
    """An empty, migrated store."""
    opened = open_store(url)
    opened.migrate()
    yield opened
    opened.close()


def sql(store: Store, statement: str) -> None:
    """By other hands than ours."""
    if store.label.startswith("sqlite"):
        connection = sqlite3.connect(store.label.removeprefix("sqlite://"))
        connection.execute(statement)
        connection.commit()
        connection.close()
    else:
        store.execute(statement)  # type: ignore[attr-defined]


MIGRATIONS = [name for name, _ in migrations()]


def put(store: Store, inventory: Inventory) -> Revision:
    return store.apply(lambda there: inventory)


def test_what_is_applied_is_loaded_again(store: Store) -> None:
    inventory = parse_inventory(document(FULL, campaign("b"), campaign("a")))
    put(store, inventory)
    rows = store.load()
    assert parse_inventory(rows.document) == inventory
    assert rows.revision == store.revision()
    assert rows.revision.confirmed == rows.revision.number > 0


def test_an_apply_makes_the_store_equal_to_the_file(store: Store) -> None:
    for campaigns in ([FULL, campaign("a")], [campaign("b"), FULL], [campaign("a", name="renamed")], []):
        inventory = parse_inventory(document(*campaigns))
        before = store.revision().number
        put(store, inventory)
        assert parse_inventory(store.load().document) == inventory
        assert store.revision().number > before


def test_an_apply_that_changes_nothing_raises_no_revision(store: Store) -> None:
    inventory = parse_inventory(document(FULL))
    put(store, inventory)
    before = store.revision()
    put(store, inventory)
    assert store.revision() == before


def test_a_creative_may_move_to_another_campaign(store: Store) -> None:
    put(store, parse_inventory(document(campaign("a"), campaign("b"))))
    moved = parse_inventory(
        document(campaign("a", creatives=[text_creative("x")]), campaign("b", creatives=[text_creative("a-1")]))
    )
    put(store, moved)
    assert parse_inventory(store.load().document) == moved


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE campaigns SET weight = 5 WHERE id = 'a'",
        "DELETE FROM creatives WHERE id = 'a-1'",
        "INSERT INTO placements (id, width, height) VALUES ('new', 1, 1)",
        "UPDATE placements SET width = 9 WHERE id = 'top'",
    ],
)
def test_a_change_by_hand_raises_the_revision_and_is_not_confirmed(store: Store, statement: str) -> None:
    put(store, parse_inventory(document(campaign("a"))))
    before = store.revision()
    sql(store, statement)
    after = store.revision()
    assert after.number > before.number
    assert after.confirmed == before.confirmed


def test_a_number_given_again_is_gone_past_as_the_readme_says(store: Store) -> None:
    (statement,) = re.findall(r"^    (UPDATE revision SET .*)$", (ROOT / "README.rst").read_text(), re.MULTILINE)
    put(store, parse_inventory(document(campaign("a"))))
    lost = store.revision()
    sql(store, f"UPDATE revision SET revision = {lost.number - 1}, confirmed = {lost.number - 1}")
    sql(store, "UPDATE campaigns SET weight = 5 WHERE id = 'a'")
    assert store.revision().number == lost.number
    sql(store, statement)
    assert store.revision() == lost._replace(number=lost.number + 1000, confirmed=lost.number - 1)


def test_migrating_again_changes_nothing(store: Store) -> None:
    put(store, parse_inventory(document(campaign("a"))))
    assert store.migrate() == []
    assert len(store.load().document["campaigns"]) == 1


TEXT = '{"text":"Buy one","n":%s}'
SURROGATE = r'"\ud800"'


def literal(text: str) -> str:
    """A text literal that no dialect takes escapes from."""
    return f"CAST(x'{text.encode().hex()}' AS CHAR)"


POISON: list[tuple[str, str, str]] = [
    (
        "a URL that is no URL",
        "UPDATE creatives SET landing_url = 'javascript:alert(1)' WHERE id = 'a-1'",
        "landing_url",
    ),
    (
        "a line break in a URL",
        "UPDATE creatives SET landing_url = 'https://a/\r\nX: y' WHERE id = 'a-1'",
        "landing_url",
    ),
    ("a negative weight", "UPDATE creatives SET weight = -1 WHERE id = 'a-1'", "weight"),
    ("JSON that is none", "UPDATE creatives SET data = '{' WHERE id = 'a-1'", "data"),
    ("a NULL", "UPDATE creatives SET landing_url = NULL WHERE id = 'a-1'", "landing_url"),
    ("a format that is none", "UPDATE creatives SET format = 'flash' WHERE id = 'a-1'", "format"),
    ("targeting that is no JSON", "UPDATE campaigns SET targeting = 'mobile' WHERE id = 'a'", "targeting"),
    ("a date that is none", "UPDATE campaigns SET starts_at = 'soon' WHERE id = 'a'", "starts_at"),
    ("a priority that is none", "UPDATE campaigns SET priority = 'high' WHERE id = 'a'", "priority"),
    ("an integer past 64 bits", f"UPDATE creatives SET data = {literal(TEXT % 10**29)} WHERE id = 'a-1'", "data"),
    ("half a surrogate pair", f"UPDATE creatives SET data = {literal(TEXT % SURROGATE)} WHERE id = 'a-1'", "data"),
    ("one in targeting", f"UPDATE campaigns SET targeting = {literal(f'[{SURROGATE}]')} WHERE id = 'a'", "targeting"),
    ("a control character", "UPDATE campaigns SET name = 'a\x01b' WHERE id = 'a'", "name"),
]


@pytest.mark.parametrize(("what", "statement", "field"), POISON, ids=[what for what, _, _ in POISON])
def test_a_bad_row_is_named_and_the_rest_is_good(store: Store, what: str, statement: str, field: str) -> None:
    put(store, parse_inventory(document(campaign("a"), campaign("b"))))
    sql(store, statement)
    rows = store.load()
    inventory, problems = check_inventory(rows.document)
    assert [found.id for found in inventory.campaigns] == ["b"]
    assert any(field in problem.path and '"a' in problem.row for problem in problems), problems
    assert decode_rows(encode_rows(rows)) == rows
    json.dumps(rows.document)


def test_bad_utf8_is_named_and_the_rest_is_good(mariadb: MariaDB) -> None:
    store = open_store(mariadb.create("latin"))
    store.migrate()
    put(store, parse_inventory(document(campaign("a"), campaign("b"))))
    # A client of another age: the column forgets its character set, so that it takes any bytes.
    store.execute("ALTER TABLE campaigns MODIFY name VARBINARY(200)")  # type: ignore[attr-defined]
    store.execute("UPDATE campaigns SET name = x'e9c3' WHERE id = 'a'")  # type: ignore[attr-defined]
    inventory, problems = check_inventory(store.load().document)
    assert [found.id for found in inventory.campaigns] == ["b"]
    assert [problem.path for problem in problems] == ["$.campaigns[0].name"]
    store.close()


def test_bytes_in_sqlite_are_named_and_the_rest_is_good(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path}/ads.db")
    put(store, parse_inventory(document(campaign("a"), campaign("b"), campaign("c"))))
    sql(store, "UPDATE campaigns SET name = x'e9c3' WHERE id = 'a'")
    sql(store, "UPDATE campaigns SET name = CAST(x'e9c3' AS TEXT) WHERE id = 'b'")
    inventory, problems = check_inventory(store.load().document)
    assert [found.id for found in inventory.campaigns] == ["c"]
    assert [problem.path for problem in problems] == ["$.campaigns[0].name", "$.campaigns[1].name"]
    store.close()


def test_a_failed_apply_changes_nothing(store: Store) -> None:
    before = parse_inventory(document(campaign("a"), campaign("b")))
    put(store, before)
    revision = store.revision()
    # The last table to be written refuses the last row, as a full disk might.
    raises = "RAISE(ABORT, 'no')" if store.label.startswith("sqlite") else None
    refuse = f"SELECT {raises}" if raises else "SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'no'"
    sql(store, f"CREATE TRIGGER refusing BEFORE UPDATE ON revision FOR EACH ROW BEGIN {refuse}; END")
    with pytest.raises(SourceError, match="no"):
        put(store, parse_inventory(document(campaign("b", name="changed"), campaign("new"))))
    sql(store, "DROP TRIGGER refusing")
    assert parse_inventory(store.load().document) == before
    assert store.revision() == revision

    def fail(there: Rows) -> Inventory:
        raise LookupError

    with pytest.raises(LookupError):
        store.apply(fail)
    put(store, before)
    assert store.revision() == revision


def test_applies_at_once_come_one_after_the_other(store: Store, url: str) -> None:
    """Each adds a campaign to what is there, as `adctl apply --keep` does."""
    put(store, parse_inventory(document()))

    def add(name: str) -> None:
        own = open_store(url)
        own.apply(lambda there: parse_inventory(document(*there.document["campaigns"], campaign(name))))
        own.close()

    names = [f"c{n}" for n in range(12)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(add, names))
    assert sorted(found["id"] for found in store.load().document["campaigns"]) == sorted(names)
    assert store.revision().confirmed == store.revision().number


def test_migrations_at_once_are_one_migration(url: str) -> None:
    def migrate(_: int) -> list[str]:
        own = open_store(url)
        applied = own.migrate()
        own.close()
        return applied

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(migrate, range(8))) == [[]] * 7 + [MIGRATIONS]


def test_a_store_without_its_rows_says_how_to_put_them_back(store: Store) -> None:
    put(store, parse_inventory(document()))
    for table in ("store", "revision"):
        sql(store, f"DELETE FROM {table}")
        with pytest.raises(SourceError, match=f"INSERT INTO {table}"):
            store.revision()


def test_a_store_of_an_older_version_is_brought_up_to_date(store: Store, url: str) -> None:
    before = put(store, parse_inventory(document(campaign("a"))))
    sql(store, "DROP TABLE store")
    sql(store, "DELETE FROM schema_migrations WHERE name = '0002_store'")
    store.close()
    later = open_store(url)
    if url.startswith("mysql"):
        with pytest.raises(SourceError, match="run adctl migrate"):
            later.revision()
        assert later.migrate() == ["0002_store"]
    assert later.revision().number == before.number
    assert [found["id"] for found in later.load().document["campaigns"]] == ["a"]
    later.close()


def test_every_store_is_told_from_every_other(tmp_path: Path) -> None:
    revisions = []
    for name in ("a", "b"):
        store = open_store(f"sqlite:///{tmp_path}/{name}.db")
        revisions.append(put(store, parse_inventory(document())))
        assert store.revision() == revisions[-1]
        store.close()
    assert revisions[0].number == revisions[1].number
    assert revisions[0].generation != revisions[1].generation


def test_a_migration_that_failed_half_way_is_finished(mariadb: MariaDB) -> None:
    """MySQL cannot take back a CREATE."""
    store = open_store(mariadb.create("half"))
    mariadb.sql("CREATE TABLE half.creatives (id INTEGER)")  # the triggers of these columns cannot be made
    mariadb.sql("CREATE VIEW half.placements AS SELECT 1 AS id")  # a trigger on a view cannot either
    with pytest.raises(SourceError, match="placements"):
        store.migrate()
    mariadb.sql("DROP VIEW half.placements")
    mariadb.sql("DROP TABLE half.creatives")
    assert store.migrate() == MIGRATIONS
    put(store, parse_inventory(document(campaign("a"))))
    assert store.revision().number > 0
    store.close()


def test_whoever_only_looks_makes_no_store(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path}/ads.db")
    for look in (store.revision, store.load):
        with pytest.raises(SourceError, match="adctl apply makes a new store"):
            look()
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_was_replaced_is_read_and_one_that_is_gone_is_missed(tmp_path: Path) -> None:
    path = tmp_path / "ads.db"
    store, other = open_store(f"sqlite:///{path}"), open_store(f"sqlite:///{tmp_path}/other.db")
    put(store, parse_inventory(document(campaign("old"))))
    put(other, parse_inventory(document(campaign("new"))))
    other.close()
    before = store.revision()
    for leftover in tmp_path.glob("ads.db*"):
        leftover.unlink()
    with pytest.raises(SourceError, match="No such file"):
        store.revision()
    (tmp_path / "other.db").rename(path)
    assert store.revision().generation != before.generation
    assert [found["id"] for found in store.load().document["campaigns"]] == ["new"]
    store.close()


def test_readers_do_not_wait_for_a_writer(tmp_path: Path) -> None:
    store, writer = (open_store(f"sqlite:///{tmp_path}/ads.db") for _ in range(2))
    put(store, parse_inventory(document(campaign("a"))))

    def look(there: Rows) -> Inventory:
        assert store.load() == there
        assert store.revision() == there.revision
        return parse_inventory(document(campaign("b")))

    writer.apply(look)
    assert [found["id"] for found in store.load().document["campaigns"]] == ["b"]
    store.close()
    writer.close()


def test_a_creative_without_its_campaign_is_named(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path}/ads.db")
    store.migrate()
    put(store, parse_inventory(document(campaign("a"), campaign("b"))))
    # sqlite3's own shell does not enforce foreign keys.
    sql(store, "UPDATE creatives SET campaign = 'gone' WHERE id = 'a-1'")
    sql(store, "DELETE FROM campaigns WHERE id = 'a'")
    inventory, problems = check_inventory(store.load().document)
    assert [found.id for found in inventory.campaigns] == ["b"]
    assert any("gone" in problem.row for problem in problems)
    store.close()


def test_mysql_reconnects_after_its_connection_was_cut(mariadb: MariaDB) -> None:
    store = open_store(mariadb.create("cut"))
    store.migrate()
    (row,) = store.query("SELECT CONNECTION_ID() AS id")  # type: ignore[attr-defined]
    mariadb.sql(f"KILL {row['id']}")
    with pytest.raises(SourceError, match=r"mysql://root@/cut\?unix_socket="):
        store.revision()
    assert store.revision().number == 0
    store.close()


def test_a_mysql_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CONNECT_TIMEOUT_S", "READ_TIMEOUT_S"):
        monkeypatch.setattr(f"adcore.sources.mysql.{name}", 1)
    with mariadb_service(tmp_path) as service:
        url = service.create("hung")
        connected, fresh = open_store(url), open_store(url)
        connected.migrate()
        service.signal(signal.SIGSTOP)
        for store in (connected, fresh):
            with pytest.raises(SourceError, match="mysql://root@/hung"):
                store.revision()
        service.signal(signal.SIGCONT)
        assert connected.revision().number == 0


def test_mysql_takes_one_statement_at_a_time(mariadb: MariaDB) -> None:
    store = open_store(mariadb.create("several"))
    with pytest.raises(Exception, match="error in your SQL syntax"):
        store.query("SELECT 1 AS a; DROP DATABASE several")  # type: ignore[attr-defined]
    store.close()


def test_sqlite_holds_references_and_lets_readers_be(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path}/ads.db")
    store.migrate()
    assert store.query("PRAGMA foreign_keys") == [{"foreign_keys": 1}]  # type: ignore[attr-defined]
    assert store.query("PRAGMA journal_mode") == [{"journal_mode": "wal"}]  # type: ignore[attr-defined]
    store.close()


def test_a_missing_alt_is_an_empty_one(store: Store) -> None:
    put(store, parse_inventory(document(campaign("a"))))
    sql(store, "UPDATE creatives SET alt = NULL")
    (found,) = parse_inventory(store.load().document).campaigns
    assert found.creatives[0].alt == ""


def test_a_missing_table_says_what_to_run(mariadb: MariaDB) -> None:
    store = open_store(mariadb.create("bare"))
    with pytest.raises(SourceError, match="adctl migrate"):
        store.load()
    store.close()


def test_a_store_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="there is no directory"):
        open_store(f"sqlite:///{tmp_path}/nowhere/ads.db").revision()
    not_sqlite = tmp_path / "text"
    not_sqlite.write_text("this is no database, however often it is opened" * 100)
    with pytest.raises(SourceError, match="not a database"):
        open_store(f"sqlite:///{not_sqlite}").revision()
    with pytest.raises(SourceError, match="mysql://u@/d"):
        open_store(f"mysql://u:secret@/d?unix_socket={tmp_path}/none").revision()


@pytest.mark.parametrize(
    ("url", "label"),
    [
        ("mysql://user:p%40ss@host:3307/db", "mysql://user@host:3307/db"),
        ("mysql://user@host/db", "mysql://user@host/db"),
        ("mysql://user@/db?unix_socket=/run/m.sock", "mysql://user@/db?unix_socket=/run/m.sock"),
        ("mysql://user:secret@[::1]/db", "mysql://user@[::1]/db"),
    ],
)
def test_a_label_shows_no_password(url: str, label: str) -> None:
    arguments, shown = parse_url(url)
    assert shown == label
    assert arguments["user"] == "user"
    if "p%40ss" in url:
        assert (arguments["passwd"], arguments["port"]) == ("p@ss", 3307)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("mysql://user@host", "names no database"),
        ("mysql://user@/db", "name a host"),
        ("mysql://user@host/db?unix_socket=/x", "name a host"),
        ("mysql://user@host/db?charset=latin1", "charset is no option"),
        ("mysql://user@host:port/db", "port"),
        ("postgres://user@host/db", "--source must be"),
    ],
)
def test_a_bad_url_names_the_part(url: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_store(url)


def test_a_script_is_split_at_its_statements() -> None:
    script = "-- a; comment\nCREATE TABLE a (\n  b TEXT\n);\n\nCREATE TRIGGER c\nBEGIN\n  UPDATE a;\nEND;\nINSERT 1;\n"
    assert split_statements(script) == [
        "CREATE TABLE a (\n  b TEXT\n)",
        "CREATE TRIGGER c\nBEGIN\n  UPDATE a;\nEND",
        "INSERT 1",
    ]
    with pytest.raises(ValueError, match="within a statement"):
        split_statements("CREATE TABLE a (")


def test_what_was_collected_is_summed_over_days(store: Store) -> None:
    rows = [("a", "2026-11-01", 5, 1), ("a", "2026-11-02", 7, 0), ("b", "2026-11-01", 2, 2), ("A", "2026-11-02", 9, 9)]
    for campaign_id, day, impressions, clicks in rows:
        sql(
            store,
            "INSERT INTO delivered (campaign, day, impressions, clicks) "
            f"VALUES ('{campaign_id}', '{day}', {impressions}, {clicks})",
        )
    many = [f"c{number}" for number in range(1200)]
    assert store.delivered([*many, "a", "b"], "2026-11-02") == {"a": (12, 1, 7, 0), "b": (2, 2, 0, 0)}
    assert store.delivered(["a"], "2026-11-03") == {"a": (12, 1, 0, 0)}
    assert store.delivered([], "2026-11-02") == {}


def test_results_that_make_no_sense_fit_into_a_counter(store: Store) -> None:
    for day, impressions in (("2026-11-01", 1 << 61), ("2026-11-02", -5)):
        sql(
            store,
            f"INSERT INTO delivered (campaign, day, impressions, clicks) VALUES ('a', '{day}', {impressions}, -1)",
        )
    assert store.delivered(["a"], "2026-11-02") == {"a": (1 << 53, 0, 0, 0)}


# What was learned

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC).timestamp()
UTC_CALENDAR = Calendar(UTC)


def put_results(
    store: Store, placement: str, creative: str, requests_by_hour: Callable[[int], int], **counts: int
) -> None:
    """A week of results, up to NOW, and as many requests again that got nothing."""
    rows, unfilled = [], []
    for hour in range(int(NOW) - 7 * 86_400, int(NOW), 3600):
        impressions = requests_by_hour(hour // 3600 % 24)
        numbers = f"{impressions}, {counts.get('views', 0)}, {counts.get('clicks', 0)}, 5"
        rows.append(f"({hour}, '{placement}', 'c', '{creative}', 'mobile', 'JP', {numbers})")
        unfilled.append(f"({hour}, '{placement}', 'ended', {impressions}, 3)")
    sql(store, f"INSERT INTO results VALUES {', '.join(rows)}")
    sql(store, f"INSERT INTO unfilled VALUES {', '.join(unfilled)}")


def test_traffic_is_learned_hour_by_hour_from_results(store: Store) -> None:
    put(store, parse_inventory(document(campaign("a"))))
    put_results(store, "side", "a-1", lambda hour: 100 if hour == 20 else 10)
    put_results(store, "unknown", "a-1", lambda hour: 1)
    lesson = store.run(lambda db: learn(db, NOW, UTC_CALENDAR))
    assert (lesson.placements, lesson.creatives, lesson.written) == (["side"], [], ["side"])
    assert lesson.revision == store.revision().number
    learned = store.load().document["learned"]
    assert list(learned) == ["traffic", "creatives"]
    assert learned["traffic"]["side"][:24] == [20.0] * 20 + [200.0] + [20.0] * 3


def test_only_what_changed_by_enough_is_written(store: Store) -> None:
    before = put(store, parse_inventory(document(campaign("a", optimize="ctr"))))
    put_results(store, "side", "a-1", lambda hour: 100, clicks=1)
    first = store.run(lambda db: learn(db, NOW, UTC_CALENDAR))
    assert first.written == ["side", "a-1"]
    assert store.revision().confirmed == first.revision > before.number
    assert store.run(lambda db: learn(db, NOW, UTC_CALENDAR)).written == []
    sql(store, f"UPDATE results SET impressions = impressions + 1 WHERE hour = {int(NOW) - 3600}")
    again = store.run(lambda db: learn(db, NOW, UTC_CALENDAR))
    assert (again.written, again.revision) == ([], first.revision)
    sql(store, "UPDATE results SET impressions = impressions * 2")
    assert store.run(lambda db: learn(db, NOW, UTC_CALENDAR)).written == ["side", "a-1"]
    sql(store, "DELETE FROM results")
    sql(store, "DELETE FROM unfilled")
    assert store.run(lambda db: learn(db, NOW, UTC_CALENDAR)).written == ["side", "a-1"]
    assert "learned" not in store.load().document


def test_clicks_are_learned_per_view_where_views_are_reported(store: Store) -> None:
    both = [text_creative("seen"), text_creative("unseen")]
    alone = [text_creative("no-tag"), text_creative("never-shown")]
    put(
        store,
        parse_inventory(
            document(
                campaign("tag", optimize="ctr", creatives=both),
                campaign("plain", optimize="ctr", creatives=alone),
                campaign("not", creatives=[text_creative("not-1")]),
            )
        ),
    )
    put_results(store, "side", "seen", lambda hour: 10, views=5, clicks=1)
    for placement, creative in (("foot", "unseen"), ("top", "no-tag"), ("x", "not-1")):
        put_results(store, placement, creative, lambda hour: 10, clicks=2)
    store.run(lambda db: learn(db, NOW, UTC_CALENDAR))
    assert store.load().document["learned"]["creatives"] == {
        "no-tag": [1680, 336],
        "seen": [840, 168],
        "unseen": [0, 336],
    }


def test_an_apply_leaves_alone_what_was_learned(store: Store) -> None:
    put(store, parse_inventory(document(campaign("a", optimize="ctr"))))
    put_results(store, "side", "a-1", lambda hour: 10, clicks=1)
    store.run(lambda db: learn(db, NOW, UTC_CALENDAR))
    learned = store.load().document["learned"]
    put(store, parse_inventory(document(campaign("b"))))
    assert store.load().document["learned"] == learned


@pytest.mark.parametrize(
    ("statement", "path"),
    [
        ("INSERT INTO placement_traffic VALUES ('side', '[1, 2]')", "$.learned.traffic.'side'"),
        ("INSERT INTO placement_traffic VALUES ('side', 'none')", "$.learned.traffic.'side'"),
        ("INSERT INTO creative_results VALUES ('a-1', -1, 0)", "$.learned.creatives.'a-1'"),
    ],
)
def test_what_was_learned_can_be_bad_and_is_named(store: Store, statement: str, path: str) -> None:
    put(store, parse_inventory(document(campaign("a"))))
    before = store.revision().number
    sql(store, statement)
    assert store.revision().number > before
    table = build_table(store.load().document, revision=1)
    assert [problem.path for problem in table.rejected] == [path]
    assert list(table.campaigns) == ["a"]
