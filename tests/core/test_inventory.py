"""What a document may hold: every error named by its path, and valid rows kept beside bad ones."""

import json
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from time import process_time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import adcore
from adcore.core.inventory import (
    ADVISED_MAX,
    DATA_BYTES_MAX,
    HTML_BYTES_MAX,
    TARGETS_MAX,
    Campaign,
    Creative,
    Inventory,
    InventoryError,
    Placement,
    Targeting,
    check_inventory,
    normalise_word,
    parse_inventory,
    to_document,
)

SAMPLE = Path(adcore.__file__).with_name("sample_inventory.json")


def creative(**fields: Any) -> dict[str, Any]:
    return {
        "id": "k",
        "placement_size": [728, 90],
        "format": "text",
        "data": {"text": "Hello"},
        "landing_url": "https://shop.example.net/",
        **fields,
    }


def campaign(**fields: Any) -> dict[str, Any]:
    return {"id": "c", "name": "C", "priority": "house", "creatives": [creative()], **fields}


def document(*campaigns: dict[str, Any]) -> dict[str, Any]:
    return {"placements": [{"id": "top", "width": 728, "height": 90}], "campaigns": list(campaigns)}


def paths(value: object) -> list[str]:
    return [problem.path for problem in check_inventory(value)[1]]


def messages(value: object) -> str:
    return "\n".join(map(str, check_inventory(value)[1]))


# Accepted


def test_the_sample_is_valid_and_its_top_always_fills() -> None:
    inventory = parse_inventory(json.loads(SAMPLE.read_text()))
    assert {p.id: (p.width, p.height) for p in inventory.placements} == {
        "top": (728, 90),
        "side": (300, 250),
        "feed": (600, 120),
        "mobile": (320, 50),
    }
    assert {c.priority for c in inventory.campaigns} == {"sponsorship", "standard", "house"}
    assert {k.format for c in inventory.campaigns for k in c.creatives} == {"image", "html", "text", "native"}
    house = next(c for c in inventory.campaigns if c.id == "house")
    assert (house.starts_at, house.ends_at, house.goal, house.daily_cap, house.frequency_cap) == (None,) * 5
    assert house.targeting == Targeting()
    assert {k.placement_size for k in house.creatives} >= {(p.width, p.height) for p in inventory.placements}


def test_every_field_of_the_design_is_read() -> None:
    given_campaign = {
        "id": "spring",
        "name": "Spring sale",
        "advertiser": "Example Shop",
        "priority": "sponsorship",
        "weight": 10,
        "status": "active",
        "starts_at": "2026-11-01T00:00:00+09:00",
        "ends_at": None,
        "goal": {"impressions": 100000},
        "daily_cap": {"impressions": 5000},
        "pacing": "even",
        "frequency_cap": {"impressions": 3, "seconds": 86400},
        "targeting": {
            "placements": ["top"],
            "devices": ["mobile"],
            "os": [],
            "countries": ["jp"],
            "languages": ["pt-BR"],
            "keywords_any": [" Manga ", "manga"],
            "keywords_none": [],
            "hours": [0, 1, 2],
            "weekdays": [],
            "key_values": {"Section": ["Manga"]},
        },
        "creatives": [
            {
                "id": "spring-1",
                "placement_size": [728, 90],
                "format": "image",
                "weight": 1,
                "image_url": "https://img.example.net/1.png",
                "alt": "…",
                "html": None,
                "data": None,
                "landing_url": "https://shop.example.net/?c={click_id}",
            }
        ],
    }
    (spring,) = parse_inventory(document(given_campaign)).campaigns
    assert spring.starts_at == datetime(2026, 11, 1, tzinfo=timezone(timedelta(hours=9)))
    assert spring.goal is not None
    assert (spring.goal.impressions, spring.goal.clicks) == (100000, None)
    assert spring.targeting == Targeting(
        placements=("top",),
        devices=("mobile",),
        countries=("JP",),
        languages=("pt-br",),
        keywords_any=("manga",),
        hours=(0, 1, 2),
        key_values={"section": ("manga",)},
    )
    assert spring.creatives[0].placement_size == (728, 90)
    assert spring.creatives[0].landing_url == "https://shop.example.net/?c={click_id}"


