from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from adcore.core.adtable import AdTable, build_table
from adcore.core.calendar import Calendar, Moment
from adcore.core.reason import Reason
from adcore.counterfile import CounterFile
from adcore.counters import Counters, add_counts
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
    counters.turn(counters.calendar.moment(56))
    assert counters.held == {"c": Reason.AHEAD_OF_SCHEDULE}
    counters.turn(counters.calendar.moment(57))
    assert counters.held == {}
    counters.turn(counters.calendar.moment(91))
    assert counters.held == {"c": Reason.BEHIND_SCHEDULE}


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
    file = locked(tmp_path)
    assert file.load() == {}
    file.save(counters.to_state())
    file.close()

    again = Counters(Calendar(UTC))
    again.restore(locked(tmp_path).load())
    again.use(built, moment)
    count_impression(again, moment)
    assert again.held == {"c": Reason.GOAL_REACHED}


def locked(folder: Path) -> CounterFile:
    file = CounterFile(folder / "counts.json")
    file.lock()
    return file


def test_each_process_has_a_file_and_all_count_their_sum(tmp_path: Path) -> None:
    """Whoever takes which file after a restart."""
    files = [locked(tmp_path) for _ in range(3)]
    assert len({file.path for file in files}) == 3
    all_counters = [Counters(Calendar(UTC)) for _ in files]
    moment = all_counters[0].calendar.moment(0)
    for _ in range(2):  # told once or again, nothing is counted twice
        for number, (file, counters) in enumerate(zip(files, all_counters, strict=True)):
            for _ in range(number + 1):
                count_impression(counters, moment)
            counters.rebase(file.load_others())
            file.save(counters.to_state())
    for file, counters in zip(files, all_counters, strict=True):
        counters.rebase(file.load_others())
        assert (counters.of("c").impressions, counters.of("c").impressions_today) == (12, 12)
    assert [counters.to_state()["c"][0] for counters in all_counters] == [2, 4, 6]
    for file in files:
        file.close()

    second = locked(tmp_path)
    assert second.path == files[0].path
    again = Counters(Calendar(UTC))
    again.restore(second.load())
    again.rebase(second.load_others())
    assert again.of("c").impressions == 12
    assert again.to_state()["c"][0] == 2
    second.close()


def test_what_others_counted_yesterday_is_not_of_today() -> None:
    counters = Counters(Calendar(UTC))
    counters.rebase({"c": (10, 1, 100, 4, 1)})
    counters.of("c").turn_to(101)
    counters.rebase({"c": (12, 1, 100, 6, 1)})
    assert (counters.of("c").impressions, counters.of("c").impressions_today) == (12, 0)
    counters.rebase({"c": (13, 1, 101, 1, 0)})
    assert (counters.of("c").impressions, counters.of("c").impressions_today) == (13, 1)
    counters.rebase({"c": (15, 1, 102, 2, 0)})
    assert (counters.of("c").impressions, counters.of("c").impressions_today) == (15, 2)
    assert counters.to_state() == {}


def test_of_two_files_the_later_day_is_today() -> None:
    total = {"a": (5, 0, 100, 5, 0), "b": (1, 1, 101, 1, 1)}
    add_counts(total, {"a": (7, 0, 101, 2, 0), "b": (2, 0, 101, 1, 0), "c": (1, 0, 99, 1, 0)})
    assert total == {"a": (12, 0, 101, 2, 0), "b": (3, 1, 101, 2, 1), "c": (1, 0, 99, 1, 0)}


def test_a_clock_set_back_over_midnight_leaves_no_negative_count() -> None:
    counters = Counters(Calendar(UTC))
    counters.rebase({"c": (10, 0, 101, 4, 0)})
    counters.of("c").turn_to(100)
    counters.of("c").turn_to(101)
    counters.of("c").impressions += 1
    counters.of("c").impressions_today += 1
    assert counters.to_state() == {"c": (1, 0, 101, 0, 0)}


def test_anothers_file_that_is_damaged_later_counts_as_before(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file, other = locked(tmp_path), locked(tmp_path)
    other.save({"c": (1, 0, 1, 1, 0)})
    assert file.load_others() == {"c": (1, 0, 1, 1, 0)}
    other.path.write_text("{")
    assert file.load_others() == {"c": (1, 0, 1, 1, 0)}
    assert "counts-1.json" in caplog.text
    file.close()
    other.close()


def test_too_many_processes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adcore.counterfile.FILES_MAX", 1)
    file = locked(tmp_path)
    with pytest.raises(StartError, match="1 processes keep their counts"):
        locked(tmp_path)
    file.close()


@pytest.mark.parametrize("content", [b"", b"{", b'{"c": [1, 2]}', b'{"c": "x"}'])
def test_counts_that_cannot_be_read_are_named_and_not_forgotten(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "counts.json"
    path.write_bytes(content)
    with pytest.raises(StartError, match=r"counts\.json"):
        CounterFile(path).load()
