"""The inventory in SQL tables, the same for SQLite and MySQL: rows <-> the document, and migrations.

A dialect (sqlite.py, mysql.py) offers one connection and its placeholder; what is asked of it stands here once. Nothing
here judges a row: one that is bad (by other hands, in SQL) becomes a bad part of the document, and is named when that
is checked.
"""

import json
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from importlib import resources
from typing import Annotated, Any, Protocol

import msgspec

from adcore.core.inventory import Inventory, to_document
from adcore.core.learned import Learned, read_learned
from adcore.errors import SourceError
from adcore.sources import Revision, Rows

Row = Mapping[str, Any]

_REVISION = ("generation", "revision", "confirmed")
_Number = Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]

_LIMITS = ("goal_impressions", "goal_clicks", "daily_cap_impressions", "daily_cap_clicks")
COLUMNS = {
    "advertisers": ("name",),
    "placements": ("id", "position", "width", "height", "formats"),
    "campaigns": (
        *("id", "position", "name", "advertiser", "priority", "weight", "status", "starts_at", "ends_at"),
        *_LIMITS,
        *("pacing", "frequency_cap_impressions", "frequency_cap_seconds", "targeting", "optimize_for"),
    ),
    "creatives": (
        *("id", "campaign", "position", "width", "height", "format", "weight", "image_url", "alt", "html"),
        *("data", "landing_url"),
    ),
}
_KEY = {"advertisers": "name", "placements": "id", "campaigns": "id", "creatives": "id"}
# Referenced rows are put in first and taken out last.
_ORDER = ("advertisers", "placements", "campaigns", "creatives")


class Dialect(Protocol):
    """One connection to a database. Failures are the driver's own errors; the stores make SourceErrors of them."""

    label: str
    placeholder: str

    def reading(self) -> AbstractContextManager[None]:
        """One state of the database for all that is read in it."""

    def writing(self) -> AbstractContextManager[None]:
        """A transaction, all or nothing, that nobody else's change comes between."""

    def migrating(self) -> AbstractContextManager[None]:
        """As long as it lasts nobody else migrates."""

    def has_table(self, name: str) -> bool: ...

    def query(self, sql: str, values: Sequence[Any] = ()) -> list[Row]: ...

    def execute(self, sql: str, values: Sequence[Any] = ()) -> None: ...

    def execute_many(self, sql: str, rows: Sequence[Sequence[Any]]) -> None:
        """The same for each row, in one go."""

    def adding(self, keys: Sequence[str], numbers: Sequence[str]) -> str:
        """The end of an INSERT that adds to the numbers of a row with these keys if there is one."""


def migrations() -> Iterator[tuple[str, list[str]]]:
    """(name, statements) of each numbered file, in order."""
    folder = resources.files("adcore.sources").joinpath("migrations")
    for file in sorted(folder.iterdir(), key=lambda file: file.name):
        if file.name.endswith(".sql"):
            yield file.name.removesuffix(".sql"), split_statements(file.read_text("utf-8"))


def split_statements(script: str) -> list[str]:
    """The statements of a migration: each ends with a semicolon at the end of a line, a trigger with its END;"""
    statements: list[str] = []
    lines: list[str] = []
    for line in script.splitlines():
        if not lines and (not line.strip() or line.startswith("--")):
            continue
        lines.append(line)
        within_trigger = lines[0].startswith("CREATE TRIGGER") and line != "END;"
        if line.endswith(";") and not within_trigger:
            statements.append("\n".join(lines).removesuffix(";"))
            lines = []
    if lines:
        raise ValueError(f"a migration ends within a statement: {lines[0]}")
    return statements


def migrate(db: Dialect) -> list[str]:
    """Apply what the store does not have yet; the names of what was applied.

    MySQL ends a transaction with every CREATE, so a migration that failed half-way is run again from its start: each
    statement in it does nothing where its work is done.
    """
    if not _pending(db):
        return []
    applied = []
    with db.migrating():
        db.execute("CREATE TABLE IF NOT EXISTS schema_migrations (name VARCHAR(64) NOT NULL PRIMARY KEY)")
        for name, statements in _pending(db):
            for statement in statements:
                db.execute(statement)
            db.execute(f"INSERT INTO schema_migrations (name) VALUES ({db.placeholder})", (name,))
            applied.append(name)
        if not db.query("SELECT generation FROM store"):
            db.execute(f"INSERT INTO store (generation) VALUES ({db.placeholder})", (secrets.token_hex(8),))
    return applied


