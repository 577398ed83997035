"""A control listener of the test's own process, in front of servers that the test has started."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adcore.control.server import ControlServer, Handler
from adcore.http1.request import Limits


@contextmanager
def listening(handler: Handler, path: Path, limits: Limits | None = None) -> Iterator[str]:
    """The address of a control listener with this handler, on an event loop in a thread."""
    started = threading.Event()
    loops: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def run() -> None:
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        control = ControlServer(handler, limits)
        server = await loop.create_unix_server(control, path)
        loops.append((loop, stop))
        started.set()
        await stop.wait()
        server.close()
        control.abort()

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    try:
        assert started.wait(20)
        yield f"unix:{path}"
    finally:
        for loop, stop in loops:
            loop.call_soon_threadsafe(stop.set)
        thread.join()
