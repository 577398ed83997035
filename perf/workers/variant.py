"""adcore, accepting in another way: `python perf/workers/variant.py VARIANT [FLAG...]`. For perf/run workers alone.

Workers are started with their parent's command line, so that they come this way too.
"""

import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from adcore import acceptor, cli, listen, server, workers
from adcore.config import Config
from adcore.seat import READY


def take_turns_by_chance() -> None:
    """One connection at a time, and never stand back or give one up."""
    acceptor.SLACK = 1 << 30
    acceptor.EXCESS_MIN = float(1 << 30)


def leave_it_to_libuv() -> None:
    """uvloop's own server on the shared socket. (libuv before 1.45 accepts until nothing waits; then once a turn.)"""
    accept = server.Server._accept

    async def accept_as_one_process(self: server.Server, listener: listen.Listener) -> Any:
        seat, self.seat = self.seat, None
        stop = await accept(self, listener)
        self.seat = seat
        if self.parent is not None:
            await self.first_table.wait()
            self.parent.send(READY)
        return stop

    server.Server._accept = accept_as_one_process  # type: ignore[method-assign]


def bind_one_each() -> None:
    """Each worker binds the TCP port for itself (SO_REUSEPORT), and the kernel spreads what comes."""
    leave_it_to_libuv()

    def bind(config: Config, listens: bool) -> listen.Listener:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((config.host, config.port))
        if listens:
            sock.listen(config.backlog)
        return listen.Listener(sock, f"{config.host}:{config.port}")

    # The parent's socket only keeps the port: what does not listen is given no connections.
    vars(workers)["open_listener"] = lambda config: bind(config, False)
    vars(server)["open_public_listener"] = lambda config, seat: bind(config, True)


VARIANTS: dict[str, Callable[[], None]] = {
    "share": lambda: None,
    "chance": take_turns_by_chance,
    "libuv": leave_it_to_libuv,
    "reuseport": bind_one_each,
}

if __name__ == "__main__":
    VARIANTS[sys.argv[1]]()
    sys.exit(cli.main(sys.argv[2:]))
