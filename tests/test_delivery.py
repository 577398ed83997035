"""What a page, a person and an operator rely on, on a real server over a real socket."""

import json
import os
import re
import signal
import socket
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.inventories import campaign, document, text_creative
from tests.process import ROOT, Adcore, adctl, ask, serving, wait_for

PHONE = (
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) "
    "Version/17.5 Mobile/15E148 Safari/604.1"
)
BOT = "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)"


def store(tmp_path: Path, *campaigns: dict[str, Any]) -> str:
    url = f"sqlite:///{tmp_path}/ads.db"
    apply(url, *campaigns)
    return url


def apply(url: str, *campaigns: dict[str, Any]) -> None:
    applied = adctl("apply", "--source", url, "-", stdin=json.dumps(document(*campaigns)))
    assert applied.returncode == 0, applied.stderr


def cookies(answer: Any) -> dict[str, str]:
    """What a browser would keep of the answer: name -> value, without those that expire at once."""
    kept = {}
    for line in answer.headers.get_all("Set-Cookie") or ():
        name, _, value = line.partition(";")[0].partition("=")
        if "max-age=0;" not in line.lower() + ";":
            kept[name] = value
    return kept


def header(jar: dict[str, str]) -> str:
    return "; ".join(f"{name}={value}" for name, value in jar.items())


def test_one_requests_life(tmp_path: Path) -> None:
    """Decision, view and click; then three records with one id."""
    source = store(tmp_path, campaign("spring"))
    with serving(tmp_path / "state", "--source", source) as server:
        answer = server.ask(
            "/v1/decision?placement=side&keywords=Manga&kv.section=news",
            User_Agent=PHONE,
            Accept_Language="ja,en;q=0.5",
            X_Country="JP",
            X_Real_IP="198.51.100.77",
        )
        assert answer.status == 200
        assert answer.headers["Content-Type"] == "application/json"
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        decision = answer.json()
        impression_id = decision["impression_id"]
        assert decision == {
            "impression_id": impression_id,
            "placement": "side",
            "campaign": "spring",
            "creative": {
                "id": "spring-1",
                "format": "text",
                "width": 300,
                "height": 250,
                "data": {"text": "Buy one"},
            },
            "click_url": decision["click_url"],
            "view_url": decision["view_url"],
        }
        assert decision["click_url"].startswith("/v1/click?t=")
        assert decision["view_url"].startswith("/v1/view?t=")
        assert server.ask(decision["view_url"], User_Agent=PHONE).status == 204
        click = server.ask(decision["click_url"], User_Agent=PHONE)
        assert click.status == 302
        assert click.headers["Location"] == f"https://shop.example.net/?c={impression_id}"
        assert server.stop() == 0
    impression, view, clicked = server.records()
    assert [r["type"] for r in (impression, view, clicked)] == ["impression", "view", "click"]
    assert {r["id"] for r in (impression, view, clicked)} == {impression_id}
    assert {r["v"] for r in (impression, view, clicked)} == {1}
    wanted = {
        "placement": "side",
        "campaign": "spring",
        "creative": "spring-1",
        "chance": 1.0,
        "device": "mobile",
        "os": "ios",
        "country": "JP",
        "languages": ["ja", "en"],
        "keywords": ["manga"],
        "ivt": False,
        "ip": "198.51.100.0",
        "user": "",
        "host": socket.gethostname(),
        "excluded": {},
    }
    assert {name: impression[name] for name in wanted} == wanted
    assert impression["revision"] >= 1


def test_every_listener_serves_the_same(tmp_path: Path) -> None:
    source = store(tmp_path, campaign("spring"))
    inherited = socket.socket()
    inherited.bind(("127.0.0.1", 0))
    inherited.listen()
    host, port = inherited.getsockname()
    with serving(tmp_path / "a", "--source", source) as server:
        assert server.ask("/v1/decision?placement=side").status == 200
        assert server.stop() == 0
        assert not (tmp_path / "a" / "ad.sock").exists()
    server = Adcore(tmp_path / "b", "--source", source, "--fd", str(inherited.fileno()), pass_fds=(inherited.fileno(),))
    server.address = f"{host}:{port}"
    try:
        server.wait_until_ready()
        assert server.ask("/v1/decision?placement=side").status == 200
        assert server.stop() == 0
    finally:
        server.process.kill()
        server.process.wait()
        inherited.close()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]
    server = Adcore(tmp_path / "c", "--source", source, "--port", str(free))
    server.address = f"127.0.0.1:{free}"
    try:
        server.wait_until_ready()
        assert server.ask("/v1/decision?placement=side").status == 200
        assert server.stop() == 0
    finally:
        server.process.kill()
        server.process.wait()


