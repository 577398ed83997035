"""The control listener of a parent of several workers, each of which has one of its own.

/status is that of every worker, and the parent's own; anything else goes to one worker that serves. It is asked a few
times a minute by people and their programs, so each question has a thread and waits there for the workers' answers,
beside the parent's loop.
"""

import asyncio
import http.client
import json
import socket
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler
from socketserver import BaseServer, ThreadingMixIn
from types import TracebackType
from typing import Any, NamedTuple, cast
from urllib.parse import urlsplit

# A worker that takes longer to say how it is does not answer.
STATUS_TIMEOUT_S = 2.0
# Other questions may take their time: a profile runs for as long as it is asked to.
PASS_ON_TIMEOUT_S = 600.0
QUESTION_TIMEOUT_S = 10.0
QUESTIONS_MAX = 16


class WorkerView(NamedTuple):
    """A worker as the parent knows it. `state` is starting, serving or draining."""

    number: int
    pid: int
    state: str
    control: str
    """The path of its control listener."""


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes


def ask_worker(worker: WorkerView, target: str, timeout_s: float, method: str = "GET") -> Answer:
    """Raises OSError, http.client.HTTPException."""
    connection = _UnixConnection(worker.control, timeout_s)
    try:
        connection.request(method, target, headers={"Connection": "close"})
        response = connection.getresponse()
        return Answer(response.status, dict(response.headers), response.read())
    finally:
        connection.close()


def merge_status(workers: list[WorkerView], parent: dict[str, object], target: str) -> Answer:
    """{"workers": [each one's own answer, with what the parent knows of it], "parent": {...}}."""
    found: list[dict[str, object]] = []
    for worker in workers:
        known = {**worker._asdict(), "control": f"unix:{worker.control}"}
        try:
            answer = ask_worker(worker, target, STATUS_TIMEOUT_S)
            if answer.status != 200:
                return answer  # the question is wrong, for all of them
            found.append({**known, **json.loads(answer.body)})
        except (OSError, ValueError, http.client.HTTPException) as error:
            found.append({**known, "error": f"it does not answer: {error or type(error).__name__}"})
    return _json(200, {"workers": found, "parent": parent})


def pass_on(workers: list[WorkerView], target: str, method: str) -> Answer:
    """The answer of the first worker that serves and gives one."""
    why = "no worker is serving"
    for worker in workers:
        if worker.state == "serving":
            try:
                return ask_worker(worker, target, PASS_ON_TIMEOUT_S, method)
            except (OSError, http.client.HTTPException) as error:
                why = f"worker {worker.number} does not answer: {error}"
    return _json(503, {"error": why})


def _json(status: int, data: object) -> Answer:
    headers = {"Content-Type": "application/json", "Cache-Control": "no-store"}
    return Answer(status, headers, json.dumps(data, indent=2).encode() + b"\n")


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Front(ThreadingMixIn, BaseServer):
    """Answers on a listening socket while the `with` block lasts; `workers` and `status` are called in threads."""

    daemon_threads = True
    timeout = 0

    def __init__(
        self, listener: socket.socket, workers: Callable[[], list[WorkerView]], status: Callable[[], dict[str, object]]
    ) -> None:
        super().__init__("", _Handler)
        self.workers = workers
        self.status = status
        self._listener = listener
        self._free = threading.BoundedSemaphore(QUESTIONS_MAX)

    def __enter__(self) -> "Front":
        asyncio.get_running_loop().add_reader(self._listener, self._on_readable)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.get_running_loop().remove_reader(self._listener)

    def _on_readable(self) -> None:
        try:
            connection, peer = self._listener.accept()
        except OSError:
            return
        if self._free.acquire(blocking=False):
            self.process_request(connection, peer)
        else:
            connection.close()

    # What socketserver wants to know

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def shutdown_request(self, request: Any) -> None:
        try:
            request.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        request.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """The asker has gone away; nobody is left to be told."""


class _Handler(BaseHTTPRequestHandler):
    server_version = "adcore"
    sys_version = ""
    timeout = QUESTION_TIMEOUT_S

    def do_GET(self) -> None:
        front = cast(Front, self.server)
        if urlsplit(self.path).path == "/status":
            answer = merge_status(front.workers(), front.status(), self.path)
        else:
            answer = pass_on(front.workers(), self.path, self.command)
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            if name.lower() not in ("connection", "content-length", "date", "server"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, format: str, *args: Any) -> None:
        """Nobody reads it, and a unix socket's peer has no address to write down."""
