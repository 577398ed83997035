"""Who speaks to whom: no address that an editor or a visitor chooses is ever connected to."""

import ast
import json
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.inventories import campaign, document
from tests.process import adctl, serving, wait_for
from tests.test_imports import FILES, imports, within

# What opens connections, and the modules that may import it: each to an address of its own settings or flags.
CLIENTS = {
    "http.client": {"adtools.control", "adtools.doctor"},  # --control; --unix of this host
    "boto3": {"adtools.admin.imagestore"},  # --s3-endpoint
    "MySQLdb": {"adcore.sources.mysql"},  # --source
    "pymemcache": {"adcore.sources.memcached"},  # --memcached
}
NEVER = ("urllib.request", "ftplib", "smtplib", "xmlrpc", "webbrowser", "requests", "urllib3", "httpx", "aiohttp")
# Calls that connect, where they may be.
CONNECTS = {
    "adcore.listen",  # is a server behind this socket file
    "adcore.notify",  # systemd
    "adcore.control.workers",  # the parent's own workers
    "adcore.sources.sqlite",  # a file
    "adcore.sources.mysql",
    "adcore.sources.memcached",  # --memcached
    "adtools.admin.apps",  # Django's signals, which are no network
    "adtools.circus",
    "adtools.control",
    "adtools.doctor",
    "adtools.forward",  # --to
}
CALLS = {"connect", "connect_ex", "create_connection", "open_connection", "open_unix_connection", "sendto", "urlopen"}


@pytest.mark.parametrize("client", [*CLIENTS, *NEVER])
def test_only_those_that_are_told_where_to_connect_have_a_client(client: str) -> None:
    importers = {module for module in FILES if any(within(name, client) for name in imports(module))}
    assert importers == CLIENTS.get(client, set())


def test_nothing_else_connects() -> None:
    found = {
        module
        for module, path in FILES.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CALLS
    }
    assert found <= CONNECTS


def test_an_inventory_full_of_urls_makes_nothing_connect(tmp_path: Path) -> None:
    """Booked, served, seen, clicked, explained, simulated and reported: the addresses stay unvisited."""
    with socket.create_server(("127.0.0.1", 0)) as trap:
        came: list[Any] = []
        watching = threading.Thread(target=lambda: came.extend(iter(lambda: trap.accept()[1], None)), daemon=True)
        watching.start()
        url = f"http://127.0.0.1:{trap.getsockname()[1]}/latest/meta-data"
        common = {"placement_size": [300, 250], "landing_url": f"{url}?c={{click_id}}"}
        booked = campaign(
            "a",
            creatives=[
                {"id": "a-image", "format": "image", "image_url": url, "alt": "x", **common},
                {"id": "a-html", "format": "html", "html": f'<img src="{url}"><script src="{url}"></script>', **common},
                {"id": "a-native", "format": "native", "data": {"icon": url}, **common},
            ],
        )
        store = f"sqlite:///{tmp_path}/ads.db"
        file = tmp_path / "ads.json"
        file.write_text(json.dumps(document(booked)))
        assert adctl("apply", "--source", store, str(file)).returncode == 0
        with serving(tmp_path / "state", "--source", store) as server:
            for n in range(20):
                headers = {"Referer": url, "Origin": url, "X_Forwarded_Host": url, "X_Real_IP": "127.0.0.1"}
                target = f"/v1/decision?placement=side&kv.url={url}&n={n % 3 + 1}"
                decision = server.ask(target, "GET", None, **headers).json()
                for one in decision["decisions"]:
                    assert server.ask(one["view_url"]).status == 204
                    assert server.ask(one["click_url"]).headers["Location"].startswith(url)
                assert server.ask("/v1/frame?placement=side").status == 200
            assert adctl("explain", "--control", server.control, "placement=side").returncode == 0
            wait_for(lambda: not server.status()["log"]["waiting"])
            log = str(server.log)
            assert server.stop() == 0
        for command in (
            ("export", "--source", store),
            ("collect", "--source", store, log),
            ("report", "--source", store, "--format", "html", "--by", "creative"),
            ("replay", "--archive", str(tmp_path / "state" / "tables"), log),
            ("simulate", "--inventory", str(file), "--requests", "50", "--no-bound"),
            ("doctor", "--source", store),
        ):
            done = adctl(*command, ADCORE_STATE_DIR=str(tmp_path / "state"))
            assert done.returncode in ((0, 1) if command[0] == "doctor" else (0,)), (command, done.stderr)
        assert came == []