def test_several_placements_show_no_campaign_twice(tmp_path: Path) -> None:
    source = store(tmp_path, campaign("a"), campaign("b"))
    with serving(tmp_path / "state", "--source", source) as server:
        for _ in range(20):
            decisions = server.ask("/v1/decision?placement=side,foot,side").json()["decisions"]
            assert [d["placement"] for d in decisions] == ["side", "foot"]
            assert {d["campaign"] for d in decisions} == {"a", "b"}
        posted = server.ask("/v1/decision", "POST", b'{"placement": ["side"], "n": 2}')
        assert len(posted.json()["decisions"]) == 2
        server.stop()
    unfilled = [r for r in server.records() if r["type"] == "unfilled"]
    assert len(unfilled) == 20
    assert unfilled[0]["reasons"] == {"already_on_page": 2}
    assert unfilled[0]["excluded"] == {"a": "already_on_page", "b": "already_on_page"}


def test_nothing_to_show_is_204_with_the_main_reason(tmp_path: Path) -> None:
    source = store(tmp_path, campaign("a", targeting={"countries": ["JP"]}))
    with serving(tmp_path / "state", "--source", source) as server:
        for placement, reason in (
            ("side", "country"),
            ("top", "no_campaigns"),
            ("nowhere", "unknown_placement"),
        ):
            answer = server.ask(f"/v1/decision?placement={placement}")
            assert (answer.status, answer.headers["X-No-Ad"], answer.body) == (204, reason, b"")
        assert server.ask("/v1/decision?placement=side", X_Country="JP").status == 200
        delivery = server.status()["delivery"]
        assert delivery["unfilled"] == {
            "side": {"country": 1},
            "top": {"no_campaigns": 1},
            "": {"unknown_placement": 1},
        }
        assert delivery["dropped"] == {"side": {"country": 1}}
        assert delivery["filled"] == {"side": 1}
        server.stop()


def test_a_goal_of_10_delivers_10(tmp_path: Path) -> None:
    """Revive Adserver #306, with many requests at once, and over a restart."""
    source = store(tmp_path, campaign("a", goal={"impressions": 10}), campaign("b", priority="house"))
    with serving(tmp_path / "state", "--source", source) as server:
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: server.ask("/v1/decision?placement=side").json(), range(9)))
        assert server.stop() == 0
    with serving(tmp_path / "state", "--source", source) as server:
        with ThreadPoolExecutor(8) as pool:
            answers += list(pool.map(lambda _: server.ask("/v1/decision?placement=side").json(), range(61)))
        server.stop()
    assert Counter(answer["campaign"] for answer in answers) == {"a": 10, "b": 60}


def capped(name: str = "a", impressions: int = 3) -> dict[str, Any]:
    return campaign(name, frequency_cap={"impressions": impressions, "seconds": 3600})


def test_a_capped_ad_shows_on_a_first_page_and_stops_at_its_cap(tmp_path: Path) -> None:
    """Revive Adserver #578: capped ads that never show because no cookie is known yet."""
    source = store(tmp_path, capped())
    with serving(tmp_path / "state", "--source", source) as server:
        jar: dict[str, str] = {}
        for _ in range(3):
            answer = server.ask("/v1/decision?placement=side", Cookie=header(jar))
            assert answer.status == 200
            jar |= cookies(answer)
        answer = server.ask("/v1/decision?placement=side", Cookie=header(jar))
        assert (answer.status, answer.headers["X-No-Ad"]) == (204, "frequency_cap")
        assert server.ask("/v1/decision?placement=side").status == 200
        server.stop()


