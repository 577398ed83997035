"""The same connection once on real sockets: uvloop over a unix path and over TCP."""

import asyncio
import re
import socket
from pathlib import Path

import pytest
import uvloop

from adcore.http1.protocol import Http1Server, Limits
from adcore.http1.request import Request
from adcore.http1.response import Response, respond

REQUEST = b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n"


def echo(request: Request) -> Response:
    return respond(200, request.path + b" " + request.peer.encode() + b" " + str(request.trusted).encode())


@pytest.mark.parametrize("family", ["unix", "tcp"])
def test_pipelining_refusal_and_drain(tmp_path: Path, family: str) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        http = Http1Server(echo, Limits(linger_s=1.0))
        if family == "unix":
            sock = socket.socket(socket.AF_UNIX)
            sock.bind(str(tmp_path / "s"))
            seen = b" True"
        else:
            sock = socket.create_server(("127.0.0.1", 0))
            seen = b"127.0.0.1 False"
        address = sock.getsockname()
        server = await loop.create_server(http, sock=sock)

        def connect() -> socket.socket:
            client = socket.socket(sock.family)
            client.settimeout(20)
            client.connect(address)
            return client

        def talk(sent: bytes) -> bytes:
            """Send everything, and read until the server ends it."""
            with connect() as client:
                client.sendall(sent)
                received = b""
                while data := client.recv(65536):
                    received += data
                return received

        many = b"".join(REQUEST % n for n in range(3000)) + b"GET /end HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        answers = await asyncio.to_thread(talk, many)
        assert re.findall(rb"\r\n\r\n/(\d+) ", answers) == [b"%d" % n for n in range(3000)]
        assert answers.endswith(b"/end " + seen)

        # A body far over the limit is still on its way when the refusal is: it must not be lost to a reset.
        too_large = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 900000\r\n\r\n" + b"x" * 900_000
        assert (await asyncio.to_thread(talk, too_large)).startswith(b"HTTP/1.1 413 ")

        with await asyncio.to_thread(connect) as idle:
            await asyncio.to_thread(idle.sendall, REQUEST % 1)
            assert (await asyncio.to_thread(idle.recv, 4096)).startswith(b"HTTP/1.1 200 ")
            server.close()
            http.start_drain()
            assert await asyncio.to_thread(idle.recv, 4096) == b""
        await asyncio.wait_for(http.all_closed.wait(), 20)
        await server.wait_closed()
        sock.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
