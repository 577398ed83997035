"""Runs SQL in chDB, which is ClickHouse as a library, in a process of its own: it keeps threads, and is 500 MB of code.

Standard input is a JSON list of [statement, parameters]; standard output a JSON list of the rows of each statement.
"""

import json
import sys
from typing import Any

from chdb import session


def main() -> None:
    with session.Session() as database:  # type: ignore[no-untyped-call]
        print(json.dumps([rows(database, *asked) for asked in json.load(sys.stdin)]))


def rows(database: Any, statement: str, parameters: dict[str, object]) -> list[Any]:
    answer = str(database.query(statement, "JSONEachRow", params=parameters))
    return [json.loads(line) for line in answer.splitlines()]


if __name__ == "__main__":
    main()
