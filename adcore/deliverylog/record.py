"""The schema of the delivery log, both ways.

JSON form: one object a line. msgpack form, per record, all integers big-endian:

    offset  size
    0       2     magic, C1 AD. C1 is the one byte that msgpack never uses.
    2       4     length n of the payload
    6       4     CRC-32 of the payload
    10      n     the same object as a msgpack map

A reader that meets anything else looks for the next magic whose length and checksum hold, so a torn or damaged record
never takes the next one with it.
"""

from collections.abc import Callable, Mapping
from struct import Struct
from typing import Any, Protocol
from zlib import crc32

import msgpack
import msgspec

VERSION = 1
MAGIC = b"\xc1\xad"
HEADER = Struct(">2sII")
# A record is a few hundred bytes; only keywords and key-values of a page vary, and those are bounded too.
PAYLOAD_BYTES_MAX = 1 << 20


class Record(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """What every record says. Times are wall time in epoch seconds; `ivt` marks invalid traffic (known bots)."""

    v: int = VERSION
    time: float
    id: str
    """The impression's id: 128 random bits in hexadecimal, and the draw of the decision."""
    placement: str
    revision: int
    host: str
    device: str
    os: str
    country: str
    ivt: bool
    ip: str
    """Truncated to /24 or /48."""


class Answer(Record, frozen=True, kw_only=True):
    """What a slot got, with all that is needed to decide it again."""

    languages: tuple[str, ...]
    keywords: tuple[str, ...]
    key_values: tuple[tuple[str, str], ...]
    hour: int
    weekday: int
    user: str
    """A keyed hash of the caller's user key; "" without one."""
    excluded: Mapping[str, str]
    """Campaigns that only counts kept outside the table held back, and why."""


class Impression(Answer, tag="impression", frozen=True, kw_only=True):
    """A decision that was returned."""

    campaign: str
    creative: str
    chance: float
    """The probability with which this creative was chosen."""


class Unfilled(Answer, tag="unfilled", frozen=True, kw_only=True):
    """A slot that got nothing: the main reason, and how many candidates fell to which."""

    reason: str
    reasons: Mapping[str, int]


class View(Record, tag="view", frozen=True, kw_only=True):
    """The tag saw the ad on screen; `id` is the impression's."""

    campaign: str
    creative: str


class Click(Record, tag="click", frozen=True, kw_only=True):
    """Somebody followed the ad; `id` is the impression's."""

    campaign: str
    creative: str


AnyRecord = Impression | Unfilled | View | Click
TYPES = ("impression", "unfilled", "view", "click")

# One for all: each Packer has a buffer of 256 KiB, which msgpack.packb would make and drop in every call.
_pack: Callable[[object], bytes] = msgpack.Packer().pack
_pack_header = HEADER.pack
_pack_float = Struct(">d").pack
_to_json = msgspec.json.Encoder().encode
_to_msgpack = msgspec.msgpack.Encoder().encode
_from_json = msgspec.json.Decoder(AnyRecord).decode
_from_msgpack = msgspec.msgpack.Decoder(AnyRecord).decode


class RecordError(ValueError):
    """Bytes that are no record of a version and type known here; the text says why."""


def type_of(record: AnyRecord) -> str:
    tag = record.__struct_config__.tag
    assert isinstance(tag, str)
    return tag


class Form(Protocol):
    """One form of the log: how its records are written.

    Impressions are written on the request path, so all that many of them share is packed once. `constant` packs what
    does not differ between two impressions of one ad to alike visitors; `impression` adds the rest, where ip and user
    are what `text` gives.
    """

    name: str
    lines: bool
    """Whether each record must start at the start of a line."""

    def encode(self, record: AnyRecord) -> bytes: ...

    def constant(self, fields: Mapping[str, object]) -> bytes:
        """`fields` has CONSTANT_FIELDS and may have more."""

    def text(self, field: str, value: str) -> bytes: ...

    def impression(self, constant: bytes, time: float, impression_id: bytes, ip: bytes, user: bytes) -> bytes: ...


CONSTANT_FIELDS = tuple(
    field for field in Impression.__struct_fields__ if field not in ("v", "time", "id", "ip", "user")
)
"""What alike impressions share, in the order in which `constant` packs it, after version and type."""


class JsonForm:
    """An object a line."""

    name = "json"
    lines = True

    def encode(self, record: AnyRecord) -> bytes:
        """A line with its end; JSON escapes any line break within."""
        return _to_json(record) + b"\n"

    def constant(self, fields: Mapping[str, object]) -> bytes:
        packed = _to_json({"v": VERSION, "type": "impression"} | {field: fields[field] for field in CONSTANT_FIELDS})
        return packed.removesuffix(b"}") + b',"time":'

    def text(self, field: str, value: str) -> bytes:
        return b',"%b":%b' % (field.encode(), _to_json(value))

    def impression(self, constant: bytes, time: float, impression_id: bytes, ip: bytes, user: bytes) -> bytes:
        return b'%b%a,"id":"%b"%b%b}\n' % (constant, time, impression_id, ip, user)


class MsgpackForm:
    """A frame a record."""

    name = "msgpack"
    lines = False

    def encode(self, record: AnyRecord) -> bytes:
        payload = _to_msgpack(record)
        return _pack_header(MAGIC, len(payload), crc32(payload)) + payload

    def constant(self, fields: Mapping[str, object]) -> bytes:
        # A map of more than 15 entries has its number in the two bytes after its first one.
        size = 1 + len(Impression.__struct_fields__)
        entries = {"v": VERSION, "type": "impression"} | {field: fields[field] for field in CONSTANT_FIELDS}
        packed = [_pack(name) + _pack(value) for name, value in entries.items()]
        return b"\xde" + size.to_bytes(2) + b"".join(packed) + b"\xa4time\xcb"

    def text(self, field: str, value: str) -> bytes:
        return _pack(field) + _pack(value)

    def impression(self, constant: bytes, time: float, impression_id: bytes, ip: bytes, user: bytes) -> bytes:
        payload = b"".join((constant, _pack_float(time), b"\xa2id\xd9\x20", impression_id, ip, user))
        return _pack_header(MAGIC, len(payload), crc32(payload)) + payload


FORMS: dict[str, Form] = {form.name: form for form in (JsonForm(), MsgpackForm())}


def decode_json(line: bytes) -> AnyRecord:
    """Raises RecordError."""
    return _decode(_from_json, line)


def decode_payload(payload: bytes) -> AnyRecord:
    """The record in a frame's payload. Raises RecordError."""
    return _decode(_from_msgpack, payload)


def to_object(record: AnyRecord) -> dict[str, Any]:
    """The record as `adctl log cat --json` prints it."""
    fields: dict[str, Any] = msgspec.to_builtins(record)
    return {"v": fields.pop("v"), **fields}


def _decode(decode: Callable[[bytes], AnyRecord], data: bytes) -> AnyRecord:
    try:
        record = decode(data)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, RecursionError) as error:
        raise RecordError(str(error)) from None
    if record.v != VERSION:
        raise RecordError(f"version {record.v} is not known here")
    return record
