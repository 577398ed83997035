"""Decodes uploaded images in a process of their own: it has little memory and time, no store, and no other work.

One at a time, like all slow work (admission.py): what a hostile file can take is taken once. The parent sends the file
on standard input and the sizes as arguments, and gets a line of JSON back, with the new image behind it. The child
limits itself before it reads the file.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import IO

import msgspec

from adtools.admin import deadline, images
from adtools.admin.admission import slow_work
from adtools.admin.images import FILE_BYTES_MAX, EncodedImage, ImageError, Size

# Python and Pillow take 60 MiB of address space; the largest image, with what its encoder needs, the rest.
ADDRESS_SPACE_BYTES = 640 << 20
# The longest animation that is taken needs two on a slow machine.
SECONDS_MAX = 10


class _Answer(msgspec.Struct):
    error: str = ""
    name: str = ""
    content_type: str = ""
    width: int = 0
    height: int = 0


def decode_apart(file: IO[bytes], size: Size, largest: Size) -> EncodedImage:
    """As `images.decode_image`, in a process of its own. Raises ImageError, Busy, and OutOfTime."""
    raw = file.read(FILE_BYTES_MAX + 1)
    images.check_file(len(raw))
    with slow_work.turn():
        return _ask_child(raw, size, largest, deadline.remaining_s(SECONDS_MAX))


def _ask_child(raw: bytes, size: Size, largest: Size, seconds: float) -> EncodedImage:
    command = [sys.executable, "-m", "adtools.admin.decoder", *map(str, (*size, *largest))]
    try:
        done = subprocess.run(command, input=raw, capture_output=True, timeout=seconds, env=_environment(), check=False)
    except subprocess.TimeoutExpired:
        raise ImageError("The image takes longer to be read than any creative") from None
    line, newline, content = done.stdout.partition(b"\n")
    if done.returncode != 0 or not newline:
        # Killed for its time, or out of memory where Pillow's own code has no error for it.
        raise ImageError("The file is no PNG, JPEG, WebP or GIF image, or one that takes too much to be read")
    answer = msgspec.json.decode(line, type=_Answer)
    if answer.error:
        raise ImageError(answer.error)
    return EncodedImage(answer.name, answer.content_type, content, answer.width, answer.height)


def _environment() -> dict[str, str]:
    """What the child has of ours: where its modules are, and no key to a store."""
    folder = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH", "")]))
    return {"PYTHONPATH": path, "PATH": os.environ.get("PATH", ""), "MALLOC_ARENA_MAX": "1"}


def apply_limits() -> None:
    """Of this process, which is the child, for good."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES, ADDRESS_SPACE_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS_MAX, SECONDS_MAX))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main(arguments: Sequence[str]) -> int:
    """The child: the file on standard input, the answer on standard output."""
    apply_limits()
    width, height, largest_width, largest_height = map(int, arguments)
    try:
        image = images.decode_image(
            BytesIO(sys.stdin.buffer.read(FILE_BYTES_MAX + 1)), (width, height), (largest_width, largest_height)
        )
        answer, content = _Answer("", image.name, image.content_type, image.width, image.height), image.content
    except ImageError as error:
        answer, content = _Answer(str(error)), b""
    sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n" + content)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
