"""Links in hostile hands, over every kind of socket and several workers: none forged, none foreign, none twice."""

import json
import random
import socket
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.inventories import campaign, document
from tests.process import KINDS, PATIENCE_S, Adcore, Connection, adctl, connect, serving_over, wait_for

LANDING = "https://shop.example.net/?c="
REPLAYS = 1000
CLIENTS = 8


def store(folder: Path) -> str:
    url = f"sqlite:///{folder}/ads.db"
    applied = adctl("apply", "--source", url, "-", stdin=json.dumps(document(campaign("a"))))
    assert applied.returncode == 0, applied.stderr
    return url


def raw(server: Adcore, request: bytes) -> bytes:
    """Everything that comes back for these bytes, on a connection of their own."""
    with connect(server.address) as sock:
        sock.sendall(request)
        sock.shutdown(socket.SHUT_WR)
        received = b""
        try:
            while data := sock.recv(1 << 16):
                received += data
        except ConnectionResetError:
            pass
        return received


def links(server: Adcore) -> dict[str, Any]:
    decision: dict[str, Any] = server.ask("/v1/decision?placement=side").json()
    return decision


@pytest.mark.parametrize("kind", KINDS)
def test_a_link_that_is_replayed_a_thousand_times_over_workers_counts_once(tmp_path: Path, kind: str) -> None:
    statuses: Counter[int] = Counter()

    def replay(server: Adcore, targets: list[str], count: int) -> None:
        connection = Connection(server.address)
        for number in range(count):
            connection.request("GET", targets[number % 2])
            answer = connection.getresponse()
            answer.read()
            statuses[answer.status] += 1
            if number % 20 == 19:  # each worker gets some of the connections
                connection.close()
        connection.close()

    def replay_by_all(server: Adcore, targets: list[str], count: int) -> None:
        threads = [threading.Thread(target=replay, args=(server, targets, count // CLIENTS)) for _ in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(4 * PATIENCE_S)

    source = store(tmp_path)
    with serving_over(kind, tmp_path / "state", "--source", source, "--workers", "2") as server:
        wait_for(lambda: [one["state"] for one in server.status()["workers"]] == ["serving"] * 2)
        decision = links(server)
        targets = [decision["click_url"], decision["view_url"]]
        replay_by_all(server, targets, 2 * REPLAYS)
        shares = [one["delivery"]["requests"].get("click") for one in server.status()["workers"]]
        assert len(shares) == 2
        assert all(shares), "each worker must have had some"
        assert server.stop() == 0
    # Whoever starts next knows it too.
    with serving_over(kind, tmp_path / "state", "--source", source, "--workers", "2") as server:
        replay_by_all(server, targets, 80)
        assert server.stop() == 0
        records = server.records()
    assert statuses == {302: REPLAYS + 40, 204: REPLAYS + 40}
    assert Counter(record["type"] for record in records) == {"impression": 1, "click": 1, "view": 1}


FOREIGN = (
    *("https://evil.example/", "//evil.example/", "/\\evil.example", "javascript:alert(1)", "\thttps://evil.example"),
    *("%0d%0aLocation:%20https://evil.example", "%0D%0ASet-Cookie:%20a=b", "%00", "x%E5%98%8A%E5%98%8DLocation:evil"),
    *("\r\nLocation: https://evil.example", "\r\nSet-Cookie: evil=1", "\nX-Evil: 1", "\rX-Evil: 1"),
    "\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
)
PARAMETERS = (
    "placement",
    "n",
    "keywords",
    "kv.s",
    "kv.",
    "user",
    "url",
    "next",
    "redirect",
    "landing_url",
    "click_url",
)
HEADERS = (
    *("Host", "User-Agent", "Accept-Language", "Referer", "Origin", "Cookie", "X-Request-ID", "X-Country", "X-Real-IP"),
    *("X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Original-URL", "X-Rewrite-URL", "Forwarded"),
)


def heads(answer: bytes) -> list[tuple[bytes, list[bytes]]]:
    """Status line and header lines of each answer, by their Content-Length."""
    found = []
    while answer:
        head, separator, rest = answer.partition(b"\r\n\r\n")
        assert separator, answer
        status, *lines = head.split(b"\r\n")
        lengths = [int(line.split(b":")[1]) for line in lines if line.lower().startswith(b"content-length:")]
        found.append((status, lines))
        answer = rest[lengths[0] if lengths else 0 :]
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_no_link_is_forged_and_nothing_chooses_where_an_answer_leads_or_adds_to_its_head(
    tmp_path: Path, kind: str
) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    chance = random.Random(seed)
    args = ("--source", store(tmp_path), "--cors-origins", "https://www.example.net", "--click-window", "0")
    with serving_over(kind, tmp_path / "state", *args) as server:
        decision = links(server)
        click = decision["click_url"]
        targets = [
            *(f"{click}&{name}={value}" for name in PARAMETERS for value in FOREIGN),
            *(f"{click}{value}" for value in FOREIGN),
            *(f"/v1/click?{name}={value}&t={click.partition('=')[2]}" for name in PARAMETERS for value in FOREIGN),
            *(
                f"/v1/{route}?placement=side&{n}={v}"
                for route in ("decision", "frame")
                for n in PARAMETERS
                for v in FOREIGN
            ),
            *(f"/{value}" for value in FOREIGN),
            *(f"{value}" for value in FOREIGN),
        ]
        path, _, token = click.partition("=")
        for at in range(len(token)):
            other = chr(ord(token[at]) ^ 1 << chance.randrange(8))
            forged = f"GET {path}={token[:at]}{other}{token[at + 1 :]} HTTP/1.1\r\nHost: a\r\n\r\n"
            for status, lines in heads(raw(server, forged.encode("latin-1"))):
                assert status.startswith(b"HTTP/1.1 400 "), forged
                assert not any(line.lower().startswith(b"location:") for line in lines)
        requests = [f"GET {target} HTTP/1.1\r\nHost: a\r\n\r\n" for target in targets]
        requests += [
            f"GET {target} HTTP/1.1\r\n{'' if name == 'Host' else 'Host: a' + chr(13) + chr(10)}{name}: {value}\r\n\r\n"
            for target in (click, "/v1/decision?placement=side", "/v1/frame?placement=side")
            for name in HEADERS
            for value in FOREIGN
        ]
        redirects = 0
        for request in requests:
            for status, lines in heads(raw(server, request.encode("latin-1"))):
                assert status.split(b" ")[0] == b"HTTP/1.1"
                assert int(status.split(b" ")[1]) in (200, 204, 302, 400, 404, 505), (request, status)
                for line in lines:
                    name, _, value = line.partition(b": ")
                    assert b"evil" not in line, (request, line)
                    if name.lower() == b"location":
                        assert value.decode() == LANDING + decision["impression_id"], request
                        redirects += 1
        assert redirects > len(HEADERS)
        assert server.stop() == 0
        clicks = sum(1 for record in server.records() if record["type"] == "click")
        assert clicks == redirects


def test_a_link_of_one_host_counts_once_on_each_and_once_in_the_report(tmp_path: Path) -> None:
    """Hosts of one site have one secret file and tell each other nothing of links; what counts them looks at both."""
    source = store(tmp_path)
    secret = tmp_path / "secret"
    args = ("--source", source, "--secret-file", str(secret))
    with serving_over("unix", tmp_path / "one", *args) as one, serving_over("unix", tmp_path / "two", *args) as two:
        decision = links(one)
        for server in (one, two, two, one, two):
            assert server.ask(decision["click_url"]).status == 302
            assert server.ask(decision["view_url"]).status == 204
        logs = []
        for server in (one, two):
            assert server.stop() == 0
            kinds = Counter(record["type"] for record in server.records())
            assert (kinds["click"], kinds["view"]) == (1, 1)
            logs.append(server.log)
    # Each host's collector counts its own log into the one store.
    for log in logs:
        collected = adctl("collect", "--source", source, str(log))
        assert collected.returncode == 0, collected.stderr
    report = adctl("report", "--source", source, "--format", "json", "--by", "campaign")
    (row,) = json.loads(report.stdout)
    assert row["clicks"] + row["views"] + row["impressions"] + row["ivt"] == 3


def test_a_link_of_another_site_is_good_only_where_the_secret_is_the_same_and_the_ad_is_known(tmp_path: Path) -> None:
    def serve(name: str, booked: str, secret: str) -> Any:
        folder = tmp_path / name
        folder.mkdir()
        url = f"sqlite:///{folder}/ads.db"
        applied = adctl("apply", "--source", url, "-", stdin=json.dumps(document(campaign(booked))))
        assert applied.returncode == 0, applied.stderr
        return serving_over("unix", folder, "--source", url, "--secret-file", str(tmp_path / secret))

    with (
        serve("ours", "a", "secret") as ours,
        serve("other-secret", "a", "other") as stranger,
        serve("other-ads", "b", "secret") as sister,
        serve("same", "a", "secret") as twin,
    ):
        decision = links(ours)
        answers = {}
        for name, server in (("stranger", stranger), ("sister", sister), ("twin", twin)):
            answers[name] = [server.ask(decision[url]).status for url in ("click_url", "view_url")]
            assert server.stop() == 0
            answers[name] += [len(server.records())] if server.log.exists() else [0]
        # Sites that share a secret file take each other's links for their own: give each site one of its own.
        assert answers == {"stranger": [400, 400, 0], "sister": [404, 404, 0], "twin": [302, 204, 2]}
        # A click is not a view: one token is good for both, and each counts once.
        token = decision["click_url"].partition("=")[2]
        assert ours.ask(f"/v1/view?t={token}").status == 204
        assert ours.ask(decision["view_url"].replace("/view", "/click")).status == 302
        assert ours.stop() == 0
        assert Counter(record["type"] for record in ours.records()) == {"impression": 1, "view": 1, "click": 1}
