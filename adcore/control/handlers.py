"""The control listener's handler: the state of this process, for operators and their programs.

It knows no part of the process by name: `sections` maps the keys of /status to functions that give plain data, and
`histograms` names the durations that are counted.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import parse_qsl

from adcore.control import metrics, profile_formats
from adcore.control.explain import ExplainError
from adcore.control.golang import golang_stats
from adcore.control.profile import SECONDS_MAX, Profile, ProfileError, Profiler
from adcore.control.rates import Pollers, compare, take_sample
from adcore.control.routing import NO_STORE, ArgumentError, Router, arguments, format_json, number, to_json
from adcore.control.runtime import Runtime
from adcore.core.decision import Explanation
from adcore.http1.histogram import Histogram
from adcore.http1.request import Request
from adcore.http1.response import Response, respond

Section = Callable[[], object]

CAMPAIGNS_MAX = 1000
PROFILE_TYPES = {"svg": "image/svg+xml", "speedscope": "application/json", "pdf": "application/pdf"}


class ControlHandlers:
    """Answers /status, /metrics, /version, /profile and /explain about one process."""

    def __init__(
        self,
        version: Mapping[str, str],
        sections: Mapping[str, Section],
        histograms: Mapping[str, Histogram],
        runtime: Runtime,
        explain: Callable[[list[tuple[str, str]]], Iterator[Explanation]],
        campaigns: Callable[[int], object],
    ) -> None:
        self.version = version
        self.sections = sections
        self.histograms = histograms
        self.runtime = runtime
        self.explain = explain
        self.campaigns = campaigns
        """The campaigns with the most impressions today, so many of them."""
        self.pollers = Pollers(runtime.started_monotonic)
        self.profiler = Profiler()
        self._is_drawing = False
        self._explaining = asyncio.Lock()
        self.router = Router(
            {
                b"/status": self.on_status,
                b"/metrics": self.on_metrics,
                b"/version": self.on_version,
                b"/profile": self.on_profile,
                b"/explain": self.on_explain,
                b"/ping": self.on_ping,
            }
        )

    async def __call__(self, request: Request) -> Response:
        return await self.router(request)

    async def on_ping(self, request: Request) -> Response:
        return respond(200, b"ok\n", content_type="text/plain")

    async def on_version(self, request: Request) -> Response:
        return to_json(200, self.version)

    async def on_status(self, request: Request) -> Response:
        asked = arguments(request, "format", "poller", "campaigns", "pp")
        form = asked.get("format", "adcore")
        if form not in ("adcore", "golang-stats"):
            raise ArgumentError(f"format must be adcore or golang-stats, not {form!r}")
        status = self._status()
        agent = (request.headers.get(b"user-agent", b"")).decode("latin-1")
        who = f"{form} {asked.get('poller') or f'{request.peer} {agent}'}"
        now = take_sample(status, self.histograms)
        rates = compare(self.pollers.turn(who, now), now)
        if form == "golang-stats":
            return to_json(200, golang_stats(status, self.runtime.gc, rates))
        status["rates"] = rates
        if "campaigns" in asked:
            status["campaigns"] = self.campaigns(int(number(asked, "campaigns", 1, CAMPAIGNS_MAX, 0)))
        return to_json(200, status)

    async def on_metrics(self, request: Request) -> Response:
        body = metrics.render(metrics.collect(self._status(), self.histograms))
        return respond(200, body, content_type=metrics.CONTENT_TYPE, headers=NO_STORE)

    async def on_profile(self, request: Request) -> Response:
        asked = arguments(request, "seconds", "format")
        seconds = number(asked, "seconds", 0.1, SECONDS_MAX, 10)
        form = asked.get("format", "svg")
        if form not in PROFILE_TYPES:
            raise ArgumentError(f"format must be {', '.join(PROFILE_TYPES)}, not {form!r}")
        try:
            if form == "pdf":
                profile_formats.check_pdf_programs()
            if self._is_drawing:
                raise ProfileError("the profile before it is still being drawn; try again in a moment")
            profile = await self.profiler.take(seconds)
            self._is_drawing = True
            try:
                body = await self._draw(profile, form)
            finally:
                self._is_drawing = False
        except profile_formats.MissingProgram as error:
            return to_json(501, {"error": str(error)})
        except ProfileError as error:
            return to_json(503, {"error": str(error)})
        return respond(200, body, content_type=PROFILE_TYPES[form], headers=NO_STORE)

    async def _draw(self, profile: Profile, form: str) -> bytes:
        if form == "pdf":
            return await profile_formats.to_pdf(profile)
        draw = profile_formats.to_svg if form == "svg" else profile_formats.to_speedscope
        return await asyncio.to_thread(draw, profile)  # it may take a while, and visitors wait for nobody

    async def on_explain(self, request: Request) -> Response:
        explanations: list[bytes] = []
        try:
            async with self._explaining:  # of all that ask, one explanation in a turn of the loop
                for one in self.explain(parse_qsl(request.query.decode("latin-1"), keep_blank_values=True)):
                    explanations.append(format_json(one))
                    await asyncio.sleep(0)
        except ExplainError as error:
            raise ArgumentError(str(error)) from None
        body = explanations[0]
        if len(explanations) > 1:
            body = b'{"explanations": [' + b", ".join(explanations) + b"]}"
        return respond(200, body + b"\n", content_type="application/json", headers=NO_STORE)

    def _status(self) -> dict[str, Any]:
        return {name: section() for name, section in self.sections.items()}


# --- for any handler of a control listener