def _pending(db: Dialect) -> list[tuple[str, list[str]]]:
    done: set[str] = set()
    if db.has_table("schema_migrations"):
        done = {row["name"] for row in db.query("SELECT name FROM schema_migrations")}
    return [(name, statements) for name, statements in migrations() if name not in done]


def read_revision(db: Dialect, suffix: str = "") -> Revision:
    rows = db.query(
        "SELECT store.generation, revision.revision, revision.confirmed "
        f"FROM store, revision WHERE revision.id = 1{suffix}"
    )
    if not rows:
        raise SourceError(
            f"{db.label}: the tables store and revision must have a row each: INSERT INTO store (generation) "
            "VALUES ('NEW'); INSERT INTO revision (id, revision, confirmed) VALUES (1, 1, 0)"
        )
    try:
        return Revision(*msgspec.convert([rows[0][name] for name in _REVISION], tuple[str, _Number, _Number]))
    except msgspec.ValidationError as error:
        raise SourceError(f"{db.label}: the tables store and revision hold what is no revision: {error}") from None


def read_rows(db: Dialect) -> Rows:
    """Everything, at one revision."""
    with db.reading():
        return _read_rows(db)


def _read_rows(db: Dialect) -> Rows:
    revision = read_revision(db)
    placements = db.query("SELECT * FROM placements ORDER BY position, id")
    campaigns = db.query("SELECT * FROM campaigns ORDER BY position, id")
    creatives = db.query("SELECT * FROM creatives ORDER BY position, id")
    of_campaign: dict[str, list[dict[str, Any]]] = {}
    for row in creatives:
        of_campaign.setdefault(row["campaign"], []).append(creative_object(row))
    objects = [campaign_object(row, of_campaign.pop(row["id"], [])) for row in campaigns]
    # A creative without its campaign (foreign keys switched off) is named as part of a campaign that is not there.
    objects += [{"id": campaign, "creatives": orphans} for campaign, orphans in of_campaign.items()]
    document: dict[str, Any] = {"placements": [placement_object(row) for row in placements], "campaigns": objects}
    learned = _learned_object(db)
    if any(learned.values()):
        document["learned"] = learned
    return Rows(revision, document)


def read_learned_rows(db: Dialect) -> Learned:
    """What was learned, without the rows that are bad."""
    return read_learned({"learned": _learned_object(db)})[0]


def _learned_object(db: Dialect) -> dict[str, dict[str, Any]]:
    traffic = db.query("SELECT * FROM placement_traffic ORDER BY placement")
    creatives = db.query("SELECT * FROM creative_results ORDER BY creative")
    return {
        "traffic": {row["placement"]: _from_json(row["requests"]) for row in traffic},
        "creatives": {row["creative"]: [row["shown"], row["clicks"]] for row in creatives},
    }


def write_inventory(db: Dialect, choose: Callable[[Rows], Inventory]) -> Revision:
    """Make the tables equal to the inventory chosen, touching only rows that differ; confirm the new revision."""
    with db.writing():
        wanted = wanted_rows(to_document(choose(_read_rows(db))))
        stored = {
            table: {
                row[_KEY[table]]: tuple(row[column] for column in columns) for row in db.query(f"SELECT * FROM {table}")
            }
            for table, columns in COLUMNS.items()
        }
        for table in _ORDER:
            _put_rows(db, table, wanted[table], stored[table])
        for table in reversed(_ORDER):
            key = _KEY[table]
            for gone in stored[table].keys() - wanted[table].keys():
                db.execute(f"DELETE FROM {table} WHERE {key} = {db.placeholder}", (gone,))
        db.execute("UPDATE revision SET confirmed = revision WHERE id = 1")
        return read_revision(db)


def _put_rows(
    db: Dialect, table: str, wanted: Mapping[str, tuple[Any, ...]], stored: Mapping[str, tuple[Any, ...]]
) -> None:
    columns, key, mark = COLUMNS[table], _KEY[table], db.placeholder
    for name, values in wanted.items():
        if name not in stored:
            marks = ", ".join([mark] * len(columns))
            db.execute(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})", values)
        elif stored[name] != values:
            sets = ", ".join(f"{column} = {mark}" for column in columns)
            db.execute(f"UPDATE {table} SET {sets} WHERE {key} = {mark}", (*values, name))


