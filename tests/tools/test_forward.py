"""`adctl forward` and a collector by other people: FluentServer of the npm package @fluent-org/logger, in node."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgpack
import pytest

from adcore.deliverylog.record import FORMS, RECORDS
from adtools import forward as forward_module
from adtools.forward import Collector, CollectorError, Options, Sender
from adtools.tail import PositionFile, Tail
from tests.process import PATIENCE_S, adctl, environment, serving, wait_for
from tests.records import click, view
from tests.rogue import Rogue, trickle
from tests.services import npm_packages, program

FOLDER = Path(__file__).parent / "forward"


@pytest.fixture(scope="session")
def node() -> str:
    """node, with the packages of package-lock.json."""
    found = program("node", "nodejs")
    npm_packages(FOLDER, "@fluent-org")
    return found


class FluentServer:
    """The collector. It can be killed and started again, on the same port."""

    def __init__(self, node: str, folder: Path, **variables: str) -> None:
        self.out = folder / "collected.txt"
        self.out.touch()
        self.port = 0
        self.node = node
        self.variables = variables
        self.process: subprocess.Popen[str] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self, habit: str = "ack") -> None:
        variables = {"OUT": str(self.out), "PORT": str(self.port), "HABIT": habit, **self.variables}
        self.process = subprocess.Popen(
            [self.node, str(FOLDER / "server.js")],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **variables},
        )
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())

    def wait(self) -> None:
        """Until it has died."""
        assert self.process is not None
        self.process.wait(PATIENCE_S)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.wait()

    def lines(self) -> list[list[str]]:
        return [line.split() for line in self.out.read_text().splitlines()]

    def collected(self) -> Counter[int]:
        """How often it has each record."""
        return Counter(int(record_id, 16) for _, _, record_id, _ in self.lines())


@pytest.fixture
def collector(node: str, tmp_path: Path) -> Iterator[FluentServer]:
    server = FluentServer(node, tmp_path)
    yield server
    server.kill()


def write(path: Path, first: int, count: int, form: str = "msgpack") -> None:
    with path.open("ab") as file:
        file.write(b"".join(FORMS[form].encode(click(number)) for number in range(first, first + count)))


class Forwarding:
    """`adctl forward --follow` in a child process."""

    def __init__(self, log: Path, collector: FluentServer, *args: str) -> None:
        self.errors_path = log.with_name("forward.stderr")
        with self.errors_path.open("ab") as errors:
            self.process = subprocess.Popen(
                [*(sys.executable, "-m", "adtools", "forward", "--follow", str(log), "--to", collector.address), *args],
                env=environment(),
                stderr=errors,
            )

    @property
    def errors(self) -> str:
        return self.errors_path.read_text()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)


@pytest.mark.parametrize("form", sorted(FORMS))
def test_a_log_and_its_older_files_arrive_once(tmp_path: Path, collector: FluentServer, form: str) -> None:
    log = tmp_path / "delivery.log"
    write(log, 0, 10, form)
    log.rename(tmp_path / "delivery.log.1")
    write(log, 10, 2000, form)
    with log.open("ab") as file:
        file.write(FORMS[form].encode(view(3000)))
    collector.start()
    sent = adctl("forward", str(log), "--to", collector.address, "--tag", "ads.delivery")
    assert (sent.returncode, sent.stderr) == (0, "adctl forward: 2011 records sent, 0 of them perhaps twice\n")
    lines = collector.lines()
    assert [int(line[2], 16) for line in lines] == [*range(2010), 3000]
    assert lines[0] == ["ads.delivery", "1800000000.5", f"{0:032x}", "click"]
    assert lines[-1][3] == "view"
    again = adctl("forward", str(log), "--to", collector.address)
    assert again.stderr == "adctl forward: 0 records sent, 0 of them perhaps twice\n"


def test_what_a_server_delivers_arrives_while_it_serves(tmp_path: Path, collector: FluentServer) -> None:
    collector.start()
    with serving(tmp_path / "state") as server:
        forwarding = Forwarding(server.log, collector)
        ids = {server.ask("/v1/decision?placement=top").json()["impression_id"] for _ in range(20)}
        wait_for(lambda: len(collector.lines()) == 20, lambda: forwarding.errors)
        server.log.rename(server.log.with_name("delivery.log.1"))
        server.signal(signal.SIGUSR1)
        ids |= {server.ask("/v1/decision?placement=top").json()["impression_id"] for _ in range(20)}
        wait_for(lambda: len(collector.lines()) == 40, lambda: forwarding.errors)
        assert forwarding.stop() == 0
        server.stop()
    assert {line[2] for line in collector.lines()} == ids


def test_a_collector_that_is_killed_and_comes_back_loses_nothing(tmp_path: Path, collector: FluentServer) -> None:
    log = tmp_path / "delivery.log"
    collector.start()
    forwarding = Forwarding(log, collector)
    written = 0
    for _ in range(4):
        write(log, written, 1500)
        written += 1500
        # Somewhere within what was written just now.
        wait_for(lambda before=written - 1500: len(collector.collected()) > before, lambda: forwarding.errors)
        collector.kill()
        write(log, written, 500)
        written += 500
        collector.start()
    wait_for(lambda: set(collector.collected()) >= set(range(written)), lambda: forwarding.errors)
    assert forwarding.stop() == 0
    twice = [number for number, count in collector.collected().items() if count > 1]
    if twice:
        assert "may have them twice" in forwarding.errors


def test_an_absent_collector_is_waited_for_and_said_once(tmp_path: Path, collector: FluentServer) -> None:
    collector.start()
    collector.kill()
    log = tmp_path / "delivery.log"
    write(log, 0, 3)
    forwarding = Forwarding(log, collector)
    wait_for(lambda: "cannot connect to" in forwarding.errors)
    collector.start()
    wait_for(lambda: "takes records again" in forwarding.errors)
    assert collector.collected() == Counter(range(3))
    assert forwarding.stop() == 0
    assert forwarding.errors.count("cannot connect") == 1
    assert "twice" not in forwarding.errors.replace("perhaps twice", "")


@pytest.mark.parametrize(("habit", "copies"), [("die-unstored", 1), ("die-unacked", 2)])
def test_duplicates_come_only_of_lost_acknowledgements_and_are_said(
    tmp_path: Path, collector: FluentServer, habit: str, copies: int
) -> None:
    log = tmp_path / "delivery.log"
    write(log, 0, 5)
    collector.start(habit)
    forwarding = Forwarding(log, collector)
    collector.wait()
    collector.start()
    wait_for(lambda: "takes records again" in forwarding.errors, lambda: forwarding.errors)
    assert forwarding.stop() == 0
    assert collector.collected() == Counter(dict.fromkeys(range(5), copies))
    assert "no acknowledgement came for 5 records (chunk " in forwarding.errors
    assert "5 records sent, 5 of them perhaps twice" in forwarding.errors


def test_a_forwarder_that_is_killed_sends_the_same_chunk_again_and_says_so(
    tmp_path: Path, collector: FluentServer
) -> None:
    log = tmp_path / "delivery.log"
    write(log, 0, 5)
    collector.start("mute")
    forwarding = Forwarding(log, collector)
    wait_for(lambda: len(collector.lines()) == 5, lambda: forwarding.errors)
    forwarding.stop(signal.SIGKILL)
    collector.kill()
    collector.start()
    write(log, 5, 5)
    sent = adctl("forward", str(log), "--to", collector.address)
    assert sent.returncode == 0
    assert collector.collected() == Counter({**dict.fromkeys(range(5), 2), **dict.fromkeys(range(5, 10), 1)})
    assert "no acknowledgement came for 5 records" in sent.stderr


def test_no_acknowledgement_in_time_is_none(tmp_path: Path, collector: FluentServer) -> None:
    log = tmp_path / "delivery.log"
    write(log, 0, 2)
    collector.start("mute")
    sent = adctl("forward", str(log), "--to", collector.address, "--ack-timeout", "0.1")
    assert sent.returncode == 1
    assert f"{collector.address} gave no acknowledgement within 0.1 s" in sent.stderr
    assert collector.collected() == Counter({0: 3, 1: 3})
    assert "0 records sent, 4 of them perhaps twice" in sent.stderr


def test_a_shared_key_is_shown_and_asked_for(tmp_path: Path, node: str) -> None:
    log, key, wrong = tmp_path / "delivery.log", tmp_path / "key", tmp_path / "wrong"
    write(log, 0, 2)
    key.write_text("s3cret\n")
    wrong.write_text("other\n")
    collector = FluentServer(node, tmp_path, KEY="s3cret")
    try:
        collector.start()
        refused = adctl("forward", str(log), "--to", collector.address, "--shared-key-file", str(wrong))
        assert refused.returncode == 1
        assert "refuses: 'shared key mismatch'; is the shared key the same?" in refused.stderr
        sent = adctl("forward", str(log), "--to", collector.address, "--shared-key-file", str(key))
        assert (sent.returncode, collector.collected()) == (0, Counter(range(2))), sent.stderr
    finally:
        collector.kill()


def test_a_certificate_is_checked(tmp_path: Path, node: str) -> None:
    log = tmp_path / "delivery.log"
    write(log, 0, 2)
    subprocess.run(
        [
            *(program("openssl", "openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "2", "-subj", "/CN=collector", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", "key.pem", "-out", "cert.pem"),
        ],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        timeout=60,
    )
    certificate = tmp_path / "cert.pem"
    collector = FluentServer(node, tmp_path, TLS_KEY=str(tmp_path / "key.pem"), TLS_CERT=str(certificate))
    try:
        collector.start()
        refused = adctl("forward", str(log), "--to", collector.address, "--tls")
        assert refused.returncode == 1
        assert "CERTIFICATE_VERIFY_FAILED" in refused.stderr
        sent = adctl("forward", str(log), "--to", collector.address, "--tls", "--ca-file", str(certificate))
        assert (sent.returncode, collector.collected()) == (0, Counter(range(2))), sent.stderr
    finally:
        collector.kill()


def test_damage_is_named_and_what_stands_around_it_is_sent(tmp_path: Path, collector: FluentServer) -> None:
    log = tmp_path / "delivery.log"
    write(log, 0, 1)
    with log.open("ab") as file:
        file.write(b"nonsense")
    write(log, 1, 1)
    collector.start()
    sent = adctl("forward", str(log), "--to", collector.address)
    assert sent.returncode == 1
    assert f"{log}: 8 bytes at" in sent.stderr
    assert collector.collected() == Counter(range(2))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--to", "collector"], "--to must be HOST:PORT, not 'collector'"),
        (["--to", "collector:0"], "--to must be HOST:PORT"),
        (["--to", "collector:" + "9" * 5000], "--to must be HOST:PORT"),
        (
            ["--to", "collector:24224", "--ack-timeout", "1e300"],
            "--ack-timeout must be more than 0 seconds and at most",
        ),
        (["--to", "c:1", "--ack-timeout", "0"], "--ack-timeout must be more than 0 seconds"),
        (["--to", "c:1", "--ca-file", "x"], "--ca-file is for --tls"),
        (["--to", "c:1", "--tls", "--ca-file", "/none"], "cannot use --ca-file /none"),
        (["--to", "c:1", "--shared-key-file", "/none"], "cannot read --shared-key-file /none: No such file"),
    ],
)
def test_mistakes_on_the_command_line_are_named(tmp_path: Path, args: list[str], message: str) -> None:
    refused = adctl("forward", str(tmp_path / "delivery.log"), *args)
    assert refused.returncode == 2
    assert message in refused.stderr


# What FluentServer never does


class Peer:
    """A collector that greets each connection with `greeting` and answers what it gets with `answer`."""

    def __init__(self, greeting: bytes = b"", answer: bytes = b"") -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.greeting, self.answer = greeting, answer
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        try:
            while True:
                connection, _ = self.listener.accept()
                with connection:
                    connection.sendall(self.greeting)
                    if connection.recv(1 << 16):
                        connection.sendall(self.answer)
        except OSError:
            pass

    def options(self, key: bytes | None = None) -> Options:
        host, port = self.listener.getsockname()
        return Options(host, port, "tag", PATIENCE_S, key)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (msgpack.packb({"ack": "another"}), "instead of an acknowledgement"),
        (msgpack.packb([1]), "instead of an acknowledgement"),
        (b"\xc1", "does not speak the forward protocol"),
        (b"\xdf\xff\xff\xff\xff", "forward protocol"),
        (b"", "closed the connection before its acknowledgement"),
    ],
)
def test_other_answers_are_no_acknowledgement(answer: bytes, message: str) -> None:
    peer = Peer(answer=answer)
    collector = Collector(peer.options())
    collector.connect()
    with pytest.raises(CollectorError, match=message):
        collector.send(b"x", "chunk")
    collector.close()
    peer.listener.close()


def test_an_acknowledgement_that_trickles_in_has_a_time_in_all() -> None:
    def serve(connection: socket.socket) -> None:
        connection.recv(1 << 16)
        trickle(connection, b"\xd9\xff" + b"x" * 255, 0.05)

    with Rogue(serve) as rogue:
        host, _, port = rogue.address.partition(":")
        collector = Collector(Options(host, int(port), "tag", 0.5))
        collector.connect()
        with pytest.raises(CollectorError, match=r"gave no acknowledgement within 0\.5 s"):
            collector.send(b"x", "chunk")
        collector.close()


@pytest.mark.parametrize(
    ("greeting", "answer", "message"),
    [
        (["HELO", {"nonce": b"n", "auth": b"salt"}], None, "only a shared_key is known"),
        (["HI"], None, "greets with"),
        (["HELO", {"nonce": b"n", "auth": ""}], ["PONG", True, "", "c", "0" * 128], "does not know the shared key"),
        (["HELO", {"nonce": b"n"}], ["PONG"], "instead of PONG"),
    ],
)
def test_a_collector_that_fails_the_handshake_gets_nothing(greeting: object, answer: object, message: str) -> None:
    peer = Peer(msgpack.packb(greeting), msgpack.packb(answer))
    collector = Collector(peer.options(b"key"))
    with pytest.raises(CollectorError, match=message):
        collector.connect()
    collector.close()
    peer.listener.close()


def test_a_connection_that_the_collector_has_closed_is_not_used(tmp_path: Path) -> None:
    """Otherwise the first batch after a quiet night would be called a duplicate."""
    chunks: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        for _ in range(2):
            connection, _ = listener.accept()
            unpacker = msgpack.Unpacker()
            unpacker.feed(connection.recv(1 << 16))
            chunks.append(unpacker.unpack()[2]["chunk"])
            connection.sendall(msgpack.packb({"ack": chunks[-1]}))
            connection.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    log = tmp_path / "delivery.log"
    positions = PositionFile(tmp_path / "positions")
    tail = Tail(log, positions, RECORDS)
    said: list[str] = []
    host, port = listener.getsockname()
    collector = Collector(Options(host, port, "tag", PATIENCE_S))
    sender = Sender(tail, collector, said.append, lambda seconds: False)
    write(log, 0, 1)
    sender.run(follow=False)
    wait_for(lambda: collector._socket is not None and closed_by_peer(collector._socket))
    write(log, 1, 1)
    sender.run(follow=False)
    thread.join(PATIENCE_S)
    assert (sender.records, sender.again, said) == (2, 0, [])
    assert len(set(chunks)) == 2
    collector.close()
    tail.close()
    positions.close()
    listener.close()


def closed_by_peer(connection: socket.socket) -> bool:
    try:
        return connection.recv(1, socket.MSG_PEEK) == b""
    except TimeoutError:
        return False


def test_a_time_beyond_32_bits_is_sent_as_zero() -> None:
    assert forward_module.event_time(1e300) == 0
    assert forward_module.event_time(float("nan")) == 0
    assert forward_module.event_time(1.5) == msgpack.ExtType(0, b"\0\0\0\1\x1d\xcd\x65\0")
