"""A progress bar on stderr for work on files that takes more than a second, on a terminal only."""

import sys
from io import BufferedIOBase
from typing import Any, cast

from tqdm import tqdm

from adtools.terminal import printable, unguarded

DELAY_S = 1.0


def progress_bar(total: int | None, name: str) -> "tqdm[Any]":
    """Counts bytes up to `total`."""
    return tqdm(
        total=total,
        desc=printable(name),
        unit="B",
        unit_scale=True,
        delay=DELAY_S,
        file=unguarded(sys.stderr),
        disable=not sys.stderr.isatty(),
        leave=False,
    )


class ProgressFile:
    """Wraps a binary file and shows how many of its `total` bytes were read."""

    def __init__(self, file: BufferedIOBase, total: int | None, name: str) -> None:
        self._file = file
        self._bar = progress_bar(total, name)

    def read1(self, size: int = -1) -> bytes:
        data: bytes = self._file.read1(size)
        self._bar.update(len(data))
        return data

    def close(self) -> None:
        self._bar.close()
        self._file.close()


def with_progress(file: BufferedIOBase, total: int | None, name: str) -> BufferedIOBase:
    return cast(BufferedIOBase, ProgressFile(file, total, name))
