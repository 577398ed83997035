"""Booking in the admin: what is saved, what is refused and where it says so, on SQLite and MariaDB."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from PIL import Image

from adcore.core.inventory import check_inventory
from adcore.sources import open_store
from adtools.admin import site
from tests import services
from tests.inventories import campaign, document, text_creative
from tests.tools.admin import project


def inventory() -> dict[str, Any]:
    spring = campaign(
        "spring",
        goal={"impressions": 1000},
        starts_at="2026-11-01T00:00:00+01:00",
        frequency_cap={"impressions": 3, "seconds": 7200},
        targeting={"placements": ["side"], "keywords_any": ["Manga"], "hours": [1, 2], "key_values": {"s": ["a", "b"]}},
        creatives=[text_creative("spring-1"), text_creative("spring-2", data={"text": "T", "title": "Title"})],
    )
    return document(spring, campaign("house", priority="house"))


@pytest.fixture(params=["sqlite", "mysql"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "mysql":
        mariadb: services.MariaDB = request.getfixturevalue("mariadb")
        mariadb.sql("CREATE DATABASE IF NOT EXISTS admin")
        url = mariadb.url("admin")
    else:
        url = f"sqlite://{tmp_path}/ads.db"
    project.use_store(url, inventory(), tmp_path)
    yield url
    project.close()


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[str]:
    with project.sqlite_store(tmp_path, inventory()) as url:
        yield url


@pytest.fixture
def editor() -> Client:
    return project.client("editor")


SPRING = "/adcore/campaign/spring/change/"
ADD = "/adcore/campaign/add/"


def save(browser: Client, url: str, **changes: Any) -> Any:
    page = browser.get(url)
    return browser.post(url, project.posted(page, **changes))


def revision(source: str) -> Any:
    store = open_store(source)
    try:
        return store.revision()
    finally:
        store.close()


def test_a_long_change_is_written_down_in_parts_that_a_page_can_show(source: str, editor: Client) -> None:
    words = {f"{'k' * 250}{number}": "v" * 250 for number in range(100)}
    for data in (words, {**words, "k": "v"}, {"k": "v"}):
        changes = {"creatives-0-format": "native", "creatives-0-data": json.dumps(data)}
        page = save(editor, SPRING, **changes)
        assert page.status_code == 302, project.errors(page)
    for list_of_changes in ("/adcore/campaign/spring/history/", "/admin/logentry/"):
        assert editor.get(list_of_changes).status_code == 200
    texts = [text for _, _, text in project.history()]
    assert max(map(len, texts)) <= site.ENTRY_CHARS_MAX
    assert len(texts) > 3
    lines = "\n".join(texts).split("\n")
    assert sum(line.startswith("creative spring-1, data.k: ") for line in lines) == 1
    assert sum(line.count(" → nothing") for line in lines) >= 100


def test_saving_what_was_opened_changes_nothing(source: str, editor: Client) -> None:
    before = project.stored(source)
    assert save(editor, SPRING).status_code == 302
    assert project.stored(source) == before
    assert project.history() == [("editor", "spring", "Saved without a change.")]


def test_creatives_may_share_by_clicks(source: str, editor: Client) -> None:
    for chosen, stored in (("ctr", "ctr"), ("", None)):
        assert save(editor, SPRING, optimize=chosen).status_code == 302
        assert next(one for one in project.stored(source)["campaigns"] if one["id"] == "spring")["optimize"] == stored


def test_an_edit_is_stored_raises_the_revision_confirmed_and_is_written_down(source: str, editor: Client) -> None:
    before = revision(source)
    changes = {"weight": "20", "placements": ["side", "foot"], "creatives-0-text": "Buy two", "advertiser": "Other"}
    assert save(editor, SPRING, **changes).status_code == 302
    after = revision(source)
    assert after.number > before.number
    assert after.confirmed == after.number
    spring = project.stored(source)["campaigns"][0]
    assert (spring["weight"], spring["advertiser"]) == (20, "Other")
    assert spring["targeting"]["placements"] == ["side", "foot"]
    assert spring["creatives"][0]["data"] == {"text": "Buy two"}
    (entry,) = project.history()
    assert entry[:2] == ("editor", "spring")
    assert entry[2].splitlines() == [
        "advertiser: Example Shop → Other",
        "weight: 1 → 20",
        'targeting.placements: ["side"] → ["side", "foot"]',
        "creative spring-1, data.text: Buy one → Buy two",
    ]


def test_a_campaign_is_booked_and_deleted(source: str, editor: Client) -> None:
    made = save(
        editor,
        ADD,
        **{
            "id": "summer",
            "name": "Summer",
            "advertiser": "New Shop",
            "priority": "sponsorship",
            "starts_at": "2026-12-01T09:30",
            "frequency_cap_impressions": "2",
            "frequency_cap_period": "1",
            "frequency_cap_unit": "86400",
            "countries": "jp, de",
            "key_values": "section = Manga, news",
            "hours": ["20", "21"],
            "creatives-0-id": "summer-1",
            "creatives-0-format": "native",
            "creatives-0-size": "728x90",
            "creatives-0-data": '{"headline": "Sun"}',
            "creatives-0-landing_url": "https://shop.example.net/",
        },
    )
    assert made.status_code == 302
    summer = project.stored(source)["campaigns"][-1]
    assert summer["starts_at"] == "2026-12-01T09:30:00+09:00"
    assert summer["frequency_cap"] == {"impressions": 2, "seconds": 86400}
    assert summer["targeting"]["countries"] == ["JP", "DE"]
    assert summer["targeting"]["key_values"] == {"section": ["manga", "news"]}
    assert summer["targeting"]["hours"] == [20, 21]
    assert summer["creatives"][0]["data"] == {"headline": "Sun"}
    before = revision(source).number
    assert editor.post("/adcore/campaign/summer/delete/", {"post": "yes"}).status_code == 302
    assert [row["id"] for row in project.stored(source)["campaigns"]] == ["spring", "house"]
    after = revision(source)
    assert after.number > before
    assert after.confirmed == after.number
    assert check_inventory(project.stored(source))[1] == ()


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"name": "a\x85b"}, "name"),
        ({"name": "x" * 201}, "name"),
        ({"weight": "0"}, "weight"),
        ({"weight": "many"}, "weight"),
        ({"status": "sleeping"}, "status"),
        ({"priority": ""}, "priority"),
        ({"starts_at": "tomorrow"}, "starts_at"),
        ({"ends_at": "2020-01-01T00:00"}, "ends_at"),
        ({"goal_impressions": "-1"}, "goal_impressions"),
        ({"daily_cap_clicks": "1.5"}, "daily_cap_clicks"),
        ({"frequency_cap_period": ""}, "frequency_cap_period"),
        ({"frequency_cap_impressions": ""}, "frequency_cap_impressions"),
        ({"frequency_cap_period": "9999999"}, "frequency_cap_period"),
        ({"placements": ["gone"]}, "placements"),
        ({"devices": ["fridge"]}, "devices"),
        ({"countries": "JP, UK"}, "countries"),
        ({"languages": "japanese!"}, "languages"),
        ({"keywords_any": "x" * 200}, "keywords_any"),
        ({"key_values": "section manga"}, "key_values"),
        ({"key_values": "S = a\ns = b"}, "key_values"),
        ({"hours": ["24"]}, "hours"),
        ({"creatives-0-format": "html"}, "creatives-0-html"),
        ({"creatives-0-format": "image", "creatives-0-image_url": "javascript:x"}, "creatives-0-image_url"),
        ({"creatives-0-landing_url": "ftp://x"}, "creatives-0-landing_url"),
        ({"creatives-0-text": ""}, "creatives-0-text"),
        ({"creatives-0-title": "a\tb"}, "creatives-0-title"),
        ({"creatives-0-size": "0x90"}, "creatives-0-size"),
        ({"creatives-0-size": ""}, "creatives-0-size"),
        ({"creatives-0-format": "native", "creatives-0-data": "{"}, "creatives-0-data"),
        ({"creatives-0-format": "native", "creatives-0-data": '{"a": 1, "a": 2}'}, "creatives-0-data"),
        ({"creatives-1-weight": "1000001"}, "creatives-1-weight"),
    ],
)
def test_what_apply_refuses_is_refused_beside_its_field(
    sqlite: str, editor: Client, changes: dict[str, Any], field: str
) -> None:
    before = project.stored(sqlite)
    page = save(editor, SPRING, **changes)
    assert page.status_code == 200
    assert set(project.errors(page)) == {field}
    assert project.stored(sqlite) == before
    assert project.history() == []


def test_the_text_is_the_one_that_apply_gives(sqlite: str, editor: Client) -> None:
    page = save(editor, SPRING, countries="JP, UK", **{"creatives-1-landing_url": ""})
    assert project.errors(page) == {
        "countries": ['Must be an ISO 3166 country code such as "JP" or "GB"; got "UK".'],
        "creatives-1-landing_url": ["Is missing: a creative of format text needs it."],
    }


def test_an_id_that_is_taken_is_refused(sqlite: str, editor: Client) -> None:
    new = {"name": "N", "creatives-0-text": "T", "creatives-0-format": "text", "creatives-0-size": "300x250"}
    new |= {"creatives-0-landing_url": "https://shop.example.net/", "priority": "house"}
    page = save(editor, ADD, **{**new, "id": "spring", "creatives-0-id": "house-1"})
    assert set(project.errors(page)) == {"id", "creatives-0-id"}


def test_a_campaign_needs_a_creative(sqlite: str, editor: Client) -> None:
    page = save(editor, SPRING, **{"creatives-0-DELETE": "on", "creatives-1-DELETE": "on"})
    assert "at least one creative" in project.errors(page)["__all__"][0]


def test_creatives_are_added_and_removed(source: str, editor: Client) -> None:
    new = {"id": "spring-3", "format": "html", "size": "300x250", "weight": "1", "html": "<b>hi</b>"}
    changes = {f"creatives-2-{name}": value for name, value in new.items()}
    saved = save(editor, SPRING, **{"creatives-TOTAL_FORMS": "3", "creatives-0-DELETE": "on", **changes})
    assert saved.status_code == 302
    spring = project.stored(source)["campaigns"][0]
    assert [creative["id"] for creative in spring["creatives"]] == ["spring-2", "spring-3"]


def test_what_somebody_else_saved_meanwhile_is_not_undone(sqlite: str, editor: Client) -> None:
    page = editor.get(SPRING)
    assert save(project.client("editor", "bob"), SPRING, weight="7").status_code == 302
    late = editor.post(SPRING, project.posted(page, weight="9"))
    assert "Somebody else changed this campaign" in project.errors(late)["__all__"][0]
    assert project.stored(sqlite)["campaigns"][0]["weight"] == 7


def test_a_target_that_is_gone_stays_until_somebody_takes_it_out(sqlite: str, editor: Client) -> None:
    with connection.cursor() as cursor:
        cursor.execute("UPDATE campaigns SET targeting = '{\"placements\": [\"gone\"]}' WHERE id = 'spring'")
    page = editor.get(SPRING)
    assert "Servers leave this out. placements: Must be the id of a placement" in page.content.decode()
    assert set(project.errors(editor.post(SPRING, project.posted(page)))) == {"placements"}


def test_pausing_from_the_list(source: str, editor: Client) -> None:
    before = revision(source).number
    chosen = {"action": "pause", "_selected_action": ["spring", "house"]}
    assert editor.post("/adcore/campaign/", chosen).status_code == 302
    assert [row["status"] for row in project.stored(source)["campaigns"]] == ["paused", "paused"]
    after = revision(source)
    assert after.number > before
    assert after.confirmed == after.number
    assert [entry[1:] for entry in project.history()] == [
        ("spring", "status: active → paused"),
        ("house", "status: active → paused"),
    ]


def test_placements(source: str, editor: Client) -> None:
    added = save(editor, "/adcore/placement/add/", id="wide", width="970", height="250", formats=["image"])
    assert added.status_code == 302
    assert project.stored(source)["placements"][-1] == {"id": "wide", "width": 970, "height": 250, "formats": ["image"]}
    page = save(editor, "/adcore/placement/wide/change/", width="0", formats=[])
    assert set(project.errors(page)) == {"width", "formats"}
    refused = editor.post("/adcore/placement/side/delete/", {"post": "yes"})
    assert b"spring" in refused.content
    assert len(project.stored(source)["placements"]) == 4
    assert editor.post("/adcore/placement/wide/delete/", {"post": "yes"}).status_code == 302
    assert len(project.stored(source)["placements"]) == 3


def picture(size: tuple[int, int]) -> io.BytesIO:
    file = io.BytesIO()
    Image.new("RGB", size, "red").save(file, "PNG")
    file.seek(0)
    file.name = "../../evil.php"
    return file


def test_an_uploaded_image_gets_a_url_of_its_content(sqlite: str, editor: Client, tmp_path: Path) -> None:
    changes = {"creatives-0-format": "image", "creatives-0-upload": picture((600, 500))}
    assert save(editor, SPRING, **changes).status_code == 302
    url = project.stored(sqlite)["campaigns"][0]["creatives"][0]["image_url"]
    assert url.startswith(f"{project.URL}/creatives/")
    shown: Any = Client(SERVER_NAME="127.0.0.1").get(url.removeprefix(project.URL))
    assert shown.headers["Content-Type"] == "image/png"
    assert "immutable" in shown.headers["Cache-Control"]
    assert Image.open(io.BytesIO(b"".join(shown.streaming_content))).size == (600, 500)
    assert [file.name for file in (tmp_path / "creatives").iterdir()] == [url.rpartition("/")[2]]


def test_an_image_of_another_size_is_refused_beside_the_upload(sqlite: str, editor: Client) -> None:
    changes = {"creatives-0-format": "image", "creatives-0-upload": picture((300, 251))}
    changes["creatives-0-image_url"] = "https://img.example.net/1.png"
    assert set(project.errors(save(editor, SPRING, **changes))) == {"creatives-0-upload"}


def test_an_image_that_cannot_be_kept_is_an_error_of_its_field(sqlite: str, editor: Client, tmp_path: Path) -> None:
    (tmp_path / "creatives").write_text("no directory")
    changes = {"creatives-0-format": "image", "creatives-0-upload": picture((300, 250))}
    found = project.errors(save(editor, SPRING, **changes))
    assert "can't be kept in" in found["creatives-0-upload"][0]
