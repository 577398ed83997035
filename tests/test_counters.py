from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from adcore.core.adtable import AdTable, build_table
from adcore.core.calendar import Calendar, Moment
from adcore.core.reason import Reason
from adcore.counterfile import CounterFile
from adcore.counters import Counters
from adcore.errors import StartError

ZONE = ZoneInfo("Asia/Tokyo")
EVENING = datetime(2026, 11, 1, 23, 59, 59, tzinfo=ZONE).timestamp()


def table(**fields: object) -> AdTable:
    creative = {
        "id": "c-1",
        "placement_size": [1, 1],
        "format": "text",
        "data": {"text": "…"},
        "landing_url": "https://example.net/",
    }
    campaign = {"id": "c", "name": "c", "priority": "standard", "creatives": [creative], **fields}
    built = build_table({"placements": [], "campaigns": [campaign]}, revision=1)
    assert built.rejected == ()
    return built


def count_impression(counters: Counters, moment: Moment) -> None:
    counters.count_impression(counters.of("c"), moment.day, moment.time)


def test_a_goal_of_10_is_held_at_10() -> None:
    """Revive Adserver #306: a goal of 10 that delivered 70."""
    counters = Counters(Calendar(UTC))
    built = table(goal={"impressions": 10})
    moment = counters.calendar.moment(1.0)
    counters.use(built, moment)
    for _ in range(10):
        assert counters.held == {}
        count_impression(counters, moment)
    assert counters.held == {"c": Reason.GOAL_REACHED}


def test_a_daily_cap_ends_with_the_day_of_the_sites_zone() -> None:
    counters = Counters(Calendar(ZONE))
    built = table(daily_cap={"clicks": 1})
    counters.use(built, counters.calendar.moment(EVENING))
    counters.count_click(counters.of("c"), counters.calendar.moment(EVENING))
    assert counters.held == {"c": Reason.DAILY_CAP}
    counters.turn(counters.calendar.moment(EVENING + 0.5))
    assert counters.held == {"c": Reason.DAILY_CAP}
    counters.turn(counters.calendar.moment(EVENING + 1))
    assert counters.held == {}
    assert counters.of("c").clicks == 1


def test_the_first_delivery_after_midnight_counts_for_the_new_day() -> None:
    """Also when the timer has not yet said that it is a new day."""
    counters = Counters(Calendar(ZONE))
    built = table(daily_cap={"impressions": 2})
    counters.use(built, counters.calendar.moment(EVENING))
    count_impression(counters, counters.calendar.moment(EVENING))
    after = counters.calendar.moment(EVENING + 2)
    count_impression(counters, after)
    assert counters.held == {}
    assert counters.of("c").impressions_today == 1
    counters.count_click(counters.of("c"), counters.calendar.moment(EVENING + 86_402))
    assert (counters.of("c").impressions_today, counters.of("c").clicks_today) == (0, 1)


def test_a_campaign_ahead_of_its_line_waits_until_the_line_has_caught_up() -> None:
    counters = Counters(Calendar(UTC))
    built = table(
        goal={"impressions": 10},
        pacing="even",
        starts_at="1970-01-01T00:00:00Z",
        ends_at="1970-01-01T00:10:00Z",
    )
    counters.use(built, counters.calendar.moment(30))
    count_impression(counters, counters.calendar.moment(30))
    assert counters.held == {"c": Reason.AHEAD_OF_SCHEDULE}
    counters.turn(counters.calendar.moment(59))
    assert counters.held == {"c": Reason.AHEAD_OF_SCHEDULE}
    counters.turn(counters.calendar.moment(60))
    assert counters.held == {}


def test_held_is_replaced_and_never_changed() -> None:
    counters = Counters(Calendar(UTC))
    built = table(goal={"impressions": 1})
    moment = counters.calendar.moment(0)
    counters.use(built, moment)
    before = counters.held
    count_impression(counters, moment)
    assert before == {}
    after = counters.held
    counters.turn(moment)
    assert counters.held is after


def test_a_new_goal_is_held_against_what_was_delivered_before() -> None:
    counters = Counters(Calendar(UTC))
    moment = counters.calendar.moment(0)
    counters.use(table(), moment)
    for _ in range(5):
        count_impression(counters, moment)
    counters.use(table(goal={"impressions": 5}), moment)
    assert counters.held == {"c": Reason.GOAL_REACHED}


def test_counts_survive_a_restart(tmp_path: Path) -> None:
    counters = Counters(Calendar(UTC))
    built = table(goal={"impressions": 2})
    moment = counters.calendar.moment(0)
    counters.use(built, moment)
    count_impression(counters, moment)
    file = CounterFile(tmp_path / "counts.json")
    assert file.lock()
    assert file.load() == {}
    file.save(counters.to_state())
    file.close()

    again = Counters(Calendar(UTC))
    again.rebase({}, CounterFile(tmp_path / "counts.json").load())
    again.use(built, moment)
    count_impression(again, moment)
    assert again.held == {"c": Reason.GOAL_REACHED}


def test_a_successor_takes_over_what_its_predecessor_delivered_while_draining(tmp_path: Path) -> None:
    old, new = CounterFile(tmp_path / "counts.json"), CounterFile(tmp_path / "counts.json")
    first, second = Counters(Calendar(UTC)), Counters(Calendar(UTC))
    moment = first.calendar.moment(0)
    count_impression(first, moment)
    assert old.lock()
    old.save(first.to_state())

    assert not new.lock()
    started_from = new.load()
    second.rebase({}, started_from)
    count_impression(second, moment)
    for _ in range(3):
        count_impression(first, moment)
    old.save(first.to_state())
    old.close()

    assert new.lock()
    second.rebase(started_from, new.load())
    assert second.to_state()["c"][0] == 5
    assert second.to_state()["c"][3] == 5
    new.close()


def test_a_rebase_does_not_carry_yesterday_into_today() -> None:
    counters = Counters(Calendar(UTC))
    counters.rebase({}, {"c": (10, 1, 100, 4, 1)})
    counters.of("c").turn_to(101)
    counters.rebase({"c": (10, 1, 100, 4, 1)}, {"c": (12, 1, 100, 6, 1)})
    assert counters.to_state()["c"] == (12, 1, 101, 0, 0)
    counters.rebase({"c": (12, 1, 100, 6, 1)}, {"c": (13, 1, 101, 1, 0)})
    assert counters.to_state()["c"] == (13, 1, 101, 1, 0)


@pytest.mark.parametrize("content", [b"", b"{", b'{"c": [1, 2]}', b'{"c": "x"}'])
def test_counts_that_cannot_be_read_are_named_and_not_forgotten(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "counts.json"
    path.write_bytes(content)
    with pytest.raises(StartError, match=r"counts\.json"):
        CounterFile(path).load()
