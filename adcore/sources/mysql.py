"""The store in MySQL or MariaDB, through mysqlclient (the extra adcore[mysql]).

One connection, opened when it is needed and again after any failure. It runs in autocommit, speaks utf8mb4, and every
wait on the network ends by itself.

The server is not trusted before it is known: it gets no password that it could read (mysql.cnf), no file of this host
(LOAD DATA LOCAL), a bounded time for what it is asked, and bounded memory for what it answers.
"""

import ipaddress
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qs, unquote, urlsplit

from adcore.core.inventory import Inventory
from adcore.errors import ConfigError, SourceError
from adcore.sources import Revision, Rows, results, sqlstore
from adcore.sources.watch import Connecting, Watch, shut_down

CONNECT_TIMEOUT_S = 3
# A full load of 100,000 creatives takes a second or two; a server that is silent for longer hangs.
READ_TIMEOUT_S = 15
WRITE_TIMEOUT_S = 15
# Less than the read timeout, which would cut the wait off.
MIGRATE_TIMEOUT_S = 8

# All waits of a call that only reads, from connecting on; of one that changes something, each statement's. A silence is
# cut off by the timeouts above, and this is for a server that answers too slowly to be of use. A first start waits no
# longer than this for the store, which leaves it half of the unit's TimeoutStartSec.
CALL_S = 30.0
# What the rows of one call may take in memory, as ROW_BYTES and CELL_BYTES estimate it: 600,000 creatives.
ANSWER_BYTES_MAX = 1 << 30
# A row here is a dict with an object for each column.
ROW_BYTES = 400
CELL_BYTES = 64

OPTIONS_FILE = Path(__file__).with_name("mysql.cnf")

