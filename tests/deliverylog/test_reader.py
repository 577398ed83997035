import gzip
import io
import json
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adcore.deliverylog import reader
from adcore.deliverylog.reader import Damage, open_log, read_records, read_undamaged
from adcore.deliverylog.record import (
    AD_FIELDS,
    FORMS,
    RECORDS,
    TABLE_FIELDS,
    VISITOR_FIELDS,
    AnyRecord,
    Click,
    Decoder,
    Form,
    Impression,
    RecordError,
    Unfilled,
    View,
    to_object,
)
from tests.records import click

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
EVENT = {
    "time": st.floats(0, 1e10),
    "id": TEXTS,
    "placement": TEXTS,
    "revision": st.integers(0, 2**53),
    "host": TEXTS,
    "device": TEXTS,
    "os": TEXTS,
    "country": TEXTS,
    "ivt": st.booleans(),
    "ip": TEXTS,
}
FACTS = {
    "languages": st.lists(TEXTS, max_size=3).map(tuple),
    "keywords": st.lists(TEXTS, max_size=3).map(tuple),
    "key_values": st.lists(st.tuples(TEXTS, TEXTS), max_size=3).map(tuple),
    "hour": st.integers(0, 23),
    "weekday": st.integers(0, 6),
    "user": TEXTS,
    "excluded": st.dictionaries(TEXTS, TEXTS, max_size=3),
}
ANY_RECORD: st.SearchStrategy[AnyRecord] = st.one_of(
    st.builds(Click, campaign=TEXTS, creative=TEXTS, **EVENT),
    st.builds(View, campaign=TEXTS, creative=TEXTS, **EVENT),
    st.builds(Impression, campaign=TEXTS, creative=TEXTS, chance=st.floats(0, 1), **EVENT, **FACTS),
    st.builds(Unfilled, reason=TEXTS, reasons=st.dictionaries(TEXTS, st.integers(0, 99)), **EVENT, **FACTS),
)
FORMATS = st.sampled_from(sorted(FORMS))


def read(data: bytes) -> list[AnyRecord | Damage]:
    return list(read_records(io.BytesIO(data)))


@given(st.lists(st.tuples(ANY_RECORD, FORMATS), max_size=8))
def test_what_was_written_is_read_again(records: list[tuple[AnyRecord, str]]) -> None:
    assert read(b"".join(FORMS[form].encode(record) for record, form in records)) == [record for record, _ in records]


@given(st.builds(Impression, campaign=TEXTS, creative=TEXTS, chance=st.floats(0, 1), **EVENT, **FACTS), FORMATS)
def test_an_impression_packed_in_parts_is_the_same_record(record: Impression, name: str) -> None:
    form = FORMS[name]
    record = msgspec.structs.replace(record, id="0123456789abcdef" * 2)
    values = msgspec.structs.asdict(record)
    shared = [
        form.fields({name: values[name] for name in names})
        for names in (TABLE_FIELDS, AD_FIELDS, VISITOR_FIELDS, ["ip"], ["user"])
    ]
    of_table, of_ad, of_visitor, ip, user = shared
    impressed = (of_table, of_ad, of_visitor, ip, user, record.chance, record.time, record.id.encode())
    (packed,) = form.impressions([impressed])
    assert read(packed) == [record]


@given(ANY_RECORD)
def test_a_json_record_is_one_line_with_its_version_and_type(record: AnyRecord) -> None:
    line = FORMS["json"].encode(record)
    assert line.count(b"\n") == 1
    assert line.endswith(b"}\n")
    fields = json.loads(line)
    assert fields["v"] == 1
    assert fields["type"] in ("impression", "unfilled", "view", "click")
    assert list(to_object(record))[:2] == ["v", "type"]


@settings(max_examples=300)
@given(st.lists(ANY_RECORD, min_size=1, max_size=4), FORMATS, st.binary(max_size=60), st.data())
def test_records_around_damage_are_not_lost(
    records: list[AnyRecord], form: str, junk: bytes, data: st.DataObject
) -> None:
    encoded = [FORMS[form].encode(record) for record in records]
    at = data.draw(st.integers(0, len(encoded)))
    found = read(b"".join(encoded[:at]) + junk + b"".join(encoded[at:]))
    assert [item for item in found if not isinstance(item, Damage)] == records


@settings(max_examples=300)
@given(st.binary(max_size=400))
def test_no_bytes_make_the_reader_fail(data: bytes) -> None:
    found = read(data)
    assert all(isinstance(item, Damage) for item in found)
    assert sum(item.length for item in found if isinstance(item, Damage)) <= len(data)


class Dripping(io.BytesIO):
    """Gives a few bytes at a time, as a pipe may."""

    def read1(self, size: int | None = -1) -> bytes:
        return super().read(random.Random(self.tell()).randint(1, 40))


