"""The units in systemd/, as systemd sees them, and workers that are replaced on the socket that it holds."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import services
from tests.load import WRONG, Load, read_log
from tests.manager import NotifySocket, managing
from tests.process import PATIENCE_S, ROOT, ask, environment, wait_for

UNITS = ROOT / "systemd"
EXPOSURE_MAX = 1.5
# What a refused connection or a lost record would show up in.


def systemd_analyze(*args: str) -> "subprocess.CompletedProcess[str]":
    command = [services.program("systemd-analyze", "systemd"), *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def value(unit: str, name: str) -> str:
    """The last value of a setting in a unit file."""
    return str(re.findall(rf"^{name}=(.*)$", (UNITS / unit).read_text(), re.MULTILINE)[-1])


# --- the units


def test_systemd_finds_nothing_wrong_with_the_units(tmp_path: Path) -> None:
    for name in ("adcore", "adctl"):
        program = tmp_path / name
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
    for unit in UNITS.glob("adcore*"):
        (tmp_path / unit.name).write_text(unit.read_text().replace("/opt/adcore/venv/bin", str(tmp_path)))
    verified = systemd_analyze("verify", *map(str, tmp_path.glob("adcore*.*")))
    assert (verified.returncode, verified.stderr) == (0, "")


@pytest.mark.parametrize("unit", sorted(path.name for path in UNITS.glob("*.service")))
def test_root_makes_nothing_in_a_folder_of_another_user(unit: str) -> None:
    """Where that user could put a link, and have root change what it leads to."""
    roots = {"/var/lib"}
    for line in re.findall(r"^Exec\w+=\+(.*)$", (UNITS / unit).read_text(), re.MULTILINE):
        program, *arguments = line.split()
        assert program == "/usr/bin/install"
        *_, folder = arguments
        assert str(Path(folder).parent) in roots, line
        assert len([argument for argument in arguments if argument.startswith("/")]) == 1, line
        if arguments[arguments.index("-o") + 1] == "root":
            roots.add(folder)


@pytest.mark.parametrize("unit", ["adcore.socket", "adcore-admin.socket"])
def test_a_socket_is_for_adcore_and_the_group_of_the_web_server(unit: str) -> None:
    assert [value(unit, f"Socket{name}") for name in ("User", "Group", "Mode")] == ["adcore", "adcore-web", "0660"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes users")
def test_the_web_server_gets_to_the_sockets_and_not_into_adcores_group(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nwww-data:x:33:33::/var/www:/bin/false\n")
    (tmp_path / "etc/group").write_text("root:x:0:\nwww-data:x:33:\n")
    command = [
        services.program("systemd-sysusers", "systemd"),
        f"--root={tmp_path}",
        str(UNITS / "sysusers.d/adcore.conf"),
    ]
    made = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert made.returncode == 0, made.stderr
    groups = dict(line.split(":")[::3] for line in (tmp_path / "etc/group").read_text().splitlines())
    assert groups["adcore"] == ""
    assert set(groups["adcore-web"].split(",")) == {"adcore", "www-data"}
    # The settings, with the store's password, are adcore's group's; nothing that is shipped puts another user there.
    for file in (
        *UNITS.rglob("*"),
        *(ROOT / "tools").rglob("*.conf"),
        *(ROOT / "tools").rglob("*.ini"),
        ROOT / "README.rst",
    ):
        if file.is_file():
            assert not re.search(r"usermod -a?G adcore (?!-)|m www-data adcore$|-g www-data", file.read_text(), re.M), (
                file
            )


@pytest.mark.parametrize("unit", ["adcore@.service", "adcore-collect.service", "adcore-admin.service"])
def test_a_service_is_exposed_to_little(unit: str) -> None:
    shown = systemd_analyze("security", "--offline=true", "--no-pager", str(UNITS / unit))
    exposure = re.search(r"Overall exposure level for \S+: ([0-9.]+)", shown.stdout)
    assert exposure is not None, shown.stdout + shown.stderr
    assert float(exposure[1]) <= EXPOSURE_MAX, shown.stdout


@pytest.mark.parametrize("unit", sorted(path.name for path in UNITS.glob("*.service")))
def test_a_service_has_bounded_memory(unit: str) -> None:
    assert re.fullmatch(r"[0-9]+[MG]", value(unit, "MemoryMax"))


def test_a_worker_has_room_for_its_helpers() -> None:
    config = subprocess.run(
        [sys.executable, "-m", "adcore", "--print-config"],
        capture_output=True,
        text=True,
        env=environment(),
        check=True,
    ).stdout
    helpers = re.search(r"^helper_bytes = ([0-9]+)$", config, re.MULTILINE)
    assert helpers is not None
    assert value("adcore@.service", "MemoryMax") == "3G"
    # The helpers are processes of the unit; without this the end of one for want of memory is the end of all.
    assert value("adcore@.service", "OOMPolicy") == "continue"
    assert (3 << 30) - 2 * int(helpers[1]) >= 1 << 30


def test_the_workers_settings_are_adcores() -> None:
    arguments = (UNITS / "adcore@.service").read_text().partition("ExecStart=")[2].partition("\nExecReload")[0]
    flags = set(re.findall(r"--[a-z-]+", arguments))
    shown = subprocess.run(
        [sys.executable, "-m", "adcore", "--help"], capture_output=True, text=True, env=environment(), check=True
    ).stdout
    assert flags == {"--config", "--spool-dir"}
    assert all(flag in shown for flag in flags)
    (variable,) = re.findall(r"^Environment=ADCORE_([A-Z_]+)=", (UNITS / "adcore@.service").read_text(), re.MULTILINE)
    assert f"--{variable.lower()}" in shown


def test_systemd_gives_a_worker_the_time_that_it_gives_itself() -> None:
    config = subprocess.run(
        [sys.executable, "-m", "adcore", "--print-config"],
        capture_output=True,
        text=True,
        env=environment(),
        check=True,
    ).stdout
    graceful = re.search(r"^graceful_timeout = ([0-9.]+)$", config, re.MULTILINE)
    assert graceful is not None
    assert int(value("adcore@.service", "TimeoutStopSec").removesuffix("s")) > 2 * float(graceful[1])


# --- the socket


def test_a_worker_serves_on_the_socket_of_systemd_socket_activate(tmp_path: Path) -> None:
    """LISTEN_PID, LISTEN_FDS and LISTEN_FDNAMES as systemd itself sets them."""
    notify = NotifySocket(f"@{tmp_path}/notify")
    path = tmp_path / "ad.sock"
    errors = tmp_path / "stderr.txt"
    command = [services.program("systemd-socket-activate", "systemd"), f"--listen={path}", "--fdname=adcore.socket"]
    command += [f"--setenv={name}" for name in ("PYTHONPATH", "NOTIFY_SOCKET", "WATCHDOG_USEC")]
    command += [sys.executable, "-m", "adcore", "--state-dir", str(tmp_path / "state")]
    with errors.open("wb") as output:
        process = subprocess.Popen(
            command,
            stderr=output,
            env=environment(NOTIFY_SOCKET=notify.name, WATCHDOG_USEC="10000000"),
        )
    try:
        wait_for(path.exists)
        assert ask(f"unix:{path}", "/ping").status == 200  # which it waits for to start the worker
        assert notify.said("READY", "1")
        assert notify.said("WATCHDOG", "1")
        assert f"fd 3 (unix:{path})" in errors.read_text()
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
        assert notify.said("STOPPING", "1")
        assert path.exists()  # not ours to remove
    finally:
        process.kill()
        process.wait()
        notify.close()


def test_workers_restarted_one_after_the_other_lose_nothing(tmp_path: Path) -> None:
    """The short form of `python -m tests.chaos.systemd`."""
    with managing(tmp_path) as manager:
        manager.start("1")
        manager.start("2")
        with Load(manager.address, placement="top", clients=4) as load:
            for _ in range(2):
                for name in ("1", "2"):
                    load.wait_for(100)
                    manager.restart(name)
            # With nobody left for a moment, connections wait in the socket.
            load.wait_for(100)
            manager.stop("1")
            manager.restart("2")
            load.wait_for(100)
        manager.stop("2")
        counts = load.check(read_log(manager.log))
    assert counts["answered"] >= 600
    assert {name: counts[name] for name in WRONG} == dict.fromkeys(WRONG, 0), load.failures[:5]


@pytest.mark.parametrize(
    "arguments",
    [["--refresh", "soon"], ["--log", "/nonexistent/delivery.log"], ["--unix", "/tmp/other.sock"]],
    ids=["configuration", "log", "listener"],
)
def test_a_version_that_cannot_start_leaves_the_other_worker_serving(tmp_path: Path, arguments: list[str]) -> None:
    with managing(tmp_path) as manager:
        manager.start("1")
        with Load(manager.address, placement="top", clients=2) as load:
            load.wait_for(50)
            bad = manager.launch("2", *arguments)
            assert bad.process.wait(PATIENCE_S) in (2, 3)
            assert not bad.notify.said("READY")
            load.wait_for(50)
        assert load.failures == []
        manager.stop("1")


def test_what_is_meant_for_running_workers_does_not_end_one_that_starts(tmp_path: Path) -> None:
    """logrotate's `systemctl kill --signal=USR1 'adcore*.service'`, and a reload, hit whatever there is."""
    with managing(tmp_path) as manager:
        worker = manager.launch("1")
        wait_for(lambda: "/uvloop/" in Path(f"/proc/{worker.process.pid}/maps").read_text())  # it imports its parts

        def is_ready() -> bool:
            worker.signal(signal.SIGUSR1)
            worker.signal(signal.SIGHUP)
            return worker.is_ready()

        wait_for(is_ready)
        manager.stop("1")


def test_nothing_of_systemd_is_left_for_children(tmp_path: Path) -> None:
    """What the server would pass on, as the process itself sees it."""
    script = (
        "import os, sys, asyncio; from adcore.config import load_config; from adcore.server import Server;"
        "from adcore.listen import open_listener; c = load_config({}, {'HOME': sys.argv[1]});"
        "s = Server(c); l = open_listener(c);"
        "print(sorted(n for n in os.environ if n.startswith(('LISTEN_', 'NOTIFY_', 'WATCHDOG_'))))"
    )
    with managing(tmp_path) as manager:
        fd = manager.socket.fileno()
        shown = subprocess.run(
            [
                "bash",
                "-c",
                'exec 3<&"$0"; LISTEN_PID=$$ exec "$@"',
                str(fd),
                sys.executable,
                "-c",
                script,
                str(tmp_path),
            ],
            capture_output=True,
            text=True,
            pass_fds=(fd,),
            env=environment(
                LISTEN_FDS="1",
                LISTEN_FDNAMES="ad",
                NOTIFY_SOCKET="@x",
                WATCHDOG_USEC="1",
                WATCHDOG_PID=str(os.getpid()),
            ),
            check=True,
        )
    assert shown.stdout == "[]\n"
