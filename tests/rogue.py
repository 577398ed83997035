"""Servers that mean harm, in a thread each: faults that a real MySQL or memcached can't be made to have."""

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

GREETING_SALT = b"12345678", b"901234567890\0"
# LONG_PASSWORD, CONNECT_WITH_DB, LOCAL_FILES, PROTOCOL_41, TRANSACTIONS, SECURE_CONNECTION and PLUGIN_AUTH.
CAPABILITIES = 0x1 | 0x8 | 0x80 | 0x200 | 0x2000 | 0x8000 | 0x80000
OK = b"\0\0\0\2\0\0\0"


class Rogue:
    """Listens on a unix socket or on a free port of 127.0.0.1, and has `serve` talk to each that connects."""

    def __init__(
        self, serve: Callable[[socket.socket], None], path: Path | None = None, host: str = "127.0.0.1"
    ) -> None:
        self._serve = serve
        self._listener = socket.socket(socket.AF_INET if path is None else socket.AF_UNIX)
        self._listener.bind((host, 0) if path is None else str(path))
        self._listener.listen(16)
        self.address = f"{host}:{self._listener.getsockname()[1]}" if path is None else f"unix:{path}"
        self._connections: list[socket.socket] = []

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for one in (self._listener, *self._connections):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._connections.append(connection)
            threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError, EOFError):
            self._serve(connection)


def endless(connection: socket.socket, piece: bytes) -> None:
    """Send this again and again, until it is not taken any more."""
    while True:
        connection.sendall(piece)


def trickle(connection: socket.socket, piece: bytes, every_s: float) -> None:
    """Send a byte now and then, without end."""
    while True:
        for byte in piece:
            connection.sendall(bytes([byte]))
            time.sleep(every_s)


class MysqlPeer:
    """The server's side of MySQL's protocol, as far as a rogue needs it. `received` has what the client sent."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.received: list[bytes] = []
        self._next = 0

    def send(self, payload: bytes) -> None:
        self.connection.sendall(struct.pack("<I", len(payload))[:3] + bytes([self._next % 256]) + payload)
        self._next += 1

    def receive(self) -> bytes:
        head = self._exactly(4)
        self._next = head[3] + 1
        payload = self._exactly(int.from_bytes(head[:3], "little"))
        self.received.append(payload)
        return payload

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self.connection.recv(size - len(data))
            if not more:
                raise EOFError
            data += more
        return data

    def greet(self, plugin: bytes = b"mysql_native_password", capabilities: int = CAPABILITIES) -> None:
        self.send(greeting(plugin, capabilities))

    def switch_to(self, plugin: bytes) -> None:
        """AuthSwitchRequest."""
        self.send(b"\xfe" + plugin + b"\0" + b"".join(GREETING_SALT))

    def log_in(self) -> None:
        """Greet, believe anything, and say yes to what sets the session up; the first query that asks for rows."""
        self.greet()
        self.receive()
        self.send(OK)

    def next_select(self) -> bytes:
        while True:
            payload = self.receive()
            if payload[:1] == b"\x03" and b"SELECT" in payload.upper()[:40]:
                return payload
            self.send(OK)

    def send_columns(self, *names: str) -> None:
        self.send(bytes([len(names)]))
        for name in names:
            texts = (b"def", b"", b"", b"", name.encode(), b"")
            head = b"".join(bytes([len(text)]) + text for text in texts)
            self.send(head + b"\x0c" + struct.pack("<HIBHBxx", 45, 1 << 24, 0xFD, 0, 0))
        self.send(b"\xfe\0\0\2\0")

    def send_row(self, *values: bytes) -> None:
        self.send(b"".join(b"\xfe" + struct.pack("<Q", len(value)) + value for value in values))


def greeting(plugin: bytes, capabilities: int) -> bytes:
    return (
        b"\x0a8.0.0\0"
        + struct.pack("<I", 1)
        + GREETING_SALT[0]
        + b"\0"
        + struct.pack("<HBHHB", capabilities & 0xFFFF, 45, 2, capabilities >> 16, 21)
        + bytes(10)
        + GREETING_SALT[1]
        + plugin
        + b"\0"
    )
