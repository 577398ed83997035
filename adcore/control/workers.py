"""One control listener in front of several workers' own: each is asked, and all are reported.

    /status     {"workers": [what each says, with what the parent knows of it], "parent": {...}}; a worker that does
                not answer has "error" there. With format=golang-stats also the keys of one process, added up
    /metrics    the samples of every worker that serves, with the label worker="1"
    /profile    of ?worker=1, else of the first that serves
    /explain    likewise, though any worker would say the same
    /version    likewise

Knows no worker but by the path of its socket.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, quote, urlencode

import msgspec

from adcore.control import golang, metrics
from adcore.control.profile import SECONDS_MAX
from adcore.control.profile_formats import DRAW_TIMEOUT_S
from adcore.control.routing import NO_STORE, ArgumentError, Router, to_json
from adcore.errors import AdcoreError
from adcore.http1.request import Request
from adcore.http1.response import Response, respond

# A worker answers in milliseconds; one that does not has a loop that hangs, which is what the others' answers tell.
TIMEOUT_S = 2.0
# Longer than a profile can take: the sampling, and two programs that draw it.
PROFILE_TIMEOUT_S = SECONDS_MAX + 2 * DRAW_TIMEOUT_S + TIMEOUT_S
ANSWER_BYTES_MAX = 64 << 20
# Connections to workers at once, for all who ask: each takes a descriptor of the process that starts workers.
ASKING_MAX = 64


class WorkerView(NamedTuple):
    """A worker as its parent knows it. `state` is starting, serving or draining."""

    number: int
    pid: int
    state: str
    control: str
    """The path of its control socket."""


class WorkerError(AdcoreError):
    """A worker does not answer."""


class Answer(NamedTuple):
    status: int
    content_type: str
    body: bytes


class WorkersControl:
    """`workers` gives those that run now; `status` what the parent has to say of itself."""

    def __init__(self, workers: Callable[[], Sequence[WorkerView]], status: Callable[[], Mapping[str, object]]) -> None:
        self.workers = workers
        self.status = status
        self._asking = asyncio.Semaphore(ASKING_MAX)
        self.router = Router(
            {
                b"/status": self.on_status,
                b"/metrics": self.on_metrics,
                b"/version": self.on_one,
                b"/profile": self.on_one,
                b"/explain": self.on_one,
                b"/ping": self.on_ping,
            }
        )

    async def __call__(self, request: Request) -> Response:
        return await self.router(request)

    async def on_ping(self, request: Request) -> Response:
        return respond(200, b"ok\n", content_type="text/plain")

    async def on_status(self, request: Request) -> Response:
        workers: list[dict[str, Any]] = []
        answered: list[dict[str, Any]] = []
        for worker, answer in await self._ask(request, self.workers()):
            known = {**worker._asdict(), "control": f"unix:{worker.control}"}
            if isinstance(answer, WorkerError):
                workers.append({**known, "error": str(answer)})
            elif answer.status == 400:  # all of them will say so
                return _as_response(answer)
            else:
                answered.append(msgspec.json.decode(answer.body))
                workers.append({**known, **answered[-1]})
        is_golang = dict(parse_qsl(request.query.decode("latin-1"))).get("format") == "golang-stats"
        total = golang.add_up(answered) if is_golang else {}
        return to_json(200, {**total, "workers": workers, "parent": self.status()})

    async def on_metrics(self, request: Request) -> Response:
        # While workers are replaced, two have one number: of these the one that serves.
        serving = {worker.number: worker for worker in self.workers() if worker.state == "serving"}
        answers = await self._ask(request, list(serving.values()))
        texts = {str(worker.number): answer.body for worker, answer in answers if isinstance(answer, Answer)}
        up = {str(number): str(number) in texts for number in serving}
        body = metrics.merge(texts) + metrics.render([metrics.workers_up(up)])
        return respond(200, body, content_type=metrics.CONTENT_TYPE, headers=NO_STORE)

    async def on_one(self, request: Request) -> Response:
        """Hand the request on to one worker."""
        asked = parse_qsl(request.query.decode("latin-1"), keep_blank_values=True)
        serving = {str(worker.number): worker for worker in self.workers() if worker.state == "serving"}
        chosen = dict(asked).get("worker") or next(iter(serving), "")
        if not serving:
            return to_json(503, {"error": "no worker is serving"})
        if chosen not in serving:
            raise ArgumentError(f"no worker {chosen!r} is serving; there are {', '.join(serving)}")
        rest = urlencode([(name, value) for name, value in asked if name != "worker"])
        target = quote(request.path) + (f"?{rest}" if rest else "")
        timeout_s = PROFILE_TIMEOUT_S if request.path == b"/profile" else TIMEOUT_S
        try:
            async with self._asking:
                return _as_response(await ask_worker(serving[chosen].control, target, "", timeout_s))
        except WorkerError as error:
            return to_json(503, {"error": f"worker {chosen}: {error}"})

    async def _ask(
        self, request: Request, workers: Sequence[WorkerView]
    ) -> list[tuple[WorkerView, Answer | WorkerError]]:
        target = quote(request.path) + (f"?{request.query.decode('latin-1')}" if request.query else "")
        # The workers tell pollers apart, and would take all for one parent.
        agent = f"{request.peer} {request.headers.get(b'user-agent', b'').decode('latin-1')}".strip()

        async def ask(worker: WorkerView) -> tuple[WorkerView, Answer | WorkerError]:
            try:
                async with self._asking:
                    return worker, await ask_worker(worker.control, target, agent, TIMEOUT_S)
            except WorkerError as error:
                return worker, error

        return await asyncio.gather(*map(ask, workers))


def _as_response(answer: Answer) -> Response:
    return respond(answer.status, answer.body, content_type=answer.content_type, headers=NO_STORE)


async def ask_worker(path: str, target: str, agent: str, timeout_s: float) -> Answer:
    """GET from a ControlServer, which closes after its answer. Raises WorkerError."""
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_unix_connection(path)
            try:
                asked = f"GET {target} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: {agent}\r\n\r\n"
                writer.write(asked.encode("latin-1"))
                head, _, body = (await _read_all(reader)).partition(b"\r\n\r\n")
            finally:
                writer.transport.abort()
        fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:])
        if len(body) != int(fields[b"Content-Length"]):
            raise WorkerError("its answer was cut short")
        return Answer(int(head.split()[1]), fields[b"Content-Type"].decode(), body)
    except TimeoutError:
        raise WorkerError(f"no answer within {timeout_s:g} s") from None
    except OSError as error:
        raise WorkerError(f"no connection: {error.strerror or error}") from error
    except (ValueError, IndexError, KeyError) as error:
        raise WorkerError("its answer is not HTTP") from error


async def _read_all(reader: asyncio.StreamReader) -> bytes:
    pieces: list[bytes] = []
    size = 0
    while piece := await reader.read(1 << 16):
        pieces.append(piece)
        size += len(piece)
        if size > ANSWER_BYTES_MAX:
            raise WorkerError("its answer is too large")
    return b"".join(pieces)
