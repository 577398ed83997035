"""MySQL and memcached away in every way, under load: `python -m tests.chaos.stores --seconds 30`.

Killed, hung (SIGSTOP), refusing, cutting every connection, slow by 10 s, answering garbage, and then back; one of them
and both. No request may fail; the age in /status must be true to a second; a change made meanwhile must be served
within one refresh interval and a second after the return, and while only memcached is away also before that. A start
with both away serves the table on disk; without one /ping says 503 until they are back.

Latencies are held against quiet times right before and after each fault, in which the status is asked for as often and
a change is applied too, and printed: on a busy machine they say little.
"""

import argparse
import json
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.inventories import campaign, document
from tests.load import WRONG, Load, read_log
from tests.process import Adcore, adctl, serving, wait_for
from tests.proxy import Proxy
from tests.services import MariaDB, Service, mariadb, memcached

REFRESH_S = 1.0
LATE_S = 1.0
LOOK_S = 0.2
# Not 20: CPython 3.11 and 3.12 keep freed tuples of that length, up to 2,000 (400 KB), and never use them again.
CAMPAIGNS = 24
FAULTS = ("kill", "stop", "refuse", "cut", "slow", "garbage")
WHO = ("mysql", "memcached", "both")


class Stores:
    """A MariaDB and a memcached, each behind a proxy, and the ways in which they can be away."""

    def __init__(self, folder: Path, database: MariaDB, cache: Service, name: str = "chaos") -> None:
        self.services: dict[str, Service] = {"mysql": database, "memcached": cache}
        self.proxies = {who: Proxy(folder / f"{who}.sock", service.path) for who, service in self.services.items()}
        self.url = database.create(name)
        self.proxied_url = f"mysql://root@/{name}?unix_socket={self.proxies['mysql'].path}"
        migrated = adctl("migrate", "--source", self.url)
        assert migrated.returncode == 0, migrated.stderr
        self.weight = 0
        self.change()

    @property
    def arguments(self) -> tuple[str, ...]:
        """For a server."""
        return (
            *("--source", self.proxied_url, "--refresh", str(REFRESH_S)),
            *("--memcached", f"unix:{self.proxies['memcached'].path}", "--memcached-prefix", self.url[-9:]),
        )

    def change(self) -> None:
        """Apply another revision."""
        self.weight += 1
        text = json.dumps(document(*(campaign(f"c{n}", weight=self.weight) for n in range(CAMPAIGNS))))
        applied = adctl("apply", "--source", self.url, "-", stdin=text)
        assert applied.returncode == 0, applied.stderr

    def go(self, who: str, fault: str) -> None:
        for name in self._names(who):
            if fault == "kill":
                self.services[name].kill()
            elif fault == "stop":
                self.services[name].signal(signal.SIGSTOP)
            else:
                self.proxies[name].mode = fault

    def come_back(self, who: str, fault: str) -> None:
        for name in self._names(who):
            if fault == "kill":
                self.services[name].start()
            elif fault == "stop":
                self.services[name].signal(signal.SIGCONT)
            else:
                self.proxies[name].mode = "pass"

    @staticmethod
    def _names(who: str) -> tuple[str, ...]:
        return ("mysql", "memcached") if who == "both" else (who,)


class Outcome(NamedTuple):
    what: str
    counts: dict[str, int]
    age_error_s: float
    """The most that the age shown was off."""
    fresh_s: float
    """From the return until the change was served."""
    p99_ratio: float
    """During the fault, to the quiet times around it."""
    problems: list[str]


@contextmanager
def stores_in(folder: Path) -> Iterator[Stores]:
    with ExitStack() as stack:
        for name in ("mariadb", "memcached"):
            (folder / name).mkdir(parents=True)
        database = stack.enter_context(mariadb(folder / "mariadb"))
        stores = Stores(folder, database, stack.enter_context(memcached(folder / "memcached")))
        for proxy in stores.proxies.values():
            stack.enter_context(proxy)
        yield stores


def age_of(server: Adcore) -> float:
    age: float = server.status()["refresh"]["age_s"]
    return age


