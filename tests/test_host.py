"""A whole host: MariaDB, memcached, two workers, nginx over the unix socket."""

import json
from pathlib import Path
from typing import Any

from tests import services
from tests.inventories import campaign, document
from tests.process import adctl, ask, serving, wait_for


def apply(url: str, *campaigns: dict[str, Any]) -> None:
    applied = adctl("apply", "--source", url, "-", stdin=json.dumps(document(*campaigns)))
    assert applied.returncode == 0, applied.stderr


def test_one_requests_life_behind_nginx(tmp_path: Path, mariadb: services.MariaDB, memcached: services.Service) -> None:
    url = mariadb.create("life")
    missing = adctl("apply", "--source", url, "-", stdin=json.dumps(document(campaign("spring"))))
    assert missing.returncode == 1
    assert "adctl migrate" in missing.stderr
    migrated = adctl("migrate", "--source", url)
    assert "0001_inventory" in migrated.stdout, migrated.stderr
    apply(url, campaign("spring"))
    args = ["--source", url, "--memcached", f"unix:{memcached.path}", "--memcached-prefix", "life:"]
    with (
        serving(tmp_path / "state", *args) as server,
        services.nginx(tmp_path / "nginx", tmp_path / "state" / "ad.sock", countries="default JP;") as front,
    ):
        address = f"unix:{front.path}"
        decision = ask(address, "/v1/decision?placement=side").json()
        assert decision["campaign"] == "spring"
        assert ask(address, decision["view_url"]).status == 204
        click = ask(address, decision["click_url"])
        assert click.status == 302
        assert click.headers["Location"] == f"https://shop.example.net/?c={decision['impression_id']}"
        assert server.stop() == 0
        records = server.records()
    assert [r["type"] for r in records] == ["impression", "view", "click"]
    assert {r["id"] for r in records} == {decision["impression_id"]}
    assert {r["country"] for r in records} == {"JP"}


def test_a_change_reaches_every_worker_within_an_interval_and_a_second(
    tmp_path: Path, mariadb: services.MariaDB, memcached: services.Service
) -> None:
    url = mariadb.create("fresh")
    assert adctl("migrate", "--source", url).returncode == 0
    apply(url, campaign("old"))
    args = ["--source", url, "--memcached", f"unix:{memcached.path}", "--memcached-prefix", "fresh:", "--refresh", "1"]
    args += ["--secret-file", f"{tmp_path}/secret"]
    with serving(tmp_path / "a", *args) as one, serving(tmp_path / "b", *args) as two:
        for name in ("first", "second", "third"):
            apply(url, campaign(name))
            # One look may have been under way when the change was made; the next one must find it.
            after_next = [(server, server.status()["refresh"]["looks"] + 2) for server in (one, two)]
            for server, looks in after_next:
                wait_for(lambda s=server, n=looks: s.status()["refresh"]["looks"] >= n)
                assert server.ask("/v1/decision?placement=side").json()["campaign"] == name
        loads = [server.status()["refresh"]["loads"] for server in (one, two)]
        assert sum(load.get("snapshot", 0) for load in loads) >= 3, loads
        one.stop()
        two.stop()


def test_stores_that_go_away_are_gone_around(tmp_path: Path) -> None:
    folder = tmp_path / "stores"
    folder.mkdir()
    with services.mariadb(folder) as database, services.memcached(folder) as cache:
        url = database.create("ads")
        assert adctl("migrate", "--source", url).returncode == 0
        apply(url, campaign("a"))
        args = ["--source", url, "--memcached", f"unix:{cache.path}", "--refresh", "0.5"]
        args += ["--secret-file", f"{tmp_path}/secret"]

        def shows(server: Any, name: str) -> bool:
            return bool(server.ask("/v1/decision?placement=side").json()["campaign"] == name)

        def health(server: Any) -> list[bool]:
            return [source["ok"] for source in server.status()["refresh"]["sources"]]

        with serving(tmp_path / "state", *args) as server:
            # memcached away: MySQL directly.
            cache.kill()
            apply(url, campaign("b"))
            wait_for(lambda: shows(server, "b"))
            cache.start()
            apply(url, campaign("c"))
            wait_for(lambda: shows(server, "c"))
            # MySQL away: a new process takes the snapshot, which another one made.
            database.kill()
            with serving(tmp_path / "other", *args) as other:
                assert shows(other, "c")
                assert other.status()["refresh"]["loads"] == {"snapshot": 1}
                other.stop()
            # Both away: the table in memory, and after a restart the disk.
            cache.kill()
            wait_for(lambda: health(server)[:2] == [False, False])
            assert shows(server, "c")
            assert server.stop() == 0
        with serving(tmp_path / "state", *args) as server:
            assert shows(server, "c")
            assert server.status()["refresh"]["loads"] == {"disk": 1}
            # Back again.
            database.start()
            apply(url, campaign("d"))
            wait_for(lambda: shows(server, "d"))
            server.stop()
