"""Simulated days: the figures that pacing must reach, and what `adctl simulate` says about traffic and inventories."""

import json
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest

from adcore.core.adtable import AdTable, build_table
from adcore.core.calendar import Calendar
from adcore.core.facts import Facts
from adcore.core.inventory import to_document
from adcore.deliverylog.record import FORMS, Impression
from adtools.deliverable import deliverable
from adtools.simulate import Run, run_simulation
from adtools.simulation import Processes, simulate
from adtools.traffic import SyntheticDay, Visit
from perf.pacing.inventory import START, make_inventory
from perf.pacing.methods import HoldOnly
from perf.pacing.regret import regrets
from tests.inventories import campaign, document, text_creative
from tests.process import adctl

CAMPAIGNS = 60
REQUESTS = 20_000
SEED = 1
CALENDAR = Calendar(UTC)


def day(**events: int) -> tuple[AdTable, SyntheticDay]:
    inventory = make_inventory(CAMPAIGNS, seed=SEED, requests=REQUESTS, load=0.8)
    made_up = SyntheticDay(inventory, requests=REQUESTS, start=START.timestamp(), seed=SEED, **events)
    learned = {"traffic": made_up.learned_traffic(CALENDAR)}
    return build_table({**to_document(inventory), "learned": learned}, revision=1), made_up


def run(processes: int = 1, **events: int) -> Run:
    table, made_up = day(**events)
    found = run_simulation(table, made_up.visits(), CALENDAR, processes=processes)
    assert found is not None
    return found


def test_campaigns_get_their_goals_along_their_lines_through_drops_and_spikes() -> None:
    """The figures that pacing is held to, on a day of 60 campaigns and six that ask for far too much."""
    found = run()
    totals = found.totals
    assert totals.campaigns == CAMPAIGNS
    assert totals.full >= 0.98
    assert totals.on_line >= 0.95
    assert totals.over_cap == 0


def test_processes_that_exchange_counts_pass_a_cap_by_an_interval_at_most() -> None:
    found = run(processes=2)
    assert found.totals.full >= 0.98
    # In five seconds a spike brings three requests or four.
    assert found.totals.over_cap <= 4


def test_a_campaign_that_needs_nearly_all_of_its_few_visitors_gets_them() -> None:
    """It wants 90 % of the tenth that watches tv; wide ones want 70 % of all. Without going first it loses draws."""
    flight = {"pacing": "even", "starts_at": START.isoformat(), "ends_at": (START + timedelta(days=1)).isoformat()}
    wide = [campaign(f"wide-{number}", goal={"impressions": 1400}, **flight) for number in range(5)]
    narrow = campaign("narrow", goal={"impressions": 900}, targeting={"devices": ["tv"]}, **flight)
    table = booked(*wide, narrow)
    phone, tv = (Facts(device, "other", "", (), (), (), False) for device in ("mobile", "tv"))
    random = Random(SEED)
    arrivals = sorted(random.random() * 86_400 for _ in range(10_000))
    visits = [
        Visit(
            START.timestamp() + second, "side", tv if number % 10 == 0 else phone, f"{random.getrandbits(128):032x}", ""
        )
        for number, second in enumerate(arrivals)
    ]
    delivered = []
    for pacing in (Processes, HoldOnly):
        outcome = simulate(table, visits, CALENDAR, partial(pacing, table, CALENDAR))
        assert outcome is not None
        assert sum(outcome.delivered[one["id"]] for one in wide) >= 0.99 * 7000
        delivered.append(outcome.delivered["narrow"])
    assert delivered[0] >= 0.99 * 900
    assert delivered[1] < 0.9 * 900


def test_a_day_is_alike_for_a_seed_and_has_drops_and_spikes() -> None:
    (_, first), (_, again), (_, usual) = day(), day(), day(drops=0, spikes=0)
    assert list(first.visits()) == list(again.visits())
    assert [event[2] for event in first.events] == [0.1, 0.1, 3.0, 3.0]
    assert usual.events == []


# What can be delivered


def booked(*campaigns: dict[str, Any]) -> AdTable:
    return build_table(document(*campaigns), revision=1)


