"""The store in MySQL or MariaDB, through mysqlclient (the extra adcore[mysql]).

One connection, opened when it is needed and again after any failure. It runs in autocommit, speaks utf8mb4, and every
wait on the network ends by itself.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.parse import parse_qs, unquote, urlsplit

from adcore.core.inventory import Inventory
from adcore.errors import ConfigError, SourceError
from adcore.sources import Revision, Rows, results, sqlstore

CONNECT_TIMEOUT_S = 3
# A full load of 100,000 creatives takes a second or two; a server that is silent for longer hangs.
READ_TIMEOUT_S = 15
WRITE_TIMEOUT_S = 15
# Less than the read timeout, which would cut the wait off.
MIGRATE_TIMEOUT_S = 8

_NO_SUCH_TABLE = 1146

T = TypeVar("T")


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

    def delivered(self, campaigns: Sequence[str], day: str) -> dict[str, tuple[int, int, int, int]]:
        with self._naming_errors():
            return results.read_delivered(self, campaigns, day)

    def migrate(self) -> list[str]:
        with self._naming_errors():
            return sqlstore.migrate(self)

    def apply(self, choose: Callable[[Rows], Inventory]) -> Revision:
        with self._naming_errors():
            return sqlstore.write_inventory(self, choose)

    def run(self, work: Callable[[sqlstore.Dialect], T]) -> T:
        with self._naming_errors():
            return work(self)

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                connection.close()
            except self._driver.Error:
                pass  # It is gone, which is what was wanted.

    # What sqlstore asks of a dialect

    @contextmanager
    def reading(self) -> Iterator[None]:
        with self._transaction("START TRANSACTION WITH CONSISTENT SNAPSHOT"):
            yield

    @contextmanager
    def writing(self) -> Iterator[None]:
        with self._transaction("START TRANSACTION"):
            # Every change updates this row. Once it is locked here, the first plain read sees all that came before,
            # and nothing comes after.
            sqlstore.read_revision(self, " FOR UPDATE")
            yield

    @contextmanager
    def migrating(self) -> Iterator[None]:
        (row,) = self.query("SELECT GET_LOCK('adcore migrate', %s) AS got", (MIGRATE_TIMEOUT_S,))
        if not row["got"]:
            raise SourceError(f"{self.label}: another adctl migrate has been running for {MIGRATE_TIMEOUT_S} s")
        try:
            yield
        finally:
            # Closing the connection, as an error does, releases it as well.
            if self._connection is not None:
                self.execute("DO RELEASE_LOCK('adcore migrate')")

    def has_table(self, name: str) -> bool:
        return bool(
            self.query(
                "SELECT 1 AS found FROM information_schema.tables WHERE table_schema = DATABASE() AND table_name = %s",
                (name,),
            )
        )

    def query(self, sql: str, values: Sequence[Any] = ()) -> list[sqlstore.Row]:
        cursor = self._cursor()
        cursor.execute(sql, tuple(values))
        names = [column[0] for column in cursor.description]
        return [dict(zip(names, map(sqlstore.as_text, row), strict=True)) for row in cursor.fetchall()]

    def execute(self, sql: str, values: Sequence[Any] = ()) -> None:
        self._cursor().execute(sql, tuple(values))

    def execute_many(self, sql: str, rows: Sequence[Sequence[Any]]) -> None:
        self._cursor().executemany(sql, [tuple(row) for row in rows])

    def adding(self, keys: Sequence[str], numbers: Sequence[str]) -> str:
        return f"ON DUPLICATE KEY UPDATE {', '.join(f'{number} = {number} + VALUES({number})' for number in numbers)}"

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[None]:
        self.execute(begin)
        connection = self._connection
        try:
            yield
        except BaseException:
            try:
                connection.rollback()
            except self._driver.Error:
                pass  # The connection is gone and its transaction with it; the first error tells why.
            raise
        connection.commit()

    def _cursor(self) -> Any:
        if self._connection is None:
            self._connection = self._driver.connect(
                **self._arguments,
                charset="utf8mb4",
                # Bytes, decoded here: one row that is no UTF-8 must not hide all the others.
                use_unicode=False,
                # A server's own default may be a weaker one, where each statement sees another state.
                init_command="SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ",
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
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise ConfigError(f"--source: the mysql:// URL is no URL: {error}") from None
    if "@" in parts.path + parts.query + parts.fragment:  # not shown: it is the end of a password
        raise ConfigError("--source: write @, :, /, ? and # in the mysql:// URL's user and password as %40, %3A …")
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
