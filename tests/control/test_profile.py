"""A sampling profile of this very process: a function known to be hot is what it shows."""

import asyncio
import signal
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Coroutine
from typing import Any, Literal

import msgspec
import pytest
import uvloop

from adcore.control import profile_formats
from adcore.control.profile import Frame, Profile, ProfileError, Profiler
from adcore.control.profile_formats import MissingProgram, to_pdf, to_speedscope, to_svg

# A sample is taken each 5 ms of CPU time, so these are 20. On a busy machine a second may hold less.
CPU_NS_ENOUGH = 100_000_000


def burn_hot(cpu_s: float) -> int:
    deadline, number = time.thread_time() + cpu_s, 0
    while time.thread_time() < deadline:
        number += 1
    return number


def run(main: Callable[[], Coroutine[Any, Any, Profile]]) -> Profile:
    """On uvloop, as the server does it."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main())


def share(profile: Profile, function: str, thread: str = "") -> float:
    """Of the CPU time, what stacks with this function have."""
    stacks = {stack: cpu for stack, cpu in profile.stacks().items() if thread in stack[0].function}
    return sum(cpu for stack, cpu in stacks.items() if function in {f.function for f in stack}) / sum(stacks.values())


def cpu_ns(profile: Profile) -> int:
    return sum(profile.stacks().values())


def test_the_hot_function_of_the_event_loop_is_what_a_profile_shows() -> None:
    async def take(seconds: float) -> Profile:
        profiling = asyncio.create_task(Profiler().take(seconds))
        while not profiling.done():
            burn_hot(0.002)  # in slices, as requests are
            await asyncio.sleep(0.001)
        return await profiling

    async def main() -> Profile:
        for seconds in (1.0, 2.0, 4.0, 8.0, 16.0):
            profile = await take(seconds)
            if cpu_ns(profile) >= CPU_NS_ENOUGH:
                break
        return profile

    profile = run(main)
    assert share(profile, "burn_hot", "MainThread") > 0.5
    assert profile.seconds > 0.9
    assert share(profile, "Profiler._on_tick") == 0  # itself it does not show
    assert signal.getitimer(signal.ITIMER_PROF) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGPROF) == signal.SIG_IGN


def test_cpu_time_of_another_thread_is_not_the_loops() -> None:
    async def main() -> Profile:
        for seconds in (1.0, 2.0, 4.0, 8.0, 16.0):
            profiling = asyncio.create_task(Profiler().take(seconds))
            await asyncio.sleep(0)
            await asyncio.to_thread(burn_hot, 0.6)
            profile = await profiling
            if cpu_ns(profile) >= CPU_NS_ENOUGH:
                break
        return profile

    profile = run(main)
    assert share(profile, "burn_hot", "uvloop_0") > 0.9
    by_thread = {thread: sum(cpu for _, cpu in samples) for thread, samples in profile.threads.items()}
    assert by_thread["uvloop_0"] > 0.9 * sum(by_thread.values())


def test_one_profile_at_a_time_and_the_second_is_told_when() -> None:
    async def main() -> Profile:
        profiler = Profiler()
        first = asyncio.create_task(profiler.take(60.0))
        await asyncio.sleep(0)
        with pytest.raises(ProfileError, match=r"already; try again in (59|60) s"):
            await profiler.take(1.0)
        first.cancel()
        await asyncio.wait([first])
        assert signal.getitimer(signal.ITIMER_PROF) == (0.0, 0.0)
        return await profiler.take(0.01)  # the one that was given up stands in nobody's way

    assert run(main).seconds > 0.005


DECIDE = Frame("adcore.core.decision", "decide", "/srv/adcore/core/decision.py", 40)
HANDLER = Frame("adcore.handlers", "Handlers.__call__", "/srv/adcore/handlers.py", 60)
ODD = Frame("odd", "<lambda>.a;b c\x1b", '/srv/"odd" & <strange>.py', 1)
PROFILE = Profile(
    2.0,
    {
        "MainThread": [((HANDLER, DECIDE), 6_000_000), ((HANDLER,), 1_000_000), ((HANDLER, DECIDE), 2_000_000)],
        "refresh": [((ODD,), 1_000_000)],
    },
)


def test_a_flame_graph_is_wide_where_the_time_went() -> None:
    svg = ET.fromstring(to_svg(PROFILE))
    space = "{http://www.w3.org/2000/svg}"
    bars = {bar.findtext(f"{space}title"): bar.find(f"{space}rect") for bar in svg.iter(f"{space}g")}
    widths = {title: float(rect.get("width", 0)) for title, rect in bars.items() if rect is not None and title}
    assert widths["adcore.core.decision.decide /srv/adcore/core/decision.py:40 — 8.0 ms, 80.0%"] == 960
    assert widths["adcore.handlers.Handlers.__call__ /srv/adcore/handlers.py:60 — 9.0 ms, 90.0%"] == 1080
    assert widths["all — 10.0 ms, 100.0%"] == 1200
    assert any("<strange>" in title and "\x1b" not in title for title in widths)
    assert "0.010 s of CPU time in 2.0 s (0.5% of a core)" in "".join(svg.itertext())
    assert ET.fromstring(to_svg(Profile(1.0, {}))) is not None


class SpeedscopeFrame(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    file: str
    line: int


class SpeedscopeProfile(msgspec.Struct, forbid_unknown_fields=True):
    type: Literal["sampled"]
    name: str
    unit: Literal["none", "nanoseconds", "microseconds", "milliseconds", "seconds", "bytes"]
    startValue: int  # noqa: N815
    endValue: int  # noqa: N815
    samples: list[list[int]]
    weights: list[int]


class SpeedscopeShared(msgspec.Struct, forbid_unknown_fields=True):
    frames: list[SpeedscopeFrame]


class Speedscope(msgspec.Struct, forbid_unknown_fields=True):
    """speedscope's file format, as its schema describes what is used here."""

    schema: Literal["https://www.speedscope.app/file-format-schema.json"] = msgspec.field(name="$schema")
    shared: SpeedscopeShared
    profiles: list[SpeedscopeProfile]
    name: str
    exporter: str


