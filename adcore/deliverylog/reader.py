"""Reads delivery logs of both forms, in one file even, and goes on after damage.

Where bytes are no record the reader looks for the next place that can be one: the magic of a frame whose checksum
holds, a line that begins with a brace, or what an object of ours begins with, since a worker may have appended to the
torn line of another. What it passed over it reports with its place.
"""

import gzip
import zlib
from collections.abc import Iterator
from io import BufferedIOBase, BufferedReader, FileIO
from pathlib import Path
from typing import Generic, NamedTuple, overload

from adcore.deliverylog.record import (
    HEADER,
    MAGIC,
    PAYLOAD_BYTES_MAX,
    RECORDS,
    AnyRecord,
    Decoder,
    RecordError,
    T,
)
from adcore.files import open_found

READ_BYTES = 1 << 20
# How a msgpack map can begin: in what is no frame the checksum need not be reckoned.
_MAPS = frozenset(bytes([byte]) for byte in (*range(0x80, 0x90), 0xDE, 0xDF))
# What to look for, and how far in it a record begins: a frame, a line, and an object of either encoder of ours within
# one (quotes in the texts of a record are escaped).
_BEGINNINGS = ((MAGIC[:1], 0), (b"\n{", 1), (b'{"v":1,"type":"', 0), (b'{"type":"', 0))


class Damage(NamedTuple):
    """Bytes that are no record: where (in the uncompressed log), how many, and what is wrong with them."""

    offset: int
    length: int
    reason: str


class _Found(NamedTuple, Generic[T]):
    """What stands at a place: a record, or why there is none; and where the next one can start (-1: look for it)."""

    record: T | None
    reason: str
    next: int


def open_log(path: Path) -> BufferedIOBase:
    """The bytes of a log, uncompressed if its name ends in .gz. Raises OSError."""
    return gzip.GzipFile(path) if path.suffix == ".gz" else path.open("rb")


def open_found_log(path: Path) -> BufferedIOBase:
    """`open_log` of a file that was found beside a log, where others may have put it. Raises OSError."""
    file = FileIO(open_found(path))
    if path.suffix != ".gz":
        return BufferedReader(file)
    packed = gzip.GzipFile(fileobj=file)
    packed.myfileobj = file  # to be closed with it, as a file that GzipFile opens itself
    return packed


def read_undamaged(data: bytes, decoder: Decoder[T]) -> tuple[list[T], int]:
    """The whole records that `data` begins with, all of one form, and where they end; ([], 0) where anything is odd.

    They are decoded together, which takes half the time of `read_records` (`perf/run collect`). That one says what
    stands where this stops.
    """
    try:
        if data[:1] == b"{":
            end = data.rfind(b"\n") + 1
            return decoder.lines(data[:end]), end
        payloads, end = _whole_frames(data)
        return decoder.payloads(payloads), end
    except RecordError:
        return [], 0


def _whole_frames(data: bytes) -> tuple[list[bytes], int]:
    """The payloads of the frames that `data` begins with, and where they end."""
    payloads: list[bytes] = []
    unpack, checksum_of = HEADER.unpack_from, zlib.crc32
    at, last = 0, len(data) - HEADER.size
    while at <= last:
        magic, length, checksum = unpack(data, at)
        start = at + HEADER.size
        payload = data[start : start + length]
        # One that is cut short fails its checksum too.
        if magic != MAGIC or length > PAYLOAD_BYTES_MAX or checksum_of(payload) != checksum:
            break
        payloads.append(payload)
        at = start + length
    return payloads, at


@overload
def read_records(file: BufferedIOBase) -> Iterator[AnyRecord | Damage]: ...


@overload
def read_records(file: BufferedIOBase, decoder: Decoder[T]) -> Iterator[T | Damage]: ...


