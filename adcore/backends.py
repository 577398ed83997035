"""Who may describe a visitor in POST /v1/decision: the backends of the pages, and no proxy.

A visitor's request comes through a proxy and bears the proxy's marks, which the visitor can add to but not take away.
Such a request describes nobody but its sender, even where it arrives over the unix socket that backends of this host
use as well. A backend is told apart by where it connects from (--backend-peers), or by a token that it sends
(--backend-token-file), which holds through a proxy too. Asked only for requests that describe a visitor.
"""

import re
from collections.abc import Iterable
from hashlib import blake2b
from hmac import compare_digest
from ipaddress import ip_address
from pathlib import Path

from adcore.errors import AdcoreError, StartError
from adcore.http1.request import Request
from adcore.settings import UNIX, Peer
from adcore.tokens import read_private_file

# Fields that proxies add: RFC 7239, RFC 9110 7.6.3, RFC 8586 and the customs of nginx, Apache, HAProxy, Envoy and the
# large networks. X-Request-ID and X-Country are not among them: backends send these too.
PROXY_FIELDS = frozenset(
    {
        *(b"forwarded", b"via", b"cdn-loop", b"x-real-ip", b"x-client-ip", b"x-cluster-client-ip", b"true-client-ip"),
        *(b"cf-connecting-ip", b"fastly-client-ip", b"x-envoy-external-address", b"x-original-forwarded-for"),
    }
)
PROXY_FIELDS_START = b"x-forwarded-"
# 32 characters of base64 are 192 bits; the alphabet is that of RFC 6750.
_TOKEN_LINE = re.compile(r"[A-Za-z0-9._~+/-]{32,256}=*")
_BEARER = re.compile(rb"bearer +([!-~]{1,512})", re.IGNORECASE)


class BackendError(AdcoreError):
    """The request describes a visitor and may not (HTTP 403)."""


class Backends:
    """The peers and the tokens that may describe visitors."""

    __slots__ = ("_digests", "_peers")

    def __init__(self, peers: tuple[Peer, ...], tokens: Iterable[str] = ()) -> None:
        self._peers = peers
        self._digests = [_digest(token.encode()) for token in tokens]

    @classmethod
    def load(cls, peers: tuple[Peer, ...], token_file: Path | None) -> "Backends":
        """With the tokens of a file. Raises StartError."""
        return cls(peers, () if token_file is None else _read_tokens(token_file))

    def check(self, request: Request) -> None:
        """Raises BackendError, which names the setting, unless this request may describe a visitor."""
        bearer = _BEARER.fullmatch(request.headers.get(b"authorization", b"")) if self._digests else None
        if bearer is not None:
            digest = _digest(bearer[1])
            # All of them, so that the time says nothing of where a token stands.
            if sum([compare_digest(digest, known) for known in self._digests]):
                return
        mark = find_proxy_mark(request)
        if mark:
            raise BackendError(
                f"visitor is not taken from a request that came through a proxy ({mark}): connect to adcore itself "
                "from --backend-peers, or send a token of --backend-token-file as Authorization: Bearer"
            )
        if not self._is_peer(request):
            raise BackendError(
                "visitor is taken from --backend-peers alone, and this peer is not one of them: add its network, or "
                "send a token of --backend-token-file as Authorization: Bearer"
            )

    def _is_peer(self, request: Request) -> bool:
        if not request.peer:
            # A unix socket, or a connection that was gone before it had a name.
            return request.trusted and UNIX in self._peers
        address = ip_address(request.peer)
        return any(peer != UNIX and address in peer for peer in self._peers)


def find_proxy_mark(request: Request) -> str:
    """What shows that a request came through a proxy; "" if nothing does.

    HTTP/1.0 does: the default of nginx for requests to its upstreams, and of no HTTP library in use.
    """
    for name in request.headers:
        if name in PROXY_FIELDS or name.startswith(PROXY_FIELDS_START):
            return name.decode("latin-1")
    return "HTTP/1.0" if request.http10 else ""


def _digest(token: bytes) -> bytes:
    """Of equal length for tokens of any length, so that comparing them takes equal time."""
    return blake2b(token, digest_size=32).digest()


def _read_tokens(path: Path) -> list[str]:
    """One token a line; empty lines and those that start with # are passed over."""
    try:
        text = read_private_file(path, "--backend-token-file", "put new tokens in it")
    except OSError as error:
        raise StartError(f"cannot read {path}: {error.strerror}; see --backend-token-file") from error
    tokens = []
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        if not _TOKEN_LINE.fullmatch(line):
            raise StartError(
                f"{path}, line {number}: a token is 32 to 256 letters, digits or . _ ~ + / - "
                "(`openssl rand -base64 32` makes one)"
            )
        tokens.append(line)
    if not tokens:
        raise StartError(
            f"{path} has no token; write one (`openssl rand -base64 32`) or leave out --backend-token-file"
        )
    return tokens
