"""A real adcore in a child process, and HTTP/1.1 to it over a unix socket or TCP."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil

ROOT = Path(__file__).parent.parent
# Only how long to wait before a test is called failed; nothing passes because of it.
PATIENCE_S = 20.0
# What the person or the service manager that runs the tests has set for itself.
FOREIGN = ("ADCORE_", "LISTEN_", "NOTIFY_", "WATCHDOG_")


class Answer(NamedTuple):
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Connection(http.client.HTTPConnection):
    """http.client over `unix:PATH` or `HOST:PORT`."""

    def __init__(self, address: str) -> None:
        self.unix_path = address.removeprefix("unix:") if address.startswith("unix:") else None
        super().__init__("localhost" if self.unix_path else address, timeout=PATIENCE_S)

    def connect(self) -> None:
        if self.unix_path is None:
            super().connect()
        else:
            self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.sock.settimeout(PATIENCE_S)
            self.sock.connect(self.unix_path)


def connect(address: str) -> socket.socket:
    """A socket on which a test may send what it likes."""
    connection = Connection(address)
    connection.connect()
    assert isinstance(connection.sock, socket.socket)
    return connection.sock


def ask(address: str, target: str, method: str = "GET", body: bytes | None = None, **headers: str) -> Answer:
    """One request on a connection of its own; `user_agent="x"` sends `User-Agent: x`."""
    connection = Connection(address)
    try:
        connection.request(method, target, body, {name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        return Answer(response.status, response.headers, response.read())
    finally:
        connection.close()


def environment(**variables: str) -> dict[str, str]:
    """The environment of a child: without settings of the person who runs the tests, importing this checkout."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    return {**kept, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tools'}", **variables}


class Adcore:
    """A server process. `address` is its public listener, `control` that for operators, `state` its directory."""

    def __init__(
        self,
        state: Path,
        *args: str,
        pass_fds: tuple[int, ...] = (),
        address: str = "",
        launcher: Sequence[str] = (),
        **variables: str,
    ) -> None:
        """`launcher` is put before the command, and passes a socket: no listener is asked for."""
        self.state = state
        self.control = f"unix:{state}/control.sock"
        self.address = address or f"unix:{state}/ad.sock"
        self.log = state / "delivery.log"
        state.mkdir(parents=True, exist_ok=True)
        self.errors_path = state / "stderr.txt"
        listener = [] if launcher or {"--fd", "--port", "--unix"} & set(args) else ["--unix", f"{state}/ad.sock"]
        with self.errors_path.open("ab") as errors:
            self.process = subprocess.Popen(
                [
                    *launcher,
                    *(sys.executable, "-m", "adcore", "--state-dir", str(state), "--control", self.control),
                    *listener,
                    *args,
                ],
                stdin=subprocess.DEVNULL,
                stderr=errors,
                pass_fds=pass_fds,
                env=environment(**variables),
                cwd=state,
            )

    @property
    def errors(self) -> str:
        return self.errors_path.read_text()

    def ask(self, target: str, method: str = "GET", body: bytes | None = None, **headers: str) -> Answer:
        return ask(self.address, target, method, body, **headers)

    def status(self) -> Any:
        return ask(self.control, "/status").json()

    def wait_until_ready(self) -> None:
        """Until the first table is there."""
        wait_for(lambda: self._ready(), lambda: f"adcore is not ready:\n{self.errors}")

    def _ready(self) -> bool:
        assert self.process.poll() is None, f"adcore ended with {self.process.returncode}:\n{self.errors}"
        try:
            return self.ask("/ping").status == 200
        except OSError:
            return False

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def stop(self) -> int:
        """TERM, and the exit status."""
        self.signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_S)

    def records(self, *paths: Path) -> list[dict[str, Any]]:
        """Every record of the log (or of these files), as `adctl log cat --json` prints it."""
        shown = adctl("log", "cat", "--json", *map(str, paths or (self.log,)))
        assert shown.returncode == 0, shown.stderr
        return [json.loads(line) for line in shown.stdout.splitlines()]


def after(code: str, *args: str) -> tuple[str, ...]:
    """A launcher for Adcore: the server's process runs this code first, which finds `args` in sys.argv[1:]."""
    serve = 'import sys; from adcore import cli; sys.exit(cli.main(sys.argv[sys.argv.index("adcore") + 1 :]))'
    return (sys.executable, "-c", f"{code}\n{serve}", *args)


@contextmanager
def serving(
    state: Path,
    *args: str,
    pass_fds: tuple[int, ...] = (),
    address: str = "",
    launcher: Sequence[str] = (),
    **variables: str,
) -> Iterator[Adcore]:
    """A server that is ready, and is gone afterwards whatever happens."""
    server = Adcore(state, *args, pass_fds=pass_fds, address=address, launcher=launcher, **variables)
    try:
        server.wait_until_ready()
        yield server
    finally:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()


# Where a listening socket can come from.
KINDS = ("unix", "tcp", "fd")


@contextmanager
def serving_over(
    kind: str, state: Path, *args: str, launcher: Sequence[str] = (), **variables: Any
) -> Iterator[Adcore]:
    """`serving` on a socket of this kind: a unix path, TCP, or a descriptor that it inherits."""
    if kind == "unix":
        with serving(state, *args, "--unix", f"{state}/ad.sock", launcher=launcher, **variables) as server:
            yield server
        return
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as sock:
        address = f"127.0.0.1:{sock.getsockname()[1]}"
        if kind == "fd":
            fd = sock.fileno()
            where = ("--fd", str(fd))
            with serving(state, *args, *where, pass_fds=(fd,), address=address, launcher=launcher, **variables) as s:
                yield s
            return
    port = address.rpartition(":")[2]
    with serving(state, *args, "--port", port, address=address, launcher=launcher, **variables) as server:
        yield server


def free_address() -> str:
    """HOST:PORT that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def adctl(*args: str, stdin: str = "", **variables: str) -> "subprocess.CompletedProcess[str]":
    """Run adctl to its end."""
    return subprocess.run(
        [sys.executable, "-m", "adtools", *args],
        input=stdin,
        capture_output=True,
        text=True,
        env=environment(**variables),
        timeout=120,
        check=False,
    )


def descendants(name: str, server: Adcore) -> list[psutil.Process]:
    """The server's processes of this name, as `ps` shows it."""
    found = []
    for process in psutil.Process(server.process.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if process.name() == name and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def descendant(name: str, server: Adcore) -> psutil.Process | None:
    """One of them."""
    return next(iter(descendants(name, server)), None)


def wait_for(condition: Any, describe: Any = lambda: "it did not happen in time") -> None:
    """Poll until `condition()` is true; fail with `describe()` when patience ends."""
    deadline_monotonic = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_monotonic, describe()
        time.sleep(0.01)
