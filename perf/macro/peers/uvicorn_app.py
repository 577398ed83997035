"""Bare ASGI, for uvicorn."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from perf.macro.peers.job import FLUSH_S, JSON_HEADERS, Job

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_job = Job.from_environment()
_headers = [(name.encode(), value.encode()) for name, value in JSON_HEADERS]


async def app(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        await _live(receive, send)
        return
    if scope["path"] != "/v1/decision":
        await send({"type": "http.response.start", "status": 404, "headers": []})
        await send({"type": "http.response.body", "body": b""})
        return
    headers = dict(scope["headers"])
    body = _job.answer(
        scope["query_string"].decode("latin-1"),
        headers.get(b"user-agent", b"").decode("latin-1"),
        headers.get(b"accept-language", b"").decode("latin-1"),
        headers.get(b"x-country", b"").decode("latin-1"),
        headers.get(b"x-real-ip", b"").decode("latin-1"),
    )
    if body is None:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})
        return
    length = (b"content-length", b"%d" % len(body))
    await send({"type": "http.response.start", "status": 200, "headers": [length, *_headers]})
    await send({"type": "http.response.body", "body": body})


async def _live(receive: Receive, send: Send) -> None:
    await receive()
    _keep_flushing(asyncio.get_running_loop())
    await send({"type": "lifespan.startup.complete"})
    await receive()
    _job.flush()
    await send({"type": "lifespan.shutdown.complete"})


def _keep_flushing(loop: asyncio.AbstractEventLoop) -> None:
    _job.flush()
    loop.call_later(FLUSH_S, _keep_flushing, loop)
