"""One code path for every source of a socket; nobody's socket is taken, widened or removed."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import json
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import cast

import pytest
import uvloop

from adcore.config import load_config
from adcore.errors import StartError
from adcore.listen import (
    RECEIVE_BUFFER_BYTES,
    SEND_BUFFER_BYTES,
    Listener,
    TcpAddress,
    UnixAddress,
    adopt,
    open_address,
    open_control,
    open_listener,
    parse_address,
    serve,
)

ROOT = Path(__file__).parent.parent


class Greeter(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        writable = cast("asyncio.WriteTransport", transport)  # uvloop's is one in all but its bases
        writable.write(b"hello")
        writable.close()


def open_with(environ: dict[str, str] | None = None, **flags: str) -> Listener:
    return open_listener(load_config(flags, {"HOME": "/"}), {} if environ is None else environ)


def greeting_from(listener: Listener, loop: asyncio.AbstractEventLoop) -> bytes:
    """Serve on the listener with a real loop, and what a real client reads there."""
    address = listener.sock.getsockname()
    family = listener.sock.family

    def ask() -> bytes:
        with socket.socket(family) as client:
            client.connect(address)
            return client.recv(100)

    async def run() -> bytes:
        server = await serve(asyncio.get_running_loop(), listener, Greeter, 64)
        try:
            return await asyncio.to_thread(ask)
        finally:
            server.close()
            await server.wait_closed()

    return loop.run_until_complete(run())


@pytest.fixture(params=["uvloop", "asyncio"])
def loop(request: pytest.FixtureRequest) -> Iterator[asyncio.AbstractEventLoop]:
    made = uvloop.new_event_loop() if request.param == "uvloop" else asyncio.new_event_loop()
    with closing(made):
        yield made
        made.run_until_complete(made.shutdown_default_executor())


# --- addresses


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("unix:/run/a:b.sock", UnixAddress(Path("/run/a:b.sock"))),
        ("127.0.0.1:0", TcpAddress("127.0.0.1", 0)),
        ("cache.example:11211", TcpAddress("cache.example", 11211)),
        ("[2001:db8::1]:80", TcpAddress("2001:db8::1", 80)),
    ],
)
def test_an_address_is_written_as_it_is_read(text: str, address: UnixAddress | TcpAddress) -> None:
    assert parse_address(text) == address
    assert str(address) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "80",
        ":80",
        "host",
        "host:",
        "host:x",
        "host:65536",
        "host:-1",
        "::1:80",
        "a b:80",
        "unix:",
        "unix:/",
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"must|brackets"):
        parse_address(text)


# --- TCP


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_tcp_serves(host: str, loop: asyncio.AbstractEventLoop) -> None:
    listener = open_with(host=host, port="0")
    port = listener.sock.getsockname()[1]
    assert listener.describe in (f"http://127.0.0.1:{port}", f"http://[::1]:{port}")
    assert greeting_from(listener, loop) == b"hello"
    listener.close()


def test_a_port_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(StartError, match=f"port {port} is in use"):
            open_with(port=str(port))


def test_a_port_is_free_again_at_once_after_a_connection(loop: asyncio.AbstractEventLoop) -> None:
    first = open_with(port="0")
    port = str(first.sock.getsockname()[1])
    assert greeting_from(first, loop) == b"hello"
    first.close()
    open_with(port=port).close()


@pytest.mark.parametrize(
    ("host", "says"),
    [
        ("192.0.2.1", "192.0.2.1 is not an address of this host"),
        ("no-such.invalid", "no-such.invalid is not known"),
    ],
)
def test_a_host_that_is_not_ours_is_named(host: str, says: str) -> None:
    with pytest.raises(StartError, match=says):
        open_with(host=host, port="0")


# --- unix


def test_a_unix_path_serves_and_goes_with_its_listener(tmp_path: Path, loop: asyncio.AbstractEventLoop) -> None:
    path = tmp_path / "ad.sock"
    listener = open_with(unix=str(path))
    assert (listener.describe, listener.inherited, listener.unix_path) == (f"unix:{path}", False, path)
    assert greeting_from(listener, loop) == b"hello"
    assert path.exists()
    listener.close()
    assert not path.exists()


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666, 0o777])
@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_the_mode_is_right_whatever_the_umask(tmp_path: Path, mode: int, umask: int) -> None:
    before = os.umask(umask)
    try:
        listener = open_with(unix=str(tmp_path / "ad.sock"), unix_mode=f"{mode:04o}")
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "ad.sock").stat().st_mode) == mode
    listener.close()


def test_the_mode_is_right_from_the_first_instant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ad.sock"
    at_bind: list[int] = []
    bind = socket.socket.bind

    class Watched(socket.socket):
        def bind(self, address: object) -> None:
            bind(self, address)  # type: ignore[arg-type]
            at_bind.append(stat.S_IMODE(path.stat().st_mode))

    monkeypatch.setattr(socket, "socket", Watched)
    open_address(UnixAddress(path), backlog=8, unix_mode=0o600).close()
    assert at_bind == [0o600]


WEB = 54321
"""A group of no one here."""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to a group that it is not in")
@pytest.mark.parametrize("inherited", [0o022, 0, 0o777])
def test_a_socket_is_given_to_its_group_before_anyone_can_connect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inherited: int
) -> None:
    path = tmp_path / "ad.sock"
    at_listen: list[tuple[int, int]] = []
    at_bind: list[int] = []
    bind, listen = socket.socket.bind, socket.socket.listen

    class Watched(socket.socket):
        def bind(self, address: object) -> None:
            bind(self, address)  # type: ignore[arg-type]
            at_bind.append(stat.S_IMODE(path.stat().st_mode))

        def listen(self, backlog: int = 1) -> None:
            at_listen.append((stat.S_IMODE(path.stat().st_mode), path.stat().st_gid))
            listen(self, backlog)

    monkeypatch.setattr(socket, "socket", Watched)
    before = os.umask(inherited)
    try:
        open_with(unix=str(path), unix_mode="0660", unix_group=str(WEB)).close()
    finally:
        assert os.umask(before) == inherited
    assert at_bind == [0o600]
    assert at_listen == [(0o660, WEB)]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to a group that it is not in")
@pytest.mark.parametrize("mode", [0o660, 0o666, 0o777, 0o600])
def test_control_sockets_are_for_adcores_own_group_whatever_the_public_one_is(tmp_path: Path, mode: int) -> None:
    """A folder for the web server hands its group to all that is made in it."""
    os.chown(tmp_path, -1, WEB)
    tmp_path.chmod(0o2770)
    public = open_with(unix=str(tmp_path / "ad.sock"), unix_mode=f"{mode:04o}")
    control = open_control(UnixAddress(tmp_path / "control.sock"), mode)
    with closing(public), closing(control):
        status = (tmp_path / "ad.sock").stat()
        assert (stat.S_IMODE(status.st_mode), status.st_gid) == (mode, WEB)
        status = (tmp_path / "control.sock").stat()
        assert (stat.S_IMODE(status.st_mode), status.st_gid) == (mode & 0o660, os.getegid())


def test_a_group_that_is_not_there_or_not_ours_is_named_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ad.sock"
    with pytest.raises(StartError, match="there is no group no-such-group: `groupadd --system no-such-group`"):
        open_with(unix=str(path), unix_group="no-such-group")

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "chown", refuse)
    with pytest.raises(StartError, match=r"cannot give .*/ad.sock to group 54321: .*usermod -aG"):
        open_with(unix=str(path), unix_group=str(WEB))
    assert not path.exists()


def test_what_took_the_place_of_the_socket_is_not_opened_to_anyone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, other = tmp_path / "ad.sock", tmp_path / "other"
    other.write_text("secret")
    other.chmod(0o600)
    bind = socket.socket.bind

    class Raced(socket.socket):
        def bind(self, address: object) -> None:
            bind(self, address)  # type: ignore[arg-type]
            path.unlink()
            path.symlink_to(other)

    monkeypatch.setattr(socket, "socket", Raced)
    with pytest.raises(StartError, match="something else was put there"):
        open_with(unix=str(path), unix_group=str(WEB))
    assert stat.S_IMODE(other.stat().st_mode) == 0o600


def test_a_live_server_is_refused_by_its_path_and_keeps_serving(tmp_path: Path) -> None:
    path = tmp_path / "ad.sock"
    first = open_with(unix=str(path))
    with pytest.raises(StartError, match=f"{path}: another server is answering there"):
        open_with(unix=str(path))
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    first.close()


def test_a_live_server_with_a_full_backlog_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adcore.listen.PROBE_TIMEOUT_S", 0.05)
    path = tmp_path / "ad.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen(1)
        clients = []
        with suppress(BlockingIOError):
            while True:
                clients.append(socket.socket(socket.AF_UNIX))
                clients[-1].setblocking(False)
                clients[-1].connect(str(path))
        with pytest.raises(StartError, match="another server is answering"):
            open_with(unix=str(path))
        for client in clients:
            client.close()
    assert path.exists()


def test_a_stale_socket_is_replaced(tmp_path: Path, loop: asyncio.AbstractEventLoop) -> None:
    path = tmp_path / "ad.sock"
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(path))
        gone.listen()
    assert path.exists()
    listener = open_with(unix=str(path))
    assert greeting_from(listener, loop) == b"hello"
    listener.close()


@pytest.mark.parametrize("kind", ["file", "folder", "link", "fifo"])
def test_what_is_not_a_socket_is_refused_and_left_alone(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "ad.sock"
    if kind == "file":
        path.write_text("precious")
    elif kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(tmp_path / "elsewhere")
    else:
        os.mkfifo(path)
    with pytest.raises(StartError, match=f"{path}: it exists and is not a socket"):
        open_with(unix=str(path))
    assert os.path.lexists(path)


def test_a_datagram_socket_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "ad.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(path))
        with pytest.raises(StartError, match="cannot tell whether a server uses it"):
            open_with(unix=str(path))
    assert path.exists()


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=f"there is no directory {tmp_path}/none"):
        open_with(unix=str(tmp_path / "none" / "ad.sock"))


def test_a_path_too_long_is_named(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 120)
    with pytest.raises(StartError, match=r"x is [0-9]+ bytes long, and a unix socket's path at most 107"):
        open_address(UnixAddress(path), backlog=8, unix_mode=0o600)


def test_a_path_of_107_bytes_is_taken(tmp_path: Path) -> None:
    path = tmp_path / ("x" * (107 - len(str(tmp_path)) - 1))
    open_address(UnixAddress(path), backlog=8, unix_mode=0o600).close()


def test_a_successors_socket_stays_on_close(tmp_path: Path) -> None:
    path = tmp_path / "ad.sock"
    first = open_with(unix=str(path))
    path.unlink()
    second = open_with(unix=str(path))
    first.close()
    assert path.exists()
    second.close()
    assert not path.exists()


def test_of_many_that_start_at_once_one_gets_the_path(tmp_path: Path) -> None:
    path = tmp_path / "ad.sock"
    with socket.socket(socket.AF_UNIX) as gone:  # each finds a stale socket, and could remove a fresh one
        gone.bind(str(path))
    barrier = threading.Barrier(8)
    listeners: list[Listener] = []
    refusals: list[str] = []

    def start() -> None:
        barrier.wait()
        try:
            listeners.append(open_address(UnixAddress(path), backlog=8, unix_mode=0o600))
        except StartError as error:
            refusals.append(str(error))

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(listeners), len(refusals)) == (1, 7)
    listeners[0].close()


def test_nobody_starts_in_a_folder_while_another_server_is_starting_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adcore.listen.LOCK_TIMEOUT_S", 0.0)
    starting = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(starting, fcntl.LOCK_EX)
    with pytest.raises(StartError, match=f"another process has held a lock on {tmp_path}"):
        open_with(unix=str(tmp_path / "ad.sock"))
    os.close(starting)
    assert not (tmp_path / "ad.sock").exists()


# --- inherited


@pytest.mark.parametrize("listening", [True, False])
@pytest.mark.parametrize("family", [socket.AF_UNIX, socket.AF_INET])
def test_an_inherited_socket_serves_and_its_path_stays(
    tmp_path: Path, loop: asyncio.AbstractEventLoop, family: socket.AddressFamily, listening: bool
) -> None:
    path = tmp_path / "ad.sock"
    holder = socket.socket(family)
    holder.bind(str(path) if family == socket.AF_UNIX else ("127.0.0.1", 0))
    if listening:
        holder.listen()
    fd = os.dup(holder.fileno())
    os.set_inheritable(fd, True)
    with holder:
        listener = open_with(fd=str(fd))
        assert (listener.inherited, listener.unix_path) == (True, None)
        assert listener.describe.startswith(f"fd {fd} (")
        assert not listener.sock.get_inheritable()
        assert greeting_from(listener, loop) == b"hello"
        listener.close()
        assert path.exists() == (family == socket.AF_UNIX)


def test_what_cannot_listen_is_refused_by_its_descriptor(tmp_path: Path) -> None:
    with (
        (tmp_path / "file").open("w") as file,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagram,
        socket.socket() as unbound,
        socket.socket(socket.AF_UNIX) as unbound_unix,
    ):
        left, right = socket.socketpair()
        cases = [
            (file.fileno(), "is not a socket"),
            (datagram.fileno(), "not a stream"),
            (unbound.fileno(), "is not bound"),
            (unbound_unix.fileno(), "is not bound"),
            (left.fileno(), "is a connection"),
            (1000, "is not open"),
        ]
        for fd, says in cases:
            with pytest.raises(StartError, match=f"^--fd {fd}: descriptor {fd} .*{says}"):
                open_with(fd=str(fd))
        left.close()
        right.close()


def test_systemds_variables_are_unset_even_when_meant_for_another(tmp_path: Path) -> None:
    environ = {"LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "ad", "OTHER": "x"}
    listener = open_with(environ, unix=str(tmp_path / "ad.sock"))
    assert environ == {"OTHER": "x"}
    listener.close()


@pytest.mark.parametrize("count", ["2", "0", "x", ""])
def test_any_number_of_systemd_sockets_but_one_is_refused(count: str) -> None:
    with pytest.raises(StartError, match="adcore serves one socket"):
        open_with({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": count})


def test_more_than_one_systemd_socket_is_refused_by_their_names() -> None:
    environ = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "2", "LISTEN_FDNAMES": "adcore.socket:other.socket"}
    with pytest.raises(StartError, match=r"LISTEN_FDS is '2' \(adcore.socket:other.socket\), and adcore serves one"):
        open_with(environ)


def test_a_systemd_socket_that_is_none_is_refused_by_its_name() -> None:
    probe = subprocess.run(
        [sys.executable, "-c", NO_SOCKET],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    assert "LISTEN_FDS, adcore.socket: descriptor 3 is not a socket" in probe.stdout


def test_listening_sockets_that_came_along_are_closed_and_others_left_alone() -> None:
    with socket.create_server(("127.0.0.1", 0)) as held, socket.create_server(("127.0.0.1", 0)) as ours:
        leaked, private = os.dup(held.fileno()), os.dup(held.fileno())
        left, right = socket.socketpair()
        os.set_inheritable(leaked, True)
        left.set_inheritable(True)
        listener = open_with(fd=str(os.dup(ours.fileno())))
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(leaked)
        for fd in (private, left.fileno(), held.fileno()):
            os.fstat(fd)
        os.close(private)
        left.close()
        right.close()
        listener.close()


def test_a_systemd_socket_and_a_flag_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="but --unix asks for another"):
        open_with({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}, unix=str(tmp_path / "ad.sock"))


NO_SOCKET = """
import os
from adcore.config import load_config
from adcore.errors import StartError
from adcore.listen import open_listener
os.dup2(0, 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="adcore.socket")
try:
    open_listener(load_config({}, {"HOME": "/"}))