def test_tags_answered_at_once_lose_no_count(tmp_path: Path) -> None:
    """Revive Adserver #619 and #1148: three tags of a first page, all asked before any cookie is there."""
    source = store(tmp_path, capped())
    with serving(tmp_path / "state", "--source", source) as server:
        jar: dict[str, str] = {}
        at_once = [server.ask("/v1/decision?placement=side") for _ in range(3)]
        for answer in at_once:
            (line,) = answer.headers.get_all("Set-Cookie", [])
            assert {"Secure", "HttpOnly", "Path=/"} <= set(line.split("; "))
            jar |= cookies(answer)
        assert server.ask("/v1/decision?placement=side", Cookie=header(jar)).status == 204
        server.stop()


def test_a_browser_that_asks_for_privacy_gets_no_cookie(tmp_path: Path) -> None:
    source = store(tmp_path, capped())
    with serving(tmp_path / "state", "--source", source) as server:
        answer = server.ask("/v1/decision?placement=side", Sec_GPC="1")
        assert answer.status == 200
        assert answer.headers.get_all("Set-Cookie") is None
        server.stop()


def test_the_callers_user_key_holds_the_cap_without_a_cookie(tmp_path: Path) -> None:
    source = store(tmp_path, capped(impressions=2))
    with serving(tmp_path / "state", "--source", source) as server:
        answers = [server.ask("/v1/decision?placement=side&user=u-1") for _ in range(3)]
        assert [answer.status for answer in answers] == [200, 200, 204]
        assert all(answer.headers.get_all("Set-Cookie") is None for answer in answers)
        assert server.ask("/v1/decision?placement=side&user=u-2").status == 200
        server.stop()
    users = [r["user"] for r in server.records()]
    assert users[0] == users[1] == users[2] != users[3]
    assert re.fullmatch("[0-9a-f]{16}", users[0])


def test_bots_get_ads_and_count_nowhere(tmp_path: Path) -> None:
    source = store(tmp_path, campaign("a", goal={"impressions": 1}))
    with serving(tmp_path / "state", "--source", source) as server:
        for _ in range(3):
            assert server.ask("/v1/decision?placement=side", User_Agent=BOT).status == 200
        assert server.ask("/v1/decision?placement=side", User_Agent=PHONE).status == 200
        assert server.ask("/v1/decision?placement=side", User_Agent=PHONE).status == 204
        server.stop()
    assert [r["ivt"] for r in server.records()] == [True, True, True, False, False]


def test_the_clicks_of_bots_reach_no_goal(tmp_path: Path) -> None:
    source = store(tmp_path, campaign("a", goal={"clicks": 1}))
    with serving(tmp_path / "state", "--source", source) as server:
        for agent, status in ((BOT, 200), (PHONE, 204)):
            decision = server.ask("/v1/decision?placement=side", User_Agent=PHONE).json()
            assert server.ask(decision["click_url"], User_Agent=agent).status == 302
            assert server.ask("/v1/decision?placement=side", User_Agent=PHONE).status == status
        server.stop()
    assert [r["ivt"] for r in server.records() if r["type"] == "click"] == [True, False]


def test_a_repeated_click_is_redirected_and_counted_once(tmp_path: Path) -> None:
    source = store(tmp_path, campaign("a"))
    with serving(tmp_path / "state", "--source", source) as server:
        decision = server.ask("/v1/decision?placement=side").json()
        for _ in range(5):
            assert server.ask(decision["click_url"]).status == 302
            assert server.ask(decision["view_url"]).status == 204
        assert server.ask(decision["click_url"], "HEAD").status == 302
        assert server.status()["delivery"]["clicks_repeated"] == 4
        server.stop()
    assert Counter(r["type"] for r in server.records()) == {"impression": 1, "click": 1, "view": 1}


