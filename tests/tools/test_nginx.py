"""The files of tools/nginx in a real nginx: in front of a real adcore, a scripted upstream, an origin of images."""

import http.client
import json
import re
import socket
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from adcore.deliverylog.reader import Damage, open_log, read_records
from adcore.deliverylog.record import Impression
from adcore.settings import SETTINGS
from tests import services
from tests.process import PATIENCE_S, Adcore, Answer, Connection, ask, free_address, serving, wait_for

COUNTRIES = 'default ""; 127.0.0.2/32 JP; 127.0.0.3/32 DE;'
HTTP_CONF = (services.NGINX_FILES / "adcore-http.conf").read_text()


def ask_from(source: str, address: str, target: str, method: str = "GET", headers: Mapping[str, str] = {}) -> Answer:
    """One request over TCP from an address of this host."""
    connection = http.client.HTTPConnection(address, timeout=PATIENCE_S, source_address=(source, 0))
    try:
        connection.request(method, target, headers=dict(headers))
        response = connection.getresponse()
        return Answer(response.status, response.headers, response.read())
    finally:
        connection.close()


# The visitor


def test_what_a_visitor_says_of_its_address_and_country_is_not_believed(tmp_path: Path) -> None:
    address = free_address()
    lies = {
        "X-Country": "US",
        "x-real-ip": "8.8.8.8",
        "X-Forwarded-For": "9.9.9.9",
        "X-Request-ID": "mine",
        "X_Country": "US",
    }
    with (
        serving(tmp_path / "state") as server,
        services.nginx(tmp_path / "nginx", tmp_path / "state" / "ad.sock", address, countries=COUNTRIES),
    ):
        for source in ("127.0.0.2", "127.0.0.3", "127.0.0.4"):
            for headers in ({}, lies):
                target = f"/v1/decision?placement=top&kv.from={source}&user=u-123"
                assert ask_from(source, address, target, headers=headers).status == 200
        assert server.stop() == 0
        records = server.records()
    seen = [(dict(record["key_values"])["from"], record["country"], record["ip"]) for record in records]
    assert seen == [
        *[("127.0.0.2", "JP", "127.0.0.0")] * 2,
        *[("127.0.0.3", "DE", "127.0.0.0")] * 2,
        *[("127.0.0.4", "", "127.0.0.0")] * 2,
    ]
    text = (tmp_path / "nginx" / "access.log").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert len({line["request_id"] for line in lines}) == len(lines) == 6
    assert {(line["ip"], line["path"], line["upstream_status"]) for line in lines} == {
        ("127.0.0.0", "/v1/decision", "200")
    }
    assert not re.search(r"mine|u-123|127\.0\.0\.[1-9]", text)


LIES = [
    ("X-Country", "US"),
    ("X-Country", "FR"),
    ("x-country", "US"),
    ("X-Real-IP", "8.8.8.8"),
    ("X-Real-IP", "9.9.9.9"),
    ("X-Forwarded-For", "8.8.8.8"),
    ("X-Forwarded-For", "9.9.9.9, 127.0.0.2"),
    ("X-Request-ID", "0" * 32),
    ("X_Country", "US"),
    ("X_Real_IP", "8.8.8.8"),
    ("X_Forwarded_For", "8.8.8.8"),
    ("Forwarded", "for=8.8.8.8"),
    ("CF-IPCountry", "US"),
    ("True-Client-IP", "8.8.8.8"),
]


def send_raw(source: str, address: str, target: str, lies: list[tuple[str, str]]) -> bytes:
    """A request with these header lines as they are, doubled ones too; the start of its answer."""
    host, port = address.split(":")
    lines = "".join(f"{name}: {value}\r\n" for name, value in lies)
    with socket.create_connection((host, int(port)), PATIENCE_S, (source, 0)) as sock:
        sock.sendall(f"GET {target} HTTP/1.1\r\nHost: a\r\n{lines}Connection: close\r\n\r\n".encode())
        return sock.recv(12)