def read_records(file: BufferedIOBase, decoder: Decoder[T] = RECORDS) -> Iterator[T | Damage]:  # type: ignore[assignment]
    """Every record of an open log in order, and the damage between them. Memory is bounded by the largest record."""
    buffer = b""
    base = at = 0
    ended = False
    damage_at, reason = -1, ""
    cut = ""
    starts = _Starts(buffer)
    while True:
        found = _find(buffer, at, ended, decoder) if at < len(buffer) else None
        if found is None:
            if ended:
                break
            try:
                more = file.read1(READ_BYTES)
            except (EOFError, zlib.error) as error:
                # A compressed file that was cut off or damaged: what came before is good.
                more, cut = b"", str(error)
            ended = not more
            buffer = buffer[at:] + more
            base += at
            at = 0
            starts = _Starts(buffer)
            continue
        if found.reason:
            if damage_at < 0:
                damage_at, reason = base + at, found.reason
        elif damage_at >= 0 and found.record is not None:
            yield Damage(damage_at, base + at - damage_at, reason)
            damage_at = -1
        if found.record is not None:
            yield found.record
        at = found.next if found.next >= 0 else starts.after(at)
    if damage_at >= 0:
        yield Damage(damage_at, base + len(buffer) - damage_at, reason)
    if cut:
        yield Damage(base + len(buffer), 0, f"the compressed file is damaged here: {cut}")


def _find(buffer: bytes, at: int, ended: bool, decoder: Decoder[T]) -> _Found[T] | None:
    """What stands at `at`; None when that can't be told before more is read."""
    first = buffer[at]
    if first == MAGIC[0]:
        return _find_frame(buffer, at, ended, decoder)
    if first == 0x7B:  # {
        return _find_line(buffer, at, ended, decoder)
    if first == 0x0A:  # a line end alone: the writer ended a torn line with it
        return _Found(None, "", at + 1)
    return _Found(None, "not the start of a record", -1)


def _find_frame(buffer: bytes, at: int, ended: bool, decoder: Decoder[T]) -> _Found[T] | None:
    start = at + HEADER.size
    if start > len(buffer):
        return _Found(None, "a torn record", -1) if ended else None
    magic, length, checksum = HEADER.unpack_from(buffer, at)
    if magic != MAGIC or length > PAYLOAD_BYTES_MAX:
        return _Found(None, "not the start of a record", -1)
    stop = start + length
    if stop > len(buffer):
        return _Found(None, "a torn record", -1) if ended else None
    payload = buffer[start:stop]
    if payload[:1] not in _MAPS or zlib.crc32(payload) != checksum:
        return _Found(None, "a record whose checksum does not hold", -1)
    try:
        return _Found(decoder.payload(payload), "", stop)
    except RecordError as error:
        return _Found(None, str(error), stop)


def _find_line(buffer: bytes, at: int, ended: bool, decoder: Decoder[T]) -> _Found[T] | None:
    stop = buffer.find(b"\n", at, at + PAYLOAD_BYTES_MAX)
    if stop < 0:
        if len(buffer) - at < PAYLOAD_BYTES_MAX:
            return _Found(None, "a torn record", -1) if ended else None
        return _Found(None, "a line that is too long for a record", -1)
    try:
        return _Found(decoder.line(buffer[at:stop]), "", stop + 1)
    except RecordError as error:
        # A frame may stand right behind a torn line, so the line is not passed over whole.
        return _Found(None, str(error), -1)


class _Starts:
    """The places in a buffer where a record can begin, found in one walk however often they are asked for."""

    def __init__(self, buffer: bytes) -> None:
        self._buffer = buffer
        self._found = [-1] * len(_BEGINNINGS)

    def after(self, at: int) -> int:
        """The next one; the end of the buffer if there is none."""
        for number, (beginning, skipped) in enumerate(_BEGINNINGS):
            if self._found[number] <= at:
                found = self._buffer.find(beginning, at + 1 - skipped)
                self._found[number] = found + skipped if found >= 0 else self._cut_off(beginning, at + 1)
        return min(self._found)

    def _cut_off(self, beginning: bytes, first: int) -> int:
        """Where the buffer ends in the middle of this, from `first` on; the buffer's end if it does not."""
        size = len(self._buffer)
        for length in range(min(len(beginning) - 1, size - first), 0, -1):
            if self._buffer.endswith(beginning[:length]):
                return size - length
        return size
