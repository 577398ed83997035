"""/v1/frame in a real Chromium, on a page that gives it no sandbox attribute and as a page of its own: an html creative
stays in its sandbox wherever it leads its frame, counts nothing by itself but a view, and its link and view work."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from tests.chromium import USER_AGENT, chromium
from tests.inventories import campaign, document
from tests.process import Adcore, adctl, serving_over

SITE = "http://site.test/"
EVIL = "https://evil.test/"
SHOP = "https://shop.example.net/"
VIEW = re.compile(r"/v1/view\?")
# Each says what came of it. (Windows are not among them: this Chromium blocks none, and others let a
# visitor's click open one.)
ATTEMPTS = """
var can = [], say = function (what) { top.postMessage(what + " " + self.origin + " can:" + can.join(), "*"); };
function attempt(name, f) { try { if (f() !== undefined) can.push(name); } catch (e) {} }
function all() {
  attempt("parent", function () { return parent.document.body; });
  attempt("top", function () { return top.document.body; });
  attempt("cookie", function () { return document.cookie; });
  attempt("storage", function () { return localStorage; });
  attempt("database", function () { return indexedDB.open("x") && undefined; });
  attempt("frame", function () { return frameElement || undefined; });
  attempt("around", function () { parent.location.href = "https://evil.test/around"; });
  attempt("away", function () { top.location.href = "https://evil.test/away"; });
  attempt("window", function () { return open("https://evil.test/_top", "_top") || undefined; });
}
"""
CREATIVE = f"""<a id="go" href="{{click_url}}">buy</a> <button id="act">act</button>
<script>{ATTEMPTS}
var ads = "{{click_url}}".split("/v1/")[0] || document.baseURI.split("/v1/")[0];
function count() {{
  var urls = ["/v1/decision?placement=side", "/v1/frame?placement=side"];
  return Promise.allSettled(urls.concat("{{click_url}}".replace(/^.*(?=[/]v1)/, "")).flatMap(function (path) {{
    var url = ads + path;
    new Image().src = url + "&image";
    document.head.appendChild(document.createElement("script")).src = url + "&script";
    navigator.sendBeacon(url + "&beacon", "{{}}");
    var socket = new WebSocket(url.replace("http", "ws") + "&socket");
    return [new Promise(function (done) {{ socket.onclose = done; }}),
            fetch(url, {{ mode: "no-cors" }}), fetch(url), fetch(url, {{ credentials: "include" }}),
            fetch(url, {{ mode: "no-cors", method: "POST", body: '{{"placement":"side"}}' }})];
  }}));
}}
all(); say("html");
document.getElementById("act").onclick = function () {{
  can = []; attempt("away", function () {{ top.location.href = "https://evil.test/away"; }});
  count().then(function () {{ say("acted"); location.href = "{EVIL}inner"; }});
}};
</script>"""
INNER = f"""<!DOCTYPE html><button id="act">act</button><script>{ATTEMPTS} all(); say("inner");
document.getElementById("act").onclick = function () {{ can = []; all(); say("inner acted"); }};</script>"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    with browser.new_context(viewport={"width": 800, "height": 600}, user_agent=USER_AGENT) as context:
        context.route(f"{EVIL}**", lambda route: route.fulfill(body=INNER, content_type="text/html"))
        context.route(f"{SHOP}**", lambda route: route.fulfill(body="<title>shop</title>", content_type="text/html"))
        yield context


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Adcore]:
    source = f"sqlite:///{tmp_path}/ads.db"
    creative = {"id": "a-1", "placement_size": [300, 250], "format": "html", "html": CREATIVE, "landing_url": SHOP}
    ads = {
        **document(campaign("a", creatives=[creative])),
        "placements": [{"id": "side", "width": 300, "height": 250}],
    }
    applied = adctl("apply", "--source", source, "-", stdin=json.dumps(ads))
    assert applied.returncode == 0, applied.stderr
    with serving_over("tcp", tmp_path / "state", "--source", source) as adcore:
        yield adcore


HEARS = "window.heard = []; addEventListener('message', function (event) { heard.push(event.data); });"


def open_frame(context: BrowserContext, server: Adcore, how: str) -> Page:
    """A page around the frame, or the frame by itself."""
    page = context.new_page()
    page.add_init_script(f"if (self === top) {{ {HEARS} }}")
    address = f"http://{server.address}/v1/frame?placement=side"
    if how == "alone":
        page.goto(address)
        return page
    sandbox = 'sandbox="allow-scripts allow-popups allow-popups-to-escape-sandbox"' if how == "sandboxed" else ""
    html = f'<!DOCTYPE html><iframe src="{address}" width="300" height="250" {sandbox}></iframe>'
    page.route(SITE, lambda route: route.fulfill(body=html, content_type="text/html"))
    page.goto(SITE)
    return page


def heard(page: Page, what: str) -> str:
    page.wait_for_function("what => heard.some(one => one.startsWith(what + ' '))", arg=what, polling=20)
    return str(page.evaluate("what => heard.find(one => one.startsWith(what + ' '))", what))


HOWS = ["embedded", "sandboxed", "alone"]


@pytest.mark.parametrize("how", HOWS)
def test_an_html_creative_gets_out_of_its_frame_by_no_way(server: Adcore, context: BrowserContext, how: str) -> None:
    page = open_frame(context, server, how)
    before = page.url
    assert heard(page, "html") == "html null can:"
    outer = page.frame_locator("iframe") if how == "alone" else page.frame_locator("iframe").frame_locator("iframe")
    outer.locator("#act").click()
    assert heard(page, "acted") == "acted null can:"
    # Led to a page of its own, it is as confined as before; with the visitor's click, too.
    assert heard(page, "inner") == "inner null can:"
    outer.locator("#act").click()
    assert heard(page, "inner acted") == "inner acted null can:"
    assert page.url == before
    assert [frame.url for frame in page.frames if not frame.child_frames] == [f"{EVIL}inner"]
    assert not context.cookies(EVIL)
    assert server.stop() == 0
    counted = Counter(record["type"] for record in server.records())
    assert counted["impression"] == 1
    assert counted["click"] == 0
    assert counted["view"] <= 1
    assert set(counted) <= {"impression", "view"}


@pytest.mark.parametrize("how", HOWS)
def test_its_link_and_its_view_count(server: Adcore, context: BrowserContext, how: str) -> None:
    with context.expect_event("request", lambda request: VIEW.search(request.url) is not None):
        page = open_frame(context, server, how)
    outer = page.frame_locator("iframe") if how == "alone" else page.frame_locator("iframe").frame_locator("iframe")
    with context.expect_page() as opened:
        outer.locator("#go").click()
    expect(opened.value).to_have_title("shop")
    # It is out of the sandbox: a shop needs its own cookies.
    assert opened.value.evaluate("origin") == SHOP.rstrip("/")
    assert server.stop() == 0
    counted = Counter(record["type"] for record in server.records())
    assert counted == {"impression": 1, "view": 1, "click": 1}
