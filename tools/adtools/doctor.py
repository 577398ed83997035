"""`adctl doctor`: what this host has, lacks or has set badly for delivering ads, and what to do about each.

Every check is a function that gives findings and changes nothing. What it reads of the system lies below a
`root`, so that a test can hand it another /proc, /sys and /etc.
"""

from __future__ import annotations

import argparse
import grp
import http.client
import importlib.metadata
import importlib.util
import json
import os
import pwd
import shutil
import socket
import stat
import subprocess
import sys
import sysconfig
import zoneinfo
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from adcore.config import Config, load_config
from adcore.core.inventory import check_inventory
from adcore.errors import AdcoreError, ConfigError
from adcore.files import folder_problem
from adcore.sources import open_store
from adcore.sources.seal import SNAPSHOT_PURPOSE, Seals
from adcore.sources.snapshot import Snapshot
from adcore.tokens import KeyRing
from adcore.version import version_text

EPILOG = """\
Each line is ok, warn or fail (or info, which is neither), with what to do below it. The exit status is 1
when something fails; a warning costs speed or room, not ads.

examples:
  adctl doctor
  adctl doctor --unix /run/adcore/ad.sock      the socket too: its mode, its group, does a server answer
  adctl doctor --config /etc/adcore/adcore.toml    with the settings of a server
  runuser -u www-data -- adctl doctor --unix /run/adcore/ad.sock     as the web server sees it
  adctl doctor --json | jq '.findings[] | select(.status == "fail")'
"""

PYTHON_MIN, PYTHON_MAX = (3, 11), (3, 13)
PACKAGES = (
    *("crawler-user-agents", "httptools", "msgpack", "msgspec", "nagiosplugin", "prometheus-client", "pymemcache"),
    *("rich", "tqdm", "ua-parser", "ua-parser-rs", "uvloop"),
)
# A connection is a descriptor: the backlog twice over, and room for log, sockets and files.
OPEN_FILES_WANTED = 8192
PROBE_TIMEOUT_S = 2.0

# What mysqlclient is compiled with, by distribution (the ID and ID_LIKE of /etc/os-release).
BUILD_PACKAGES = {
    "debian": "apt install gcc python3-dev pkg-config libmariadb-dev",
    "fedora": "dnf install gcc python3-devel pkgconf-pkg-config mariadb-connector-c-devel",
    "suse": "zypper install gcc python3-devel pkgconf libmariadb-devel",
    "arch": "pacman -S gcc pkgconf mariadb-libs",
    "alpine": "apk add gcc musl-dev python3-dev pkgconf mariadb-connector-c-dev",
}

Status = Literal["ok", "info", "warn", "fail"]


class Finding(NamedTuple):
    check: str
    status: Status
    found: str
    advice: str = ""


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "doctor",
        help="check this host, and say what to do about what is wrong",
        description="Check versions, headers, sockets, limits, processor, kernel, stores and time zones.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", metavar="FILE", help="take the settings from a server's TOML file")
    parser.add_argument("--unix", metavar="PATH", help="check this socket of a server")
    # Not "source": a bad one is a finding here, and not the end of the command.
    parser.add_argument("--source", metavar="URL", dest="source_url", help="check this store")
    parser.add_argument("--memcached", metavar="ADDR", help="check this memcached: unix:PATH or HOST:PORT")
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, root: Path = Path("/")) -> int:
    """Print every finding; 1 when one of them is a failure."""
    given = {"config": args.config, "unix": args.unix, "source": args.source_url, "memcached": args.memcached}
    findings = list(examine({name: text for name, text in given.items() if text is not None}, root))
    failed = any(finding.status == "fail" for finding in findings)
    if args.json:
        report = {"version": version_text(), "ok": not failed, "findings": [f._asdict() for f in findings]}
        print(json.dumps(report, indent=2, ensure_ascii=False))
    else:
        print("\n".join(map(as_text, findings)))
    return 1 if failed else 0


def as_text(finding: Finding) -> str:
    line = f"{finding.status:<4}  {finding.check}: {finding.found}"
    return f"{line}\n      → {finding.advice}" if finding.advice else line


def examine(flags: dict[str, str], root: Path) -> Iterator[Finding]:
    """All findings, in the order of what depends on what. `flags` are settings by name, as text."""
    try:
        config: Config | None = load_config(flags)
    except ConfigError as error:
        yield Finding("configuration", "fail", str(error), "correct it; the checks that need it are left out")
        config = None
    yield from check_python()
    yield from check_packages()
    yield from check_mysqlclient(root, wanted=config is not None and config.source.startswith("mysql://"))
    yield from check_build_tools()
    yield from check_open_files(root)
    yield from check_governor(root)
    yield from check_somaxconn(root, config.backlog if config else 2048)
    if config is not None:
        yield from check_time_zone(config.time_zone)
        yield from check_state_dir(config.state_dir)
        yield from check_secret(config.secret_file)
        yield from check_source(config)
        if config.memcached is not None:
            yield from check_memcached(config.memcached, config.memcached_prefix, config.secret_file)
        if config.unix is not None:
            yield from check_socket(config.unix)


