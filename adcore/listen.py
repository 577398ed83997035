"""Where the listening socket comes from: a unix path, a TCP port, a descriptor that systemd or Circus holds.

The sources differ only in how the socket object is made; one function, `serve`, serves every kind. A path is
taken only when nobody answers on it, lets nobody in before its group and mode are right, and is removed on close only
while the file is still ours. A socket that was handed in belongs to whoever made it: its path is never removed.

Knows nothing of HTTP or ads.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import grp
import os
import re
import socket
import stat
import time
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adcore.errors import StartError

if TYPE_CHECKING:
    from adcore.config import Config

UNIX_PATH_BYTES_MAX = 107  # sockaddr_un.sun_path is 108 bytes on Linux, with its closing NUL
PROBE_TIMEOUT_S = 1.0  # a live server's kernel accepts at once; one that takes longer is busy, not absent
LOCK_TIMEOUT_S = 5.0  # probing and binding takes milliseconds, so a lock held this long is not a start in progress
# Requests are small, and a body has 64 KiB at most; so are answers, and one may have 256 KiB. Linux doubles both.
RECEIVE_BUFFER_BYTES = 64 * 1024
SEND_BUFFER_BYTES = 128 * 1024
CONTROL_BACKLOG = 16
CONTROL_MODE_MAX = 0o660
SYSTEMD_FIRST_FD = 3  # SD_LISTEN_FDS_START, sd_listen_fds(3)


# --- addresses


@dataclass(frozen=True, slots=True)
class UnixAddress:
    path: Path

    def __str__(self) -> str:
        return f"unix:{self.path}"


@dataclass(frozen=True, slots=True)
class TcpAddress:
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


Address = UnixAddress | TcpAddress


def parse_address(text: str) -> Address:
    """`unix:PATH`, `HOST:PORT` or `[IPV6]:PORT`. Raises ValueError that says what is wrong with the text."""
    if text.startswith("unix:"):
        path = Path(text.removeprefix("unix:"))
        if (problem := unix_path_problem(path)) is not None:
            raise ValueError(problem)
        return UnixAddress(path)
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"an IPv6 address goes in brackets, like [::1]:8080, not {text!r}")
    if not colon or not host or any(c.isspace() or c == "/" for c in host):
        raise ValueError(f"must be unix:PATH or HOST:PORT, like 127.0.0.1:11211, not {text!r}")
    if not (re.fullmatch(r"[0-9]{1,5}", port) and int(port) <= 65535):
        raise ValueError(f"the port must be 0 to 65535, not {port!r}")
    return TcpAddress(host, int(port))


def control_names(config: Config) -> frozenset[str]:
    """The host names, in lower case, by which the control listener may be asked over TCP."""
    address = None if config.control is None else parse_address(config.control)
    own = {address.host} if isinstance(address, TcpAddress) else set()
    return frozenset(name.lower() for name in {*config.control_hosts, *own, socket.gethostname()})


def unix_path_problem(path: Path) -> str | None:
    """What is wrong with a path as the name of a unix socket, or None."""
    name = os.fsencode(path)
    if not path.name or b"\0" in name:
        return f"must name a socket file, not {str(path)!r}"
    if len(name) > UNIX_PATH_BYTES_MAX:
        return f"{path} is {len(name)} bytes long, and a unix socket's path at most {UNIX_PATH_BYTES_MAX}"
    return None


# --- listeners


class Listener:
    """A bound, listening socket, with what is needed to name it and to put it away.

    `describe` is the address for a person ("unix:/run/ad.sock", "http://127.0.0.1:8080", "fd 3 (…)").
    `unix_path` is set only for a path that this process bound, never for an inherited socket.
    """

    __slots__ = ("_file", "describe", "inherited", "sock", "unix_path")

    def __init__(
        self, sock: socket.socket, describe: str, *, inherited: bool = False, unix_path: Path | None = None
    ) -> None:
        self.sock = sock
        self.describe = describe
        self.inherited = inherited
        self.unix_path = unix_path
        self._file = None if unix_path is None else _file_identity(unix_path)

    def close(self) -> None:
        """Close the socket; remove its path while that is still the file we bound."""
        self.sock.close()
        if self.unix_path is None:
            return
        with _directory_locked(self.unix_path.parent):
            if self._file is not None and _file_identity(self.unix_path) == self._file:
                self.unix_path.unlink(missing_ok=True)
        self._file = None


def open_listener(config: Config, environ: MutableMapping[str, str] = os.environ) -> Listener:
    """The public listener that the configuration (or systemd, when it names none) asks for.

    Takes systemd's LISTEN_* variables out of `environ`: no child may take them for its own. Raises StartError.
    """
    if config.listener == "fd":
        _take_systemd_socket(environ)
        assert config.fd is not None
        listener = adopt(config.fd, f"--fd {config.fd}", config.backlog)
        _close_other_listeners(listener.sock)
        return listener
    asked_for = "" if config.listener == "default" else config.origin_of_listener
    if (passed := take_systemd_listener(config.backlog, asked_for, environ)) is not None:
        return passed
    address: Address = TcpAddress(config.host, config.port)
    if config.listener == "unix":
        assert config.unix is not None
        address = UnixAddress(config.unix)
    return open_address(
        address, backlog=config.backlog, unix_mode=config.unix_mode, unix_group=group_id(config.unix_group)
    )


def open_control(address: Address, unix_mode: int) -> Listener:
    """The listener for operators. Its socket is for this process's user and group, whatever its folder and the mode of
    the public one say: the web server's group asks for ads and not for status. Raises StartError."""
    return open_address(
        address, backlog=CONTROL_BACKLOG, unix_mode=unix_mode & CONTROL_MODE_MAX, unix_group=os.getegid()
    )


