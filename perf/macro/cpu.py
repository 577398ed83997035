"""CPU time that processes have used, as the kernel counts it in /proc/PID/stat: user and system, all threads."""

import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
QUIET_S = 0.5


class Stat(NamedTuple):
    parent: int
    ticks: int


def parse_stat(text: str) -> Stat:
    """The parent, and utime + stime, of a line as proc(5) describes it."""
    # The second field is the program's name in parentheses, which may hold spaces and parentheses itself.
    fields = text[text.rindex(")") + 2 :].split()
    return Stat(int(fields[1]), int(fields[11]) + int(fields[12]))


def family(pid: int, proc: Path = Path("/proc")) -> set[int]:
    """The process and all that descend from it."""
    parents = {}
    for folder in proc.iterdir():
        if folder.name.isdigit():
            try:
                parents[int(folder.name)] = parse_stat((folder / "stat").read_text()).parent
            except OSError:  # it has ended meanwhile
                continue
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def core_seconds(core: int, proc: Path = Path("/proc")) -> float:
    """What all programs together have used of one core since boot, without interrupts."""
    for line in (proc / "stat").read_text().splitlines():
        name, *ticks = line.split()
        if name == f"cpu{core}":
            return sum(map(int, ticks[:3])) / TICKS_PER_S  # user, nice, system
    raise FileNotFoundError(f"no core {core}")


def wait_until_quiet(cores: Iterable[int], patience_s: float) -> bool:
    """Wait until nobody uses these cores much; False when that does not happen in time."""
    deadline_monotonic = time.monotonic() + patience_s
    watched = set(cores)
    while True:
        before = sum(map(core_seconds, watched))
        time.sleep(QUIET_S)
        if sum(map(core_seconds, watched)) - before <= QUIET_S / 20:
            return True
        if time.monotonic() > deadline_monotonic:
            return False


def seconds(pids: Iterable[int], proc: Path = Path("/proc")) -> float:
    """What they have used since they started. A process that is gone raises FileNotFoundError."""
    return sum(parse_stat((proc / str(pid) / "stat").read_text()).ticks for pid in pids) / TICKS_PER_S