def wanted_rows(document: dict[str, Any]) -> dict[str, dict[str, tuple[Any, ...]]]:
    """{table: {key: values of its columns, in the order of COLUMNS}} of a valid document."""
    rows: dict[str, dict[str, tuple[Any, ...]]] = {table: {} for table in _ORDER}
    for position, placement in enumerate(document["placements"]):
        rows["placements"][placement["id"]] = _values(
            "placements", {**placement, "position": position, "formats": _to_json(placement["formats"])}
        )
    for position, campaign in enumerate(document["campaigns"]):
        rows["advertisers"][campaign["advertiser"]] = (campaign["advertiser"],)
        flat = {**campaign, "position": position, "targeting": _to_json(campaign["targeting"])}
        flat["optimize_for"] = campaign["optimize"]  # which alone is a word of MySQL's
        for group in ("goal", "daily_cap", "frequency_cap"):
            for name, value in (campaign[group] or {}).items():
                flat[f"{group}_{name}"] = value
        rows["campaigns"][campaign["id"]] = _values("campaigns", flat)
        for creative_position, creative in enumerate(campaign["creatives"]):
            width, height = creative["placement_size"]
            rows["creatives"][creative["id"]] = _values(
                "creatives",
                {
                    **creative,
                    "campaign": campaign["id"],
                    "position": creative_position,
                    "width": width,
                    "height": height,
                    "data": None if creative["data"] is None else _to_json(creative["data"]),
                },
            )
    return rows


def _values(table: str, fields: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(fields.get(column) for column in COLUMNS[table])


def placement_object(row: Row) -> dict[str, Any]:
    placement = {"id": row["id"], "width": row["width"], "height": row["height"]}
    if row["formats"] is not None:
        placement["formats"] = _from_json(row["formats"])
    return placement


def campaign_object(row: Row, creatives: list[dict[str, Any]]) -> dict[str, Any]:
    names = ("id", "name", "advertiser", "priority", "weight", "status", "starts_at", "ends_at", "pacing")
    return {
        **{name: row[name] for name in names},
        "optimize": row["optimize_for"],
        "goal": _group(row, "goal", ("impressions", "clicks")),
        "daily_cap": _group(row, "daily_cap", ("impressions", "clicks")),
        "frequency_cap": _group(row, "frequency_cap", ("impressions", "seconds")),
        "targeting": {} if row["targeting"] is None else _from_json(row["targeting"]),
        "creatives": creatives,
    }


def creative_object(row: Row) -> dict[str, Any]:
    return {
        "id": row["id"],
        "placement_size": [row["width"], row["height"]],
        "format": row["format"],
        "weight": row["weight"],
        "image_url": row["image_url"],
        "alt": "" if row["alt"] is None else row["alt"],
        "html": row["html"],
        "data": None if row["data"] is None else _from_json(row["data"]),
        "landing_url": row["landing_url"],
    }


def _group(row: Row, group: str, names: Sequence[str]) -> dict[str, Any] | None:
    given = {name: row[f"{group}_{name}"] for name in names if row[f"{group}_{name}"] is not None}
    return given or None


def _to_json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True)


def _from_json(text: Any) -> Any:
    """The value, or the text itself when it is none that a table can hold: the check of the document will name it."""
    try:
        value = json.loads(text)
        # What cannot be put into a snapshot (integers past 64 bits, half a surrogate pair) would stop all the rest.
        msgspec.msgpack.encode(value)
    except (ValueError, TypeError, RecursionError, OverflowError):
        return text
    return value


def as_text(value: Any) -> Any:
    """A column's value with its bytes read as UTF-8; one row that is none must not hide all the others."""
    if not isinstance(value, bytes):
        # Past 64 bits it could be put into no snapshot, and would stop all the rest.
        return value if not isinstance(value, int) or -(1 << 63) <= value < 1 << 64 else "\x1a"
    try:
        return value.decode()
    except UnicodeDecodeError:
        # SUB, the control character that stands for a damaged one: the checks refuse the row and name it.
        return value.decode("utf-8", "replace").replace("\ufffd", "\x1a")
