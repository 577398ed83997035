"""Reads a delivery log as it grows, over rotations, and remembers how far it has got.

A log is a family of files: PATH, which is written, and those that were renamed (PATH.1, PATH-20261124) and compressed
(PATH.2.gz) from it. Names move on and inodes are used again, so a file is known by its first record, which has a random
id and keeps it through renaming and compression. Each file has a position of its own: a worker that is slow to reopen
may still write to a renamed one, and that is read too.

    tail.next() ──► a batch ──► tail.begin(batch) ──► (send it) ──► tail.commit(batch)

`next` starts where the last commit ended. What was begun and not committed, in a process that was killed say,
comes again with the same bounds and `again`. Knows nothing of where batches go, nor where positions are kept:
`PositionFile` keeps them in a file of their own; whoever commits elsewhere passes in something else.
"""

import errno
import fcntl
import os
import re
import zlib
from collections.abc import Callable, Container
from hashlib import sha256
from io import BufferedIOBase, BytesIO
from math import inf
from pathlib import Path
from typing import Generic, NamedTuple, Protocol

import msgspec

from adcore.deliverylog.reader import Damage, open_found_log, read_records, read_undamaged
from adcore.deliverylog.record import PAYLOAD_BYTES_MAX, Decoder, T
from adcore.errors import AdcoreError
from adcore.files import open_own, read_own, replace_own

# A batch: some hundreds of records. What has no whole record in it is read again, up to far more than one can take.
READ_BYTES = 256 * 1024
READ_BYTES_MAX = 4 * PAYLOAD_BYTES_MAX
# A file that is gone is forgotten only then: in the middle of a rotation it may be between two names.
ABSENT_SCANS_MAX = 100


def family_of(log: Path) -> re.Pattern[str]:
    """The names that a log has, and that it has once it is rotated."""
    return re.compile(re.escape(log.name) + r"(?:[.-](?P<number>\d[\d.-]*))?(?:\.gz)?")


class TailError(AdcoreError):
    """The log or the positions cannot be read, or somebody else reads with these positions."""


class Mark(msgspec.Struct):
    """How far a file was read: `offset` bytes of the uncompressed log; `done` when nothing can come any more."""

    offset: int = 0
    done: bool = False


class Sending(msgspec.Struct, frozen=True):
    """What was begun: bytes `start` to `end` of the file known as `identity`."""

    identity: str
    start: int
    end: int


class Positions(Protocol):
    """Where it is kept how far each file was read, by identity."""

    sending: Sending | None

    def mark(self, identity: str) -> Mark:
        """That of this file, to be read and changed; a new one for a file that was never heard of."""

    def note_present(self, identities: Container[str]) -> None:
        """These are all the files that there are now."""

    def save(self, *, durable: bool) -> None:
        """Keep the marks, and what is being sent."""


class Batch(NamedTuple, Generic[T]):
    """Records that follow each other in one file, and the damage between them (offsets in the uncompressed log)."""

    path: Path
    identity: str
    start: int
    end: int
    records: list[T]
    damage: list[Damage]
    again: bool = False
    """It was begun before, and whoever it was sent to may have it."""


class LogFile(NamedTuple):
    path: Path
    version: tuple[int, int, int, int]
    """Device, inode, size and time of change in nanoseconds."""
    identity: str
    file: BufferedIOBase
    is_packed: bool
    age: tuple[bool, int, int]
    """Sorts the oldest first. The names of logrotate count upwards as files grow old."""