def test_a_token_that_is_not_ours_is_refused_without_a_record(tmp_path: Path) -> None:
    source = store(tmp_path, campaign("a"))
    with serving(tmp_path / "state", "--source", source) as server:
        decision = server.ask("/v1/decision?placement=side").json()
        token = decision["click_url"].partition("=")[2]
        for at in range(len(token)):
            flipped = token[:at] + ("A" if token[at] != "A" else "B") + token[at + 1 :]
            answer = server.ask(f"/v1/click?t={flipped}")
            assert (answer.status, answer.headers["Location"]) == (400, None), flipped
        for target in (
            "/v1/click",
            "/v1/click?t=",
            "/v1/click?t=" + token + "&t=x&url=https://evil.example",
        ):
            answer = server.ask(target)
            assert answer.headers["Location"] in (
                None,
                f"https://shop.example.net/?c={decision['impression_id']}",
            )
        server.stop()
    assert Counter(r["type"] for r in server.records()) == {"impression": 1, "click": 1}


def test_clicks_on_an_ad_that_was_paused_meanwhile_still_arrive(tmp_path: Path) -> None:
    source = store(tmp_path, campaign("a"), campaign("b", priority="house"))
    with serving(tmp_path / "state", "--source", source, "--refresh", "0.5") as server:
        decision = server.ask("/v1/decision?placement=side").json()
        apply(source, campaign("a", status="paused"), campaign("b", priority="house"))
        wait_for(lambda: server.ask("/v1/decision?placement=side").json()["campaign"] == "b")
        assert server.ask(decision["click_url"]).status == 302
        server.stop()


def test_clicks_on_an_ad_that_was_removed_meanwhile_still_arrive(tmp_path: Path) -> None:
    source = store(tmp_path, campaign("a"), campaign("b", priority="house"))
    with serving(tmp_path / "state", "--source", source, "--refresh", "0.5") as server:
        decision = server.ask("/v1/decision?placement=side").json()
        apply(source, campaign("b", priority="house"))
        wait_for(lambda: server.ask("/v1/decision?placement=side").json()["campaign"] == "b")
        assert server.ask(decision["click_url"]).headers["Location"].startswith("https://shop.example.net/")
        assert server.ask(decision["view_url"]).status == 204
        server.stop()


def test_a_table_that_lost_most_of_its_creatives_must_repeat_or_be_confirmed(tmp_path: Path) -> None:
    import sqlite3

    source = store(tmp_path, campaign("a"), campaign("b"), campaign("c"), campaign("d", priority="house"))
    with serving(tmp_path / "state", "--source", source, "--refresh", "1") as server:
        with sqlite3.connect(tmp_path / "ads.db") as by_hand:
            by_hand.execute("DELETE FROM creatives WHERE id IN ('a-1', 'b-1', 'c-1')")
        by_hand.close()
        wait_for(lambda: server.status()["refresh"]["refused"])
        assert server.status()["table"]["creatives"] == 4
        wait_for(lambda: server.status()["table"]["creatives"] == 1)
        assert server.status()["refresh"]["refused"] is None
        server.stop()


def test_a_change_is_served_and_a_bad_row_is_named(tmp_path: Path) -> None:
    import sqlite3

    source = store(tmp_path, campaign("a"), campaign("b", priority="house"))
    with serving(tmp_path / "state", "--source", source, "--refresh", "0.5") as server:
        revision = server.status()["table"]["revision"]
        with sqlite3.connect(tmp_path / "ads.db") as by_hand:
            by_hand.execute("UPDATE creatives SET landing_url = 'javascript:alert(1)' WHERE id = 'a-1'")
        by_hand.close()
        wait_for(lambda: server.status()["table"]["revision"] > revision)
        (row,) = server.status()["table"]["rejected"]
        assert "a-1" in row
        assert "landing_url" in row
        assert server.ask("/v1/decision?placement=side").json()["campaign"] == "b"
        server.stop()


