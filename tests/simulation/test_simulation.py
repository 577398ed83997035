"""Two processes, their clients, log and stores, with a fault at every operation; a seed gives the whole run.

`python -m tests.simulation` is the long form.
"""

from pathlib import Path

import pytest

from tests.simulation.scenario import many_faults, simulate
from tests.simulation.world import Fault

FAULTS = list(Fault)
FORMS = ("msgpack", "json")
SEED = 7


def test_a_seed_gives_the_same_run_again(tmp_path: Path) -> None:
    first, second = (tmp_path / name for name in ("first", "second"))
    first.mkdir()
    second.mkdir()
    assert simulate(first, SEED, many_faults(SEED)) == simulate(second, SEED, many_faults(SEED))


@pytest.mark.parametrize("part", range(len(FAULTS)))
def test_nothing_is_lost_whatever_happens_to_the_nth_operation(tmp_path: Path, part: int) -> None:
    """Every operation has one of the faults; the long form has them all."""
    (tmp_path / "0").mkdir()
    quiet = simulate(tmp_path / "0", SEED)
    assert (quiet.problems, quiet.dropped) == ([], 0)
    assert quiet.answered > 10
    for at in range(1 + part, len(quiet.trace) + 1, len(FAULTS)):
        folder = tmp_path / str(at)
        folder.mkdir()
        fault = FAULTS[(at + at // len(FAULTS)) % len(FAULTS)]
        outcome = simulate(folder, SEED, {at: fault}, FORMS[at % 2])
        assert outcome.problems == [], f"python -m tests.simulation --seed {SEED} --at {at} --fault '{fault.value}'"


@pytest.mark.parametrize("seed", range(24))
def test_nothing_is_lost_when_much_happens(tmp_path: Path, seed: int) -> None:
    # Only frames have a checksum: in JSON two pieces of two processes may happen to read as one record.
    outcome = simulate(tmp_path, seed, many_faults(seed))
    assert outcome.problems == [], f"python -m tests.simulation --seed {seed} --many"


def test_what_does_not_fit_is_counted(tmp_path: Path) -> None:
    """Every write fails until all is mended, and the queue holds three records or so."""
    (tmp_path / "0").mkdir()
    (tmp_path / "1").mkdir()
    trace = simulate(tmp_path / "0", SEED).trace
    assert any(operation.endswith(" write") for operation in trace)
    faults = {at: Fault.SLOW for at in range(1, 400) if at < len(trace) and trace[at - 1].endswith(" write")}
    outcome = simulate(tmp_path / "1", SEED, faults, queue_bytes=1000)
    assert outcome.dropped > 0
    assert outcome.problems == []


@pytest.mark.parametrize("seed", range(8))
def test_what_gives_way_to_paid_records_is_counted(tmp_path: Path, seed: int) -> None:
    # A process that is killed may have dropped what it never answered for.
    faults = {at: fault for at, fault in many_faults(seed).items() if not fault.value.startswith("kill")}
    outcome = simulate(tmp_path, seed, faults, queue_bytes=1000)
    assert outcome.dropped > 0
    assert outcome.problems == []
