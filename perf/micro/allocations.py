"""How often an operation asks Python's allocators for memory, counted exactly.

What is freed again within the operation counts too, which is most of it; snapshots (sys.getallocatedblocks,
tracemalloc) see only what is left at their time. So hooks are put around the allocators (PyMem_SetAllocator), and as a
hook written in Python would allocate itself, they and the loop between them are C: allocations.c, compiled when it is
needed with the compiler that the tests need anyway.

One block is one call of malloc, calloc or realloc in any of the domains raw, mem and obj, by any thread; bytes are what
was asked for. What comes out of an interpreter's free list (floats, small tuples, frames) costs no call and counts
nothing; what a library in C or Rust takes from libc directly is not seen.
"""

import ctypes
import gc
import os
import subprocess
import sys
import sysconfig
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import mean, median
from typing import NamedTuple

from perf.micro.stages import Stage

SOURCE = Path(__file__).with_suffix(".c")


class CompilerMissing(Exception):
    """The counter cannot be built here; the text says what it takes."""


class Allocations(NamedTuple):
    """Per operation."""

    blocks: float
    bytes: float


class Counter:
    """The compiled hooks, loaded into this process. `folder` holds the library while it is being loaded."""

    def __init__(self, folder: Path) -> None:
        self._library = ctypes.PyDLL(str(_compile(folder)))
        self._library.count_calls.argtypes = (ctypes.py_object, ctypes.c_ssize_t, ctypes.c_void_p)

    def install(self) -> None:
        """Put the hooks in, for the rest of the process."""
        self._library.install_hooks()

    def count(self, stage: Stage) -> Allocations:
        """The mean of the stage's batches; or their median where threads take turns, each time a little different."""
        counts = (ctypes.c_ulonglong * 2)()
        # Arrays: tuples that are kept would be taken from the free list that the stage lives on.
        blocks, sizes = array("Q"), array("Q")
        with _collector_at_rest():
            # One more than is counted: the collection emptied the free lists, which the first batch fills again.
            for _ in range(1 + stage.counted_batches):
                stage.prepare()
                self._library.count_calls(stage.call, stage.batch, counts)
                blocks.append(counts[0])
                sizes.append(counts[1])
        del blocks[0], sizes[0]
        of_batches = median if stage.threads else mean
        return Allocations(of_batches(blocks) / stage.batch, of_batches(sizes) / stage.batch)


def steady_environment() -> dict[str, str]:
    """The environment in which counts repeat themselves: one hash seed, and no tool that traces the process."""
    kept = {name: os.environ[name] for name in ("HOME", "PATH", "TMPDIR") if name in os.environ}
    return {**kept, "LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "0"}


@contextmanager
def _collector_at_rest() -> Iterator[None]:
    """When it runs depends on all that ran before."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _compile(folder: Path) -> Path:
    library = folder / "allocations.so"
    compiler = os.environ.get("CC", "cc")
    include = sysconfig.get_path("include")
    command = [compiler, "-shared", "-fPIC", "-O2", f"-I{include}", "-o", str(library), str(SOURCE)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise CompilerMissing(f"counting needs a C compiler, and there is no {compiler}") from None
    except subprocess.CalledProcessError as error:
        raise CompilerMissing(
            f"counting needs a C compiler and Python.h of {sys.version.split()[0]}:\n{error.stderr}"
        ) from None
    return library