@pytest.mark.parametrize("behind_nginx", [True, False])
def test_doubled_lies_are_believed_neither_through_nginx_nor_around_it(tmp_path: Path, behind_nginx: bool) -> None:
    """Around it there is TCP, from addresses of which the server trusts one, which may speak once and not twice."""
    address = free_address()
    with ExitStack() as running:
        if behind_nginx:
            server = running.enter_context(serving(tmp_path / "state"))
            running.enter_context(
                services.nginx(tmp_path / "nginx", tmp_path / "state" / "ad.sock", address, countries=COUNTRIES)
            )
        else:
            port = address.partition(":")[2]
            server = running.enter_context(
                serving(tmp_path / "state", "--port", port, "--trusted-peers", "127.0.0.9/32", address=address)
            )
        pairs = [[one, other] for one in LIES for other in LIES]
        for lies in pairs:
            assert send_raw("127.0.0.2", address, "/v1/decision?placement=top", lies) == b"HTTP/1.1 200"
        for lies in pairs if not behind_nginx else ():
            assert send_raw("127.0.0.9", address, "/v1/decision?placement=foot", lies).startswith(b"HTTP/1.1 20")
        assert server.stop() == 0
        records = server.records()
    untrusted = [record for record in records if record["placement"] == "top"]
    assert len(untrusted) == len(pairs)
    assert {record["ip"] for record in untrusted} == {"127.0.0.0"}
    assert {record["country"] for record in untrusted} == ({"JP"} if behind_nginx else {""})
    assert len({record["id"] for record in untrusted}) == len(pairs), "no visitor chooses an impression's id"
    for record, lies in zip((r for r in records if r["placement"] != "top"), pairs, strict=not behind_nginx):
        names = [name.lower() for name, _ in lies]
        if names == ["x-country", "x-country"]:
            assert record["country"] == "", "two countries are none"
        if names == ["x-real-ip", "x-real-ip"]:
            assert record["ip"] == "", "two addresses are none"


# Who a visitor is, as only a backend may say it.
STRANGER = {"user_agent": "Mozilla/5.0 (iPhone)", "accept_language": "ja", "ip": "8.8.8.8", "country": "US"}
DESCRIPTIONS = [
    *({name: value} for name, value in STRANGER.items()),
    STRANGER,
    *({name: None} for name in STRANGER),
    {},
]
# What might take away the marks that nginx leaves, or say where a request comes from in another way.
DISGUISES = [
    [],
    *([lie] for lie in LIES),
    [("Connection", "close, X-Real-IP, X-Forwarded-For")],
    [("X-Real-IP", "")],
    [("X-Forwarded-For", "")],
    [("X-Real-IP", "127.0.0.1"), ("X-Forwarded-For", "127.0.0.1")],
    [("Host", "localhost")],
    [("Authorization", "Bearer " + "x" * 44)],
    [("Authorization", "Basic eDp4")],
    [("X-HTTP-Method-Override", "GET")],
    [("Content-Type", "application/json")],
]


def send(
    address: str, method: str, target: str, body: bytes, lines: list[tuple[str, str]], version: str = "1.1"
) -> int:
    """A request with these header lines as they are, from 127.0.0.2; the status of its answer."""
    host, port = address.split(":")
    fields = "".join(f"{name}: {value}\r\n" for name, value in lines)
    if not any(name == "Host" for name, _ in lines):
        fields += "Host: a\r\n"
    if not any(name == "Connection" for name, _ in lines):
        fields += "Connection: close\r\n"
    head = f"{method} {target} HTTP/{version}\r\n{fields}Content-Length: {len(body)}\r\n\r\n"
    with socket.create_connection((host, int(port)), PATIENCE_S, ("127.0.0.2", 0)) as sock:
        sock.sendall(head.encode() + body)
        return int(sock.recv(12).split()[1])


