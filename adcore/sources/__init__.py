"""Where the inventory is kept and where tables come from. Only here are drivers imported, each only when used.

A `Store` is the database of record (SQLite, MySQL): it gives and takes documents, the JSON form of the inventory. Its
calls block and belong in one thread at a time.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar
from urllib.parse import unquote

import msgspec

from adcore.core.inventory import Inventory
from adcore.errors import ConfigError

if TYPE_CHECKING:
    from adcore.sources.sqlstore import Dialect

T = TypeVar("T")


class Revision(NamedTuple):
    """Which state of which store: equal generation and number mean equal rows."""

    generation: str
    """Drawn at random when the store's tables were made: a store that is set up anew counts from 0 again."""
    number: int
    """Raised by every change."""
    confirmed: int
    """The number up to which a person applied the changes knowingly."""

    def is_as_new_as(self, other: "Revision") -> bool:
        """Whether what is at this revision has all that is at the other one."""
        return self.generation == other.generation and self.number >= other.number


class Rows(msgspec.Struct, frozen=True):
    """A whole inventory at one revision, not yet checked."""

    revision: Revision
    document: dict[str, Any]


class Note(msgspec.Struct, frozen=True):
    """How a source (store, snapshot, disk or archive) did: an error, or None when it answered."""

    source: str
    error: str | None


class Source(Protocol):
    """What the refresh timer reads. Every call may raise SourceError."""

    @property
    def label(self) -> str:
        """The URL, without its password."""

    def revision(self) -> Revision: ...

    def load(self) -> Rows: ...

    def close(self) -> None: ...


class Store(Source, Protocol):
    """What adctl changes, and what `adctl collect` counts into."""

    def delivered(self, campaigns: Sequence[str], day: str) -> dict[str, tuple[int, int, int, int]]:
        """What was collected of these campaigns, in all and on a local date (results.read_delivered)."""

    def migrate(self) -> list[str]:
        """Bring the tables up to date; the names of the migrations that were applied."""

    def apply(self, choose: Callable[[Rows], Inventory]) -> Revision:
        """Make the store equal to the inventory that `choose` gives for what is there; the revision that this makes.

        All or nothing, and nobody else changes anything in between. The revision is confirmed.
        """

    def run(self, work: "Callable[[Dialect], T]") -> T:
        """What `work` gives, which asks for or changes what is not inventory; see results.py."""


def open_store(url: str) -> Store:
    """The store of `sqlite:///PATH` or `mysql://USER:PASSWORD@HOST:PORT/DATABASE`. Raises ConfigError."""
    check_url(url)
    if url.startswith("sqlite:"):
        from adcore.sources.sqlite import SqliteStore

        return SqliteStore(url)
    from adcore.sources.mysql import MysqlStore

    return MysqlStore(url)


def sqlite_path(url: str) -> Path:
    """The file of `sqlite:///PATH`: absolute, and percent-encoded if it has to be."""
    return Path("/" + unquote(url.removeprefix("sqlite:///")).lstrip("/"))


def check_url(url: str) -> None:
    """Raises ConfigError for a URL of no store; needs no driver."""
    if url.startswith("mysql://"):
        from adcore.sources.mysql import parse_url

        parse_url(url)
    elif not url.startswith("sqlite:///"):
        raise ConfigError("--source must be sqlite:///PATH or mysql://USER:PASSWORD@HOST:3306/DATABASE")