except StartError as error:
    print(error)
"""
# A child that opens what it was given, says what it got and whether a grandchild would meet the socket.
CHILD = """
import json, os, socket, stat, sys
from adcore.config import load_config
from adcore.listen import open_listener
if "as_systemd" in sys.argv:
    os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="ad")
    os.dup2(0, 3)
    listener = open_listener(load_config({}, {"HOME": "/"}))
else:
    listener = open_listener(load_config({"fd": "0"}, {"HOME": "/"}))
print(json.dumps({
    "describe": listener.describe,
    "stdin_is_socket": stat.S_ISSOCK(os.fstat(0).st_mode),
    "inheritable": listener.sock.get_inheritable(),
    "left": [name for name in os.environ if name.startswith("LISTEN_")],
}), flush=True)
connection, _ = listener.sock.accept()
connection.sendall(b"hello")
listener.close()
"""


@pytest.mark.parametrize("how", ["as_fd_0", "as_systemd"])
@pytest.mark.parametrize("family", [socket.AF_UNIX, socket.AF_INET])
def test_a_child_serves_on_the_socket_it_was_given(tmp_path: Path, how: str, family: socket.AddressFamily) -> None:
    path = tmp_path / "ad.sock"
    with socket.socket(family) as held:
        held.bind(str(path) if family == socket.AF_UNIX else ("127.0.0.1", 0))
        held.listen()
        address = held.getsockname()
        with subprocess.Popen(
            [sys.executable, "-c", CHILD, how], stdin=held.fileno(), stdout=subprocess.PIPE, cwd=ROOT
        ) as child:
            assert child.stdout is not None
            said = json.loads(child.stdout.readline())
            with socket.socket(family) as client:
                client.connect(address)
                assert client.recv(100) == b"hello"
        assert child.returncode == 0
        assert said["describe"].startswith("fd 0 (" if how == "as_fd_0" else "fd 3 (")
        assert (said["inheritable"], said["left"]) == (False, [])
        if how == "as_fd_0":
            assert not said["stdin_is_socket"]
        assert path.exists() == (family == socket.AF_UNIX)


def test_what_the_kernel_keeps_for_a_connection_is_bounded(tmp_path: Path) -> None:
    adopted = adopt(socket.create_server(("127.0.0.1", 0)).detach(), "a test", 16)
    for listener in (open_address(TcpAddress("127.0.0.1", 0), backlog=16, unix_mode=0o600), adopted):
        with socket.create_connection(listener.sock.getsockname()[:2]), listener.sock.accept()[0] as accepted:
            sizes = [accepted.getsockopt(socket.SOL_SOCKET, name) for name in (socket.SO_RCVBUF, socket.SO_SNDBUF)]
        assert sizes == [2 * RECEIVE_BUFFER_BYTES, 2 * SEND_BUFFER_BYTES]
        listener.close()
