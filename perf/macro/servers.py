"""The contenders: how each is started, pinned to one core, and stopped.

Each is set up as its users would tune it: one worker, no access log, uvloop where there is a choice, GOMAXPROCS=1 and
a GOGC that trades a little memory for less collecting. All get the same inventory and write their log on disk. adcore
does besides what it does for its users: it polls its store, exchanges counts through a memcached and has a listener for
operators.
"""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from perf.macro import cpu, inventory, traffic
from perf.macro.errors import Missing, RunError
from perf.macro.golang import Go
from perf.macro.peers.job import Job
from tests import services

ROOT = Path(__file__).parents[2]
# Only how long to wait before a start or a stop is called failed.
PATIENCE_S = 20.0
# Three times this, with less than a fiftieth of a core, is rest.
REST_S = 0.2
REST_PATIENCE_S = 10.0
# sun_path of unix(7), without its NUL.
SOCKET_PATH_BYTES_MAX = 107


class Part(NamedTuple):
    """One program of a contender."""

    name: str
    command: list[str]
    environment: dict[str, str]


class Setup(NamedTuple):
    """What a contender is on disk: its programs in the order of their start, where it listens, what it logs to."""

    parts: list[Part]
    address: str
    log: Path | None
    rest_s: float = 0.0
    """How long after its first answer it still starts processes."""


@dataclass
class Bench:
    """What all contenders share: the folder of this run, the inventory in it, and the cores."""

    folder: Path
    server_core: int
    go: Go
    campaigns: int = inventory.CAMPAIGNS
    """How many adcore has. The peers never get more than those of the placement that is asked for."""
    refresh_s: float = 5.0
    body: bytes = b""
    """An answer of the usual size, for nginx to return."""
    inventory: Path = field(init=False)
    store: Path = field(init=False)
    source: str = field(init=False)
    key: str = field(init=False)
    starts: int = 0
    running: ExitStack = field(default_factory=ExitStack)
    """Services that contenders use; close it at the end."""
    _memcached: str = ""

    def __post_init__(self) -> None:
        if len(os.fsencode(f"{self.folder}/9999/ad.sock")) > SOCKET_PATH_BYTES_MAX:
            raise RunError(f"{self.folder} is too long a path for unix sockets in it: set TMPDIR to a shorter one")
        self.inventory = self.folder / "inventory.json"
        self.inventory.write_text(inventory.as_json())
        self.store = self.folder / "ads.db"
        self.source = f"sqlite://{self.store}"
        self.key = secrets.token_hex(32)
        self.body = usual_answer(self.key)

    def apply(self) -> None:
        """Put the inventory into the store that adcore serves from."""
        everything = self.folder / "everything.json"
        everything.write_text(inventory.as_json(self.campaigns))
        applied = subprocess.run(
            [sys.executable, "-m", "adtools", "apply", "--source", self.source, str(everything)],
            env=environment({}),
            capture_output=True,
            text=True,
            check=False,
        )
        if applied.returncode:
            raise RunError(f"adctl apply: {applied.stderr.strip()}")

    def memcached(self) -> str:
        """The address of one that runs, on the cores of this process. Raises Missing."""
        if not self._memcached:
            if shutil.which("memcached") is None:
                raise Missing("memcached is not installed (Debian: memcached)")
            service = self.running.enter_context(services.memcached(self.folder))
            self._memcached = f"unix:{service.path}"
        return self._memcached

    def new_folder(self) -> Path:
        self.starts += 1
        folder = self.folder / str(self.starts)
        folder.mkdir()
        return folder

    def job_environment(self, folder: Path) -> dict[str, str]:
        return {
            "JOB_INVENTORY": str(self.inventory),
            "JOB_LOG": str(folder / "delivery.log"),
            "JOB_KEY": self.key,
            "JOB_SOCKET": str(folder / "s"),
        }


@dataclass(frozen=True)
class Contender:
    name: str
    label: str
    prepare: Callable[[Bench, Path], Setup]
    decides: bool = True
    """Not only a static answer."""


