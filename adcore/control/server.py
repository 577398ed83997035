"""The control listener's connections: one request each, answered whenever its handler is done, then closed.

Apart from adcore.http1's connections, which answer at once or not at all: an operator may wait a minute for a profile
here, and nobody else waits with them. A handful of programs ask a few times a minute, so a task for each request and
a connection for each answer cost nothing that matters. Requests are parsed by the same parser and rules.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from adcore.http1.request import Limits, Request, RequestParser
from adcore.http1.response import Response, Tails, respond_error

log = logging.getLogger("adcore.control")

Handler = Callable[[Request], Awaitable[Response]]

# Operators, their scrapers and a few profiles: more at once is somebody's mistake.
CONNECTIONS_MAX = 64
READ_BYTES = 64 * 1024


class ControlServer:
    """Makes the protocol of each connection, as a factory for `loop.create_server`."""

    def __init__(self, handler: Handler, limits: Limits | None = None) -> None:
        self.handler = handler
        self.limits = limits or Limits(connections=CONNECTIONS_MAX)
        self._conversations: set[asyncio.Task[None]] = set()

    def __call__(self) -> asyncio.Protocol:
        return asyncio.StreamReaderProtocol(asyncio.StreamReader(), self._on_connection)

    def abort(self) -> None:
        """Cut every connection, whatever it waits for."""
        for task in self._conversations:
            task.cancel()

    def _on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # The newcomer is told, and not who asks last of those that are there.
        is_too_many = len(self._conversations) >= self.limits.connections
        task = asyncio.get_running_loop().create_task(self._converse(reader, writer, is_too_many), name="control")
        self._conversations.add(task)
        task.add_done_callback(self._conversations.discard)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, is_too_many: bool) -> None:
        peername = writer.get_extra_info("peername")
        parser = RequestParser(self.limits, peer=peername[0] if isinstance(peername, tuple) else "")
        try:
            async with asyncio.timeout(self.limits.request_s):
                request = await self._read(reader, writer, parser)
            if is_too_many:
                response = respond_error(503, f"{self.limits.connections} others are asking already")
            elif parser.refusal is not None:
                response = respond_error(*parser.refusal)
            elif request is None:
                return
            else:
                response = await self._answer(request)
            body = b"" if request is not None and request.method == b"HEAD" else response.body
            writer.write(response.head + Tails(int(time.time())).close + body)
            async with asyncio.timeout(self.limits.write_s):
                await writer.drain()
                writer.close()
                await writer.wait_closed()
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

    async def _answer(self, request: Request) -> Response:
        try:
            return await self.handler(request)
        except Exception:  # the listener that explains trouble must outlive it
            log.exception("the control listener failed on %r", request.path)
            return respond_error(500, "internal error; the server's standard error has the details")