def test_a_frame_is_a_document_with_its_policy(tmp_path: Path) -> None:
    html = text_creative("h-1", format="html", data=None, html="<script>document.title='theirs'</script>")
    source = store(tmp_path, campaign("a"), campaign("h", creatives=[html], targeting={"placements": ["foot"]}))
    with serving(tmp_path / "state", "--source", source) as server:
        frame = server.ask("/v1/frame?placement=side")
        assert frame.headers["Content-Type"] == "text/html; charset=utf-8"
        assert "default-src 'none'" in frame.headers["Content-Security-Policy"]
        assert b"Buy one" in frame.body
        policies = set()
        for _ in range(40):
            policies.add(server.ask("/v1/frame?placement=foot").headers["Content-Security-Policy"])
        assert any("sandbox allow-scripts" in policy for policy in policies)
        empty = server.ask("/v1/frame?placement=top")
        assert (empty.status, empty.headers["X-No-Ad"]) == (200, "no_campaigns")
        assert server.ask("/v1/frame?placement=a,b").status == 400
        tag = server.ask("/v1/tag.js")
        assert tag.headers["Content-Type"].startswith("text/javascript")
        server.stop()


def test_usr1_reopens_the_log_and_every_record_is_in_one_file(tmp_path: Path) -> None:
    source = store(tmp_path, campaign("a"))
    with serving(tmp_path / "state", "--source", source, "--log-format", "json") as server:
        ids = []
        renamed = []
        for round_ in range(3):
            ids += [server.ask("/v1/decision?placement=side").json()["impression_id"] for _ in range(20)]
            renamed.append(server.log.rename(tmp_path / f"delivery.log.{round_}"))
            server.signal(signal.SIGUSR1)
            wait_for(lambda: server.log.exists())
        assert server.stop() == 0
    logged = [r["id"] for r in server.records(*renamed, server.log)]
    assert sorted(logged) == sorted(ids)


def test_a_full_disk_fails_no_request_and_every_lost_record_is_counted(tmp_path: Path) -> None:
    source = store(tmp_path, campaign("a"))
    args = ["--source", source, "--log", "/dev/full", "--log-queue-bytes", "4096"]
    with serving(tmp_path / "state", *args) as server:
        for _ in range(50):
            assert server.ask("/v1/decision?placement=side").status == 200
        # The first write is tried when records had the time to gather.
        wait_for(lambda: server.status()["log"]["last_error"] is not None)
        log = server.status()["log"]
        assert 0 < log["waiting_bytes"] <= log["waiting_bytes_max"] == 4096
        assert log["waiting"] + log["dropped"]["impression"] == 50
        assert log["last_error"] == "No space left on device"
        server.signal(signal.SIGINT)
        assert server.process.wait(20) == 0
        assert (
            f"{log['waiting']} records could not be written to /dev/full and wait for the next start" in server.errors
        )


def test_a_second_term_does_not_wait_for_a_log_that_nobody_reads(tmp_path: Path) -> None:
    source = store(tmp_path, campaign("a"))
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    args = ["--source", source, "--log", str(tmp_path / "pipe"), "--graceful-timeout", "3600"]
    try:
        with serving(tmp_path / "state", *args) as server:
            many = "/v1/decision?n=32&placement=" + "side"
            wait_for(lambda: server.ask(many) and server.status()["log"]["waiting_bytes"] > 1 << 17)
            server.signal(signal.SIGTERM)
            wait_for(lambda: not (server.state / "ad.sock").exists())
            assert server.process.poll() is None
            server.signal(signal.SIGTERM)
            assert server.process.wait(20) == 0
            assert "records could not be written" in server.errors
    finally:
        os.close(reader)


def test_a_damaged_store_of_our_own_does_not_hide_the_last_good_table(tmp_path: Path) -> None:
    with serving(tmp_path / "state") as server:
        assert server.stop() == 0
    for path in tmp_path.glob("state/adcore.db*"):
        path.unlink()
    (tmp_path / "state/adcore.db").write_bytes(b"this is no database" * 1000)
    with serving(tmp_path / "state") as server:
        assert server.ask("/v1/decision?placement=top").status == 200
        assert "not a database" in server.errors
        assert server.status()["refresh"]["loads"] == {"disk": 1}
        server.stop()


