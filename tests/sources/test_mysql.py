"""What a MySQL server may do to us before it is known to be ours, and TLS by which it is known."""

import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from adcore.errors import ConfigError, SourceError
from adcore.sources import open_store
from adcore.sources.mysql import parse_url
from adcore.sources.watch import Watch
from adtools.admin.project import database
from tests import services
from tests.process import adctl, wait_for
from tests.rogue import CAPABILITIES, OK, MysqlPeer, Rogue, endless, greeting, trickle

PASSWORD = "hunter22"
READS_PASSWORD = ("mysql_clear_password", "dialog")
KNOWS_A_KEY = ("caching_sha2_password", "sha256_password")
SAFE = ("mysql_native_password", "client_ed25519")


class Thief:
    """A server that asks for the password by `plugin`, at once or after another one; `heard` is what it was told."""

    def __init__(self, plugin: str, at_once: bool) -> None:
        self.plugin = plugin.encode()
        self.at_once = at_once
        self.heard: list[bytes] = []

    def __call__(self, connection: socket.socket) -> None:
        peer = MysqlPeer(connection)
        self.heard = peer.received
        peer.greet(self.plugin if self.at_once else b"mysql_native_password")
        peer.receive()
        if not self.at_once:
            peer.switch_to(self.plugin)
            peer.receive()
        # caching_sha2_password: it has never seen the password, and wants all of it.
        peer.send(b"\x01\x04")
        peer.receive()


def url_of(rogue: Rogue, options: str = "") -> str:
    if rogue.address.startswith("unix:"):
        return f"mysql://u:{PASSWORD}@/d?unix_socket={rogue.address.removeprefix('unix:')}"
    return f"mysql://u:{PASSWORD}@{rogue.address}/d{options}"


def refused(url: str) -> str:
    with closing(open_store(url)) as store, pytest.raises(SourceError) as error:
        store.revision()
    return str(error.value)


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("plugin", [*READS_PASSWORD, "mysql_old_password", "../../../tmp/evil"])
@pytest.mark.parametrize("over", ["tcp", "unix"])
def test_no_server_gets_a_password_that_it_could_read(tmp_path: Path, plugin: str, at_once: bool, over: str) -> None:
    thief = Thief(plugin, at_once)
    with Rogue(thief, tmp_path / "sock" if over == "unix" else None) as rogue:
        said = refused(url_of(rogue))
    assert "add ssl=verify to the URL" in said
    assert PASSWORD not in said
    assert all(PASSWORD.encode() not in heard for heard in thief.heard)
    assert len(thief.heard) <= 1  # nothing was answered to what it asked