@given(st.lists(ANY_RECORD, min_size=1, max_size=4), FORMATS, st.binary(max_size=60), st.data())
def test_how_the_bytes_come_makes_no_difference(
    records: list[AnyRecord], form: str, noise: bytes, data: st.DataObject
) -> None:
    whole = b"".join(map(FORMS[form].encode, records))
    at = data.draw(st.integers(0, len(whole)))
    log = whole[:at] + noise + whole[at:]
    assert list(read_records(Dripping(log))) == read(log)


def test_a_compressed_file_that_was_cut_off_is_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "log.gz"
    rng = random.Random(1)
    records = [click(rng.getrandbits(100)) for _ in range(500)]
    packed = gzip.compress(b"".join(map(FORMS["json"].encode, records)))
    path.write_bytes(packed[: len(packed) // 2])
    with open_log(path) as file:
        *found, damage = read_records(file)
    kept = [item for item in found if not isinstance(item, Damage)]
    assert 100 < len(kept) < 500
    assert kept == records[: len(kept)]
    assert isinstance(damage, Damage)
    assert "compressed file is damaged here" in damage.reason


@pytest.mark.parametrize("form", sorted(FORMS))
def test_a_tail_torn_at_any_byte_is_reported_with_its_place(form: str) -> None:
    whole = FORMS[form].encode(click(1))
    for length in range(1, len(whole)):
        found = read(whole + whole[:length])
        assert found == [click(1), Damage(len(whole), length, "a torn record")], length


@pytest.mark.parametrize("form", sorted(FORMS))
def test_any_byte_changed_in_the_middle_costs_one_record_at_most(form: str) -> None:
    parts = [FORMS[form].encode(click(n)) for n in range(3)]
    data = b"".join(parts)
    rng = random.Random(7)
    for at in range(len(parts[0]), len(parts[0]) + len(parts[1]) - 1):
        changed = data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
        kept = [item for item in read(changed) if not isinstance(item, Damage)]
        assert click(0) in kept
        assert click(2) in kept
        if form == "msgpack":
            assert kept == [click(0), click(2)]


def test_records_are_found_across_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    records = [click(n) for n in range(20)]
    data = b"".join(FORMS["msgpack" if n % 2 else "json"].encode(record) for n, record in enumerate(records))
    for size in (1, 2, 3, 7, 100, 1000):
        monkeypatch.setattr(reader, "READ_BYTES", size)
        assert read(data) == records


def test_a_compressed_log_is_read_too(tmp_path: Path) -> None:
    path = tmp_path / "delivery.log.1.gz"
    path.write_bytes(gzip.compress(FORMS["msgpack"].encode(click(1))))
    with open_log(path) as file:
        assert list(read_records(file)) == [click(1)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"v": 2, "type": "click"}', "missing"),
        (FORMS["json"].encode(click(1)).replace(b'"v":1', b'"v":2'), "version 2"),
        (b'{"v": 1, "type": "sale"}', "sale"),
        (b"[]", "object"),
        (b"{", "truncated"),
    ],
)
def test_what_is_no_record_is_named(line: bytes, message: str) -> None:
    with pytest.raises(RecordError, match=message):
        RECORDS.line(line)
    with pytest.raises(RecordError):
        RECORDS.payload(line)


def test_fields_of_a_later_adcore_are_passed_over() -> None:
    line = FORMS["json"].encode(click(1)).replace(b'"v":1', b'"v":1,"later":[1]')
    assert RECORDS.line(line) == click(1)


class Brief(msgspec.Struct, tag_field="type", tag="click"):
    """Of a click, what a reader wants that counts."""

    v: int
    id: str


def test_a_byte_that_is_no_text_is_damage_to_every_reader() -> None:
    """Also in a field that a reader has no use for: msgspec passes over that without a look at its bytes."""
    line = FORMS["json"].encode(click(1))
    wanted = Decoder[Any](Brief)
    for place in range(len(line) - 1):
        data = line[:place] + b"\x80" + line[place + 1 :]
        for decoder in (RECORDS, wanted):
            assert read_undamaged(data, decoder) == ([], 0), place
            with pytest.raises(RecordError):
                decoder.line(data)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@given(st.lists(ANY_RECORD, max_size=5), st.integers(0), st.integers(0, 255), st.booleans())
def test_what_is_read_in_one_go_is_what_is_read_record_by_record(
    form: Form, records: list[AnyRecord], place: int, byte: int, damaged: bool
) -> None:
    data = bytearray(b"".join(map(form.encode, records)))
    if damaged and data:
        data[place % len(data)] = byte
        data = data[: len(data) - place % 3]
    found, end = read_undamaged(bytes(data), RECORDS)
    assert [*found, *(item for item in read(bytes(data[end:])) if not isinstance(item, Damage))] == [
        item for item in read(bytes(data)) if not isinstance(item, Damage)
    ]
    if not damaged:
        assert (found, end) == (records, len(data))
