"""Where records wait for the writer: bounded in bytes, and exact about what it had to drop."""

from collections import Counter, deque
from collections.abc import Callable

from adcore.deliverylog.record import AnyRecord, Form, type_of

Waiting = tuple[str, bytes]
"""The type of a record, and the record as it will be written."""


class RecordQueue:
    """Records as the bytes that will be written. `put` and `append` are called on the request path and never wait.

    When a record does not fit it is dropped, and counted by its type: the oldest are kept, since each of them was
    promised first.
    """

    __slots__ = ("_is_empty", "_taken", "_waiting", "bytes", "bytes_high", "bytes_max", "dropped", "form", "on_first")

    def __init__(self, bytes_max: int, form: Form) -> None:
        self.bytes_max = bytes_max
        self.form = form
        self.bytes = 0
        self.bytes_high = 0
        """The most that ever waited."""
        self.dropped: Counter[str] = Counter()
        self.on_first: Callable[[], None] | None = None
        """Called when a record enters the empty queue."""
        self._is_empty = True
        self._taken: Counter[str] = Counter()
        self._waiting: deque[Waiting] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def accepted(self) -> Counter[str]:
        """How many were taken in, by type."""
        return self._taken + Counter(kind for kind, _ in self._waiting)

    def put(self, record: AnyRecord) -> bool:
        """Whether the record was taken."""
        return self.append(type_of(record), self.form.encode(record))

    def append(self, kind: str, data: bytes) -> bool:
        """The same for a record that is encoded already."""
        size = self.bytes + len(data)
        if size > self.bytes_max:
            self.dropped[kind] += 1
            return False
        self._waiting.append((kind, data))
        self.bytes = size
        if self._is_empty:
            self._is_empty = False
            if self.on_first is not None:
                self.on_first()
        return True

    def take(self, bytes_max: int) -> list[Waiting]:
        """Take out the oldest records, about `bytes_max` bytes of them and at least one if there is any.

        They stay within the queue's bound until `release` says that they are written.
        """
        # Between two takings the queue only grows.
        self.bytes_high = max(self.bytes_high, self.bytes)
        waiting = self._waiting
        batch: list[Waiting] = []
        size = 0
        while waiting and size < bytes_max:
            record = waiting.popleft()
            batch.append(record)
            size += len(record[1])
        self._is_empty = not waiting
        self._taken.update(kind for kind, _ in batch)
        return batch

    def release(self, size: int) -> None:
        """`size` bytes of what was taken are written, or dropped."""
        self.bytes -= size

    def drop(self, records: list[Waiting]) -> None:
        """Give up on records that were taken."""
        for kind, data in records:
            self.dropped[kind] += 1
            self.release(len(data))