def test_absent_and_null_fields_take_their_defaults() -> None:
    optional = ("advertiser", "weight", "status", "starts_at", "goal", "pacing", "frequency_cap", "targeting")
    full = parse_inventory(document(campaign(**dict.fromkeys(optional)))).campaigns
    assert full == parse_inventory(document(campaign())).campaigns
    assert full[0].weight == 1
    assert full[0].pacing == "asap"


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com",
        "HTTPS://example.com:8443/a/b;c?d=e&f[]=g#h",
        "https://[2001:db8::1]/",
        "https://xn--r8jz45g.jp/%E3%82%BB?a={click_id}",
        "https://192.0.2.1/~user/",
        "https://example.com?" + "a" * 2028,
    ],
)
def test_urls_that_are_accepted(url: str) -> None:
    assert parse_inventory(document(campaign(creatives=[creative(landing_url=url)])))


@pytest.mark.parametrize(
    "fields",
    [
        {"format": "image", "image_url": "https://img.example.net/1.png", "data": None},
        {"format": "html", "html": "<p>\n\tあ</p>", "data": None, "landing_url": None},
        {"format": "text", "data": {"title": "T", "text": "two\nlines"}},
        {"format": "native", "data": {"nested": [{"n": 1.5, "b": True, "x": None}], "any": "JSON"}},
        {"format": "native", "data": {}},
    ],
)
def test_each_format_with_what_it_needs(fields: dict[str, Any]) -> None:
    assert parse_inventory(document(campaign(creatives=[creative(**fields)])))


# Refused


CAMPAIGN_ERRORS: list[tuple[dict[str, Any], list[str]]] = [
    ({"id": "-c"}, [".id"]),
    ({"id": "c" * 65}, [".id"]),
    ({"id": "c\n"}, [".id"]),
    ({"id": "naïve"}, [".id"]),
    ({"name": "a\nb"}, [".name"]),
    ({"name": "a\u2028b"}, [".name"]),
    ({"name": "a" * 201}, [".name"]),
    ({"name": "a "}, [".name"]),
    ({"advertiser": "\u3000a"}, [".advertiser"]),
    ({"name": "half a pair: \ud83d"}, [".name"]),
    ({"advertiser": 5}, [".advertiser"]),
    ({"priority": "gold"}, [".priority"]),
    ({"weight": 0}, [".weight"]),
    ({"weight": 1_000_001}, [".weight"]),
    ({"weight": 1.0}, [".weight"]),
    ({"weight": float("nan")}, [".weight"]),
    ({"weight": True}, [".weight"]),
    ({"weight": "1"}, [".weight"]),
    ({"weight": 10**4000}, [".weight"]),
    ({"status": "on"}, [".status"]),
    ({"starts_at": "2026-11-01"}, [".starts_at"]),
    ({"starts_at": "2026-11-01T00:00:00"}, [".starts_at"]),
    ({"starts_at": 1_700_000_000}, [".starts_at"]),
    ({"starts_at": "2026-02-30T00:00:00Z"}, [".starts_at"]),
    ({"starts_at": "2026-11-01T09:00:00+09:00", "ends_at": "2026-11-01T00:00:00Z"}, [".ends_at"]),
    ({"goal": {}}, [".goal"]),
    ({"goal": {"impressions": 0, "clicks": -1}}, [".goal.impressions", ".goal.clicks"]),
    ({"goal": 5}, [".goal"]),
    ({"daily_cap": {"impressions": None, "clicks": None}}, [".daily_cap"]),
    ({"daily_cap": {"view": 5}}, [".daily_cap.view"]),
    ({"frequency_cap": {"impressions": 3}}, [".frequency_cap.seconds"]),
    (
        {"frequency_cap": {"impressions": 10_001, "seconds": 367 * 86_400}},
        [".frequency_cap.*", ".frequency_cap.*"],
    ),
    ({"targeting": []}, [".targeting"]),
    ({"targeting": {"devices": ["phone", "tv", 3]}}, [".targeting.devices[0]", ".targeting.devices[2]"]),
    ({"targeting": {"os": "ios"}}, [".targeting.os"]),
    ({"targeting": {"countries": ["Japan", "UK"]}}, [".targeting.countries[0]", ".targeting.countries[1]"]),
    ({"targeting": {"languages": ["ja_JP"]}}, [".targeting.languages[0]"]),
    (
        {"targeting": {"hours": [-1, 24, True]}},
        [".targeting.hours[0]", ".targeting.hours[1]", ".targeting.hours[2]"],
    ),
    ({"targeting": {"weekdays": [7]}}, [".targeting.weekdays[0]"]),
    ({"targeting": {"keywords_any": ["a,b", " ", "x" * 129]}}, [".targeting.keywords_any[*"] * 3),
    ({"targeting": {"keywords_none": ["ß" * 128]}}, [".targeting.keywords_none"]),
    ({"targeting": {"key_values": {"s": "manga"}}}, [".targeting.key_values.s"]),
    ({"targeting": {"key_values": {"a b": ["x", 1]}}}, ['.targeting.key_values["a b"][1]']),
    ({"targeting": {"key_values": {"Tier": ["a"], "tier": ["b"]}}}, [".targeting.key_values"]),
    ({"targeting": {"keywords_any": [str(n) for n in range(1001)]}}, [".targeting.keywords_any"]),
    (
        {"targeting": {"placements": ["tpo"], "hours": [99]}},
        [".targeting.hours[0]", ".targeting.placements[0]"],
    ),
    ({"creatives": []}, [".creatives"]),
    ({"creatives": {}}, [".creatives"]),
    ({"creatives": None}, [".creatives"]),
    ({"creatives": ["k"]}, [".creatives[0]"]),
]


