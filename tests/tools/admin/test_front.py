"""The admin as it is run: on a unix socket behind nginx with TLS, with uploaded images in the ad host's cache."""

import http.client
import re
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode

import pytest

from tests import services
from tests.process import Answer, adctl, ask, environment, free_address, wait_for
from tests.tools.admin.served import Admin, make_store


@contextmanager
def front(folder: Path, admin_socket: Path, state: Path) -> Iterator[tuple[str, services.Service]]:
    """nginx with the shipped configuration, and the HOST:PORT where it speaks TLS."""
    certificate, key = folder / "adcore.pem", folder / "adcore.key"
    (folder / "included").mkdir(parents=True)
    (folder / "included" / "admin.conf").symlink_to(folder / "adcore-admin.conf")
    openssl = [services.program("openssl", "openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    subprocess.run(
        [*openssl, "-subj", "/CN=localhost", "-out", str(certificate), "-keyout", str(key)],
        check=True,
        capture_output=True,
        timeout=60,
    )
    https = free_address()
    with services.nginx(
        folder,
        folder / "none.sock",
        origin=free_address(),
        https=f"listen {https} ssl",
        certificate=str(certificate),
        key=str(key),
        admin=str(admin_socket),
        images=f"root {state};",
    ) as nginx:
        yield https, nginx


class Visitor:
    """A browser of few words, over TLS; `address` is where it comes from."""

    def __init__(self, https: str, address: str = "127.0.0.1") -> None:
        self._https, self._address = https, address
        self.cookies: dict[str, str] = {}

    def ask(self, target: str, form: dict[str, str] | None = None, **headers: str) -> Answer:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        host, port = self._https.split(":")
        connection = http.client.HTTPSConnection(
            host, int(port), context=context, timeout=20, source_address=(self._address, 0)
        )
        sent = {
            "Host": "localhost",
            "Referer": f"https://localhost{target}",
            "Cookie": "; ".join(f"{name}={value}" for name, value in self.cookies.items()),
            "Content-Type": "application/x-www-form-urlencoded",
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        try:
            connection.request("POST" if form else "GET", target, urlencode(form) if form else None, sent)
            response = connection.getresponse()
            answer = Answer(response.status, response.headers, response.read())
        finally:
            connection.close()
        for cookie in answer.headers.get_all("Set-Cookie", []):
            name, _, rest = cookie.partition("=")
            self.cookies[name] = rest.partition(";")[0]
        return answer

    def post(self, target: str, form: dict[str, str], **headers: str) -> Answer:
        token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', self.ask(target).body.decode())
        assert token is not None
        return self.ask(target, {**form, "csrfmiddlewaretoken": token[1]}, **headers)


def test_behind_nginx_with_tls(tmp_path: Path) -> None:
    state = tmp_path / "state"
    make_store(state)
    image = "0123456789abcdef0123456789abcdef01234567.png"
    (state / "creatives").mkdir()
    (state / "creatives" / image).write_bytes(b"an image")
    socket = tmp_path / "admin.sock"
    with (
        Admin(state, "--unix", str(socket), "--url", "https://localhost") as admin,
        front(tmp_path / "nginx", socket, state) as (https, nginx),
    ):
        assert socket.stat().st_mode & 0o777 == 0o660
        link = admin.link("anna", "editor").removeprefix("https://localhost")
        visitor = Visitor(https)
        place = visitor.ask(link).headers["Location"]
        password = "correct horse battery staple"
        assert visitor.post(place, {"new_password1": password, "new_password2": password}).status == 302
        logged_in = visitor.post("/login/", {"username": "anna", "password": password})
        assert logged_in.status == 302
        cookies = logged_in.headers.get_all("Set-Cookie") or []
        (session,) = [cookie for cookie in cookies if cookie.startswith("__Host-adcore_session=")]
        assert {"Secure", "HttpOnly", "SameSite=Lax", "Path=/"} <= set(session.split("; "))
        page = visitor.ask("/adcore/campaign/")
        assert page.status == 200
        assert page.headers["Strict-Transport-Security"] == "max-age=31536000"
        style = visitor.ask("/static/adtools/admin.css")
        assert (style.status, style.headers["Content-Type"]) == (200, 'text/css; charset="utf-8"')

        # Who guesses locks out the address that nginx saw, and not one that they made up.
        guesser = Visitor(https, "127.0.0.2")
        for number in range(5):
            guesser.post("/login/", {"username": "anna", "password": "guess"}, X_Forwarded_For=f"192.0.2.{number}")
        assert guesser.post("/login/", {"username": "anna", "password": password}).status == 429
        assert Visitor(https).post("/login/", {"username": "anna", "password": password}).status == 302

        # The ad host's cache.
        shown = [ask(f"unix:{nginx.path}", f"/creatives/{image}") for _ in range(2)]
        assert [answer.headers["X-Cache-Status"] for answer in shown] == ["MISS", "HIT"]
        for answer in shown:
            assert (answer.body, answer.headers["Content-Type"]) == (b"an image", "text/plain")
            assert answer.headers["Cache-Control"] == "public, max-age=31536000, immutable"
        assert ask(f"unix:{nginx.path}", "/creatives/../adcore.db").status == 404
    assert not socket.exists()


def test_on_the_socket_of_systemd(tmp_path: Path) -> None:
    make_store(tmp_path)
    path, errors = tmp_path / "admin.sock", tmp_path / "admin.txt"
    command = [services.program("systemd-socket-activate", "systemd"), f"--listen={path}", "--setenv=PYTHONPATH"]
    command += [f"--setenv=ADCORE_STATE_DIR={tmp_path}", sys.executable, "-m", "adtools", "admin"]
    with errors.open("wb") as output:
        process = subprocess.Popen([*command, "--url", "https://localhost"], stderr=output, env=environment())
    try:
        wait_for(path.exists)
        answer = ask(f"unix:{path}", "/login/", "GET", None, Host="localhost", X_Forwarded_Proto="https")
        assert answer.status == 200, errors.read_text()
        # It is systemd's, and stays.
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0, errors.read_text()
        assert path.exists()
    finally:
        process.kill()
        process.wait()


def test_mysql_needs_its_tables_first(tmp_path: Path, mariadb: services.MariaDB) -> None:
    source = mariadb.create("admin_command")
    told = {"ADCORE_STATE_DIR": str(tmp_path), "ADCORE_SOURCE": source}
    refused = adctl("admin", "createuser", "anna", **told)
    assert refused.returncode == 1
    assert refused.stderr == (
        "adctl admin: the store lacks tables of the admin: run adctl migrate, then adctl admin migrate\n"
    )
    assert adctl("migrate", **told).returncode == 0
    for _ in range(2):
        assert adctl("admin", "migrate", **told).stdout == "the admin's tables are up to date\n"
    made = adctl("admin", "createuser", "anna", **told)
    assert made.stdout.splitlines()[1].startswith("http://127.0.0.1:8081/password/")


def test_a_store_that_is_away_is_named(tmp_path: Path) -> None:
    told = {"ADCORE_STATE_DIR": str(tmp_path), "ADCORE_SOURCE": f"mysql://root@/x?unix_socket={tmp_path}/none.sock"}
    refused = adctl("admin", "createuser", "anna", **told)
    assert refused.returncode == 1
    assert "the store does not answer" in refused.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--url", "http://adcore.example.net"], "passwords go over https alone"),
        (["--url", "https://adcore.example.net"], "needs --unix PATH"),
        (["--url", "https://adcore.example.net/admin", "--unix", "/tmp/a.sock"], "must be scheme and host alone"),
        (["--url", "adcore.example.net"], "must be scheme and host alone"),
        (["--time-zone", "Mars"], "IANA time zone"),
        (["--images", "s3://"], "s3://BUCKET"),
        (["--unix", "x" * 200], "--unix: "),
    ],
)
def test_what_makes_no_sense_is_a_usage_error(tmp_path: Path, args: list[str], message: str) -> None:
    make_store(tmp_path)
    refused = adctl("admin", *args, ADCORE_STATE_DIR=str(tmp_path))
    assert (refused.returncode, refused.stdout) == (2, "")
    assert message in refused.stderr


