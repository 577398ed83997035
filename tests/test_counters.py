from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from adcore.core.adtable import AdTable, build_table, finish
from adcore.core.calendar import Calendar, Moment
from adcore.core.reason import Reason
from adcore.counterfile import CounterFile, Kept
from adcore.counters import STEP_CAMPAIGNS, Counters
from adcore.counts import PART_MAX, CounterState
from adcore.errors import StartError
from adcore.tally import Tally

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


def untold(counters: Counters) -> CounterState:
    return {campaign: counts for part in finish(counters.untold()) for campaign, counts in part.items()}


def test_counts_survive_a_restart(tmp_path: Path) -> None:
    counters = Counters(Calendar(UTC))
    built = table(goal={"impressions": 2})
    moment = counters.calendar.moment(0)
    counters.use(built, moment)
    count_impression(counters, moment)
    file = locked(tmp_path)
    assert file.load() == Kept()
    file.save(Kept(untold(counters)))
    file.close()

    again = Counters(Calendar(UTC))
    again.restore(locked(tmp_path).load().counts)
    again.use(built, moment)
    count_impression(again, moment)
    assert again.held == {"c": Reason.GOAL_REACHED}


def locked(folder: Path) -> CounterFile:
    file = CounterFile(folder / "counts.json")
    file.lock()
    return file


def test_only_what_is_new_is_told_and_all_of_it_again_if_need_be() -> None:
    counters = Counters(Calendar(UTC))
    moment = counters.calendar.moment(0)
    counters.of("never shown")
    assert untold(counters) == {}
    count_impression(counters, moment)
    assert untold(counters) == {"c": (1, 0, moment.day, 1, 0)}
    assert untold(counters) == {}
    counters.take_in({"c": (5, 5, moment.day, 5, 5), "d": (1, 0, moment.day, 1, 0)}, moment)
    assert untold(counters) == {}
    counters.count_click(counters.of("c"), moment)
    assert untold(counters) == {"c": (1, 1, moment.day, 1, 1)}
    counters.tell_again()
    assert untold(counters) == {"c": (1, 1, moment.day, 1, 1)}


def test_many_campaigns_are_told_in_parts_and_steps() -> None:
    counters = Counters(Calendar(UTC))
    for number in range(2 * PART_MAX + 1):
        counters.count_impression(counters.of(f"c{number}"), 1, 0.0)
    steps = counters.untold()
    assert sum(1 for _ in steps) == (2 * PART_MAX + 1) // STEP_CAMPAIGNS
    counters.tell_again()
    parts = finish(counters.untold())
    assert [len(part) for part in parts] == [PART_MAX, PART_MAX, 1]


def test_each_process_has_a_file(tmp_path: Path) -> None:
    """Whoever takes which file after a restart; a file that nobody has can be taken for a while."""
    files = [locked(tmp_path) for _ in range(3)]
    for number, file in enumerate(files):
        file.save(Kept({"c": (number, 0, 1, number, 0)}))
    others, problems = files[0].others()
    assert problems == []
    assert {path.name: kept.counts["c"][0] for path, kept in others.items()} == {"counts-1.json": 1, "counts-2.json": 2}
    files[1].save(Kept({"c": (7, 0, 1, 7, 0)}))
    assert files[0].others()[0][files[1].path].counts["c"][0] == 7
    with files[0].taken(files[1].path) as taken:
        assert taken is None
    files[1].close()
    with files[0].taken(files[1].path) as taken:
        assert taken is not None
        assert taken.load().counts["c"][0] == 7
        with files[2].taken(files[1].path) as twice:
            assert twice is None
    again = locked(tmp_path)
    assert again.path == files[1].path
    for file in (files[0], files[2], again):
        file.close()


def test_what_others_have_counted_holds_at_once() -> None:
    counters = Counters(Calendar(UTC))
    moment = counters.calendar.moment(0)
    counters.use(table(goal={"impressions": 10}), moment)
    counters.take_in({"c": (9, 0, moment.day, 9, 0)}, moment)
    assert counters.held == {}
    held = counters.held
    counters.take_in({"c": (10, 0, moment.day, 10, 0)}, moment)
    assert counters.held == {"c": Reason.GOAL_REACHED}
    assert held == {}