class Server:
    """A contender that runs."""

    def __init__(self, name: str, setup: Setup, folder: Path, core: int) -> None:
        self.name = name
        self.address = setup.address
        self.log = setup.log
        self.errors = folder / "stderr.txt"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._setup = setup
        self._core = core

    def start(self) -> None:
        for part in self._setup.parts:
            with self.errors.open("ab") as errors:
                self.processes[part.name] = subprocess.Popen(
                    ["taskset", "-c", str(self._core), *part.command],
                    stdin=subprocess.DEVNULL,
                    stdout=errors,
                    stderr=errors,
                    env=environment(part.environment),
                    # Of its own group, so that all of its workers can be ended, and Ctrl-C reaches only us.
                    start_new_session=True,
                )

    def usage(self) -> cpu.Usage:
        """Of all its programs, with the processes that these have started."""
        try:
            return cpu.total(cpu.usage(process.pid) for process in self.processes.values())
        except FileNotFoundError as error:
            raise RunError(f"{self.name}: a process ended while it was measured ({error})") from None

    def log_bytes(self) -> int:
        return self.log.stat().st_size if self.log is not None and self.log.exists() else 0

    def empty_log(self) -> int:
        """Make room on the disk (every contender appends); what is left in it, since some may just be flushing."""
        if self.log is not None and self.log.exists():
            os.truncate(self.log, 0)
        return self.log_bytes()

    def wait_for_rest(self) -> None:
        """Until it has done what it does after its start (or has had time for that): a table read, a file written."""
        time.sleep(self._setup.rest_s)
        deadline_monotonic = time.monotonic() + REST_PATIENCE_S
        quiet = 0
        while quiet < 3 and time.monotonic() < deadline_monotonic:
            before = sum(self.usage().seconds.values())
            time.sleep(REST_S)
            quiet = quiet + 1 if sum(self.usage().seconds.values()) - before < REST_S / 50 else 0

    def failure(self) -> str:
        """Why it does not run any more; "" while it does."""
        for name, process in self.processes.items():
            if process.poll() is not None:
                lines = self.errors.read_text(errors="replace").strip().splitlines()
                return f"{name} ended with {process.returncode}: {' / '.join(lines[-3:])}"
        return ""

    def stop(self) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            for process in reversed(self.processes.values()):
                with_its_children(process, number)
            deadline_monotonic = time.monotonic() + (3.0 if number == signal.SIGTERM else PATIENCE_S)
            while time.monotonic() < deadline_monotonic:
                if all(process.poll() is not None for process in self.processes.values()):
                    break
                time.sleep(0.01)


def with_its_children(process: "subprocess.Popen[bytes]", number: signal.Signals) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        pass