def matches(path: str, pattern: str) -> bool:
    head, star, _ = pattern.partition("*")
    return path.startswith(head) if star else path == pattern


@pytest.mark.parametrize(("fields", "expected"), CAMPAIGN_ERRORS, ids=[ascii(e[0])[:60] for e in CAMPAIGN_ERRORS])
def test_errors_of_a_campaign(fields: dict[str, Any], expected: list[str]) -> None:
    inventory, problems = check_inventory(document(campaign(**fields)))
    found = [problem.path for problem in problems]
    assert len(found) == len(expected), found
    assert all(matches(p, f"$.campaigns[0]{e}") for p, e in zip(found, expected, strict=True)), found
    assert inventory.campaigns == ()
    assert len(inventory.placements) == 1


URL_ERRORS = [
    "",
    "javascript:alert(1)",
    "data:text/html,x",
    "//example.com/",
    "/relative",
    "ftp://example.com/",
    "https://",
    "https:///path",
    "https://user@example.com/",
    "https://user:pass@example.com/",
    "https://example.com:port/",
    "https://example.com/a b",
    "https://example.com/\r\nSet-Cookie: a=b",
    "https://example.com/\x00",
    "https://example.com/\n",
    "https://example.com\\@evil.example/",
    'https://example.com/"onload=x',
    "https://example.com/<script>",
    "https://exa{mple}.com/",
    "https://example.com/セール",
    "https://example.com/" + "a" * 2048,
]

