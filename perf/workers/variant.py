"""adcore, accepting in another way: `python perf/workers/variant.py VARIANT [FLAG...]`. For perf/run workers alone.

Workers are started with their parent's command line, so that they come this way too.
"""

import dataclasses
import socket
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from adcore import acceptor, cli, listen, server


def take_turns_by_chance() -> None:
    """One connection at a time, and never stand back."""
    acceptor.SLACK = 1 << 30


def leave_it_to_libuv() -> None:
    """uvloop's own server on the shared socket. (libuv before 1.45 accepts until nothing waits; then once a turn.)"""
    with_a_seat = server.Server._accept

    async def accept(self: server.Server, listener: listen.Listener) -> Callable[[], Awaitable[None]]:
        seat = self.seat
        self.seat = None
        stop = await with_a_seat(self, listener)
        self.seat = seat
        if self.parent is not None:
            self._tell_parent = self.loop_task(self._say_ready(self.parent))  # type: ignore[attr-defined]
        return stop

    def loop_task(self: server.Server, what: Any) -> Any:
        import asyncio

        return asyncio.get_running_loop().create_task(what)

    server.Server.loop_task = loop_task  # type: ignore[attr-defined]
    server.Server._accept = accept  # type: ignore[method-assign]


def bind_one_each() -> None:
    """Each worker binds the parent's TCP port for itself (SO_REUSEPORT), and the kernel spreads what comes."""
    leave_it_to_libuv()
    plain = socket.socket.bind

    def bind(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX:
            self.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        plain(self, address)

    socket.socket.bind = bind  # type: ignore[method-assign,assignment]
    inherited = server.open_public_listener

    def open_own(config: Any, seat: Any) -> listen.Listener:
        if seat is None:
            return inherited(config, seat)
        # What the parent holds must take no connections: it stays bound and ends its listening.
        return listen.open_address(
            listen.TcpAddress(config.host, config.port), backlog=config.backlog, unix_mode=config.unix_mode
        )

    server.open_public_listener = open_own
    from adcore import workers

    opened = workers.open_listener

    def open_bound(config: Any) -> listen.Listener:
        listener = opened(config)
        listener.sock.close()
        holder = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        holder.bind((config.host, config.port))
        return listen.Listener(holder, listener.describe)

    workers.open_listener = open_bound


VARIANTS: dict[str, Callable[[], None]] = {
    "share": lambda: None,
    "chance": take_turns_by_chance,
    "libuv": leave_it_to_libuv,
    "reuseport": bind_one_each,
}

if __name__ == "__main__":
    VARIANTS[sys.argv[1]]()
    sys.exit(cli.main(sys.argv[2:]))
