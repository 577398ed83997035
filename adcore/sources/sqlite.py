"""The embedded store: one SQLite file, which migrates by itself."""

import contextlib
import os
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from adcore.core.inventory import Inventory
from adcore.errors import SourceError
from adcore.files import FILE_MODE, open_file
from adcore.sources import Revision, Rows, results, sqlite_path, sqlstore

# How long another process's write may take; an apply of 100,000 creatives takes a few seconds.
BUSY_TIMEOUT_S = 10.0

T = TypeVar("T")


class SqliteStore:
    """A store at `sqlite:///PATH`; PATH is absolute, as in a file URL, and may be percent-encoded.

    `migrate` and `apply` make the file; whoever only looks must not.
    """

    placeholder = "?"

    def __init__(self, url: str) -> None:
        self.path = sqlite_path(url)
        self.label = f"sqlite://{self.path}"
        self._connection: sqlite3.Connection | None = None
        self._file = (0, 0)

    def revision(self) -> Revision:
        with self._naming_errors():
            self._open()
            return sqlstore.read_revision(self)

    def load(self) -> Rows:
        with self._naming_errors():
            self._open()
            return sqlstore.read_rows(self)

    def delivered(self, campaigns: Sequence[str], day: str) -> dict[str, tuple[int, int, int, int]]:
        with self._naming_errors():
            self._open()
            return results.read_delivered(self, campaigns, day)

    def migrate(self) -> list[str]:
        with self._naming_errors():
            self._connect("rwc")
            return sqlstore.migrate(self)

    def apply(self, choose: Callable[[Rows], Inventory]) -> Revision:
        with self._naming_errors():
            self._connect("rwc")
            sqlstore.migrate(self)
            return sqlstore.write_inventory(self, choose)

    def run(self, work: Callable[[sqlstore.Dialect], T]) -> T:
        with self._naming_errors():
            self._open()
            return work(self)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # What sqlstore asks of a dialect

    @contextmanager
    def reading(self) -> Iterator[None]:
        with self._transaction("BEGIN"):
            yield

    @contextmanager
    def writing(self) -> Iterator[None]:
        # IMMEDIATE waits its turn to write at the start; a read turned into a write could not wait.
        with self._transaction("BEGIN IMMEDIATE"):
            yield

    migrating = writing

    def has_table(self, name: str) -> bool:
        return bool(self.query("SELECT 1 AS found FROM sqlite_master WHERE type = 'table' AND name = ?", (name,)))

    def query(self, sql: str, values: Sequence[Any] = ()) -> list[sqlstore.Row]:
        assert self._connection is not None
        cursor = self._connection.execute(sql, values)
        names = [column[0] for column in cursor.description]
        return [dict(zip(names, map(sqlstore.as_text, row), strict=True)) for row in cursor]

    def execute(self, sql: str, values: Sequence[Any] = ()) -> None:
        assert self._connection is not None
        # Triggers end with a semicolon of their own inside, and another one must follow.
        self._connection.execute(sql + ";", values)

    def execute_many(self, sql: str, rows: Sequence[Sequence[Any]]) -> None:
        assert self._connection is not None
        self._connection.executemany(sql, rows)

    def adding(self, keys: Sequence[str], numbers: Sequence[str]) -> str:
        sums = ", ".join(f"{number} = {number} + excluded.{number}" for number in numbers)
        return f"ON CONFLICT ({', '.join(keys)}) DO UPDATE SET {sums}"

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[None]:
        connection = self._connection
        assert connection is not None
        connection.execute(begin)
        try:
            yield
        except BaseException:
            # A failed disk may have rolled it back already.
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")

    def _open(self) -> None:
        """Open the file that is at the path now, which may be another one than before."""
        try:
            status = os.stat(self.path)
        except OSError as error:
            self.close()
            raise SourceError(f"{self.label}: {error.strerror}{self._hint()}") from error
        if self._connection is not None and (status.st_dev, status.st_ino) != self._file:
            self.close()
        if self._connection is None:
            self._connect("rw")
            sqlstore.migrate(self)

    def _connect(self, mode: str) -> None:
        if self._connection is not None:
            return
        folder = Path(os.path.realpath(self.path)).parent
        if folder.stat().st_mode & stat.S_IWOTH:
            # SQLite checks no owner of the log (-wal) that it finds beside its file and plays back into it.
            raise SourceError(
                f"{self.label}: every user of this host may write to {folder}, where SQLite would use their files for "
                "its own; choose a folder of adcore's own"
            )
        if mode == "rwc":
            # SQLite gives a new file the mode that the umask leaves, and its log and index that of the file.
            with contextlib.suppress(OSError):  # of which SQLite says the same
                os.close(open_file(self.path, os.O_RDWR | os.O_CREAT, FILE_MODE))
        connection = sqlite3.connect(
            f"file:{quote(str(self.path))}?mode={mode}",
            uri=True,
            timeout=BUSY_TIMEOUT_S,
            isolation_level=None,
            # Its calls come from one thread at a time, though not always the same one.
            check_same_thread=False,
        )
        try:
            connection.text_factory = bytes
            _use_wal(connection)
            connection.execute("PRAGMA foreign_keys = ON")
            status = os.stat(self.path)
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        self._file = status.st_dev, status.st_ino

    @contextmanager
    def _naming_errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            self.close()
            raise SourceError(f"{self.label}: {error}{self._hint()}") from error

    def _hint(self) -> str:
        if not self.path.parent.is_dir():
            return f"; there is no directory {self.path.parent}"
        return "" if self.path.exists() else "; adctl apply makes a new store"


def _use_wal(connection: sqlite3.Connection) -> None:
    """With a write-ahead log readers never wait for a writer, nor a writer for readers."""
    deadline_monotonic = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            # For this change, which is made once in a file's life, SQLite itself does not wait its turn.
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline_monotonic:
                raise
            time.sleep(0.01)