@contextmanager
def serving(contender: Contender, bench: Bench) -> Iterator[Server]:
    """The contender, started and gone afterwards with all that it wrote. Raises Missing."""
    if shutil.which("taskset") is None:
        raise Missing("taskset is not installed (Debian: util-linux)")
    folder = bench.new_folder()
    server = Server(contender.name, contender.prepare(bench, folder), folder, bench.server_core)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def environment(more: dict[str, str]) -> dict[str, str]:
    """Of a child: without the settings of the person who measures, importing this checkout."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ADCORE_", "LISTEN_"))}
    return {**kept, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tools'}", **more}


def usual_answer(key: str) -> bytes:
    """What the peers answer, of the size that is the median over the mixed requests."""
    job = Job(inventory.document(), os.devnull, bytes.fromhex(key))
    answers = []
    for request in traffic.mixed(500):
        given = dict(request.headers)
        answer = job.answer(
            request.target.partition("?")[2],
            given["User-Agent"],
            given["Accept-Language"],
            given["X-Country"],
            given["X-Real-IP"],
        )
        assert answer is not None, "house ads take every request"
        answers.append(answer)
    job.close()
    return sorted(answers, key=len)[len(answers) // 2]


# Each contender


def nginx_static(bench: Bench, folder: Path) -> Setup:
    location = f"""
        location / {{
            default_type application/json;
            add_header Cache-Control no-store;
            add_header X-Content-Type-Options nosniff;
            return 200 '{bench.body.decode()}';
        }}"""
    return Setup([_nginx(folder, location)], f"unix:{folder}/s", None)


def adcore_unix(bench: Bench, folder: Path) -> Setup:
    return _adcore_setup(bench, folder, [_adcore(bench, folder, "--unix", f"{folder}/s")], f"unix:{folder}/s")


def adcore_tcp(bench: Bench, folder: Path) -> Setup:
    port = free_port()
    part = _adcore(bench, folder, "--host", "127.0.0.1", "--port", str(port), "--trusted-peers", "127.0.0.0/8")
    return _adcore_setup(bench, folder, [part], f"127.0.0.1:{port}")


def adcore_behind_nginx(bench: Bench, folder: Path) -> Setup:
    # As README.rst says to set it up, but the load stands for visitors of many addresses and countries.
    location = """
        location /v1/ {
            proxy_pass http://adcore;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $host;
            proxy_set_header X-Forwarded-For "";
        }"""
    upstream = f"upstream adcore {{ server unix:{folder}/ad.sock; keepalive 32; }}"
    parts = [_adcore(bench, folder, "--unix", f"{folder}/ad.sock"), _nginx(folder, location, upstream)]
    return _adcore_setup(bench, folder, parts, f"unix:{folder}/s")


def go_nethttp(bench: Bench, folder: Path) -> Setup:
    return _go(bench, folder, "nethttp")


def go_fasthttp(bench: Bench, folder: Path) -> Setup:
    return _go(bench, folder, "fasthttp")


def uvicorn(bench: Bench, folder: Path) -> Setup:
    command = [
        *(sys.executable, "-m", "uvicorn", "perf.macro.peers.uvicorn_app:app", "--uds", f"{folder}/s"),
        *("--loop", "uvloop", "--http", "httptools", "--no-access-log", "--no-server-header"),
        *("--log-level", "warning", "--workers", "1"),
    ]
    return _python_peer(bench, folder, "uvicorn", command)


def granian(bench: Bench, folder: Path) -> Setup:
    command = [
        *(sys.executable, "-m", "granian", "perf.macro.peers.granian_app:app", "--interface", "rsgi"),
        *("--uds", f"{folder}/s", "--loop", "uvloop", "--http", "1", "--workers", "1", "--no-access-log"),
        *("--runtime-mode", "st", "--runtime-threads", "1", "--log-level", "warning"),
    ]
    return _python_peer(bench, folder, "granian", command)


def aiohttp(bench: Bench, folder: Path) -> Setup:
    return _python_peer(bench, folder, "aiohttp", [sys.executable, "-m", "perf.macro.peers.aiohttp_app"])


CONTENDERS = (
    Contender("nginx", "nginx return 200", nginx_static, decides=False),
    Contender("adcore", "adcore, unix socket", adcore_unix),
    Contender("adcore-tcp", "adcore, TCP", adcore_tcp),
    Contender("adcore-nginx", "adcore behind nginx", adcore_behind_nginx),
    Contender("fasthttp", "Go fasthttp", go_fasthttp),
    Contender("nethttp", "Go net/http", go_nethttp),
    Contender("granian", "granian (RSGI)", granian),
    Contender("uvicorn", "uvicorn (bare ASGI)", uvicorn),
    Contender("aiohttp", "aiohttp", aiohttp),
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _adcore_setup(bench: Bench, folder: Path, parts: list[Part], address: str) -> Setup:
    # The process that polls the store is started with the first poll, an interval after the first table.
    return Setup(parts, address, folder / "delivery.log", rest_s=bench.refresh_s)


def _adcore(bench: Bench, folder: Path, *listener: str) -> Part:
    command = [
        *(sys.executable, "-m", "adcore", "--source", bench.source, "--state-dir", str(folder), *listener),
        *("--refresh", str(bench.refresh_s), "--memcached", bench.memcached()),
        *("--control", f"unix:{folder}/c"),
    ]
    return Part("adcore", command, {})


def _go(bench: Bench, folder: Path, name: str) -> Setup:
    binary = bench.go.build(name)
    settings = {**bench.job_environment(folder), "GOMAXPROCS": "1", "GOGC": "400"}
    return Setup([Part(name, [str(binary)], settings)], f"unix:{folder}/s", folder / "delivery.log")


def _python_peer(bench: Bench, folder: Path, module: str, command: list[str]) -> Setup:
    tried = subprocess.run(
        [sys.executable, "-c", f"import {module}, uvloop"], capture_output=True, text=True, check=False
    )
    if tried.returncode:
        raise Missing(tried.stderr.strip().splitlines()[-1])
    part = Part(module, command, bench.job_environment(folder))
    return Setup([part], f"unix:{folder}/s", folder / "delivery.log")


def _nginx(folder: Path, location: str, upstream: str = "") -> Part:
    program = shutil.which("nginx", path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin")))
    if program is None:
        raise Missing("nginx is not installed")
    configuration = folder / "nginx.conf"
    # Without a master there is exactly one process.
    configuration.write_text(f"""\
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log {folder}/stderr.txt error;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    server_tokens off;
    keepalive_requests 1000000000;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    {upstream}
    server {{
        listen unix:{folder}/s;{location}
    }}
}}
""")
    return Part("nginx", [program, "-c", str(configuration), "-p", str(folder), "-e", f"{folder}/stderr.txt"], {})
