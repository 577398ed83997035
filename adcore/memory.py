"""Bounds the memory of a process that this one has started."""

import resource
from contextlib import suppress


def limit_memory(pid: int, size_bytes: int) -> None:
    """Give the process this much address space, or what the host leaves it where that is less.

    A process that has ended, or whose limits the kernel refuses to change, is left as it is.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard != resource.RLIM_INFINITY:
        size_bytes = min(size_bytes, hard)  # only root may give more than it was given
    with suppress(OSError):
        resource.prlimit(pid, resource.RLIMIT_AS, (size_bytes, size_bytes))
