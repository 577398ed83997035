"""Every field lands in its place as text: no field's text can open a tag, an attribute or a script."""

import gzip
import json
import re
from base64 import b64encode
from hashlib import sha256
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adcore.core.inventory import Creative, Format, Placement, check_inventory
from adcore.render import CompiledDecision, empty_frame, json_for_script, landing_location, tag_js

ID = "0123456789abcdef" * 2
TOKEN = "k1~a~token"
TOP = Placement(id="top", width=728, height=90)
PUBLIC = "https://ads.example.net/x"

# What has broken out of one context or another before.
BREAKERS = (
    *(
        "<",
        ">",
        '"',
        "'",
        "&",
        "&lt;",
        "\\",
        "]]>",
        "<!--",
        "-->",
        "<script>",
        "</script>",
        "</a>",
        "</body>",
    ),
    *(
        "<img src=x onerror=alert(1)>",
        '" onload="alert(1)',
        "javascript:alert(1)",
        "{click_url}",
        "{here}",
        "%s",
    ),
    *(" ", "\x01", "\x02", "\0", "\r\n", "\u2028", "\u2029", "é", "😀"),
)
hostile = st.text() | st.lists(st.sampled_from(BREAKERS)).map("".join)


def creative(format: Format, **fields: Any) -> Creative:
    given = {
        "image_url": "https://img.example.net/1.png",
        "landing_url": "https://shop.example.net/",
        **fields,
    }
    return Creative(id="spring-1", placement_size=(728, 90), format=format, **given)


def shown(creative: Creative, public_url: str = "") -> Any:
    return json.loads(CompiledDecision(TOP, "spring", creative, public_url).json(ID.encode(), TOKEN.encode()))


