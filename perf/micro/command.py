"""The command line of perf/micro: time the stages, or count what they allocate and hold that to a baseline.

Counting happens in a child process, whose environment is the same everywhere (allocations.steady_environment).
"""

import argparse
import gc
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from perf.micro import baseline
from perf.micro.allocations import Allocations, CompilerMissing, Counter, steady_environment
from perf.micro.instructions import CallgrindMissing, count_instructions
from perf.micro.stages import STAGES, set_up, still_clock
from perf.micro.timing import add_allocations, format_rows, format_table, time_stages

PROGRAM = Path(__file__).parent
INSTRUCTIONS_OF = "request"

DESCRIPTION = """\
Time every stage of a request, and count the blocks of memory that it allocates. Without --count, --check or --update
the stages are timed by pyperf, and its options may be given: --fast, --rigorous, --affinity CPUS, --quiet ..."""


def main(arguments: Sequence[str]) -> int:
    """The exit status: 0; 1 for a regression; 2 when nothing can be counted or timed here."""
    options, others = _parse(arguments)
    stages = options.stage or list(STAGES)
    try:
        if options.repeat:
            return _repeat(options.repeat, options.rounds)
        if options.count_here:
            return _count_here(stages)
        if options.count or options.check or options.update:
            return _count(stages, options)
    except (CompilerMissing, baseline.NoBaseline) as error:
        print(f"perf/micro: {error}", file=sys.stderr)
        return 2
    return _time(stages, options.output, others)


def _parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        "perf/micro", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--count", action="store_true", help="print blocks per operation, and instructions of a request")
    what.add_argument("--check", action="store_true", help="fail where blocks are more than 5 %% above the baseline")
    what.add_argument("--update", action="store_true", help="make the counts of this revision the baseline")
    what.add_argument("--count-here", action="store_true", help=argparse.SUPPRESS)
    what.add_argument("--repeat", choices=STAGES, help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--stage", action="append", choices=STAGES, help="only this one; may be repeated")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="keep the times there, as pyperf's JSON")
    parser.add_argument("--baseline", type=Path, default=baseline.BASELINE, metavar="FILE", help="another baseline")
    options, others = parser.parse_known_args(arguments)
    if (options.count or options.check or options.update) and (others or options.output):
        parser.error("--output and pyperf's options are for timing, not for counting")
    return options, others


def _time(stages: Sequence[str], output: Path | None, others: Sequence[str]) -> int:
    if output is not None and output.exists():
        print(f"perf/micro: {output} is there already", file=sys.stderr)
        return 2
    chosen = [argument for stage in stages for argument in ("--stage", stage)]
    try:
        suite = time_stages(stages, (str(PROGRAM), *chosen), others)
    except ImportError as error:
        print(f"perf/micro: timing needs pyperf (pip install pyperf): {error}", file=sys.stderr)
        return 2
    if suite is None:
        return 0
    try:
        add_allocations(suite, count_in_child(stages))
    except CompilerMissing as error:
        print(f"perf/micro: no allocations: {error}", file=sys.stderr)
    if output is not None:
        suite.dump(str(output))
    print(format_table(suite))
    return 0


def _count(stages: Sequence[str], options: argparse.Namespace) -> int:
    held_to = baseline.read_blocks(options.baseline) if options.check else {}
    allocations = count_in_child(stages)
    blocks = {stage: counted.blocks for stage, counted in allocations.items()}
    if options.check:
        failures = baseline.regressions(blocks, held_to)
        if not options.stage:
            failures += [f"{stage}: is in the baseline, and not here" for stage in held_to.keys() - blocks.keys()]
        for line in failures:
            print(f"FAILED  {line}")
        for line in baseline.improvements(blocks, held_to):
            print(f"better  {line}")
        print(f"{len(blocks)} stages, {len(failures)} more than 5 % above their baseline")
        return 1 if failures else 0
    rows = [("stage", "blocks/op", "bytes/op")]
    rows += [(stage, f"{counted.blocks:,.2f}", f"{counted.bytes:,.1f}") for stage, counted in allocations.items()]
    print(format_rows(rows))
    instructions: dict[str, float] = {}
    if INSTRUCTIONS_OF in stages:
        try:
            instructions[INSTRUCTIONS_OF] = count_instructions(PROGRAM, INSTRUCTIONS_OF)
            print(f"instructions of {INSTRUCTIONS_OF}: {instructions[INSTRUCTIONS_OF]:,.0f}")
        except CallgrindMissing as error:
            print(f"instructions of {INSTRUCTIONS_OF}: not counted, {error}")
    if options.update:
        baseline.write(options.baseline, blocks, instructions)
        print(f"written to {options.baseline.name} for Python {baseline.VERSION}")
    return 0


def count_in_child(stages: Sequence[str]) -> dict[str, Allocations]:
    """Raises CompilerMissing."""
    chosen = [argument for stage in stages for argument in ("--stage", stage)]
    done = subprocess.run(
        [sys.executable, str(PROGRAM), "--count-here", *chosen],
        env=steady_environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    if done.returncode == 2:
        raise CompilerMissing("see above")
    done.check_returncode()
    return {stage: Allocations(*counted) for stage, counted in json.loads(done.stdout).items()}


def _count_here(stages: Sequence[str]) -> int:
    """In the child: print the counts as JSON."""
    with tempfile.TemporaryDirectory(prefix="adcore-micro-") as folder:
        counter = Counter(Path(folder))
        counter.install()
        print(json.dumps({name: counter.count(set_up(name, Path(folder), still_clock())) for name in stages}))
    return 0


def _repeat(name: str, rounds: int) -> int:
    """In the child, under valgrind: do the operations, and say how many they were."""
    with tempfile.TemporaryDirectory(prefix="adcore-micro-") as folder:
        stage = set_up(name, Path(folder), still_clock())
        gc.disable()
        for _ in range(rounds * stage.counted_batches):
            stage.prepare()
            for _ in range(stage.batch):
                stage.call()
        print(rounds * stage.counted_batches * stage.batch)
    return 0
