"""Creatives full of markup in a real headless Chromium, by the tag and in frames: no field runs but that of html.

A script that runs anywhere tells the page around it with postMessage, which no sandbox and no other origin keeps from
it. The page writes what it hears into its own document, and Chromium prints that.
"""

import html
import json
import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from adcore.core.inventory import check_inventory
from tests.inventories import campaign
from tests.process import adctl, serving_over
from tests.services import program

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    # Nothing leaves this machine, whatever an ad asks for.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    # As long as anything is loading no time passes, and then a view takes a second.
    *("--virtual-time-budget=10000", "--dump-dom"),
)
# {js} says that it ran, and needs no quotes that markup knows.
MARKUP = (
    "<script>{js}</script>",
    "</script><script>{js}</script>",
    "<img src=x onerror={js}>",
    '"><img src=x onerror={js}>',
    "'><svg/onload={js}>",
    '" onload={js} onerror={js} x="',
    "' onerror={js} x='",
    "</a></span></strong></title></style><svg onload={js}>",
    "<iframe srcdoc='<script>{js}</script>'></iframe>",
    "<!--><script>{js}</script>--!>",
    "]]><script>{js}</script>",
    "<math><mtext></form><form><mglyph><style></math><img src onerror={js}>",
    "&lt;script&gt;{js}&lt;/script&gt;",
    "\\u003cscript\\u003e{js}\\u003c/script\\u003e\u2028{js}",
    "{{{{constructor.constructor('{js}')()}}}}",
)
URLS = (
    "javascript:{js}",
    "JaVaScRiPt:{js}",
    "data:text/html,<script>{js}</script>",
    "data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg' onload='{js}'/>",
    'https://i.example.net/"onerror="{js}',
    "https://i.example.net/'onerror='{js}'",
    "https://i.example.net/`onerror={js}",
    "https://i.example.net/?<script>{js}</script>",
    "//i.example.net/'onerror='{js}'",
)
# What an html creative may not do to the page: each says what came of it.
HTML = """<script>
var can = [];
function attempt(name, f) {{ try {{ if (f() !== undefined) can.push(name); }} catch (e) {{}} }}
attempt("parent", function () {{ return parent.document.body; }});
attempt("top", function () {{ top.location.href = "http://127.0.0.1:9/evil"; }});
attempt("cookie", function () {{ return document.cookie; }});
attempt("storage", function () {{ return localStorage; }});
attempt("frame", function () {{ return frameElement || undefined; }});
top.postMessage("html " + self.origin + " can:" + can.join(), "*");
</script>"""


def js(where: str) -> str:
    return f"parent.postMessage(`{where}`,`*`)"


def creatives() -> list[dict[str, Any]]:
    """One for each piece of markup and format, the markup in each of its fields."""
    found: list[dict[str, Any]] = []
    for number, markup in enumerate(MARKUP):

        def field(name: str, number: int = number, markup: str = markup) -> str:
            return markup.format(js=js(f"{name}-{number}"))

        found += [
            {"format": "image", "image_url": "https://i.example.net/1.png", "alt": field("alt")},
            {"format": "text", "data": {"title": field("title"), "text": field("text")}},
            {
                "format": "native",
                "data": {
                    **{name: field(f"native-{name}") for name in ("title", "text", "cta", "image_url", "body", "html")},
                    "deep": [{field("native-key"): field("native-deep")}],
                },
            },
        ]
    for number, url in enumerate(URLS):
        address = url.format(js=js(f"url-{number}"))
        found += [
            {"format": "image", "image_url": address, "alt": "x"},
            {"format": "text", "data": {"text": "x"}, "landing_url": address},
            {"format": "native", "data": {"title": "x", "image_url": address, "url": address, "link": address}},
        ]
    found.append({"format": "html", "html": HTML.format()})
    return found


def inventory() -> tuple[dict[str, Any], int]:
    """A placement for each creative that the inventory takes; and how many it refuses."""
    placements: list[dict[str, Any]] = []
    campaigns = []
    refused = 0
    for number, fields in enumerate(creatives()):
        placement = {"id": f"p{number}", "width": 300, "height": 100}
        row = campaign(
            f"c{number}",
            name=MARKUP[0].format(js=js("name")),
            advertiser=MARKUP[2].format(js=js("advertiser")),
            targeting={"placements": [f"p{number}"]},
            creatives=[
                {
                    "id": f"c{number}-1",
                    "placement_size": [300, 100],
                    "landing_url": "https://shop.example.net/?c={click_id}",
                    **fields,
                }
            ],
        )
        _, problems = check_inventory({"placements": [placement], "campaigns": [row]})
        if problems:
            refused += 1
        else:
            placements.append(placement)
            campaigns.append(row)
    return {"placements": placements, "campaigns": campaigns}, refused


PAGE = """<!DOCTYPE html><html><head><meta charset="utf-8"><title>page</title></head><body>
<ol id="heard"></ol>
<script>
addEventListener("message", function (event) {{
  document.getElementById("heard").appendChild(document.createElement("li")).textContent = String(event.data);
}});
</script>
{slots}
<script async src="http://{ads}/v1/tag.js"></script>
{frames}
</body></html>"""


@contextmanager
def site(page: str) -> Iterator[ThreadingHTTPServer]:
    """A server of one page, which is made when it is asked for."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = site_server.page.encode() if self.path == "/" else b""  # type: ignore[attr-defined]
            self.send_response(200 if body else 404)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    site_server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    site_server.daemon_threads = True
    site_server.page = page  # type: ignore[attr-defined]
    threading.Thread(target=site_server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield site_server
    finally:
        site_server.shutdown()
        site_server.server_close()


def test_markup_runs_in_html_creatives_alone_and_these_are_on_their_own(tmp_path: Path) -> None:
    document, refused = inventory()
    ids = [placement["id"] for placement in document["placements"]]
    assert refused >= len(URLS), "URLs that are no http are refused at the door"
    assert len(ids) > 3 * len(MARKUP)
    source = f"sqlite:///{tmp_path}/ads.db"
    applied = adctl("apply", "--source", source, "-", stdin=json.dumps(document))
    assert applied.returncode == 0, applied.stderr
    with site("") as pages:
        origin = f"http://127.0.0.1:{pages.server_address[1]}"
        with serving_over("tcp", tmp_path / "state", "--source", source, "--cors-origins", origin) as server:
            ads = server.address
            pages.page = PAGE.format(  # type: ignore[attr-defined]
                ads=ads,
                slots="\n".join(f'<ins data-adcore-placement="{one}"></ins>' for one in ids),
                frames="\n".join(f'<iframe src="http://{ads}/v1/frame?placement={one}"></iframe>' for one in ids),
            )
            shown = subprocess.run(
                [program("chromium", "chromium"), *FLAGS, f"--user-data-dir={tmp_path}/profile", origin],
                capture_output=True,
                text=True,
                timeout=120,
                check=True,
            ).stdout
            assert server.stop() == 0
            asked = [record for record in server.records() if record["type"] == "impression"]
    assert shown.count('data-adcore-state="filled"') == len(ids), shown[-3000:]
    assert len(asked) == 2 * len(ids), "each was shown by the tag and in a frame"
    heard = [html.unescape(text) for text in re.findall(r"<li>(.*?)</li>", shown, re.DOTALL)]
    # The tag's frame and ours, and both have an origin of their own and nothing of the page's.
    assert sorted(heard) == ["html null can:"] * 2
    assert html.escape(MARKUP[0].format(js=js("text-0")), quote=False) in shown, "the markup is shown as text"
