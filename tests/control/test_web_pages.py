"""Web pages in an operator's browser against a control listener on TCP, and askers that want too much of one."""

import asyncio
import json
import resource
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adcore.control import profile_formats
from adcore.control import server as server_module
from adcore.control.explain import PLACEMENTS_MAX
from adcore.control.handlers import ControlHandlers
from adcore.control.profile import ProfileError
from adcore.control.runtime import Runtime
from adcore.control.server import refuse_web_page
from adcore.http1.request import Limits, Request
from adcore.http1.response import Response, respond, respond_error
from tests.control.listener import listening
from tests.inventories import campaign, document
from tests.process import Adcore, adctl, ask, connect, free_address, wait_for


def refusal(host: str = "127.0.0.1:9180", peer: str = "127.0.0.1", **headers: str) -> int:
    fields = {b"host": host.encode(), **{k.replace("_", "-").encode(): v.encode() for k, v in headers.items()}}
    refused = refuse_web_page(Request(b"GET", b"/status", headers=fields, peer=peer), {"ads1", "ads1.example.net"})
    return 0 if refused is None else refused.status


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:9180", 0),
        ("10.0.0.11:9180", 0),
        ("[::1]:9180", 0),
        ("localhost:9180", 0),
        ("localhost", 0),
        ("LOCALHOST.", 0),
        ("ads1:9180", 0),
        ("ADS1.example.net:9180", 0),
        ("attacker.example:9180", 421),
        ("ads1.attacker.example:9180", 421),
        ("localhost.attacker.example", 421),
        ("127.0.0.1.attacker.example", 421),
        ("ads2.example.net", 421),
        ("0x7f000001", 421),
        ("[::1].attacker.example", 421),
    ],
)
def test_a_name_that_an_attacker_points_at_the_listener_is_refused(host: str, status: int) -> None:
    """DNS rebinding: the page has the name of its own origin, and the browser says so in Host."""
    assert refusal(host) == status
    assert refusal(host, peer="") == 0  # no page reaches a unix socket


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 0),
        ({"sec_fetch_site": "none"}, 0),
        ({"sec_fetch_site": "same-origin", "origin": "http://127.0.0.1:9180"}, 0),
        ({"sec_fetch_site": "cross-site"}, 403),
        ({"sec_fetch_site": "same-site"}, 403),
        ({"origin": "https://attacker.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://127.0.0.1:8000"}, 403),
    ],
)
def test_a_request_that_another_sites_page_makes_is_refused(headers: dict[str, str], status: int) -> None:
    assert refusal(**headers) == status


def test_a_request_without_host_comes_from_no_browser() -> None:
    assert refuse_web_page(Request(b"GET", b"/status", peer="127.0.0.1"), ()) is None


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    url = f"sqlite:///{tmp_path_factory.mktemp('store')}/ads.db"
    applied = adctl("apply", "--source", url, "-", stdin=json.dumps(document(*(campaign(f"c{n}") for n in range(200)))))
    assert applied.returncode == 0, applied.stderr
    return url


@pytest.fixture(scope="module", params=["1", "2"])
def server(request: Any, source: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Adcore]:
    """One process, and the parent of two."""
    address = free_address()
    options = ("--source", source, "--control", address, "--control-hosts", "Metrics.example.net")
    server = Adcore(tmp_path_factory.mktemp("state"), *options, "--workers", request.param)
    server.control = address
    try:
        server.wait_until_ready()
        yield server
        assert server.stop() == 0
    finally:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()


def test_a_real_listener_refuses_pages_and_answers_to_its_names(server: Adcore) -> None:
    for target in ("/status", "/metrics", "/profile?seconds=0.1", "/explain?placement=side", "/version", "/ping"):
        assert ask(server.control, target).status == 200
        assert ask(server.control, target, Host="metrics.example.net:9180").status == 200
        refused = ask(server.control, target, Host="attacker.example")
        assert refused.status == 421
        assert "attacker.example is not a name of this listener; add it to --control-hosts" in refused.json()["error"]
        assert ask(server.control, target, Sec_Fetch_Site="cross-site").status == 403


def test_adctl_says_why_a_listener_refuses(tmp_path: Path) -> None:
    async def refuse(request: Request) -> Response:
        return respond_error(421, "ads7 is not a name of this listener")

    with listening(refuse, tmp_path / "c.sock") as address:
        shown = adctl("top", "--once", "--control", address)
    assert shown.returncode == 1
    assert "answers 421: ads7 is not a name of this listener" in shown.stderr


