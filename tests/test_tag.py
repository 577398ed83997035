"""The tag on a page, in a real Chromium: what is asked for, shown, kept in place, and reported as seen. The demo page.

The browser's timers are moved by the tests (`clock`), so that a second in sight is a second and no more; what is in
sight is the browser's own judgement.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, expect

from tests.chromium import USER_AGENT, chromium
from tests.inventories import campaign, document, text_creative
from tests.process import Adcore, adctl, serving_over

SITE = "http://site.test/"
DECISION = re.compile(r"/v1/decision\?")
VIEW = re.compile(r"/v1/view\?")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


SIZES = {"top": (300, 100), "low": (300, 250)}


def inventory() -> dict[str, Any]:
    placements = [{"id": name, "width": width, "height": height} for name, (width, height) in SIZES.items()]
    campaigns = [
        campaign(name, creatives=[text_creative(f"{name}-1", size, data={"text": f"Buy {name}"})])
        for name, size in SIZES.items()
    ]
    return {**document(*campaigns), "placements": placements}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Adcore]:
    folder = tmp_path_factory.mktemp("tag")
    source = f"sqlite:///{folder}/ads.db"
    (folder / "ads.json").write_text(json.dumps(inventory()))
    applied = adctl("apply", "--source", source, str(folder / "ads.json"))
    assert applied.returncode == 0, applied.stderr
    with serving_over("tcp", folder / "state", "--source", source, "--cors-origins", SITE.rstrip("/")) as adcore:
        yield adcore


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    with browser.new_context(viewport={"width": 800, "height": 600}, user_agent=USER_AGENT) as context:
        yield context


class Site:
    """A page of another host, and what it asks of the ad server."""

    def __init__(self, context: BrowserContext, server: Adcore, body: str, before: str = "") -> None:
        self.page = context.new_page()
        self.asked: list[str] = []
        self.errors: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        html = (
            f"<!DOCTYPE html><html><head><title>site</title><script>{before}</script>"
            f'<script async src="http://{server.address}/v1/tag.js"></script></head>'
            f'<body style="margin:0">{body}</body></html>'
        )
        self.page.route(SITE, lambda route: route.fulfill(body=html, content_type="text/html"))
        self.page.clock.install()

    def open(self) -> None:
        self.page.goto(SITE)

    def wait_for(self, state: str, count: int = 1) -> None:
        expect(self.page.locator(f'ins[data-adcore-state="{state}"]')).to_have_count(count)

    def decisions(self) -> list[dict[str, list[str]]]:
        return [parse_qs(urlsplit(url).query) for url in self.asked if DECISION.search(url)]

    def views(self) -> int:
        return sum(1 for url in self.asked if VIEW.search(url))


def slot(placement: str, more: str = "") -> str:
    return f'<ins data-adcore-placement="{placement}" {more}></ins>'


def test_all_slots_of_a_page_are_asked_for_at_once_and_stay_where_they_are(
    server: Adcore, context: BrowserContext
) -> None:
    shifts = (
        "window.shift = 0; new PerformanceObserver(function (list) { list.getEntries().forEach(function (entry) {"
        " window.shift += entry.value; }); }).observe({ type: 'layout-shift', buffered: true });"
    )
    style = 'style="display:inline-block;width:300px;height:{}px"'
    body = slot("top", style.format(100) + ' data-adcore-keywords="manga" data-adcore-kv-section="news"')
    body += f"<p>Words below the ad</p>{slot('low', style.format(250))}{slot('nowhere')}<p>End</p>"
    site = Site(context, server, body, shifts)
    site.open()
    site.wait_for("filled", 2)
    site.wait_for("empty")
    asked = {"placement": ["top,low,nowhere"], "keywords": ["manga"], "kv.section": ["news"]}
    assert site.decisions() == [asked]
    assert [link.inner_text() for link in site.page.get_by_role("link").all()] == ["Buy top", "Buy low"]
    assert site.page.evaluate("window.shift") == 0
    assert site.errors == []


def test_a_view_is_half_the_ad_in_sight_for_a_second_and_counts_once(server: Adcore, context: BrowserContext) -> None:
    # Below the window at first. Scrolled by a pixel, 50 of the ad's 100 are in it.
    body = '<div style="height:551px"></div>' + slot("top") + '<div style="height:2000px"></div>'
    site = Site(context, server, body)
    site.open()
    site.wait_for("filled")
    page = site.page
    page.clock.pause_at(page.evaluate("Date.now()") + 3_600_000)
    # Told after the tag's own observer, which was there before.
    page.evaluate(
        "new IntersectionObserver(function (entries) { window.sees = entries.pop().intersectionRatio >= 0.5; },"
        " { threshold: [0, 0.5] }).observe(document.querySelector('ins'))"
    )

    def look(scroll_y: int, sees: bool, milliseconds: int) -> None:
        page.evaluate("y => scrollTo(0, y)", scroll_y)
        page.wait_for_function("sees => window.sees === sees", arg=sees, polling=20)
        page.clock.run_for(milliseconds)

    look(0, False, 5000)
    look(1, True, 900)
    look(620, False, 5000)
    look(100, True, 900)
    assert site.views() == 0
    with page.expect_request(VIEW):
        look(100, True, 200)
    look(700, False, 2000)
    look(100, True, 5000)
    assert site.views() == 1
    assert site.errors == []


def test_a_lazy_slot_is_asked_for_when_it_is_nearly_in_sight(server: Adcore, context: BrowserContext) -> None:
    body = (
        slot("top") + '<div style="height:3000px"></div>' + slot("low", 'data-adcore-lazy data-adcore-size="300x250"')
    )
    site = Site(context, server, body)
    site.open()
    site.wait_for("filled")
    site.wait_for("waiting")
    assert [query["placement"] for query in site.decisions()] == [["top"]]
    site.page.evaluate("scrollTo(0, 2400)")
    site.wait_for("filled", 2)
    assert [query["placement"] for query in site.decisions()] == [["top"], ["low"]]


def test_slots_that_come_later_are_filled_when_the_page_says_so(server: Adcore, context: BrowserContext) -> None:
    site = Site(context, server, slot("top"))
    site.open()
    site.wait_for("filled")
    site.page.evaluate(f"document.body.insertAdjacentHTML('beforeend', '{slot('low')}'); adcore.fill(); adcore.fill()")
    site.wait_for("filled", 2)
    assert [query["placement"] for query in site.decisions()] == [["top"], ["low"]]


@pytest.mark.parametrize(("says", "credentials"), [("true", "omit"), ("false", "include")])
def test_global_privacy_control_sends_no_cookie(
    server: Adcore, context: BrowserContext, says: str, credentials: str
) -> None:
    before = (
        f"Object.defineProperty(navigator, 'globalPrivacyControl', {{ value: {says} }}); var real = fetch, sent = [];"
        "window.fetch = function (url, options) { sent.push(options.credentials); return real(url, options); };"
    )
    site = Site(context, server, slot("top"), before)
    site.open()
    site.wait_for("filled")
    assert site.page.evaluate("sent") == [credentials]


@pytest.mark.parametrize(("blocked", "state"), [("**/v1/tag.js", None), ("**/v1/decision*", "empty")])
def test_a_blocked_ad_breaks_nothing(server: Adcore, context: BrowserContext, blocked: str, state: str | None) -> None:
    context.route(blocked, lambda route: route.abort())
    site = Site(context, server, slot("top", 'data-adcore-size="300x100"') + "<p>Words</p>")
    site.open()
    if state is not None:
        site.wait_for(state)
    assert site.page.locator("ins").get_attribute("data-adcore-state") == state
    assert site.page.locator("p").inner_text() == "Words"
    assert site.errors == []


def test_a_tag_with_its_version_is_kept_for_ever_and_any_other_for_an_hour(server: Adcore) -> None:
    tag = server.ask("/v1/tag.js")
    etag = tag.headers["ETag"]
    assert tag.headers["Cache-Control"] == "public, max-age=3600"
    pinned = server.ask(f"/v1/tag.js?v={etag.strip(chr(34))}")
    assert (pinned.body, pinned.headers["Cache-Control"]) == (tag.body, "public, max-age=31536000, immutable")
    assert server.ask("/v1/tag.js?v=1").headers["Cache-Control"] == "public, max-age=3600"
    again = server.ask("/v1/tag.js", If_None_Match=f'"other", W/{etag}')
    assert (again.status, again.body, again.headers["ETag"]) == (304, b"", etag)
    assert server.ask("/v1/tag.js", If_None_Match='"other"').status == 200


def test_the_demo_shows_ads_and_the_numbers_beside_them_move(tmp_path: Path, context: BrowserContext) -> None:
    with serving_over("tcp", tmp_path / "state", "--demo") as adcore:
        page = context.new_page()
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.set_viewport_size({"width": 1200, "height": 900})
        page.goto(f"http://{adcore.address}/?about=manga")
        expect(page.locator('ins[data-adcore-state="filled"]')).to_have_count(3)
        # Those for narrow windows were not asked for.
        expect(page.locator("ins")).to_have_count(3)
        expect(page.get_by_role("link", name="Manga")).to_have_attribute("aria-current", "page")
        expect(page.locator("#impression")).to_have_text("3")
        expect(page.locator("#view")).to_have_text("3")
        row = page.locator("#campaigns tr", has_text="manga-week")
        expect(row.locator("td").first).to_have_text("1")
        with context.expect_page():
            page.locator("ins a").first.click()
        expect(page.locator("#click")).to_have_text("1")
        adcore.stop()
        expect(page.get_by_role("status")).to_have_text("The server does not answer.")
        assert errors == []


def test_only_a_demo_serves_a_site(server: Adcore) -> None:
    assert [server.ask(path).status for path in ("/", "/demo/numbers")] == [404, 404]
