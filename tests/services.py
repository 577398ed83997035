"""Real MariaDB, memcached and nginx, each started for a test on a private unix socket in a temporary folder.

A program that is missing fails the test that needs it, with the package to install.
"""

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.process import PATIENCE_S, wait_for

SEARCH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


def program(name: str, package: str) -> str:
    found = shutil.which(name, path=SEARCH)
    assert found is not None, f"{name} is not installed: apt install {package} (tools/test does)"
    return found


def npm_packages(folder: Path, package: str) -> Path:
    """The node_modules of a folder, with this package and all else of its package-lock.json."""
    modules = folder / "node_modules"
    if not (modules / package).exists():
        subprocess.run(
            [program("npm", "npm"), "ci", "--no-audit", "--no-fund"],
            cwd=folder,
            check=True,
            capture_output=True,
            timeout=300,
        )
    return modules


def answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True


class Service:
    """A daemon on the unix socket `path`. It can be killed, stopped, continued and started again."""

    def __init__(self, command: list[str], path: Path, errors: Path) -> None:
        self.command = command
        self.path = path
        self.errors = errors
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.errors.open("ab") as errors:
            self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors)
        wait_for(lambda: self._is_up(), lambda: f"{self.command[0]} does not start:\n{self.errors.read_text()}")

    def _is_up(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.errors.read_text()
        return answers(self.path)

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)
        if number == signal.SIGSTOP:
            # Its threads stop one after the other, and each could answer meanwhile.
            tasks = Path(f"/proc/{self.process.pid}/task")
            wait_for(lambda: all(self._is_stopped(task) for task in tasks.iterdir()))

    @staticmethod
    def _is_stopped(task: Path) -> bool:
        return (task / "stat").read_text().rpartition(")")[2].split()[0] == "T"

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(PATIENCE_S)
        self.path.unlink(missing_ok=True)


class MariaDB(Service):
    """`url(database)` is a source URL; every database is the caller's to create."""

    def url(self, database: str) -> str:
        return f"mysql://root@/{database}?unix_socket={self.path}"

    def create(self, database: str) -> str:
        self.sql(f"DROP DATABASE IF EXISTS {database}; CREATE DATABASE {database}")
        return self.url(database)

    def sql(self, statements: str, database: str = "") -> None:
        subprocess.run(
            [program("mariadb", "mariadb-client"), "--no-defaults", f"--socket={self.path}", "-uroot", database],
            input=statements.encode(),
            check=True,
            timeout=60,
        )


@contextmanager
def mariadb(folder: Path) -> Iterator[MariaDB]:
    """A MariaDB with a new, empty data directory, and all rights for root over the socket."""
    data = folder / "data"
    user = [] if os.getuid() else ["--user=root"]
    subprocess.run(
        [
            program("mariadb-install-db", "mariadb-server"),
            "--no-defaults",
            f"--datadir={data}",
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
            *user,
        ],
        check=True,
        capture_output=True,
        timeout=120,
    )
    path = folder / "mariadb.sock"
    command = [
        program("mariadbd", "mariadb-server"),
        "--no-defaults",
        f"--datadir={data}",
        f"--socket={path}",
        f"--pid-file={folder}/mariadb.pid",
        "--skip-networking",
        # What is here must survive a kill, but no power cut. (With 0 a kill loses the commits of up to a second,
        # and the next change gets the revision of a table that servers have already.)
        "--innodb-flush-log-at-trx-commit=2",
        "--innodb-buffer-pool-size=32M",
        *user,
    ]
    service = MariaDB(command, path, folder / "mariadb.err")
    try:
        service.start()
        yield service
    finally:
        service.kill()


@contextmanager
def memcached(folder: Path) -> Iterator[Service]:
    path = folder / "memcached.sock"
    user = [] if os.getuid() else ["-u", "root"]
    service = Service(
        [program("memcached", "memcached"), "-s", str(path), "-m", "64", *user], path, folder / "memcached.err"
    )
    try:
        service.start()
        yield service
    finally:
        service.kill()


NGINX_CONF = """\
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log {folder}/nginx.err info;
events {{ worker_connections 1024; }}
http {{
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/adcore-http.conf;
    include {folder}/included/*.conf;
    server {{
        listen unix:{path};
        {listen}
        include {folder}/adcore-server.conf;
    }}
}}
"""
NGINX_FILES = Path(__file__).parent.parent / "tools" / "nginx"


def shipped_nginx_files(folder: Path, upstream: Path, edits: Mapping[str, str]) -> None:
    """Copy tools/nginx to `folder`, edited as an operator edits them."""
    edits = {
        "unix:/run/adcore/ad.sock": f"unix:{upstream}",
        "/var/lib/nginx/adcore": f"{folder}/cache",
        "/var/log/nginx/adcore.log adcore buffer=64k flush=5s": f"{folder}/access.log adcore",
        **edits,
    }
    unused = set(edits)
    for file in sorted(NGINX_FILES.glob("*.conf")):
        lines = file.read_text().splitlines()
        for number, line in enumerate(lines):
            for old, new in edits.items():
                if old in line:
                    lines[number] = lines[number].replace(old, new)
                    unused.discard(old)
        (folder / file.name).write_text("\n".join(lines) + "\n")
    assert not unused, f"no line of {NGINX_FILES} has {unused}"


@contextmanager
def nginx(
    folder: Path, upstream: Path, listen: str = "", lines: Mapping[str, str] = {}, **edits: str
) -> Iterator[Service]:
    """nginx with the files of tools/nginx, in front of the unix socket `upstream`, on a unix socket of its own.

    It is on `listen`, HOST:PORT, too. `lines` gives replacements for any text of the files; `origin` is where images
    come from, `countries` the list of networks, `patience` how long nginx waits for an answer; the others are in
    adcore-admin.conf, which is used when `folder` has it in included/.
    """
    folder.mkdir(exist_ok=True)
    path = folder / "nginx.sock"
    known = {
        "origin": "127.0.0.1:8088",
        "countries": 'default "";',
        "patience": "proxy_read_timeout 5s",
        "https": "listen 443 ssl",
        "certificate": "/etc/ssl/certs/adcore.pem",
        "key": "/etc/ssl/private/adcore.key",
        "admin": "/run/adcore-admin/admin.sock",
        "images": "root /var/lib/adcore-images;",
    }
    shipped_nginx_files(folder, upstream, {**lines, **{known[name]: value for name, value in edits.items()}})
    conf = folder / "nginx.conf"
    conf.write_text(NGINX_CONF.format(folder=folder, path=path, listen=f"listen {listen};" if listen else ""))
    service = Service(
        [program("nginx", "nginx"), "-c", str(conf), "-p", str(folder), "-e", f"{folder}/start.err"],
        path,
        folder / "nginx.out",
    )
    try:
        service.start()
        yield service
    finally:
        service.kill()