def open_address(address: Address, *, backlog: int, unix_mode: int, unix_group: int | None = None) -> Listener:
    """Bind and listen. `unix_mode` is the mode of the socket file, such as 0o660, and `unix_group` its group if it is
    not to be the one that the kernel gives it. Raises StartError."""
    if isinstance(address, UnixAddress):
        return _bind_unix(address.path, backlog, unix_mode, unix_group)
    return _bind_tcp(address, backlog)


def take_systemd_listener(
    backlog: int, asked_for: str = "", environ: MutableMapping[str, str] = os.environ
) -> Listener | None:
    """The socket that systemd passed to this process, if any; `asked_for` says who asked for another one, which is one
    too many. Raises StartError."""
    name = _take_systemd_socket(environ)
    if name is None:
        return None
    if asked_for:
        raise StartError(
            f"systemd passed a socket, {name} (LISTEN_FDS), but {asked_for} asks for another: remove one of the two"
        )
    return adopt(SYSTEMD_FIRST_FD, f"LISTEN_FDS, {name}", backlog)


def group_id(name: str | None) -> int | None:
    """The number of a group given by name or number. Raises StartError."""
    if name is None or name.isdigit():
        return None if name is None else int(name)
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise StartError(f"there is no group {name}: `groupadd --system {name}`, or see --unix-group") from None


async def serve(
    loop: asyncio.AbstractEventLoop,
    listener: Listener,
    protocol_factory: Callable[[], asyncio.BaseProtocol],
    backlog: int,
) -> asyncio.Server:
    """Start accepting. Keep the returned server: uvloop holds no reference to one on a unix socket.

    `create_server` takes a unix socket as well, and never removes its path on close; `create_unix_server`
    does on Python >= 3.13. It calls listen() again, with a backlog of 100 unless told.
    """
    return await loop.create_server(protocol_factory, sock=listener.sock, backlog=backlog)


# --- TCP


def _bind_tcp(address: TcpAddress, backlog: int) -> Listener:
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        raise StartError(f"cannot listen on {address}: {address.host} is not known ({error})") from error
    failure: OSError | None = None
    for family, kind, protocol, _, sockaddr in found:
        try:
            sock = socket.socket(family, kind, protocol)
        except OSError as error:  # a kernel without IPv6
            failure = error
            continue
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:  # "::" serves IPv4 as well, whatever net.ipv6.bindv6only says
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            _bound_buffers(sock)
            sock.bind(sockaddr)
            sock.listen(backlog)
        except OSError as error:
            sock.close()
            failure = error
            if error.errno == errno.EADDRNOTAVAIL:  # "localhost" may name ::1 on a host without it
                continue
            break
        return Listener(sock, f"http://{_describe_sockname(sock)}")
    assert failure is not None
    raise StartError(_explain_tcp_failure(address, failure)) from failure