def test_speedscope_gets_every_sample_in_order() -> None:
    document = msgspec.json.decode(to_speedscope(PROFILE), type=Speedscope)
    names = [frame.name for frame in document.shared.frames]
    main = document.profiles[0]
    assert [[names[place] for place in stack] for stack in main.samples] == [
        ["adcore.handlers.Handlers.__call__", "adcore.core.decision.decide"],
        ["adcore.handlers.Handlers.__call__"],
        ["adcore.handlers.Handlers.__call__", "adcore.core.decision.decide"],
    ]
    assert (main.weights, main.endValue) == ([6_000_000, 1_000_000, 2_000_000], 9_000_000)
    assert [profile.name for profile in document.profiles] == ["MainThread", "refresh"]


def test_a_call_graph_is_drawn_by_the_real_programs() -> None:
    async def draw() -> bytes:
        return await to_pdf(PROFILE)

    assert asyncio.run(draw()).startswith(b"%PDF-")


def test_what_is_missing_for_a_call_graph_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(MissingProgram, match="apt install graphviz"):
        asyncio.run(to_pdf(PROFILE))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingProgram, match=r"pip install 'adcore\[profile\]'"):
        asyncio.run(to_pdf(PROFILE))


def test_a_drawing_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ProfileError, match="nothing to draw"):
        asyncio.run(to_pdf(Profile(1.0, {})))
    with pytest.raises(ProfileError, match="it is broken"):
        asyncio.run(profile_formats._run(b"", sys.executable, "-c", "import sys; sys.exit('it is broken')"))
    with pytest.raises(ProfileError, match="cannot be run here: No such file"):
        asyncio.run(profile_formats._run(b"", "/nonexistent"))
    monkeypatch.setattr(profile_formats, "DRAW_TIMEOUT_S", 0.05)
    with pytest.raises(ProfileError, match=r"took more than 0.05 s"):
        asyncio.run(profile_formats._run(b"", sys.executable, "-c", "import time; time.sleep(60)"))
