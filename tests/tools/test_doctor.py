"""What the doctor finds on hosts made up of files, and on sockets that answer, hang, or are left behind."""

import getpass
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from adcore.config import load_config
from adcore.core.inventory import parse_inventory
from adcore.sources import open_store
from adtools import doctor
from adtools.cli import main
from adtools.doctor import Finding
from tests.process import serving

LIMITS = """\
Limit                     Soft Limit           Hard Limit           Units
Max processes             1024                 2048                 processes
Max open files            {soft}                 524288               files
"""


def host(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def only(findings: Iterator[Finding]) -> Finding:
    (finding,) = findings
    return finding


GOVERNOR = "sys/devices/system/cpu/cpu{}/cpufreq/scaling_governor"


@pytest.mark.parametrize(
    ("files", "status", "found"),
    [
        ({}, "info", "unknown"),
        (
            {GOVERNOR.format(0): "performance\n", GOVERNOR.format(1): "performance\n"},
            "ok",
            "performance on 2",
        ),
        ({GOVERNOR.format(0): "powersave\n", GOVERNOR.format(1): "performance\n"}, "warn", "powersave on 1"),
    ],
)
def test_the_processor_runs_at_full_speed(tmp_path: Path, files: dict[str, str], status: str, found: str) -> None:
    finding = only(doctor.check_governor(host(tmp_path, files)))
    assert finding.status == status
    assert found in finding.found
    assert ("cpupower" in finding.advice) is (status == "warn")


@pytest.mark.parametrize(
    ("text", "backlog", "status"),
    [
        ("4096\n", 2048, "ok"),
        ("2048\n", 2048, "ok"),
        ("128\n", 2048, "warn"),
        ("4096\n", 5000, "warn"),
        ("", 1, "info"),
    ],
)
def test_the_kernel_grants_the_backlog(tmp_path: Path, text: str, backlog: int, status: str) -> None:
    root = host(tmp_path, {"proc/sys/net/core/somaxconn": text})
    finding = only(doctor.check_somaxconn(root, backlog))
    assert finding.status == status
    assert finding.advice.startswith(f"`sysctl -w net.core.somaxconn={max(4096, backlog)}`") is (status == "warn")


@pytest.mark.parametrize(
    ("soft", "status"),
    [("1024", "warn"), ("8191", "warn"), ("8192", "ok"), ("unlimited", "ok"), ("", "info")],
)
def test_enough_files_may_be_open(tmp_path: Path, soft: str, status: str) -> None:
    text = LIMITS.format(soft=soft) if soft else "garbage"
    finding = only(doctor.check_open_files(host(tmp_path, {"proc/self/limits": text})))
    assert finding.status == status
    assert ("LimitNOFILE=" in finding.advice) is (status == "warn")


@pytest.mark.parametrize(
    ("version", "status"),
    [((3, 10, 9), "fail"), ((3, 11, 0), "ok"), ((3, 13, 5), "ok"), ((3, 14, 0), "warn")],
)
def test_the_version_of_python(version: tuple[int, ...], status: str) -> None:
    assert only(doctor.check_python(version)).status == status


def test_missing_packages_are_named() -> None:
    def version_of(package: str) -> str:
        if package in ("uvloop", "ua-parser-rs"):
            raise PackageNotFoundError(package)
        return "1.0"

    found, slow, missing = doctor.check_packages(version_of)
    assert "msgspec 1.0" in found.found
    assert (slow.status, missing.status) == ("warn", "fail")
    assert missing.advice == "pip install uvloop"


@pytest.mark.parametrize(
    ("release", "command"),
    [
        ("ID=debian\n", "apt install gcc python3-dev pkg-config libmariadb-dev"),
        ('ID=ubuntu\nID_LIKE="debian"\n', "apt install gcc python3-dev pkg-config libmariadb-dev"),
        ('ID="rocky"\nID_LIKE="rhel centos fedora"\n', "dnf install"),
        ('ID="opensuse-leap"\nID_LIKE="suse opensuse"\n', "zypper install"),
        ("ID=alpine\n", "apk add"),
        ("ID=plan9\n", "install a C compiler"),
        (None, "install a C compiler"),
    ],
)
def test_a_missing_mysqlclient_names_the_packages_of_this_distribution(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, release: str | None, command: str
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    root = host(tmp_path, {} if release is None else {"etc/os-release": release})
    needed = only(doctor.check_mysqlclient(root, wanted=True))
    assert needed.status == "fail"
    assert needed.advice.startswith(command)
    assert "pip install 'adcore[mysql]'" in needed.advice
    assert only(doctor.check_mysqlclient(root, wanted=False)).status == "info"


def test_the_build_tools_are_for_information(tmp_path: Path) -> None:
    tools = {"cc": "/usr/bin/cc", "mariadb_config": "/usr/bin/mariadb_config"}
    finding = only(doctor.check_build_tools(tools.get))
    assert finding.status == "info"
    assert "/usr/bin/cc" in finding.found
    assert "client headers: /usr/bin/mariadb_config" in finding.found
    assert "compiler: none" in only(doctor.check_build_tools(lambda name: None)).found


def test_time_zones_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert only(doctor.check_time_zone(ZoneInfo("Asia/Tokyo"))).found.startswith("Asia/Tokyo")
    monkeypatch.setattr("zoneinfo.available_timezones", lambda: {"UTC"})
    assert only(doctor.check_time_zone(ZoneInfo("UTC"))).status == "fail"


def test_the_state_directory_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert only(doctor.check_state_dir(tmp_path)).status in ("ok", "warn")
    later = only(doctor.check_state_dir(tmp_path / "a/b"))
    assert "the server creates it" in later.found
    assert not (tmp_path / "a").exists()
    file = tmp_path / "file"
    file.touch()
    assert only(doctor.check_state_dir(file)).status == "fail"
    # Root may write anywhere, so a closed folder is pretended.
    monkeypatch.setattr("os.access", lambda path, mode: False)
    finding = only(doctor.check_state_dir(tmp_path))
    assert finding.status == "fail"
    assert str(tmp_path) in finding.advice


def test_a_state_directory_in_which_no_server_starts_is_found(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    finding = only(doctor.check_state_dir(tmp_path))
    assert (finding.status, finding.found) == ("fail", "the server does not start in it")
    assert finding.advice == f"every user of this host may write to the state directory {tmp_path}: chmod o-w it"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can look at the folder of another user")
def test_root_who_looks_at_the_services_state_directory_is_not_the_service(tmp_path: Path) -> None:
    os.chown(tmp_path, 65534, 65534)
    assert only(doctor.check_state_dir(tmp_path)).status in ("ok", "warn")


@pytest.mark.parametrize(("mode", "status"), [(0o600, "ok"), (0o400, "ok"), (0o640, "warn"), (0o644, "warn")])
def test_the_secret_is_for_the_server_alone(tmp_path: Path, mode: int, status: str) -> None:
    path = tmp_path / "secret"
    assert only(doctor.check_secret(path)).status == "info"
    path.touch()
    path.chmod(mode)
    assert only(doctor.check_secret(path)).status == status


# Stores


def test_a_source_that_is_not_there_yet_is_not_created(tmp_path: Path) -> None:
    config = load_config({"state_dir": str(tmp_path / "state")}, {})
    assert only(doctor.check_source(config)).status == "info"
    assert not (tmp_path / "state").exists()


def test_a_source_is_counted(tmp_path: Path) -> None:
    url = f"sqlite://{tmp_path}/ads.db"
    creative = {
        "id": "k",
        "placement_size": [1, 1],
        "format": "text",
        "data": {"text": "x"},
        "landing_url": "https://example.com/",
    }
    value = {
        "placements": [{"id": "p", "width": 1, "height": 1}],
        "campaigns": [{"id": "c", "name": "C", "priority": "house", "creatives": [creative]}],
    }
    store = open_store(url)
    store.migrate()
    empty = only(doctor.check_source(load_config({"source": url}, {})))
    assert (empty.status, "adctl apply" in empty.advice) == ("warn", True)
    store.apply(lambda there: parse_inventory(value))
    store.close()
    finding = only(doctor.check_source(load_config({"source": url}, {})))
    assert finding.status == "ok"
    assert "1 placements, 1 campaigns, 1 creatives" in finding.found


def test_a_source_out_of_reach_is_a_failure_without_its_password() -> None:
    config = load_config({"source": "mysql://me:hush@127.0.0.1:1/ads"}, {})
    finding = only(doctor.check_source(config))
    assert finding.status == "fail"
    assert "hush" not in str(finding)


def test_a_memcached_out_of_reach_is_a_failure(tmp_path: Path) -> None:
    finding = only(doctor.check_memcached(f"unix:{tmp_path}/no.sock", "adcore:", tmp_path / "secret"))
    assert finding.status == "fail"
    assert "--memcached" in finding.advice


def test_a_memcached_that_answers_is_ok(tmp_path: Path) -> None:
    path = tmp_path / "memcached.sock"
    # -u: memcached refuses to be root without being told so.
    process = subprocess.Popen(["memcached", "-s", path, "-U", "0", "-u", getpass.getuser()])
    try:
        deadline_monotonic = time.monotonic() + 20
        while not path.exists():
            assert process.poll() is None
            assert time.monotonic() < deadline_monotonic
            time.sleep(0.01)
        finding = only(doctor.check_memcached(f"unix:{path}", "adcore:", tmp_path / "secret"))
    finally:
        process.terminate()
        process.wait(20)
    assert finding == Finding("memcached", "ok", f"unix:{path} answers and holds no snapshot yet")


# Sockets


@contextmanager
def answering(path: Path, answer: bytes | None) -> Iterator[None]:
    """A server that gives this answer to one connection; None accepts and says nothing."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    over = threading.Event()

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            if answer is None:
                over.wait(30)
            else:
                connection.recv(1000)
                connection.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(30)
        listener.close()
        assert not thread.is_alive()


def reply(status: str, body: bytes) -> bytes:
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status.encode(), len(body), body)


@pytest.mark.parametrize(
    ("answer", "status", "found"),
    [
        (reply("200 OK", b"ok\n"), "ok", "answers /ping"),
        (reply("503 Service Unavailable", b""), "fail", "503"),
        (reply("200 OK", b"hello"), "fail", "not as adcore"),
        (b"-ERR unknown command\r\n", "fail", "BadStatusLine"),
        (b"", "fail", "RemoteDisconnected"),
        (None, "fail", "no answer within"),
    ],
)
def test_a_socket_is_asked_for_a_ping(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes | None, status: str, found: str
) -> None:
    monkeypatch.setattr(doctor, "PROBE_TIMEOUT_S", 0.2 if answer is None else 10.0)
    path = tmp_path / "ad.sock"
    with answering(path, answer):
        path.chmod(0o660)
        permissions, ping = doctor.check_socket(path)
    assert permissions.status == "ok"
    assert "mode 0660" in permissions.found
    assert ping.status == status
    assert found in ping.found


def test_a_real_server_answers_on_its_socket(tmp_path: Path) -> None:
    with serving(tmp_path):
        permissions, ping = doctor.check_socket(tmp_path / "ad.sock")
    assert (permissions.status, ping.status) == ("ok", "ok"), ping


@pytest.mark.parametrize(("mode", "status"), [(0o660, "ok"), (0o666, "warn"), (0o600, "warn")])
def test_who_may_connect(tmp_path: Path, mode: int, status: str) -> None:
    path = tmp_path / "ad.sock"
    with answering(path, reply("200 OK", b"ok")):
        path.chmod(mode)
        assert next(finding.status for finding in doctor.check_socket(path)) == status
        # The server waits for one connection.
        list(doctor.check_socket(path))


def test_a_socket_left_behind_is_stale(tmp_path: Path) -> None:
    path = tmp_path / "ad.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    _, ping = doctor.check_socket(path)
    assert ping.status == "fail"
    assert "stale" in ping.found


def test_what_is_no_socket_is_said_so(tmp_path: Path) -> None:
    path = tmp_path / "ad.sock"
    assert "is not there" in only(doctor.check_socket(path)).found
    path.touch()
    assert "is not a socket" in only(doctor.check_socket(path)).found


@pytest.mark.parametrize("own", [True, False])
def test_a_socket_that_may_not_be_opened_names_a_group_for_the_web_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: bool
) -> None:
    path = tmp_path / "ad.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    monkeypatch.setattr(doctor, "_is_own_group", lambda status: own)

    class Closed(socket.socket):
        def connect(self, address: object) -> None:
            raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("socket.socket", Closed)
    _, ping = doctor.check_socket(path)
    assert "may not connect" in ping.found
    assert ping.advice.startswith("`usermod -aG ")
    assert ("adcore-web" in ping.advice) == own, "no one joins the group that reads the settings"


# The whole


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name in list(os.environ):
        if name.startswith("ADCORE_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("ADCORE_STATE_DIR", str(tmp_path / "state"))
    return tmp_path


def test_a_healthy_host_is_0_and_says_so(quiet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "ok    Python: 3." in out
    assert "fail" not in out


def test_a_failure_is_1_with_advice_and_the_other_checks_go_on(quiet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json", "--unix", str(quiet / "no.sock")]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is False
    failed = [finding for finding in report["findings"] if finding["status"] == "fail"]
    assert [finding["check"] for finding in failed] == ["socket"]
    assert f"--unix {quiet}/no.sock" in failed[0]["advice"]
    assert {"Python", "somaxconn", "source"} <= {finding["check"] for finding in report["findings"]}


def test_a_bad_configuration_is_a_finding(quiet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--source", "postgres://x"]) == 1
    out = capsys.readouterr().out
    assert out.startswith("fail  configuration: --source: must be sqlite:///")
    assert "somaxconn" in out
