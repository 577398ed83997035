"""What systemd does for a worker, done by the test: hold the listening socket, pass it on as LISTEN_FDS, and listen at
NOTIFY_SOCKET to what the worker says of itself.
"""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.process import PATIENCE_S, Adcore, wait_for

Message = dict[str, str]


class NotifySocket:
    """A NOTIFY_SOCKET: a path, or `@name` for an abstract one."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.messages: list[Message] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + name[1:] if name.startswith("@") else name)
        self._socket.setblocking(False)

    def receive(self) -> list[Message]:
        """Everything said so far."""
        try:
            while True:
                lines = self._socket.recv(65536).decode().split("\n")
                self.messages.append(dict(line.split("=", 1) for line in lines))
        except BlockingIOError:
            return self.messages

    def said(self, name: str, value: str | None = None) -> bool:
        """Whether this field was ever there, with this value."""
        return any(name in message and value in (None, message[name]) for message in self.receive())

    def status(self) -> str:
        """The STATUS said last."""
        return next((message["STATUS"] for message in reversed(self.receive()) if "STATUS" in message), "")

    def close(self) -> None:
        """What has been said can still be read from `messages`."""
        self.receive()
        self._socket.close()


class Worker(Adcore):
    """adcore on a socket that `manager` holds; `notify` hears it."""

    def __init__(self, manager: "Manager", name: str, *args: str, **variables: str) -> None:
        state = manager.folder / "state"
        state.mkdir(exist_ok=True)
        self.name = name
        self.notify = NotifySocket(f"@{manager.folder}/{name}/{manager.started}")
        manager.started += 1
        super().__init__(
            state,
            *("--control", f"unix:{manager.folder}/control-{name}"),
            *args,
            *(["--source", manager.source] if manager.source else []),
            # fd 3 and this pid are the whole of the protocol.
            launcher=["bash", "-c", 'exec 3<&"$0"; LISTEN_PID=$$ exec "$@"', str(manager.socket.fileno())],
            pass_fds=(manager.socket.fileno(),),
            LISTEN_FDS="1",
            LISTEN_FDNAMES="adcore.socket",
            NOTIFY_SOCKET=self.notify.name,
            **variables,
        )
        self.address = f"unix:{manager.path}"
        self.control = f"unix:{manager.folder}/control-{name}"

    def is_ready(self) -> bool:
        assert self.process.poll() is None, f"adcore ended with {self.process.returncode}:\n{self.errors}"
        return self.notify.said("READY", "1")


class Manager:
    """Holds the socket at `path` and the workers on it."""

    def __init__(self, folder: Path, source: str | None = None) -> None:
        self.folder = folder
        self.source = source
        self.path = folder / "ad.sock"
        self.log = folder / "state/delivery.log"
        self.started = 0
        self.workers: dict[str, Worker] = {}
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.bind(str(self.path))
        self.socket.listen(4096)
        self.address = f"unix:{self.path}"

    def launch(self, name: str, *args: str, **variables: str) -> Worker:
        worker = self.workers[name] = Worker(self, name, *args, **variables)
        return worker

    def start(self, name: str, *args: str, **variables: str) -> Worker:
        """Started, and READY."""
        worker = self.launch(name, *args, **variables)
        wait_for(worker.is_ready, lambda: f"no READY from {name}: {worker.notify.messages}\n{worker.errors}")
        return worker

    def restart(self, name: str) -> Worker:
        """As `systemctl restart` does it: TERM, wait for the end, start, wait for READY."""
        self.stop(name)
        return self.start(name)

    def stop(self, name: str) -> None:
        worker = self.workers.pop(name)
        status = worker.stop()
        worker.notify.close()
        assert status == 0, worker.errors


@contextmanager
def managing(folder: Path, source: str | None = None) -> Iterator[Manager]:
    manager = Manager(folder, source)
    try:
        yield manager
    finally:
        for worker in manager.workers.values():
            worker.process.kill()
            worker.process.wait(PATIENCE_S)
            worker.notify.close()
        manager.socket.close()