CREATIVE_ERRORS: list[tuple[dict[str, Any], list[str]]] = [
    *(({"landing_url": url}, [".landing_url"]) for url in URL_ERRORS),
    ({"image_url": "javascript:x"}, [".image_url"]),
    ({"placement_size": [728]}, [".placement_size"]),
    ({"placement_size": [0, 90]}, [".placement_size"]),
    ({"placement_size": [728, 10_001]}, [".placement_size"]),
    ({"placement_size": "728x90"}, [".placement_size"]),
    ({"format": "video"}, [".format"]),
    ({"format": "image"}, [".image_url"]),
    ({"format": "image", "landing_url": None}, [".image_url", ".landing_url"]),
    ({"format": "html"}, [".html"]),
    ({"format": "html", "html": ""}, [".html"]),
    ({"format": "html", "html": "\x00"}, [".html"]),
    ({"format": "html", "html": "é" * (HTML_BYTES_MAX // 2 + 1)}, [".html"]),
    ({"format": "html", "html": "e" * (HTML_BYTES_MAX + 1)}, [".html"]),
    ({"alt": "a\x1b[0m"}, [".alt"]),
    ({"data": None}, [".data"]),
    ({"data": []}, [".data"]),
    ({"data": {}}, [".data.text"]),
    ({"data": {"text": "", "txet": 1, "title": "a\nb"}}, [".data.txet", ".data.text", ".data.title"]),
    ({"format": "native", "data": {"a": {"b c": ["\x07"]}}}, ['.data.a["b c"][0]']),
    ({"format": "native", "data": {"a\n": 1}}, [".data"]),
    ({"format": "native", "data": {"a": float("inf"), "b": float("nan")}}, [".data.a", ".data.b"]),
    ({"format": "native", "data": {"a": 2**53}}, [".data.a"]),
    ({"format": "native", "data": {"a": b"x"}}, [".data.a"]),
    ({"format": "native", "data": {"a": "x" * DATA_BYTES_MAX}}, [".data"]),
    ({"format": "native", "data": {"a": json.loads("[" * 40 + "]" * 40)}}, [".data.a" + "[0]" * 15]),
    ({"id": 7}, [".id"]),
    ({"weight": -1}, [".weight"]),
    ({"colour": "red"}, [".colour"]),
    ({"landing": "https://example.com/"}, [".landing"]),
]


@pytest.mark.parametrize(("fields", "expected"), CREATIVE_ERRORS, ids=[ascii(e[0])[:60] for e in CREATIVE_ERRORS])
def test_a_bad_creative_is_named_and_left_out_alone(fields: dict[str, Any], expected: list[str]) -> None:
    good = creative(id="good")
    inventory, problems = check_inventory(document(campaign(creatives=[creative(**fields), good])))
    assert [problem.path for problem in problems] == [f"$.campaigns[0].creatives[0]{e}" for e in expected]
    assert [k.id for c in inventory.campaigns for k in c.creatives] == ["good"]


@pytest.mark.parametrize("missing", ["id", "name", "priority", "creatives"])
def test_a_missing_field_of_a_campaign_is_named(missing: str) -> None:
    row = campaign()
    del row[missing]
    assert paths(document(row)) == [f"$.campaigns[0].{missing}"]
    assert "is missing" in messages(document(row))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, ["$"]),
        ([], ["$"]),
        ({}, ["$.placements", "$.campaigns"]),
        ({"placements": [], "campaigns": {}}, ["$.campaigns"]),
        ({"placement": [], "campaigns": []}, ["$.placement", "$.placements"]),
        ({"placements": [3], "campaigns": []}, ["$.placements[0]"]),
        (
            {"placements": [{"id": "p", "width": 0, "height": True, "formats": []}], "campaigns": []},
            ["$.placements[0].width", "$.placements[0].height", "$.placements[0].formats"],
        ),
        (
            {"placements": [{"id": "p", "width": 1, "height": 1, "formats": ["gif"]}], "campaigns": []},
            ["$.placements[0].formats[0]"],
        ),
    ],
)
def test_errors_of_the_whole_document_and_of_placements(value: object, expected: list[str]) -> None:
    assert paths(value) == expected


def test_ids_are_unique_and_the_first_row_stays() -> None:
    place = {"id": "top", "width": 1, "height": 1}
    first = campaign(id="a", name="first", creatives=[creative(id="k"), creative(id="k", weight=2)])
    second = campaign(id="a", name="second", creatives=[creative(id="k"), creative(id="j")])
    third = campaign(id="b", creatives=[creative(id="k"), creative(id="i")])
    value = document(first, second, third)
    value["placements"].append(place)
    inventory, problems = check_inventory(value)
    assert [problem.path for problem in problems] == [
        "$.placements[1].id",
        "$.campaigns[0].creatives[1].id",
        "$.campaigns[1].id",
        "$.campaigns[1].creatives[0].id",
        "$.campaigns[2].creatives[0].id",
    ]
    assert inventory.placements[0].width == 728
    kept = {c.id: (c.name, [k.id for k in c.creatives]) for c in inventory.campaigns}
    assert kept == {"a": ("first", ["k"]), "b": ("C", ["i"])}


def test_a_placement_that_is_bad_is_not_reported_again_by_the_campaigns_that_name_it() -> None:
    value = document(campaign(targeting={"placements": ["top"]}))
    value["placements"][0]["width"] = 0
    assert paths(value) == ["$.placements[0].width"]


def test_a_campaign_without_a_good_creative_is_left_out() -> None:
    inventory, problems = check_inventory(document(campaign(creatives=[creative(weight=0)])))
    assert [problem.path for problem in problems] == ["$.campaigns[0].creatives[0].weight"]
    assert inventory.campaigns == ()


