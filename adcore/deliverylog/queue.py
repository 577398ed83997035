"""Where records wait for the writer: bounded in bytes, and exact about what it had to drop."""

from collections import Counter, deque
from collections.abc import Callable
from typing import NamedTuple, Protocol

from adcore.deliverylog.record import AnyRecord, Form, Impressed, type_of


class Batch(NamedTuple):
    """Records of one type, as they will be written."""

    kind: str
    lengths: list[int]
    """Of each record in `data`."""
    data: bytes


class Keeper(Protocol):
    """Where records are kept while they wait, such as Spool; `complete` says whether all of them are."""

    complete: bool

    def append(self, data: bytes) -> None: ...
    def release(self, size: int, rest: int) -> None: ...


class RecordQueue:
    """Records as the bytes that will be written. Nothing here ever waits.

    Impressions are many: the request path appends what they say to `impressions`, and `commit` encodes those of one
    turn of the event loop together, before their answers leave. All others are encoded by `put`.

    When a record does not fit it is dropped, and counted by its type: the oldest are kept, since each of them was
    promised first. What is taken in is kept by `keeper` until it is written, if there is one.
    """

    __slots__ = (
        "_accepted",
        "_count",
        "_waiting",
        "bytes",
        "bytes_high",
        "bytes_max",
        "dropped",
        "form",
        "impressions",
        "keeper",
        "on_first",
    )

    def __init__(self, bytes_max: int, form: Form, keeper: Keeper | None = None) -> None:
        self.bytes_max = bytes_max
        self.form = form
        self.keeper = keeper
        self.impressions: list[Impressed] = []
        self.bytes = 0
        self.bytes_high = 0
        """The most that ever waited."""
        self.dropped: Counter[str] = Counter()
        self.on_first: Callable[[], None] | None = None
        """Called when a record enters the empty queue."""
        self._accepted: Counter[str] = Counter()
        self._count = 0
        self._waiting: deque[Batch] = deque()

    def __len__(self) -> int:
        return self._count

    @property
    def accepted(self) -> Counter[str]:
        """How many were taken in, by type."""
        return self._accepted.copy()

    def put(self, record: AnyRecord) -> bool:
        """Whether the record was taken."""
        return self._append(type_of(record), [self.form.encode(record)])

    def commit(self) -> None:
        """Take in the impressions."""
        if self.impressions:
            self._append("impression", self.form.impressions(self.impressions))
            self.impressions.clear()

    def _append(self, kind: str, records: list[bytes]) -> bool:
        """Take in as many as fit, the first ones; whether there were any."""
        lengths = list(map(len, records))
        size = sum(lengths)
        while self.bytes + size > self.bytes_max:
            size -= lengths.pop()
            self.dropped[kind] += 1
        if not lengths:
            return False
        data = b"".join(records[: len(lengths)])
        if self.keeper is not None:
            self.keeper.append(data)
        is_first = not self._count
        self._waiting.append(Batch(kind, lengths, data))
        self._count += len(lengths)
        self._accepted[kind] += len(lengths)
        self.bytes += size
        if is_first and self.on_first is not None:
            self.on_first()
        return True

    def take(self, bytes_max: int) -> list[Batch]:
        """Take out the oldest records, about `bytes_max` bytes of them and at least one if there is any.

        They stay within the queue's bound until `release` says that they are written.
        """
        # Between two takings the queue only grows.
        self.bytes_high = max(self.bytes_high, self.bytes)
        waiting = self._waiting
        batches: list[Batch] = []
        size = 0
        while waiting and size < bytes_max:
            batch = waiting.popleft()
            batches.append(batch)
            size += len(batch.data)
            self._count -= len(batch.lengths)
        return batches

    def release(self, size: int) -> None:
        """The oldest `size` bytes of what was taken are written."""
        self.bytes -= size
        if self.keeper is not None:
            self.keeper.release(size, self.bytes)

    def drop(self, batches: list[Batch]) -> None:
        """Give up on records that were taken; what the keeper has of them stays there."""
        for kind, lengths, data in batches:
            self.dropped[kind] += len(lengths)
            self.bytes -= len(data)
