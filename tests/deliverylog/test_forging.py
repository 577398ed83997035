"""A visitor puts records into the log: whole frames and lines as keywords, and a kill that tears what stands before."""

import io
import json
from collections.abc import Iterator
from itertools import product

import msgspec
import pytest

from adcore.core.facts import FactsError, parse_key_values, parse_keywords
from adcore.core.inventory import WORD_CHARS_MAX
from adcore.deliverylog.reader import Damage, read_records, read_undamaged
from adcore.deliverylog.record import (
    AD_FIELDS,
    FORMS,
    HEADER,
    MAGIC,
    RECORDS,
    TABLE_FIELDS,
    VISITOR_FIELDS,
    AnyRecord,
    Impression,
    RecordError,
    Unfilled,
    type_of,
)
from adcore.query import QueryError, parse_body, parse_query
from tests.records import click, view

FORGED = "f" * 32
LINE = json.dumps({"type": "click", **msgspec.to_builtins(click()), "id": FORGED}, separators=(",", ":"))
FRAME = FORMS["msgpack"].encode(msgspec.structs.replace(click(), id=FORGED))
SHORT: dict[str, object] = {"v": 1, "time": 1.0, "id": FORGED, "revision": 1, "ivt": False}
SHORT |= dict.fromkeys(("placement", "host", "device", "os", "country", "ip", "campaign", "creative"), "")
# In one keyword there is no room for a record; in several with what stands between them, as part of a string.
PIECES = ['{"v":1,"type":"click","x":"', '{"type":"click",', '","y":"', '"}', "}", "{", '"', "\\", "[[", "]]"]
WORDS = (LINE[:WORD_CHARS_MAX], LINE[-WORD_CHARS_MAX:], FRAME.decode("latin-1")[:WORD_CHARS_MAX], *PIECES)
# Of 128 to 191 bytes, which msgpack writes as D9 and a second byte: together a letter of UTF-8.
LONG = tuple(word + "é" * 60 for word in PIECES)

NUMBERS = {
    # What a clock, a draw or a store may come to: bytes of the magic, of a line's end and of a brace.
    "time": [
        1.8e9,
        *(msgspec.msgpack.decode(b"\xcb\x41\xda" + tail) for tail in (b"\xc1\xad\0\0\0\x10", b'"}\n{"}\n'[:6])),
    ],
    "chance": [0.5, msgspec.msgpack.decode(b'\xcb\x3f\xe0"}\n\xc1\xad\x0a')],
    "revision": [1, 0xC1AD, 0xC1AD00000010, 0x227D0A],
    "hour": [10, 13],
}


def records() -> Iterator[AnyRecord]:
    """Of every type, with all that visitors choose chosen to do harm."""
    common = {
        "id": "0" * 32,
        "placement": "side",
        "host": "h",
        "device": "other",
        "os": "other",
        "country": "",
        "ip": "",
    }

    answer = {"ivt": False, "languages": (), "weekday": 0, "user": "", "excluded": {}, "generation": "g"}
    for words in (WORDS, LONG, PIECES):
        facts = {
            "keywords": parse_keywords(",".join(word.replace(",", ";") for word in map(printable, words))),
            "key_values": parse_key_values([("k", printable(word)) for word in words]),
        }
        for time, chance, revision, hour in product(*NUMBERS.values()):
            numbers = {"time": time, "revision": revision, "hour": hour}
            yield Impression(campaign="c", creative="c-1", chance=chance, **common, **answer, **facts, **numbers)  # type: ignore[arg-type]
            reasons = {"device": revision % (1 << 32)}
            odd = {**common, "placement": printable(words[0])[:64]}
            yield Unfilled(reason="device", reasons=reasons, **odd, **answer, **facts, **numbers)  # type: ignore[arg-type]


def printable(word: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in word)


def encode(record: AnyRecord, name: str) -> bytes:
    """As the queue does it: impressions in parts."""
    form = FORMS[name]
    if not isinstance(record, Impression):
        return form.encode(record)
    values = msgspec.structs.asdict(record)
    parts = [
        form.fields({name: values[name] for name in names})
        for names in (TABLE_FIELDS, AD_FIELDS, VISITOR_FIELDS, ["ip"], ["user"])
    ]
    (encoded,) = form.impressions([(*parts, record.chance, record.time, record.id.encode())])  # type: ignore[list-item]
    return encoded