@pytest.mark.parametrize(
    ("wanted", "supply", "expected"),
    [
        ({"a": 5, "b": 5}, {0b11: 10}, {"a", "b"}),
        ({"a": 5, "b": 6}, {0b11: 10}, set()),
        ({"a": 5, "b": 5}, {0b11: 5, 0b10: 5}, {"a", "b"}),
        ({"a": 6, "b": 5}, {0b01: 5, 0b10: 5}, {"b"}),
        # Whoever takes what only the other one could do without, leaves it short.
        ({"a": 5, "b": 6}, {0b11: 5, 0b10: 5}, set()),
        ({"a": 5}, {}, set()),
    ],
)
def test_what_can_be_delivered_is_a_flow(wanted: dict[str, int], supply: dict[int, int], expected: set[str]) -> None:
    table = booked(*(campaign(name, goal={"impressions": 9}) for name in "ab"))
    assert deliverable(table, {("side", mask): count for mask, count in supply.items()}, wanted) == expected


def test_a_tier_above_without_limits_leaves_nothing() -> None:
    table = booked(campaign("a", priority="sponsorship"), campaign("b", goal={"impressions": 9}))
    assert deliverable(table, {("side", 0b11): 9}, {"b": 9}) == set()
    assert deliverable(table, {("side", 0b10): 9}, {"b": 9}) == {"b"}


# The command


def impression(second: int, **fields: Any) -> Impression:
    return Impression(
        time=datetime(2026, 11, 2, 12, tzinfo=UTC).timestamp() + second,
        id=f"{second * 2654435761 % 2**32:032x}"[::-1],
        **{
            "placement": "side",
            "revision": 3,
            "host": "h",
            "device": "mobile",
            "os": "ios",
            "country": "JP",
            "ivt": False,
            "ip": "",
            "languages": (),
            "keywords": (),
            "key_values": (),
            "hour": 12,
            "weekday": 0,
            "user": "",
            "excluded": {},
            "campaign": "gone",
            "creative": "gone-1",
            "chance": 1.0,
            **fields,
        },
    )


def log_of(tmp_path: Path, *records: Impression) -> str:
    path = tmp_path / "delivery.log"
    path.write_bytes(b"".join(map(FORMS["msgpack"].encode, records)))
    return str(path)


def simulated(tmp_path: Path, inventory: dict[str, Any], *arguments: str) -> dict[str, Any]:
    (tmp_path / "ads.json").write_text(json.dumps(inventory))
    done = adctl("simulate", "--inventory", str(tmp_path / "ads.json"), "--json", *arguments)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_requests_of_a_log_are_decided_again(tmp_path: Path) -> None:
    log = log_of(
        tmp_path,
        *(impression(number) for number in range(300)),
        impression(400, ivt=True),
        impression(401, device="tv"),
        *(impression(500 + number, user="u-1", placement="top") for number in range(9)),
    )
    wide = text_creative("often-1", (728, 90))
    inventory = document(
        campaign("small", goal={"impressions": 10}, targeting={"devices": ["mobile"]}, weight=1000),
        campaign("large", goal={"impressions": 10_000}),
        campaign("often", creatives=[wide], frequency_cap={"impressions": 3, "seconds": 3600}),
        campaign("ended", ends_at="2026-11-02T00:00:00Z"),
    )
    found = simulated(tmp_path, inventory, "--traffic", log)
    by_id = {one["campaign"]: one for one in found["campaigns"]}
    assert (found["requests"], found["filled"]) == (311, 305)
    assert by_id["small"]["delivered"] == 10
    # It is short of nothing, and might have been: large wants whatever there is.
    assert (by_id["small"]["share"], by_id["small"]["deliverable"]) == (1.0, False)
    assert (by_id["large"]["delivered"], by_id["large"]["deliverable"]) == (291, False)
    assert by_id["often"]["delivered"] == 3
    assert by_id["ended"] | {"reasons": {}} == {
        "campaign": "ended",
        "delivered": 0,
        "clicks": 0,
        "wanted": None,
        "share": None,
        "deliverable": None,
        "over_cap": 0,
        "hours_off": [],
        "reasons": {},
    }
    assert by_id["ended"]["reasons"].keys() == {"ended", "size"}


@pytest.mark.parametrize("time_zone", ["Asia/Tokyo", "America/Los_Angeles"])
def test_records_of_a_broken_clock_are_passed_over(tmp_path: Path, time_zone: str) -> None:
    broken = [
        msgspec.structs.replace(impression(number), time=time)
        for number, time in enumerate((-1e300, -62_135_600_000.0, -1.0, 253_402_300_800.0, 1e18, 1e300))
    ]
    log = log_of(tmp_path, *(impression(number) for number in range(10, 13)), *broken)
    for arguments in ([], ["--starting", "2026-11-09"]):
        found = simulated(tmp_path, document(campaign("a")), "--traffic", log, "--time-zone", time_zone, *arguments)
        assert found["requests"] == 3


