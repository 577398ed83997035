import gzip
import json
from html.parser import HTMLParser
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from adcore.core.inventory import Creative, Placement
from adcore.render import compile_decision, empty_frame, json_for_script, landing_location, tag_js

PLACEMENT = Placement(id="side", width=300, height=250)
ID, CLICK, VIEW = "0123456789abcdef" * 2, "k~click", "k~view"
NASTY = st.one_of(
    st.sampled_from(
        [
            "</script><script>alert(1)</script>",
            '"><img src=x onerror=alert(1)>',
            "' onclick='alert(1)",
            "<!--",
            "]]>",
            "&quot;&lt;",
            "\u2028\u2029",
            "{click_url}",
            "javascript:alert(1)",
        ]
    ),
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=30),
)


def creative(**fields: Any) -> Creative:
    return Creative(
        **{
            "id": "c-1",
            "placement_size": (300, 250),
            "format": "image",
            "image_url": "https://img.example.net/1.png",
            "landing_url": "https://shop.example.net/?c={click_id}",
            **fields,
        }
    )


class Page(HTMLParser):
    """The elements of a document, the texts outside of style and script, and the attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if not {"style", "script", "title"} & set(self.open):
            self.texts.append(data)


def frame_of(shown: Creative) -> str:
    return compile_decision(PLACEMENT, "s", shown, "").frame(ID, CLICK, VIEW).decode()


def names(page: Page) -> list[str]:
    return [name for name, _ in page.elements]


def test_a_decision_is_the_json_of_the_design() -> None:
    compiled = compile_decision(PLACEMENT, "spring", creative(alt="Spring"), "https://ads.example.net")
    assert json.loads(compiled.json(ID, CLICK, VIEW)) == {
        "impression_id": ID,
        "placement": "side",
        "campaign": "spring",
        "creative": {
            "id": "c-1",
            "format": "image",
            "width": 300,
            "height": 250,
            "image_url": "https://img.example.net/1.png",
            "alt": "Spring",
        },
        "click_url": f"https://ads.example.net/v1/click?t={CLICK}",
        "view_url": f"https://ads.example.net/v1/view?t={VIEW}",
    }


@given(NASTY, NASTY)
def test_json_holds_any_text_and_ends_no_script(alt: str, text: str) -> None:
    for shown, field in (
        (creative(alt=alt), "alt"),
        (creative(format="text", data={"text": text, "title": alt}), "data"),
        (creative(format="html", html=text or "-"), "html"),
    ):
        raw = compile_decision(PLACEMENT, "spring", shown, "").json(ID, CLICK, VIEW)
        assert json.loads(raw)["creative"][field] == getattr(shown, field)
        assert not set(raw) & set(b"<>&")
        assert "\u2028" not in raw.decode()


@given(NASTY)
def test_an_image_frame_holds_one_link_and_one_image(alt: str) -> None:
    page = Page(compile_decision(PLACEMENT, "s", creative(alt=alt), "").frame(ID, CLICK, VIEW).decode())
    assert names(page) == ["html", "head", "meta", "title", "style", "body", "a", "img", "script"]
    attributes = dict(page.elements)
    assert attributes["img"]["alt"] == alt
    assert set(attributes["img"]) == {"src", "alt", "width", "height"}
    assert attributes["a"]["href"] == f"/v1/click?t={CLICK}"
    assert attributes["a"]["rel"] == "noopener sponsored"
    assert attributes["body"] == {"data-view": f"/v1/view?t={VIEW}"}


@given(NASTY, NASTY, NASTY, NASTY)
def test_words_stay_words(title: str, text: str, cta: str, image_url: str) -> None:
    data = {"title": title, "text": text, "cta": cta, "image_url": image_url, "price": 3, "more": {"text": "<b>"}}
    for form in ("text", "native"):
        page = Page(compile_decision(PLACEMENT, "s", creative(format=form, data=data), "").frame(ID, "c", "v").decode())
        assert set(names(page)) <= {"html", "head", "meta", "title", "style", "body", "a", "strong", "span", "script"}
        assert "".join(page.texts).split() == " ".join([title, text, cta]).split() or "".join(page.texts) == (
            title + text + cta
        )


def test_a_picture_of_native_data_is_shown_from_the_web_only() -> None:
    for url, shown in (("https://img.example.net/1.png", True), ("javascript:alert(1)", False), ("//x/y", False)):
        data = {"text": "t", "image_url": url}
        page = Page(
            compile_decision(PLACEMENT, "s", creative(format="native", data=data), "").frame(ID, "c", "v").decode()
        )
        assert ("img" in names(page)) is shown


def test_an_html_creative_goes_out_as_it_is_in_a_sandbox() -> None:
    compiled = compile_decision(
        PLACEMENT, "s", creative(format="html", html='<a href="{click_url}">x</a><script>1</script>'), ""
    )
    html = compiled.frame(ID, "a&b", VIEW).decode()
    assert f'<a href="/v1/click?t=a&b">x</a><script>1</script>' in html  # noqa: F541
    policy = dict(compiled.frame_headers)["Content-Security-Policy"]
    assert policy.startswith("sandbox allow-scripts ")
    assert "allow-same-origin" not in policy


def test_our_own_frames_run_our_own_script_only() -> None:
    for form, fields in (("image", {}), ("text", {"data": {"text": "t"}}), ("native", {"data": {}})):
        compiled = compile_decision(PLACEMENT, "s", creative(format=form, **fields), "")
        policy = dict(compiled.frame_headers)["Content-Security-Policy"]
        directives = dict(part.split(" ", 1) for part in policy.split("; "))
        assert directives["default-src"] == "'none'"
        assert directives["script-src"].startswith("'sha256-")
        assert "unsafe" not in policy
    body, headers = empty_frame()
    assert names(Page(body.decode())) == ["html", "head", "meta", "title", "style", "body"]
    assert dict(headers)["Content-Security-Policy"] == policy


def test_the_impression_is_the_click_id_of_the_landing_url() -> None:
    assert landing_location(creative(), ID) == f"https://shop.example.net/?c={ID}"
    assert json_for_script("</script>") == b'"\\u003c/script\\u003e"'


def test_the_tag_is_small() -> None:
    assert len(gzip.compress(tag_js())) <= 3 * 1024
