"""/status?format=golang-stats: this process in the words of Go's golang-stats-api-handler.

Munin and Zabbix plugins that read that handler's JSON can read this one. A key has the Python number of the same
meaning, or null where CPython has none:

    go_version        "python" and its version
    goroutine_num     tasks on the event loop
    gomaxprocs        threads that run Python at one time
    memory_sys        the kernel's VmData: what was asked of it for data
    memory_stack      VmStk
    heap_inuse        RssAnon: private memory that is really there
    heap_objects      blocks that CPython has allocated and not freed
    gc_*              the cyclic collector, which in Python is not what frees most objects

Times are as in Go: `time` and `gc_last` in nanoseconds since 1970, pauses in milliseconds. The rates are per second of
the poller's own interval; Go's handler shares one interval among all, and does not divide gc_pause_per_second by it.
"""

import platform
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from adcore.control.runtime import GcWatch

# Go's names of processors, where they differ from the kernel's.
GO_ARCH = {"x86_64": "amd64", "aarch64": "arm64", "i686": "386", "armv7l": "arm"}

# What several workers have in common, and of what the latest counts.
SHARED = ("go_version", "go_os", "go_arch", "cpu_num")
LATEST = ("time", "gc_last")


def golang_stats(status: Mapping[str, Any], gc: GcWatch, rates: Mapping[str, Any]) -> dict[str, Any]:
    """`status` is what /status shows, `rates` what `compare` gave for this poller."""
    process = status["process"]
    memory = process["memory"]
    pause_s = rates["per_second"]["gc_pause_s"]
    since = min(int(rates["counted"]["gc"]), len(gc.recent))
    return {
        "time": time.time_ns(),
        "go_version": f"python{process['python']}",
        "go_os": sys.platform,
        "go_arch": GO_ARCH.get(platform.machine(), platform.machine()),
        "cpu_num": process["cpu_count"],
        "goroutine_num": process["tasks"],
        "gomaxprocs": process["workers"],
        "cgo_call_num": None,
        "memory_alloc": memory["allocated_bytes"],
        "memory_total_alloc": memory["total_allocated_bytes"],
        "memory_sys": memory["data_bytes"],
        "memory_lookups": None,
        "memory_mallocs": memory["mallocs"],
        "memory_frees": memory["frees"],
        "memory_stack": memory["stack_bytes"],
        "heap_alloc": memory["allocated_bytes"],
        "heap_sys": None,
        "heap_idle": None,
        "heap_inuse": memory["private_bytes"],
        "heap_released": None,
        "heap_objects": memory["allocated_blocks"],
        "gc_next": None,
        "gc_last": None if gc.last_wall is None else int(gc.last_wall * 1e9),
        "gc_num": gc.count,
        "gc_per_second": rates["per_second"]["gc"],
        "gc_pause_per_second": None if pause_s is None else pause_s * 1e3,
        "gc_pause": [pause_s * 1e3 for pause_s in list(gc.recent)[::-1][:since]],
    }


def add_up(workers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Several workers as one process: a Go service has in one what a host has in these. What one lacks is null."""
    total: dict[str, Any] = {}
    for key in workers[0] if workers else ():
        values = [stats[key] for stats in workers]
        if key == "gc_pause":
            total[key] = [pause_ms for pauses in values for pause_ms in pauses]
        elif key in SHARED:
            total[key] = values[0]
        elif None in values:
            total[key] = None
        else:
            total[key] = max(values) if key in LATEST else sum(values)
    return total
