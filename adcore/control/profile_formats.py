"""A profile as a person looks at it: a flame graph (SVG), speedscope's JSON, or a call graph (PDF).

The flame graph is wide where the CPU time went: each bar is a function, upon the one that called it, and its title says
how much. speedscope (https://www.speedscope.app, or `npx speedscope FILE` at home) also shows the order in time. The
call graph is drawn by gprof2dot and Graphviz, as programs of their own, beside the server's process.
"""

import asyncio
import hashlib
import importlib.util
import shutil
import sys
from collections.abc import Iterator
from html import escape

import msgspec

from adcore.control.profile import Frame, Profile, ProfileError, Stack
from adcore.errors import AdcoreError
from adcore.memory import limit_memory

WIDTH_PX, ROW_PX, CHAR_PX = 1200, 17, 6.6
# Narrower bars cannot be seen or hit.
BAR_MIN_PX = 0.3
DRAW_TIMEOUT_S = 30.0
# For each program that draws; a call graph of all of adcore takes a twentieth.
DRAW_MEMORY_BYTES = 1 << 30


class MissingProgram(AdcoreError):
    """What is needed to draw is not installed; the text says how to get it."""


# --- flame graph


class Bar:
    """A function as called by those below it."""

    __slots__ = ("calls", "cpu_ns", "frame")

    def __init__(self, frame: Frame) -> None:
        self.frame = frame
        self.cpu_ns = 0
        self.calls: dict[Frame, Bar] = {}


def to_svg(profile: Profile) -> bytes:
    """A flame graph that needs no script: a browser shows the titles."""
    root = Bar(Frame("", "all", "", 0))
    for stack, cpu_ns in profile.stacks().items():
        bar = root
        bar.cpu_ns += cpu_ns
        for frame in stack:
            bar = bar.calls.setdefault(frame, Bar(frame))
            bar.cpu_ns += cpu_ns
    scale = WIDTH_PX / max(root.cpu_ns, 1)
    rows = list(_rows(root, 0.0, 0, scale))
    height = (max(depth for _, _, depth in rows) + 3) * ROW_PX
    busy = root.cpu_ns / 1e9 / profile.seconds
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH_PX} {height}" width="{WIDTH_PX}" '
        f'height="{height}" font-family="monospace" font-size="11">',
        "<style>rect { stroke: white; stroke-width: .5 } g:hover rect { stroke: black } text { pointer-events: none }"
        "</style>",
        f'<text x="4" y="13">{root.cpu_ns / 1e9:.3f} s of CPU time in {profile.seconds:.1f} s '
        f"({busy:.1%} of a core)</text>",
    ]
    for bar, x, depth in rows:
        width = bar.cpu_ns * scale
        y = height - (depth + 1) * ROW_PX
        name = str(bar.frame) if bar.frame.module else bar.frame.function
        title = f"{name} {bar.frame.file}:{bar.frame.line}" if bar.frame.file else name
        title += f" — {bar.cpu_ns / 1e6:.1f} ms, {bar.cpu_ns / max(root.cpu_ns, 1):.1%}"
        shown = name if len(name) * CHAR_PX < width else bar.frame.function[: int(width / CHAR_PX)]
        lines.append(
            f'<g><title>{_xml(title)}</title><rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{ROW_PX}" '
            f'fill="{_colour(bar.frame.module)}"/><text x="{x + 2:.1f}" y="{y + 12}">{_xml(shown)}</text></g>'
        )
    return "\n".join([*lines, "</svg>\n"]).encode()


def _rows(bar: Bar, x: float, depth: int, scale: float) -> Iterator[tuple[Bar, float, int]]:
    """Every bar that can be seen, where it starts and how high it is."""
    yield bar, x, depth
    for call in sorted(bar.calls.values(), key=lambda call: str(call.frame)):
        if call.cpu_ns * scale >= BAR_MIN_PX:
            yield from _rows(call, x, depth + 1, scale)
        x += call.cpu_ns * scale


def _colour(module: str) -> str:
    """One warm colour for each package's module, the same in every profile."""
    number = hashlib.blake2b(module.encode(), digest_size=2).digest()
    return f"hsl({number[0] * 50 // 255 + 10} 85% {number[1] * 15 // 255 + 65}%)"


def _xml(text: str) -> str:
    return escape("".join(c if c.isprintable() else "�" for c in text))


# --- speedscope


def to_speedscope(profile: Profile) -> bytes:
    """https://www.speedscope.app/file-format-schema.json, one profile for each thread."""
    places: dict[Frame, int] = {}
    profiles = []
    for thread, samples in profile.threads.items():
        profiles.append(
            {
                "type": "sampled",
                "name": thread,
                "unit": "nanoseconds",
                "startValue": 0,
                "endValue": sum(cpu_ns for _, cpu_ns in samples),
                "samples": [[places.setdefault(frame, len(places)) for frame in stack] for stack, _ in samples],
                "weights": [cpu_ns for _, cpu_ns in samples],
            }
        )
    return msgspec.json.encode(
        {
            "$schema": "https://www.speedscope.app/file-format-schema.json",
            "name": "adcore",
            "exporter": "adcore",
            "shared": {"frames": [{"name": str(f), "file": f.file, "line": f.line} for f in places]},
            "profiles": profiles,
        }
    )


# --- call graph


def check_pdf_programs() -> None:
    """Raises MissingProgram: better before a profile is taken than after."""
    if importlib.util.find_spec("gprof2dot") is None:
        raise MissingProgram("format=pdf needs gprof2dot: pip install 'adcore[profile]'")
    if shutil.which("dot") is None:
        raise MissingProgram("format=pdf needs Graphviz's dot: apt install graphviz")


async def to_pdf(profile: Profile) -> bytes:
    """A call graph. Raises MissingProgram, and ProfileError when the drawing fails."""
    check_pdf_programs()
    stacks = profile.stacks()
    if not stacks:
        raise ProfileError("the process used no CPU time meanwhile, so there is nothing to draw")
    dot = await _run(to_collapsed(stacks), sys.executable, "-m", "gprof2dot", "--format=collapse", "--root=*")
    return await _run(dot, "dot", "-Tpdf")


def to_collapsed(stacks: dict[Stack, int]) -> bytes:
    """A line for each stack and its microseconds, as FlameGraph's stackcollapse programs write it."""
    return "".join(
        f"{';'.join(str(frame).replace(';', ',').replace(' ', '_') for frame in stack)} {max(cpu_ns // 1000, 1)}\n"
        for stack, cpu_ns in stacks.items()
    ).encode()


async def _run(given: bytes, *command: str) -> bytes:
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
    except OSError as error:
        raise ProfileError(f"{command[0]} cannot be run here: {error.strerror}") from error
    try:
        limit_memory(process.pid, DRAW_MEMORY_BYTES)
        async with asyncio.timeout(DRAW_TIMEOUT_S):
            made, errors = await process.communicate(given)
    except TimeoutError:
        raise ProfileError(f"{command[0]} took more than {DRAW_TIMEOUT_S:g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()
    if process.returncode:
        raise ProfileError(f"{' '.join(command)} failed: {errors.decode(errors='replace').strip()[-500:]}")
    return made
