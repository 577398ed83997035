"""The control listener's connections: one request each, answered whenever its handler is done, then closed.

Apart from adcore.http1's connections, which answer at once or not at all: an operator may wait a minute for a profile
here, and nobody else waits with them. A handful of programs ask a few times a minute, so a task for each request and
a connection for each answer cost nothing that matters. Requests are parsed by the same parser and rules.
"""

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine
from ipaddress import ip_address
from typing import Any

from adcore.http1.request import Limits, Request, RequestParser
from adcore.http1.response import Response, Tails, respond_error

log = logging.getLogger("adcore.control")

Handler = Callable[[Request], Awaitable[Response]]

# Operators, their scrapers and a few profiles: more at once is a mistake.
CONNECTIONS_MAX = 64
# Connections beyond these, which have their answer and are read on so that it arrives (RFC 9112 9.6). More of them are
# closed with the answer.
TURNED_AWAY_MAX = 16
# What a control listener may have open.
DESCRIPTORS_MAX = CONNECTIONS_MAX + TURNED_AWAY_MAX
READ_BYTES = 64 * 1024
# What all peers together may leave unread of their answers: twice the longest explanation.
UNREAD_BYTES_MAX = 128 << 20
_HOST_AND_PORT = re.compile(r"(\[[^\]]*\]|[^:]*)(?::[0-9]*)?")


class ControlServer:
    """Makes the protocol of each connection, as a factory for `loop.create_server`."""

    def __init__(self, handler: Handler, limits: Limits | None = None, *, hosts: Collection[str] = ()) -> None:
        """`hosts` are the names (in lower case) by which it may be asked over TCP, besides localhost and addresses."""
        self.handler = handler
        self.hosts = hosts
        self._unread_bytes = 0
        self.limits = limits or Limits(connections=CONNECTIONS_MAX)
        self._conversations: set[asyncio.Task[None]] = set()
        self._turned_away: set[asyncio.Task[None]] = set()

    def __call__(self) -> asyncio.Protocol:
        return asyncio.StreamReaderProtocol(asyncio.StreamReader(), self._on_connection)

    def abort(self) -> None:
        """Cut every connection, whatever it waits for."""
        for task in (*self._conversations, *self._turned_away):
            task.cancel()

    def _on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._conversations) < self.limits.connections:
            self._start(self._conversations, self._converse(reader, writer))
            return
        # The new connection is refused, rather than an established one. Its request may take its time, so it is not
        # waited for.
        refusal = respond_error(503, f"{self.limits.connections} others are asking already")
        writer.write(refusal.head + Tails(int(time.time())).close + refusal.body)
        if len(self._turned_away) < TURNED_AWAY_MAX:
            self._start(self._turned_away, self._linger(reader, writer))
        else:
            writer.close()

    @staticmethod
    def _start(tasks: set[asyncio.Task[None]], coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine, name="control")
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    async def _linger(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Read on, unheard, until the peer has its answer and leaves: closed before, it might lose it."""
        try:
            async with asyncio.timeout(self.limits.linger_s):
                writer.write_eof()
                while await reader.read(READ_BYTES):
                    pass
        except (TimeoutError, OSError):
            pass
        finally:
            writer.transport.abort()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peername = writer.get_extra_info("peername")
        parser = RequestParser(self.limits, peer=peername[0] if isinstance(peername, tuple) else "")
        try:
            async with asyncio.timeout(self.limits.request_s):
                request = await self._read(reader, writer, parser)
            if parser.refusal is not None:
                response = respond_error(*parser.refusal)
            elif request is None:
                return
            else:
                response = await self._answer(request)
            await self._send(writer, response, is_head=request is not None and request.method == b"HEAD")
        except (TimeoutError, OSError):
            pass  # the peer is gone or asleep, and has nothing more to be told
        finally:
            parser.close()
            writer.transport.abort()

    async def _read(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, parser: RequestParser
    ) -> Request | None:
        """One request; None if the peer leaves or is refused before it is complete."""
        while data := await reader.read(READ_BYTES):
            requests = parser.feed(data)
            if requests:
                return requests[0]
            if parser.refusal is not None:
                return None
            if parser.awaits_continue:
                parser.awaits_continue = False
                writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return None

    async def _send(self, writer: asyncio.StreamWriter, response: Response, *, is_head: bool) -> None:
        size = len(response.body)
        if self._unread_bytes + size > UNREAD_BYTES_MAX and self._unread_bytes:
            response, size = respond_error(503, "others have not read their answers yet; try again"), 0
        self._unread_bytes += size
        try:
            writer.write(response.head + Tails(int(time.time())).close + (b"" if is_head else response.body))
            async with asyncio.timeout(self.limits.write_s):
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        finally:
            self._unread_bytes -= size

    async def _answer(self, request: Request) -> Response:
        refusal = refuse_web_page(request, self.hosts)
        if refusal is not None:
            return refusal
        try:
            return await self.handler(request)
        except Exception:  # the listener that explains trouble must outlive it
            log.exception("the control listener failed on %r", request.path)
            return respond_error(500, "internal error; the server's standard error has the details")


def refuse_web_page(request: Request, hosts: Collection[str]) -> Response | None:
    """Refuse what a web page of somebody else has asked for in an operator's browser; None for all others.

    A page may point its own name at an address that only the operator reaches, and then read the answers (DNS
    rebinding). The browser still sends the name as Host, so names are refused unless they are the listener's own
    (geth's --http.vhosts and Django's ALLOWED_HOSTS are the same rule). Without that a page can ask but not read;
    browsers say so in Sec-Fetch-Site and Origin. No page reaches a unix socket.
    """
    if not request.peer:
        return None
    header = {name: request.headers.get(name, b"").decode("latin-1").lower() for name in (b"host", b"origin")}
    host = header[b"host"]
    found = _HOST_AND_PORT.fullmatch(host)
    name = found[1].removesuffix(".") if found else host
    if host and not (name in hosts or name == "localhost" or _is_address(name)):
        return respond_error(421, f"{name} is not a name of this listener; add it to --control-hosts if it is one")
    if request.headers.get(b"sec-fetch-site", b"none") not in (b"none", b"same-origin"):
        return respond_error(403, "a page of another site may not ask this")
    if header[b"origin"] and header[b"origin"] != f"http://{host}":
        return respond_error(403, "a page of another site may not ask this")
    return None


def _is_address(name: str) -> bool:
    try:
        ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True
