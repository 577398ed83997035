"""Times the stages with pyperf: in several processes each, so that one unlucky memory layout is not the result.

The time is the process's CPU time, of all its threads. On a machine with other work it is steadier than wall time by a
factor of ten (`request` beside two busy processes: 28 ± 1 µs, and 66 ± 15 µs by the wall).
"""

import gc
import tempfile
from collections.abc import Mapping, Sequence
from itertools import repeat
from pathlib import Path
from time import process_time
from typing import Any

from perf.micro.allocations import Allocations
from perf.micro.stages import Stage, set_up

# Every process takes half a second to start; five values of a tenth of a second make that worth it.
PROCESSES = 10
VALUES = 5

_ready: dict[str, Stage] = {}


def time_stages(names: Sequence[str], program: Sequence[str], options: Sequence[str]) -> Any:
    """The results as a pyperf.BenchmarkSuite; None in one of pyperf's own worker processes.

    `program` is the command line that leads here again, `options` are pyperf's. Raises ImportError without pyperf.
    """
    import pyperf  # here, because counting does without it

    runner = pyperf.Runner(values=VALUES, processes=PROCESSES, program_args=tuple(program))
    runner.parse_args(list(options))
    with tempfile.TemporaryDirectory(prefix="adcore-micro-") as folder:
        benchmarks = [runner.bench_time_func(name, _time, name, Path(folder)) for name in names]
    return None if runner.args.worker else pyperf.BenchmarkSuite(benchmarks)


def add_allocations(suite: Any, allocations: Mapping[str, Allocations]) -> None:
    for benchmark in suite:
        counted = allocations.get(benchmark.get_name())
        if counted is not None:
            benchmark.update_metadata(
                {"blocks_per_op": round(counted.blocks, 2), "bytes_per_op": round(counted.bytes, 1)}
            )


def format_table(suite: Any) -> str:
    """Median and median absolute deviation: noise of a shared machine is one-sided, and means follow it."""
    rows = [("stage", "CPU time ± spread", "blocks/op", "bytes/op")]
    for benchmark in suite:
        median, spread = benchmark.format_values((benchmark.median(), benchmark.median_abs_dev()))
        metadata = benchmark.get_metadata()
        blocks, size = (f"{metadata[key]:,}" if key in metadata else "-" for key in ("blocks_per_op", "bytes_per_op"))
        rows.append((benchmark.get_name(), f"{median} ± {spread}", blocks, size))
    return format_rows(rows)


def format_rows(rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they need to be, the first to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if position else cell.ljust(width)
            for position, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def _time(loops: int, name: str, folder: Path) -> float:
    """CPU seconds that `loops` operations take, without what makes ready for them."""
    stage = _ready.get(name)
    if stage is None:
        stage = _ready[name] = set_up(name, folder)
        # As the server does once it has started.
        gc.collect()
        gc.freeze()
    call, prepare, batch = stage.call, stage.prepare, stage.batch
    seconds = 0.0
    while loops > 0:
        prepare()
        turns = repeat(None, min(loops, batch))
        start = process_time()
        for _ in turns:
            call()
        seconds += process_time() - start
        loops -= batch
    return seconds