class Document(HTMLParser):
    """The tags with their attributes, the text and the scripts of a document."""

    def __init__(self, body: bytes) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: dict[str, dict[str, str | None]] = {}
        self.texts: dict[str, str] = {}
        self._open: list[str] = []
        self.feed(body.decode())
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert len(dict(attrs)) == len(attrs)
        self.attributes[tag] = dict(attrs)
        if tag not in ("meta", "img", "base"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        self.tags.append("/" + tag)
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts[self._open[-1]] = self.texts.get(self._open[-1], "") + data

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")


def framed(creative: Creative, public_url: str = "") -> Document:
    return Document(CompiledDecision(TOP, "spring", creative, public_url).frame(ID.encode(), TOKEN.encode()))


def policy(creative: Creative, public_url: str = "") -> dict[str, list[str]]:
    headers = dict(CompiledDecision(TOP, "spring", creative, public_url).frame_headers)
    return {name: values for name, *values in (part.split() for part in headers["Content-Security-Policy"].split("; "))}


def hash_source(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


# --- JSON


@pytest.mark.parametrize(
    ("creative", "fields"),
    [
        (creative("image", alt="A"), {"image_url": "https://img.example.net/1.png", "alt": "A"}),
        (creative("html", html="<b>hi</b>", alt="A"), {"html": "<b>hi</b>"}),
        (creative("text", data={"text": "t", "title": "T"}), {"data": {"text": "t", "title": "T"}}),
        (creative("native", data={"a": [1, None, {"b": 0.5}]}), {"data": {"a": [1, None, {"b": 0.5}]}}),
    ],
)
def test_a_decision_has_the_fields_of_its_format(creative: Creative, fields: dict[str, Any]) -> None:
    assert shown(creative) == {
        "impression_id": ID,
        "placement": "top",
        "campaign": "spring",
        "creative": {"id": "spring-1", "format": creative.format, "width": 728, "height": 90, **fields},
        "click_url": f"/v1/click?t={TOKEN}",
        "view_url": f"/v1/view?t={TOKEN}",
    }


def test_the_public_url_stands_before_the_paths() -> None:
    decision = shown(creative("text", data={"text": "t"}), PUBLIC)
    assert decision["click_url"] == f"https://ads.example.net/x/v1/click?t={TOKEN}"
    assert decision["view_url"] == f"https://ads.example.net/x/v1/view?t={TOKEN}"


@given(hostile, hostile, hostile)
def test_any_text_makes_json_that_may_stand_in_a_script(alt: str, html: str, text: str) -> None:
    for one, fields in (
        (creative("image", image_url=html, alt=alt), {"image_url": html, "alt": alt}),
        (creative("html", html=html), {"html": html}),
        (creative("native", data={text: [text]}), {"data": {text: [text]}}),
    ):
        body = CompiledDecision(TOP, "spring", one, "").json(ID.encode(), TOKEN.encode())
        assert re.search(r"[<>&\u2028\u2029]", body.decode()) is None
        assert fields.items() <= json.loads(body)["creative"].items()


def test_signs_that_end_a_script_are_written_as_escapes() -> None:
    assert json_for_script("</script>&\u2028\u2029") == rb'"\u003c/script\u003e\u0026\u2028\u2029"'


# --- frames


def test_an_image_is_a_link_with_its_size_and_words() -> None:
    document = framed(creative("image", alt="A spring sale"))
    assert document.attributes["a"] == {
        "href": f"/v1/click?t={TOKEN}",
        "target": "_blank",
        "rel": "noopener sponsored",
    }
    assert document.attributes["img"] == {
        "src": "https://img.example.net/1.png",
        "alt": "A spring sale",
        "width": "728",
        "height": "90",
    }
    assert document.attributes["body"] == {"data-impression": ID, "data-view": f"/v1/view?t={TOKEN}"}


def test_a_link_has_a_name_for_those_who_do_not_see_it() -> None:
    assert framed(creative("image", alt=" ")).attributes["img"]["alt"] == "Advertisement"
    drawn_by_the_page = framed(creative("native", data={"price": 5, "text": ["no", "text"]}))
    assert drawn_by_the_page.attributes["a"]["aria-label"] == "Advertisement"


@given(hostile, hostile)
@settings(max_examples=200, deadline=None)
def test_no_field_of_an_image_leaves_its_attribute(url: str, alt: str) -> None:
    plain = framed(creative("image", alt="A"))
    document = framed(creative("image", image_url=url, alt=alt))
    assert document.tags == plain.tags
    assert document.texts == plain.texts
    image, plain_image = document.attributes.pop("img"), plain.attributes.pop("img")
    assert document.attributes == plain.attributes
    assert image.keys() == plain_image.keys()
    assert (image["src"], image["alt"]) == (url, alt.strip() or "Advertisement")


@given(hostile, hostile, hostile, hostile)
@settings(max_examples=200, deadline=None)
def test_no_field_of_text_or_native_data_leaves_its_element(title: str, text: str, cta: str, url: str) -> None:
    plain = framed(creative("native", data={"title": "T", "text": "t", "cta": "c", "image_url": "https://x/"}))
    data = {
        "title": f"T{title}",
        "text": f"t{text}",
        "cta": f"c{cta}",
        "image_url": f"https://{url}",
        "other": {url: text},
    }
    document = framed(creative("native", data=data))
    assert document.tags == plain.tags
    assert document.texts["strong"] == f"T{title}c{cta}"
    assert document.texts["span"] == f"t{text}"
    assert document.attributes.pop("img") == {"src": f"https://{url}", "alt": ""}
    plain.attributes.pop("img")
    assert document.attributes == plain.attributes
    assert document.texts["script"] == plain.texts["script"]


@pytest.mark.parametrize("url", ["javascript:alert(1)", "data:text/html,x", "//x", "", 5, None, ["https://x/"]])
def test_a_picture_of_native_data_is_http_or_nothing(url: object) -> None:
    assert "img" not in framed(creative("native", data={"text": "t", "image_url": url})).tags


@pytest.mark.parametrize("format", ["image", "text", "native"])
def test_the_policy_of_our_frames_allows_our_script_and_style_alone(format: Format) -> None:
    one = creative(format, data={"text": "t"})
    document, allowed = framed(one, PUBLIC), policy(one, PUBLIC)
    assert allowed == {
        "default-src": ["'none'"],
        "img-src": ["http:", "https:", "data:"],
        "style-src": [hash_source(document.texts["style"])],
        "script-src": [hash_source(document.texts["script"])],
        "connect-src": ["'self'", "https://ads.example.net"],
        "base-uri": ["'none'"],
        "form-action": ["'none'"],
        "frame-ancestors": ["*"],
    }
    assert document.attributes["body"]["data-view"] == f"{PUBLIC}/v1/view?t={TOKEN}"
    assert document.attributes["a"]["href"] == f"{PUBLIC}/v1/click?t={TOKEN}"


SANDBOX = ["allow-scripts", "allow-popups", "allow-popups-to-escape-sandbox"]


def test_html_is_sent_as_it_is_into_a_sandboxed_frame() -> None:
    html = '<a href="{click_url}">a</a><script>open("{click_url}")</script>\x01{click}&quot;&amp;<!-- \x02 left open'
    one = creative("html", html=html, landing_url=None)
    document = framed(one, PUBLIC)
    frame = document.attributes["iframe"]
    click_url = f"{PUBLIC}/v1/click?t={TOKEN}"
    source = frame["srcdoc"] or ""
    assert source.endswith("</style>" + html.replace("{click_url}", click_url))
    assert source.startswith('<!DOCTYPE html><base target="_blank">')
    assert (frame["sandbox"] or "").split() == SANDBOX
    assert document.attributes["body"] == {"data-impression": ID, "data-view": f"{PUBLIC}/v1/view?t={TOKEN}"}
    assert "IntersectionObserver" in document.texts["script"]
    allowed = policy(one, PUBLIC)
    assert allowed["sandbox"] == SANDBOX
    assert allowed["script-src"] == ["'unsafe-inline'", "https:"]
    assert (allowed["base-uri"], allowed["form-action"]) == (["'none'"], ["'none'"])


@given(hostile, hostile)
@settings(max_examples=200, deadline=None)
def test_no_markup_leaves_the_frame_of_an_html_creative(before: str, after: str) -> None:
    plain, document = framed(creative("html", html="x")), framed(creative("html", html=f"{before}{{click_url}}{after}"))
    frame, plain_frame = document.attributes.pop("iframe"), plain.attributes.pop("iframe")
    assert (document.tags, document.texts, document.attributes) == (plain.tags, plain.texts, plain.attributes)
    assert frame.keys() == plain_frame.keys() == {"sandbox", "title", "srcdoc"}
    assert (frame["sandbox"] or "").split() == SANDBOX


def test_the_tag_puts_html_into_the_same_sandbox() -> None:
    assert f'"sandbox", "{" ".join(SANDBOX)}"'.encode() in tag_js()


def test_without_a_public_url_links_are_relative() -> None:
    assert policy(creative("html", html="x"))["connect-src"] == ["'self'", "https:"]
    assert policy(creative("image"))["connect-src"] == ["'self'"]


def test_a_frame_without_an_ad_is_an_empty_document() -> None:
    body, headers = empty_frame()
    document = Document(body)
    assert "script" not in document.tags
    assert not {"body", "a", "img"} & set(document.tags)
    assert hash_source(document.texts["style"]) in dict(headers)["Content-Security-Policy"]


# --- landing


def test_the_macro_becomes_the_impression_id_wherever_it_stands() -> None:
    one = creative("image", landing_url="https://shop.example.net/{click_id}?c={click_id}#{click_id}")
    assert landing_location(one, ID) == f"https://shop.example.net/{ID}?c={ID}#{ID}"


@given(
    st.sampled_from(["https://shop.example.net/", "http://a/?", "https://", "HTTPS://x#", ""]),
    hostile | st.text(alphabet="/?#@:[]{}click_id\\ \t\r\n\x7f\x85%é"),
)
@settings(max_examples=400, deadline=None)
def test_a_landing_url_that_the_inventory_takes_is_fit_for_a_header(start: str, rest: str) -> None:
    row = {
        "id": "c",
        "placement_size": [728, 90],
        "format": "text",
        "data": {"text": "t"},
        "landing_url": start + rest,
    }
    campaign = {"id": "c", "name": "c", "priority": "house", "creatives": [row]}
    inventory, problems = check_inventory({"placements": [], "campaigns": [campaign]})
    if not problems:
        location = landing_location(inventory.campaigns[0].creatives[0], ID)
        assert re.fullmatch(r"(?i:https?)://[!-~]+", location)


# --- the tag


def test_the_tag_is_small_and_never_writes_a_field_as_markup() -> None:
    tag = tag_js()
    assert len(gzip.compress(tag)) <= 3 * 1024
    assert not re.search(rb"innerHTML|outerHTML|insertAdjacent|document\.write|eval|Function\(", tag)
    assert re.findall(rb"[\w.]*srcdoc[^;]*", tag)[0].startswith(b"frame.srcdoc = ")
