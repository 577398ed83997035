"""Text for a terminal: nothing in it is a command to the terminal.

Logs, stores and servers are shown as they are found, and may hold what was put there to be shown: escape sequences
that colour, retitle or rewrite the screen, and marks that turn the direction of writing around. Files and pipes get
every text as it is.
"""

import sys
from typing import Any, TextIO

_KEPT = "\n\t"


def printable(text: str) -> str:
    """`text` with all that does not print as escapes, but for line ends and tabs. What was JSON is the same JSON."""
    return text if text.isprintable() else "".join(map(_escape, text))


def _escape(character: str) -> str:
    if character.isprintable() or character in _KEPT:
        return character
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))


class PrintableStream:
    """A text stream in front of another one that is a terminal."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        self.stream.write(printable(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def guard() -> None:
    """Let what is printed from now on be printable, where it goes to a terminal."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream.isatty() and not isinstance(stream, PrintableStream):
            setattr(sys, name, PrintableStream(stream))


def unguarded(stream: Any) -> TextIO:
    """sys.stdout or sys.stderr for rich and tqdm, which command the terminal and are given `printable` texts."""
    found: TextIO = stream.stream if isinstance(stream, PrintableStream) else stream
    return found