def test_without_a_store_there_is_nothing_to_administer(tmp_path: Path) -> None:
    refused = adctl("admin", ADCORE_STATE_DIR=str(tmp_path))
    assert refused.returncode == 1
    assert "there is no store at" in refused.stderr


def test_without_its_libraries_it_says_what_to_install(tmp_path: Path) -> None:
    script = "import sys; sys.modules['django'] = None; from adtools.cli import main; sys.exit(main(['admin']))"
    refused = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(ADCORE_STATE_DIR=str(tmp_path)),
    )
    assert refused.returncode == 2
    assert "pip install 'adcore[admin]'" in refused.stderr


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    make_store(tmp_path)
    address = free_address()
    with Admin(tmp_path, "--port", address.partition(":")[2], address=address):
        refused = adctl("admin", "--port", address.partition(":")[2], ADCORE_STATE_DIR=str(tmp_path))
    assert refused.returncode == 1
    assert f"cannot listen on {address}" in refused.stderr


def test_the_first_administrator_is_let_in_once(tmp_path: Path) -> None:
    make_store(tmp_path)
    told = {"ADCORE_STATE_DIR": str(tmp_path)}
    links = [adctl("admin", "createuser", "--first", "admin", **told).stdout for _ in range(2)]
    assert all("/password/" in link for link in links), "until there is a password each run gives a link"


def test_it_ends_with_term_and_leaves_no_socket(tmp_path: Path) -> None:
    make_store(tmp_path)
    socket = tmp_path / "admin.sock"
    with Admin(tmp_path, "--unix", str(socket)) as admin:
        admin.process.send_signal(signal.SIGTERM)
        wait_for(lambda: admin.process.poll() is not None)
        assert admin.process.returncode == 0
    assert not socket.exists()


def test_a_name_that_an_attacker_points_at_the_admin_is_refused(tmp_path: Path) -> None:
    """DNS rebinding: without TLS the page of another name could otherwise read along in an editor's browser."""
    state = tmp_path / "state"
    make_store(state)
    address = free_address()
    with Admin(state, "--port", address.rpartition(":")[2], address=address):
        assert ask(address, "/login/").status == 200
        for host in ("attacker.example", "127.0.0.1.attacker.example", "localhost.attacker.example", "admin"):
            for target in ("/login/", "/", "/creatives/x.png"):
                assert ask(address, target, "GET", None, Host=host).status in (400, 404), (host, target)
