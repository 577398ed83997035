"""The stages of a request, each as the server runs it: a function that sets it up and gives one operation to repeat.

The parts are the server's own classes with its default configuration, put together as in adcore/server.py; only the
socket and the loop are the tests' fakes. Where a stage could be cut in several ways, it is cut where the classes are,
so that a rewrite of what is inside changes nothing here.
"""

import atexit
import time
from collections.abc import Awaitable, Callable
from functools import lru_cache
from io import BytesIO
from itertools import cycle, repeat
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import msgspec
import uvloop

from adcore.config import load_config
from adcore.core.adtable import build_table
from adcore.core.calendar import Calendar
from adcore.core.decision import Decision, decide
from adcore.core.facts import Facts
from adcore.counters import Counters
from adcore.delivery import Delivery
from adcore.deliverylog.queue import RecordQueue
from adcore.deliverylog.reader import read_records
from adcore.deliverylog.record import AD_FIELDS, FORMS, TABLE_FIELDS, VISITOR_FIELDS, Impression
from adcore.deliverylog.spool import Spool
from adcore.deliverylog.writer import LogWriter
from adcore.followed import Followed
from adcore.handlers import Handlers
from adcore.http1.plain import PlainReader
from adcore.http1.protocol import Http1Server, Limits
from adcore.http1.request import Request, RequestParser
from adcore.query import parse_query
from adcore.render import CompiledDecision
from adcore.server import impression_ids
from adcore.state import State
from adcore.tokens import KeyRing, Tokens
from perf.micro.inventory import CANDIDATES, PLACEMENT, VISITORS, document, visitor_request
from tests.http1.fakes import FakeLoop, FakeTransport

Clock = Callable[[], float]

REQUESTS_PER_TURN = 8
"""What a loop has to read at once when it is busy: 32 connections whose client waits for each answer."""
RECORDS_WRITTEN = 64
"""What a server at 20,000 requests/s has waiting after 3 ms."""
STILL_TIME = 1_800_000_000.0
# Python keeps the integers up to 256 ready; counts beyond, as a server has them after a minute, cost a block each.
COUNTS_MIN = 300


def still_clock() -> Clock:
    """Time that stands, for counting: no second ends, and no cache of a second is renewed, on the way."""
    return repeat(STILL_TIME).__next__


def nothing() -> None:
    pass


class Stage(NamedTuple):
    """One operation. `prepare` makes ready for `batch` of them, and is neither timed nor counted."""

    call: Callable[[], object]
    prepare: Callable[[], object] = nothing
    batch: int = VISITORS
    counted_batches: int = 16
    warm_batches: int = 16
    threads: bool = False
    """Part of the operation happens in another thread."""

    def warm_up(self) -> "Stage":
        """Fill the caches, as they are in a server that has run for a while."""
        for _ in range(self.warm_batches):
            self.prepare()
            for _ in range(self.batch):
                self.call()
        return self


class Parts:
    """A server's parts, as server.Server puts them together."""

    def __init__(self, folder: Path, clock: Clock = time.time, *, frequency_cap: bool = False) -> None:
        self.config = config = load_config({"state_dir": str(folder)}, {})
        self.clock = clock
        self.calendar = Calendar(config.time_zone)
        self.moment = self.calendar.moment(clock())
        clicks, views = (Followed.in_memory(config.click_window) for _ in range(2))
        self.state = State(Counters(self.calendar), clicks, views)
        self.table = build_table(document(CANDIDATES, frequency_cap=frequency_cap), revision=1)
        assert not self.table.rejected
        self.state.use(self.table, self.moment)
        for campaign in self.table.campaigns.values():
            count = self.state.counters.of(campaign.id)
            for _ in range(COUNTS_MIN):
                self.state.counters.count_impression(count, self.moment.day, self.moment.time)
        self.keyring = KeyRing({"2026": bytes(range(32))})
        self.queue = RecordQueue(config.log_queue_bytes, FORMS[config.log_format], Spool(folder))
        self.limits = Limits(request_s=config.header_timeout, idle_s=config.idle_timeout)
        self.ids = impression_ids()
        delivery = Delivery(
            config,
            self.state,
            keyring=self.keyring,
            calendar=self.calendar,
            queue=self.queue,
            country_of=None,
            host="ads-1",
            impression_ids=self.ids,
        )
        self.handlers = Handlers(config, delivery)
        # The handlers keep it with the line of the request.
        self._query_of = lru_cache(parse_query)
        self.server = Http1Server(
            self.handlers,
            self.limits,
            config.trusted_peers,
            before_answers=self.queue.commit,
            loop=FakeLoop(),
            clock=clock,
        )

    def parse(self) -> list[Request]:
        """The visitors' requests, made anew: bytes remember their hash, so those that were seen would be faster."""
        parser = RequestParser(self.limits, "", True)
        return [request for number in range(VISITORS) for request in parser.feed(visitor_request(number))]

    def facts(self, request: Request) -> Facts:
        who, _ = self.handlers.delivery.visit(request)
        query = self._query_of(request.query)
        return Facts(who.device, who.os, who.country, who.languages, query.keywords, query.key_values, who.bot)

    def drain(self) -> None:
        """Take out what waits for the log writer."""
        self.queue.take(self.queue.bytes_max + 1)
        self.queue.release(self.queue.bytes)

    def impression(self) -> Impression:
        """A record as the handlers make it."""
        self.drain()
        self.handlers(self.parse()[0])
        self.queue.commit()
        (batch,) = self.queue.take(1)
        (record,) = read_records(BytesIO(batch.data))
        assert isinstance(record, Impression)
        return record


