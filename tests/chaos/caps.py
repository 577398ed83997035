"""By how much hosts together pass a daily cap: `python -m tests.chaos.caps`.

Two hosts of two workers each, in network namespaces of their own, count together over a memcached in a third one, with
the ads in a MariaDB. Under a steady load, shared evenly, a capped campaign is delivered until nobody shows it any more.
What was delivered beyond the cap must be less than what the other processes deliver within one refresh interval:

    passed <= deliveries per second * (processes - 1) / processes * (interval + time that an exchange takes)

It is tried as it is, with memcached flushed on the way, with memcached restarted (so that all it had is lost), and with
a worker killed. The counts of /status, of the logs and of the answers must agree in the end.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tests import networks, services
from tests.inventories import campaign, document
from tests.process import PATIENCE_S, Adcore, Connection, adctl, wait_for

HOSTS = 2
WORKERS = 2
PROCESSES = HOSTS * WORKERS
ACCIDENTS = ("none", "flushed", "restarted", "killed")
# A browser; a bot's impressions count towards nothing.
USER_AGENT = "Mozilla/5.0 (X11; Linux x86_64)"


class Outcome(NamedTuple):
    accident: str
    cap: int
    delivered: int
    rate: float
    """Deliveries of the campaign per second, when the cap was near."""
    exchange_s: float
    """How long the slowest exchange seen took."""
    interval_s: float

    @property
    def passed(self) -> int:
        return self.delivered - self.cap

    @property
    def bound(self) -> float:
        return self.rate * (PROCESSES - 1) / PROCESSES * (self.interval_s + self.exchange_s)


class FarMemcached(services.Service):
    """A memcached on a host of its own, which only the hosts of its network reach."""

    def __init__(self, host: networks.Host, folder: Path) -> None:
        self.address = f"{host.address}:11211"
        self._run_in = host.run_in
        user = [] if os.getuid() else ["-u", "root"]
        command = [*host.run_in, services.program("memcached", "memcached"), "-l", host.address, "-m", "64", *user]
        super().__init__(command, folder / "no socket", folder / "memcached.err")

    def _is_up(self) -> bool:
        return "VERSION" in self.tell("version")

    def tell(self, command: str) -> str:
        """What it answers; nothing when it does not."""
        code = (
            "import socket, sys; host, port = sys.argv[1].split(':'); s = socket.create_connection((host, port), 1);"
            "s.sendall(sys.argv[2].encode() + b'\\r\\n'); print(s.recv(1000).decode())"
        )
        told = subprocess.run(
            [*self._run_in, sys.executable, "-c", code, self.address, command],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        return told.stdout


class SteadyLoad:
    """Asks each address so many times a second, on connections of its own; `times` has when the campaign was shown."""

    def __init__(self, addresses: list[str], per_second: float, campaign_id: str) -> None:
        self.times: list[float] = []
        self.others = 0
        self.failures: list[str] = []
        self._campaign = b'"campaign":"%s"' % campaign_id.encode()
        self._ending = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(address, per_second / 4), daemon=True)
            for address in addresses
            for _ in range(4)
        ]

    def __enter__(self) -> "SteadyLoad":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join(PATIENCE_S)

    def _run(self, address: str, per_second: float) -> None:
        connection = Connection(address)
        due = time.monotonic()
        while not self._ending.is_set():
            due = max(due + 1 / per_second, time.monotonic() - 0.1)  # what a busy machine delayed is not made up for
            self._ending.wait(max(0.0, due - time.monotonic()))
            try:
                connection.request("GET", "/v1/decision?placement=side", headers={"User-Agent": USER_AGENT})
                body = connection.getresponse().read()
            except OSError as error:
                connection.close()
                self.failures.append(repr(error))
                continue
            if self._campaign in body:
                self.times.append(time.monotonic())
            else:
                self.others += 1
        connection.close()


class Site:
    """The hosts that deliver, and what they share."""

    def __init__(self, servers: list[Adcore], memcached: FarMemcached, url: str, interval_s: float) -> None:
        self.servers = servers
        self.memcached = memcached
        self.url = url
        self.interval_s = interval_s

    def book(self, *campaigns: dict[str, Any]) -> None:
        # Behind the capped ones there is always something to show.
        booked = document(*campaigns, campaign("filler", priority="house"))
        applied = adctl("apply", "--source", self.url, "-", stdin=json.dumps(booked))
        assert applied.returncode == 0, applied.stderr
        wait_for(lambda: all(worker["table"]["campaigns"] == len(booked["campaigns"]) for worker in self.workers()))

    def workers(self) -> list[dict[str, Any]]:
        found = [worker for server in self.servers for worker in server.status()["workers"]]
        return [worker for worker in found if "table" in worker]

    def sharing(self) -> list[dict[str, Any]]:
        return [worker["counts"]["sharing"] for worker in self.workers()]

    def wait_for_exchanges(self, number: int = 2) -> None:
        """Until every worker has exchanged so many times more."""
        before = {worker["process"]["pid"]: worker["counts"]["sharing"]["exchanges"] for worker in self.workers()}

        def happened() -> bool:
            now = {worker["process"]["pid"]: worker["counts"]["sharing"]["exchanges"] for worker in self.workers()}
            return len(now) == PROCESSES and all(now[pid] >= before.get(pid, 0) + number for pid in now)

        wait_for(happened, lambda: f"counts are not exchanged: {self.sharing()}")

    def try_cap(self, campaign_id: str, cap: int, per_second: float, accident: str) -> Outcome:
        """Deliver the campaign up to its cap."""
        self.book(campaign(campaign_id, daily_cap={"impressions": cap}))
        self.wait_for_exchanges()
        took = [0.0]
        with SteadyLoad([server.address for server in self.servers], per_second / HOSTS, campaign_id) as load:
            wait_for(lambda: len(load.times) >= cap / 2, lambda: f"{len(load.times)} were delivered")
            self.let_happen(accident)
            wait_for(lambda: len(load.times) >= cap * 0.9, lambda: f"{len(load.times)} were delivered")

            def is_held() -> bool:
                took.extend(sharing["took_s"] for sharing in self.sharing())
                held = [worker["counts"]["held"] for worker in self.workers()]
                return len(held) == PROCESSES and all(campaign_id in each for each in held)

            wait_for(is_held, lambda: f"{len(load.times)} of {cap} were delivered, and not everybody knows")
            others = load.others
            wait_for(lambda: load.others >= others + 50)
        times = sorted(load.times)
        last = times[-max(2, cap // 2) :]
        rate = (len(last) - 1) / (last[-1] - last[0])
        return Outcome(accident, cap, len(times), rate, max(took), self.interval_s)

    def let_happen(self, accident: str) -> None:
        if accident == "flushed":
            self.flush()
        elif accident == "restarted":
            self.memcached.kill()
            self.memcached.start()
        elif accident == "killed":
            os.kill(self.workers()[0]["process"]["pid"], signal.SIGKILL)
            wait_for(lambda: len(self.workers()) == PROCESSES)

    def flush(self) -> None:
        assert "OK" in self.memcached.tell("flush_all")


@contextmanager
def site(folder: Path, mariadb: services.MariaDB, interval_s: float) -> Iterator[Site]:
    with ExitStack() as stack:
        names = [f"host{number}" for number in range(1, HOSTS + 1)]
        cache_host, *delivery = stack.enter_context(networks.hosts("cache", *names))
        cache = FarMemcached(cache_host, folder)
        stack.callback(cache.kill)
        cache.start()
        url = mariadb.create("caps")
        assert adctl("migrate", "--source", url).returncode == 0
        servers = []
        for host in delivery:
            args = [
                *("--unix", f"{folder}/{host.address}/ad.sock", "--workers", str(WORKERS)),
                *("--source", url, "--memcached", cache.address, "--refresh", str(interval_s)),
                *("--secret-file", f"{folder}/secret"),
            ]
            server = Adcore(folder / host.address, *args, launcher=host.run_in)
            stack.callback(_end, server)
            servers.append(server)
        made = Site(servers, cache, url, interval_s)
        applied = adctl("apply", "--source", url, "-", stdin=json.dumps(document(campaign("filler"))))
        assert applied.returncode == 0, applied.stderr
        for server in servers:
            server.wait_until_ready()
        wait_for(lambda: len(made.workers()) == PROCESSES)
        yield made


def _end(server: Adcore) -> None:
    if server.process.poll() is None:
        server.stop()


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos.caps",
        description=(__doc__ or "").split("\n\n")[0],
    )
    parser.add_argument("--cap", type=int, default=2000, help="impressions of the day (default: 2000)")
    parser.add_argument("--rate", type=float, default=200.0, help="requests per second in all (default: 200)")
    parser.add_argument("--interval", type=float, default=5.0, help="--refresh of the servers, seconds (default: 5)")
    parser.add_argument("--times", type=int, default=3, help="how often each accident is tried (default: 3)")
    parser.add_argument("--only", choices=ACCIDENTS, action="append", help="accidents (default: all)")
    options = parser.parse_args()
    failed = False
    with (
        tempfile.TemporaryDirectory(prefix="adcore-") as folder,
        services.mariadb(Path(folder)) as mariadb,
        site(Path(folder), mariadb, options.interval) as made,
    ):
        for number in range(options.times):
            for accident in options.only or ACCIDENTS:
                outcome = made.try_cap(f"{accident}-{number}", options.cap, options.rate, accident)
                print(report(outcome), flush=True)
                failed |= not 0 <= outcome.passed <= outcome.bound
    return 1 if failed else 0


def report(outcome: Outcome) -> str:
    return (
        f"{outcome.accident}: {outcome.delivered} of {outcome.cap}, {outcome.passed} beyond the cap "
        f"(at most {outcome.bound:.0f}) at {outcome.rate:.0f}/s; an exchange took {outcome.exchange_s * 1000:.0f} ms"
    )


if __name__ == "__main__":
    sys.exit(main())
