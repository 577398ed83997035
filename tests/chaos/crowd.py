"""Thousands of clients that do nothing good, and a few good ones among them: `python -m tests.chaos.crowd`.

The bad ones hold connections: silent ones, half a request line, a header a byte at a time, half a body, an answered
request and then silence, and some that send requests for ever and never read an answer. Over a unix path, TCP and an
inherited descriptor. No good request may fail or be lost, nor be twice as slow as without the crowd at the 99th
percentile; the bad ones are cut when their time is over; and the server stays small.
"""

import argparse
import contextlib
import itertools
import resource
import select
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.load import WRONG, Load, read_log
from tests.process import KINDS, PATIENCE_S, Adcore, Connection, ask, connect, environment, serving_over

GET = b"GET /v1/decision?placement=top&kv.n=crowd HTTP/1.1\r\nHost: a\r\n\r\n"
# The largest answer to the smallest request that is nobody's record.
TAG = b"GET /v1/tag.js HTTP/1.1\r\nHost: a\r\n\r\n"
# What each kind of slow client sends at once, and then every second; and whether it waits for an answer first.
SLOW = {
    "silent": (b"", b""),
    "half a line": (b"GET /v1/dec", b""),
    "a byte at a time": (GET[:-2] + b"X-Slow: ", b"x"),
    "half a body": (b"POST /v1/decision HTTP/1.1\r\nHost: a\r\nContent-Length: 60000\r\n\r\n" + b"x" * 30_000, b""),
    "answered": (GET, b""),
}
# Each of these has its time: of a whole request, or between two. Long enough for all of them to be there at once.
HEADER_TIMEOUT_S = 60.0
IDLE_TIMEOUT_S = 80.0
# A busy machine, and the half second in which the crowd looks.
LATE_S = 10.0
RSS_BYTES_MAX = 300 << 20
PROBES_PER_S = 100
# The good load leaves room on the machine's cores: how long one of them is waited for says nothing of the server.
PAUSE_S = 0.002
BATCH = 200


class Outcome(NamedTuple):
    counts: dict[str, int]
    cut: dict[str, int]
    """How many of the slow ones the server ended in their time."""
    held: int
    """How many connections it had at the most."""
    rss_bytes: int
    quiet_p99_s: float
    p99_s: float
    problems: list[str]


