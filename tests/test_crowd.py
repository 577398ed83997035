"""A short form of `python -m tests.chaos.crowd`: good load among clients that are slow, silent or never read."""

from pathlib import Path

import pytest

from tests.chaos.crowd import besiege
from tests.process import KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_slow_and_deaf_clients_cost_good_ones_nothing_and_are_cut_in_time(tmp_path: Path, kind: str) -> None:
    outcome = besiege(kind, tmp_path, slow=100, deaf=30, seconds=1.0, header_timeout_s=3.0, idle_timeout_s=4.0)
    # How much slower good requests get is for a quiet machine to say: the long form does.
    assert outcome.problems == []
    assert outcome.counts["answered"] > 100