def _bound_buffers(sock: socket.socket) -> None:
    """Bound what the kernel keeps for each TCP connection accepted from now on; it would go up to 10 MiB.

    A unix socket's are 208 KiB and do not grow.
    """
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)


def _explain_tcp_failure(address: TcpAddress, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"cannot listen on {address}: port {address.port} is in use. Stop what holds it "
            f"(ss -ltnp 'sport = :{address.port}' shows it) or choose another port"
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return (
            f"cannot listen on {address}: this user may not bind port {address.port}. "
            "Choose one from 1024 up, or let systemd hold the socket"
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return f"cannot listen on {address}: {address.host} is not an address of this host"
    return f"cannot listen on {address}: {os.strerror(error.errno or 0)}"


# --- unix


def _bind_unix(path: Path, backlog: int, mode: int, group: int | None) -> Listener:
    if (problem := unix_path_problem(path)) is not None:
        raise StartError(f"cannot listen: {problem}")
    if not path.parent.is_dir():
        raise StartError(f"cannot listen on {path}: there is no directory {path.parent}; create it first")
    # Two servers that start at once could each take the other's fresh socket for a stale one.
    with _directory_locked(path.parent):
        _remove_stale(path)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # A chmod after bind would leave a moment with a wider mode. Nothing is open before the group is right.
            umask = os.umask(0o777 & ~(mode if group is None else mode & 0o700))
            try:
                sock.bind(str(path))
            finally:
                os.umask(umask)
            if group is not None:
                _let_in(path, mode, group)
            sock.listen(backlog)  # under the lock: a socket bound but not listening looks stale to a probe
        except OSError as error:
            sock.close()
            why = os.strerror(error.errno or 0)
            raise StartError(f"cannot listen on {path}: {why}; see who may write to {path.parent}") from error
        except BaseException:
            sock.close()
            raise
        return Listener(sock, f"unix:{path}", unix_path=path)


def _let_in(path: Path, mode: int, group: int) -> None:
    """Give the new socket its group and mode; by a descriptor, so that both are of one file. Raises OSError and
    StartError."""
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        if not stat.S_ISSOCK(status.st_mode) or status.st_uid != os.geteuid():
            raise StartError(
                f"cannot listen on {path}: something else was put there; see who may write to {path.parent}"
            )
        place = f"/proc/self/fd/{fd}"
        if status.st_gid != group:
            try:
                os.chown(place, -1, group)
            except OSError as error:
                path.unlink(missing_ok=True)
                raise StartError(
                    f"cannot give {path} to group {group}: {os.strerror(error.errno or 0)}; this user must be in that "
                    "group (`usermod -aG`, and a new start), or see --unix-group"
                ) from error
        os.chmod(place, mode)
    finally:
        os.close(fd)


def _remove_stale(path: Path) -> None:
    """Make way at `path`: nothing there, or a socket that nobody answers on."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise StartError(f"cannot listen on {path}: {os.strerror(error.errno or 0)}") from error
    if not stat.S_ISSOCK(mode):
        raise StartError(f"cannot listen on {path}: it exists and is not a socket; move it or choose another path")
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(PROBE_TIMEOUT_S)
            probe.connect(str(path))
    except ConnectionRefusedError:
        pass
    except FileNotFoundError:
        return
    except (BlockingIOError, TimeoutError):  # its backlog is full: somebody is listening
        raise StartError(_live_server(path)) from None
    except OSError as error:
        why = os.strerror(error.errno or 0)
        raise StartError(
            f"cannot listen on {path}: cannot tell whether a server uses it ({why}); remove it if none does"
        ) from error
    else:
        raise StartError(_live_server(path))
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        why = os.strerror(error.errno or 0)
        raise StartError(f"cannot remove the stale socket {path}: {why}; remove it by hand") from error


def _live_server(path: Path) -> str:
    return f"cannot listen on {path}: another server is answering there; stop it or choose another path"


@contextmanager
def _directory_locked(directory: Path) -> Iterator[None]:
    """Hold an advisory lock on the directory itself, which leaves no lock file behind."""
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:  # gone, or not ours to read: there is nothing to hold
        yield
        return
    try:
        deadline_monotonic = time.monotonic() + LOCK_TIMEOUT_S
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline_monotonic:
                    raise StartError(
                        f"another process has held a lock on {directory} for {LOCK_TIMEOUT_S:g} s "
                        f"(lslocks shows it); use a directory of adcore's own"
                    ) from None
                time.sleep(0.02)
        yield
    finally:
        os.close(fd)


def _file_identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


# --- inherited


def _take_systemd_socket(environ: MutableMapping[str, str]) -> str | None:
    """The name of the socket that systemd passed to this very process (sd_listen_fds(3)), or None.

    Its descriptor is SYSTEMD_FIRST_FD, and its name that of its unit unless FileDescriptorName= gave it one.
    """
    pid, count = environ.pop("LISTEN_PID", None), environ.pop("LISTEN_FDS", None)
    names = environ.pop("LISTEN_FDNAMES", "")
    environ.pop("LISTEN_PIDFDID", None)
    if pid is None or count is None or pid != str(os.getpid()):
        return None
    if count != "1":
        which = f" ({names})" if names else ""
        raise StartError(
            f"LISTEN_FDS is {count!r}{which}, and adcore serves one socket: "
            "keep one ListenStream= in one unit of Sockets="
        )
    return names or "unnamed"


def _close_other_listeners(ours: socket.socket) -> None:
    """Close the listening sockets that were inherited besides `ours`: Circus passes all of its sockets to everyone.

    Held here, one whose owner has gone would go on taking connections that nobody serves.
    """
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        try:
            if fd == ours.fileno() or not os.get_inheritable(fd) or not stat.S_ISSOCK(os.fstat(fd).st_mode):
                continue
            other = socket.socket(fileno=fd)
        except OSError:  # the descriptor of this listing, or a kind of socket without a name
            continue
        if other.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            other.close()
        else:
            other.detach()


def adopt(fd: int, origin: str, backlog: int) -> Listener:
    """The listener on an inherited descriptor; `origin` is who named it. Raises StartError."""
    try:
        sock = socket.socket(fileno=fd)
    except OSError as error:
        what = "is not open" if error.errno == errno.EBADF else "is not a socket"
        raise StartError(f"{origin}: descriptor {fd} {what}; pass a bound stream socket") from error
    if (problem := _inherited_problem(sock)) is not None:
        sock.detach()  # not ours to close
        raise StartError(f"{origin}: descriptor {fd} {problem}; pass a bound stream socket")
    try:
        sock.listen(backlog)
    except OSError as error:
        sock.detach()
        why = os.strerror(error.errno or 0)
        raise StartError(f"{origin}: cannot listen on descriptor {fd}: {why}") from error
    _bound_buffers(sock)
    if fd <= 2:
        sock = _move_off_standard_stream(sock)
    sock.set_inheritable(False)
    return Listener(sock, f"fd {fd} ({_describe_sockname(sock)})", inherited=True)


def _inherited_problem(sock: socket.socket) -> str | None:
    if sock.family not in (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6):
        return f"is a socket of family {sock.family!r}, not unix or TCP"
    if sock.type != socket.SOCK_STREAM:
        return f"is a {sock.type!r} socket, not a stream"
    if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return None
    try:
        sock.getpeername()
    except OSError:
        name = sock.getsockname()
        bound = bool(name) if sock.family == socket.AF_UNIX else name[1] != 0
        return None if bound else "is not bound to an address"
    return "is a connection, not a listening socket"


def _move_off_standard_stream(sock: socket.socket) -> socket.socket:
    """Put /dev/null at descriptor 0, 1 or 2 again: neither a child nor a stray print may meet the socket."""
    fd = sock.fileno()
    moved = sock.dup()
    sock.detach()
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, fd)
    os.close(null)
    return moved


def _describe_sockname(sock: socket.socket) -> str:
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        text = os.fsdecode(name)
        return f"unix:{'@' + text[1:] if text.startswith(chr(0)) else text}"
    return str(TcpAddress(name[0], name[1]))
