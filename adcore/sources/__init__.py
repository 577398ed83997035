"""Where the inventory is kept and where tables come from. Only here are drivers imported, each only when used.

A `Store` is the database of record (SQLite, MySQL): it gives and takes documents, the JSON form of the inventory. Its
calls block and belong in one thread at a time.
"""

from typing import Any, NamedTuple, Protocol

import msgspec

from adcore.core.inventory import Inventory
from adcore.errors import ConfigError


class Revision(NamedTuple):
    """A number that every change raises, and the one up to which a person applied the changes knowingly."""

    number: int
    confirmed: int


class Rows(msgspec.Struct, frozen=True):
    """A whole inventory at one revision, not yet checked."""

    revision: int
    confirmed: int
    document: dict[str, Any]


class Source(Protocol):
    """What the refresh timer reads. Every call may raise SourceError."""

    @property
    def label(self) -> str:
        """The URL, without its password."""

    def revision(self) -> Revision: ...

    def load(self) -> Rows: ...

    def close(self) -> None: ...


class Store(Source, Protocol):
    """What adctl changes."""

    def migrate(self) -> list[str]:
        """Bring the tables up to date; the names of the migrations that were applied."""

    def apply(self, inventory: Inventory) -> None:
        """Make the store equal to the inventory, all or nothing, and confirm the revision that this makes."""


def open_store(url: str) -> Store:
    """The store of `sqlite:///PATH` or `mysql://USER:PASSWORD@HOST:PORT/DATABASE`. Raises ConfigError."""
    if url.startswith("sqlite:///"):
        from adcore.sources.sqlite import SqliteStore

        return SqliteStore(url)
    if url.startswith("mysql://"):
        from adcore.sources.mysql import MysqlStore

        return MysqlStore(url)
    raise ConfigError("--source must be sqlite:///PATH or mysql://USER:PASSWORD@HOST:3306/DATABASE")