def test_messages_name_the_row_and_the_fix() -> None:
    value = document(
        campaign(
            id="spring",
            priorty="house",
            status="actve",
            targeting={"placements": ["tpo"]},
            creatives=[creative(id="spring-1", landing_url="https://例え.jp/セール?x={click_id}")],
        )
    )
    text = messages(value)
    assert '$.campaigns[0].priorty (campaign "spring"): there is no such field; did you mean priority?' in text
    assert 'must be one of active, paused; did you mean active?; got "actve"' in text
    assert 'must be the id of a placement; did you mean top?; got "tpo"' in text
    assert '(creative "spring-1")' in text
    assert "write https://xn--r8jz45g.jp/%E3%82%BB%E3%83%BC%E3%83%AB?x={click_id}" in text
    with pytest.raises(InventoryError) as caught:
        parse_inventory(value)
    assert str(caught.value).startswith("the inventory has 4 errors:\n$.campaigns[0].")
    assert len(caught.value.problems) == 4


def test_a_message_is_one_clean_line_whatever_was_sent() -> None:
    hostile = "\x1b[31m\r\n" + "x" * 5000
    row = campaign(id=hostile, creatives=[creative(id=hostile, **{hostile: 1})], **{"b\n": 1})
    nearly = {
        "placements": [{"id": "side\x1b", "width": 1, "height": 1}],
        "campaigns": [campaign(targeting={"placements": ["side"]})],
    }
    for problem in (*check_inventory(document(row))[1], *check_inventory(nearly)[1]):
        assert str(problem).isprintable(), problem
        assert len(str(problem)) < 600


def test_half_a_surrogate_pair_is_an_error_wherever_it_stands() -> None:
    """JSON can write it, and so can a file that `adctl apply` reads."""
    half = "\ud800"
    for row in (
        campaign(priority=half),
        campaign(**{half: 1}),
        campaign(targeting={half: ["x"]}),
        campaign(creatives=[creative(format=half)]),
        campaign(creatives=[creative(**{half: 1})]),
    ):
        _, problems = check_inventory(
            {"placements": [{"id": "p", "width": 1, "height": 1, half: 1}], "campaigns": [row]}
        )
        assert len(problems) > 1
        assert all(str(problem).isprintable() for problem in problems)


# Out and back


def test_what_is_exported_is_what_was_applied() -> None:
    for value in (
        json.loads(SAMPLE.read_text()),
        document(campaign(starts_at="2026-11-01T00:00:00.25+05:45")),
    ):
        inventory = parse_inventory(value)
        exported = to_document(inventory)
        assert parse_inventory(json.loads(json.dumps(exported))) == inventory
        assert to_document(parse_inventory(exported)) == exported
    assert exported["campaigns"][0]["starts_at"] == "2026-11-01T00:00:00.250000+05:45"


def test_dates_far_away_can_be_used() -> None:
    row = campaign(starts_at="0001-01-01T00:00:00+14:00", ends_at="9999-12-31T23:59:59-12:00")
    inventory = parse_inventory(document(row))
    (only,) = inventory.campaigns
    assert only.starts_at is not None
    assert only.ends_at is not None
    assert only.starts_at.timestamp() < 0 < only.ends_at.timestamp()
    assert parse_inventory(to_document(inventory)) == inventory


TEXT = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=20)
WORDS = st.lists(TEXT.filter(lambda t: "," not in t and t.strip() != ""), max_size=3)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
DATES = st.none() | st.datetimes(
    min_value=datetime(2000, 1, 1),
    max_value=datetime(2100, 1, 1),
    timezones=st.sampled_from([UTC, timezone(timedelta(hours=9)), timezone(-timedelta(hours=3, minutes=30))]),
).map(datetime.isoformat)


@settings(max_examples=200, deadline=None)
@given(TEXT.map(str.strip), TEXT, WORDS, WORDS, st.dictionaries(TEXT, JSON, max_size=4), DATES)
def test_any_valid_inventory_survives_the_round_trip(
    name: str, alt: str, any_of: list[str], none_of: list[str], data: dict[str, Any], starts_at: str | None
) -> None:
    row = campaign(
        name=name,
        starts_at=starts_at,
        targeting={"keywords_any": any_of, "keywords_none": none_of, "key_values": {"k": any_of}},
        creatives=[creative(alt=alt, format="native", data=data)],
    )
    inventory = parse_inventory(document(row))
    assert parse_inventory(to_document(inventory)) == inventory
    (only,) = inventory.campaigns
    assert only.starts_at == (None if starts_at is None else datetime.fromisoformat(starts_at))


