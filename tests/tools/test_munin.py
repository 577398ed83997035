"""`adctl munin`, by itself and run by a real munin-node."""

import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from adtools import cli
from adtools.munin import GRAPHS
from tests.inventories import campaign, document
from tests.process import PATIENCE_S, ROOT, adctl, environment, serving, wait_for
from tests.services import program
from tests.tools.statuses import answering, of_workers, status

PLUGIN = ROOT / "tools" / "munin" / "adcore_"


def munin(capsys: pytest.CaptureFixture[str], *args: str) -> dict[str, str]:
    """{field: value} of what the plugin prints."""
    assert cli.main(["munin", *args]) == 0
    return dict(line.split(" ", 1) for line in capsys.readouterr().out.splitlines())


@pytest.mark.parametrize("name", GRAPHS)
def test_every_graph_has_a_value_for_each_field_that_it_configures(
    capsys: pytest.CaptureFixture[str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MUNIN_CAP_DIRTYCONFIG", raising=False)
    config = munin(capsys, f"adcore_{name}", "config")  # asks no server
    fields = {key.removesuffix(".label") for key in config if key.endswith(".label")}
    assert {"graph_title", "graph_vlabel", "graph_category"} <= set(config)
    with answering(status()) as address:
        values = munin(capsys, "--control", address, f"adcore_{name}")
        assert set(values) == {f"{field}.value" for field in fields}
        for value in values.values():
            assert value == "U" or float(value) >= 0
        monkeypatch.setenv("MUNIN_CAP_DIRTYCONFIG", "1")
        assert munin(capsys, "--control", address, f"adcore_{name}", "config") == {**config, **values}


def test_workers_are_one_host(capsys: pytest.CaptureFixture[str]) -> None:
    with answering(of_workers(status(), status(refresh={"age_s": 50.0}))) as address:
        assert munin(capsys, "--control", address, "adcore_requests")["status2xx.value"] == "1980"
        assert munin(capsys, "--control", address, "adcore_delivery")["impression.value"] == "1800"
        assert munin(capsys, "--control", address, "adcore_table") == {"age.value": "50"}
    with answering(status(log={"dropped": {"click": 2}})) as address:
        assert munin(capsys, "--control", address, "adcore_delivery")["click.value"] == "7"
        assert munin(capsys, "--control", address, "adcore_drops")["click.value"] == "2"
    with answering(of_workers(status(), status())) as address:
        assert munin(capsys, "--control", address, "adcore_cpu")["cpu.value"] == "50"
        assert munin(capsys, "--control", address, "adcore_lag")["p999.value"] == "U"
        assert munin(capsys, "--control", address, "adcore_lag")["p99.value"] == "0.001024"


def test_a_server_that_does_not_answer_is_a_gap(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nobody = f"unix:{tmp_path}/none.sock"
    assert cli.main(["munin", "--control", nobody, "adcore_table"]) == 1
    assert "no answer from" in capsys.readouterr().err
    monkeypatch.setenv("MUNIN_CAP_DIRTYCONFIG", "1")
    assert munin(capsys, "--control", nobody, "adcore_table", "config")["age.value"] == "U"
    assert cli.main(["munin", "--control", nobody, "adcore_", "autoconf"]) == 0
    assert capsys.readouterr().out.startswith("no (no answer from")
    assert cli.main(["munin", "adcore_colour"]) == 1
    assert "there is no graph 'adcore_colour'; link the plugin as one of adcore_requests," in capsys.readouterr().err


@contextmanager
def munin_node(folder: Path, control: str) -> Iterator[int]:
    """A munin-node with its configuration in `folder`, every graph linked; its port."""
    (folder / "plugins").mkdir(parents=True)
    (folder / "plugin-conf.d").mkdir()
    for name in GRAPHS:
        (folder / "plugins" / f"adcore_{name}").symlink_to(PLUGIN)
    adctl_path = folder / "adctl"
    adctl_path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m adtools "$@"\n')
    adctl_path.chmod(0o755)
    user, group = os.getuid(), os.getgid()
    (folder / "plugin-conf.d" / "adcore").write_text(
        f"[adcore_*]\nuser {user}\ngroup {group}\nenv.ADCORE_CONTROL {control}\nenv.adctl {adctl_path}\n"
        f"env.PYTHONPATH {environment()['PYTHONPATH']}\n"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    conf = folder / "munin-node.conf"
    conf.write_text(
        f"log_level 4\nlog_file {folder}/node.log\npid_file {folder}/node.pid\nbackground 0\nsetsid 0\n"
        f"user {user}\ngroup {group}\nhost 127.0.0.1\nport {port}\nallow ^127\\.0\\.0\\.1$\nhost_name ads1\n"
    )
    # munin-node looks for plugins and their configuration below a folder that is compiled in.
    elsewhere = "BEGIN { $Munin::Common::Defaults::MUNIN_CONFDIR = shift } do shift; die $@ if $@; exit main()"
    command = [
        *("perl", "-MMunin::Common::Defaults", "-e", elsewhere, str(folder)),
        *(program("munin-node", "munin-node"), "--config", str(conf), "--foreground"),
    ]
    with (folder / "out.txt").open("wb") as out:
        node = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    try:
        wait_for(lambda: _answers(node, port), lambda: (folder / "out.txt").read_text())
        yield port
    finally:
        node.kill()
        node.wait()


def _answers(node: "subprocess.Popen[bytes]", port: int) -> bool:
    assert node.poll() is None
    try:
        with socket.create_connection(("127.0.0.1", port), PATIENCE_S) as connection:
            return connection.recv(1) == b"#"
    except OSError:
        return False


def talk(port: int, *commands: str) -> list[list[str]]:
    """The lines of each answer."""
    answers = []
    with socket.create_connection(("127.0.0.1", port), PATIENCE_S) as connection, connection.makefile("rw") as node:
        assert node.readline().startswith("# munin node at ads1")
        for command in commands:
            node.write(command + "\n")
            node.flush()
            lines = [node.readline().rstrip("\n")]
            while command.split()[0] in ("config", "fetch") and lines[-1] not in ("", "."):
                lines.append(node.readline().rstrip("\n"))
            answers.append([line for line in lines if line != "."])
    return answers


def test_a_real_munin_node_draws_a_real_server(tmp_path: Path) -> None:
    source = f"sqlite:///{tmp_path}/ads.db"
    adctl("apply", "--source", source, "-", stdin=json.dumps(document(campaign("a"))))
    with serving(tmp_path / "state", "--source", source) as server:
        for _ in range(3):
            server.ask("/v1/decision?placement=side")
        with munin_node(tmp_path / "munin", server.control) as port:
            plugins, capabilities, config, dirty = talk(
                port, "list ads1", "cap dirtyconfig", "config adcore_delivery", "config adcore_table"
            )
            assert set(plugins[0].split()) == {f"adcore_{name}" for name in GRAPHS}
            assert "dirtyconfig" in capabilities[0]
            assert "impression.type DERIVE" in config
            assert "impression.value 3" in config  # the node said that it takes both at once
            assert any(line.startswith("age.value ") and "U" not in line for line in dirty)
            (plain, memory) = talk(port, "config adcore_delivery", "fetch adcore_memory")
            assert not [line for line in plain if ".value" in line]
            assert any(line.startswith("resident.value ") and float(line.split()[1]) > 1e6 for line in memory)
            for name in GRAPHS:
                (values,) = talk(port, f"fetch adcore_{name}")
                assert len(values) == len(GRAPHS[name].fields), values
        server.stop()


def test_munin_node_configure_may_ask_which_graphs_there_are(tmp_path: Path) -> None:
    assert stat.S_IMODE(PLUGIN.stat().st_mode) == 0o755
    text = PLUGIN.read_text()
    assert "#%# family=auto" in text
    assert "#%# capabilities=autoconf suggest" in text
    suggested = adctl("munin", "adcore_", "suggest").stdout.split()
    assert suggested == list(GRAPHS)
