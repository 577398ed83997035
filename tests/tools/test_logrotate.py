"""tools/logrotate/adcore, run by the real logrotate while the server is under load."""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.logrotate import Logrotate
from tests.process import Adcore, Connection, serving, wait_for


def ask_numbered(server: Adcore, first: int, count: int) -> None:
    connection = Connection(server.address)
    for number in range(first, first + count):
        connection.request("GET", f"/v1/decision?placement=top&kv.n={number}")
        response = connection.getresponse()
        response.read()
        assert response.status == 200
    connection.close()


@pytest.mark.parametrize("form", ["msgpack", "json"])
def test_every_record_is_there_once_over_all_files(tmp_path: Path, form: str) -> None:
    rotations, clients, each = 6, 2, 300
    asking: list[Future[None]] = []
    with (
        serving(tmp_path / "state", "--log-format", form, "--pid-file", f"{tmp_path}/1.pid") as server,
        ThreadPoolExecutor(clients) as pool,
    ):
        logrotate = Logrotate(tmp_path / "logrotate", server.log, f"{tmp_path}/*.pid")
        for rotation in range(rotations):
            asking += [
                pool.submit(ask_numbered, server, (rotation * clients + client) * each, each)
                for client in range(clients)
            ]
            wait_for(lambda: server.log.exists() and server.log.stat().st_size)
            logrotate.rotate()
        for one in asking:
            one.result()
        wait_for(lambda: server.status()["log"]["reopens"] == rotations)
        assert server.stop() == 0
        logs = sorted(tmp_path.glob("state/delivery.log*"))
        assert [path.name for path in logs] == [
            *("delivery.log", "delivery.log.1"),
            *(f"delivery.log.{number}.gz" for number in range(2, rotations + 1)),
        ]
        found = Counter(int(dict(record["key_values"])["n"]) for record in server.records(*logs))
    assert found == Counter(range(rotations * clients * each))
    assert all(path.stat().st_mode & 0o777 == 0o640 for path in logs)


def test_an_empty_log_and_a_missing_one_are_left_alone(tmp_path: Path) -> None:
    log = tmp_path / "delivery.log"
    logrotate = Logrotate(tmp_path / "logrotate", log, f"{tmp_path}/*.pid")
    logrotate.rotate()
    assert not log.exists()
    log.touch()
    logrotate.rotate()
    assert not log.with_name("delivery.log.1").exists()


def test_a_pid_file_that_was_left_behind_kills_nobody(tmp_path: Path) -> None:
    log = tmp_path / "delivery.log"
    logrotate = Logrotate(tmp_path / "logrotate", log, f"{tmp_path}/*.pid")
    # Another program has the number by now, and USR1 would end it.
    with subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE) as bystander:
        (tmp_path / "1.pid").write_text(f"{bystander.pid}\n")
        (tmp_path / "2.pid").touch()
        log.write_text("x")
        logrotate.rotate()
        assert log.with_name("delivery.log.1").exists()
        assert bystander.stdin is not None
        bystander.stdin.close()
        bystander.wait(60)
        assert bystander.returncode != -signal.SIGUSR1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root rotates for another user")
def test_the_servers_user_cannot_have_root_signal_or_move_what_is_not_theirs(tmp_path: Path) -> None:
    """Who owns the folder of the log can put links there, and any number into a pid file whose lock they hold."""
    with (
        tempfile.TemporaryDirectory() as name,
        subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE) as bystander,
    ):
        folder = Path(name)
        log, pid_file = folder / "delivery.log", folder / "1.pid"
        log.write_text("x")
        pid_file.write_text(f"{bystander.pid}\n")
        for path in (folder, log, pid_file):
            shutil.chown(path, "nobody", "nogroup")
        with pid_file.open() as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            said = Logrotate(tmp_path / "logrotate", log, f"{folder}/*.pid", user="nobody").rotate(check=False)
        assert bystander.stdin is not None
        bystander.stdin.close()
        bystander.wait(60)
        assert log.with_name("delivery.log.1").read_text() == "x"
    assert bystander.returncode == 0
    assert "Operation not permitted" in said
    assert "switching euid from 0 to 65534" in said
