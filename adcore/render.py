"""A creative in its placement, compiled once: then an answer is a join around an id and two tokens.

Every field is escaped for the place it lands in: JSON that may also stand inside a <script>, HTML text, an attribute,
a Location header. Only the `html` of an html creative goes out as it is, in a document whose policy sandboxes it.

Pure: knows nothing of requests or the table.
"""

from base64 import b64encode
from functools import lru_cache
from hashlib import sha256
from html import escape
from importlib import resources
from typing import Any

import msgspec

from adcore.core.inventory import Creative, Placement

Headers = tuple[tuple[str, str], ...]

# Reports the view by the MRC's rule for display ads: half of the pixels for one second, once. It finds its URL in an
# attribute, so that the script itself is always the same and the policy can allow it by its hash.
_BEACON = (
    "(function(){var u=document.body.getAttribute('data-view'),t,o;if(!u||!window.IntersectionObserver)return;"
    "o=new IntersectionObserver(function(e){clearTimeout(t);if(e[e.length-1].intersectionRatio>=.5)"
    "t=setTimeout(function(){o.disconnect();new Image().src=u},1000)},{threshold:[0,.5]});"
    "o.observe(document.body)})()"
)
_BEACON_HASH = b64encode(sha256(_BEACON.encode()).digest()).decode()
_STYLE = (
    ":root{color-scheme:light dark}html,body{margin:0;height:100%;overflow:hidden}"
    "body{font:14px/1.35 system-ui,sans-serif}"
    "a{display:block;box-sizing:border-box;height:100%;color:inherit;text-decoration:none}"
    "a:focus-visible{outline:2px solid;outline-offset:-2px}img{display:block;max-width:100%;max-height:100%}"
    ".words{padding:8px 12px;border:1px solid #8886}strong,span{display:block}"
)
_STYLE_THEIRS = "html,body{margin:0}"
_STYLE_HASH = b64encode(sha256(_STYLE.encode()).digest()).decode()

# Ads are framed by the pages of any site that the operator lets ask for them.
_OURS = (
    f"default-src 'none'; img-src http: https: data:; style-src 'sha256-{_STYLE_HASH}'; "
    f"script-src 'sha256-{_BEACON_HASH}'; base-uri 'none'; form-action 'none'; frame-ancestors *"
)
# The markup of an html creative is the advertiser's: an origin of its own, without the page's or our cookies.
_THEIRS = (
    "sandbox allow-scripts allow-popups allow-popups-to-escape-sandbox; default-src 'none'; "
    "img-src http: https: data:; media-src http: https: data:; font-src https: data:; "
    "style-src 'unsafe-inline' https:; script-src 'unsafe-inline' https:; connect-src https:; "
    "base-uri 'none'; form-action https:; frame-ancestors *"
)
_REFERRER = ("Referrer-Policy", "strict-origin-when-cross-origin")

# Where the tokens go while compiling. The inventory refuses control characters, so no field holds these.
_CLICK, _VIEW = "\x01", "\x02"


class CompiledDecision:
    """The answers that show one creative in one placement, as pieces around what differs from time to time."""

    __slots__ = ("_frame", "_json", "frame_headers")

    def __init__(self, json_pieces: tuple[bytes, bytes, bytes, bytes], frame: str, frame_headers: Headers) -> None:
        self._json = json_pieces
        self._frame = frame
        self.frame_headers = frame_headers

    def json(self, impression_id: str, click_token: str, view_token: str) -> bytes:
        """The decision of the design, as compact JSON."""
        start, to_click, to_view, end = self._json
        return b"".join(
            (start, impression_id.encode(), to_click, click_token.encode(), to_view, view_token.encode(), end)
        )

    def frame(self, impression_id: str, click_token: str, view_token: str) -> bytes:
        """An HTML document for an iframe."""
        return self._frame.replace(_CLICK, click_token).replace(_VIEW, view_token).encode()


