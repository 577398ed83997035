"""The pages beside the forms: why an ad is not showing, and what was delivered."""

import gzip
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from django.conf import settings
from hypothesis import given
from hypothesis import strategies as st

from adcore.core.inventory import parse_inventory, to_document
from adcore.core.reason import Reason
from adcore.sources import open_store
from adtools.admin.charts import HEIGHT, WIDTH, bar_chart, line_chart, round_up
from adtools.admin.documents import campaign_document, campaign_fields, creative_document, creative_fields
from adtools.admin.explain import NO_CANDIDATE, TEXTS
from adtools.admin.models import Delivered, Result
from tests.inventories import campaign, document
from tests.process import serving
from tests.tools.admin import project

DESKTOP = "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/120.0 Safari/537.36"
NOW = datetime.now(project.ZONE)
TODAY = NOW.replace(hour=0, minute=0, second=0, microsecond=0)
FLIGHT = {"starts_at": (TODAY - timedelta(days=4)).isoformat(), "ends_at": (TODAY + timedelta(days=6)).isoformat()}


def inventory() -> dict[str, Any]:
    return document(
        campaign("spring", goal={"impressions": 1000}, **FLIGHT),
        campaign("phones", priority="sponsorship", targeting={"devices": ["mobile"], "countries": ["JP"]}),
        campaign("house", priority="house"),
    )


@pytest.fixture
def source(tmp_path: Path) -> Iterator[str]:
    with project.sqlite_store(tmp_path, inventory()) as url:
        yield url


def rows(page: Any) -> dict[str, Any]:
    return {row.campaign: row for _, tier in page.context["tiers"] for row in tier}


def test_every_reason_has_words() -> None:
    assert {reason.value for reason in Reason} == {*TEXTS, *NO_CANDIDATE}


def test_an_explanation_from_the_inventory_names_what_is_wanted_and_what_is_there(source: str) -> None:
    page = project.client("viewer").get("/explain/?placement=side&device=desktop&country=de&campaign=phones")
    assert "knows no running server" in page.content.decode()
    assert [tier for tier, _ in page.context["tiers"]] == ["sponsorship", "standard", "house"]
    assert rows(page)["phones"].reasons == [
        ("device", "It is for mobile; the request's device: desktop."),
        ("country", "It is for JP; the request's country: de."),
    ]
    assert (rows(page)["phones"].wanted, rows(page)["spring"].wanted) == (True, False)
    assert rows(page)["spring"].chance == 100.0
    assert [name for name, _ in rows(page)["house"].reasons] == ["lower_priority"]