def parse(parts: Parts) -> Stage:
    """The bytes of a request become a Request."""
    read = PlainReader(parts.limits).read
    request = Request(trusted=True)
    requests = cycle([memoryview(visitor_request(number)) for number in range(VISITORS)])
    return Stage(lambda: read(bytes(next(requests)), request))


def route(parts: Parts) -> Stage:
    """The handlers answer the simplest path: what every answer costs before there is anything to decide."""
    handlers = parts.handlers
    request = Request(b"GET", b"/ping")
    return Stage(lambda: handlers(request))


def facts(parts: Parts) -> Stage:
    """What the headers say of the visitor."""
    requests: list[Request] = []
    pop, visit = requests.pop, parts.handlers.delivery.visit

    def prepare() -> None:
        for number in range(VISITORS):
            request = Request(trusted=True)
            assert parts.server.reader.read(visitor_request(number), request)
            requests.append(request)

    return Stage(lambda: visit(pop()), prepare)


def decide_(parts: Parts) -> Stage:
    """Choose among 50 candidates."""
    table, moment, ids, held = parts.table, parts.moment, parts.ids, parts.state.counters.held
    visitors = cycle([parts.facts(request) for request in parts.parse()])
    assert isinstance(decide(table, PLACEMENT, next(visitors), moment, next(ids), held=held), Decision)
    return Stage(lambda: decide(table, PLACEMENT, next(visitors), moment, next(ids), held=held))


def render(parts: Parts) -> Stage:
    """The answer's bytes, given what was decided and signed."""
    ad = parts.table.placements[PLACEMENT].entrants[0].ads[0]
    compiled = CompiledDecision(ad.placement, ad.campaign.id, ad.creative, parts.config.public_url)
    impression_id = next(parts.ids)
    token = Tokens(parts.keyring, 1).sign(impression_id, Tokens.name(PLACEMENT, ad.creative.id), parts.moment.time)
    return Stage(lambda: compiled.json(impression_id, token))


def sign(parts: Parts) -> Stage:
    """The token of an answer."""
    sign_token = Tokens(parts.keyring, parts.config.token_lifetime).sign
    name = Tokens.name(PLACEMENT, parts.table.placements[PLACEMENT].entrants[0].ads[0].creative.id)
    impression_id, now = next(parts.ids), parts.moment.time
    return Stage(lambda: sign_token(impression_id, name, now))


def record(parts: Parts) -> Stage:
    """A record is made and put on the queue, with the others of a turn."""
    form, append, commit = parts.queue.form, parts.queue.impressions.append, parts.queue.commit
    sample = parts.impression()
    values, impression_id = msgspec.structs.asdict(sample), sample.id.encode()
    shared = [
        form.fields({name: values[name] for name in names})
        for names in (TABLE_FIELDS, AD_FIELDS, VISITOR_FIELDS, ["ip"], ["user"])
    ]

    of_table, of_ad, of_visitor, ip, user = shared
    turns = cycle([False] * (REQUESTS_PER_TURN - 1) + [True])

    def call() -> None:
        append((of_table, of_ad, of_visitor, ip, user, sample.chance, sample.time, impression_id))
        if next(turns):
            commit()

    return Stage(call, parts.drain)