def test_a_visitor_describes_no_visitor_through_nginx_in_any_field_method_or_disguise(tmp_path: Path) -> None:
    address = free_address()
    with (
        serving(tmp_path / "state") as server,
        services.nginx(tmp_path / "nginx", tmp_path / "state" / "ad.sock", address, countries=COUNTRIES),
    ):
        for visitor in DESCRIPTIONS:
            body = json.dumps({"placement": "top", "visitor": visitor}).encode()
            for lines in DISGUISES:
                assert send(address, "POST", "/v1/decision", body, lines) == 403, (visitor, lines)
            assert send(address, "POST", "/v1/decision", body, [], "1.0") == 403
        body = json.dumps({"placement": "top", "visitor": STRANGER}).encode()
        fields = "&".join(f"visitor.{name}={value}&{name}={value}" for name, value in STRANGER.items()).replace(
            " ", "+"
        )
        statuses = {
            method: send(address, method, f"/v1/{path}?placement=top&{fields}", body, [])
            for path in ("decision", "frame")
            for method in ("GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS")
        }
        assert statuses == {"GET": 200, "HEAD": 200, "PUT": 405, "PATCH": 405, "DELETE": 405, "OPTIONS": 405}
        for path in ("/ping", "/v1/../ping", "/v1/decision/../../ping"):
            assert send(address, "POST", path, body, []) in (404, 405)
        # Without a description all is as ever; null is none.
        for said in ({"placement": "top"}, {"placement": "top", "visitor": None}):
            assert send(address, "POST", "/v1/decision", json.dumps(said).encode(), []) == 200
        assert server.stop() == 0
        records = server.records()
    assert len(records) == 4
    assert {(r["ip"], r["country"], r["device"], tuple(r["languages"])) for r in records} == {
        ("127.0.0.0", "JP", "other", ())
    }


def test_a_backend_describes_its_visitors_beside_nginx_on_the_socket_and_with_a_token_through_it(
    tmp_path: Path,
) -> None:
    address = free_address()
    tokens = tmp_path / "tokens"
    good, other = "x" * 43 + "=", "y" * 44
    tokens.write_text(f"# of the shop\n{good}\n\n{other}\n")
    tokens.chmod(0o640)
    body = json.dumps({"placement": "top", "visitor": {**STRANGER, "country": None}}).encode()
    with (
        serving(tmp_path / "state", "--backend-token-file", str(tokens)) as server,
        services.nginx(tmp_path / "nginx", tmp_path / "state" / "ad.sock", address, countries=COUNTRIES),
    ):
        assert server.ask("/v1/decision", "POST", body).status == 200
        for token in (good, other):
            assert send(address, "POST", "/v1/decision", body, [("Authorization", f"Bearer {token}")]) == 200
            assert send(address, "POST", "/v1/decision", body, [("authorization", f"bearer  {token}")]) == 200
        wrong = [good[:-1], good + "=", good.upper(), f"{good},{other}", "", "# of the shop"]
        for token in wrong:
            assert send(address, "POST", "/v1/decision", body, [("Authorization", f"Bearer {token}")]) == 403
        twice = [("Authorization", f"Bearer {good}"), ("Authorization", f"Bearer {other}")]
        assert send(address, "POST", "/v1/decision", body, twice) in (400, 403)
        assert server.stop() == 0
        records = server.records()
    # The country that nginx sees is that of the backend.
    assert {(r["ip"], r["country"], r["device"], r["languages"][0]) for r in records} == {
        ("8.8.8.0", "", "mobile", "ja")
    }
    assert len(records) == 5


@pytest.mark.parametrize("path", ["/status", "/metrics", "/version", "/profile", "/explain?placement=top", "/", "/v2/"])
@pytest.mark.parametrize("prefix", ["", "/v1/..", "/v1/%2e%2e", "//v1//.."])
def test_what_operators_ask_is_not_answered_outside(front: tuple[str, str], prefix: str, path: str) -> None:
    address, _ = front
    assert ask_from("127.0.0.1", address, prefix + path).status == 404


def test_stub_status_is_for_this_host_alone(front: tuple[str, str]) -> None:
    address, _ = front
    assert b"Active connections:" in ask_from("127.0.0.1", address, "/nginx_status").body
    refused = ask_from("127.0.0.2", address, "/nginx_status", headers={"X-Real-IP": "127.0.0.1"})
    assert refused.status == 403


def test_connections_to_adcore_are_kept_and_used_again(front: tuple[str, str]) -> None:
    address, control = front

    def accepted() -> int:
        return int(ask(control, "/status").json()["connections"]["accepted"])

    before = accepted()
    for _ in range(100):
        assert ask_from("127.0.0.1", address, "/v1/decision?placement=top").status == 200
    assert ask_from("127.0.0.1", address, "/ping").body == b"ok\n"
    assert accepted() - before <= 1