@pytest.mark.parametrize("plugin", KNOWS_A_KEY)
def test_a_server_on_another_host_gets_none_under_a_key_of_its_own_choice(
    plugin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is said over an address that counts as another host's."""
    monkeypatch.setattr("adcore.sources.mysql._is_loopback", lambda host: False)
    thief = Thief(plugin, at_once=False)
    with Rogue(thief) as rogue:
        assert "add ssl=verify to the URL" in refused(url_of(rogue))
    assert len(thief.heard) == 1


@pytest.mark.parametrize(
    ("url", "group"),
    [
        ("mysql://u@db.example.net/d", "adcore-unknown"),
        ("mysql://u@db.example.net/d?ssl=off", "adcore-unknown"),
        ("mysql://u@db.example.net/d?ssl=verify", "adcore-verified"),
        ("mysql://u@127.0.0.1/d", "adcore-local"),
        ("mysql://u@127.9.9.9:3307/d", "adcore-local"),
        ("mysql://u@[::1]/d", "adcore-local"),
        ("mysql://u@localhost/d", "adcore-local"),
        ("mysql://u@localhost.example.net/d", "adcore-unknown"),
        ("mysql://u@/d?unix_socket=/run/m.sock", "adcore-local"),
    ],
)
def test_what_is_known_of_a_server_follows_from_the_url(url: str, group: str) -> None:
    assert parse_url(url)[0]["read_default_group"] == group


def test_every_connection_keeps_to_the_same_rules() -> None:
    """The admin's, by Django, as well."""
    url = "mysql://u:p@db.example.net/d?ssl=verify"
    ours, theirs = parse_url(url)[0], database(url)["OPTIONS"]
    for name in ("local_infile", "read_default_file", "read_default_group", "ssl_mode"):
        assert theirs[name] == ours[name]
    assert ours["local_infile"] is False
    assert not {"passwd", "user", "host", "db", "port"} & theirs.keys()


def test_no_server_gets_a_file_of_this_host(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("the secret of this host")
    heard: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        peer = MysqlPeer(connection)
        peer.log_in()
        peer.next_select()
        heard.clear()
        peer.send(b"\xfb" + str(tmp_path / "secret").encode())
        heard.append(peer.receive())

    with Rogue(serve) as rogue:
        refused(url_of(rogue))
    assert all(b"secret of this host" not in one for one in heard)


def trickling_greeting(connection: socket.socket) -> None:
    payload = greeting(b"mysql_native_password", CAPABILITIES)
    trickle(connection, len(payload).to_bytes(3, "little") + b"\0" + payload, 0.1)


def trickling_login(connection: socket.socket) -> None:
    peer = MysqlPeer(connection)
    peer.greet()
    peer.receive()
    trickle(connection, b"\xe8\x03\0\x02\0", 0.1)


def rows(connection: socket.socket) -> MysqlPeer:
    peer = MysqlPeer(connection)
    peer.log_in()
    peer.next_select()
    peer.send_columns("generation", "revision", "confirmed")
    return peer


def trickling_row(connection: socket.socket) -> None:
    rows(connection)
    trickle(connection, b"\xff\xff\xff\x06x", 0.1)


def trickling_rows(connection: socket.socket) -> None:
    peer = rows(connection)
    while True:
        peer.send_row(b"x", b"1", b"1")
        time.sleep(0.1)


@pytest.mark.parametrize("serve", [trickling_greeting, trickling_login, trickling_row, trickling_rows])
@pytest.mark.parametrize("over", ["tcp", "unix"])
def test_a_call_has_a_time_for_all_that_it_waits_for(
    tmp_path: Path, serve: Callable[[socket.socket], None], over: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of these sends something every tenth of a second, so that no single wait is ever too long."""
    monkeypatch.setattr("adcore.sources.mysql.CALL_S", 0.5)
    with Rogue(serve, tmp_path / "sock" if over == "unix" else None) as rogue:
        assert "answers too slowly: 0.5 s were not enough" in refused(url_of(rogue))


def test_the_time_of_a_call_is_not_that_of_the_next_one(tmp_path: Path, mariadb: services.MariaDB) -> None:
    with closing(open_store(mariadb.create("watched"))) as store:
        store.migrate()
        watch = store._watch  # type: ignore[attr-defined]
        watch._left_s = -1.0
        assert store.revision().number == 0
        assert not watch.fired


def test_a_wait_that_ends_in_time_is_left_alone() -> None:
    now, ended = 0.0, []

    def end() -> None:
        ended.append(now)

    watch = Watch("test", 10.0, lambda: now)
    watch.begin()
    for _ in range(3):
        with watch.waiting(end):
            now += 3.0
        now += 100.0  # between two waits
    assert (watch.fired, ended) == (False, [])
    with watch.waiting(end):
        now += 2.0
        with watch._changed:
            watch._changed.notify()
        wait_for(lambda: watch.fired)
    assert ended == [now]


def test_an_answer_has_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adcore.sources.mysql.ANSWER_BYTES_MAX", 8 << 20)
    sent = 0

    def serve(connection: socket.socket) -> None:
        nonlocal sent
        peer = rows(connection)
        while True:
            peer.send_row(b"x" * 1000, b"1", b"1")
            sent += 1000

    with Rogue(serve) as rogue:
        assert "takes more than 8 MiB" in refused(url_of(rogue))
    assert sent < 32 << 20


def test_many_small_rows_count_as_what_they_take_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adcore.sources.mysql.ANSWER_BYTES_MAX", 1 << 20)
    sent = 0

    def serve(connection: socket.socket) -> None:
        nonlocal sent
        peer = rows(connection)
        while True:
            peer.send_row(b"", b"", b"")
            sent += 1

    with Rogue(serve) as rogue:
        assert "takes more than 1 MiB" in refused(url_of(rogue))


def test_a_row_without_end_is_not_read() -> None:
    parts = 0

    def serve(connection: socket.socket) -> None:
        nonlocal parts
        rows(connection)
        for number in range(6, 1 << 20):
            connection.sendall(b"\xff\xff\xff" + bytes([number % 256]) + b"\xfd\xff\xff\xff" + b"x" * 0xFFFFFB)
            parts += 1

    with Rogue(serve) as rogue:
        assert "mysql://u@" in refused(url_of(rogue))
    assert 1 <= parts <= 8  # of 16 MiB each


@pytest.mark.parametrize(
    ("columns", "row", "problem"),
    [
        (("generation",), (b"g",), "does not answer like a store"),
        (("generation", "revision", "confirmed"), (b"g", b"one", b"1"), "hold what is no revision"),
        (("generation", "revision", "confirmed"), (b"g", b"1" * 30, b"1"), "hold what is no revision"),
    ],
)
def test_an_answer_of_another_kind_is_named(columns: tuple[str, ...], row: tuple[bytes, ...], problem: str) -> None:
    def serve(connection: socket.socket) -> None:
        peer = MysqlPeer(connection)
        peer.log_in()
        peer.next_select()
        peer.send_columns(*columns)
        peer.send_row(*row)
        peer.send(b"\xfe\0\0\2\0")
        peer.receive()

    with Rogue(serve) as rogue:
        assert problem in refused(url_of(rogue))


def test_garbage_without_end_is_named() -> None:
    with Rogue(lambda connection: endless(connection, os.urandom(1 << 16))) as rogue:
        assert "mysql://u@" in refused(url_of(rogue))


# TLS


def openssl(*args: object) -> None:
    done = subprocess.run(
        [services.program("openssl", "openssl"), *map(str, args)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def certificates(folder: Path, name: str, host: str) -> None:
    """`name`-ca.pem, which signs `name`.pem for this address."""
    new = ("req", "-newkey", "rsa:2048", "-nodes")
    openssl(
        *new,
        "-x509",
        "-days",
        "30",
        "-subj",
        f"/CN={name}",
        "-keyout",
        folder / "ca.key",
        "-out",
        folder / f"{name}-ca.pem",
    )
    openssl(*new, "-subj", f"/CN={host}", "-keyout", folder / f"{name}.key", "-out", folder / "csr")
    (folder / "ext").write_text(f"subjectAltName=IP:{host}\n")
    sign = ("-CA", folder / f"{name}-ca.pem", "-CAkey", folder / "ca.key", "-CAcreateserial", "-days", "30")
    openssl("x509", "-req", "-in", folder / "csr", *sign, "-extfile", folder / "ext", "-out", folder / f"{name}.pem")


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """HOST:PORT of a MariaDB that takes TLS alone, of a user u with PASSWORD; and the folder of its certificates."""
    folder = tmp_path_factory.mktemp("tls")
    certificates(folder, "good", "127.0.0.1")
    certificates(folder, "other", "127.0.0.1")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with services.mariadb(folder) as service:
        service.sql(
            f"CREATE DATABASE d; CREATE USER u@'127.0.0.1' IDENTIFIED BY '{PASSWORD}'; "
            "GRANT ALL ON d.* TO u@'127.0.0.1'"
        )
        service.kill()
        service.command.remove("--skip-networking")
        service.command += [f"--port={port}", "--bind-address=0.0.0.0", "--require-secure-transport=ON"]
        service.command += [
            f"--ssl-ca={folder}/good-ca.pem",
            f"--ssl-cert={folder}/good.pem",
            f"--ssl-key={folder}/good.key",
        ]
        service.start()
        yield f"127.0.0.1:{port}", folder


@pytest.mark.parametrize("options", ["?ssl_ca={folder}/good-ca.pem", "?ssl=verify&ssl_ca={folder}/good-ca.pem"])
def test_a_store_is_reached_by_tls(tls: tuple[str, Path], options: str) -> None:
    address, folder = tls
    url = f"mysql://u:{PASSWORD}@{address}/d{options.format(folder=folder)}"
    with closing(open_store(url)) as store:
        store.migrate()
        assert store.revision().number == 0
        (row,) = store.query("SHOW STATUS LIKE 'Ssl_cipher'")  # type: ignore[attr-defined]
        assert row["Value"]
    assert adctl("admin", "migrate", ADCORE_SOURCE=url).returncode == 0


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ("", "Access denied|secure"),
        ("?ssl_ca={folder}/other-ca.pem", "TLS/SSL error"),
        ("?ssl=verify", "TLS/SSL error"),
    ],
)
def test_another_authoritys_server_is_refused(tls: tuple[str, Path], options: str, problem: str) -> None:
    address, folder = tls
    url = f"mysql://u:{PASSWORD}@{address}/d{options.format(folder=folder)}"
    with closing(open_store(url)) as store, pytest.raises(SourceError, match=problem):
        store.revision()


def test_a_certificate_for_another_host_is_refused(tls: tuple[str, Path]) -> None:
    address, folder = tls
    # The whole of 127/8 is this host, and the certificate is for one of its addresses.
    url = f"mysql://u:{PASSWORD}@{address.replace('127.0.0.1', '127.0.0.2')}/d?ssl_ca={folder}/good-ca.pem"
    with closing(open_store(url)) as store, pytest.raises(SourceError, match="TLS/SSL error"):
        store.revision()


def test_a_server_without_tls_gets_nothing_where_tls_is_wanted() -> None:
    thief = Thief("mysql_native_password", at_once=True)
    with Rogue(thief) as rogue:
        assert "SSL is required" in refused(url_of(rogue, "?ssl=verify"))
    assert thief.heard == []


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ("?ssl=yes", "ssl must be verify or off"),
        ("?ssl=required", "ssl must be verify or off"),
        ("?ssl=off&ssl_ca=/dev/null", "ssl_ca is for ssl=verify"),
        ("?ssl_ca=/nonexistent.pem", "there is no file /nonexistent.pem"),
        ("?ssl=verify&ssl=off", "ssl must be"),
        ("?sslmode=verify", "sslmode is no option; there are unix_socket, ssl and ssl_ca"),
    ],
)
def test_a_bad_tls_option_is_named(options: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        parse_url(f"mysql://u:{PASSWORD}@db.example.net/d{options}")


def test_a_unix_socket_has_no_tls() -> None:
    with pytest.raises(ConfigError, match="a unix socket needs none"):
        parse_url("mysql://u@/d?unix_socket=/run/m.sock&ssl=verify")


def test_the_rules_are_installed_with_the_package() -> None:
    arguments: dict[str, Any] = parse_url("mysql://u@h/d")[0]
    assert f"[{arguments['read_default_group']}]" in Path(arguments["read_default_file"]).read_text().splitlines()
    assert OK[:1] == b"\0"
