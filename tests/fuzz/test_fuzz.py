"""A short form of `python -m tests.fuzz`, the same cases each time."""

from pathlib import Path

import pytest

from tests.fuzz.mutation import Mutator
from tests.fuzz.targets import targets

CASES = 3000
SEED = 20261125


@pytest.mark.parametrize("name", [name for name, _ in targets(Path())])
def test_edited_bytes_break_no_promise(tmp_path: Path, name: str) -> None:
    print("seed", SEED)
    target = dict(targets(tmp_path))[name]()
    for seed in target.seeds:
        target.run(seed)
    for case in Mutator(target.seeds, target.words, SEED).cases(CASES):
        target.run(case)
