"""Where records wait for the writer: bounded in bytes, and exact about what it had to drop.

A paid record is an impression, view or click of a visitor. Unpaid ones are those of unfilled slots and of robots, and
a visitor can cause any number of them. So they wait in a second lane, which is bounded to half of the queue, and they
give way, as in rsyslog above its queue.discardMark: when a paid record does not fit, the newest unpaid ones are
dropped. The log has both in the order in which they came.
"""

from collections import Counter, deque
from collections.abc import Callable
from typing import NamedTuple, Protocol

from adcore.deliverylog.record import AnyRecord, Form, Impressed, Unfilled, type_of

# The rest is reserved: paid records have it even while the writer has taken all unpaid ones and cannot return them.
UNPAID_SHARE = 0.5


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
    def cut(self, rest: int) -> None: ...


class Lane:
    """Records that wait, the oldest first, within a bound of their own."""

    __slots__ = ("bytes", "bytes_max", "keeper", "waiting")

    def __init__(self, bytes_max: int, keeper: Keeper | None) -> None:
        self.bytes_max = bytes_max
        self.keeper = keeper
        self.bytes = 0
        """Of those that wait and those that were taken."""
        self.waiting: deque[Batch] = deque()

    def release(self, size: int) -> None:
        """The oldest `size` bytes are written."""
        self.bytes -= size
        if self.keeper is not None:
            self.keeper.release(size, self.bytes)

    def drop_newest(self) -> Batch:
        """Take back the last of those that wait."""
        batch = self.waiting.pop()
        self.bytes -= len(batch.data)
        if self.keeper is not None:
            self.keeper.cut(self.bytes)
        return batch


class Run:
    """Batches of one lane that came one after the other."""

    __slots__ = ("batches", "lane")

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.batches = 1


