"""`adctl forward`: send a delivery log to fluentd, fluent-bit or whoever speaks their forward protocol (v1).

The log is the buffer. A batch is sent, and when the collector has acknowledged it the position moves on; while the
collector is away, nothing is lost and nothing piles up in memory. Sent is at least once: a batch whose acknowledgement
did not come is sent again under the same chunk id, and that is said.
"""

import argparse
import base64
import hashlib
import hmac
import os
import random
import re
import signal
import socket
import ssl
import struct
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgpack

from adcore.deliverylog.record import RECORDS, AnyRecord, to_object
from adcore.errors import AdcoreError, ConfigError
from adtools.tail import Batch, PositionFile, Tail

EPILOG = """\
examples:
  adctl forward /var/lib/adcore/delivery.log --to collector.example.net:24224           send what is there, and exit
  adctl forward --follow /var/lib/adcore/delivery.log --to collector.example.net:24224  go on until TERM

Rotated and compressed older files beside FILE are sent too, the oldest first. How far it got is kept in --positions;
two processes with the same positions exclude each other.

Exit status: 0 all is acknowledged (or TERM came), 1 the collector did not take it all or the log is damaged, 2 usage.
"""

CONNECT_TIMEOUT_S = 5.0
# How often a log that had nothing new is looked at again.
POLL_S = 0.5
# Pauses after failures; the last one is repeated. Each is shortened at random, so that hosts do not come all at once.
RETRY_S = (0.2, 1.0, 5.0, 15.0)
# Without --follow: how often a batch is tried.
TRIES_MAX = 3
# A socket can be given no more than some centuries.
ACK_TIMEOUT_MAX_S = 86_400.0
ANSWER_BYTES_MAX = 64 * 1024

_pack_time = struct.Struct(">II").pack