def test_a_hup_that_is_refused_changes_nothing_at_all(tmp_path: Path) -> None:
    source = store(tmp_path, campaign("a", targeting={"hours": list(range(24))}, daily_cap={"impressions": 10**9}))
    file, database = tmp_path / "adcore.toml", tmp_path / "geo.mmdb"
    file.write_text('time_zone = "Asia/Tokyo"\n')
    with serving(tmp_path / "state", "--source", source, "--config", str(file)) as server:
        hour = server.ask("/v1/decision?placement=side") and server.log
        wait_for(lambda: hour.stat().st_size > 0)
        database.write_bytes(b"no such thing")
        file.write_text(f'time_zone = "America/New_York"\ngeoip_file = "{database}"\n')
        server.signal(signal.SIGHUP)
        wait_for(lambda: "the old configuration stays" in server.errors)
        server.ask("/v1/decision?placement=side")
        file.write_text('time_zone = "America/New_York"\n')
        server.signal(signal.SIGHUP)
        wait_for(lambda: "the configuration was read again" in server.errors)
        server.ask("/v1/decision?placement=side")
        server.stop()
    hours = [record["hour"] for record in server.records()]
    # Tokyo is 13 or 14 hours ahead of New York; the clock may have struck between the requests.
    assert (hours[1] - hours[0]) % 24 in (0, 1)
    assert (hours[1] - hours[2]) % 24 in (12, 13, 14)


def test_hup_reads_configuration_again_and_keeps_the_old_on_an_error(tmp_path: Path) -> None:
    source = store(tmp_path, campaign("a"))
    file = tmp_path / "adcore.toml"
    file.write_text('public_url = "https://ads.example.net"\n')
    with serving(tmp_path / "state", "--source", source, "--config", str(file)) as server:

        def click_url() -> str:
            url: str = server.ask("/v1/decision?placement=side").json()["click_url"]
            return url

        assert click_url().startswith("https://ads.example.net/v1/click")
        file.write_text('public_url = "ftp://nowhere"\n')
        server.signal(signal.SIGHUP)
        wait_for(lambda: "public_url" in server.errors)
        assert click_url().startswith("https://ads.example.net/v1/click")
        file.write_text('public_url = "https://other.example.net/"\n')
        server.signal(signal.SIGHUP)
        wait_for(lambda: click_url().startswith("https://other.example.net/v1/click"))
        assert server.ask(urlsplit(click_url())._replace(scheme="", netloc="").geturl()).status == 302
        server.stop()


