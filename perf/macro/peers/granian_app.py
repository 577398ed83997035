"""RSGI, granian's own interface and its fastest."""

import asyncio
from typing import Any

from perf.macro.peers.job import FLUSH_S, JSON_HEADERS, Job

_job = Job.from_environment()
_headers = list(JSON_HEADERS)


class App:
    def __rsgi_init__(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.call_soon_threadsafe(_keep_flushing, loop)

    async def __rsgi__(self, scope: Any, protocol: Any) -> None:
        if scope.path != "/v1/decision":
            protocol.response_empty(404, [])
            return
        headers = scope.headers
        body = _job.answer(
            scope.query_string,
            headers.get("user-agent", ""),
            headers.get("accept-language", ""),
            headers.get("x-country", ""),
            headers.get("x-real-ip", ""),
        )
        if body is None:
            protocol.response_empty(204, [])
        else:
            protocol.response_bytes(200, _headers, body)


app = App()


def _keep_flushing(loop: asyncio.AbstractEventLoop) -> None:
    _job.flush()
    loop.call_later(FLUSH_S, _keep_flushing, loop)