def test_what_others_counted_yesterday_is_not_of_today() -> None:
    counters = Counters(Calendar(UTC))
    moment = counters.calendar.moment(0)
    counters.take_in({"c": (10, 1, 100, 4, 1)}, moment)
    counters.of("c").turn_to(101)
    counters.take_in({"c": (12, 1, 100, 6, 1)}, moment)
    assert (counters.of("c").impressions, counters.of("c").impressions_today) == (12, 0)
    counters.take_in({"c": (13, 1, 101, 1, 0)}, moment)
    assert (counters.of("c").impressions, counters.of("c").impressions_today) == (13, 1)
    counters.take_in({"c": (15, 1, 102, 2, 0)}, moment)
    assert (counters.of("c").impressions, counters.of("c").impressions_today) == (15, 2)
    assert untold(counters) == {}


def test_a_clock_that_is_set_back_and_forth_over_midnight_keeps_what_others_counted() -> None:
    counters = Counters(Calendar(UTC))
    count = counters.of("c")
    counters.take_in({"c": (10, 0, 101, 4, 0)}, counters.calendar.moment(0))
    count_impression(counters, Moment(0.0, 0, 0, 101))
    count.turn_to(100)
    assert count.impressions_today == 0
    count_impression(counters, Moment(0.0, 0, 0, 101))
    assert (count.impressions, count.impressions_today) == (12, 5)
    assert untold(counters) == {"c": (2, 0, 101, 1, 0)}
    counters.take_in({"c": (10, 0, 101, 3, 0)}, counters.calendar.moment(0))
    assert untold(counters) == {}


def test_anothers_file_that_is_damaged_later_counts_as_before(tmp_path: Path) -> None:
    file, other = locked(tmp_path), locked(tmp_path)
    kept = Kept({"c": (1, 0, 1, 1, 0)})
    other.save(kept)
    assert file.others() == ({other.path: kept}, [])
    other.path.write_text("{")
    held, problems = file.others()
    assert held == {other.path: kept}
    assert "counts-1.json" in problems[0]
    third = locked(tmp_path)
    assert third.others()[0] == {}
    with pytest.raises(StartError, match=r"counts-1\.json"):
        Tally(third)
    for each in (file, other, third):
        each.close()


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


def test_a_file_of_the_first_versions_is_read(tmp_path: Path) -> None:
    path = tmp_path / "counts.json"
    path.write_text('{"c": [5, 1, 739000, 2, 0]}')
    assert CounterFile(path).load() == Kept({"c": (5, 1, 739000, 2, 0)})


def test_a_turn_costs_nothing_until_the_campaign_is_due() -> None:
    counters = Counters(Calendar(ZONE))
    counters.use(table(daily_cap={"impressions": 1}), counters.calendar.moment(EVENING))
    count_impression(counters, counters.calendar.moment(EVENING))
    assert counters.held == {"c": Reason.DAILY_CAP}

    def steps(time: float) -> int:
        return len(list(counters.turn_in_steps(lambda: time)))

    assert [steps(EVENING), steps(EVENING + 0.1), steps(EVENING + 0.9)] == [1, 0, 0]
    assert counters.held == {"c": Reason.DAILY_CAP}
    assert steps(EVENING + 1) == 1  # a new day
    assert counters.held == {}
    assert [steps(EVENING + 2), steps(EVENING)] == [0, 1]  # the clock was set back
    counters.use(table(daily_cap={"impressions": 5}), counters.calendar.moment(EVENING))
    assert [steps(EVENING), steps(EVENING)] == [1, 0]
    counters.restore({"c": (5, 0, counters.calendar.moment(EVENING).day, 5, 0)})
    assert steps(EVENING) == 1
    assert counters.held == {"c": Reason.DAILY_CAP}
