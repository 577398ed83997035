"""What an html creative counts by itself: no request of a sandbox gets a decision, none but a visit is a click."""

from pathlib import Path

import pytest

from tests.process import serving
from tests.test_links import links, store

SEEN = [
    {},
    {"Sec_Fetch_Mode": "cors", "Sec_Fetch_Site": "same-origin", "Sec_Fetch_Dest": "empty"},
    {"Sec_Fetch_Mode": "cors", "Sec_Fetch_Site": "cross-site", "Origin": "https://www.example.com"},
    {"Sec_Fetch_Mode": "same-origin", "Sec_Fetch_Site": "same-origin"},
    {"Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "document", "Sec_Fetch_User": "?1"},
    {"Origin": "https://www.example.com"},
]
UNSEEN = [
    {"Origin": "null"},
    {"Origin": "null", "Sec_Fetch_Mode": "cors", "Sec_Fetch_Site": "cross-site"},
    *(
        {"Sec_Fetch_Mode": "no-cors", "Sec_Fetch_Dest": dest}
        for dest in ("empty", "image", "script", "style", "video", "audio", "font", "track")
    ),
    {"Sec_Fetch_Mode": "no-cors", "Origin": "https://www.example.com"},
]
IN_FRAMES = [{"Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": dest} for dest in ("iframe", "frame", "embed", "object")]
VISITS = [
    {},
    {"Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "document"},
    {"Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "iframe", "Sec_Fetch_User": "?1"},
]
NO_VISITS = [
    {"Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "iframe"},
    *({"Sec_Fetch_Mode": mode} for mode in ("no-cors", "cors", "same-origin", "websocket")),
    # As Chromium and nginx pass on what a creative's WebSocket says, which has no Fetch Metadata.
    {"Origin": "null", "Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQ==", "Sec_WebSocket_Version": "13"},
    {"Origin": "https://www.example.com", "Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQ=="},
    {"Origin": "null"},
]


def test_a_decision_goes_to_those_who_can_show_it(tmp_path: Path) -> None:
    with serving(tmp_path / "state", "--source", store(tmp_path)) as server:
        data, frame = "/v1/decision?placement=side", "/v1/frame?placement=side"
        assert {server.ask(data, "GET", None, **headers).status for headers in SEEN} == {200}
        assert {server.ask(frame, "GET", None, **headers).status for headers in SEEN + IN_FRAMES} == {200}
        assert {server.ask(data, "GET", None, **headers).status for headers in UNSEEN + IN_FRAMES} == {403}
        assert {server.ask(frame, "GET", None, **headers).status for headers in UNSEEN} == {403}
        assert {server.ask(data, "HEAD", None, **headers).status for headers in UNSEEN} == {403}
        body = b'{"placement": "side"}'
        assert {server.ask("/v1/decision", "POST", body, **headers).status for headers in UNSEEN} == {403}
        assert server.stop() == 0
        assert len(server.records()) == 2 * len(SEEN) + len(IN_FRAMES)


def test_a_click_leads_anywhere_and_counts_where_the_visitor_goes(tmp_path: Path) -> None:
    with serving(tmp_path / "state", "--source", store(tmp_path)) as server:
        for headers in VISITS:
            link = links(server)["click_url"]
            assert {server.ask(link, "GET", None, **other).status for other in NO_VISITS} == {302}
            assert server.ask(link, "GET", None, **headers).status == 302
        unvisited = links(server)["click_url"]
        assert {server.ask(unvisited, "GET", None, **other).status for other in NO_VISITS} == {302}
        assert server.stop() == 0
        clicks = [record["id"] for record in server.records() if record["type"] == "click"]
    assert len(clicks) == len(set(clicks)) == len(VISITS)


@pytest.mark.parametrize("kind", ["view_url", "click_url"])
def test_an_impression_counts_one_of_each_however_often_it_is_asked_for(tmp_path: Path, kind: str) -> None:
    with serving(tmp_path / "state", "--source", store(tmp_path)) as server:
        link = links(server)[kind]
        for _ in range(20):
            server.ask(link)
        assert server.stop() == 0
        records = [record["type"] for record in server.records()]
    assert sorted(records) == sorted(["impression", kind.removesuffix("_url")])
