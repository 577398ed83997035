"""A server whose store is poisoned by hand goes on, and says what it leaves out."""

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.inventories import campaign, document
from tests.process import Adcore, adctl, serving, wait_for
from tests.services import MariaDB

ASK = "/v1/decision?placement=side"
HUGE = {
    "sqlite": "UPDATE creatives SET html = hex(zeroblob(5242880)), format = 'html' WHERE id = 'a-1'",
    "mysql": "UPDATE creatives SET html = REPEAT('x', 10485760), format = 'html' WHERE id = 'a-1'",
}
SCRIPT = "UPDATE creatives SET landing_url = 'javascript:alert(1)' WHERE id = 'a-1'"


def apply(url: str, *campaigns: dict[str, Any]) -> None:
    applied = adctl("apply", "--source", url, "-", stdin=json.dumps(document(*campaigns)))
    assert applied.returncode == 0, applied.stderr


@pytest.fixture(params=["sqlite", "mysql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str, Callable[[str], None]]:
    """Its kind and URL, and what runs a statement by other hands than ours."""
    kind: str = request.param
    if kind == "mysql":
        mariadb: MariaDB = request.getfixturevalue("mariadb")
        url = mariadb.create("poison")
        assert adctl("migrate", "--source", url).returncode == 0
        return kind, url, lambda statement: mariadb.sql(statement, "poison")

    def run(statement: str) -> None:
        connection = sqlite3.connect(tmp_path / "ads.db")
        connection.execute(statement)
        connection.commit()
        connection.close()

    return kind, f"sqlite://{tmp_path}/ads.db", run


def shown(server: Adcore) -> str | None:
    answer = server.ask(ASK)
    return str(answer.json()["campaign"]) if answer.status == 200 else None


def test_poison_is_named_and_the_rest_is_served(tmp_path: Path, store: tuple[str, str, Callable[[str], None]]) -> None:
    kind, url, run = store
    apply(url, campaign("a", priority="sponsorship"), campaign("b"), campaign("c"))
    with serving(tmp_path / "state", "--source", url, "--refresh", "0.2") as server:
        for field, statement in (("landing_url", SCRIPT), ("html", HUGE[kind])):
            apply(url, campaign("a", priority="sponsorship"), campaign("b"), campaign("c"))
            wait_for(lambda: shown(server) == "a", lambda: server.errors)
            run(statement)
            wait_for(lambda: shown(server) in ("b", "c"), lambda: server.errors)
            rejected = server.status()["table"]["rejected"]
            assert any(field in problem and "a-1" in problem for problem in rejected), rejected
        assert max(map(len, server.errors.splitlines())) < 2000  # not the ten megabytes
        assert server.stop() == 0


def test_an_emptied_table_is_doubted_once_and_then_served(
    tmp_path: Path, store: tuple[str, str, Callable[[str], None]]
) -> None:
    _, url, run = store
    apply(url, campaign("a"))
    with serving(tmp_path / "state", "--source", url, "--refresh", "0.2") as server:
        run("DELETE FROM creatives")
        wait_for(lambda: shown(server) is None, lambda: server.errors)
        assert "it is taken if the next look finds it unchanged" in server.errors
        apply(url, campaign("a"))
        wait_for(lambda: shown(server) == "a", lambda: server.errors)
        assert server.stop() == 0


def test_ten_thousand_campaigns_on_one_placement_are_served(tmp_path: Path) -> None:
    url = f"sqlite://{tmp_path}/ads.db"
    apply(url, *(campaign(f"c{n}") for n in range(10_000)))
    with serving(tmp_path / "state", "--source", url) as server:
        wait_for(lambda: server.status()["table"]["campaigns"] == 10_000, lambda: server.errors)
        assert len({shown(server) for _ in range(20)} - {None}) > 10
        page = server.ask(f"{ASK}&n=5").json()["decisions"]
        assert len({one["campaign"] for one in page}) == 5
        assert server.stop() == 0
