"""Clients that ask without pause, each request with an id of its own, so that the delivery log can be held against
what was answered: nothing failed, nothing lost, nothing written twice.
"""

import http.client
import itertools
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from adcore.deliverylog.reader import Damage, open_log, read_records
from adcore.deliverylog.record import to_object
from tests.process import PATIENCE_S, Connection, environment, wait_for

# What no restart may cause.
WRONG = ("failed", "lost", "doubled", "unanswered")
TARGET = "/v1/decision?placement={placement}&kv.n={id}"


class Load:
    """`with Load(address) as load:` asks until the block ends; then `load.check(records)`.

    Every other client opens a connection for each request; the rest keep theirs alive, and do what every client of
    HTTP/1.1 must when a kept connection turns out to be closed before any of the answer came: ask once more on a new
    one (RFC 9112 9.3.1). These are counted in `repeated`.
    """

    def __init__(
        self,
        address: str,
        clients: int = 6,
        placement: str = "side",
        name: str = "a",
        *,
        repeats: bool = True,
        pause_s: float = 0.0,
    ) -> None:
        """`name` tells the ids of this load from those of another.

        Where servers are killed nothing is asked again (`repeats=False`): the first one may have kept what it could
        not answer any more. `pause_s` is between two requests of a client, and may be changed meanwhile.
        """
        self.name = name
        self.pause_s = pause_s
        self.sent: list[str] = []
        self.answered: list[str] = []
        self.failures: list[str] = []
        self.latencies: list[tuple[float, float]] = []
        """Of each answer: when it was there, in monotonic seconds, and how many seconds it took."""
        self.repeated = 0
        self._address = address
        self._placement = placement
        self._repeats = repeats
        self._ending = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(n,), daemon=True) for n in range(clients)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join(2 * PATIENCE_S)

    def wait_for(self, more: int) -> None:
        """Until this many more requests have been answered, or one has failed."""
        goal = len(self.answered) + more
        wait_for(lambda: len(self.answered) >= goal or self.failures, lambda: "requests are no longer answered")

    def check(self, records: Iterable[dict[str, Any]]) -> dict[str, int]:
        """Hold what was answered against the records; counts, of which those in WRONG must be 0."""
        ids = (dict(record["key_values"])["n"] for record in records if record["type"] in ("impression", "unfilled"))
        written = Counter(request_id for request_id in ids if request_id.startswith(self.name))
        answered = set(self.answered)
        return {
            "answered": len(answered),
            "repeated": self.repeated,
            "failed": len(self.failures),
            "lost": len(answered - written.keys()),
            "doubled": sum(1 for count in written.values() if count > 1),
            "unanswered": len(written.keys() - answered),
            "phantom": len(written.keys() - set(self.sent)),
        }

    def _run(self, client: int) -> None:
        keeps_alive = client % 2 == 0
        connection = Connection(self._address)
        used = False
        for number in itertools.count():
            if self._ending.wait(self.pause_s) if self.pause_s else self._ending.is_set():
                break
            request_id = f"{self.name}{client}-{number}"
            try:
                try:
                    closes = self._ask(connection, request_id)
                except (http.client.RemoteDisconnected, ConnectionError):
                    if not used or not self._repeats:
                        raise
                    self.repeated += 1
                    connection.close()
                    closes = self._ask(connection, request_id)
            except (OSError, http.client.HTTPException, AssertionError) as error:
                self.failures.append(f"{request_id}: {error!r}")
                closes = True
            used = keeps_alive and not closes
            if not used:
                connection.close()
        connection.close()

    def _ask(self, connection: Connection, request_id: str) -> bool:
        """One request; whether the server closes the connection after it."""
        began_monotonic = time.monotonic()
        self.sent.append(request_id)
        connection.request("GET", TARGET.format(placement=self._placement, id=request_id))
        response = connection.getresponse()
        response.read()
        assert response.status in (200, 204), f"status {response.status}"
        self.answered.append(request_id)
        now_monotonic = time.monotonic()
        self.latencies.append((now_monotonic, now_monotonic - began_monotonic))
        return response.will_close


def read_log(*paths: Path) -> Iterator[dict[str, Any]]:
    """The records of a log's files, one after the other, as `adctl log cat --json` prints them: there may be many."""
    command = [sys.executable, "-m", "adtools", "log", "cat", "--json", *map(str, paths)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) as reader:
        assert reader.stdout is not None
        yield from map(json.loads, reader.stdout)
    assert reader.returncode == 0, f"adctl log cat finds {paths} damaged"


def read_torn_log(*paths: Path) -> tuple[list[dict[str, Any]], list[Damage]]:
    """The records of logs whose writers were killed, and what is torn in them."""
    records: list[dict[str, Any]] = []
    damage = []
    for path in paths:
        with open_log(path) as file:
            for found in read_records(file):
                if isinstance(found, Damage):
                    damage.append(found)
                else:
                    records.append(to_object(found))
    return records, damage