class Probe:
    """A good client that asks at a steady rate, and how long each answer took."""

    def __init__(self, address: str) -> None:
        self.took_s: list[float] = []
        self.failures: list[str] = []
        self._address = address
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Probe":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join(PATIENCE_S)

    @property
    def p99_s(self) -> float:
        return sorted(self.took_s)[len(self.took_s) * 99 // 100]

    def _run(self) -> None:
        connection = Connection(self._address)
        while not self._ending.wait(1 / PROBES_PER_S):
            began_monotonic = time.monotonic()
            try:
                connection.request("GET", "/ping")
                response = connection.getresponse()
                response.read()
                assert response.status == 200
            except (OSError, AssertionError) as error:
                self.failures.append(f"a probe: {error!r}")
                connection.close()
            self.took_s.append(time.monotonic() - began_monotonic)
        connection.close()


def besiege(
    kind: str, folder: Path, slow: int, deaf: int, seconds: float, header_timeout_s: float, idle_timeout_s: float
) -> Outcome:
    """Hold `slow` and `deaf` connections for `seconds` under good load, having measured without them as long."""
    timeouts_s = (str(header_timeout_s), str(idle_timeout_s))
    with serving_over(kind, folder, "--header-timeout", timeouts_s[0], "--idle-timeout", timeouts_s[1]) as server:
        watch = Watch(server)  # which costs the server something too
        with Probe(server.address) as quiet, Load(server.address, clients=2, pause_s=PAUSE_S):
            watch.look_for(seconds)
        with (
            crowd(server, slow, deaf, *timeouts_s) as bad,
            Load(server.address, clients=2, name="good", pause_s=PAUSE_S) as load,
        ):
            if deaf:
                watch.until_settled()
            with Probe(server.address) as probe:
                watch.look_for(seconds)
            cut = bad.ended()
        connections = server.status()["connections"]
        status = server.stop()
        counts = load.check(read_log(server.log))
    problems = [*load.failures, *quiet.failures, *probe.failures]
    problems += [f"{counts[wrong]} {wrong}" for wrong in WRONG if counts[wrong]]
    problems += [f"{count} of {name!r} were not cut in time" for name, count in cut.items() if count]
    if watch.held < slow * 0.9:  # the deaf are soon cut when they are many
        problems.append(f"only {watch.held} connections were held: the crowd was not there")
    if connections["turned_away"]:
        problems.append(f"{connections['turned_away']} were turned away")
    if watch.rss_bytes > RSS_BYTES_MAX:
        problems.append(f"it took {watch.rss_bytes >> 20} MiB")
    if status:
        problems.append(f"it ended with {status}: {server.errors[-1000:]}")
    return Outcome(counts, dict(cut), watch.held, watch.rss_bytes, quiet.p99_s, probe.p99_s, problems)


class Watch:
    """The most connections and resident bytes that the server had."""

    def __init__(self, server: Adcore) -> None:
        self._server = server
        self.held = self.rss_bytes = 0

    def look(self) -> int:
        """How many answers the deaf ones were given until now."""
        status = self._server.status()
        self.held = max(self.held, status["connections"]["open"])
        self.rss_bytes = max(self.rss_bytes, status["process"]["rss_bytes"])
        return int(status["delivery"]["requests"].get("tag", {}).get("200", 0))

    def until_settled(self) -> None:
        """Until the deaf ones take no more: what they ask for before that is load like any other."""
        before = 0
        while (answered := self.look()) != before or not answered:
            before = answered
            time.sleep(0.2)

    def look_for(self, seconds: float) -> None:
        end_monotonic = time.monotonic() + seconds
        while time.monotonic() < end_monotonic:
            self.look()
            time.sleep(0.2)


# --- the crowd, in a process of its own: its descriptors are as many as the server's


class Crowd:
    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def ended(self) -> Counter[str]:
        """Wait for the slow ones' time to be over; how many of each kind were left too long."""
        assert self._process.stdout is not None
        late: Counter[str] = Counter()
        for line in self._process.stdout.readline().split("; "):
            name, _, count = line.strip().rpartition("=")
            late[name] = int(count)
        return late


@contextmanager
def crowd(server: Adcore, slow: int, deaf: int, *timeouts_s: str) -> Iterator[Crowd]:
    with subprocess.Popen(
        [
            sys.executable,
            "-m",
            "tests.chaos.crowd",
            "--be-the-crowd",
            server.address,
            str(slow),
            str(deaf),
            *timeouts_s,
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
        cwd=Path(__file__).parents[2],
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "here\n"
            yield Crowd(process)
        finally:
            process.kill()


class Slow:
    """A bad client that should be cut after a while."""

    def __init__(self, address: str, kind: str, time_s: float) -> None:
        self.kind = kind
        at_once, self.every_second = SLOW[kind]
        self.sock = join(address)
        self.sock.sendall(at_once)
        self.end_monotonic = time.monotonic() + time_s + LATE_S

    def is_cut(self) -> bool:
        """Read what is there; whether that is the end."""
        try:
            return not self.sock.recv(4096)
        except BlockingIOError:
            return False
        except ConnectionError:
            return True


def be_the_crowd(address: str, slow: int, deaf: int, header_timeout_s: float, idle_timeout_s: float) -> None:
    kinds = itertools.cycle(SLOW)
    left: dict[int, Slow] = {}
    poll = select.epoll()
    for kind in itertools.islice(kinds, slow):
        one = Slow(address, kind, idle_timeout_s if kind in ("silent", "answered") else header_timeout_s)
        left[one.sock.fileno()] = one
        poll.register(one.sock, select.EPOLLIN)
        if len(left) % BATCH == 0:
            # They are accepted in their order: when this one is answered, so are all before it. Linux drops without a
            # word what a TCP listener has no room for, and tries again seconds later.
            assert ask(address, "/ping").status == 200
    full = [join(address) for _ in range(deaf)]
    for sock in full:
        # Until nothing more is taken, and never read.
        with contextlib.suppress(BlockingIOError, ConnectionError):
            while True:
                sock.send(TAG * 100)
    print("here", flush=True)
    late: Counter[str] = Counter(dict.fromkeys(SLOW, 0))
    dripping = [one for one in left.values() if one.every_second]
    dripped = 0
    began_monotonic = looked_monotonic = time.monotonic()
    while left:
        for fd, _ in poll.poll(0.01):
            if left[fd].is_cut():
                left.pop(fd).sock.close()
        now = time.monotonic()
        # Spread over each second, as from clients that know nothing of each other; what this was late for is not sent.
        due = int((now - began_monotonic) * len(dripping))
        dripped = max(dripped, due - len(dripping) // 10)
        for number in range(dripped, due):
            one = dripping[number % len(dripping)]
            with contextlib.suppress(OSError):
                one.sock.send(one.every_second)
        dripped = due
        if now < looked_monotonic + 0.5:
            continue
        looked_monotonic = now
        for fd, one in list(left.items()):
            if now > one.end_monotonic:
                late[one.kind] += 1
                left.pop(fd).sock.close()
    print("; ".join(f"{name}={count}" for name, count in late.items()), flush=True)
    sys.stdin.readline()


def join(address: str) -> socket.socket:
    while True:
        with contextlib.suppress(BlockingIOError):  # more wait in a unix socket than it takes
            sock = connect(address)
            sock.setblocking(False)
            return sock
        time.sleep(0.01)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.crowd", description="Good load among bad clients.")
    parser.add_argument("--slow", type=int, default=10_000, help="slow and idle connections (default: 10000)")
    parser.add_argument("--deaf", type=int, default=1000, help="connections that never read (default: 1000)")
    parser.add_argument("--seconds", type=float, default=15.0, help="for each kind of socket (default: 15)")
    parser.add_argument("--only", choices=KINDS, action="append", help="kinds of socket (default: all)")
    parser.add_argument("--be-the-crowd", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if options.be_the_crowd is not None:
        address, slow, deaf, header_timeout_s, idle_timeout_s = options.be_the_crowd
        be_the_crowd(address, int(slow), int(deaf), float(header_timeout_s), float(idle_timeout_s))
        return 0
    failed = False
    for kind in options.only or KINDS:
        with tempfile.TemporaryDirectory(prefix="adcore-") as folder:
            outcome = besiege(
                kind,
                Path(folder) / "state",
                options.slow,
                options.deaf,
                options.seconds,
                HEADER_TIMEOUT_S,
                IDLE_TIMEOUT_S,
            )
        ratio = outcome.p99_s / outcome.quiet_p99_s
        print(
            f"{kind}: {outcome.held} connections held, {outcome.rss_bytes >> 20} MiB; "
            f"p99 {outcome.p99_s * 1e3:.2f} ms, {ratio:.2f} times that without them; "
            + ", ".join(f"{n} {what}" for what, n in outcome.counts.items())
        )
        if ratio > 2:
            outcome.problems.append("good requests were more than twice as slow")
        for problem in outcome.problems[:20]:
            print(f"  {problem}")
        failed |= bool(outcome.problems)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
