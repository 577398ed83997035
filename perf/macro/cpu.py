"""CPU time and context switches of processes, as the kernel counts them: user and system, all threads, from outside.

/proc/PID/stat has CPU time in hundredths of a second: at 500 requests a second that is as much as 20 requests take. So
each process is asked for its CPU clock, which has nanoseconds. Only of children that ended, and were waited for, there
is nothing but those hundredths.
"""

import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
QUIET_S = 0.5
# CPUCLOCK_SCHED of the kernel's posix-timers.h: user and system time, exact.
CLOCK_SCHED = 2
# Reading a family takes a few milliseconds, in which a member may end; then it is read again.
READINGS_MAX = 5
ENDED = "ended children"


class Stat(NamedTuple):
    parent: int
    ticks: int


class Usage(NamedTuple):
    """What a process and its descendants have used so far."""

    seconds: dict[str, float]
    """CPU time by program; of children that ended, together, under ENDED."""
    voluntary: int
    """Context switches of all threads that live: those that waited for something, ..."""
    involuntary: int
    """... and those that lost the core to another thread."""


def parse_stat(text: str) -> Stat:
    """The parent, and utime + stime, of a line as proc(5) describes it."""
    fields = _fields(text)
    return Stat(int(fields[1]), int(fields[11]) + int(fields[12]))


def reaped_seconds(pid: int) -> float:
    """What the children that it has waited for have used, and theirs. Raises FileNotFoundError."""
    fields = _fields(Path(f"/proc/{pid}/stat").read_text())
    return (int(fields[13]) + int(fields[14])) / TICKS_PER_S


def _fields(text: str) -> list[str]:
    # The second field is the program's name in parentheses, which may hold spaces and parentheses itself.
    return text[text.rindex(")") + 2 :].split()


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


def seconds(pids: Iterable[int]) -> float:
    """What these have used themselves since they started. A process that is gone raises FileNotFoundError."""
    return sum(map(clock, pids))


def clock(pid: int) -> float:
    """The CPU clock of a process. Raises FileNotFoundError."""
    try:
        # The number of another process' clock, as clock_getcpuclockid(3) makes it.
        return time.clock_gettime(~pid << 3 | CLOCK_SCHED)
    except OSError:
        raise FileNotFoundError(f"process {pid} has ended") from None


def usage(pid: int) -> Usage:
    """Of the process and all that descend from it. When the process is gone it raises FileNotFoundError."""
    for _ in range(READINGS_MAX):
        pids = family(pid)
        try:
            found = _read(pids)
        except OSError:  # a child has ended meanwhile
            clock(pid)
            continue
        if family(pid) == pids:
            return found
    raise FileNotFoundError(f"the children of process {pid} end faster than they can be read")


def difference(before: Usage, after: Usage) -> Usage:
    """What was used between two readings."""
    spent: defaultdict[str, float] = defaultdict(float)
    for name in dict.fromkeys((*before.seconds, *after.seconds)):
        seconds_of_it = after.seconds.get(name, 0.0) - before.seconds.get(name, 0.0)
        # A child that ended took with it what it had used before; its parent has all of it now.
        spent[name if seconds_of_it > 0 else ENDED] += seconds_of_it
    return Usage(
        {name: seconds_of_it for name, seconds_of_it in spent.items() if seconds_of_it},
        after.voluntary - before.voluntary,
        after.involuntary - before.involuntary,
    )


def total(usages: Iterable[Usage]) -> Usage:
    """Of several families together."""
    used: defaultdict[str, float] = defaultdict(float)
    voluntary = involuntary = 0
    for one in usages:
        for name, seconds_of_it in one.seconds.items():
            used[name] += seconds_of_it
        voluntary, involuntary = voluntary + one.voluntary, involuntary + one.involuntary
    return Usage(dict(used), voluntary, involuntary)


def program(pid: int) -> str:
    """The name of what it runs: the module of `python -m MODULE`, else that of the file.

    Those that adcore's fork server has started have the command line of that, and a name of their own.
    """
    words = Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")
    name = Path(f"/proc/{pid}/comm").read_text().rstrip(" 0123456789\n")
    if words[1:3] == ["-m", "adcore"] and name.startswith("adcore "):
        return name
    module = words[2] if words[1:2] == ["-m"] else words[0].rpartition("/")[2]
    return module or ENDED  # a zombie has no words


def switches(pid: int) -> tuple[int, int]:
    """The voluntary and the involuntary context switches of its threads."""
    found = Counter[str]()
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            lines = (task / "status").read_text().splitlines()
        except OSError:  # the thread has ended meanwhile
            continue
        for line in lines:
            name, _, value = line.partition(":")
            if name.endswith("_ctxt_switches"):
                found[name] += int(value)
    return found["voluntary_ctxt_switches"], found["nonvoluntary_ctxt_switches"]


def _read(pids: Iterable[int]) -> Usage:
    return total(Usage({program(pid): clock(pid), ENDED: reaped_seconds(pid)}, *switches(pid)) for pid in sorted(pids))
