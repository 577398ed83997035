"""What is kept from request to request is bounded, goes with its table, and changes no answer."""

import gc
import time
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest

from adcore.deliverylog.record import Impression
from tests.inprocess import NOW, Process
from tests.inventories import campaign, text_creative

CAMPAIGNS = [
    campaign("a", weight=2),
    campaign("b", targeting={"devices": ["mobile"]}),
    campaign("c", targeting={"countries": ["JP"]}, priority="sponsorship"),
    campaign("d", targeting={"languages": ["de"]}, goal={"impressions": 20}),
    campaign("e", targeting={"keywords_any": ["manga"]}, frequency_cap={"impressions": 2, "seconds": 3600}),
    campaign("f", creatives=[text_creative("f-1"), text_creative("f-2", weight=3)], daily_cap={"impressions": 15}),
]
AGENTS = (
    "Mozilla/5.0 (X11; Linux x86_64)",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) Mobile",
    "Googlebot/2.1",
)


def test_a_long_way_through_proxies_is_read_but_not_remembered(tmp_path: Path) -> None:
    process = Process(tmp_path, campaign("a"))
    process.ask(X_Forwarded_For=", ".join(["203.0.113.9"] * 200 + ["198.51.100.7"]))
    assert [record.ip for record in process.records()] == ["198.51.100.0"]
    assert process.handlers.delivery._nearest_stranger.cache_info().currsize == 0


def test_forgetting_changes_no_answer_and_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same requests to a process that remembers, and to one that must forget all the time."""
    outcomes = []
    for bound in (None, 2):
        if bound is not None:
            for name in ("PROFILES_MAX", "NETWORKS_MAX", "CASES_MAX", "FORWARDED_MAX"):
                monkeypatch.setattr(f"adcore.delivery.{name}", bound)
            for name in ("ASKED_MAX", "HEADS_MAX"):
                monkeypatch.setattr(f"adcore.handlers.{name}", bound)
        process = Process(tmp_path, *CAMPAIGNS)
        bodies = [
            process.ask(
                ("/v1/decision?placement=side", "/v1/decision?placement=side,foot&keywords=manga")[number % 2],
                NOW + number,
                User_Agent=AGENTS[number % 3],
                Accept_Language=("ja", "de", "en")[number // 3 % 3],
                X_Country=("JP", "DE", "")[number // 7 % 3],
                **{("X_Real_IP", "X_Forwarded_For")[number // 2 % 2]: f"198.51.{number % 11}.7"},
                Cookie="theme=dark",
            )
            for number in range(600)
        ]
        delivery = process.handlers.delivery
        assert (delivery._nearest_stranger.cache_info().currsize == 11) == (bound is None)
        kept = (delivery._profiles, delivery._profiles_by_values, delivery._networks, process.handlers._asked)
        if bound is not None:
            assert all(len(memory) <= bound for memory in kept)
        outcomes.append((bodies, process.records(), process.state.statistics.to_status()))
    assert outcomes[0] == outcomes[1]
    assert len(outcomes[0][1]) == 900
    assert {record.placement for record in outcomes[0][1]} == {"side", "foot"}


def test_what_is_too_long_to_be_worth_it_is_not_kept(tmp_path: Path) -> None:
    process = Process(tmp_path, campaign("a"))
    delivery = process.handlers.delivery
    for _ in range(2):
        process.ask(User_Agent="x" * 2000, X_Real_IP="1" * 100)
        assert not delivery._profiles_by_values
        assert not delivery._networks
    process.ask(User_Agent="x", X_Real_IP="192.0.2.1")
    assert len(delivery._profiles_by_values) == len(delivery._networks) == 1


def test_long_requests_that_nobody_repeats_leave_nothing(tmp_path: Path) -> None:
    process = Process(tmp_path, campaign("a"))

    def ask(number: int) -> None:
        key_values = "".join(f"&kv.k{key}={number:064}" for key in range(30))
        assert b'"campaign":"a"' in process.ask(
            f"/v1/decision?placement=side&user={'u' * 256}{key_values}",
            X_Real_IP=f"{number:0600}",
            Cookie=f"a={number}{'y' * 1000}",
        )
        process.records()

    for number in range(100):
        ask(number)
    tracemalloc.start()
    try:
        for number in range(100, 1100):
            ask(number)
        gc.collect()
        kept_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept_bytes < 1000 * 50


def test_cases_that_name_many_campaigns_count_as_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adcore.delivery.CASES_MAX", 40)
    held_back = [campaign(f"held-back-{number}", goal={"impressions": 1}) for number in range(100)]
    process = Process(tmp_path, *held_back, campaign("other", targeting={"placements": ["foot"]}))
    delivery = process.handlers.delivery

    def sizes() -> list[int]:
        return [case.size for slot in delivery._slots_with_cases for case in slot.cases.values()]

    targets = ("/v1/decision?placement=side", "/v1/decision?placement=foot,side,nowhere", "/v1/decision?placement=foot")
    most = 0
    for number in range(400):
        process.ask(targets[number % 3], Accept_Language=("ja", "de", "en", "fr", "ko")[number % 5])
        process.records()
        # A case is packed after it has its place.
        assert delivery._cases_size == sum(sizes()) <= 40 + max(sizes(), default=0)
        most = max(most, len(sizes()))
        if number % 50 == 49:
            process.change(*held_back, campaign("other", targeting={"placements": ["foot"]}, weight=number))
    assert len(process.state.counters.held) == 100
    assert max(sizes()) > 2
    assert most > 10


def test_answers_that_are_kept_are_bounded_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large markup, in each placement of its size."""
    monkeypatch.setattr("adcore.delivery.SHOWN_BYTES_MAX", 100_000)
    large = [
        campaign(f"c{number}", creatives=[text_creative(f"c{number}-1", format="html", data=None, html="x" * 30_000)])
        for number in range(10)
    ]
    process = Process(tmp_path, *large)
    delivery = process.handlers.delivery
    seen = set()
    for number in range(200):
        seen.add(process.ask(f"/v1/decision?placement={('side', 'foot')[number % 2]}").partition(b'"campaign":')[2][:4])
        assert delivery._shown_bytes == sum(shown.answer.kept_bytes for shown in delivery._shown.values()) <= 100_000
        if number == 100:
            process.change(*large[:5])
    assert len(seen) == 10
    assert len(delivery._shown) == 3