def test_term_finishes_what_is_under_way(tmp_path: Path) -> None:
    source = store(tmp_path, campaign("a"))
    with serving(tmp_path / "state", "--source", source) as server:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(20)
            client.connect(str(server.state / "ad.sock"))
            client.sendall(b"GET /v1/decision?placement=side HTTP/1.1\r\n")
            assert server.ask("/ping").status == 200  # so the first line has arrived
            server.signal(signal.SIGTERM)
            wait_for(lambda: not (server.state / "ad.sock").exists())
            client.sendall(b"Host: a\r\n\r\n")
            answer = b"".join(iter(lambda: client.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"\r\nConnection: close\r\n" in answer
        assert server.process.wait(20) == 0
    assert len(server.records()) == 1


@pytest.mark.parametrize(
    "signals", [(signal.SIGTERM, signal.SIGTERM), (signal.SIGTERM, signal.SIGINT), (signal.SIGINT,)], ids=str
)
def test_a_second_term_or_an_int_waits_for_nobody(tmp_path: Path, signals: tuple[signal.Signals, ...]) -> None:
    source = store(tmp_path, campaign("a"))
    # Longer than the test's patience, so that only the signals can end it in time.
    with (
        serving(tmp_path / "state", "--source", source, "--graceful-timeout", "3600") as server,
        socket.socket(socket.AF_UNIX) as client,
    ):
        client.connect(str(server.state / "ad.sock"))
        client.sendall(b"GET /v1/decision?placement=side HTTP/1.1\r\n")
        assert server.ask("/v1/decision?placement=side").status == 200
        server.signal(signals[0])
        wait_for(lambda: not (server.state / "ad.sock").exists())
        for number in signals[1:]:
            assert server.process.poll() is None
            server.signal(number)
        assert server.process.wait(20) == 0
    assert len(server.records()) == 1


def test_the_graceful_timeout_ends_the_wait_for_a_request_that_never_comes(tmp_path: Path) -> None:
    source = store(tmp_path, campaign("a"))
    with (
        serving(tmp_path / "state", "--source", source, "--graceful-timeout", "0.2") as server,
        socket.socket(socket.AF_UNIX) as client,
    ):
        client.connect(str(server.state / "ad.sock"))
        client.sendall(b"GET /v1/decision?placement=side HTTP/1.1\r\n")
        assert server.ask("/ping").status == 200
        assert server.stop() == 0


@pytest.mark.parametrize("control", [False, True])
def test_explain_lists_every_campaign(tmp_path: Path, control: bool) -> None:
    source = store(
        tmp_path,
        campaign("a", weight=3),
        campaign("b"),
        campaign("c", targeting={"devices": ["mobile"], "countries": ["JP"]}),
        campaign("d", priority="house"),
    )
    with serving(tmp_path / "state", "--source", source) as server:
        where = ["--control", server.control] if control else ["--source", source]
        shown = adctl("explain", *where, "--json", "placement=side", "device=desktop")
        assert shown.returncode == 0, shown.stderr
        candidates = {c["campaign"]: c for c in json.loads(shown.stdout)["candidates"]}
        assert candidates["a"]["chance"] == 0.75
        assert candidates["c"]["reasons"] == ["device", "country"]
        assert candidates["d"]["reasons"] == ["lower_priority"]
        text = adctl("explain", *where, "placement=side,top", "device=desktop")
        assert "75.00%" in text.stdout
        assert "top: no ad: no_campaigns" in text.stdout
        for argument in (
            "placement",
            "place=side",
            "placement=side device=fridge",
            "placement=side time=noon",
        ):
            wrong = adctl("explain", *where, *argument.split())
            assert wrong.returncode == 2, argument
            assert wrong.stderr
        server.stop()
    assert server.records() == []


def test_a_newcomer_gets_the_sample_inventory(tmp_path: Path) -> None:
    with serving(tmp_path / "state") as server:
        assert "sample inventory" in server.errors
        assert server.ask("/v1/decision?placement=top").status == 200
        server.stop()
    with serving(tmp_path / "state") as server:
        assert server.errors.count("sample inventory") == 1
        server.stop()
    assert (ROOT / "adcore/sample_inventory.json").exists()


NO_BACKENDS = ("--backend-peers", "unix,10.0.0.0/8")


def test_untrusted_peers_cannot_say_who_they_are(tmp_path: Path) -> None:
    source = store(tmp_path, campaign("a", targeting={"countries": ["JP"]}))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    claims = {"X_Country": "JP", "X_Real_IP": "198.51.100.7", "X_Forwarded_For": "198.51.100.8"}
    for trusted, status in (([], 204), (["--trusted-peers", "127.0.0.0/8"], 200)):
        # Who proxies for visitors is not who describes them.
        server = Adcore(tmp_path / f"state{status}", "--source", source, "--port", str(port), *trusted, *NO_BACKENDS)
        server.address = f"127.0.0.1:{port}"
        try:
            server.wait_until_ready()
            assert ask(server.address, "/v1/decision?placement=side", "GET", None, **claims).status == status
            body = json.dumps({"placement": "side", "visitor": {"country": "JP"}}).encode()
            described = server.ask("/v1/decision", "POST", body)
            assert described.status == 403
            assert "--backend-peers" in described.json()["error"]
            assert server.stop() == 0
        finally:
            server.process.kill()
            server.process.wait()
        assert server.records()[0]["ip"] == ("198.51.100.0" if status == 200 else "127.0.0.0")


def test_pages_of_allowed_origins_may_read_answers(tmp_path: Path) -> None:
    source = store(tmp_path, campaign("a"))
    page = "https://www.example.com"
    with serving(tmp_path / "state", "--source", source, "--cors-origins", page) as server:
        allowed = server.ask("/v1/decision?placement=side", Origin=page)
        assert allowed.headers["Access-Control-Allow-Origin"] == page
        assert allowed.headers["Access-Control-Allow-Credentials"] == "true"
        other = server.ask("/v1/decision?placement=side", Origin="https://evil.example")
        assert other.headers["Access-Control-Allow-Origin"] is None
        server.stop()


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/status", 404),
        ("GET", "/explain?placement=side", 404),
        ("PUT", "/v1/decision", 405),
        ("POST", "/v1/click", 405),
        ("GET", "/v1/decision", 400),
        ("POST", "/v1/decision", 400),
        ("HEAD", "/v1/decision?placement=side", 200),
        ("HEAD", "/ping", 200),
    ],
)
def test_statuses(tmp_path: Path, method: str, target: str, status: int) -> None:
    source = store(tmp_path, campaign("a"))
    with serving(tmp_path / "state", "--source", source) as server:
        body = b"" if method in ("PUT", "POST") else None
        answer = server.ask(target, method, body)
        assert answer.status == status
        if status >= 400:
            assert "error" in answer.json()
        if status == 405:
            assert answer.headers["Allow"]
        server.stop()
    assert server.records() == []


