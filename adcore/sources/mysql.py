"""The store in MySQL or MariaDB, through mysqlclient (the extra adcore[mysql]).

One connection, opened when it is needed and again after any failure. It runs in autocommit, speaks utf8mb4, and every
wait on the network ends by itself.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from adcore.core.inventory import Inventory
from adcore.errors import ConfigError, SourceError
from adcore.sources import Revision, Rows, sqlstore

CONNECT_TIMEOUT_S = 3
# A full load of 100,000 creatives takes a second or two; a server that is silent for longer hangs.
READ_TIMEOUT_S = 20
WRITE_TIMEOUT_S = 20

_NO_SUCH_TABLE = 1146


class MysqlStore:
    """A store at `mysql://USER:PASSWORD@HOST:PORT/DATABASE` or `mysql://USER@/DATABASE?unix_socket=PATH`."""

    placeholder = "%s"

    def __init__(self, url: str) -> None:
        """Raises ConfigError for a URL that is not of these forms, and when the driver is missing."""
        self._arguments, self.label = parse_url(url)
        try:
            import MySQLdb
        except ImportError as error:
            raise ConfigError(
                f"the driver for {self.label} is missing ({error}): apt install gcc python3-dev pkg-config "
                "libmariadb-dev, then pip install 'adcore[mysql]'"
            ) from None
        self._driver = MySQLdb
        self._connection: Any = None

    def revision(self) -> Revision:
        with self._naming_errors():
            return sqlstore.read_revision(self)

    def load(self) -> Rows:
        with self._naming_errors():
            return sqlstore.read_rows(self)

    def migrate(self) -> list[str]:
        with self._naming_errors():
            return sqlstore.migrate(self)

    def apply(self, inventory: Inventory) -> None:
        with self._naming_errors():
            sqlstore.write_inventory(self, inventory)

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                connection.close()
            except self._driver.Error:
                pass  # It is gone, which is what was wanted.

    # What sqlstore asks of a dialect

    @contextmanager
    def transaction(self) -> Iterator[None]:
        # A snapshot of one moment for reads, and the rows that are written locked until the end.
        self.execute("START TRANSACTION WITH CONSISTENT SNAPSHOT")
        try:
            yield
        except BaseException:
            if self._connection is not None:
                self._connection.rollback()
            raise
        assert self._connection is not None
        self._connection.commit()

    def query(self, sql: str, values: Sequence[Any] = ()) -> list[sqlstore.Row]:
        cursor = self._cursor()
        cursor.execute(sql, tuple(values))
        names = [column[0] for column in cursor.description]
        return [dict(zip(names, map(_as_text, row), strict=True)) for row in cursor.fetchall()]

    def execute(self, sql: str, values: Sequence[Any] = ()) -> None:
        self._cursor().execute(sql, tuple(values))

    def _cursor(self) -> Any:
        if self._connection is None:
            self._connection = self._driver.connect(
                **self._arguments,
                charset="utf8mb4",
                # Bytes, decoded here: one row that is no UTF-8 must not hide all the others.
                use_unicode=False,
                autocommit=True,
                connect_timeout=CONNECT_TIMEOUT_S,
                read_timeout=READ_TIMEOUT_S,
                write_timeout=WRITE_TIMEOUT_S,
                multi_statements=False,
            )
        return self._connection.cursor()

    @contextmanager
    def _naming_errors(self) -> Iterator[None]:
        try:
            yield
        except self._driver.Error as error:
            self.close()
            code = error.args[0] if error.args else None
            hint = f"; run adctl migrate --source {self.label}" if code == _NO_SUCH_TABLE else ""
            raise SourceError(f"{self.label}: {error.args[-1] if error.args else error}{hint}") from error


def parse_url(url: str) -> tuple[dict[str, Any], str]:
    """The driver's arguments, and the URL without its password. Raises ConfigError naming the part."""
    parts = urlsplit(url)
    user, database = unquote(parts.username or ""), unquote(parts.path.removeprefix("/"))
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname or ""
    try:
        port = parts.port
    except ValueError:
        raise ConfigError("--source: the port in the mysql:// URL must be a number from 1 to 65535") from None
    label = f"mysql://{user}@{host}{f':{port}' if port else ''}/{database}"
    if parts.query:
        label += f"?{parts.query}"
    options = parse_qs(parts.query, keep_blank_values=True)
    sockets = options.pop("unix_socket", [])
    if options:
        raise ConfigError(f"--source: {label}: {next(iter(options))} is no option; there is unix_socket")
    if not database or "/" in database:
        raise ConfigError(f"--source: {label} names no database: mysql://USER@HOST/DATABASE")
    if bool(parts.hostname) == bool(sockets):
        raise ConfigError(f"--source: {label}: name a host, or ?unix_socket=PATH")
    arguments: dict[str, Any] = {"user": user, "passwd": unquote(parts.password or ""), "db": database}
    if sockets:
        arguments["unix_socket"] = sockets[0]
    else:
        arguments |= {"host": parts.hostname, "port": port or 3306}
    return {name: value for name, value in arguments.items() if value != ""}, label


def _as_text(value: Any) -> Any:
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode()
    except UnicodeDecodeError:
        # SUB, the control character that stands for a damaged one: the checks refuse the row and name it.
        return value.decode("utf-8", "replace").replace("\ufffd", "\x1a")
