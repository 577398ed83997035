"""What happens in the simulated world, and what must be true of it afterwards.

Two processes serve clients that pipeline, split their requests anywhere and follow links, while inventory changes and
the log is rotated. One that is killed is started again. In the end everything is mended, what waits is written, and the
log is held against what the clients got:

- an answer that reached a client whole is in the log, once; what was dropped is counted, to the record;
- nothing is in the log twice, and nothing that was never asked;
- the answers of a connection come in the order of its requests;
- no answer mixes two tables, and no process goes back to an older one;
- once all is mended, each process serves the newest revision within an interval and a second;
- nothing has failed that was not made to.
"""

import asyncio
import json
import logging
import random
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

from adcore.deliverylog.reader import Damage, read_records
from adcore.deliverylog.record import to_object
from adcore.errors import StartError
from adcore.sources import Revision, Rows
from tests.inventories import campaign, document, text_creative
from tests.simulation.process import INTERVAL_S, Peer, Process, Site
from tests.simulation.world import SLOW_S, Fault, Killed, VirtualLoop, World

PROCESSES = 2
CLIENTS = 3
REQUESTS = 8
CHANGES = 2
ROTATIONS = 3
# In virtual seconds; far above any fault.
PATIENCE_S = 300.0

Key = tuple[str, str, str]
"""Type, what it is known by (the request's n, or a click's id), placement."""


class Answer(NamedTuple):
    status: int
    body: bytes


class Outcome(NamedTuple):
    trace: list[str]
    answered: int
    dropped: int
    problems: list[str]