class Tail(Generic[T]):
    """Reads the family of `path` with `decoder`, from where `positions` says, up to where `until` says of each file.

    Raises TailError.
    """

    def __init__(
        self,
        path: Path,
        positions: Positions,
        decoder: Decoder[T],
        until: Callable[[str], float] = lambda identity: inf,
    ) -> None:
        self.path = path
        self._until = until
        self.positions = positions
        self.decoder = decoder
        self._names = family_of(path)
        self._current: LogFile | None = None
        """Open until it has nothing more: a compressed file can be read on only from its start."""
        self._read_up: dict[tuple[int, int, int, int], str] = {}
        """Identities of the files that have nothing new, by version."""

    def close(self) -> None:
        self._leave_current()

    def next(self) -> Batch[T] | None:
        """The oldest records that are not committed; None when there is nothing more for now."""
        sending = self.positions.sending
        if sending is None and self._current is not None:
            if (batch := self._read(self._current)) is not None:
                return batch
            self._read_up[self._current.version] = self._current.identity
            self._leave_current()
        waiting = self._scan()
        try:
            while waiting:
                log_file = waiting[0]
                if sending is None:
                    batch = self._read(log_file)
                else:
                    batch = self._read_again(log_file, sending) if log_file.identity == sending.identity else None
                if batch is not None:
                    self._leave_current()
                    self._current = waiting.pop(0)
                    return batch
                waiting.pop(0).file.close()
                if sending is None:
                    self._read_up[log_file.version] = log_file.identity
        finally:
            for log_file in waiting:
                log_file.file.close()
        if sending is not None:
            # Rotated away while nobody took it.
            self.positions.sending = None
            return self.next()
        return None

    def begin(self, batch: Batch[T]) -> None:
        """Remember that the batch is about to be sent."""
        self.positions.sending = Sending(batch.identity, batch.start, batch.end)
        self.positions.save(durable=False)

    def commit(self, batch: Batch[T]) -> None:
        """Remember, on disk, that the batch has arrived."""
        self.positions.mark(batch.identity).offset = batch.end
        self.positions.sending = None
        self.positions.save(durable=True)

    def waiting_bytes(self) -> int | None:
        """About how much there is to read; None with compressed files, which tell only when they are read."""
        waiting = self._scan()
        for log_file in waiting:
            log_file.file.close()
        marks = [self.positions.mark(log_file.identity) for log_file in waiting]
        if any(log_file.is_packed and not mark.done for log_file, mark in zip(waiting, marks, strict=True)):
            return None
        return sum(max(0, log_file.version[2] - mark.offset) for log_file, mark in zip(waiting, marks, strict=True))

    def is_there(self) -> bool:
        """Whether there is a file of this family."""
        return any(self._names.fullmatch(name) for name in self._list())

    # The files

    def _list(self) -> list[str]:
        try:
            return os.listdir(self.path.parent)
        except OSError as error:
            raise TailError(f"cannot list {self.path.parent}: {error.strerror}") from error

    def _scan(self) -> list[LogFile]:
        """The files that may have something new, open, oldest first."""
        found: dict[str, LogFile] = {}
        for name in self._list():
            if (matched := self._names.fullmatch(name)) is None:
                continue
            log_file = self._open(self.path.with_name(name), matched["number"] or "0")
            if log_file is None:
                continue
            twin = found.get(log_file.identity)
            if twin is None:
                found[log_file.identity] = log_file
            else:  # while a file is being compressed it is there twice
                left, kept = (twin, log_file) if twin.is_packed else (log_file, twin)
                left.file.close()
                found[log_file.identity] = kept
        self.positions.note_present(found)
        self._read_up = {version: identity for version, identity in self._read_up.items() if identity in found}
        waiting = []
        for log_file in found.values():
            if log_file.version in self._read_up and self.positions.sending is None:
                log_file.file.close()
            else:
                waiting.append(log_file)
        return sorted(waiting, key=lambda log_file: log_file.age)

    def _open(self, path: Path, number: str) -> LogFile | None:
        """None when it is gone meanwhile, or has no record yet."""
        try:
            file = open_found_log(path)
            status = os.fstat(file.fileno())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise TailError(f"cannot read {path}: {error.strerror}; may this user read it?") from error
        version = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        identity = self._read_up.get(version) or identify(file)
        if identity is None:
            file.close()
            return None
        age = (path == self.path, status.st_mtime_ns, -int(re.sub(r"\D", "", number)))
        return LogFile(path, version, identity, file, path.suffix == ".gz", age)

    def _leave_current(self) -> None:
        if self._current is not None:
            self._current.file.close()
            self._current = None

    def _read(self, log_file: LogFile) -> Batch[T] | None:
        """The whole records after its mark, if there are any."""
        mark = self.positions.mark(log_file.identity)
        if mark.done:
            return None
        wanted = int(min(READ_BYTES, max(0, self._until(log_file.identity) - mark.offset)))
        while True:
            data, cut = read_at(log_file.file, mark.offset, wanted)
            if cut and not log_file.is_packed:
                raise TailError(f"cannot read {log_file.path}: {cut}")
            at_end = len(data) < wanted
            items = self._parse(data)
            length = len(data)
            # A compressed file is finished: what is torn at its end stays so.
            is_final = at_end and log_file.is_packed
            last = items[-1] if items else None
            if isinstance(last, Damage) and last.offset + last.length == length and not is_final:
                if not last.offset and not at_end and wanted < READ_BYTES_MAX:
                    wanted = READ_BYTES_MAX
                    continue
                if last.offset or at_end:
                    # It may be the beginning of a record.
                    items.pop()
                    length = last.offset
            if is_final and cut:
                items.append(Damage(length, 0, f"the compressed file is damaged here: {cut}"))
            if not items or (is_final and not length):
                mark.done = is_final
                return None
            return make_batch(log_file, mark.offset, mark.offset + length, items)

    def _read_again(self, log_file: LogFile, sending: Sending) -> Batch[T]:
        data, _ = read_at(log_file.file, sending.start, sending.end - sending.start)
        return make_batch(log_file, sending.start, sending.end, self._parse(data), again=True)

    def _parse(self, data: bytes) -> list[T | Damage]:
        """The records, and the damage between them."""
        records, end = read_undamaged(data, self.decoder)
        items: list[T | Damage] = [*records]
        if end < len(data):
            items += (
                item._replace(offset=end + item.offset) if isinstance(item, Damage) else item
                for item in read_records(BytesIO(data[end:]), self.decoder)
            )
        return items