# What is installed


def check_python(version: tuple[int, ...] = sys.version_info[:3]) -> Iterator[Finding]:
    text = ".".join(map(str, version))
    if version[:2] < PYTHON_MIN:
        yield Finding("Python", "fail", text, "adcore needs Python 3.11 to 3.13: make a new virtual environment")
    elif version[:2] > PYTHON_MAX:
        yield Finding("Python", "warn", f"{text} is newer than any that adcore is tested with", "use 3.11 to 3.13")
    else:
        yield Finding("Python", "ok", text)


def check_packages(version_of: Callable[[str], str] = importlib.metadata.version) -> Iterator[Finding]:
    found, missing = [], []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version_of(package)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(package)
    yield Finding("packages", "ok", ", ".join(found))
    if "ua-parser-rs" in missing:
        missing.remove("ua-parser-rs")
        advice = "pip install 'ua-parser[regex]': without it a new User-Agent costs a millisecond"
        yield Finding("packages", "warn", "ua-parser-rs is missing", advice)
    if missing:
        yield Finding("packages", "fail", f"{', '.join(missing)} missing", f"pip install {' '.join(missing)}")


def check_mysqlclient(root: Path, wanted: bool) -> Iterator[Finding]:
    if importlib.util.find_spec("MySQLdb") is not None:
        yield Finding("mysqlclient", "ok", importlib.metadata.version("mysqlclient"))
        return
    advice = f"{build_command(root)}, then pip install 'adcore[mysql]'"
    if wanted:
        yield Finding("mysqlclient", "fail", "is missing, and the source is a mysql:// one", advice)
    else:
        yield Finding("mysqlclient", "info", "is not installed; only a mysql:// source needs it", advice)


def build_command(root: Path) -> str:
    """The command that installs what mysqlclient is compiled with."""
    try:
        lines = (root / "etc/os-release").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        lines = []
    fields = dict(line.partition("=")[::2] for line in lines)
    names = f"{fields.get('ID', '')} {fields.get('ID_LIKE', '')}".replace('"', "").split()
    for name in names:
        for known, command in BUILD_PACKAGES.items():
            if name.startswith(known):
                return command
    return "install a C compiler, pkg-config, and the headers of Python and of the MariaDB or MySQL client"


def check_build_tools(which: Callable[[str], str | None] = shutil.which) -> Iterator[Finding]:
    """What compiles mysqlclient; for information, since a host that has it installed needs none of these."""
    compiler = next((path for name in ("cc", "gcc", "clang") if (path := which(name))), None)
    header = Path(sysconfig.get_path("include")) / "Python.h"
    client = next((path for name in ("mariadb_config", "mysql_config") if (path := which(name))), None)
    if client is None and (pkg_config := which("pkg-config")):
        for library in ("libmariadb", "mysqlclient", "mariadb"):
            asked = subprocess.run([pkg_config, "--modversion", library], capture_output=True, text=True, check=False)
            if asked.returncode == 0:
                client = f"{library} {asked.stdout.strip()}"
                break
    parts = {
        "compiler": compiler,
        "Python.h": str(header) if header.exists() else None,
        "client headers": client,
    }
    yield Finding("build tools", "info", ", ".join(f"{name}: {path or 'none'}" for name, path in parts.items()))


# Limits, processor, kernel


def check_open_files(root: Path) -> Iterator[Finding]:
    try:
        limits = (root / "proc/self/limits").read_text()
        soft, hard = next(line.split()[3:5] for line in limits.splitlines() if line.startswith("Max open files"))
    except (OSError, StopIteration, ValueError):
        yield Finding("open files", "info", "no limit can be read from /proc/self/limits")
        return
    found = f"{soft} (hard limit {hard}), in this shell"
    if soft.isdigit() and int(soft) < OPEN_FILES_WANTED:
        advice = (
            f"each connection takes one: LimitNOFILE={OPEN_FILES_WANTED * 8} in the systemd unit, or "
            f"`ulimit -n {OPEN_FILES_WANTED}` before starting the server"
        )
        yield Finding("open files", "warn", found, advice)
    else:
        yield Finding("open files", "ok", found)


