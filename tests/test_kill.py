"""kill -9 under load: what was answered is in the log, once."""

import os
import random
import signal
import threading
from pathlib import Path

from tests.process import Adcore, Connection, wait_for

KILLS = int(os.environ.get("ADCORE_TEST_KILLS", "5"))
CLIENTS = 4


class Load:
    """Clients that ask, each with a number of its own, until the server is gone; and the numbers that were answered."""

    def __init__(self, server: Adcore, start: int) -> None:
        self.answered: list[int] = []
        self.sent = start
        self._lock = threading.Lock()
        self._server = server
        self._threads = [threading.Thread(target=self._ask) for _ in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def _ask(self) -> None:
        connection = Connection(self._server.address)
        try:
            while True:
                with self._lock:
                    number = self.sent = self.sent + 1
                # Records of robots go another way.
                agent = {"User-Agent": "Googlebot/2.1"} if number % 3 == 0 else {}
                connection.request("GET", f"/v1/decision?placement=top&kv.n={number}", headers=agent)
                answer = connection.getresponse()
                answer.read()
                assert answer.status == 200
                self.answered.append(number)
        except OSError:
            pass
        finally:
            connection.close()

    def join(self) -> None:
        for thread in self._threads:
            thread.join()


def test_what_was_answered_before_a_kill_is_logged_once(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    chance = random.Random(seed)
    answered: list[int] = []
    sent = 0
    for _ in range(KILLS):
        server = Adcore(tmp_path)
        server.wait_until_ready()
        load = Load(server, sent)
        enough = chance.randrange(1, 300)
        wait_for(lambda load=load, enough=enough: len(load.answered) >= enough)
        server.signal(signal.SIGKILL)
        server.process.wait()
        load.join()
        answered += load.answered
        sent = load.sent
    last = Adcore(tmp_path)
    last.wait_until_ready()
    assert last.stop() == 0
    logged = [int(dict(record["key_values"])["n"]) for record in last.records()]
    assert len(logged) == len(set(logged)), "doubled"
    assert set(answered) <= set(logged), "lost"
    assert set(logged) <= set(range(1, sent + 1)), "never sent"
    assert len(answered) > KILLS
    assert {record["ivt"] for record in last.records()} == {True, False}
    assert not list(tmp_path.glob("*.spool"))
