"""What a database statement may take of the admin: time, and no code of its own in this process.

MariaDB and MySQL watch over the time themselves, as every connection asks them to. SQLite runs in this process: it asks
from time to time whether to go on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from adtools.admin import deadline
from adtools.admin.deadline import STATEMENT_S_MAX

# Statements of SQLite's virtual machine between two looks at the clock: a fraction of a millisecond.
INSTRUCTIONS = 20_000
# MariaDB reads the first comment alone, MySQL the second alone: each has its own name for the limit.
_LIMIT = "/*M!100101 , max_statement_time = {seconds:g} */ /*!50708 , max_execution_time = {milliseconds:.0f} */"


def mysql_session(seconds: float = STATEMENT_S_MAX) -> str:
    """The statement with which a session with MariaDB or MySQL begins; 0 seconds: without a limit."""
    return "SET sql_mode = 'STRICT_TRANS_TABLES' " + _LIMIT.format(seconds=seconds, milliseconds=seconds * 1000)


def bound_connection(connection: Any, **_: Any) -> None:
    """Receives Django's signal of a new connection."""
    if connection.vendor != "sqlite":
        return
    # Python's regular expressions hold the interpreter's lock while they backtrack: no look-up of ours needs them.
    connection.connection.create_function("regexp", 2, no_expression)
    connection.connection.set_progress_handler(deadline.statement_is_over, INSTRUCTIONS)
    if start_clock not in connection.execute_wrappers:
        connection.execute_wrappers.append(start_clock)


def no_expression(*_: object) -> None:
    raise ValueError("the admin looks nothing up by a regular expression")


def start_clock(execute: Callable[..., Any], sql: str, params: Any, many: bool, context: Any) -> Any:
    deadline.start_statement()
    return execute(sql, params, many, context)


def is_over_limit(error: BaseException) -> bool:
    """Whether a database ended the statement because it took too long."""
    # SQLite's word, and the numbers of MariaDB and MySQL.
    return str(error) == "interrupted" or (bool(error.args) and error.args[0] in (1969, 3024))


def is_deadlock(error: BaseException) -> bool:
    """Whether MariaDB or MySQL ended the transaction so that another one could go on."""
    return bool(error.args) and error.args[0] == 1213