def read(data: bytes) -> list[AnyRecord]:
    return [found for found in read_records(io.BytesIO(data)) if not isinstance(found, Damage)]


@pytest.mark.parametrize("name", sorted(FORMS))
def test_no_part_of_a_record_is_read_as_another_one(name: str) -> None:
    """The reader may come to stand anywhere in a record that is torn or damaged: at each magic, brace and line."""
    after = {form: FORMS[form].encode(view()) for form in FORMS}
    for record in records():
        whole = encode(record, name)
        assert read(whole) == [record]
        starts = {at for mark in (MAGIC[:1], b"{", b"\n") for at in range(1, len(whole)) if whole[at : at + 1] == mark}
        for at in starts:
            # Behind it stands what the next worker writes, in either form.
            for following in (b"", *after.values(), b" torn\n" + after["json"]):
                found = read(whole[at:] + following)
                assert [one for one in found if one != view()] == [], (record, at)
                assert len(found) == bool(following)


@pytest.mark.parametrize("name", sorted(FORMS))
def test_a_torn_piece_and_what_a_visitor_says_next_make_no_record(name: str) -> None:
    """Every way to cut the record before, joined to every record of a visitor."""
    hostile = list(records())[:6]
    before = encode(hostile[1], name)
    genuine = {id(record): record for record in hostile}
    for record in hostile:
        following = encode(record, name)
        # Where a line was torn, the next writer ends it first.
        end = b" torn\n" if FORMS[name].lines else b""
        for cut in range(1, len(before), 1 if FORMS[name].lines else 3):
            found = read(before[:cut] + end + following)
            assert found in ([record], []) or found == [genuine[id(record)]], (cut, found)


def test_a_damaged_byte_anywhere_lets_nothing_else_in() -> None:
    record = next(records())
    whole = encode(record, "msgpack")
    following = FORMS["msgpack"].encode(view())
    for at in range(len(whole)):
        data = bytearray(whole + following)
        data[at] ^= 0x41
        assert [one for one in read(bytes(data)) if one != record] == [view()], at


def test_a_frame_is_no_text_and_text_is_no_frame() -> None:
    """C1 stands nowhere in UTF-8, so neither a query string nor a body can bring one."""
    escaped = "".join(f"%{byte:02X}" for byte in FRAME)
    with pytest.raises(QueryError, match="not percent-encoded UTF-8"):
        parse_query(b"placement=side&keywords=" + escaped.encode())
    with pytest.raises(QueryError, match="body is not the JSON expected"):
        parse_body(b'{"placement":"side","keywords":"' + MAGIC + b'"}')
    for lone in (rb"\udcc1\udcad", rb"\ud800"):
        try:
            query = parse_body(b'{"placement":"side","keywords":"' + lone + b'"}')
        except QueryError:
            continue
        assert MAGIC[:1] not in "".join(query.keywords).encode()  # which raises for a lone surrogate
    with pytest.raises(FactsError, match="control characters"):
        parse_keywords(f"x\n{LINE[:50]}")


def test_a_line_with_bytes_that_are_no_text_is_no_record() -> None:
    """In a field that nobody knows a frame could stand, with the rest of a record's bytes."""
    known = json.dumps({"type": "click", **SHORT}, separators=(",", ":")).encode()
    assert RECORDS.line(known[:-1] + ',"x":"é"}'.encode())
    for odd in (b"\xaa", b"\xd9\x20", b"\xff\xfe", HEADER.pack(MAGIC, 0x20202020, 0x20202020)):
        line = known[:-1] + b',"x":"' + odd + b'"}'
        with pytest.raises(RecordError):
            RECORDS.line(line)
        assert read(line + b"\n" + known + b"\n") == [RECORDS.line(known)]


def test_both_ways_to_read_agree_on_hostile_records() -> None:
    for record in list(records())[:20]:
        for name in FORMS:
            data = encode(record, name)
            assert read_undamaged(data, RECORDS) == ([record], len(data)), type_of(record)