_NO_SUCH_TABLE = 1146
_AUTH_REFUSED = 5010

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
        from MySQLdb.cursors import SSCursor

        self._streaming: Any = SSCursor
        self._connection: Any = None
        self._watch = Watch("mysql", CALL_S)
        self._by_statement = False
        """Whether each statement has the whole time and memory to itself."""
        self._answer_bytes = 0

    def revision(self) -> Revision:
        with self._reading_call():
            return sqlstore.read_revision(self)

    def load(self) -> Rows:
        with self._reading_call():
            return sqlstore.read_rows(self)

    def delivered(self, campaigns: Sequence[str], day: str) -> dict[str, tuple[int, int, int, int]]:
        with self._reading_call():
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
        answered: list[Sequence[Any]] = []
        with self._waiting() as connection:
            # Row by row: the driver's usual cursor has the whole answer in memory before anything can be counted.
            cursor = connection.cursor(self._streaming)
            cursor.execute(sql, tuple(values))
            names = [column[0] for column in cursor.description or ()]
            while (row := cursor.fetchone()) is not None:
                self._count(row)
                answered.append(row)
        answered.reverse()
        rows: list[sqlstore.Row] = []
        while answered:
            rows.append(dict(zip(names, map(sqlstore.as_text, answered.pop()), strict=True)))
        return rows

    def execute(self, sql: str, values: Sequence[Any] = ()) -> None:
        with self._waiting() as connection:
            connection.cursor().execute(sql, tuple(values))

    def execute_many(self, sql: str, rows: Sequence[Sequence[Any]]) -> None:
        with self._waiting() as connection:
            connection.cursor().executemany(sql, [tuple(row) for row in rows])

    def adding(self, keys: Sequence[str], numbers: Sequence[str]) -> str:
        return f"ON DUPLICATE KEY UPDATE {', '.join(f'{number} = {number} + VALUES({number})' for number in numbers)}"

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[None]:
        self.execute(begin)
        try:
            yield
        except BaseException:
            try:
                with self._waiting() as connection:
                    connection.rollback()
            except (self._driver.Error, SourceError):
                pass  # The connection is gone and its transaction with it; the first error tells why.
            raise
        with self._waiting() as connection:
            connection.commit()

    @contextmanager
    def _waiting(self) -> Iterator[Any]:
        """The connection, for something that ends within what is left of the time."""
        if self._by_statement:
            self._watch.begin()
            self._answer_bytes = 0
        if self._connection is None:
            connecting = Connecting(self._arguments.get("unix_socket", self._arguments.get("port")))
            with self._watch.waiting(connecting.shut_down):
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
        fd = self._connection.fileno()
        with self._watch.waiting(lambda: shut_down(fd)):
            yield self._connection

    def _count(self, row: Sequence[Any]) -> None:
        """Add what a row takes in memory. Raises SourceError when it is too much."""
        texts = sum(len(value) for value in row if isinstance(value, bytes))
        self._answer_bytes += ROW_BYTES + CELL_BYTES * len(row) + texts
        if self._answer_bytes > ANSWER_BYTES_MAX:
            self._abort()
            raise SourceError(
                f"{self.label}: the answer takes more than {ANSWER_BYTES_MAX >> 20} MiB of memory; the rest is not read"
            )

    def _abort(self) -> None:
        """Close without asking: what is still on its way is not read."""
        if self._connection is not None:
            shut_down(self._connection.fileno())
            self.close()

    @contextmanager
    def _reading_call(self) -> Iterator[None]:
        with self._naming_errors(by_statement=False):
            try:
                yield
            except (LookupError, TypeError, ValueError, ArithmeticError) as error:
                # Columns that are not there, or of another kind: of another program's tables, or no MySQL at all.
                self._abort()
                raise SourceError(f"{self.label}: it does not answer like a store of adcore ({error!r})") from error

    @contextmanager
    def _naming_errors(self, by_statement: bool = True) -> Iterator[None]:
        self._watch.begin()
        self._by_statement, self._answer_bytes = by_statement, 0
        try:
            yield
        except self._driver.Error as error:
            self._abort()
            raise SourceError(f"{self.label}: {self._reason(error)}") from error
        except MemoryError:
            self._abort()
            raise SourceError(f"{self.label}: the answer does not fit into memory; see --helper-bytes") from None

    def _reason(self, error: Any) -> str:
        code = error.args[0] if error.args else None
        if self._watch.fired:
            return f"it answers too slowly: {self._watch.seconds:g} s were not enough"
        if code == _AUTH_REFUSED:
            return (
                "the server wants the password in a form that a server can read, and it is not known whose server it "
                "is: give the account mysql_native_password or ed25519, or add ssl=verify to the URL"
            )
        hint = f"; run adctl migrate --source {self.label}" if code == _NO_SUCH_TABLE else ""
        return f"{error.args[-1] if error.args else error}{hint}"


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
    tls = _parse_tls(label, parts.hostname, options)
    if options:
        raise ConfigError(
            f"--source: {label}: {next(iter(options))} is no option; there are unix_socket, ssl and ssl_ca"
        )
    if not database or "/" in database:
        raise ConfigError(f"--source: {label} names no database: mysql://USER@HOST/DATABASE")
    if bool(parts.hostname) == bool(sockets):
        raise ConfigError(f"--source: {label}: name a host, or ?unix_socket=PATH")
    arguments: dict[str, Any] = {"user": user, "passwd": unquote(parts.password or ""), "db": database}
    if sockets:
        arguments["unix_socket"] = sockets[0]
    else:
        arguments |= {"host": parts.hostname, "port": port or 3306}
    if tls:
        group = "adcore-verified"
    else:
        group = "adcore-local" if sockets or _is_loopback(parts.hostname or "") else "adcore-unknown"
    return {
        **{name: value for name, value in arguments.items() if value != ""},
        **tls,
        "read_default_file": str(OPTIONS_FILE),
        "read_default_group": group,
        # A server may answer any statement by asking for a file of this host.
        "local_infile": False,
    }, label


def _parse_tls(label: str, host: str | None, options: dict[str, list[str]]) -> dict[str, Any]:
    """The driver's arguments for `ssl` and `ssl_ca`, which are taken out of the options. Raises ConfigError."""
    authorities = options.pop("ssl_ca", [])
    modes = options.pop("ssl", ["verify"] if authorities else ["off"])
    mode = modes[0]
    if mode not in ("verify", "off") or len(modes) > 1:
        # TLS to whoever answers is no protection, and the driver goes on without any where the server offers none.
        raise ConfigError(f"--source: {label}: ssl must be verify or off")
    if mode != "off" and host is None:
        raise ConfigError(f"--source: {label}: ssl is for a host; a unix socket needs none")
    if authorities and mode != "verify":
        raise ConfigError(f"--source: {label}: ssl_ca is for ssl=verify")
    if authorities and not Path(authorities[0]).is_file():
        raise ConfigError(f"--source: {label}: ssl_ca: there is no file {authorities[0]}")
    if mode == "off":
        return {}
    # Without a file of its own the driver takes the authorities of the system.
    return {"ssl_mode": "VERIFY_IDENTITY", **({"ssl": {"ca": authorities[0]}} if authorities else {})}


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"  # which the driver takes for its socket