# What one asker may want


def test_an_explanation_is_of_as_many_placements_as_a_page_may_have(server: Adcore) -> None:
    """A request line has room for 2,700, which is a minute of the loop, and gigabytes, with 5,000 campaigns."""
    many = ask(server.control, "/explain?placement=" + ",".join(["a"] * 1500))
    assert many.status == 400
    assert many.json()["error"] == f"placement names 1500 placements, and may name {PLACEMENTS_MAX}"
    page = ask(server.control, "/explain?placement=" + ",".join(["side"] * PLACEMENTS_MAX)).json()
    assert [one["placement"] for one in page["explanations"]] == ["side"] * PLACEMENTS_MAX


def test_others_have_their_turn_between_two_placements() -> None:
    turns: list[str] = []

    def explain(arguments: list[tuple[str, str]]) -> Iterator[Any]:
        for _ in range(3):
            turns.append("explained")
            yield {}

    async def main() -> None:
        control = ControlHandlers({}, {}, {}, Runtime(), explain, lambda count: None)
        asking = [asyncio.ensure_future(control(Request(b"GET", b"/explain"))) for _ in range(4)]
        while not all(one.done() for one in asking):
            await asyncio.sleep(0)
            turns.append("others")

    asyncio.run(main())
    assert turns.count("explained") == 12
    assert "explained, explained" not in ", ".join(turns)


async def answer_at_length(request: Request) -> Response:
    return respond(200, bytes(1 << 20), content_type="text/plain")


def test_answers_that_are_not_read_are_bounded_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "UNREAD_BYTES_MAX", 3 << 20)
    with listening(answer_at_length, tmp_path / "c.sock", Limits(write_s=60)) as address:
        waiting = [connect(address) for _ in range(5)]
        statuses = []
        for peer in waiting:
            peer.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            statuses.append(peer.recv(12))
        assert statuses == [b"HTTP/1.1 200"] * 3 + [b"HTTP/1.1 503"] * 2
        for peer in waiting:
            peer.close()
        wait_for(lambda: ask(address, "/").status == 200)


def test_a_profile_is_not_begun_while_one_is_drawn() -> None:
    """Else each of many takes a tenth of a second to begin, and half a minute of a core to draw."""
    drawn = threading.Event()

    async def main() -> list[int]:
        control = ControlHandlers({}, {}, {}, Runtime(), lambda arguments: iter(()), lambda count: None)
        first = asyncio.ensure_future(control(Request(b"GET", b"/profile", b"seconds=0.1")))
        while not control._is_drawing:
            await asyncio.sleep(0.01)
        second = await control(Request(b"GET", b"/profile", b"seconds=0.1"))
        assert b"still being drawn" in second.body
        drawn.set()
        statuses = [(await first).status, second.status]
        return [*statuses, (await control(Request(b"GET", b"/profile", b"seconds=0.1"))).status]

    draw = profile_formats.to_svg
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(profile_formats, "to_svg", lambda profile: drawn.wait(20) and draw(profile))
        assert asyncio.run(main()) == [200, 503, 200]


def test_a_program_that_draws_has_a_limit_on_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile_formats, "DRAW_MEMORY_BYTES", 256 << 20)
    greedy = "import sys; sys.stdin.read(); bytearray(1 << 30)"
    with pytest.raises(ProfileError, match="MemoryError"):
        asyncio.run(profile_formats._run(b"", sys.executable, "-c", greedy))
    assert resource.getrlimit(resource.RLIMIT_AS)[1] != 256 << 20  # of the child alone


def test_slow_askers_leave_within_their_time_and_hold_up_nobody_for_longer(tmp_path: Path) -> None:
    with listening(answer_at_length, tmp_path / "c.sock", Limits(request_s=0.2, write_s=0.2, connections=3)) as address:
        head = b"GET /a HTTP/1.1\r\nHost: x\r\n"
        slow = [connect(address) for _ in range(3)]
        for peer, sent in zip(slow, (b"", head, head + b"\r\n"), strict=True):
            peer.sendall(sent)
        wait_for(lambda: ask(address, "/").status == 200)
        for peer in slow:
            peer.close()
