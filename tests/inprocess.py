"""The parts that answer requests, put together in the test's own process, with a clock and ids that it knows."""

import io
from itertools import count
from pathlib import Path
from typing import Any

from adcore.config import load_config
from adcore.core.adtable import build_table
from adcore.core.calendar import Calendar
from adcore.counters import Counters
from adcore.delivery import Delivery
from adcore.deliverylog.queue import RecordQueue
from adcore.deliverylog.reader import Damage, read_records
from adcore.deliverylog.record import FORMS, Impression, Unfilled
from adcore.followed import Followed
from adcore.handlers import Handlers
from adcore.http1.plain import PlainReader
from adcore.http1.request import Limits, Request, RequestLine
from adcore.http1.response import Response
from adcore.state import State
from adcore.tokens import KeyRing
from tests.inventories import change, document

NOW = 1_800_000_000.0
KEYRING = KeyRing({"k": b"k" * 32})


class Process:
    """Handlers behind a plain reader."""

    def __init__(
        self,
        tmp_path: Path,
        *campaigns: dict[str, Any],
        trusted: bool = True,
        keyring: KeyRing = KEYRING,
        form: str = "msgpack",
    ) -> None:
        self.calendar = Calendar(load_config().time_zone)
        self.state = State(Counters(self.calendar), Followed.in_memory(3600.0), Followed.in_memory(3600.0))
        self.queue = RecordQueue(1 << 30, FORMS[form])
        numbers = count(1)
        # Two processes draw alike.
        ids = (b"%032x" % (next(numbers) * 0x9E3779B97F4A7C15F39CC0605CEDC835 % (1 << 128)) for _ in count())
        config = load_config({"state_dir": str(tmp_path)}, {})
        delivery = Delivery(
            config,
            self.state,
            keyring=keyring,
            calendar=self.calendar,
            queue=self.queue,
            country_of=None,
            host="h",
            impression_ids=ids,
        )
        self.handlers = Handlers(config, delivery)
        self.reader = PlainReader(Limits())
        self.request = Request(trusted=trusted)
        self.revision = 0
        self.use(*campaigns)

    def use(self, *campaigns: dict[str, Any]) -> None:
        self.revision += 1
        table = build_table(document(*campaigns), revision=self.revision)
        assert not table.rejected
        self.state.use(table, self.calendar.moment(NOW))

    def change(self, *campaigns: dict[str, Any]) -> None:
        """The same, but what is as before is shared with the table before."""
        self.revision += 1
        assert self.state.table is not None
        self.state.use(change(self.state.table, document(*campaigns), self.revision), self.calendar.moment(NOW))

    def ask(self, target: str = "/v1/decision?placement=side", now: float = NOW, **headers: str) -> bytes:
        lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        assert self.reader.read(f"GET {target} HTTP/1.1\r\nHost: a\r\n{lines}\r\n".encode("latin-1"), self.request)
        self.request.time = now
        body = self.handlers(self.request).body
        self.queue.commit()
        return body

    def post(self, body: bytes, **headers: str) -> Response:
        request = self.request
        request.line = RequestLine(b"POST", b"/v1/decision", b"")
        request.headers = {name.replace("_", "-").lower().encode(): value.encode() for name, value in headers.items()}
        request.body = body
        request.time = NOW
        response = self.handlers(request)
        self.queue.commit()
        return response

    def records(self) -> list[Impression | Unfilled]:
        """What slots got since they were asked for. Every record that was written must be readable."""
        data = b"".join(batch.data for batch in self.queue.take(1 << 30))
        self.queue.release(len(data))
        records = []
        for found in read_records(io.BytesIO(data)):
            assert not isinstance(found, Damage)
            if isinstance(found, Impression | Unfilled):
                records.append(found)
        return records
