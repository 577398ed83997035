"""What perf/run refresh measures with: its inventory is valid and as large as it says."""

from adcore.core.adtable import build_table
from perf.refresh import inventory
from perf.refresh.__main__ import coarse


def test_the_busy_placement_has_a_tenth_of_all_creatives() -> None:
    table = build_table(inventory.document(200), revision=1)
    assert not table.rejected
    assert table.creative_count == 200 * inventory.CREATIVES_EACH
    busy = table.placements[inventory.BUSY]
    assert len(busy.entrants) + len(busy.absent) == 20
    assert set(table.placements) == {*inventory.PLACEMENT_IDS, inventory.BUSY}


def test_the_small_one_has_a_hundred() -> None:
    table = build_table(inventory.hundred(), revision=1)
    assert table.creative_count == 100
    assert len(table.placements[inventory.BUSY].entrants) == 5


def test_a_coarse_histogram_counts_the_same_requests() -> None:
    buckets = [(float(n), n) for n in range(1, 300)]
    assert sum(count for _, count in coarse(buckets)) == sum(n for _, n in buckets)
    assert len(coarse(buckets)) < 120
