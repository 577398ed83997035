"""A proxy between a server and its store that can break in every way a network does.

    with Proxy(tmp_path / "proxy.sock", store.path) as proxy:
        proxy.mode = "hang"

Modes: `pass`; `refuse` (nobody listens); `cut` (accepts and closes); `hang` (takes everything, answers nothing);
`slow` (answers come `delay_s` late); `garbage` (answers are other bytes). Going into `refuse`, `cut` or `garbage` ends
the connections there are; going back to `pass` lets through what was held up.
"""

import contextlib
import random
import select
import socket
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

MODES = ("pass", "refuse", "cut", "hang", "slow", "garbage")


class Proxy:
    """Listens on the unix socket `path` and forwards to the one at `target`."""

    def __init__(self, path: Path, target: Path, delay_s: float = 10.0) -> None:
        self.path = path
        self.target = target
        self.delay_s = delay_s
        self.answered_monotonic = 0.0
        """When the store gave the last answer that was let through."""
        self.let_through_monotonic = 0.0
        """And when that was done."""
        self._mode = "pass"
        self._changed = threading.Condition()
        self._ending = False
        self._connections: set[socket.socket] = set()
        self._listener: socket.socket | None = None
        self._chance = random.Random(1)

    def __enter__(self) -> Self:
        self._listen()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending = True
        self.mode = "refuse"

    @property
    def mode(self) -> str:
        return self._mode

    @mode.setter
    def mode(self, mode: str) -> None:
        assert mode in MODES
        with self._changed:
            before, self._mode = self._mode, mode
            self._changed.notify_all()
        if mode == "refuse" and self._listener is not None:
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        if mode in ("refuse", "cut", "garbage"):
            for connection in list(self._connections):
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        if before == "refuse" and mode != "refuse":
            self._listen()

    def _listen(self) -> None:
        self.path.unlink(missing_ok=True)
        listener = self._listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self.path))
        listener.listen(64)
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            if self._mode == "cut":
                client.close()
                continue
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.socket(socket.AF_UNIX) as store:
            self._connections |= {client, store}
            try:
                store.connect(str(self.target))
                while True:
                    for ready in select.select([client, store], [], [])[0]:
                        data = ready.recv(1 << 16)
                        if not data:
                            return
                        if ready is client:
                            store.sendall(data)
                        else:
                            self._answer(client, data)
            except OSError:
                pass
            finally:
                self._connections -= {client, store}

    def _answer(self, client: socket.socket, data: bytes) -> None:
        """Pass an answer on, as the mode has it."""
        answered_monotonic = time.monotonic()
        due_monotonic = answered_monotonic + self.delay_s
        with self._changed:
            while not self._ending:
                left_s = due_monotonic - time.monotonic()
                if self._mode == "hang":
                    self._changed.wait()
                elif self._mode == "slow" and left_s > 0:
                    self._changed.wait(left_s)
                else:
                    break
            mode = self._mode
        if mode == "garbage":
            data = self._chance.randbytes(len(data))
        if mode in ("pass", "slow"):
            self.answered_monotonic, self.let_through_monotonic = answered_monotonic, time.monotonic()
        client.sendall(data)
