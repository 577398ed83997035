"""A creative in its placement, compiled once: then an answer is a join around an id and a token.

Every field is escaped for the place it lands in: JSON that may also stand inside a <script>, HTML text, an
attribute. Only the `html` of an html creative runs as it is: in a sandboxed frame of its own, within a document of
ours. That frame keeps its sandbox wherever the creative leads it; a sandbox of the document alone would end there.

Pure: knows nothing of requests or the table.
"""

from base64 import b64encode
from functools import lru_cache
from hashlib import sha256
from html import escape
from importlib import resources
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from adcore.core.inventory import Creative, Placement, web_url

Headers = tuple[tuple[str, str], ...]

# Reports the view by the MRC's rule for display ads: half of the pixels in a visible tab for one second,
# once. It finds its URL in an attribute, so that the script itself is always the same and the policy can
# allow it by its hash. Where an image may go and a request may not, an image goes; the server counts one.
_BEACON = (
    "(function(){var d=document,b=d.body,u=b.getAttribute('data-view'),r=0,t,o;"
    "if(!window.IntersectionObserver)return;"
    "function c(){clearTimeout(t);if(r>=.5&&!d.hidden)t=setTimeout(s,1000)}"
    "function s(){o.disconnect();d.removeEventListener('visibilitychange',c);"
    "fetch(u,{mode:'no-cors',credentials:'omit',keepalive:true}).catch(function(){new Image().src=u})}"
    "o=new IntersectionObserver(function(e){r=e[e.length-1].intersectionRatio;c()},{threshold:[0,.5]});"
    "d.addEventListener('visibilitychange',c);o.observe(b)})()"
)
_STYLE = (
    ":root{color-scheme:light dark}html,body{margin:0;height:100%;overflow:hidden}"
    "body{font:14px/1.35 system-ui,sans-serif}"
    "a{display:block;box-sizing:border-box;height:100%;overflow:hidden;color:inherit;text-decoration:none}"
    "a:focus-visible{outline:2px solid;outline-offset:-2px}img{display:block;max-width:100%;max-height:100%}"
    ".words{padding:8px 12px;border:1px solid #8886}.words img{max-height:50%}strong,span{display:block}"
)
# Around the frame of an html creative: all the room there is.
_STYLE_AROUND = "html,body{margin:0;height:100%;overflow:hidden}iframe{display:block;border:0;width:100%;height:100%}"
# What an html creative may: run scripts, and open windows at a click, which are no longer in the sandbox. Not: another
# page in place of the one around it, our origin and its cookies, forms, dialogs, downloads. tag.js has the same.
_SANDBOX = "allow-scripts allow-popups allow-popups-to-escape-sandbox"
# The tag's srcdoc frames start with the same lines: no margin, and links that leave the frame.
_HEAD_THEIRS = '<!DOCTYPE html><base target="_blank"><style>html,body{margin:0;height:100%}</style>'