@pytest.mark.parametrize("time_zone", ["Asia/Tokyo", "America/Los_Angeles"])
def test_flights_from_the_first_to_the_last_year_are_simulated(tmp_path: Path, time_zone: str) -> None:
    flights = [
        ("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-12:00"),
        ("2026-01-01T00:00:00Z", "9999-12-31T23:59:59Z"),
    ]
    inventory = document(
        *(
            campaign(f"c{number}", goal={"impressions": 100}, pacing="even", starts_at=start, ends_at=end)
            for number, (start, end) in enumerate(flights)
        )
    )
    for day in ("0003-01-02", "9997-12-30"):
        found = simulated(tmp_path, inventory, "--requests", "50", "--starting", day, "--time-zone", time_zone)
        assert found["start"].startswith(day)


def test_traffic_is_moved_to_the_days_of_the_flight(tmp_path: Path) -> None:
    log = log_of(tmp_path, *(impression(number * 60) for number in range(100)))
    flight = {"starts_at": "2026-12-07T00:00:00Z", "ends_at": "2026-12-08T00:00:00Z"}
    inventory = document(campaign("later", goal={"impressions": 20}, pacing="even", **flight))
    nothing = simulated(tmp_path, inventory, "--traffic", log)
    assert [one["delivered"] for one in nothing["campaigns"]] == [0]
    moved = simulated(tmp_path, inventory, "--traffic", log, "--starting", "2026-12-07")
    assert moved["start"] == "2026-12-07T12:00:00+00:00"
    # On its schedule when the traffic starts, at noon, and at the end of the last hour, at 14:00.
    assert [(one["wanted"], one["delivered"]) for one in moved["campaigns"]] == [(2, 2)]


def test_a_made_up_day_as_text(tmp_path: Path) -> None:
    (tmp_path / "ads.json").write_text(json.dumps(document(campaign("a", goal={"impressions": 50}), campaign("b"))))
    done = adctl("simulate", "--inventory", str(tmp_path / "ads.json"), "--requests", "600", "--starting", "2026-11-02")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].endswith("600 requests, 546 filled")
    assert lines[3].split()[:5] == ["a", "50", "50", "100.0%", "yes"]
    assert "lost_draw" in lines[4]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--inventory", "/nowhere.json"], 2, "cannot read /nowhere.json: No such file or directory"),
        (["--traffic", "/nowhere.log"], 2, "cannot read /nowhere.log: No such file or directory"),
        (["--traffic", "/dev/null"], 1, "there is no request in this traffic"),
        *((["--requests", text], 2, f"1 to 1000000000, not '{text}'") for text in ("0", "-1", "9" * 5000, "\u0663")),
        *((["--drops", text], 2, f"0 to 100, not '{text}'") for text in ("-1", "101", "9" * 5000)),
        (["--spikes", "99999"], 2, "0 to 100, not '99999'"),
        *((["--refresh", text], 2, f"0.1 to 86400 seconds, not '{text}'") for text in ("0", "-1", "nan", "inf", "x")),
        *(
            (["--starting", text], 2, f"such as 2026-11-24, in the years 3 to 9997, not '{text}'")
            for text in ("0001-01-01", "9999-12-31", "9998-01-01", "2026-02-30", "x")
        ),
        (["--time-zone", "Mars/Base"], 2, "there is no zone 'Mars/Base'"),
    ],
)
def test_what_cannot_be_simulated_is_said(tmp_path: Path, arguments: list[str], status: int, message: str) -> None:
    (tmp_path / "ads.json").write_text(json.dumps(document(campaign("a"))))
    done = adctl("simulate", "--inventory", str(tmp_path / "ads.json"), *arguments)
    assert done.returncode == status
    assert message in done.stderr


# Optimisation


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_an_optimised_campaign_loses_far_fewer_clicks_than_one_with_plain_weights(seed: int) -> None:
    lost = regrets((0.01, 0.02), impressions=20_000, interval=800, seed=seed)
    assert lost["plain weights"] == pytest.approx(100, rel=0.05)
    assert lost["adcore"] < 0.3 * lost["plain weights"]
    alike = regrets((0.01, 0.01), impressions=1000, interval=100, seed=seed)
    assert alike["adcore"] == 0
