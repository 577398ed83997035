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

from collections.abc import Callable, Iterable, Mapping, Sequence
from struct import Struct
from typing import Any, Generic, Protocol, TypeVar
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

    generation: str = ""
    """Which store's revisions `revision` is one of; "" in records of before this field."""
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
_pack_numbers = Struct(">8sd6sd5s").pack
# A map of more than 15 entries has their number in two bytes.
_IMPRESSION = (
    b"\xde" + (1 + len(Impression.__struct_fields__)).to_bytes(2) + b"".join(map(_pack, ("v", 1, "type", "impression")))
)
_to_json = msgspec.json.Encoder().encode
_to_msgpack = msgspec.msgpack.Encoder().encode


class RecordError(ValueError):
    """Bytes that are no record of a version and type known here; the text says why."""


def type_of(record: AnyRecord) -> str:
    tag = record.__struct_config__.tag
    assert isinstance(tag, str)
    return tag


Impressed = tuple[bytes, bytes, bytes, bytes, bytes, float, float, bytes]
"""An impression in parts. What many share is packed once, by `Form.fields`: that of the table
(TABLE_FIELDS), that of the ad (AD_FIELDS), that of alike visitors (VISITOR_FIELDS), `ip`, and `user`. Then its chance,
time, and id."""


class Form(Protocol):
    """One form of the log: how its records are written."""

    name: str
    lines: bool
    """Whether each record must start at the start of a line."""

    def encode(self, record: AnyRecord) -> bytes: ...

    def fields(self, fields: Mapping[str, object]) -> bytes: ...

    def impressions(self, impressions: Iterable[Impressed]) -> list[bytes]:
        """A record for each, in one go, since every answer waits for it."""
        ...


TABLE_FIELDS = ("generation", "revision")
AD_FIELDS = ("placement", "campaign", "creative", "host")
VISITOR_FIELDS = (
    *("device", "os", "country", "languages", "keywords", "key_values", "ivt"),
    *("hour", "weekday", "excluded"),
)


class JsonForm:
    """An object a line."""

    name = "json"
    lines = True

    def encode(self, record: AnyRecord) -> bytes:
        """A line with its end; JSON escapes any line break within."""
        return _to_json(record) + b"\n"

    def fields(self, fields: Mapping[str, object]) -> bytes:
        return _to_json(fields)[1:-1] + b","

    def impressions(self, impressions: Iterable[Impressed]) -> list[bytes]:
        template = b'{"v":1,"type":"impression",%b%b%b%b%b"chance":%a,"time":%a,"id":"%b"}\n'
        return [template % impressed for impressed in impressions]


class MsgpackForm:
    """A frame a record."""

    name = "msgpack"
    lines = False

    def encode(self, record: AnyRecord) -> bytes:
        payload = _to_msgpack(record)
        return _pack_header(MAGIC, len(payload), crc32(payload)) + payload

    def fields(self, fields: Mapping[str, object]) -> bytes:
        return b"".join([_pack(name) + _to_msgpack(value) for name, value in fields.items()])

    def impressions(self, impressions: Iterable[Impressed]) -> list[bytes]:
        records = []
        for of_table, of_ad, of_visitor, ip, user, chance, time, impression_id in impressions:
            numbers = _pack_numbers(b"\xa6chance\xcb", chance, b"\xa4time\xcb", time, b"\xa2id\xd9\x20")
            payload = b"".join((_IMPRESSION, of_table, of_ad, of_visitor, ip, user, numbers, impression_id))
            records.append(_pack_header(MAGIC, len(payload), crc32(payload)) + payload)
        return records


FORMS: dict[str, Form] = {form.name: form for form in (JsonForm(), MsgpackForm())}


class Versioned(Protocol):
    @property
    def v(self) -> int: ...


T = TypeVar("T", bound=Versioned)


class Decoder(Generic[T]):
    """Reads records as `kind`: AnyRecord, or structs with only the fields that are wanted, which is faster.

    What is no such record, or of another version, raises RecordError.
    """

    def __init__(self, kind: Any) -> None:
        json, msgpack_one = msgspec.json.Decoder(kind), msgspec.msgpack.Decoder(kind)
        msgpack_all = msgspec.msgpack.Decoder(list[kind])
        self._line: Callable[[str], T] = json.decode
        self._lines: Callable[[str], list[T]] = json.decode_lines
        self._payload: Callable[[bytes], T] = msgpack_one.decode
        self._payloads: Callable[[bytes], list[T]] = msgpack_all.decode

    def line(self, line: bytes) -> T:
        # msgspec looks at no bytes of fields that it skips; what is no UTF-8 is of a frame, and no line.
        return _checked([_decode(lambda data: self._line(data.decode()), line)])[0]

    def payload(self, payload: bytes) -> T:
        """The record in a frame's payload."""
        return _checked([_decode(self._payload, payload)])[0]

    def lines(self, data: bytes) -> list[T]:
        """Of whole lines, in one go, with the same rule."""
        return _checked(_decode(lambda data: self._lines(data.decode()), data))

    def payloads(self, payloads: Sequence[bytes]) -> list[T]:
        """Of many payloads, in one go: as one array of msgpack (DD is its head, with a length in four bytes)."""
        return _checked(_decode(self._payloads, b"\xdd%b%b" % (len(payloads).to_bytes(4), b"".join(payloads))))


def to_object(record: AnyRecord) -> dict[str, Any]:
    """The record as `adctl log cat --json` prints it."""
    fields: dict[str, Any] = msgspec.to_builtins(record)
    return {"v": fields.pop("v"), **fields}


U = TypeVar("U")


def _decode(decode: Callable[[bytes], U], data: bytes) -> U:
    try:
        return decode(data)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, RecursionError) as error:
        raise RecordError(str(error)) from None


def _checked(records: list[T]) -> list[T]:
    for version in {record.v for record in records}:
        if version != VERSION:
            raise RecordError(f"version {version} is not known here")
    return records


RECORDS: Decoder[AnyRecord] = Decoder(AnyRecord)
