"""How many instructions an operation takes, counted by callgrind.

The same process is run twice, once with twice the operations; start-up and the filling of caches are in both, and
cancel out. The number follows the builds of Python and libc, and a little the CPU, by which libc chooses its memcpy:
compare it on one machine.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

from perf.micro.allocations import steady_environment

# Of Stage.counted_batches each: enough that what differs between two starts is less than a percent.
ROUNDS = 4
COLLECTED = re.compile(r"Collected : (\d+)")


class CallgrindMissing(Exception):
    """Nothing can be counted here; the text says why."""


def count_instructions(command: Path, stage: str) -> float:
    """Instructions per operation. `command` is perf/micro itself: with --repeat it says how often it did the stage."""
    if shutil.which("valgrind") is None:
        raise CallgrindMissing("valgrind is not installed")
    runs = [_start(command, stage, times) for times in (ROUNDS, 2 * ROUNDS)]
    (few, few_operations), (many, many_operations) = map(_finish, runs)
    return (many - few) / (many_operations - few_operations)


def _start(command: Path, stage: str, rounds: int) -> "subprocess.Popen[str]":
    valgrind = ("valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null")
    return subprocess.Popen(
        [*valgrind, sys.executable, str(command), "--repeat", stage, "--rounds", str(rounds)],
        env=steady_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _finish(run: "subprocess.Popen[str]") -> tuple[int, int]:
    """Instructions of the whole process, and the operations in it."""
    output, errors = run.communicate()
    found = COLLECTED.search(errors)
    if run.returncode or found is None:
        raise CallgrindMissing(f"valgrind failed:\n{errors}")
    return int(found[1]), int(output)
