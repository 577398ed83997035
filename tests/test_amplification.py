"""One request makes the log, the answer and the memory no more than a small multiple of itself.

`python -m tests.test_amplification` prints the largest of each kind of request.
"""

import json
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from adcore.core.adtable import MASK_CAMPAIGNS, build_table
from adcore.core.reason import Reason
from adcore.delivery import ANSWER_WEIGHT, PAGE_BYTES_MAX, SLOTS_SURE
from adcore.deliverylog.record import Impression, Unfilled
from adcore.query import FACTS_BYTES_MAX, SLOTS_MAX, QueryError, parse_body, parse_query
from tests.inprocess import NOW, Process
from tests.inventories import campaign, document, text_creative

# What a record has besides the words of the page and the campaigns held back: ids of 64 characters and 16 languages.
RECORD_BYTES = 1536
FORMS = ("json", "msgpack")

NOTHING = [campaign("x", status="paused")]
EVERYTHING = [campaign(f"c{number}") for number in range(40)]
HELD_BACK = [campaign(f"held-back-{number}", goal={"impressions": 1}, priority="sponsorship") for number in range(500)]
INVENTORIES = {"nothing": NOTHING, "everything": EVERYTHING}


class Measured(NamedTuple):
    request_bytes: int
    record_bytes: int
    answer_bytes: int


def measure(process: Process, body: bytes, **headers: str) -> Measured:
    """What a POST makes. A GET has the same after 8 KiB."""
    response = process.post(body, **headers)
    record_bytes = process.queue.bytes
    process.queue.release(sum(len(batch.data) for batch in process.queue.take(1 << 30)))
    head = f"POST /v1/decision HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n"
    size = len(head) + len(body) + sum(len(name) + len(value) + 4 for name, value in headers.items())
    return Measured(size, record_bytes, len(response.head) + len(response.body))


def words(alphabet: str, count: int = 32, length: int = 128) -> list[str]:
    return [(f"{number:02}" + alphabet * length)[:length] for number in range(count)]


def question(placement: str | list[str], n: int, alphabet: str, count: int, length: int) -> bytes:
    some = words(alphabet, count, length)
    key_values = {f"k{word}"[:length]: word for word in some}
    text = {"placement": placement, "n": n, "keywords": some, "key_values": key_values, "user": "u" * 256}
    return json.dumps(text, ensure_ascii=False).encode()


LONG = {
    "User_Agent": "Mozilla/5.0 (iPhone) " + "x" * 8000,
    "Accept_Language": ",".join(f"{a}aaaaaaa-bbbbbbbb-cccccccc-dddddddd-eeeeeee{a}" for a in "abcdefghijkl"),
    "X_Real_IP": "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff",
    "Cookie": "a=" + "b" * 4000,
}


def hostile(seed: int) -> Iterator[tuple[bytes, dict[str, str]]]:
    """Bodies and headers, each as large as may be in some way."""
    chance = random.Random(seed)
    for _ in range(300):
        alphabet = chance.choice(("x", '"', "\\", "é", "語", "😀", "ﬃ", "\u0344", "'<>&"))
        n = chance.choice((1, 2, 8, 16, 32))
        placements = chance.choice(("side", "foot", "nowhere", ["side", "foot"], ["nowhere"] * 2, ["side", "😀" * 64]))
        if isinstance(placements, list) and n > 16:
            n = 16
        count, length = chance.choice((0, 1, 4, 16, 32)), chance.choice((4, 16, 64, 128))
        body = question(placements, n, alphabet, count, length)
        if len(body) < 65536:
            yield body, LONG if chance.random() < 0.5 else {}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("inventory", INVENTORIES)
def test_the_records_of_a_request_are_bounded_together(tmp_path: Path, inventory: str, form: str) -> None:
    process = Process(tmp_path, *INVENTORIES[inventory], form=form)
    most = 0
    for body, headers in hostile(16):
        measured = measure(process, body, **headers)
        assert measured.record_bytes <= FACTS_BYTES_MAX + SLOTS_MAX * RECORD_BYTES, body
        most = max(most, measured.record_bytes)
    # The cases reach what they are about.
    assert most > FACTS_BYTES_MAX


