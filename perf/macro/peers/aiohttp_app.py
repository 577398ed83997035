"""aiohttp's server on uvloop, without its access log."""

import asyncio
import os

import uvloop
from aiohttp import web

from perf.macro.peers.job import FLUSH_S, JSON_HEADERS, Job

_job = Job.from_environment()
_headers = dict(JSON_HEADERS)


async def decision(request: web.Request) -> web.Response:
    headers = request.headers
    body = _job.answer(
        request.rel_url.raw_query_string,
        headers.get("User-Agent", ""),
        headers.get("Accept-Language", ""),
        headers.get("X-Country", ""),
        headers.get("X-Real-IP", ""),
    )
    if body is None:
        return web.Response(status=204)
    return web.Response(body=body, headers=_headers)


async def main() -> None:
    app = web.Application()
    app.router.add_get("/v1/decision", decision)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.UnixSite(runner, os.environ["JOB_SOCKET"]).start()
    while True:
        await asyncio.sleep(FLUSH_S)
        _job.flush()


if __name__ == "__main__":
    uvloop.run(main())
