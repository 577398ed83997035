"""Fuzz what takes bytes from others: `python -m tests.fuzz connection --cases 1000000`.

`cost` is one more target: it looks for the input that takes most CPU for its bytes (climb.py).

Good cases are edited at random from a printed seed. With --coverage it is atheris (libFuzzer) that edits them, and
keeps what reaches new code. The first case that breaks a promise ends it, and is left in a file. At the end memory must
not have grown since the middle.
"""

import argparse
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType

from tests.fuzz.mutation import CASE_BYTES_MAX, Mutator

# What the memories of a process are, once they are full, and what the allocator keeps: not a leak of a byte a case.
GROWTH_BYTES_MAX = 8 << 20

COST = "cost"
SMALL = {
    "adcore.http1.plain": ("KNOWN_MAX", "NEWCOMERS"),
    "adcore.handlers": ("ASKED_MAX", "HEADS_MAX"),
    "adcore.delivery": ("PROFILES_MAX", "NETWORKS_MAX", "CASES_MAX", "SHOWN_MAX"),
}


def rss_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz what takes bytes from others.")
    parser.add_argument("targets", nargs="*", help="which of them (default: all)")
    parser.add_argument("--cases", type=int, default=1_000_000, help="cases for each (default: 1000000)")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 31), help="to repeat a run")
    parser.add_argument("--coverage", action="store_true", help="let atheris choose the cases; one target at a time")
    options = parser.parse_args()
    if options.targets == [COST] and not options.coverage:
        print("seed", options.seed, flush=True)
        return import_module("tests.fuzz.climb").main(options.cases, options.seed)  # type: ignore[no-any-return]
    targets = load_targets(options.coverage).targets
    forget_soon()
    with tempfile.TemporaryDirectory(prefix="adcore-") as folder:
        known = dict(targets(Path(folder)))
        chosen = options.targets or list(known)
        if unknown := set(chosen) - set(known):
            parser.error(f"no such target: {', '.join(sorted(unknown))}; there are {', '.join([*known, COST])}")
        if options.coverage and len(chosen) != 1:
            parser.error("--coverage takes one target: libFuzzer ends the process when it is done")
        print("seed", options.seed, flush=True)
        for name in chosen:
            target = known[name]()
            watch = Watch(name, target.run, options.cases)
            if options.coverage:
                follow_coverage(watch, target.seeds, Path(folder), options)
            for case in Mutator(target.seeds, target.words, options.seed).cases(options.cases):
                watch(case)
    return 0


def forget_soon() -> None:
    """Let what is remembered of requests be full after some cases, so that memory is flat then if nothing leaks."""
    for module, names in SMALL.items():
        for name in names:
            assert hasattr(sys.modules[module], name), f"{module} has no {name}"
            setattr(sys.modules[module], name, 256)


def load_targets(instrumented: bool) -> ModuleType:
    """Import the targets, and with them all of adcore; `instrumented` says for atheris."""
    if instrumented:
        import atheris

        with atheris.instrument_imports(include=["adcore"]):
            return import_module("tests.fuzz.targets")
    return import_module("tests.fuzz.targets")


class Watch:
    """Runs cases, and looks at what they cost."""

    def __init__(self, name: str, run: Callable[[bytes], None], cases: int) -> None:
        self._name = name
        self._run = run
        self._cases = cases
        self._began_monotonic = time.monotonic()
        self._middle_bytes = 0
        self._count = 0

    def __call__(self, case: bytes) -> None:
        self._count += 1
        try:
            self._run(case)
        except BaseException:
            path = Path(f"fuzz-{self._name}.case")
            path.write_bytes(case)
            print(f"{self._name}: case {self._count} breaks a promise, and is in {path}", file=sys.stderr)
            raise
        if self._count == self._cases // 2:
            self._middle_bytes = rss_bytes()
        elif self._count == self._cases:
            # libFuzzer ends the process after the last one.
            self._look_back()

    def _look_back(self) -> None:
        grown_bytes = rss_bytes() - self._middle_bytes
        print(
            f"{self._name}: {self._count} cases in {time.monotonic() - self._began_monotonic:.0f} s, no uncaught "
            f"exception; {rss_bytes() >> 20} MiB at the end, {grown_bytes / (1 << 20):+.1f} MiB since the middle",
            flush=True,
        )
        assert grown_bytes <= GROWTH_BYTES_MAX, "memory grows"


def follow_coverage(watch: Watch, seeds: list[bytes], folder: Path, options: argparse.Namespace) -> None:
    """Hand over to libFuzzer, which ends the process."""
    import atheris

    corpus = folder / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(seeds):
        (corpus / str(number)).write_bytes(seed)
    arguments = [f"-runs={options.cases}", f"-seed={options.seed}", f"-max_len={CASE_BYTES_MAX}", "-rss_limit_mb=0"]
    atheris.Setup([sys.argv[0], *arguments, "-verbosity=0", f"-artifact_prefix={folder}/", str(corpus)], watch)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
