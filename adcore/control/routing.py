"""From a path to the function that answers it, and the forms that all answers of the control listener share."""

from collections.abc import Awaitable, Callable, Mapping
from urllib.parse import parse_qsl

import msgspec

from adcore.errors import AdcoreError
from adcore.http1.request import Request
from adcore.http1.response import Response, respond

NO_STORE = (("Cache-Control", "no-store"),)


class ArgumentError(AdcoreError):
    """The query string asks for something that there is not."""


class Router:
    """Gives each request to the function of its path; what is wrong with one is said in JSON."""

    def __init__(self, routes: Mapping[bytes, Callable[[Request], Awaitable[Response]]]) -> None:
        self.routes = routes

    async def __call__(self, request: Request) -> Response:
        answer = self.routes.get(request.path)
        if answer is None:
            paths = ", ".join(path.decode() for path in self.routes)
            return to_json(404, {"error": f"there is nothing at this path; there are {paths}"})
        if request.method not in (b"GET", b"HEAD"):
            return to_json(405, {"error": "this path takes GET, HEAD"}, ("Allow", "GET, HEAD"))
        try:
            return await answer(request)
        except ArgumentError as error:
            return to_json(400, {"error": str(error)})


def to_json(status: int, data: object, *headers: tuple[str, str]) -> Response:
    return respond(status, format_json(data) + b"\n", content_type="application/json", headers=(*NO_STORE, *headers))


def format_json(data: object) -> bytes:
    return msgspec.json.format(msgspec.json.encode(data), indent=2)


def arguments(request: Request, *names: str) -> dict[str, str]:
    """The arguments of the query string. Raises ArgumentError for one that is none of `names`."""
    asked = dict(parse_qsl(request.query.decode("latin-1"), keep_blank_values=True))
    for name in asked:
        if name not in names:
            raise ArgumentError(f"there is no argument {name!r}; there are {', '.join(names)}")
    return asked


def number(asked: Mapping[str, str], name: str, low: float, high: float, default: float) -> float:
    text = asked.get(name)
    try:
        value = default if text is None else float(text)
        if text is None or low <= value <= high:
            return value
    except ValueError:
        pass
    raise ArgumentError(f"{name} must be a number from {low:g} to {high:g}, not {text!r}")