def compile_decision(placement: Placement, campaign_id: str, creative: Creative, public_url: str) -> CompiledDecision:
    """Compile for `public_url` (no slash at its end; "" makes the links relative)."""
    click_url = f"{public_url}/v1/click?t={_CLICK}"
    view_url = f"{public_url}/v1/view?t={_VIEW}"
    shown = {
        "id": creative.id,
        "format": creative.format,
        "width": placement.width,
        "height": placement.height,
        **_content(creative),
    }
    static = {"placement": placement.id, "campaign": campaign_id, "creative": shown}
    urls = json_for_script({"public": public_url})[len('{"public":"') : -len('"}')]
    return CompiledDecision(
        (
            b'{"impression_id":"',
            b'",' + json_for_script(static)[1:-1] + b',"click_url":"' + urls + b"/v1/click?t=",
            b'","view_url":"' + urls + b"/v1/view?t=",
            b'"}',
        ),
        _frame(placement, creative, click_url, view_url),
        (("Content-Security-Policy", _THEIRS if creative.format == "html" else _OURS), _REFERRER),
    )


def empty_frame() -> tuple[bytes, Headers]:
    """The document of a frame that got no ad, and its headers."""
    return _document("", "", _STYLE, "").encode(), (("Content-Security-Policy", _OURS), _REFERRER)


def landing_location(creative: Creative, impression_id: str) -> str:
    """The creative's landing URL for this impression; the inventory's rules keep it fit for a Location header."""
    assert creative.landing_url is not None
    return creative.landing_url.replace("{click_id}", impression_id)


@lru_cache(maxsize=1)
def tag_js() -> bytes:
    """The browser tag."""
    return resources.files("adcore").joinpath("tag.js").read_bytes()


def json_for_script(value: object) -> bytes:
    """Compact JSON that stays JSON inside a <script> element and inside old JavaScript."""
    return (
        msgspec.json.encode(value)
        .replace(b"<", b"\\u003c")
        .replace(b">", b"\\u003e")
        .replace(b"&", b"\\u0026")
        .replace(b"\xe2\x80\xa8", b"\\u2028")
        .replace(b"\xe2\x80\xa9", b"\\u2029")
    )


def _content(creative: Creative) -> dict[str, Any]:
    if creative.format == "image":
        return {"image_url": creative.image_url, "alt": creative.alt}
    if creative.format == "html":
        return {"html": creative.html}
    return {"data": creative.data}


def _frame(placement: Placement, creative: Creative, click_url: str, view_url: str) -> str:
    if creative.format == "html":
        assert creative.html is not None
        markup = creative.html.replace("{click_url}", escape(click_url))
        return _document(f' data-view="{escape(view_url)}"', markup, _STYLE_THEIRS, _BEACON)
    if creative.format == "image":
        inner = (
            f'<img src="{escape(creative.image_url or "")}" alt="{escape(creative.alt)}" '
            f'width="{placement.width}" height="{placement.height}">'
        )
        classes = ""
    else:
        inner = _words(creative.data or {})
        classes = ' class="words"'
    link = f'<a{classes} href="{escape(click_url)}" target="_blank" rel="noopener sponsored">{inner}</a>'
    return _document(f' data-view="{escape(view_url)}"', link, _STYLE, _BEACON)


def _words(data: dict[str, Any]) -> str:
    """The title, picture, text and call to action of text and native data; what else it holds is for other pages."""
    parts = []
    for name, element in (("title", "strong"), ("image_url", "img"), ("text", "span"), ("cta", "strong")):
        value = data.get(name)
        if not isinstance(value, str) or not value:
            continue
        if element != "img":
            parts.append(f"<{element}>{escape(value)}</{element}>")
        elif value.lower().startswith(("http://", "https://")):
            parts.append(f'<img src="{escape(value)}" alt="">')
    return "".join(parts)


def _document(attributes: str, body: str, style: str, script: str) -> str:
    return (
        '<!DOCTYPE html><html lang=""><head><meta charset="utf-8"><title>Ad</title>'
        + (f"<style>{style}</style>" if style else "")
        + f"</head><body{attributes}>{body}"
        + (f"<script>{script}</script>" if script else "")
        + "</body></html>"
    )
