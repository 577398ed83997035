"""Reads a delivery log as it grows, over rotations, and remembers how far it has got.

A log is a family of files: PATH, which is written, and those that were renamed (PATH.1, PATH-20261124) and compressed
(PATH.2.gz) from it. Names move on and inodes are used again, so a file is known by its first record, which has a random
id and keeps it through renaming and compression. Each file has a position of its own: a worker that is slow to reopen
may still write to a renamed one, and that is read too.

    tail.next() ──► a batch ──► tail.begin(batch) ──► (send it) ──► tail.commit(batch)

`next` starts where the last commit ended. What was begun and not committed, in a process that was killed say,
comes again with the same bounds and `again`. Knows nothing of where batches go.
"""

import errno
import fcntl
import os
import re
import zlib
from collections.abc import Container
from hashlib import sha256
from io import BufferedIOBase, BytesIO
from pathlib import Path
from typing import NamedTuple

import msgspec

from adcore.deliverylog.reader import Damage, open_log, read_records
from adcore.deliverylog.record import PAYLOAD_BYTES_MAX, AnyRecord
from adcore.errors import AdcoreError

# A batch: some hundreds of records. What has no whole record in it is read again, up to far more than one can take.
READ_BYTES = 256 * 1024
READ_BYTES_MAX = 4 * PAYLOAD_BYTES_MAX
# A file that is gone is forgotten only then: in the middle of a rotation it may be between two names.
ABSENT_SCANS_MAX = 100


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


class Positions(msgspec.Struct):
    """The position file, JSON."""

    v: int = 1
    files: dict[str, Mark] = {}
    sending: Sending | None = None


class Batch(NamedTuple):
    """Records that follow each other in one file, and the damage between them (offsets in the uncompressed log)."""

    path: Path
    identity: str
    start: int
    end: int
    records: list[AnyRecord]
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


class Tail:
    """Reads the family of `path`; positions are kept in `positions_path`. Raises TailError."""

    def __init__(self, path: Path, positions_path: Path) -> None:
        self.path = path
        self.positions_path = positions_path
        self._names = re.compile(re.escape(path.name) + r"(?:[.-](?P<number>\d[\d.-]*))?(?P<packed>\.gz)?")
        self._current: LogFile | None = None
        """Open until it has nothing more: a compressed file can be read on only from its start."""
        self._read_up: dict[tuple[int, int, int, int], str] = {}
        """Identities of the files that have nothing new, by version."""
        self._absent: dict[str, int] = {}
        self._lock_fd = self._lock()
        self.positions = self._load()

    def close(self) -> None:
        self._leave_current()
        os.close(self._lock_fd)

    def next(self) -> Batch | None:
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
                log_file = waiting.pop(0)
                if sending is None:
                    batch = self._read(log_file)
                else:
                    batch = self._read_again(log_file, sending) if log_file.identity == sending.identity else None
                if batch is not None:
                    self._leave_current()
                    self._current = log_file
                    return batch
                log_file.file.close()
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

    def begin(self, batch: Batch) -> None:
        """Remember that the batch is about to be sent."""
        self.positions.sending = Sending(batch.identity, batch.start, batch.end)
        self._save(durable=False)

    def commit(self, batch: Batch) -> None:
        """Remember, on disk, that the batch has arrived."""
        self._mark(batch.identity).offset = batch.end
        self.positions.sending = None
        self._save(durable=True)

    # The files

    def _scan(self) -> list[LogFile]:
        """The files that may have something new, open, oldest first."""
        try:
            names = os.listdir(self.path.parent)
        except OSError as error:
            raise TailError(f"cannot list {self.path.parent}: {error.strerror}") from error
        found: dict[str, LogFile] = {}
        for name in names:
            if (matched := self._names.fullmatch(name)) is None:
                continue
            log_file = self._open(self.path.with_name(name), matched["number"] or "0", matched["packed"] is not None)
            if log_file is None:
                continue
            twin = found.get(log_file.identity)
            if twin is None:
                found[log_file.identity] = log_file
            else:  # while a file is being compressed it is there twice
                left, kept = (twin, log_file) if twin.is_packed else (log_file, twin)
                left.file.close()
                found[log_file.identity] = kept
        self._forget_absent(found)
        waiting = []
        for log_file in found.values():
            if log_file.version in self._read_up and self.positions.sending is None:
                log_file.file.close()
            else:
                waiting.append(log_file)
        return sorted(waiting, key=lambda log_file: log_file.age)

    def _open(self, path: Path, number: str, is_packed: bool) -> LogFile | None:
        """None when it is gone meanwhile, or has no record yet."""
        try:
            file = open_log(path)
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
        return LogFile(path, version, identity, file, is_packed, age)

    def _forget_absent(self, found: Container[str]) -> None:
        """Drop the positions of files that are gone for long."""
        for identity in list(self.positions.files):
            self._absent[identity] = 0 if identity in found else self._absent.get(identity, 0) + 1
            if self._absent[identity] > ABSENT_SCANS_MAX:
                del self.positions.files[identity], self._absent[identity]
        self._read_up = {version: identity for version, identity in self._read_up.items() if identity in found}

    def _leave_current(self) -> None:
        if self._current is not None:
            self._current.file.close()
            self._current = None

    def _mark(self, identity: str) -> Mark:
        return self.positions.files.setdefault(identity, Mark())

    def _read(self, log_file: LogFile) -> Batch | None:
        """The whole records after its mark, if there are any."""
        mark = self._mark(log_file.identity)
        if mark.done:
            return None
        wanted = READ_BYTES
        while True:
            data, cut = read_at(log_file.file, mark.offset, wanted)
            if cut and not log_file.is_packed:
                raise TailError(f"cannot read {log_file.path}: {cut}")
            at_end = len(data) < wanted
            items = list(read_records(BytesIO(data)))
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

    def _read_again(self, log_file: LogFile, sending: Sending) -> Batch:
        data, _ = read_at(log_file.file, sending.start, sending.end - sending.start)
        return make_batch(log_file, sending.start, sending.end, list(read_records(BytesIO(data))), again=True)

    # The positions

    def _lock(self) -> int:
        path = self.positions_path.with_name(self.positions_path.name + ".lock")
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        except OSError as error:
            raise TailError(f"cannot write {path}: {error.strerror}; choose another position file") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(fd)
            if error.errno != errno.EWOULDBLOCK:
                raise
            message = f"another process reads {self.path} with the positions in {self.positions_path}; stop it first"
            raise TailError(message) from None
        return fd

    def _load(self) -> Positions:
        try:
            positions = msgspec.json.decode(self.positions_path.read_bytes(), type=Positions)
            if positions.v != 1:
                raise msgspec.ValidationError(f"version {positions.v} is not known here")
        except FileNotFoundError:
            return Positions()
        except OSError as error:
            raise TailError(f"cannot read {self.positions_path}: {error.strerror}") from error
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            raise TailError(
                f"{self.positions_path} is no position file ({error}); move it away, and all is read from the start"
            ) from error
        return positions

    def _save(self, *, durable: bool) -> None:
        temporary = self.positions_path.with_name(self.positions_path.name + ".new")
        try:
            with temporary.open("wb") as file:
                file.write(msgspec.json.encode(self.positions))
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            temporary.replace(self.positions_path)
        except OSError as error:
            raise TailError(f"cannot write {self.positions_path}: {error.strerror}") from error


def make_batch(log_file: LogFile, start: int, end: int, items: list[AnyRecord | Damage], again: bool = False) -> Batch:
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
