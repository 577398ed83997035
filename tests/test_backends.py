"""Who may describe a visitor: peers by their address, tokens from anywhere, and nothing that came through a proxy."""

import json
import re
from collections.abc import Mapping
from ipaddress import ip_network
from pathlib import Path
from types import SimpleNamespace

import pytest

from adcore.backends import BackendError, Backends
from adcore.errors import StartError
from adcore.http1.request import Request
from tests.inventories import campaign, document
from tests.process import ROOT, adctl, serving_over

TOKEN = "a" * 43 + "="
PEERS = (ip_network("127.0.0.0/8"), ip_network("::1/128"))


def request(peer: str = "127.0.0.1", headers: Mapping[bytes, bytes] = {}, *, unix: bool = False, http10: bool = False):  # type: ignore[no-untyped-def]
    return Request(
        b"POST",
        b"/v1/decision",
        b"",
        {b"host": b"a", **headers},
        peer="" if unix else peer,
        trusted=unix,
        http10=http10,
    )


@pytest.mark.parametrize("peer", ["127.0.0.1", "127.9.9.9", "::1"])
def test_a_peer_of_a_network_may(peer: str) -> None:
    Backends(PEERS).check(request(peer))


@pytest.mark.parametrize("peer", ["128.0.0.1", "10.0.0.1", "::2", "2001:db8::1"])
def test_another_may_not(peer: str) -> None:
    with pytest.raises(BackendError, match="--backend-peers"):
        Backends(PEERS).check(request(peer))


def test_the_unix_socket_is_named_by_itself() -> None:
    Backends(("unix",)).check(request(unix=True))
    with pytest.raises(BackendError, match="--backend-peers"):
        Backends(PEERS).check(request(unix=True))
    with pytest.raises(BackendError):
        Backends(("unix",)).check(request("10.0.0.1"))
    # A connection that was gone before it had a name.
    with pytest.raises(BackendError):
        Backends(("unix",)).check(request(""))


MARKS = (
    *(b"x-real-ip", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto", b"x-forwarded-server", b"forwarded"),
    *(b"via", b"cdn-loop", b"x-client-ip", b"true-client-ip", b"cf-connecting-ip", b"x-envoy-external-address"),
)


@pytest.mark.parametrize("value", [b"", b"127.0.0.1"])
@pytest.mark.parametrize("mark", MARKS)
@pytest.mark.parametrize("unix", [True, False])
def test_what_bears_the_mark_of_a_proxy_may_not(mark: bytes, value: bytes, unix: bool) -> None:
    with pytest.raises(BackendError, match=f"proxy .{mark.decode()}."):
        Backends(("unix", *PEERS)).check(request(headers={mark: value}, unix=unix))


def test_http10_is_how_nginx_speaks_to_its_upstreams() -> None:
    with pytest.raises(BackendError, match=r"HTTP/1\.0"):
        Backends(("unix", *PEERS)).check(request(http10=True))


def test_a_backend_may_give_a_request_id_and_a_country() -> None:
    Backends(PEERS).check(request(headers={b"x-request-id": b"0" * 32, b"x-country": b"JP"}))


def test_a_token_holds_from_anywhere_and_through_a_proxy() -> None:
    backends = Backends((), ["b" * 40, TOKEN])
    for name in ("Bearer", "bearer", "BEARER"):
        backends.check(
            request(
                "192.0.2.1", {b"authorization": f"{name} {TOKEN}".encode(), b"x-real-ip": b"192.0.2.1"}, http10=True
            )
        )


@pytest.mark.parametrize("value", [TOKEN, f"Basic {TOKEN}", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", "Bearer ", ""])
def test_anything_else_is_no_token(value: str) -> None:
    with pytest.raises(BackendError):
        Backends((), [TOKEN]).check(request(headers={b"authorization": value.encode()}))


def test_without_a_file_no_token_is_good() -> None:
    with pytest.raises(BackendError):
        Backends(()).check(request(headers={b"authorization": b"Bearer "}))


@pytest.mark.parametrize(
    ("text", "mode", "fault"),
    [
        (f"{TOKEN}\n", 0o644, "is open to everybody on this machine: put new tokens"),
        ("short\n", 0o600, "line 1: a token is 32 to 256 letters"),
        (f"{TOKEN}\n{TOKEN} x\n", 0o600, "line 2: a token is"),
        ("# nothing\n\n", 0o600, "has no token"),
        ("x" * 70_000, 0o600, "too long"),
    ],
)
def test_a_bad_token_file_is_refused_by_line(tmp_path: Path, text: str, mode: int, fault: str) -> None:
    path = tmp_path / "tokens"
    path.write_text(text)
    path.chmod(mode)
    with pytest.raises(StartError, match=re.escape(fault)):
        Backends.load((), path)
    assert TOKEN not in str(fault)


def test_a_missing_token_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="--backend-token-file"):
        Backends.load((), tmp_path / "none")


def test_the_backend_of_the_readme_works_as_printed(tmp_path: Path) -> None:
    """By default, on TCP of this host."""
    text = (ROOT / "README.rst").read_text()
    found = re.search(r"\n    import json, urllib\.request\n(?:    .*\n|\n)+", text)
    assert found is not None
    source = f"sqlite:///{tmp_path}/ads.db"
    ads = document(campaign("a", targeting={"countries": [], "devices": ["mobile"]}))
    applied = adctl("apply", "--source", source, "-", stdin=json.dumps(ads))
    assert applied.returncode == 0, applied.stderr
    with serving_over("tcp", tmp_path / "state", "--source", source) as server:
        code = "\n".join(line[4:] for line in found[0].splitlines()).replace("127.0.0.1:8080", server.address)
        names: dict[str, object] = {}
        exec(code.replace('"top", "side"', '"side"'), names)

        browser = {"User-Agent": "Mozilla/5.0 (iPhone; CPU iPhone OS 17_0 like Mac OS X)", "Accept-Language": "ja"}
        page = SimpleNamespace(headers=browser, client_address="198.51.100.7")
        (decision,) = names["choose_ads"](page)  # type: ignore[operator]
        assert decision["placement"] == "side"
        assert server.stop() == 0
        (record,) = server.records()
    assert (record["ip"], record["device"], record["languages"]) == ("198.51.100.0", "mobile", ["ja"])