def test_nginx_lets_go_of_a_connection_before_adcore_does() -> None:
    upstream = re.search(r"upstream adcore \{(.*?)\}", HTTP_CONF, re.DOTALL)
    assert upstream is not None
    timeout = re.search(r"keepalive_timeout (\d+)s;", upstream[1])
    assert timeout is not None
    (idle_timeout,) = [setting.default for setting in SETTINGS if setting.name == "idle_timeout"]
    assert int(timeout[1]) + 10 <= float(idle_timeout)


def test_a_body_is_read_whole_before_adcore_sees_it_and_no_larger_one_passes(front: tuple[str, str]) -> None:
    address, control = front
    body = json.dumps({"placement": ["top"]}).encode()
    requests_before = ask(control, "/status").json()["connections"]["requests"]
    host, port = address.split(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as slow:
        slow.sendall(b"POST /v1/decision HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body))
        slow.sendall(body[:5])
        # Another request goes all the way meanwhile; the slow one is not there yet.
        assert ask_from("127.0.0.1", address, "/v1/decision?placement=top").status == 200
        assert ask(control, "/status").json()["connections"]["requests"] == requests_before + 1
        slow.sendall(body[5:])
        assert slow.recv(100).startswith(b"HTTP/1.1 200 ")
    assert ask_from("127.0.0.1", address, "/v1/decision", "POST", {"Content-Length": "65537"}).status == 413


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The TCP address of an nginx in front of an adcore, and the address of adcore's control listener."""
    folder = tmp_path_factory.mktemp("front")
    address = free_address()
    with (
        serving(folder / "state") as server,
        services.nginx(folder / "nginx", folder / "state" / "ad.sock", address),
    ):
        yield address, server.control


# Asking again


class Upstream:
    """Stands where adcore stands, and does with each request what the script says next.

    "answer"; "close" the connection, having read the request; "reset" it, not having read it; "hang"; "cut" the answer
    off within its body.
    """

    ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n0123456789"

    def __init__(self, path: Path, script: list[str]) -> None:
        self.script = script
        self.requests: list[bytes] = []
        self._open: list[socket.socket] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._open.append(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        while request := connection.recv(1 << 16, socket.MSG_PEEK):
            self.requests.append(request)
            step = self.script.pop(0)
            if step == "reset":
                break
            connection.recv(1 << 16)
            if step == "hang":
                return
            if step in ("answer", "cut"):
                connection.sendall(self.ANSWER if step == "answer" else self.ANSWER[:-5])
            if step != "answer":
                break
        connection.close()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._open:
            connection.close()


@pytest.mark.parametrize(
    ("script", "statuses", "asked"),
    [
        pytest.param(["answer", "close", "answer"], [200, 200], 3, id="a kept-alive connection breaks"),
        pytest.param(["answer", "reset", "answer"], [200, 200], 3, id="a kept-alive connection is reset"),
        pytest.param(["close", "answer"], [502], 1, id="a new connection breaks"),
        pytest.param(["answer", "hang", "answer"], [200, 504], 2, id="no answer in time on a kept-alive connection"),
        pytest.param(["hang", "answer"], [504], 1, id="no answer in time is not asked again"),
        pytest.param(["cut", "answer"], [200], 1, id="an answer that has begun is not asked again"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_what_nginx_asks_again(tmp_path: Path, method: str, script: list[str], statuses: list[int], asked: int) -> None:
    upstream = Upstream(tmp_path / "ad.sock", list(script))
    try:
        with services.nginx(tmp_path / "nginx", tmp_path / "ad.sock", patience="proxy_read_timeout 200ms") as front:
            seen = []
            for _ in statuses:
                connection = Connection(f"unix:{front.path}")
                connection.request(method, "/v1/decision", b"{}" if method == "POST" else None)
                seen.append(connection.getresponse().status)
                connection.close()
    finally:
        upstream.close()
    assert seen == statuses
    assert len(upstream.requests) == asked
    ids = [re.findall(rb"(?i)X-Request-ID: (\w+)", request) for request in upstream.requests]
    assert len({one[0] for one in ids}) == len(statuses), "a request that is asked again has the same id"


def impressions_by_number(*logs: Path) -> dict[int, set[str]]:
    """The impressions of each kv.n, by their ids. A killed process may leave a torn record."""
    found: dict[int, set[str]] = {}
    for path in logs:
        with open_log(path) as file:
            for record in read_records(file):
                if not isinstance(record, Damage):
                    assert isinstance(record, Impression)
                    found.setdefault(int(dict(record.key_values)["n"]), set()).add(record.id)
    return found


@contextmanager
def shared_listener(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.settimeout(PATIENCE_S)
        listener.bind(str(path))
        listener.listen(1024)
        yield listener


@contextmanager
def serving_on(listener: socket.socket, state: Path) -> Iterator[Adcore]:
    """An adcore that accepts on a socket that others have too, and takes over what they leave behind."""
    spool_dir = state.parent / "spool"
    spool_dir.mkdir(exist_ok=True)
    server = Adcore(state, "--fd", str(listener.fileno()), "--spool-dir", str(spool_dir), pass_fds=(listener.fileno(),))
    try:
        wait_for(lambda: "serving on" in server.errors, lambda: server.errors)
        yield server
    finally:
        server.process.kill()
        server.process.wait()


def test_a_request_that_a_dying_worker_has_read_is_counted_once(tmp_path: Path) -> None:
    with (
        shared_listener(tmp_path / "ad.sock") as listener,
        services.nginx(tmp_path / "nginx", tmp_path / "ad.sock") as front,
        ThreadPoolExecutor(1) as pool,
    ):
        # The test is the first worker, and answers once, so that its connection is kept.
        asking = pool.submit(ask, f"unix:{front.path}", "/v1/view")
        dying, _ = listener.accept()
        assert b"/v1/view" in dying.recv(1 << 16)
        dying.sendall(Upstream.ANSWER)
        assert asking.result(PATIENCE_S).status == 200
        with serving_on(listener, tmp_path / "other") as other:
            asking = pool.submit(ask, f"unix:{front.path}", "/v1/decision?placement=top&kv.n=1")
            assert b"kv.n=1" in dying.recv(1 << 16)
            dying.close()
            assert asking.result(PATIENCE_S).status == 200
            assert other.stop() == 0
            (impressions,) = impressions_by_number(other.log).values()
            assert len(impressions) == 1
    line = (tmp_path / "nginx" / "access.log").read_text().splitlines()[-1]
    assert json.loads(line)["upstream_status"] == "502, 200"


def test_killed_workers_cost_no_impression_and_no_answer_and_make_none_two(tmp_path: Path) -> None:
    kills, each, clients = 4, 400, 4
    statuses: Counter[int] = Counter()
    with (
        ExitStack() as running,
        shared_listener(tmp_path / "ad.sock") as listener,
        services.nginx(tmp_path / "nginx", tmp_path / "ad.sock") as front,
        ThreadPoolExecutor(clients) as pool,
    ):

        def ask_some(first: int) -> Counter[int]:
            connection = Connection(f"unix:{front.path}")
            seen: Counter[int] = Counter()
            for number in range(first, first + each):
                connection.request("GET", f"/v1/decision?placement=top&kv.n={number}")
                response = connection.getresponse()
                response.read()
                seen[response.status] += 1
            connection.close()
            return seen

        workers = [running.enter_context(serving_on(listener, tmp_path / "worker-0"))]
        for kill in range(kills):
            # The next one is there already, and gets no connection as long as nginx has kept ones to the old.
            old = workers[-1]
            asking = [pool.submit(ask_some, (kill * clients + client) * each) for client in range(clients)]
            before = old.status()["connections"]["requests"]
            workers.append(running.enter_context(serving_on(listener, tmp_path / f"worker-{kill + 1}")))
            wait_for(lambda: old.status()["connections"]["requests"] > before + 50)  # noqa: B023
            old.process.kill()
            for one in asking:
                statuses += one.result(PATIENCE_S)
        assert workers[-1].stop() == 0
        with serving_on(listener, tmp_path / "last") as last:
            assert last.stop() == 0
        found = impressions_by_number(*(worker.log for worker in (*workers, last)))
    assert statuses == {200: kills * each * clients}
    assert found.keys() == set(range(kills * each * clients))
    assert {len(ids) for ids in found.values()} == {1}
    retried = [line for line in (tmp_path / "nginx" / "access.log").read_text().splitlines() if '"502, 200"' in line]
    assert retried, "no kill hit anything"


# Images


class Origin(ThreadingHTTPServer):
    """Gives one image under every path: `version` of it, fresh for `fresh_s`. `gate` holds its answers back."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), OriginHandler)
        self.version = 1
        self.fresh_s = 1
        self.gate = threading.Event()
        self.gate.set()
        self.asked: list[tuple[str, dict[str, str]]] = []
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"

    def close(self) -> None:
        self.shutdown()
        self.server_close()


class OriginHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"
    server: Origin

    def do_GET(self) -> None:
        origin = self.server
        headers = {name.lower(): value for name, value in self.headers.items()}
        origin.asked.append((self.path, headers))
        assert origin.gate.wait(PATIENCE_S)
        body = f"image {origin.version}".encode()
        etag = f'"v{origin.version}"'
        same = headers.get("if-none-match") == etag
        self.send_response(304 if same else 200)
        self.send_header("ETag", etag)
        self.send_header("Last-Modified", f"Sun, 0{origin.version} Nov 2026 00:00:00 GMT")
        self.send_header("Cache-Control", f"max-age={origin.fresh_s}")
        self.send_header("Set-Cookie", "origin=1")
        if not same:
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Type", "image/png")
        self.end_headers()
        if not same:
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def images(folder: Path, lines: Mapping[str, str] = {}) -> Iterator[tuple[Origin, str]]:
    """An origin, and the address of an nginx in front of it, with edited `lines`."""
    origin = Origin()
    address = free_address()
    try:
        with services.nginx(folder, folder / "none.sock", address, lines, origin=origin.address):
            yield origin, address
    finally:
        origin.close()


def image(address: str, **headers: str) -> tuple[str, bytes]:
    """How the cache fared, and the body."""
    answer = ask(address, "/creatives/spring.png", "GET", None, **headers)
    assert answer.status == 200, answer
    assert answer.headers["Set-Cookie"] is None
    return answer.headers["X-Cache-Status"], answer.body


def test_many_who_want_a_new_image_make_one_request_to_the_origin(tmp_path: Path) -> None:
    with images(tmp_path) as (origin, address), ThreadPoolExecutor(50) as pool:
        origin.gate.clear()
        asking = [pool.submit(image, address, cookie="visitor=1", authorization="secret") for _ in range(50)]

        def at_work() -> int:
            text = ask(address, "/nginx_status").body.decode()
            return int(text.partition("Writing: ")[2].split()[0])

        # All of them and the one who looks.
        wait_for(lambda: at_work() == 51)
        origin.gate.set()
        assert {one.result(PATIENCE_S)[1] for one in asking} == {b"image 1"}
        ((path, headers),) = origin.asked
        assert path == "/creatives/spring.png"
        assert headers["host"] == "img.example.net"
        assert not {"cookie", "authorization"} & set(headers)


def test_both_sides_answer_304(tmp_path: Path) -> None:
    with images(tmp_path) as (origin, address):
        assert image(address) == ("MISS", b"image 1")
        for condition in ({"if_none_match": '"v1"'}, {"if_modified_since": "Sun, 01 Nov 2026 00:00:00 GMT"}):
            unchanged = ask(address, "/creatives/spring.png", "GET", None, **condition)
            assert (unchanged.status, unchanged.body) == (304, b"")
            assert unchanged.headers["ETag"] == '"v1"'
        # Once it is old it is renewed in the background, by a 304 of the origin.
        wait_for(lambda: image(address) and len(origin.asked) == 2)
        assert origin.asked[1][1]["if-none-match"] == '"v1"'
        assert origin.asked[1][1]["if-modified-since"] == "Sun, 01 Nov 2026 00:00:00 GMT"
        wait_for(lambda: image(address) == ("HIT", b"image 1"))


def test_an_old_image_is_served_at_once_while_the_new_one_comes(tmp_path: Path) -> None:
    with images(tmp_path) as (origin, address):
        assert image(address) == ("MISS", b"image 1")
        origin.version = 2
        origin.gate.clear()
        # Nobody waits for the origin, neither who finds that the image is old nor those after.
        wait_for(lambda: image(address) == ("STALE", b"image 1"))
        for _ in range(5):
            assert image(address) == ("UPDATING", b"image 1")
        wait_for(lambda: len(origin.asked) == 2)
        origin.gate.set()
        wait_for(lambda: image(address)[1] == b"image 2")


def test_an_old_image_is_served_when_the_origin_is_gone(tmp_path: Path) -> None:
    with images(tmp_path) as (origin, address):
        assert image(address) == ("MISS", b"image 1")
        origin.close()
        wait_for(lambda: image(address) == ("STALE", b"image 1"))
        assert ask(address, "/creatives/other.png").status == 502


# Pairs that are two images to the origin, and have been one to caches.
APART = [
    ("/creatives/a.png%3Fx", "/creatives/a.png?x"),
    ("/creatives/a.png%3fx=1", "/creatives/a.png?x=1"),
    ("/creatives/a.png%3Fx?y", "/creatives/a.png?x?y"),
    ("/creatives/a%2Fb.png", "/creatives/a/b.png"),
    ("/creatives/a%252Fb.png", "/creatives/a%2Fb.png"),
    ("/creatives/a%23b.png", "/creatives/a"),
    ("/creatives/a+b.png", "/creatives/a%20b.png"),
    ("/creatives/A.png", "/creatives/a.png"),
    ("/creatives/a.png?", "/creatives/a.png"),
    ("/creatives/a.png?x=1&y=2", "/creatives/a.png?y=2&x=1"),
    ("/creatives//a.png", "/creatives/a.png"),
    ("/creatives/b/../a.png", "/creatives/a.png"),
    ("/creatives/./a.png", "/creatives/a.png"),
    ("/creatives/%2e/a.png", "/creatives/a.png"),
    ("/creatives/a.png%0d%0ax:y", "/creatives/a.png"),
    ("/creatives/a.png;x", "/creatives/a.png"),
]


def test_the_cache_keeps_apart_what_the_origin_does(tmp_path: Path) -> None:
    with images(tmp_path) as (origin, address):
        origin.fresh_s = 600
        for one, other in APART:
            host, port = address.split(":")
            for target in (one, other):
                with socket.create_connection((host, int(port)), PATIENCE_S) as sock:
                    sock.sendall(f"GET {target} HTTP/1.0\r\n\r\n".encode())
                    answer = b"".join(iter(lambda: sock.recv(1 << 16), b""))
                assert b" 200 " in answer.splitlines()[0], (target, answer)
        asked = [path for path, _ in origin.asked]
        assert asked == list(dict.fromkeys(target for pair in APART for target in pair)), "each once, as it was sent"
        assert ask(address, "/creatives/%00a.png").status == 400
        for target in ("/creatives/../other", "/creatives/%2e%2e/x", "/creatives/..%2fx"):
            assert ask(address, target).status in (400, 404)
        assert len(origin.asked) == len(asked)


IMAGE = "0123456789abcdef" * 2 + "01234567.png"
# How one image can be spelled. In nginx's $uri each is its name: decoded, without dots and double slashes.
SPELLINGS = [
    *(f"/creatives/{IMAGE}?{query}" for query in ("", "?", "/", "#", "a=b&c", "%00", "%0d%0aX:y", "x" * 4000)),
    *(f"/creatives/{IMAGE}?{number}" for number in range(200)),
    *(f"/creatives/%{ord(IMAGE[0]):02x}{IMAGE[1:]}?{number}" for number in range(3)),
    *(f"/creatives/{IMAGE[:-4]}%2epng", f"/creatives/{IMAGE}#a", f"/%63reatives/{IMAGE}"),
    *(f"/creatives/{number}/../{IMAGE}" for number in range(3)),
    *(f"/creatives/{'/' * number}{IMAGE}" for number in range(1, 4)),
    *(f"/creatives/.{'/.' * number}/{IMAGE}" for number in range(3)),
    *(f"/none/../creatives/{IMAGE}", f"http://b.example/creatives/{IMAGE}?9"),
]


def test_a_name_that_follows_from_the_content_is_fetched_once_however_it_is_asked_for(tmp_path: Path) -> None:
    """Or a visitor who leaves at once has each new query fetched whole."""
    with images(tmp_path) as (origin, address):
        origin.fresh_s = 600
        host, port = address.split(":")
        for number, target in enumerate(SPELLINGS):
            with socket.create_connection((host, int(port)), PATIENCE_S) as sock:
                method = ("GET", "HEAD")[number % 2]
                sock.sendall(f"{method} {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
                if number % 10:  # the others leave at once
                    answer = b"".join(iter(lambda: sock.recv(1 << 16), b""))
                    assert b" 200 " in answer.splitlines()[0], (target, answer)
        assert ask(address, f"/creatives/{IMAGE}").headers["X-Cache-Status"] == "HIT"
        assert [path for path, _ in origin.asked] == [f"/creatives/{IMAGE}"]


def test_an_image_is_kept_though_the_visitor_who_asked_first_has_left(tmp_path: Path) -> None:
    with images(tmp_path) as (origin, address):
        origin.fresh_s = 600
        origin.gate.clear()
        host, port = address.split(":")
        with socket.create_connection((host, int(port)), PATIENCE_S) as sock:
            sock.sendall(b"GET /creatives/spring.png HTTP/1.1\r\nHost: a\r\n\r\n")
            wait_for(lambda: len(origin.asked) == 1)
        # nginx knows of the end of that connection by the time it answers another one.
        assert ask(address, "/nginx_status").status == 200
        origin.gate.set()
        assert image(address) == ("HIT", b"image 1")
        assert len(origin.asked) == 1


def test_other_names_are_not_taken_for_such(tmp_path: Path) -> None:
    others = [
        *(f"/creatives/{name}?1" for name in (IMAGE[1:], "a" + IMAGE, IMAGE.upper(), IMAGE + ".gif", IMAGE[:-4])),
        *(f"/creatives/{IMAGE}%0a?1", f"/creatives/{IMAGE}%3Fx", f"/creatives/{IMAGE}/?1", f"/creatives/a/{IMAGE}?1"),
    ]
    with images(tmp_path) as (origin, address):
        for target in others:
            assert ask(address, target).status == 200
        assert [path for path, _ in origin.asked] == others


def test_the_limit_of_requests_for_images_works_when_its_lines_are_uncommented(tmp_path: Path) -> None:
    lines = {"# limit_req": "limit_req", "rate=100r/s": "rate=1r/m", "burst=500": "burst=5"}
    with images(tmp_path, lines) as (origin, address):
        statuses = [ask_from("127.0.0.2", address, f"/creatives/a.png?{n}").status for n in range(9)]
        assert statuses == [200] * 6 + [429] * 3
        assert ask_from("127.0.0.3", address, "/creatives/a.png?1").status == 429, "of the same network"
        assert ask_from("127.1.0.3", address, "/creatives/a.png?1").status == 200
        assert len(origin.asked) == 6


def test_one_image_is_one_entry_whatever_else_a_visitor_says(tmp_path: Path) -> None:
    with images(tmp_path) as (origin, address):
        origin.fresh_s = 600
        says = {
            "Host": "evil.example",
            "X-Forwarded-Host": "evil.example",
            "X-Original-URL": "/evil",
            "X-HTTP-Method-Override": "DELETE",
            "Accept-Encoding": "gzip",
            "Accept": "image/webp",
            "Accept-Language": "xx",
            "Range": "bytes=0-1",
            "User-Agent": "evil",
            "Referer": "https://evil.example/",
            "Cookie": "a=b",
            "Authorization": "Bearer x",
            "X_Forwarded_Host": "evil.example",
            "Cache-Control": "no-cache",
        }
        assert send(address, "HEAD", "/creatives/a.png", b"", list(says.items())) in (200, 206)
        assert send(address, "GET", "/creatives/a.png", b"fat", [("X-A", "b")]) == 200
        assert ask(address, "/creatives/a.png").body == b"image 1"
        assert ask(address, "/creatives/a.png", "GET", None, Range="bytes=0-4").body == b"image 1"
        ((path, headers),) = origin.asked
        assert (path, headers.pop("host"), len(headers.pop("x-request-id"))) == (
            "/creatives/a.png",
            "img.example.net",
            32,
        )
        assert headers == {}


def test_images_are_only_read(tmp_path: Path) -> None:
    with images(tmp_path) as (origin, address):
        assert ask(address, "/creatives/spring.png", "POST", b"x").status == 403
        assert ask(address, "/creatives/spring.png", "DELETE").status == 403
        assert origin.asked == []
