"""What a browser says of a request that it makes (W3C Fetch Metadata, and Origin): facts that no script can change.

An html creative runs in a sandbox, but it can make requests. These rules bound what it counts by them: a decision goes
only to those who can show it, and a click is something that takes the visitor somewhere. Browsers send the fields over
https and to this host; where they are missing, as from backends and robots, nothing is refused.
"""

from collections.abc import Mapping

Headers = Mapping[bytes, bytes]

CORS = b"cors"


def is_unseen(headers: Headers, *, framed: bool) -> bool:
    """Whether the answer is for no page to show: to a script in a sandbox, which may read nothing, or for an image, a
    script, a prefetch. A document that is `framed` may stand in a frame, data may not."""
    if headers.get(b"origin") == b"null":
        return True
    mode = headers.get(b"sec-fetch-mode")
    if mode == b"no-cors":
        return True
    return mode == b"navigate" and not framed and headers.get(b"sec-fetch-dest", b"document") != b"document"


def is_navigation(headers: Headers) -> bool:
    """Whether the visitor goes there: in a window, or in a frame by an act of theirs.

    Chromium sends no Fetch Metadata with a WebSocket's handshake, whose key no navigation has; and none is made by a
    sandbox, which is the null origin.
    """
    if b"sec-websocket-key" in headers or headers.get(b"origin") == b"null":
        return False
    mode = headers.get(b"sec-fetch-mode")
    if mode is None:
        return True
    if mode != b"navigate":
        return False
    return headers.get(b"sec-fetch-dest", b"document") == b"document" or headers.get(b"sec-fetch-user") == b"?1"