def test_frames_that_are_kept_are_bounded_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Markup is escaped twice in a frame, and a str with one rare character takes four bytes for each."""
    bound = 4_000_000
    monkeypatch.setattr("adcore.delivery.SHOWN_BYTES_MAX", bound)
    markups = ['"' * 30_000 + "\U0001f600", "{click_url}" * 3_000, "<b>" * 10_000]
    large = [
        campaign(
            f"c{number}",
            creatives=[text_creative(f"c{number}-1", format="html", data=None, html=f"{number} {markups[number % 3]}")],
        )
        for number in range(30)
    ]
    process = Process(tmp_path, *large)
    delivery = process.handlers.delivery
    tracemalloc.start()
    try:
        for number in range(400):
            process.ask(f"/v1/{('frame', 'decision')[number % 3 == 0]}?placement={('side', 'foot')[number % 2]}")
            process.records()
            kept_bytes = sum(shown.answer.kept_bytes for shown in delivery._shown.values())
            assert delivery._shown_bytes == kept_bytes <= bound
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        assert len(delivery._shown) > 5
        kept_bytes = delivery._shown_bytes
        delivery._shown.clear()
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept_bytes == pytest.approx(before - after, rel=0.1)


def test_the_records_say_what_was_asked(tmp_path: Path) -> None:
    process = Process(tmp_path, *CAMPAIGNS)
    process.ask("/v1/decision?placement=side&keywords=manga&kv.s=x", User_Agent=AGENTS[1], Accept_Language="ja")
    process.ask("/v1/decision?placement=side", User_Agent=AGENTS[2], X_Real_IP="2001:db8:1:2::3", X_Country="DE")
    first, second = process.records()
    assert (first.device, first.os, first.languages, first.keywords) == ("mobile", "ios", ("ja",), ("manga",))
    assert (first.key_values, first.ivt, first.ip, first.country) == ((("s", "x"),), False, "", "")
    assert (second.ivt, second.ip, second.country, second.keywords) == (True, "2001:db8:1::", "DE", ())


def test_a_new_table_is_used_at_once_and_the_old_one_let_go(tmp_path: Path) -> None:
    process = Process(tmp_path, campaign("old"))
    assert b'"campaign":"old"' in process.ask()
    assert process.state.table is not None
    old = process.state.table.placements["side"]
    process.use(campaign("new"))
    assert b'"campaign":"new"' in process.ask()
    assert [record.revision for record in process.records()] == [1, 2]
    gc.collect()
    assert gc.get_referrers(old) == []


def test_ads_of_tables_before_do_not_pile_up(tmp_path: Path) -> None:
    staying = [campaign(f"s{number}", targeting={"placements": ["foot"]}) for number in range(3)]
    names = [f"c{number}" for number in range(20)]
    process = Process(tmp_path, *staying)
    shown = process.handlers.delivery._shown
    for _ in range(50):
        process.ask("/v1/decision?placement=foot")
    stay = list(shown)
    for weight in range(1, 20):
        changed = (campaign(name, weight=weight, targeting={"placements": ["side"]}) for name in names)
        process.change(*staying, *changed)
        for _ in range(200):
            process.ask()
        assert {ad.campaign.id for ad in shown if ad.placement.id == "side"} == set(names)
        assert len(shown) < 3 * len(names)
        assert {*stay} < {*shown}


def test_what_ends_or_is_held_back_is_not_shown_from_memory(tmp_path: Path) -> None:
    process = Process(
        tmp_path,
        campaign("flight", ends_at="2027-01-15T08:00:10Z", priority="sponsorship"),
        campaign("goal", goal={"impressions": 3}),
    )
    shown = [process.ask(now=NOW + second) for second in range(8, 15)]
    counts = Counter("flight" if b'"flight"' in body else "goal" if b'"goal"' in body else "" for body in shown)
    assert counts == {"flight": 2, "goal": 3, "": 2}
    assert process.state.statistics.to_status()["filled"] == {"side": 5}


def test_hours_pass_for_what_is_remembered(tmp_path: Path) -> None:
    process = Process(tmp_path, campaign("eight", targeting={"hours": [8]}))
    assert [bool(process.ask(now=NOW + seconds)) for seconds in (0, 3599, 3600, -1)] == [True, True, False, False]
    assert time.gmtime(NOW).tm_hour == 8


def test_a_request_that_is_sent_again_gets_the_same_impressions_from_any_process(tmp_path: Path) -> None:
    """nginx asks the next worker when one dies before it has answered; whoever counts ids counts one."""
    two_slots = "/v1/decision?placement=side,foot"

    def impressions(process: Process, target: str = two_slots, request_id: str = "0f" * 16) -> list[tuple[str, str]]:
        process.ask(target, X_Request_ID=request_id)
        return [(record.id, record.creative) for record in process.records() if isinstance(record, Impression)]

    one, other = Process(tmp_path, *CAMPAIGNS), Process(tmp_path, *CAMPAIGNS)
    next(other.handlers.delivery._impression_ids)
    first = impressions(one)
    assert len({record_id for record_id, _ in first}) == 2
    assert impressions(other) == impressions(one) == first
    # Of two parts of a page that one request brings, and of another request, none is the same.
    for different in (impressions(one, two_slots + "&kv.a=b"), impressions(one, request_id="0e" * 16)):
        assert {record_id for record_id, _ in different}.isdisjoint(record_id for record_id, _ in first)
    assert all(b"x-request-id" not in name for name, _ in one.reader.field_lines.values())


@pytest.mark.parametrize("request_id", ["", "0f" * 15, "-" + "0" * 31, "0f_" * 10 + "00", "g" * 32, "\xb2" * 32])
def test_what_is_no_request_id_is_none(tmp_path: Path, request_id: str) -> None:
    process = Process(tmp_path, campaign("a"))
    for _ in range(2):
        process.ask(X_Request_ID=request_id)
    first, second = process.records()
    assert first.id != second.id


def test_only_trusted_peers_name_requests(tmp_path: Path) -> None:
    process = Process(tmp_path, campaign("a"), trusted=False)
    for _ in range(2):
        process.ask(X_Request_ID="0f" * 16)
    first, second = process.records()
    assert first.id != second.id
