"""What a visitor sends is bounded before the step that costs: the last good value of each bound, and the first bad one.

What each input costs in all is counted by tests/fuzz/test_cost.py.
"""

import json
import unicodedata
from collections.abc import Callable
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from adcore import delivery as delivery_module
from adcore import query as query_module
from adcore.core import facts as facts_module
from adcore.core.facts import SPELLINGS_MAX, FactsError, parse_key_values, parse_keywords
from adcore.core.inventory import WORD_WRITTEN_CHARS_MAX, normalise_word
from adcore.delivery import ADDRESS_BYTES_MAX, CASES_MAX, HOPS_MAX
from adcore.http1.plain import PlainReader
from adcore.http1.protocol import TURN_S
from adcore.http1.request import Limits, Request
from adcore.http1.response import Response, respond
from adcore.query import PARAMETERS_MAX, SLOTS_MAX, QueryError, parse_body, parse_query
from tests.http1.fakes import Connection
from tests.inprocess import NOW, Process
from tests.inventories import campaign

MARKS = "\u0316\u0301"
# One character, written as four.
WRITTEN = unicodedata.normalize("NFD", "\u1f82")


def record_calls(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> list[Any]:
    """The first argument of each call, which is still made."""
    calls: list[Any] = []
    function = getattr(module, name)

    def recording(first: Any, *others: Any, **options: Any) -> Any:
        calls.append(first)
        return function(first, *others, **options)

    monkeypatch.setattr(module, name, recording)
    return calls


# --- words


def test_the_longest_spelling_of_a_word_is_accepted_and_no_longer_one() -> None:
    assert len(WRITTEN) == 4
    longest = WRITTEN * 128
    assert len(longest) == WORD_WRITTEN_CHARS_MAX
    # Folding makes two of each, so the half of it is what fits.
    (word,) = parse_keywords(WRITTEN * 64)
    assert len(word) == 128
    assert len(unicodedata.normalize("NFC", longest)) == 128
    for too_long in (longest + "a", "a" + MARKS * 10_000, "a" * 129, "\u1112\u1161\u11ab" * 129):
        assert len(normalise_word(too_long)) > 128
        with pytest.raises(FactsError, match="words of at most 128"):
            parse_keywords(too_long)


def test_normal_form_is_never_sought_of_more_than_can_become_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    sought: list[int] = []
    normalize = unicodedata.normalize

    def recording(form: Any, text: str) -> str:
        sought.append(len(text))
        return normalize(form, text)

    monkeypatch.setattr("adcore.core.inventory.unicodedata.normalize", recording)
    text = "a" + MARKS * 15_000
    bodies: list[dict[str, object]] = [
        {"keywords": text},
        {"keywords": [text, text + "b"]},
        {"key_values": {text: "a"}},
        {"key_values": {"a": [text]}},
        {"keywords": " " * 30_000 + text},
    ]
    for fields in bodies:
        with pytest.raises(QueryError, match="at most 128 characters"):
            parse_body(json.dumps({"placement": "side", **fields}, ensure_ascii=False).encode())
    assert max(sought) == WORD_WRITTEN_CHARS_MAX + 1


SPELT = [f"{number:08b}".translate({48: "a", 49: "A"}) for number in range(SPELLINGS_MAX + 1)]


@pytest.mark.parametrize(
    ("parse", "good"),
    [
        (lambda words: parse_keywords(",".join(words)), ("aaaaaaaa",)),
        (lambda words: parse_key_values((word, "x") for word in words), (("aaaaaaaa", "x"),)),
        (lambda words: parse_key_values(("s", word) for word in words), (("s", "aaaaaaaa"),)),
    ],
)
def test_spellings_are_counted_before_their_normal_form_is_sought(
    parse: Callable[[list[str]], object], good: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    normalised = record_calls(monkeypatch, facts_module, "normalise_word")
    assert parse(SPELT[:SPELLINGS_MAX] * 3) == good
    assert len(normalised) <= 2 * SPELLINGS_MAX
    normalised.clear()
    with pytest.raises(FactsError, match="at most 32, and are written in 129 ways"):
        parse(SPELT)
    assert not normalised


# --- parameters and placements


def test_parameters_are_counted_before_they_are_taken_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    unquoted = record_calls(monkeypatch, query_module, "unquote_plus")
    most = b"placement=side" + b"&%61=%62" * (PARAMETERS_MAX - 1)
    assert parse_query(most).slots == ("side",)
    assert len(unquoted) == 2 * PARAMETERS_MAX
    unquoted.clear()
    with pytest.raises(QueryError, match="more than 256 parameters"):
        parse_query(most + b"&a")
    assert not unquoted


def test_placements_are_counted_before_they_are_looked_at() -> None:
    body = {"placement": ["side"] * SLOTS_MAX}
    assert len(parse_body(json.dumps(body).encode()).slots) == SLOTS_MAX
    # Each of these is bad as well, so the count came first.
    with pytest.raises(QueryError, match="n times the placements at most 32"):
        parse_body(json.dumps({"placement": ["\n"] * (SLOTS_MAX + 1)}).encode())


# --- addresses


@pytest.mark.parametrize(("proxies", "ip"), [(HOPS_MAX - 1, "198.51.100.0"), (HOPS_MAX, ""), (3000, "")])
def test_so_many_hops_are_read(tmp_path: Path, proxies: int, ip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    process = Process(tmp_path, campaign("a"))
    read = record_calls(monkeypatch, delivery_module, "ip_address")
    delivery = process.handlers.delivery
    delivery._trusted_peers = (ip_network("127.0.0.0/8"),)
    header = ", ".join(["198.51.100.7"] + ["127.0.0.1"] * proxies).encode()
    request = Request(headers={b"x-forwarded-for": header}, trusted=True)
    assert delivery._who(request)[1].text == ip
    assert len(read) == min(proxies + 1, HOPS_MAX)


def test_what_is_too_long_to_be_an_address_is_not_looked_up(tmp_path: Path) -> None:
    """The cache of countries would keep 65,536 headers of 32 KiB."""
    process = Process(tmp_path, campaign("a"))
    looked_up: list[str] = []

    def country_of(ip: str) -> str:
        looked_up.append(ip)
        return "JP"

    delivery = process.handlers.delivery
    delivery._country_of = country_of
    long = "1" * ADDRESS_BYTES_MAX
    for address in (long, long + "1"):
        process.ask(X_Real_IP=address)
        for name in ("X-Real-IP", "X-Forwarded-For"):
            delivery._who(Request(headers={name.lower().encode(): address.encode()}, trusted=True))
    body = json.dumps({"placement": "side", "visitor": {"ip": long + "1"}}).encode()
    post = Request(b"POST", b"/v1/decision", b"", {}, body, trusted=True, time=NOW)
    assert process.handlers(post).status == 200
    assert set(looked_up) == {long, ""}


# --- memory


def test_cases_that_name_thousands_of_campaigns_count_for_their_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of 16,384 may name all that counts hold back: 150 KB of 5,000 campaigns."""
    held = [campaign(f"held-{number:04}", goal={"impressions": 1}) for number in range(300)]
    process = Process(tmp_path, campaign("shown"), *held)
    for number in range(300):
        count = process.state.counters.of(f"held-{number:04}")
        process.state.counters.count_impression(count, process.calendar.moment(NOW).day, NOW)
    delivery = process.handlers.delivery
    monkeypatch.setattr("adcore.delivery.CASES_MAX", 100)
    sizes = []
    for number in range(60):
        for _ in range(2):  # the first of a line is not kept
            process.ask(f"/v1/decision?placement=side&kv.a={number}")
        kept = [case for slot in delivery._slots_with_cases for case in slot.cases.values()]
        sizes.append(sum(len(case.packed) for case in kept))
        assert delivery._cases_size == sum(case.size for case in kept)
    assert 50 * 1024 < max(sizes) <= 110 * 1024
    assert CASES_MAX * 1024 < 20 << 20
    assert {record.excluded["held-0007"] for record in process.records()} == {"goal_reached"}


# --- the connection


def answer_in(connection: Connection, seconds: float) -> Callable[[Request], Response]:
    def answer(request: Request) -> Response:
        connection.loop.now += seconds
        return respond(204)

    return answer


def test_requests_of_one_read_that_take_long_are_spread_over_turns() -> None:
    connection = Connection()
    connection.answer = answer_in(connection, TURN_S * 0.6)
    paths = [b"/%d" % number for number in range(7)]
    connection.protocol.data_received(b"".join(b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % path for path in paths))
    in_turns = [len(connection.requests)]
    while not connection.transport.reading:
        connection.loop.turn()
        in_turns.append(len(connection.requests))
    assert in_turns == [2, 4, 6, 7]
    assert [request.path for request in connection.requests] == paths
    assert connection.written.count(b" 204 ") == 7


def test_pieces_of_one_read_that_take_long_to_take_apart_are_spread_over_turns() -> None:
    connection = Connection(lambda request: respond(204))
    ticks = iter(range(1000))
    connection.server.stopwatch = lambda: next(ticks) * TURN_S * 0.6
    body = b"x" * 9000
    connection.protocol.data_received(
        b"POST /p HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    )
    turns = 1
    while not connection.transport.reading:
        connection.loop.turn()
        turns += 1
    assert turns == 3
    assert [request.body for request in connection.requests] == [body]


def test_a_line_that_is_not_plain_is_found_out_in_one_pass() -> None:
    """Of 2 ** 13 spaces each way to share them out was tried, 276 ms; the count of steps is in tests/fuzz."""
    space = b" " * 7000
    assert not PlainReader(Limits()).read(b"GET / HTTP/1.1\r\nHost: a\r\nX: %b\x01\r\n\r\n" % space, Request())
    for before, after in ((space, b""), (b"\t", space), (b"", b"")):
        request = Request()
        data = b"GET / HTTP/1.1\r\nHost: a\r\nX:%bb c%b\r\n\r\n" % (before, after)
        assert PlainReader(Limits()).read(data, request)
        assert request.headers[b"x"] == b"b c"