class CollectorError(AdcoreError):
    """The collector is away, answers wrongly or not in time."""


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "forward",
        help="send a delivery log to fluentd or fluent-bit",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", metavar="FILE", type=Path, help="the delivery log, in either form")
    parser.add_argument("--to", metavar="HOST:PORT", required=True, help="the collector (24224 is its usual port)")
    parser.add_argument("--follow", action="store_true", help="go on until TERM or INT")
    parser.add_argument("--tag", default="adcore.delivery", help="default: %(default)s")
    parser.add_argument(
        "--positions", metavar="FILE", type=Path, help="how far it got (default: FILE.forward, beside the log)"
    )
    parser.add_argument(
        "--ack-timeout", metavar="SECONDS", type=float, default=30.0, help="default: %(default)g, then it is sent again"
    )
    parser.add_argument("--shared-key-file", metavar="FILE", type=Path, help="the collector's shared_key is in here")
    parser.add_argument("--tls", action="store_true", help="encrypt, and check the collector's certificate")
    parser.add_argument(
        "--ca-file", metavar="FILE", type=Path, help="for --tls: who signs it, if not a public authority"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    collector = Collector(parse_options(args))
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    positions = PositionFile(args.positions or args.file.with_name(args.file.name + ".forward"))
    tail = Tail(args.file, positions, RECORDS)
    try:
        sender = Sender(tail, collector, say, stop.wait)
        sender.run(follow=args.follow)
    finally:
        collector.close()
        tail.close()
        positions.close()
    say(f"{sender.records} records sent, {sender.again} of them perhaps twice")
    return 1 if sender.unsent or sender.damaged else 0


def say(text: str) -> None:
    print(f"adctl forward: {text}", file=sys.stderr, flush=True)


class Options(NamedTuple):
    host: str
    port: int
    tag: str
    ack_timeout_s: float
    shared_key: bytes | None = None
    tls: ssl.SSLContext | None = None


def parse_options(args: argparse.Namespace) -> Options:
    """Raises ConfigError."""
    host, _, port = args.to.rpartition(":")
    if not (host and re.fullmatch(r"[0-9]{1,5}", port) and 0 < int(port) < 65536):
        raise ConfigError(f"--to must be HOST:PORT, not {args.to!r}")
    if not 0 < args.ack_timeout <= ACK_TIMEOUT_MAX_S:
        raise ConfigError(
            f"--ack-timeout must be more than 0 seconds and at most {ACK_TIMEOUT_MAX_S:g}, not {args.ack_timeout:g}"
        )
    if args.ca_file is not None and not args.tls:
        raise ConfigError("--ca-file is for --tls; say both")
    key = tls = None
    try:
        if args.shared_key_file is not None:
            key = args.shared_key_file.read_bytes().strip()
    except OSError as error:
        raise ConfigError(f"cannot read --shared-key-file {args.shared_key_file}: {error.strerror}") from error
    try:
        if args.tls:
            tls = ssl.create_default_context(cafile=args.ca_file)
    except OSError as error:
        raise ConfigError(f"cannot use --ca-file {args.ca_file}: {error.strerror or error}") from error
    return Options(host.strip("[]"), int(port), args.tag, args.ack_timeout, key, tls)


class Sender:
    """Takes batches from `tail` to `collector` until there are none, or for ever.

    `wait(seconds)` waits, and says whether it is time to stop. `say` is told what a person should know.
    """

    def __init__(
        self, tail: Tail[AnyRecord], collector: "Collector", say: Callable[[str], object], wait: Callable[[float], bool]
    ) -> None:
        self.tail = tail
        self.collector = collector
        self.say = say
        self.wait = wait
        self.records = 0
        self.again = 0
        """Records sent again after an acknowledgement that did not come."""
        self.damaged = 0
        self.unsent = False

    def run(self, *, follow: bool) -> None:
        while True:
            batch = self.tail.next()
            if batch is None:
                if not follow or self.wait(POLL_S):
                    return
            elif not self._deliver(batch, tries_max=None if follow else TRIES_MAX) or self.wait(0):
                return

    def _deliver(self, batch: Batch[AnyRecord], tries_max: int | None) -> bool:
        """Send until it is acknowledged; False when it is time to stop."""
        for damage in batch.damage:
            self.damaged += 1
            self.say(f"{batch.path}: {damage.length} bytes at {damage.offset} are no record: {damage.reason}")
        chunk = chunk_id(batch)
        message = encode_chunk(self.collector.options.tag, batch.records, chunk)
        sent_before = batch.again
        failures = 0
        while batch.records:
            try:
                self.collector.connect()
                if sent_before:
                    self.again += len(batch.records)
                    self.say(
                        f"no acknowledgement came for {len(batch.records)} records (chunk {chunk}); they are sent "
                        "again, and the collector may have them twice"
                    )
                else:
                    self.tail.begin(batch)
                sent_before = True
                self.collector.send(message, chunk)
                break
            except CollectorError as error:
                self.collector.close()
                if not failures:
                    self.say(f"{error}; records wait in {batch.path}")
                failures += 1
                pause_s = RETRY_S[min(failures, len(RETRY_S)) - 1] * random.uniform(0.5, 1)
                if failures == tries_max or self.wait(pause_s):
                    self.unsent = True
                    return False
        if failures:
            self.say(f"{self.collector.name} takes records again")
        self.tail.commit(batch)
        self.records += len(batch.records)
        return True


def chunk_id(batch: Batch[AnyRecord]) -> str:
    """128 bits in base64, the same whenever this batch is sent."""
    name = f"{batch.identity}:{batch.start}:{batch.end}"
    return base64.b64encode(hashlib.sha256(name.encode()).digest()[:16]).decode()


def encode_chunk(tag: str, records: list[AnyRecord], chunk: str) -> bytes:
    """A PackedForward message that asks to be acknowledged."""
    entries = b"".join([msgpack.packb([event_time(record.time), to_object(record)]) for record in records])
    packed: bytes = msgpack.packb([tag, entries, {"size": len(records), "chunk": chunk}])
    return packed


def event_time(wall_s: float) -> msgpack.ExtType | int:
    """fluentd's EventTime; of a broken clock 0."""
    if not 0 <= wall_s < 1 << 32:
        return 0
    return msgpack.ExtType(0, _pack_time(int(wall_s), int(wall_s % 1 * 1e9)))


class Collector:
    """A connection to the other side. Every failure is a CollectorError, after which it must be closed."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.name = f"{options.host}:{options.port}"
        self._socket: socket.socket | None = None
        self._unpacker = msgpack.Unpacker()

    def connect(self) -> None:
        """Make sure of a connection that the other side has not closed."""
        if self._socket is not None:
            if not self._is_closed(self._socket):
                return
            self.close()
        options = self.options
        try:
            connection = socket.create_connection((options.host, options.port), CONNECT_TIMEOUT_S)
            try:
                if options.tls is not None:
                    connection = options.tls.wrap_socket(connection, server_hostname=options.host)
                connection.settimeout(options.ack_timeout_s)
            except BaseException:
                connection.close()
                raise
        except OSError as error:
            raise CollectorError(f"cannot connect to {self.name}: {error}") from error
        self._socket = connection
        self._unpacker = msgpack.Unpacker(max_buffer_size=ANSWER_BYTES_MAX, unicode_errors="surrogateescape")
        if options.shared_key is not None:
            self._shake_hands(options.shared_key)

    def send(self, message: bytes, chunk: str) -> None:
        """Send, and wait for the acknowledgement."""
        assert self._socket is not None
        try:
            self._socket.settimeout(self.options.ack_timeout_s)
            self._socket.sendall(message)
        except OSError as error:
            raise CollectorError(f"cannot send to {self.name}: {error}") from error
        answer = self._receive("acknowledgement")
        if not (isinstance(answer, dict) and answer.get("ack") == chunk):
            raise CollectorError(f"{self.name} answered {answer!r:.200} instead of an acknowledgement")

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _is_closed(self, connection: socket.socket) -> bool:
        """Nothing is due from the other side, so whatever there is to read is the end."""
        connection.settimeout(0)
        try:
            connection.recv(1)
        except (BlockingIOError, ssl.SSLWantReadError):
            connection.settimeout(self.options.ack_timeout_s)
            return False
        except OSError:
            pass
        return True

    def _receive(self, what: str) -> object:
        """The next message of the other side, which has --ack-timeout for all of it."""
        assert self._socket is not None
        deadline_monotonic = time.monotonic() + self.options.ack_timeout_s
        try:
            while True:
                try:
                    return self._unpacker.unpack()
                except msgpack.OutOfData:
                    left_s = deadline_monotonic - time.monotonic()
                    if left_s <= 0:
                        raise TimeoutError from None
                    self._socket.settimeout(left_s)
                    data = self._socket.recv(4096)
                    if not data:
                        raise CollectorError(f"{self.name} closed the connection before its {what}") from None
                    self._unpacker.feed(data)
        except TimeoutError:
            raise CollectorError(f"{self.name} gave no {what} within {self.options.ack_timeout_s:g} s") from None
        except OSError as error:
            raise CollectorError(f"{self.name} broke the connection before its {what}: {error}") from error
        except (ValueError, msgpack.UnpackException) as error:
            raise CollectorError(f"{self.name} does not speak the forward protocol: {error!r}") from error

    def _shake_hands(self, key: bytes) -> None:
        """HELO, PING, PONG: each side shows that it knows the key."""
        match self._receive("HELO (has it a shared_key?)"):
            case ["HELO", {"nonce": str() | bytes() as nonce, **rest}] if not rest.get("auth"):
                pass
            case other:
                raise CollectorError(
                    f"{self.name} greets with {other!r:.200}; only a shared_key is known here, no users"
                )
        nonce = nonce.encode("utf-8", "surrogateescape") if isinstance(nonce, str) else nonce
        name = socket.gethostname()
        salt = os.urandom(16)
        digest = hashlib.sha512(salt + name.encode() + nonce + key).hexdigest()
        assert self._socket is not None
        try:
            self._socket.sendall(msgpack.packb(["PING", name, salt, digest, "", ""]))
        except OSError as error:
            raise CollectorError(f"cannot send to {self.name}: {error}") from error
        match self._receive("PONG"):
            case ["PONG", True, _, str() as their_name, str() as theirs]:
                expected = hashlib.sha512(salt + their_name.encode() + nonce + key).hexdigest()
                if not hmac.compare_digest(theirs, expected):
                    raise CollectorError(f"{self.name} does not know the shared key")
            case ["PONG", False, reason, *_]:
                raise CollectorError(f"{self.name} refuses: {reason!r:.200}; is the shared key the same?")
            case other:
                raise CollectorError(f"{self.name} answered {other!r:.200} instead of PONG")
