"""Both stores through one contract: what goes in comes out, all or nothing, and every change raises the revision."""

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from adcore.core.inventory import check_inventory, parse_inventory
from adcore.errors import ConfigError, SourceError
from adcore.sources import Store, open_store
from adcore.sources.mysql import parse_url
from adcore.sources.sqlstore import split_statements
from tests.inventories import campaign, document, text_creative
from tests.services import MariaDB

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
        text_creative("full-2", weight=3, data={"text": "漫画 ✨ 100% \\ 'quoted'", "title": "t"}),
        text_creative("full-1", (728, 90), format="html", data=None, html="<b>%s</b>" * 1000, landing_url=None),
        text_creative("full-3", format="native", data={"deep": {"list": [1, 2.5, None, True]}}),
        text_creative("full-4", format="image", data=None, image_url="https://img.example.net/1.png", alt="A & B"),
    ],
)


@pytest.fixture(params=["sqlite", "mariadb"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """An empty, migrated store."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path}/ads.db"
    else:
        url = request.getfixturevalue("mariadb").create("contract")
    opened = open_store(url)
    opened.migrate()
    yield opened
    opened.close()


def sql(store: Store, statement: str) -> None:
    """By other hands than ours."""
    if store.label.startswith("sqlite"):
        connection = sqlite3.connect(store.label.removeprefix("sqlite:///"))
        connection.execute(statement)
        connection.commit()
        connection.close()
    else:
        store.execute(statement)  # type: ignore[attr-defined]


def test_what_is_applied_is_loaded_again(store: Store) -> None:
    inventory = parse_inventory(document(FULL, campaign("b"), campaign("a")))
    store.apply(inventory)
    rows = store.load()
    assert parse_inventory(rows.document) == inventory
    assert rows.revision == rows.confirmed == store.revision().number > 0


def test_an_apply_makes_the_store_equal_to_the_file(store: Store) -> None:
    for campaigns in ([FULL, campaign("a")], [campaign("b"), FULL], [campaign("a", name="renamed")], []):
        inventory = parse_inventory(document(*campaigns))
        before = store.revision().number
        store.apply(inventory)
        assert parse_inventory(store.load().document) == inventory
        assert store.revision().number > before


def test_an_apply_that_changes_nothing_raises_no_revision(store: Store) -> None:
    inventory = parse_inventory(document(FULL))
    store.apply(inventory)
    before = store.revision()
    store.apply(inventory)
    assert store.revision() == before


def test_a_creative_may_move_to_another_campaign(store: Store) -> None:
    store.apply(parse_inventory(document(campaign("a"), campaign("b"))))
    moved = parse_inventory(
        document(campaign("a", creatives=[text_creative("x")]), campaign("b", creatives=[text_creative("a-1")]))
    )
    store.apply(moved)
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
    store.apply(parse_inventory(document(campaign("a"))))
    before = store.revision()
    sql(store, statement)
    after = store.revision()
    assert after.number > before.number
    assert after.confirmed == before.confirmed


def test_migrating_again_changes_nothing(store: Store) -> None:
    store.apply(parse_inventory(document(campaign("a"))))
    assert store.migrate() == []
    assert len(store.load().document["campaigns"]) == 1


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
    ("a control character", "UPDATE campaigns SET name = 'a\x01b' WHERE id = 'a'", "name"),
]


@pytest.mark.parametrize(("what", "statement", "field"), POISON, ids=[what for what, _, _ in POISON])
def test_a_bad_row_is_named_and_the_rest_is_good(store: Store, what: str, statement: str, field: str) -> None:
    store.apply(parse_inventory(document(campaign("a"), campaign("b"))))
    sql(store, statement)
    inventory, problems = check_inventory(store.load().document)
    assert [found.id for found in inventory.campaigns] == ["b"]
    assert any(field in problem.path and '"a' in problem.row for problem in problems), problems


def test_bad_utf8_is_named_and_the_rest_is_good(mariadb: MariaDB) -> None:
    store = open_store(mariadb.create("latin"))
    store.migrate()
    store.apply(parse_inventory(document(campaign("a"), campaign("b"))))
    # A client of another age: the column forgets its character set, so that it takes any bytes.
    store.execute("ALTER TABLE campaigns MODIFY name VARBINARY(200)")  # type: ignore[attr-defined]
    store.execute("UPDATE campaigns SET name = x'e9c3' WHERE id = 'a'")  # type: ignore[attr-defined]
    inventory, problems = check_inventory(store.load().document)
    assert [found.id for found in inventory.campaigns] == ["b"]
    assert [problem.path for problem in problems] == ["$.campaigns[0].name"]
    store.close()


def test_a_creative_without_its_campaign_is_named(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path}/ads.db")
    store.migrate()
    store.apply(parse_inventory(document(campaign("a"), campaign("b"))))
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