class RecordQueue:
    """Records as the bytes that will be written. Nothing here ever waits.

    Impressions are many: the request path appends what they say to `impressions` (those of robots to
    `robot_impressions`), and `commit` encodes those of one turn of the event loop together, before their answers leave.
    All others are encoded by `put`.

    When a record does not fit it is dropped, and counted by its type: the oldest are kept, since each of them was
    promised first. What is taken in is kept by the lane's keeper until it is written, if there is one.
    """

    __slots__ = (
        "_accepted",
        "_count",
        "_runs",
        "_taken",
        "bytes",
        "bytes_high",
        "bytes_max",
        "dropped",
        "dropped_late",
        "dropped_paid",
        "form",
        "impressions",
        "on_ready",
        "paid",
        "ready_bytes",
        "robot_impressions",
        "unpaid",
    )

    def __init__(
        self, bytes_max: int, form: Form, keeper: Keeper | None = None, unpaid_keeper: Keeper | None = None
    ) -> None:
        self.bytes_max = bytes_max
        self.form = form
        self.paid = Lane(bytes_max, keeper)
        self.unpaid = Lane(int(bytes_max * UNPAID_SHARE), unpaid_keeper)
        self.impressions: list[Impressed] = []
        self.robot_impressions: list[Impressed] = []
        self.bytes = 0
        """Of both lanes."""
        self.bytes_high = 0
        """The most that ever waited."""
        self.dropped: Counter[str] = Counter()
        self.dropped_paid: Counter[str] = Counter()
        """Those of `dropped` that are revenue."""
        self.dropped_late: Counter[str] = Counter()
        """Those of `dropped` that had been accepted."""
        self.on_ready: Callable[[], None] | None = None
        """Called when `bytes` reach `ready_bytes`, once for each time that these are set."""
        self.ready_bytes = bytes_max + 1
        self._accepted: Counter[str] = Counter()
        self._count = 0
        self._runs: deque[Run] = deque()
        """The order in which the batches wait."""
        self._taken: deque[tuple[Lane, int]] = deque()
        """Whose bytes the writer has, in their order."""

    def __len__(self) -> int:
        return self._count

    @property
    def accepted(self) -> Counter[str]:
        """How many were taken in, by type."""
        return self._accepted.copy()

    @property
    def is_kept(self) -> bool:
        """Whether all that is not written yet outlives this process."""
        return all(lane.keeper is not None and lane.keeper.complete for lane in (self.paid, self.unpaid) if lane.bytes)

    def put(self, record: AnyRecord) -> int:
        """The bytes that the record takes; 0 if it was dropped."""
        lane = self.unpaid if record.ivt or isinstance(record, Unfilled) else self.paid
        return self._append(lane, type_of(record), [self.form.encode(record)])

    def commit(self) -> None:
        """Take in the impressions."""
        if self.impressions:
            self._append(self.paid, "impression", self.form.impressions(self.impressions))
            self.impressions.clear()
        if self.robot_impressions:
            self._append(self.unpaid, "impression", self.form.impressions(self.robot_impressions))
            self.robot_impressions.clear()

    def _append(self, lane: Lane, kind: str, records: list[bytes]) -> int:
        """Take in as many as fit, the first ones; their size."""
        lengths = list(map(len, records))
        size = sum(lengths)
        if self.bytes + size > self.bytes_max or lane.bytes + size > lane.bytes_max:
            size = self._cut(lane, kind, lengths, size)
            if not lengths:
                return 0
            del records[len(lengths) :]
        data = b"".join(records)
        if lane.keeper is not None:
            lane.keeper.append(data)
        runs = self._runs
        if runs and runs[-1].lane is lane:
            runs[-1].batches += 1
        else:
            runs.append(Run(lane))
        lane.waiting.append(Batch(kind, lengths, data))
        lane.bytes += size
        self.bytes += size
        self._count += len(lengths)
        self._accepted[kind] += len(lengths)
        if self.bytes >= self.ready_bytes and self.on_ready is not None:
            self.ready_bytes = self.bytes_max + 1
            self.on_ready()
        return size

    def _cut(self, lane: Lane, kind: str, lengths: list[int], size: int) -> int:
        """Drop the last records of these lengths until the others fit; the size of those."""
        room = min(self.bytes_max - self.bytes, lane.bytes_max - lane.bytes)
        if size > room and lane is self.paid:
            room += self._make_room(size - room)
        while size > room:
            size -= lengths.pop()
            self._note_dropped(lane, kind, 1)
        return size

    def _make_room(self, wanted: int) -> int:
        """Drop unpaid records that wait, the newest first; the bytes that this gives, fewer than `wanted` when there
        are no more."""
        self.bytes_high = max(self.bytes_high, self.bytes)
        before = self.unpaid.bytes
        while before - self.unpaid.bytes < wanted and self.unpaid.waiting:
            batch = self.unpaid.drop_newest()
            self._shorten_last_run_of_unpaid()
            self.bytes -= len(batch.data)
            self._count -= len(batch.lengths)
            self._note_dropped(self.unpaid, batch.kind, len(batch.lengths), late=True)
        return before - self.unpaid.bytes

    def _shorten_last_run_of_unpaid(self) -> None:
        runs = self._runs
        after = runs.pop() if runs[-1].lane is self.paid else None
        runs[-1].batches -= 1
        if not runs[-1].batches:
            runs.pop()
        if after is not None:
            if runs and runs[-1].lane is self.paid:
                runs[-1].batches += after.batches
            else:
                runs.append(after)

    def _note_dropped(self, lane: Lane, kind: str, count: int, *, late: bool = False) -> None:
        self.dropped[kind] += count
        if late:
            self.dropped_late[kind] += count
        if lane is self.paid:
            self.dropped_paid[kind] += count

    def take(self, bytes_max: int) -> list[Batch]:
        """Take out the oldest records, about `bytes_max` bytes of them and at least one if there is any.

        They stay within the queue's bound until `release` says that they are written.
        """
        # Between two takings the queue only grows, unless room is made.
        self.bytes_high = max(self.bytes_high, self.bytes)
        runs = self._runs
        batches: list[Batch] = []
        size = 0
        while runs and size < bytes_max:
            lane, before, rest = runs[0].lane, size, runs[0].batches
            while rest and size < bytes_max:
                batch = lane.waiting.popleft()
                batches.append(batch)
                size += len(batch.data)
                self._count -= len(batch.lengths)
                rest -= 1
            self._taken.append((lane, size - before))
            if rest:
                runs[0].batches = rest
            else:
                runs.popleft()
        return batches

    def release(self, size: int) -> None:
        """The oldest `size` bytes of what was taken are written."""
        self.bytes -= size
        while size:
            lane, part = self._pop_taken(size)
            lane.release(part)
            size -= part

    def drop(self, batches: list[Batch]) -> None:
        """Give up on what was taken and not released, which is `batches`; what the keepers have of it stays there."""
        for kind, lengths, data in batches:
            lane, part = self._pop_taken(len(data))
            assert part == len(data)
            lane.bytes -= part
            self.bytes -= part
            self._note_dropped(lane, kind, len(lengths), late=True)

    def _pop_taken(self, size: int) -> tuple[Lane, int]:
        """The lane of the oldest bytes that were taken, and how many of `size` are its."""
        lane, rest = self._taken.popleft()
        part = min(size, rest)
        if part < rest:
            self._taken.appendleft((lane, rest - part))
        return lane, part