def make_batch(log_file: LogFile, start: int, end: int, items: list[T | Damage], again: bool = False) -> Batch[T]:
    records = [item for item in items if not isinstance(item, Damage)]
    damage = [item._replace(offset=start + item.offset) for item in items if isinstance(item, Damage)]
    return Batch(log_file.path, log_file.identity, start, end, records, damage, again)


def identify(file: BufferedIOBase) -> str | None:
    """A hash of the first record; None as long as there is none."""
    for wanted in (READ_BYTES, READ_BYTES_MAX):
        data, _ = read_at(file, 0, wanted)
        for item in read_records(BytesIO(data)):
            if not isinstance(item, Damage):
                return sha256(msgspec.json.encode(item)).hexdigest()[:32]
        if len(data) < wanted:
            break
    return None


def read_at(file: BufferedIOBase, offset: int, length: int) -> tuple[bytes, str]:
    """Up to `length` bytes of the uncompressed log, and what cut them short: an error of the disk or of gzip."""
    pieces: list[bytes] = []
    try:
        file.seek(offset)
        while length > 0 and (piece := file.read1(length)):
            pieces.append(piece)
            length -= len(piece)
    except (EOFError, zlib.error, OSError) as error:
        return b"".join(pieces), str(error)
    return b"".join(pieces), ""


# The positions, when nobody comes back


class MemoryPositions:
    """Everything is read from its start."""

    sending: Sending | None = None

    def __init__(self) -> None:
        self._marks: dict[str, Mark] = {}

    def mark(self, identity: str) -> Mark:
        return self._marks.setdefault(identity, Mark())

    def note_present(self, identities: Container[str]) -> None:
        pass

    def save(self, *, durable: bool) -> None:
        pass


# The positions in a file


class _Content(msgspec.Struct):
    """The position file, JSON."""

    v: int = 1
    files: dict[str, Mark] = {}
    sending: Sending | None = None


class PositionFile:
    """Positions in the file at `path`, of one process at a time. Raises TailError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._absent: dict[str, int] = {}
        self._lock_fd = self._lock()
        content = self._load()
        self.files = content.files
        self.sending = content.sending

    def close(self) -> None:
        os.close(self._lock_fd)

    def mark(self, identity: str) -> Mark:
        return self.files.setdefault(identity, Mark())

    def note_present(self, identities: Container[str]) -> None:
        """Drop the positions of files that are gone for long."""
        for identity in list(self.files):
            self._absent[identity] = 0 if identity in identities else self._absent.get(identity, 0) + 1
            if self._absent[identity] > ABSENT_SCANS_MAX:
                del self.files[identity], self._absent[identity]

    def _lock(self) -> int:
        path = self.path.with_name(self.path.name + ".lock")
        try:
            fd = open_own(path, os.O_RDWR | os.O_CREAT, 0o640)
        except OSError as error:
            raise TailError(f"cannot write {path}: {error.strerror}; choose another position file") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(fd)
            if error.errno != errno.EWOULDBLOCK:
                raise
            message = f"another process reads with the positions in {self.path}; stop it first"
            raise TailError(message) from None
        return fd

    def _load(self) -> _Content:
        try:
            content = msgspec.json.decode(read_own(self.path)[0], type=_Content)
            if content.v != 1:
                raise msgspec.ValidationError(f"version {content.v} is not known here")
        except FileNotFoundError:
            return _Content()
        except OSError as error:
            raise TailError(f"cannot read {self.path}: {error.strerror}") from error
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            raise TailError(
                f"{self.path} is no position file ({error}); move it away, and all is read from the start"
            ) from error
        return content

    def save(self, *, durable: bool) -> None:
        content = msgspec.json.encode(_Content(1, self.files, self.sending))
        try:
            replace_own(self.path, content, mode=0o640, aside=f"{self.path.name}.new", durable=durable)
        except OSError as error:
            raise TailError(f"cannot write {self.path}: {error.strerror}") from error