class Scenario:
    def __init__(self, world: World, site: Site) -> None:
        self.world = world
        self.site = site
        self.sent: set[str] = set()
        self.promised: Counter[Key] = Counter()
        self.problems: list[str] = []
        self.started = 0
        self.over = False
        self.change()

    # What happens

    async def run(self) -> None:
        keeping = [asyncio.ensure_future(self._keep_one()) for _ in range(PROCESSES)]
        await self._patiently(self._until(lambda: len(self.site.alive()) == PROCESSES))
        acting = [self._client(number) for number in range(CLIENTS)]
        await self._patiently(asyncio.gather(*acting, self._change_now_and_then(), self._rotate_now_and_then()))
        self.world.faults = {}  # all is mended
        await asyncio.sleep(2 * SLOW_S)
        await self._patiently(self._until(lambda: len(self.site.alive()) == PROCESSES))
        self.change()
        await asyncio.sleep(INTERVAL_S + 1)
        newest = self.site.store.rows.revision.number
        for process in self.site.alive():
            if process.revisions[-1] != newest:
                self.problems.append(f"{process.name} serves revision {process.revisions[-1]}, not {newest}")
        self.over = True
        for process in self.site.alive():
            await self._patiently(process.end())
        for keeper in keeping:
            keeper.cancel()
        last = await self._start()
        assert last is not None
        await self._patiently(last.end())

    async def _keep_one(self) -> None:
        """As the parent does: another process after one that was killed or could not start."""
        while not self.over:
            process = await self._start()
            while process is not None and not process.dead:
                await asyncio.sleep(0.1)
            await asyncio.sleep(0.1)

    async def _start(self) -> Process | None:
        self.started += 1
        process = Process(self.site, self.started)
        try:
            await process.start()
        except (StartError, Killed):
            if not process.dead:
                process.kill()  # its end has closed what it had
            return None
        return process

    def change(self) -> None:
        """Another revision, all of whose ads carry its number."""
        number = self.site.store.rows.revision.number + 1
        ads = [
            campaign(
                f"{place}{n}",
                targeting={"placements": [place]},
                creatives=[text_creative(f"{place}{n}-1", data={"text": f"mark {number}"})],
            )
            for place in ("side", "foot")
            for n in range(3)
        ]
        self.site.store.rows = Rows(Revision("first", number, number), document(*ads))

    async def _change_now_and_then(self) -> None:
        for _ in range(CHANGES):
            await asyncio.sleep(self.world.chance.uniform(0, 1.5))
            self.change()

    async def _rotate_now_and_then(self) -> None:
        for number in range(ROTATIONS):
            await asyncio.sleep(self.world.chance.uniform(0, 0.8))
            if self.site.log_path.exists():
                self.site.log_path.rename(self.site.log_path.with_name(f"log.{number + 1}"))
            for process in self.site.alive():
                process.writer.reopen()

    async def _client(self, number: int) -> None:
        chance = self.world.chance
        sent = 0
        while sent < REQUESTS:
            await self._until(self.site.alive)
            peer = Peer(chance.choice(self.site.alive()))
            for _ in range(chance.randint(1, 3)):
                names = [f"{number}-{sent + n}" for n in range(chance.randint(1, 3))]
                sent += len(names)
                links = await self._ask(peer, names)
                if links and chance.random() < 0.5:
                    await self._follow(peer, chance.choice(links))
                await asyncio.sleep(chance.uniform(0, 0.3))
            peer.close()

    async def _ask(self, peer: Peer, names: list[str]) -> list[str]:
        """Send these requests at once, in any pieces; the links in their answers."""
        chance = self.world.chance
        self.sent.update(names)
        placements = [chance.choice(("side", "side,foot", "top")) for _ in names]
        data = b"".join(
            f"GET /v1/decision?placement={placement}&kv.n={name} HTTP/1.1\r\nHost: a\r\n"
            f"User-Agent: {chance.choice(('x', 'x', 'Googlebot/2.1'))}\r\n\r\n".encode()
            for name, placement in zip(names, placements, strict=True)
        )
        peer.received = b""
        while data:
            size = len(data) if chance.random() < 0.6 else chance.randint(1, len(data))
            peer.send(data[:size])
            data = data[size:]
            await asyncio.sleep(chance.uniform(0, 0.005))
        await self._until(lambda: peer.gone or len(split(peer.received)) >= len(names))
        links = []
        for name, placement, answer in zip(names, placements, split(peer.received), strict=False):
            links += self._check(name, placement, answer)
        return links

    def _check(self, name: str, placement: str, answer: Answer) -> list[str]:
        """Note what the answer promises; its links."""
        wanted = 204 if placement == "top" else 200
        if answer.status != wanted:
            self.problems.append(f"{name} for {placement}: {answer}")
            return []
        if answer.status == 204:
            self.promised["unfilled", name, placement] += 1
            return []
        decision = json.loads(answer.body)
        decisions = decision.get("decisions", [decision])
        if [one["placement"] for one in decisions] != placement.split(","):
            self.problems.append(f"{name}: out of order: {placement}, but {decision}")
        if len({one["creative"]["data"]["text"] for one in decisions}) != 1:
            self.problems.append(f"{name}: two tables in {decision}")
        for one in decisions:
            self.promised["impression", name, one["placement"]] += 1
        return [one["click_url"] for one in decisions]

    async def _follow(self, peer: Peer, link: str) -> None:
        peer.received = b""
        peer.send(f"GET {link} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        await self._until(lambda: peer.gone or split(peer.received))
        for answer in split(peer.received):
            if answer.status == 302:
                impression_id, placement = link.split("~")[2:4]
                self.promised["click", impression_id, placement] += 1
            else:
                self.problems.append(f"{link}: {answer}")

    async def _until(self, condition: Any) -> None:
        while not condition():
            await asyncio.sleep(0.01)

    async def _patiently(self, what: Any) -> None:
        await asyncio.wait_for(what, PATIENCE_S)

    # What must be true

    def judge(self, records: list[dict[str, Any]], errors: list[str]) -> Outcome:
        logged = Counter(key(record) for record in records)
        dropped = sum(process.dropped for process in self.site.processes)
        problems = [*self.problems, *errors]
        lost = self.promised - logged
        if lost.total() != dropped:
            problems.append(f"{lost.total()} lost, {dropped} counted as dropped: {lost}")
        problems += [f"{count} times in the log: {what}" for what, count in logged.items() if count > 1]
        problems += [f"never asked: {what}" for what in logged if what[0] != "click" and what[1] not in self.sent]
        for process in self.site.processes:
            if process.revisions != sorted(process.revisions):
                problems.append(f"{process.name} went back to an older table: {process.revisions}")
        if left := list(self.site.folder.glob("*.spool")):
            problems.append(f"left behind: {left}")
        return Outcome(self.world.trace, self.promised.total(), dropped, problems)


def key(record: dict[str, Any]) -> Key:
    known = record["id"] if record["type"] == "click" else dict(record["key_values"])["n"]
    return record["type"], known, record["placement"]


def split(data: bytes) -> list[Answer]:
    """The whole answers at the start of `data`."""
    found = []
    while b"\r\n\r\n" in data:
        head, _, rest = data.partition(b"\r\n\r\n")
        status = int(head.split(b" ", 2)[1])
        lengths = [line.split(b":")[1] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
        length = int(lengths[0]) if lengths else 0
        if len(rest) < length:
            break
        found.append(Answer(status, rest[:length]))
        data = rest[length:]
    return found


class _Surprises(logging.Handler):
    """Keeps tracebacks: what was logged with one was not expected by anybody."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self.found.append(f"{record.getMessage()}: {record.exc_info[1]!r}")


def simulate(
    folder: Path,
    seed: int,
    faults: Mapping[int, Fault] | None = None,
    form: str = "msgpack",
    queue_bytes: int = 1 << 20,
) -> Outcome:
    """One run of the world."""
    surprises = _Surprises()
    root = logging.getLogger("adcore")
    propagate, root.propagate = root.propagate, False
    root.addHandler(surprises)
    names = iter(range(1 << 30))
    try:
        with (
            asyncio.Runner(loop_factory=VirtualLoop) as runner,
            # The names of the spools decide in which order they are taken over.
            patch("adcore.deliverylog.spool.secrets.token_hex", lambda size: f"{next(names):016x}"),
        ):
            loop = runner.get_loop()
            assert isinstance(loop, VirtualLoop)
            world = World(seed, faults or {})
            world.bind(loop)
            site = Site(world, folder, form, queue_bytes)
            scenario = Scenario(world, site)
            try:
                runner.run(scenario.run())
            except TimeoutError:
                scenario.problems.append(f"it came to no end: {world.trace[-5:]}")
            finally:
                site.close()
            errors = [*surprises.found, *(str(context) for context in loop.exceptions)]
    finally:
        root.removeHandler(surprises)
        root.propagate = propagate
    records = []
    for path in sorted(folder.glob("log*")):
        with path.open("rb") as file:
            records += [to_object(found) for found in read_records(file) if not isinstance(found, Damage)]
    return scenario.judge(records, errors)


def many_faults(seed: int) -> dict[int, Fault]:
    """Every other write is short, so that those of the processes come between each other's, and one operation in thirty
    has another fault."""
    chance = random.Random(f"faults {seed}")
    others = [fault for fault in Fault if fault is not Fault.SHORT]
    draws = {at: chance.random() for at in range(1, 1000)}
    return {at: Fault.SHORT if draw > 0.03 else chance.choice(others) for at, draw in draws.items() if draw < 0.5}