@pytest.mark.parametrize("slots", [1, 8, 32])
def test_words_of_a_page_are_bounded_in_all_its_records_together(tmp_path: Path, slots: int) -> None:
    process = Process(tmp_path, *EVERYTHING)
    fits, refused = b"", ""
    for length in range(1, 129):
        body = question("side", slots, "x", 32, length)
        try:
            parse_body(body)
        except QueryError as error:
            refused = str(error)
            break
        fits = body
    most = FACTS_BYTES_MAX // slots
    assert f"for {slots} slots at most {most}: say less, or ask for fewer" in refused or slots == 1
    assert process.post(fits).status == 200
    records = process.records()
    assert len(records) == slots
    kept = sum(len(msgspec.msgpack.encode((record.keywords, record.key_values))) for record in records)
    assert kept <= FACTS_BYTES_MAX
    assert process.post(question("side", slots, "語", 32, 128)).status == 400
    assert process.records() == []


def test_words_are_counted_as_they_are_written(tmp_path: Path) -> None:
    """JSON escapes these."""
    quotes = ",".join(f"{number:02}" + '"' * 62 for number in range(16))
    assert len(parse_query(f"placement=a&n=8&keywords={quotes.replace(chr(34), 'x')}".encode()).slots) == 8
    with pytest.raises(QueryError, match=r"keywords and key-values are 2\d\d\d bytes, and for 8 slots at most 2048"):
        parse_query(f"placement=a&n=8&keywords={quotes}".encode())


def test_what_is_asked_of_no_placement_is_not_kept(tmp_path: Path) -> None:
    process = Process(tmp_path, *EVERYTHING)
    process.ask("/v1/decision?placement=nowhere,side,elsewhere,nowhere&keywords=manga&kv.a=b")
    by_placement = {record.placement: record for record in process.records()}
    assert set(by_placement) == {"nowhere", "side"}
    assert (by_placement["side"].keywords, by_placement["side"].key_values) == (("manga",), (("a", "b"),))
    assert (by_placement["nowhere"].keywords, by_placement["nowhere"].key_values) == ((), ())
    assert process.state.statistics.to_status()["unfilled"] == {"": {"unknown_placement": 3}}
    # The same from memory, and of each request.
    for _ in range(2):
        process.ask("/v1/decision?placement=nowhere&keywords=manga&n=32")
    assert [(record.placement, record.keywords) for record in process.records()] == [("nowhere", ())] * 2


def test_a_placement_that_is_made_later_gets_the_words(tmp_path: Path) -> None:
    process = Process(tmp_path, *EVERYTHING)
    target = "/v1/decision?placement=side&keywords=manga"
    without = document(*EVERYTHING)
    del without["placements"][0]
    process.state.use(build_table(without, revision=2), process.calendar.moment(NOW))
    for _ in range(3):
        process.ask(target)
    assert {record.keywords for record in process.records()} == {()}
    process.use(*EVERYTHING)
    process.ask(target)
    assert [record.keywords for record in process.records()] == [("manga",)]


