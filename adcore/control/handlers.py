"""The control listener's handler: the state of this process, for operators and their programs.

It knows no part of the process by name: `sections` maps the keys of /status to functions that give plain data.
"""

from collections.abc import Callable, Mapping
from urllib.parse import parse_qsl

import msgspec

from adcore.control.explain import ExplainError
from adcore.core.decision import Explanation
from adcore.http1.request import Request
from adcore.http1.response import Response, respond

Section = Callable[[], object]


class ControlHandlers:
    """Answers /status, /version and /explain with JSON."""

    def __init__(
        self,
        version: Mapping[str, str],
        sections: Mapping[str, Section],
        explain: Callable[[list[tuple[str, str]]], list[Explanation]],
    ) -> None:
        self.version = version
        self.sections = sections
        self.explain = explain
        self.routes: dict[bytes, Callable[[Request], Response]] = {
            b"/status": self.on_status,
            b"/version": self.on_version,
            b"/explain": self.on_explain,
            b"/ping": self.on_ping,
        }

    def __call__(self, request: Request) -> Response:
        answer = self.routes.get(request.path)
        if answer is None:
            paths = ", ".join(path.decode() for path in self.routes)
            return _json(404, {"error": f"there is nothing at this path; there are {paths}"})
        if request.method not in (b"GET", b"HEAD"):
            return _json(405, {"error": "this path takes GET, HEAD"}, ("Allow", "GET, HEAD"))
        return answer(request)

    def on_ping(self, request: Request) -> Response:
        return respond(200, b"ok\n", content_type="text/plain")

    def on_version(self, request: Request) -> Response:
        return _json(200, self.version)

    def on_status(self, request: Request) -> Response:
        return _json(200, {name: section() for name, section in self.sections.items()})

    def on_explain(self, request: Request) -> Response:
        arguments = parse_qsl(request.query.decode("latin-1"), keep_blank_values=True)
        try:
            explanations = self.explain(arguments)
        except ExplainError as error:
            return _json(400, {"error": str(error)})
        if len(explanations) == 1:
            return _json(200, explanations[0])
        return _json(200, {"explanations": explanations})


def _json(status: int, data: object, *headers: tuple[str, str]) -> Response:
    body = msgspec.json.format(msgspec.json.encode(data), indent=2) + b"\n"
    return respond(status, body, content_type="application/json", headers=(("Cache-Control", "no-store"), *headers))
