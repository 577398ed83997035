"""A flood of unpaid records while the log's disk stalls: it displaces no paid one.

`python -m tests.test_flood` says how many genuine impressions were lost.
"""

import json
import os
import tempfile
import threading
from collections import Counter
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from adcore.deliverylog.reader import Damage, read_records
from adcore.deliverylog.record import Impression
from adtools.control import Host
from tests.inventories import campaign, document
from tests.process import Connection, adctl, ask, serving

GENUINE = 534
ROBOT = "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)"
# Genuine records take 160,000 bytes, nearly the half that is reserved for them; all that is asked for takes 4.7 MB.
QUEUE_BYTES = 360 * 1024


class StalledDisk:
    """A log that takes 64 KiB, and no more until it is read: a pipe."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        self._data = bytearray()
        self._reading = threading.Thread(target=self._read)

    def recover(self) -> None:
        os.set_blocking(self._fd, True)
        self._reading.start()

    def _read(self) -> None:
        while data := os.read(self._fd, 1 << 16):
            self._data += data

    def records(self) -> list[Any]:
        """All that was written, once its writer has ended."""
        self._reading.join()
        os.close(self._fd)
        found = list(read_records(BytesIO(bytes(self._data))))
        assert not any(isinstance(one, Damage) for one in found)
        return found


class Outcome(NamedTuple):
    answered: set[str]
    """Ids of genuine impressions."""
    logged: set[str]
    status: dict[str, Any]
    check: str


def flood(folder: Path) -> Outcome:
    """Genuine impressions, and beside each a request for 32 slots that get nothing and one of a robot."""
    disk = StalledDisk(folder / "log")
    source = f"sqlite:///{folder}/ads.db"
    adctl("apply", "--source", source, "-", stdin=json.dumps(document(campaign("a", targeting={"countries": ["JP"]}))))
    attack = "/v1/decision?placement=side&n=32&keywords=" + ",".join(f"{number:02}{'x' * 10}" for number in range(30))
    arguments = ("--source", source, "--log", str(folder / "log"), "--log-queue-bytes", str(QUEUE_BYTES))
    answered = set()
    with serving(folder / "state", *arguments) as server:
        connection = Connection(server.address)
        for _ in range(GENUINE):
            for target, country, agent in (
                ("/v1/decision?placement=side", "JP", "x"),
                (attack, "US", "x"),
                ("/v1/decision?placement=side", "JP", ROBOT),
            ):
                connection.request("GET", target, headers={"X-Country": country, "User-Agent": agent})
                answer = connection.getresponse()
                body = answer.read()
                assert answer.status == (200 if country == "JP" else 204)
                if body and agent != ROBOT:
                    answered.add(json.loads(body)["impression_id"])
        connection.close()
        status = ask(server.control, "/status?poller=flood").json()
        checked = adctl("check", "--control", server.control)
        disk.recover()
        assert server.stop() == 0
    records = disk.records()
    logged = {record.id for record in records if isinstance(record, Impression) and not record.ivt}
    return Outcome(answered, logged, status, checked.stdout)


def test_a_flood_on_a_stalled_disk_displaces_no_impression(tmp_path: Path) -> None:
    answered, logged, status, checked = flood(tmp_path)
    assert len(answered) == GENUINE
    assert logged == answered
    log = status["log"]
    assert log["dropped_paid"] == {}
    lost = Counter(log["dropped"])
    assert lost["unfilled"] > 10_000
    assert lost["impression"] > 100  # the robots'
    assert Host(status).records() == {"impression": 2 * GENUINE, "unfilled": 32 * GENUINE}
    assert log["waiting_bytes"] <= log["waiting_bytes_max"] == QUEUE_BYTES
    assert log["waiting_bytes_unpaid"] <= log["waiting_bytes_unpaid_max"] == QUEUE_BYTES // 2
    assert "drops=0;;0;0" in checked
    assert f"drops_unpaid is {lost.total()} " in checked


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        answered, logged, status, _ = flood(Path(folder))
    lost, dropped = answered - logged, status["log"]["dropped"]
    print(f"{len(lost)} of {len(answered)} genuine impressions were lost; dropped, others' too: {dropped}")


if __name__ == "__main__":
    main()
