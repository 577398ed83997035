"""Load whose every request has an id of its own, which its record must show exactly once."""

import http.client
import select
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.process import Connection

REQUEST_TIMEOUT_S = 30.0


class Load:
    """Threads that ask for decisions on kept-alive connections until they are told to end.

    As every HTTP client does, they look whether an idle connection has been closed before they use it again, and try
    once more on a new one when a used one ends without a byte of an answer (RFC 9112 9.3.1).
    """

    def __init__(self, address: str, threads: int = 4) -> None:
        self.address = address
        self.failures: list[str] = []
        self.answered: list[str] = []
        """The ids of requests that got an ad."""
        self.tried_again = 0
        self._ending = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(n,), daemon=True) for n in range(threads)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join(REQUEST_TIMEOUT_S)
            if thread.is_alive():
                self.failures.append("a request is never answered")

    def _run(self, thread: int) -> None:
        connection = Connection(self.address)
        connection.timeout = REQUEST_TIMEOUT_S
        number = 0
        while not self._ending.is_set():
            number += 1
            request_id = f"{thread}-{number}"
            try:
                status = self._ask(connection, f"/v1/decision?placement=top&kv.n={request_id}")
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(f"{request_id}: {error!r}")
                connection.close()
                continue
            if status == 200:
                self.answered.append(request_id)
            else:
                self.failures.append(f"{request_id}: {status}")
        connection.close()

    def _ask(self, connection: Connection, target: str) -> int:
        if connection.sock is not None and select.select([connection.sock], [], [], 0)[0]:
            connection.close()
        used = connection.sock is not None
        try:
            return exchange(connection, target)
        except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
            connection.close()
            if not used:
                raise
            self.tried_again += 1
            return exchange(connection, target)


def exchange(connection: Connection, target: str) -> int:
    connection.request("GET", target)
    response = connection.getresponse()
    response.read()
    return response.status


@contextmanager
def loading(address: str) -> Iterator[Load]:
    load = Load(address)
    load.start()
    try:
        yield load
    finally:
        load.end()


def problems(load: Load, records: list[dict[str, Any]]) -> list[str]:
    """What went wrong: requests that failed, ids whose record is missing or there twice."""
    found = list(load.failures)
    logged = Counter(dict(record["key_values"]).get("n") for record in records if record["type"] == "impression")
    logged = Counter({n[0] if isinstance(n, list) else n: count for n, count in logged.items()})
    found += [f"{n}: no record" for n in load.answered if not logged[n]]
    found += [f"{n}: {count} records" for n, count in logged.items() if count > 1]
    return found