def check_governor(root: Path) -> Iterator[Finding]:
    files = sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_governor"))
    governors: Counter[str] = Counter()
    for file in files:
        try:
            governors[file.read_text().strip()] += 1
        except OSError:  # a core that is switched off
            continue
    if not governors:
        yield Finding("CPU governor", "info", "unknown: a virtual machine, or a kernel without cpufreq")
        return
    found = ", ".join(f"{name} on {count}" for name, count in governors.most_common())
    if set(governors) == {"performance"}:
        yield Finding("CPU governor", "ok", found)
    else:
        advice = "`cpupower frequency-set -g performance`: others slow down between requests and answer late"
        yield Finding("CPU governor", "warn", found, advice)


def check_somaxconn(root: Path, backlog: int) -> Iterator[Finding]:
    try:
        somaxconn = int((root / "proc/sys/net/core/somaxconn").read_text())
    except (OSError, ValueError):
        yield Finding("somaxconn", "info", "cannot be read from /proc/sys/net/core/somaxconn")
        return
    found = f"{somaxconn}, and the server asks for a backlog of {backlog}"
    if somaxconn < backlog:
        advice = f"`sysctl -w net.core.somaxconn={max(4096, backlog)}`, and the same in a file in /etc/sysctl.d"
        yield Finding("somaxconn", "warn", found, advice)
    else:
        yield Finding("somaxconn", "ok", found)


# What the settings name


def check_time_zone(zone: zoneinfo.ZoneInfo) -> Iterator[Finding]:
    count = len(zoneinfo.available_timezones())
    if count < 100:
        advice = "pip install tzdata, or install the package tzdata of the system"
        yield Finding("time zones", "fail", f"only {count} zones are installed", advice)
    else:
        yield Finding("time zones", "ok", f"{zone.key} is the site's, of {count} installed")


def check_state_dir(path: Path) -> Iterator[Finding]:
    if path.exists() and not path.is_dir():
        yield Finding("state directory", "fail", f"{path} is not a directory", "move it, or choose another --state-dir")
        return
    existing = next(folder for folder in (path, *path.parents) if folder.exists())
    if not os.access(existing, os.W_OK | os.X_OK):
        advice = f"let {_user(os.geteuid())} write to {existing}, or choose another --state-dir"
        yield Finding("state directory", "fail", f"{existing} is not writable for {_user(os.geteuid())}", advice)
        return
    # Root's look at the folder of the server's user says nothing of the server's own start.
    if existing == path and (os.geteuid() or not path.stat().st_uid):
        problem = folder_problem(path, "state directory")
        if problem is not None:
            yield Finding("state directory", "fail", "the server does not start in it", problem)
            return
    free = shutil.disk_usage(existing).free
    made = "" if existing == path else " (the server creates it)"
    found = f"{path}{made}, {free / 2**30:.1f} GiB free"
    if free < 2**30:
        advice = "make room: records that the disk does not take are dropped"
        yield Finding("state directory", "warn", found, advice)
    else:
        yield Finding("state directory", "ok", found)


def check_secret(path: Path) -> Iterator[Finding]:
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except FileNotFoundError:
        yield Finding("secret file", "info", f"{path} is not there yet; the server creates it")
        return
    except OSError as error:
        yield Finding("secret file", "fail", f"{path}: {error.strerror}", "see who may read the folders above it")
        return
    if mode & 0o077:
        advice = f"`chmod 600 {path}`: who reads it can forge clicks"
        yield Finding("secret file", "warn", f"{path} has mode {mode:04o}", advice)
    elif not os.access(path, os.R_OK):
        advice = f"`chown` it to the server's user, or run this as that user (now {_user(os.geteuid())})"
        yield Finding("secret file", "fail", f"{path} cannot be read", advice)
    else:
        yield Finding("secret file", "ok", f"{path}, mode {mode:04o}")


def check_source(config: Config) -> Iterator[Finding]:
    if config.source_is_default and not (file := config.state_dir / "adcore.db").exists():
        advice = "start the server once for the sample inventory, or `adctl apply` your own"
        yield Finding("source", "info", f"{file} is not there yet", advice)
        return
    try:
        store = open_store(config.source)
        try:
            rows = store.load()
        finally:
            store.close()
    except AdcoreError as error:
        yield Finding("source", "fail", str(error), "the server goes on with its last good table until this works")
        return
    inventory, problems = check_inventory(rows.document)
    creatives = sum(len(campaign.creatives) for campaign in inventory.campaigns)
    found = (
        f"{store.label}, revision {rows.revision.number}: {len(inventory.placements)} placements, "
        f"{len(inventory.campaigns)} campaigns, {creatives} creatives"
    )
    if problems:
        advice = "correct these rows in SQL, or export, correct and apply the whole"
        yield Finding("source", "warn", f"{found}; {len(problems)} errors, the first {problems[0]}", advice)
    elif not creatives:
        yield Finding("source", "warn", found, "there is nothing to show: `adctl apply FILE`")
    else:
        yield Finding("source", "ok", found)