def suffer(stores: Stores, folder: Path, who: str, fault: str, seconds: float, late_s: float = LATE_S) -> Outcome:
    """Let a server under load have a fault for so long; times may be off by `late_s`."""
    problems = []
    with serving(folder, *stores.arguments) as server:
        proxy = stores.proxies["mysql"]
        wait_for(lambda: served(server) > 0 and proxy.answered_monotonic > 0)
        with Load(server.address, clients=3, pause_s=0.002) as load:
            quiet = [be_quiet(stores, server, seconds / 2)]
            stores.go(who, fault)
            began = time.monotonic()
            revision = served(server)
            if who == "memcached" or fault in ("refuse", "cut", "garbage"):
                stores.change()
            age_error_s = 0.0
            while (left_s := began + seconds - time.monotonic()) > 0:
                asked, answered = time.monotonic(), proxy.answered_monotonic
                age = age_of(server)
                if who == "memcached":
                    age_error_s = max(age_error_s, age - REFRESH_S)
                # The age counts from the question, which the store answers at once. An answer on its way says nothing.
                elif age > REFRESH_S + 1 and time.monotonic() - proxy.let_through_monotonic > LOOK_S:
                    age_error_s = max(age_error_s, asked - answered - age, age - (time.monotonic() - answered))
                time.sleep(min(LOOK_S, left_s))
            if who == "memcached":
                wait_for(lambda: served(server) > revision, lambda: server.errors)
            elif fault == "slow":
                stores.change()  # not before: an answer that tells of it does not confirm the table
            fault_span = (began, time.monotonic())
            stores.come_back(who, fault)
            returned = time.monotonic()
            if who != "memcached" and fault in ("kill", "stop"):
                stores.change()
                returned = time.monotonic()
            wait_for(lambda: served(server) > revision and age_of(server) < REFRESH_S + late_s, lambda: server.errors)
            fresh_s = time.monotonic() - returned
            quiet.append(be_quiet(stores, server, seconds / 2))
        if server.stop():
            problems.append(f"the server did not end well: {server.errors[-1000:]}")
        counts = load.check(read_log(server.log))
    problems += [f"{counts[what]} {what}" for what in (*WRONG, "phantom") if counts[what]]
    calm = [took for at, took in load.latencies if any(start <= at <= end for start, end in quiet)]
    stormy = [took for at, took in load.latencies if fault_span[0] <= at <= fault_span[1]]
    ratio = p99(stormy) / p99(calm)
    if age_error_s > late_s:
        problems.append(f"the age shown was off by {age_error_s:.1f} s")
    if fresh_s > REFRESH_S + late_s:
        problems.append(f"fresh only {fresh_s:.1f} s after the return")
    return Outcome(f"{who} {fault}", counts, age_error_s, fresh_s, ratio, [*problems, *load.failures[:3]])


def start_without_sources(stores: Stores, folder: Path, late_s: float = LATE_S) -> list[str]:
    """What is wrong with a start while both are away: with a table on disk, and without one."""
    problems = []
    with serving(folder / "a", *stores.arguments) as server:
        wait_for(lambda: served(server) > 0)
        wait_for(lambda: server.status()["refresh"]["sources"][-1]["ok"])
        server.stop()
    for fault in ("refuse", "hang"):
        stores.go("both", fault)
        with serving(folder / "a", *stores.arguments) as server:
            if server.status()["refresh"]["loads"] != {"disk": 1} or server.ask(ASK).status != 200:
                problems.append(f"{fault}: the table on disk is not served")
            server.stop()
        new = Adcore(folder / fault, *stores.arguments)
        try:
            await_answer(new, 503)
            if new.ask(ASK).status != 503:
                problems.append(f"{fault}: a decision without a table")
            stores.come_back("both", fault)
            began = time.monotonic()
            await_answer(new, 200)
            if (took := time.monotonic() - began) > REFRESH_S + late_s:
                problems.append(f"{fault}: no table until {took:.1f} s after the return")
            new.stop()
        finally:
            new.process.kill()
            new.process.wait()
    return problems


ASK = "/v1/decision?placement=side"


def await_answer(server: Adcore, status: int) -> None:
    """Until /ping says so."""

    def is_there() -> bool:
        try:
            return server.ask("/ping").status == status
        except OSError:
            return False

    wait_for(is_there, lambda: server.errors)


def served(server: Adcore) -> int:
    return int(server.status()["table"]["revision"] or 0)


def be_quiet(stores: Stores, server: Adcore, seconds: float) -> tuple[float, float]:
    """Do all that is done during a fault, without one; when this began and ended."""
    began = time.monotonic()
    before = served(server)
    stores.change()
    while time.monotonic() < began + seconds:
        age_of(server)
        time.sleep(LOOK_S)
    wait_for(lambda: served(server) > before, lambda: server.errors)
    return began, time.monotonic()


def p99(values: list[float]) -> float:
    return statistics.quantiles(values, n=100)[98]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.stores", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=30.0, help="how long each fault lasts (default: 30)")
    parser.add_argument("--only", choices=FAULTS, action="append", help="faults (default: all)")
    parser.add_argument("--who", choices=WHO, action="append", help="what is away (default: each, and both)")
    options = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory(prefix="adcore-") as folder, stores_in(Path(folder)) as stores:
        for number, (who, fault) in enumerate(
            (who, fault) for who in options.who or WHO for fault in options.only or FAULTS
        ):
            outcome = suffer(stores, Path(folder) / str(number), who, fault, options.seconds)
            print(
                f"{outcome.what}: age off by {outcome.age_error_s:.2f} s at most, "
                f"fresh {outcome.fresh_s:.2f} s after the return, p99 {outcome.p99_ratio:.2f} times that of quiet; "
                + ", ".join(f"{count} {what}" for what, count in outcome.counts.items()),
                flush=True,
            )
            for problem in outcome.problems:
                print(f"  {problem}")
            failed |= bool(outcome.problems)
        problems = start_without_sources(stores, Path(folder) / "starts")
        print("a start without any source:", "; ".join(problems) or "well")
    return 1 if failed or problems else 0


if __name__ == "__main__":
    sys.exit(main())