class WatchedQueue(RecordQueue):
    """Says when all that was put is written."""

    on_written: Callable[[], None]

    def release(self, size: int) -> None:
        super().release(size)
        if not self.bytes:
            self.on_written()


def write(parts: Parts) -> Stage:
    """The log writer, woken by 64 records in the queue, appends them to its file.

    28 of its blocks and a tenth of its time are the loop's start and stop around it. The pause in which the writer
    gathers records, which takes no CPU, is left out.
    """
    patch("adcore.deliverylog.writer.GATHER_S", 0.0).start()
    queue = WatchedQueue(parts.config.log_queue_bytes, FORMS[parts.config.log_format])
    writer = LogWriter(queue, parts.config.log)
    writer.open()
    loop = uvloop.new_event_loop()
    queue.on_written = loop.stop
    running = loop.create_task(writer.run())

    async def within(written: Awaitable[object]) -> None:
        await written

    atexit.register(lambda: loop.run_until_complete(writer.close(running, within)))
    sample = parts.impression()

    def prepare() -> None:
        with parts.config.log.open("r+b") as file:
            file.truncate()
        for _ in range(RECORDS_WRITTEN):
            queue.put(sample)

    def call() -> None:
        loop.run_forever()
        assert not running.done()

    return Stage(call, prepare, batch=1, counted_batches=101, warm_batches=200, threads=True)


def table_100(parts: Parts) -> Stage:
    """Compile a document of 50 campaigns with 2 creatives each."""
    inventory = document(50, 2)
    return Stage(lambda: build_table(inventory, revision=2), batch=1, counted_batches=4, warm_batches=2)


def table_10000(parts: Parts) -> Stage:
    """Compile a document of 500 campaigns with 20 creatives each."""
    inventory = document(500, 20)
    return Stage(lambda: build_table(inventory, revision=2), batch=1, counted_batches=1, warm_batches=1)


def request(parts: Parts) -> Stage:
    """All of it: bytes come in at the protocol, bytes go out at the transport, and a record waits for the disk."""
    return _requests(parts, "")


def request_capped(parts: Parts) -> Stage:
    """The same where campaigns have a frequency cap: a cookie is read, and another one set."""
    (answer,) = _Client(parts).ask(visitor_request(0))
    cookie = next(line[12:] for line in answer.decode().split("\r\n") if line.startswith("Set-Cookie: "))
    return _requests(parts, cookie.partition(";")[0])


def _requests(parts: Parts, cookie: str) -> Stage:
    client = _Client(parts)
    (answer,) = client.ask(visitor_request(0, cookie))
    assert answer.startswith(b"HTTP/1.1 200")
    receive, end_turn = client.receive, client.end_turn
    arriving = cycle([memoryview(visitor_request(number, cookie)) for number in range(VISITORS)])
    turns = cycle([False] * (REQUESTS_PER_TURN - 1) + [True])

    def call() -> None:
        # New bytes each time, as from a loop that reads them.
        receive(bytes(next(arriving)))
        if next(turns):
            end_turn()

    return Stage(call, parts.drain, warm_batches=400)


class _Client:
    """One connection to the server, and the loop that turns it."""

    def __init__(self, parts: Parts) -> None:
        self._server = parts.server
        self._transport = FakeTransport()
        protocol = self._transport.protocol = parts.server()
        protocol.connection_made(self._transport)
        self.receive: Callable[[bytes], None] = protocol.data_received

    def end_turn(self) -> None:
        assert isinstance(self._server.loop, FakeLoop)
        self._server.loop.turn()
        self._transport.writes.clear()

    def ask(self, request: bytes) -> list[bytes]:
        self.receive(request)
        self._server.end_turn()
        return self._transport.writes.copy()


STAGES: dict[str, Callable[[Parts], Stage]] = {
    "parse": parse,
    "route": route,
    "facts": facts,
    "decide": decide_,
    "render": render,
    "sign": sign,
    "record": record,
    "write": write,
    "request": request,
    "request_capped": request_capped,
    "table_100": table_100,
    "table_10000": table_10000,
}


def set_up(name: str, folder: Path, clock: Clock = time.time) -> Stage:
    """The stage of this name with its caches warm; its files are in `folder`."""
    return STAGES[name](Parts(folder, clock, frequency_cap=name == "request_capped")).warm_up()
