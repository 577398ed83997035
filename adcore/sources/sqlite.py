"""The embedded store: one SQLite file, which migrates by itself."""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from adcore.core.inventory import Inventory
from adcore.errors import SourceError
from adcore.sources import Revision, Rows, sqlstore

# How long another process's write may take; an apply of 100,000 creatives takes a few seconds.
BUSY_TIMEOUT_S = 10.0


class SqliteStore:
    """A store at `sqlite:///PATH`; PATH is absolute, as in a file URL, and may be percent-encoded."""

    placeholder = "?"

    def __init__(self, url: str) -> None:
        self.label = url
        self.path = Path("/" + unquote(url.removeprefix("sqlite:///")).lstrip("/"))
        self._connection: sqlite3.Connection | None = None

    def revision(self) -> Revision:
        with self._naming_errors():
            return sqlstore.read_revision(self)

    def load(self) -> Rows:
        with self._naming_errors():
            return sqlstore.read_rows(self)

    def migrate(self) -> list[str]:
        with self._naming_errors():
            self._connect()
            return sqlstore.migrate(self)

    def apply(self, inventory: Inventory) -> None:
        with self._naming_errors():
            sqlstore.write_inventory(self, inventory)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # What sqlstore asks of a dialect

    @contextmanager
    def transaction(self) -> Iterator[None]:
        connection = self._open()
        # IMMEDIATE waits its turn to write at the start; a read turned into a write could not wait.
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")

    def query(self, sql: str, values: Sequence[Any] = ()) -> list[sqlstore.Row]:
        cursor = self._open().execute(sql, values)
        names = [column[0] for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor]

    def execute(self, sql: str, values: Sequence[Any] = ()) -> None:
        self._open().execute(sql + ";", values)

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            self._connect()
            sqlstore.migrate(self)
        assert self._connection is not None
        return self._connection

    def _connect(self) -> None:
        if self._connection is not None:
            return
        # Its calls come from one thread at a time, though not always the same one.
        connection = sqlite3.connect(self.path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        try:
            # Readers never wait for a writer, nor a writer for readers.
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA foreign_keys = ON")
        except BaseException:
            connection.close()
            raise
        self._connection = connection

    @contextmanager
    def _naming_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            hint = "" if self.path.parent.is_dir() else f"; there is no directory {self.path.parent}"
            self.close()
            raise SourceError(f"{self.label}: {error}{hint}") from error