def test_the_control_listener_tells_operators_and_nobody_else(tmp_path: Path) -> None:
    source = store(tmp_path, campaign("a"))
    with serving(tmp_path / "state", "--source", source) as server:
        server.ask("/v1/decision?placement=side")
        status = server.status()
        assert status["delivery"]["requests"]["decision"] == {"200": 1}
        assert status["delivery"]["filled"] == {"side": 1}
        assert status["table"]["campaigns"] == 1
        assert status["process"]["pid"] == server.process.pid
        assert ask(server.control, "/version").json() == status["version"]
        assert ask(server.control, "/ping").body == b"ok\n"
        assert ask(server.control, "/status", "HEAD").body == b""
        missing = ask(server.control, "/v1/decision?placement=side")
        assert (missing.status, "/status" in missing.json()["error"]) == (404, True)
        posted = ask(server.control, "/status", "POST", b"")
        assert (posted.status, posted.headers["Allow"]) == (405, "GET, HEAD")
        assert ask(server.control, "/explain?placement=side&device=fridge").status == 400
        server.stop()


@pytest.mark.parametrize(
    ("headers", "ip"),
    [
        ({"X_Forwarded_For": "198.51.100.9"}, "198.51.100.0"),
        ({"X_Forwarded_For": "203.0.113.9, 198.51.100.9, 10.1.2.3"}, "198.51.100.0"),
        ({"X_Forwarded_For": "203.0.113.9, not an address"}, ""),
        ({"X_Forwarded_For": "203.0.113.9", "X_Real_IP": "2001:db8:1:2::3"}, "2001:db8:1::"),
        ({}, ""),
    ],
)
def test_behind_proxies_the_address_is_the_nearest_that_is_not_one(
    tmp_path: Path, headers: dict[str, str], ip: str
) -> None:
    source = store(tmp_path, campaign("a"))
    with serving(tmp_path / "state", "--source", source, "--trusted-peers", "10.0.0.0/8") as server:
        assert ask(server.address, "/v1/decision?placement=side", "GET", None, **headers).status == 200
        server.stop()
    assert [record["ip"] for record in server.records()] == [ip]


def test_the_link_of_an_ad_that_leads_nowhere_says_so(tmp_path: Path) -> None:
    html = text_creative("a-1", format="html", html="<b>Hello</b>", data=None, landing_url=None)
    source = store(tmp_path, campaign("a", creatives=[html]))
    with serving(tmp_path / "state", "--source", source) as server:
        decision = server.ask("/v1/decision?placement=side").json()
        assert server.ask(decision["click_url"]).status == 404
        assert server.ask(decision["view_url"]).status == 204
        server.stop()
    assert [record["type"] for record in server.records()] == ["impression", "view"]


def test_an_address_in_use_is_refused_and_the_other_server_goes_on(tmp_path: Path) -> None:
    source = store(tmp_path, campaign("a"))
    with serving(tmp_path / "one", "--source", source) as server:
        other = Adcore(tmp_path / "two", "--source", source, "--unix", f"{tmp_path}/one/ad.sock")
        assert other.process.wait(20) == 3
        assert f"{tmp_path}/one/ad.sock" in other.errors
        assert server.ask("/v1/decision?placement=side").status == 200
        assert ask(server.address, "/ping").status == 200
        server.stop()