def check_memcached(address: str, prefix: str, secret_file: Path) -> Iterator[Finding]:
    try:
        seals = Seals(KeyRing.load(secret_file).derive_each(SNAPSHOT_PURPOSE))
    except (FileNotFoundError, AdcoreError):  # which the check of the secret file tells
        seals = Seals()
    snapshot = Snapshot(address, prefix, "doctor", seals)
    try:
        revision = snapshot.revision()
    except AdcoreError as error:
        advice = "start it, or leave out --memcached: without it each process reads the store itself"
        yield Finding("memcached", "fail", str(error), advice)
        return
    finally:
        snapshot.close()
    if snapshot.problem is not None:
        advice = "copy the secret file of one host to all of them; until then each reads the store itself"
        yield Finding("memcached", "warn", snapshot.problem, advice)
    elif revision is None:
        yield Finding("memcached", "ok", f"{address} answers and holds no snapshot yet")
    else:
        yield Finding("memcached", "ok", f"{address} holds the snapshot of revision {revision.number}")


# The socket


def check_socket(path: Path) -> Iterator[Finding]:
    """Is it there, who may connect, and does a server answer `GET /ping`."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        advice = f"start the server with --unix {path}; what is under /run is gone after a reboot"
        yield Finding("socket", "fail", f"{path} is not there", advice)
        return
    except OSError as error:
        advice = f"let {_user(os.geteuid())} pass through the folders above it (x)"
        yield Finding("socket", "fail", f"{path}: {error.strerror}", advice)
        return
    if not stat.S_ISSOCK(status.st_mode):
        yield Finding("socket", "fail", f"{path} is not a socket", "move it away; the server refuses to replace it")
        return
    mode = stat.S_IMODE(status.st_mode)
    found = f"{path}, mode {mode:04o}, {_user(status.st_uid)}:{_group(status.st_gid)}"
    if mode & 0o002:
        advice = "--unix-mode 0660: whoever connects is believed what it says of visitors"
        yield Finding("socket permissions", "warn", f"{found}: every user of this host may connect", advice)
    elif not mode & 0o020:
        advice = "--unix-mode 0660, and --unix-group with a group that the web server's user is in"
        yield Finding("socket permissions", "warn", f"{found}: the group may not connect", advice)
    else:
        yield Finding("socket permissions", "ok", found)
    yield _ping(path, status)


def _ping(path: Path, status: os.stat_result) -> Finding:
    connection = http.client.HTTPConnection("localhost", timeout=PROBE_TIMEOUT_S)
    connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.sock.settimeout(PROBE_TIMEOUT_S)
    try:
        connection.sock.connect(str(path))
        connection.request("GET", "/ping")
        answer = connection.getresponse()
        body = answer.read(100)
    except ConnectionRefusedError:
        advice = "a server left it behind without closing it; starting one replaces it"
        return Finding("socket", "fail", f"{path} is stale: nobody listens", advice)
    except PermissionError:
        advice = f"`usermod -aG {_group(status.st_gid)} {_user(os.geteuid())}`, then log in again"
        if _is_own_group(status):
            # Who is in the server's own group reads its settings too, with the password of the store.
            advice = (
                f"`usermod -aG adcore-web {_user(os.geteuid())}` and the same for {_user(status.st_uid)}, after "
                f"`groupadd --system adcore-web`, and start the server with --unix-group adcore-web: "
                f"{_group(status.st_gid)} is a group that reads the settings too"
            )
        return Finding("socket", "fail", f"{_user(os.geteuid())} may not connect to {path}", advice)
    except TimeoutError:
        advice = "the server is stuck or its backlog full: see /status on its control listener, and the CPU"
        return Finding("socket", "fail", f"{path} gave no answer within {PROBE_TIMEOUT_S:g} s", advice)
    except (OSError, http.client.HTTPException) as error:
        return Finding("socket", "fail", f"{path}: {error!r}", "see whether it is adcore that listens there")
    finally:
        connection.close()
    if answer.status == 200 and body.strip() == b"ok":
        return Finding("socket", "ok", f"{path} answers /ping")
    if answer.status == 503:
        advice = "it has no table yet: see the source above, and the server's log"
        return Finding("socket", "fail", f"{path} answers /ping with 503", advice)
    advice = "another program listens there: choose another --unix"
    return Finding("socket", "fail", f"{path} answers /ping with {answer.status}, not as adcore does", advice)


def _is_own_group(status: os.stat_result) -> bool:
    """Whether the file's group is the first one of its owner."""
    try:
        return pwd.getpwuid(status.st_uid).pw_gid == status.st_gid
    except KeyError:
        return False


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
