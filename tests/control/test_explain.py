"""/explain: one placement in a turn of the loop, whatever it is asked for."""

import asyncio
import json
from types import SimpleNamespace
from typing import Any, cast

from adcore.control.explain import PLACEMENTS_MAX, ExplainError
from adcore.control.handlers import ControlHandlers
from adcore.control.runtime import Runtime
from adcore.core.decision import Explanation
from adcore.http1.request import Request
from adcore.http1.response import Response


def ask(query: str) -> tuple[Response, list[object]]:
    """The answer, and what happened: each explanation, and "turn" for each turn that others had."""
    events: list[object] = []

    def explain(arguments: list[tuple[str, str]]) -> list[Explanation]:
        events.append(arguments)
        placement = dict(arguments).get("placement")
        if not placement:
            raise ExplainError("placement is missing: say placement=NAME")
        return [Explanation(placement, 7, False, None, ())]

    runtime = cast(Runtime, SimpleNamespace(started_monotonic=0.0))
    handlers = ControlHandlers({}, {}, {}, runtime, explain, lambda number: None)

    async def others() -> None:
        while True:
            events.append("turn")
            await asyncio.sleep(0)

    async def run() -> Response:
        task = asyncio.create_task(others())
        try:
            return await handlers(Request(b"GET", b"/explain", query.encode()))
        finally:
            task.cancel()

    return asyncio.run(run()), events


def body(answer: Response) -> Any:
    return json.loads(answer.body)


def test_others_have_a_turn_after_each_placement() -> None:
    answer, events = ask("placement=a,b,c&kv.s=x")
    assert events == [[("placement", name), ("kv.s", "x")] if name else "turn" for name in ("a", "", "b", "", "c", "")]
    assert [one["placement"] for one in body(answer)["explanations"]] == ["a", "b", "c"]


def test_one_placement_is_answered_by_itself() -> None:
    answer, events = ask("placement=a")
    assert body(answer)["placement"] == "a"
    assert len(events) == 2


def test_placements_are_counted_before_any_is_explained() -> None:
    most = ",".join("a" * PLACEMENTS_MAX)
    answer, events = ask(f"placement={most}")
    assert len(body(answer)["explanations"]) == PLACEMENTS_MAX == 32
    answer, events = ask(f"placement={most},a")
    assert answer.status == 400
    assert body(answer)["error"] == "placement must name at most 32, and names 33"
    assert not events


def test_what_is_wrong_is_said_once() -> None:
    for query in ("", "device=tv"):
        answer, _ = ask(query)
        assert answer.status == 400
        assert "placement is missing" in body(answer)["error"]