def _hash(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


# Ads are framed by the pages of any site that the operator lets ask for them.
_EVERYWHERE = "base-uri 'none'; form-action 'none'; frame-ancestors *"
_OURS = (
    f"default-src 'none'; img-src http: https: data:; style-src {_hash(_STYLE)}; "
    f"script-src {_hash(_BEACON)}; connect-src 'self'{{here}}; {_EVERYWHERE}"
)
# The markup of an html creative is the advertiser's: an origin of its own, without the page's or our cookies. Its frame
# inherits this policy; ours has the sandbox too, should the markup ever get out of its attribute.
_THEIRS = (
    f"sandbox {_SANDBOX}; default-src 'none'; "
    "img-src http: https: data:; media-src http: https: data:; font-src http: https: data:; "
    "style-src 'unsafe-inline' http: https:; script-src 'unsafe-inline' https:; frame-src https:; "
    f"connect-src 'self' https:{{here}}; {_EVERYWHERE}"
)
_REFERRER = ("Referrer-Policy", "strict-origin-when-cross-origin")
_NAME: Final = "Advertisement"
_START: Final = '<!DOCTYPE html><html><head><meta charset="utf-8">'

# What differs between two answers, where it goes in a document that is being compiled.
_ID: Final = object()
_TOKEN: Final = object()
Pieces = tuple[object, ...]
# Of a piece of bytes besides its text, with its place among the pieces.
_PIECE_BYTES = 48


class CompiledDecision:
    """The answers that show one creative in one placement, as pieces around what differs from time to time."""

    __slots__ = (
        *("_creative", "_frame", "_placement", "_public_url", "_to_click", "_to_view"),
        *("frame_headers", "json_bytes", "kept_bytes"),
    )

    def __init__(self, placement: Placement, campaign_id: str, creative: Creative, public_url: str) -> None:
        """For `public_url` (no slash at its end; "" makes the links relative)."""
        self._placement = placement
        self._creative = creative
        self._public_url = public_url
        click_link, self._to_view = _links(public_url)
        self._to_click = b'",' + json_for_script(_static(placement, campaign_id, creative))[1:-1] + click_link
        """What is between the impression id and the click link's token: most of the answer."""
        self.json_bytes = self.kept_bytes = len(self._to_click)
        self.frame_headers = (("Content-Security-Policy", _policy(creative.format, public_url)), _REFERRER)
        self._frame: Pieces = ()
        """Empty until the first frame is asked for: it is five times as large, and sites use one or the other. It adds
        to `kept_bytes` then."""

    def json(self, impression_id: bytes, token: bytes) -> bytes:
        """The decision of the design, as compact JSON that may stand in a <script>."""
        return b"".join((b'{"impression_id":"', impression_id, self._to_click, token, self._to_view, token, b'"}'))

    def frame(self, impression_id: bytes, token: bytes) -> bytes:
        """An HTML document for an iframe, to be sent with `frame_headers`."""
        if not self._frame:
            self._frame = _merge(_frame(self._placement, self._creative, escape(self._public_url)))
            self.kept_bytes += sum(_PIECE_BYTES + len(piece) for piece in self._frame if isinstance(piece, bytes))
        varying = {_ID: impression_id, _TOKEN: token}
        return b"".join([piece if isinstance(piece, bytes) else varying[piece] for piece in self._frame])


def _static(placement: Placement, campaign_id: str, creative: Creative) -> dict[str, Any]:
    """What is the same whenever the ad is shown."""
    return {
        "placement": placement.id,
        "campaign": campaign_id,
        "creative": {
            "id": creative.id,
            "format": creative.format,
            "width": placement.width,
            "height": placement.height,
            **_content(creative),
        },
    }


@lru_cache(maxsize=4)
def _links(public_url: str) -> tuple[bytes, bytes]:
    public = json_for_script(public_url)[1:-1]
    return b',"click_url":"' + public + b"/v1/click?t=", b'","view_url":"' + public + b"/v1/view?t="


@lru_cache(maxsize=16)
def _policy(creative_format: str, public_url: str) -> str:
    here = urlsplit(public_url)
    policy = _THEIRS if creative_format == "html" else _OURS
    return policy.format(here=f" {here.scheme}://{here.netloc}" if public_url else "")


def empty_frame() -> tuple[bytes, Headers]:
    """The document of a frame that got no ad, and its headers."""
    document = f"{_START}<title></title><style>{_STYLE}</style></head></html>"
    return document.encode(), (("Content-Security-Policy", _OURS.format(here="")), _REFERRER)


def landing_location(creative: Creative, impression_id: str) -> str:
    """The creative's landing URL for this impression, fit for a Location header.

    The inventory holds such URLs in ASCII, without spaces and controls; the macro {click_id} becomes the id.
    """
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


def _frame(placement: Placement, creative: Creative, public: str) -> Pieces:
    """The document; `public` is escaped for an attribute."""
    click_url = (f"{public}/v1/click?t=", _TOKEN)
    body: Pieces
    if creative.format == "html":
        head = f"<style>{_STYLE_AROUND}</style>"
        # What the advertiser wrote around the macro is theirs. A document within an attribute is escaped once more.
        first, *rest = (escape(part) for part in (creative.html or "").split("{click_url}"))
        click_url = (f"{escape(public)}/v1/click?t=", _TOKEN)
        body = (
            f'<iframe sandbox="{_SANDBOX}" title="{_NAME}" srcdoc="{escape(_HEAD_THEIRS)}',
            first,
            *(piece for after in rest for piece in (*click_url, after)),
            '"></iframe>',
        )
    else:
        head = f"<style>{_STYLE}</style>"
        classes, inner = ("", _image(placement, creative)) if creative.format == "image" else _words(creative)
        body = (
            f'<a{classes} href="',
            *click_url,
            f'" target="_blank" rel="noopener sponsored">{inner}</a>',
        )
    return (
        f'{_START}<title>{_NAME}</title>{head}</head><body data-impression="',
        _ID,
        f'" data-view="{public}/v1/view?t=',
        _TOKEN,
        f'"><script>{_BEACON}</script>',
        *body,
        "</body></html>",
    )


def _merge(pieces: Pieces) -> Pieces:
    """The same document with one piece of bytes between two that differ.

    In a str one character outside of Latin-1 makes each of the others take two or four bytes.
    """
    merged: list[object] = []
    texts: list[str] = []
    for piece in (*pieces, None):
        if isinstance(piece, str):
            texts.append(piece)
            continue
        if texts:
            merged.append("".join(texts).encode())
            texts.clear()
        if piece is not None:
            merged.append(piece)
    return tuple(merged)


def _image(placement: Placement, creative: Creative) -> str:
    # It names the link for those who do not see it.
    alt = creative.alt.strip() or _NAME
    return (
        f'<img src="{escape(creative.image_url or "")}" alt="{escape(alt)}" '
        f'width="{placement.width}" height="{placement.height}">'
    )


def _words(creative: Creative) -> tuple[str, str]:
    """The link's attributes, and the title, picture, text and call to action of text and native data.

    What else native data holds is for pages that draw it themselves.
    """
    data = creative.data or {}
    title, image_url, text, cta = (
        value if isinstance(value := data.get(name), str) else "" for name in ("title", "image_url", "text", "cta")
    )
    inner = ""
    if title:
        inner += f"<strong>{escape(title)}</strong>"
    if web_url(image_url):
        inner += f'<img src="{escape(image_url)}" alt="">'
    if text:
        inner += f"<span>{escape(text)}</span>"
    if cta:
        inner += f"<strong>{escape(cta)}</strong>"
    return ' class="words"' + ("" if title or text or cta else f' aria-label="{_NAME}"'), inner
