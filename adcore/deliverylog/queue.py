"""Where records wait for the writer: bounded in bytes, and exact about what it had to drop."""

from collections import Counter, deque
from collections.abc import Callable
from typing import NamedTuple

from adcore.deliverylog.record import AnyRecord, Encode, type_of


class Waiting(NamedTuple):
    type: str
    data: bytes


class RecordQueue:
    """Records as the bytes that will be written. `put` is called on the request path and never waits.

    When a record does not fit it is dropped, and counted by its type: the oldest are kept, since each of them was
    promised first.
    """

    def __init__(self, bytes_max: int, encode: Encode) -> None:
        self.bytes_max = bytes_max
        self.bytes = 0
        self.bytes_high = 0
        """The most that ever waited."""
        self.accepted: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self.on_first: Callable[[], None] | None = None
        """Called when a record enters the empty queue."""
        self._encode = encode
        self._waiting: deque[Waiting] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, record: AnyRecord) -> bool:
        """Whether the record was taken."""
        data = self._encode(record)
        kind = type_of(record)
        size = self.bytes + len(data)
        if size > self.bytes_max:
            self.dropped[kind] += 1
            return False
        waiting = self._waiting
        waiting.append(Waiting(kind, data))
        self.bytes = size
        if size > self.bytes_high:
            self.bytes_high = size
        self.accepted[kind] += 1
        if len(waiting) == 1 and self.on_first is not None:
            self.on_first()
        return True

    def take(self, bytes_max: int) -> list[Waiting]:
        """Take out the oldest records, about `bytes_max` bytes of them and at least one if there is any.

        They stay within the queue's bound until `release` says that they are written.
        """
        batch: list[Waiting] = []
        size = 0
        while self._waiting and size < bytes_max:
            record = self._waiting.popleft()
            batch.append(record)
            size += len(record.data)
        return batch

    def release(self, size: int) -> None:
        """`size` bytes of what was taken are written, or dropped."""
        self.bytes -= size

    def drop(self, records: list[Waiting]) -> None:
        """Give up on records that were taken."""
        for record in records:
            self.dropped[record.type] += 1
            self.release(len(record.data))