def reach_goals(process: Process) -> None:
    for _ in range(len(HELD_BACK) // 8 + 1):
        process.ask("/v1/decision?placement=side&n=8")
        process.records()
    assert len(process.state.counters.held) == len(HELD_BACK)


@pytest.mark.parametrize("others", [0, 40], ids=["nothing to show", "something to show"])
@pytest.mark.parametrize("form", FORMS)
def test_campaigns_that_are_held_back_are_named_by_a_bounded_number_of_records(
    tmp_path: Path, form: str, others: int
) -> None:
    process = Process(tmp_path, *HELD_BACK, *EVERYTHING[:others], form=form)
    reach_goals(process)
    process.ask()
    one = process.queue.bytes
    process.records()
    assert one > 10_000
    answer = process.post(b'{"placement": "side", "n": 32}')
    bytes_of_all = process.queue.bytes
    records = process.records()
    assert len(records) == SLOTS_SURE
    assert bytes_of_all < SLOTS_SURE * (one + RECORD_BYTES)
    status = process.state.statistics.to_status()
    assert status["unfilled"]["side"][Reason.PAGE_LIMIT] >= SLOTS_MAX - SLOTS_SURE  # type: ignore[index]
    if others:
        assert len(json.loads(answer.body)["decisions"]) == SLOTS_SURE
        assert all(isinstance(record, Impression) for record in records)
    else:
        assert answer.status == 204
        assert all(isinstance(record, Unfilled) for record in records)
    # A page of the usual size is decided whole.
    process.post(b'{"placement": "side", "n": 8}')
    assert len(process.records()) == 8


def test_campaigns_that_a_visitor_has_seen_enough_of_are_bounded_too(tmp_path: Path) -> None:
    """Each record names them."""
    cap = {"impressions": 1, "seconds": 3600}
    seen = [
        campaign(f"seen-{number:03}-{'x' * 50}", frequency_cap=cap, priority="sponsorship", creatives=[creative])
        for number in range(120)
        for creative in [text_creative(f"seen-{number}")]
    ]
    process = Process(tmp_path, *seen, *EVERYTHING)
    for _ in range(15):
        process.ask("/v1/decision?placement=side&n=8&user=u")
    process.records()
    process.ask("/v1/decision?placement=side&n=32&user=u")
    size, records = process.queue.bytes, process.records()
    assert all(len(record.excluded) >= len(seen) for record in records)
    assert len(records) == SLOTS_SURE
    assert PAGE_BYTES_MAX < size < 2 * PAGE_BYTES_MAX


def test_a_page_of_little_records_is_decided_whole(tmp_path: Path) -> None:
    process = Process(tmp_path, *EVERYTHING)
    assert len(json.loads(process.post(b'{"placement": "side", "n": 32}').body)["decisions"]) == SLOTS_MAX
    assert len(process.records()) == SLOTS_MAX
    assert process.state.statistics.to_status()["unfilled"] == {}


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_an_answer_is_bounded(tmp_path: Path, method: str) -> None:
    size = 100_000
    large = [
        campaign(f"c{number}", creatives=[text_creative(f"c{number}-1", format="html", data=None, html="<" * size)])
        for number in range(40)
    ]
    process = Process(tmp_path, *large)
    asked = f"{method} /v1/decision?placement=side&n=32 HTTP/1.1\r\nHost: a\r\n\r\n"
    assert process.reader.read(asked.encode(), process.request)
    body = process.handlers(process.request).body
    assert len(json.loads(body)["decisions"]) == SLOTS_SURE
    assert PAGE_BYTES_MAX * ANSWER_WEIGHT < len(body) < SLOTS_SURE * 7 * size
    unfilled = process.state.statistics.to_status()["unfilled"]
    assert unfilled == ({"side": {"page_limit": SLOTS_MAX - SLOTS_SURE}} if method == "GET" else {})
    small = [campaign(f"c{number}") for number in range(40)]
    process.use(*small)
    assert len(json.loads(process.ask("/v1/decision?placement=side&n=32"))["decisions"]) == SLOTS_MAX


def test_of_the_words_of_pages_only_those_that_campaigns_name_are_remembered(tmp_path: Path) -> None:
    process = Process(tmp_path, campaign("a", targeting={"key_values": {"section": ["manga"]}, "keywords_any": ["b"]}))
    for number in range(100):
        long = f"{number:03}{'x' * 120}"
        process.ask(f"/v1/decision?placement=side&kv.section={long}&keywords={long},b&kv.section=manga")
        process.ask(f"/v1/decision?placement=side&kv.section={long}&kv.{long}=manga")
    assert process.state.table is not None
    matches = process.state.table.placements["side"].window_at(NOW).matches
    assert {(key[0].keywords, key[0].key_values) for key in matches} == {(("b",), (("section", "manga"),)), ((), ())}


def test_a_choice_is_remembered_with_what_its_key_takes(tmp_path: Path) -> None:
    """Of a placement with many campaigns the mask is larger than the choice among a few of them."""
    few = build_table(document(*(campaign(f"c{number}") for number in range(10))), revision=1).placements["side"]
    many = build_table(document(*(campaign(f"c{number}") for number in range(1000))), revision=1).placements["side"]
    for index in (few, many):
        room = index._drawing_room
        index.drawing(1)
        index.drawing(0)
        assert room - index._drawing_room == 2 + 2 * (len(index.entrants) // MASK_CAMPAIGNS)


def main() -> None:
    for inventory, campaigns in INVENTORIES.items():
        for form in FORMS:
            with tempfile.TemporaryDirectory() as folder:
                process = Process(Path(folder), *campaigns, form=form)
                cases: dict[str, tuple[bytes, dict[str, str]]] = {
                    "32 slots": (b'{"placement":"side","n":32}', {}),
                    "32 slots of no placement": (b'{"placement":"no","n":32}', {}),
                    "32 slots, all words": (question("side", 32, "x", 32, 128), {}),
                    "32 slots of no placement, all words": (question("no", 32, "x", 32, 128), {}),
                    "1 slot, all words": (question("side", 1, "x", 32, 128), {}),
                    "8 slots, 2 KiB of words": (question("side", 8, "x", 15, 38), {}),
                    "32 slots, many languages": (b'{"placement":"side","n":32}', LONG),
                }
                for name, (body, headers) in cases.items():
                    found = measure(process, body, **headers)
                    ratio = found.record_bytes / found.request_bytes
                    print(f"{inventory:<11}{form:<8} {name:<36}", *found[:2], f"{ratio:.1f}", sep="\t")


if __name__ == "__main__":
    main()
