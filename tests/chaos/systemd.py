"""Restart the workers of systemd/ under load, by Debian 12's own systemd, and count: `python -m tests.chaos.systemd`.

Makes a Debian 12 in --root (debootstrap; it is kept for the next time), installs this checkout and its units there as
README.rst says, boots it with systemd-nspawn without a network, and asks from outside through the socket that
adcore.socket made. Then

- `systemctl restart adcore@N`, one after the other, --count times;
- a configuration with which no worker can start: the restart fails, the other worker serves, and once the
  configuration is right again the worker comes back by itself;
- a rollover that never has fewer workers than before: a further instance is started before an old one is stopped;
- a reload of each;
- a change of the inventory, which both take over, and a look at what their control listeners say;
- logrotate with tools/logrotate/adcore, again and again;
- a worker whose loop no longer turns: the watchdog has it killed and started again;
- a worker that is killed.

Fails unless every request was answered and is in the log once; with the killed worker, unless every answered one is.
Needs root, debootstrap and systemd-container.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.load import Load, read_log
from tests.process import ROOT, Answer, ask, wait_for

PACKAGES = "systemd,systemd-sysv,dbus,python3,python3-venv,logrotate"
UNITS = ("adcore.socket", "adcore.target", "adcore@.service")
WORKERS = (1, 2)
STORE = "sqlite:///var/lib/adcore/adcore.db"
ROTATIONS = 5
KILLS = 5
WATCHED_S = 120.0  # a stopped loop is killed only after WatchdogSec= and TimeoutStopSec=


class Host:
    """A booted Debian."""

    def __init__(self, root: Path, process: "subprocess.Popen[bytes]") -> None:
        self.root = root
        self.process = process

    @property
    def leader(self) -> str:
        """The pid of its init, seen from here. (systemd-nspawn has another child for a moment, before.)"""
        assert self.process.poll() is None, "systemd-nspawn has ended: see its output above"
        return Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split(" ")[0]

    @property
    def address(self) -> str:
        """Of its adcore, through its own mounts."""
        return f"unix:/proc/{self.leader}/root/run/adcore/ad.sock"

    def run(self, *command: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            ["nsenter", "--target", self.leader, "--all", *command],
            capture_output=True,
            text=True,
            timeout=WATCHED_S,
            check=False,
        )

    def systemctl(self, *args: str) -> str:
        done = self.run("systemctl", *args)
        assert done.returncode == 0, f"systemctl {' '.join(args)}: {done.stderr}"
        return done.stdout.strip()

    def show(self, unit: str, name: str) -> str:
        return self.systemctl("show", "--value", f"--property={name}", unit)

    def adctl(self, *args: str) -> str:
        done = self.run("runuser", "-u", "adcore", "--", "/opt/adcore/venv/bin/adctl", *args)
        assert done.returncode == 0, f"adctl {' '.join(args)}: {done.stderr}"
        return done.stdout

    def control(self, worker: int, target: str) -> Answer:
        answer = ask(f"unix:/proc/{self.leader}/root/run/adcore/{worker}/control.sock", target)
        assert answer.status == 200, f"{target} of worker {worker}: {answer}"
        return answer

    def answers(self) -> bool:
        try:
            return ask(self.address, "/ping").status == 200
        except OSError:
            return False


def install(root: Path) -> None:
    """A Debian with adcore in /opt/adcore/venv, the units and the user."""
    if not (root / "etc/debian_version").exists():
        say(f"making a Debian 12 in {root}")
        run("debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(root))
    say("installing this checkout there")
    with tempfile.TemporaryDirectory(dir=root / "opt") as wheels:
        with tempfile.TemporaryDirectory() as source:  # setuptools leaves its build folder beside what it builds
            names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
            for name in filter(lambda name: not name.startswith(("perf/", "tests/")), names.splitlines()):
                (Path(source) / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, Path(source) / name)
            wheel = (
                sys.executable,
                "-m",
                "pip",
                "--disable-pip-version-check",
                "wheel",
                "--quiet",
                "--wheel-dir",
                wheels,
            )
            run(*wheel, source)
        inside = f"/opt/{Path(wheels).name}"
        run("chroot", str(root), "python3", "-m", "venv", "--clear", "/opt/adcore/venv")
        pip = ("chroot", str(root), "/opt/adcore/venv/bin/pip", "--isolated", "install", "--quiet", "--no-index")
        run(*pip, "--find-links", inside, "adcore")
    for name in UNITS:
        shutil.copy(ROOT / "systemd" / name, root / "etc/systemd/system" / name)
    (root / "etc/sysusers.d").mkdir(exist_ok=True)
    shutil.copy(ROOT / "systemd/sysusers.d/adcore.conf", root / "etc/sysusers.d/adcore.conf")
    shutil.copy(ROOT / "tools/logrotate/adcore", root / "etc/logrotate.d/adcore")
    (root / "etc/adcore").mkdir(exist_ok=True)
    shutil.rmtree(root / "var/lib/adcore", ignore_errors=True)
    configure(root, "refresh = 2\n")
    run("chroot", str(root), "systemd-sysusers")
    run("chroot", str(root), "systemctl", "enable", "--quiet", "adcore.socket", "adcore.target", "adcore@1", "adcore@2")


def configure(root: Path, text: str) -> None:
    (root / "etc/adcore/adcore.toml").write_text(text)


@contextmanager
def booted(root: Path) -> Iterator[Host]:
    """The Debian in `root`, up until the block ends and then shut down in order."""
    command = ["systemd-nspawn", "--quiet", f"--directory={root}", "--boot", "--register=no", "--keep-unit"]
    command += ["--private-network", "--console=pipe"]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        host = Host(root, process)
        wait_for(host.answers, lambda: "adcore does not answer in the container")
        yield host
    finally:
        process.send_signal(signal.SIGTERM)  # to which systemd-nspawn has its init power off
        try:
            process.wait(WATCHED_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def restarts(host: Host, load: Load, count: int) -> None:
    for number in range(count):
        before, started = len(load.answered), time.monotonic()
        host.systemctl("restart", f"adcore@{number % 2 + 1}")
        answers, seconds = len(load.answered) - before, time.monotonic() - started
        say(f"restart {number + 1} of {count}: {seconds:.2f} s, {answers} answers meanwhile")
        load.wait_for(50)


def a_version_that_cannot_start(host: Host, load: Load) -> None:
    configure(host.root, "refresh = 'soon'\n")
    failed = host.run("systemctl", "restart", "adcore@1")
    assert failed.returncode != 0, "a worker with a bad configuration was said to have started"
    load.wait_for(200)
    assert host.systemctl("is-active", "adcore@2") == "active"
    configure(host.root, "refresh = 2\n")
    wait_for(lambda: host.show("adcore@1", "ActiveState") == "active", lambda: "the worker did not come back")


def one_more_before_one_less(host: Host, load: Load) -> None:
    host.systemctl("start", "adcore@3")
    host.systemctl("stop", "adcore@1")
    load.wait_for(200)
    assert host.show("adcore@1", "ActiveState") == "inactive", "the socket started a worker that an operator stopped"
    host.systemctl("start", "adcore@1")
    host.systemctl("stop", "adcore@3")


def reloads(host: Host, load: Load) -> None:
    for worker in WORKERS:
        pid = host.show(f"adcore@{worker}", "MainPID")
        host.systemctl("reload", f"adcore@{worker}")
        load.wait_for(50)
        wait_for(lambda: host.show(f"adcore@{worker}", "ActiveState") == "active")  # noqa: B023
        assert host.show(f"adcore@{worker}", "MainPID") == pid


def a_change_of_the_inventory(host: Host) -> None:
    def revisions() -> list[int]:
        return [host.control(worker, "/status").json()["table"]["revision"] for worker in WORKERS]

    before = revisions()
    inventory = json.loads(host.adctl("export", "--source", STORE))
    inventory["campaigns"][0]["name"] += " (changed)"
    (host.root / "etc/adcore/inventory.json").write_text(json.dumps(inventory))
    host.adctl("apply", "--source", STORE, "/etc/adcore/inventory.json")
    wait_for(
        lambda: min(revisions()) > max(before), lambda: host.run("journalctl", "-u", "adcore@1", "-n", "20").stdout
    )


def a_look_inside(host: Host) -> None:
    for worker in WORKERS:
        assert b"adcore_build_info" in host.control(worker, "/metrics").body
        assert b"Http1Protocol.data_received" in host.control(worker, "/profile?seconds=3").body


def rotations(host: Host, load: Load) -> None:
    def reopens() -> list[int]:
        return [host.control(worker, "/status").json()["log"]["reopens"] for worker in WORKERS]

    for _ in range(ROTATIONS):
        before = reopens()
        load.wait_for(200)
        rotated = host.run("logrotate", "--force", "/etc/logrotate.d/adcore")
        assert rotated.returncode == 0, rotated.stderr
        wait_for(lambda: all(now > then for now, then in zip(reopens(), before, strict=True)))  # noqa: B023


def a_loop_that_hangs(host: Host) -> None:
    pid = host.show("adcore@2", "MainPID")
    host.systemctl("kill", "--kill-whom=main", "--signal=STOP", "adcore@2")
    deadline_monotonic = time.monotonic() + WATCHED_S
    while host.show("adcore@2", "MainPID") in ("0", pid) or host.show("adcore@2", "ActiveState") != "active":
        assert time.monotonic() < deadline_monotonic, "systemd did not notice that the loop hangs"
        time.sleep(0.5)
    wait_for(host.answers)


def a_worker_that_is_killed(host: Host, load: Load, count: int) -> None:
    for _ in range(count):
        load.wait_for(200)
        pid = host.show("adcore@2", "MainPID")
        host.systemctl("kill", "--signal=KILL", "adcore@2")
        wait_for(lambda: host.show("adcore@2", "MainPID") not in ("0", pid))  # noqa: B023
        wait_for(lambda: host.show("adcore@2", "ActiveState") == "active")


def run(*command: str) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def say(text: str) -> None:
    print(f"chaos/systemd: {text}", file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.systemd", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--root", type=Path, default=ROOT / ".adcore/systemd-root", help="where the Debian is made")
    parser.add_argument("--count", type=int, default=100, help="restarts (default: 100)")
    arguments = parser.parse_args()
    missing = [name for name in ("debootstrap", "systemd-nspawn", "nsenter") if shutil.which(name) is None]
    if os.getuid() or missing:
        parser.error(
            f"needs root and {', '.join(missing) or 'nothing else'}: apt install debootstrap systemd-container"
        )
    root = arguments.root.resolve()
    root.parent.mkdir(parents=True, exist_ok=True)
    install(root)
    with booted(root) as host:
        with Load(host.address, placement="top") as load:
            load.wait_for(500)
            restarts(host, load, arguments.count)
            say("a version that cannot start")
            a_version_that_cannot_start(host, load)
            say("one worker more before one less")
            one_more_before_one_less(host, load)
            say("reloads")
            reloads(host, load)
            say("a change of the inventory, and a look inside")
            a_change_of_the_inventory(host)
            a_look_inside(host)
            say(f"logrotate, {ROTATIONS} times")
            rotations(host, load)
        say("a loop that hangs (40 s)")
        a_loop_that_hangs(host)
        say(f"a worker that is killed, {KILLS} times")
        with Load(host.address, placement="top", name="k") as killed:
            a_worker_that_is_killed(host, killed, KILLS)
    logs = sorted((root / "var/lib/adcore").glob("delivery.log*"))
    assert len(logs) == ROTATIONS + 1, logs
    counts = load.check(read_log(*logs))
    print(json.dumps({"restarts": arguments.count, **counts}))
    # Of a worker that is killed, what it was answering fails; what it had answered is in the log.
    kill_counts = killed.check(read_log(*logs))
    print(json.dumps({"kills": KILLS, **kill_counts}))
    for failure in load.failures[:10]:
        say(failure)
    bad = [counts[name] for name in ("failed", "lost", "doubled", "unanswered")]
    return 1 if any(bad) or kill_counts["lost"] or kill_counts["doubled"] else 0


if __name__ == "__main__":
    sys.exit(main())