@pytest.mark.parametrize(
    ("text", "expected"),
    [(" Manga\u3000", "manga"), ("か\u3099", "が"), ("STRASSE", "strasse"), ("straße", "strasse")],
)
def test_words_that_look_alike_are_alike(text: str, expected: str) -> None:
    assert normalise_word(text) == expected
    row = campaign(targeting={"keywords_any": [text, expected], "key_values": {text: [text]}})
    (only,) = parse_inventory(document(row)).campaigns
    assert only.targeting.keywords_any == (expected,)
    assert only.targeting.key_values == {expected: (expected,)}


@given(st.text())
def test_the_normal_form_of_a_word_is_its_own_normal_form(text: str) -> None:
    once = normalise_word(text)
    assert normalise_word(once) == once


@settings(deadline=None)
@given(st.recursive(JSON, lambda inner: st.dictionaries(st.sampled_from(["placements", "campaigns", "id"]), inner)))
def test_no_document_makes_the_check_fail(value: object) -> None:
    check_inventory(value)
    check_inventory({"placements": value, "campaigns": value})
    check_inventory(document(campaign(targeting=value, goal=value, creatives=[value, creative(data=value)])))


def test_a_hundred_thousand_creatives_are_checked_in_seconds() -> None:
    rows = [
        campaign(
            id=f"c{i}",
            creatives=[creative(id=f"c{i}-{j}") for j in range(20)],
            targeting={"countries": ["jp"]},
        )
        for i in range(5000)
    ]
    started = process_time()
    inventory, problems = check_inventory(document(*rows))
    elapsed_s = process_time() - started
    assert problems == ()
    assert sum(len(c.creatives) for c in inventory.campaigns) == 100_000
    assert elapsed_s < 10, elapsed_s


def test_rows_are_frozen() -> None:
    inventory = parse_inventory(document(campaign()))
    for row in (
        inventory,
        inventory.placements[0],
        inventory.campaigns[0],
        inventory.campaigns[0].creatives[0],
    ):
        assert isinstance(row, Inventory | Placement | Campaign | Creative)
        with pytest.raises(AttributeError):
            row.id = "other"  # type: ignore[misc, union-attr]


def test_what_may_have_been_meant_is_looked_for_a_few_times_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Among 5,000 names it takes 50 ms, and a document can have thousands of wrong ones."""
    looked_for: list[object] = []

    def close(name: str, *_: object) -> list[str]:
        looked_for.append(name)
        return ["top"]

    monkeypatch.setattr("adcore.core.inventory.get_close_matches", close)
    wrong = campaign(targeting={"placements": [f"tpo{n}" for n in range(900)]}, **{f"f{n}": 1 for n in range(900)})
    problems = messages(document(wrong)).splitlines()
    assert len(problems) == 1800
    assert len(looked_for) == ADVISED_MAX == sum("did you mean" in problem for problem in problems)


def test_placements_beyond_the_longest_list_are_not_each_named() -> None:
    wrong = campaign(targeting={"placements": ["none"] * (TARGETS_MAX + 500)})
    assert len(paths(document(wrong))) == TARGETS_MAX + 1


def test_a_long_name_is_not_in_the_path_of_each_value_below_it() -> None:
    deep = {"x" * 64: {"\0": 1}, "y" * 50_000: [float("nan")] * 50}
    found = paths(document(campaign(creatives=[creative(format="native", data=deep)])))
    assert len(found) == 51
    assert max(map(len, found)) < 200
    assert f"$.campaigns[0].creatives[0].data.{'x' * 64}" in found


def test_a_long_address_is_not_written_in_ascii_for_the_message() -> None:
    for path, advised in (("\u3042" * 10, True), ("\u3042" * 3000, False)):
        wrong = campaign(creatives=[creative(landing_url=f"https://shop.example.net/{path}")])
        assert ("in ASCII" in messages(document(wrong))) is advised