def test_every_fact_that_can_be_described_is_heard(source: str) -> None:
    page = project.client("viewer").get(
        "/explain/",
        {
            "placement": "side",
            "device": "mobile",
            "os": "ios",
            "country": "JP",
            "languages": "ja",
            "keywords": "manga",
            "key_values": "section = news\nage = 20",
            "user": "u-1",
            "time": "2030-01-01T10:00",
        },
    )
    assert rows(page)["phones"].chance == 100.0
    assert rows(page)["spring"].reasons[0] == ("ended", f"It ended at {FLIGHT['ends_at']}.")


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ("placement=side&time=soon", "time must be ISO 8601"),
        ("placement=side&device=fridge", "device must be one of"),
        ("placement=side,foot", "one placement at a time"),
        ("placement=side,side", "one placement at a time"),
        ("placement=side,", "one placement at a time"),
        ("placement=,", "one placement at a time"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(source: str, question: str, message: str) -> None:
    page = project.client("viewer").get(f"/explain/?{question}")
    assert page.status_code == 200
    assert message in str(page.context["form"].errors)


def test_an_unknown_placement_is_said_to_be_one(source: str) -> None:
    assert "There is no such placement." in project.client("viewer").get("/explain/?placement=x").content.decode()


def test_a_running_server_explains_with_what_it_delivered(source: str, tmp_path: Path) -> None:
    with serving(tmp_path / "state", "--source", source) as server:
        settings.ADCORE = project.with_control(server.control)
        page = project.client("viewer").get("/explain/?placement=side&device=mobile&country=JP")
    assert page.context["unanswered"] == ""
    assert rows(page)["phones"].chance == 100.0


def test_a_server_that_is_away_is_said_to_be(source: str, tmp_path: Path) -> None:
    settings.ADCORE = project.with_control(f"unix:{tmp_path}/none.sock")
    page = project.client("viewer").get("/explain/?placement=side")
    assert f"no answer from unix:{tmp_path}/none.sock" in page.content.decode()
    assert rows(page)["spring"].chance == 100.0


class Logged(NamedTuple):
    log: Path
    tables: Path
    shown: str
    """The id of an impression, from a desktop."""
    empty: str
    """The id of a record of a slot that stayed empty."""


def logged(source: str, folder: Path) -> Logged:
    """What a server leaves that served the inventory of these tests."""
    with serving(folder / "state", "--source", source) as server:
        server.ask("/v1/decision?placement=side", user_agent=DESKTOP)
        server.ask("/v1/decision?placement=top", user_agent=DESKTOP)
        assert server.stop() == 0
        ids = {record["type"]: record["id"] for record in server.records()}
    return Logged(server.log, folder / "state" / "tables", ids["impression"], ids["unfilled"])


def look_back(impression_id: str, log: Path, tables: Path) -> Any:
    settings.ADCORE = replace(settings.ADCORE, logs=[log], archive=tables)
    return project.client("viewer").get(f"/explain/?impression={impression_id}&campaign=phones")


def test_a_moment_in_the_past_is_explained_with_the_campaigns_as_they_were(source: str, tmp_path: Path) -> None:
    past = logged(source, tmp_path)
    store = open_store(source)
    store.apply(lambda _: parse_inventory(document(campaign("phones", targeting={"devices": ["tablet"]}))))
    store.close()
    page = look_back(past.shown, past.log, past.tables)
    assert [tier for tier, _ in page.context["tiers"]] == ["sponsorship", "standard", "house"]
    assert rows(page)["phones"].reasons == [
        ("device", "It is for mobile; the request's device: desktop."),
        ("country", "It is for JP; the request's country: none that it tells."),
    ]
    assert (rows(page)["phones"].wanted, rows(page)["spring"].wanted) == (True, False)
    assert rows(page)["spring"].chance == 100.0
    assert [name for name, _ in rows(page)["house"].reasons] == ["lower_priority"]
    assert "<strong>side</strong> showed spring-1 of spring." in page.content.decode()
    assert abs((datetime.now(project.ZONE) - page.context["past"]).total_seconds()) < 3600


def test_a_slot_that_stayed_empty_is_explained_from_a_rotated_and_compressed_log(source: str, tmp_path: Path) -> None:
    past = logged(source, tmp_path)
    past.log.with_name("delivery.log.1.gz").write_bytes(gzip.compress(past.log.read_bytes()))
    past.log.write_bytes(b"")
    page = look_back(past.empty, past.log, past.tables)
    assert "<strong>top</strong> stayed empty. No campaign can be shown there." in page.content.decode()
    assert "size" in [name for name, _ in rows(page)["spring"].reasons]


def test_what_is_missing_of_the_past_is_named(source: str, tmp_path: Path) -> None:
    past = logged(source, tmp_path)
    nowhere = tmp_path / "nowhere"

    def message(*of: Any) -> str:
        return str(look_back(*of).context["past_form"].errors["impression"][0])

    unknown = message("f" * 32, past.log, past.tables)
    assert unknown == f"No impression and no unfilled record of {past.log} has the id {'f' * 32}."
    assert message(past.shown, nowhere / "a.log", past.tables) == f"There is no log {nowhere / 'a.log'}: see --log."
    assert f"{nowhere} has no revision" in message(past.shown, past.log, nowhere)
    assert message("", past.log, past.tables) == "This field is required."
    folder = tmp_path / "folder.log"
    folder.mkdir()
    assert f"The log {folder} cannot be read" in message(past.shown, folder, past.tables)


# Delivery


def count(day: datetime, hour: int, impressions: int, clicks: int, campaign_id: str = "spring") -> None:
    at = day.replace(hour=hour)
    Result(
        hour=int(at.timestamp()),
        placement="side",
        campaign=campaign_id,
        creative=f"{campaign_id}-1",
        device="mobile",
        country="JP",
        impressions=impressions,
        views=impressions // 2,
        clicks=clicks,
        ivt=1,
    ).save(force_insert=True)


def test_delivery_is_summed_by_the_sites_days(source: str) -> None:
    yesterday = TODAY - timedelta(days=1)
    # The last hour of one day and the first of the next, in Tokyo: one day in UTC.
    count(yesterday, 23, 30, 3)
    count(TODAY, 0, 70, 1)
    count(TODAY, 0, 100, 0, "house")
    page = project.client("viewer").get("/delivery/?campaign=spring&days=7")
    days = {line.name: (line.impressions, line.clicks) for line in page.context["daily"]}
    assert len(days) == 7
    assert days[TODAY.date().isoformat()] == (70, 1)
    assert days[yesterday.date().isoformat()] == (30, 3)
    total = page.context["total"]
    assert (total.impressions, total.views, total.clicks, total.ivt) == (100, 50, 4, 2)
    assert (total.view_rate, total.click_rate) == ("50.00%", "4.00%")
    both = project.client("viewer").get("/delivery/?days=7")
    by_campaign = dict(both.context["tables"])["campaign"]
    assert [(line.name, line.impressions, line.share) for line in by_campaign] == [
        ("house", 100, 50.0),
        ("spring", 100, 50.0),
    ]


def test_a_goal_is_held_against_a_straight_line(source: str) -> None:
    for days_ago, impressions in ((2, 200), (1, 100)):
        day = (TODAY - timedelta(days=days_ago)).date().isoformat()
        Delivered(campaign="spring", day=day, impressions=impressions, clicks=0).save(force_insert=True)
    (goal,) = project.client("viewer").get("/delivery/?campaign=spring").context["progress"]
    assert (goal.unit, goal.goal, goal.delivered, goal.percent) == ("impressions", 1000, 300, 30.0)
    assert 400 <= goal.expected <= 500
    plan, delivered = (line.split() for line in goal.chart.lines)
    assert (len(plan), len(delivered)) == (11, 5)
    listed = project.client("viewer").get("/adcore/campaign/").content.decode()
    assert "300 of 1000 impressions" in listed


def test_no_campaign_no_page(source: str) -> None:
    assert project.client("viewer").get("/delivery/?campaign=gone").status_code == 404


@given(st.lists(st.integers(0, 10**12), max_size=100))
def test_bars_stay_in_the_picture(counts: list[int]) -> None:
    chart = bar_chart([(str(number), count) for number, count in enumerate(counts)])
    for bar in chart.bars:
        assert 0 <= bar.x <= bar.x + bar.width <= WIDTH
        assert 0 <= bar.y <= bar.y + bar.height <= HEIGHT
        assert bar.height >= 0
    assert len(chart.bars) == len(counts)


def test_a_line_ends_where_it_is_not_known() -> None:
    chart = line_chart(["a", "b", "c"], [[1, 2, 3], [2, None, None]])
    assert [len(line.split()) for line in chart.lines] == [3, 1]


@given(st.floats(0, 1e15))
def test_axes_end_at_round_numbers(value: float) -> None:
    top = round_up(value)
    assert value <= top <= max(1, 2.5 * value)
    assert str(top).rstrip("0") in ("1", "2", "5")


# What a form says and what a document says are the same


def test_fields_and_documents_are_two_forms_of_one_thing() -> None:
    full = full_inventory()
    again = [
        campaign_document(
            campaign_fields(stored, project.ZONE),
            [creative_document(creative_fields(creative)) for creative in stored["creatives"]],
            project.ZONE,
        )
        for stored in full["campaigns"]
    ]
    assert parse_inventory({**full, "campaigns": again}) == parse_inventory(full)


def full_inventory() -> dict[str, Any]:
    """The sample that is shipped, every field written out."""
    sample = resources.files("adcore").joinpath("sample_inventory.json").read_bytes()
    return to_document(parse_inventory(msgspec.json.decode(sample)))
