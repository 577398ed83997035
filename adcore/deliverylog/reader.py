"""Reads delivery logs of both forms, in one file even, and goes on after damage.

Where bytes are no record the reader looks for the next place that can be one: the magic of a frame whose checksum
holds, or a line that begins with a brace. What it passed over it reports with its place.
"""

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast
from zlib import crc32

from adcore.deliverylog.record import (
    HEADER,
    MAGIC,
    PAYLOAD_BYTES_MAX,
    AnyRecord,
    RecordError,
    decode_json,
    decode_payload,
)

READ_BYTES = 1 << 20


class Damage(NamedTuple):
    """Bytes that are no record: where (in the uncompressed log), how many, and what is wrong with them."""

    offset: int
    length: int
    reason: str


class _Found(NamedTuple):
    """What stands at a place: a record, or why there is none; and where the next one can start (-1: look for it)."""

    record: AnyRecord | None
    reason: str
    next: int


def open_log(path: Path) -> BinaryIO:
    """The bytes of a log, uncompressed if its name ends in .gz. Raises OSError."""
    return cast(BinaryIO, gzip.open(path)) if path.suffix == ".gz" else path.open("rb")


def read_records(file: BinaryIO) -> Iterator[AnyRecord | Damage]:
    """Every record of an open log in order, and the damage between them. Memory is bounded by the largest record."""
    buffer = b""
    base = at = 0
    ended = False
    damage_at, reason = -1, ""
    while True:
        found = _find(buffer, at, ended) if at < len(buffer) else None
        if found is None:
            if ended:
                break
            more = file.read(READ_BYTES)
            ended = not more
            buffer = buffer[at:] + more
            base += at
            at = 0
            continue
        if found.reason:
            if damage_at < 0:
                damage_at, reason = base + at, found.reason
        elif damage_at >= 0 and found.record is not None:
            yield Damage(damage_at, base + at - damage_at, reason)
            damage_at = -1
        if found.record is not None:
            yield found.record
        at = found.next if found.next >= 0 else _next_start(buffer, at + 1)
    if damage_at >= 0:
        yield Damage(damage_at, base + len(buffer) - damage_at, reason)


def _find(buffer: bytes, at: int, ended: bool) -> _Found | None:
    """What stands at `at`; None when that can't be told before more is read."""
    first = buffer[at]
    if first == MAGIC[0]:
        return _find_frame(buffer, at, ended)
    if first == 0x7B:  # {
        return _find_line(buffer, at, ended)
    if first == 0x0A:  # a line end alone: the writer ended a torn line with it
        return _Found(None, "", at + 1)
    return _Found(None, "not the start of a record", -1)


def _find_frame(buffer: bytes, at: int, ended: bool) -> _Found | None:
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
    if crc32(payload) != checksum:
        return _Found(None, "a record whose checksum does not hold", -1)
    try:
        return _Found(decode_payload(payload), "", stop)
    except RecordError as error:
        return _Found(None, str(error), stop)


def _find_line(buffer: bytes, at: int, ended: bool) -> _Found | None:
    stop = buffer.find(b"\n", at, at + PAYLOAD_BYTES_MAX)
    if stop < 0:
        if len(buffer) - at < PAYLOAD_BYTES_MAX:
            return _Found(None, "a torn record", -1) if ended else None
        return _Found(None, "a line that is too long for a record", -1)
    try:
        return _Found(decode_json(buffer[at:stop]), "", stop + 1)
    except RecordError as error:
        # A frame may stand right behind a torn line, so the line is not passed over whole.
        return _Found(None, str(error), -1)


def _next_start(buffer: bytes, at: int) -> int:
    """The next place from `at` where a record can begin; the end of the buffer if there is none."""
    frame = buffer.find(MAGIC[:1], at)
    # The start of the buffer is the start of a line only if the byte before it, at `at - 1`, ended one.
    line = buffer.find(b"\n{", at - 1)
    places = [place for place in (frame, line + 1 if line >= 0 else -1) if place >= at]
    return min(places, default=len(buffer))
