"""Prometheus' text format: what the numbers mean, and that Prometheus' own promtool has nothing to say against it."""

import subprocess

from prometheus_client.parser import text_string_to_metric_families

from adcore.control import metrics
from adcore.http1.histogram import Histogram
from tests.services import program


def check(text: bytes) -> None:
    """`promtool check metrics` finds nothing to complain of."""
    command = [program("promtool", "prometheus"), "check", "metrics"]
    checked = subprocess.run(command, input=text, capture_output=True, check=False, timeout=60)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")


def samples(text: bytes) -> dict[str, dict[tuple[str, ...], float]]:
    """{name: {label values in the order of their names: value}}"""
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            values = tuple(value for _, value in sorted(sample.labels.items()))
            found.setdefault(sample.name, {})[values] = sample.value
    return found


def test_a_histogram_is_cumulative_in_seconds_and_has_all_that_was_counted() -> None:
    durations = Histogram()
    for us in (0, 9, 10, 49, 999, 1000, 1023, 1024, 2047, 2048, 60_000_000):
        durations.add(us / 1e6 + 1e-8)
    text = metrics.render([metrics.histogram("adcore_test_seconds", "For a test.", durations)])
    check(text)
    found = samples(text)
    buckets = {float(bound): count for (bound,), count in found["adcore_test_seconds_bucket"].items()}
    wanted = {10e-6: 2, 25e-6: 3, 50e-6: 4, 500e-6: 4, 1e-3: 5, 2.048e-3: 9, 4.096e-3: 10, 8.388608: 10}
    assert {bound: buckets[bound] for bound in wanted} == wanted
    assert buckets[float("inf")] == found["adcore_test_seconds_count"][()] == 11
    assert found["adcore_test_seconds_sum"][()] == 60.008209
    assert list(buckets.values()) == sorted(buckets.values())


def test_workers_metrics_merge_under_a_label() -> None:
    one = metrics.render([metrics.counter("adcore_apples_total", "A.", {"x": 1, 'odd "\\\n': 2}, "kind")])
    two = metrics.render(
        [metrics.counter("adcore_apples_total", "A.", {"x": 3}, "kind"), metrics.gauge("adcore_pears", "B.", 4.5)]
    )
    merged = metrics.merge({"1": one, "2": two})
    check(merged)
    found = samples(merged)
    assert found["adcore_apples_total"] == {("x", "1"): 1, ('odd "\\\n', "1"): 2, ("x", "2"): 3}
    assert found["adcore_pears"] == {("2",): 4.5}
    assert merged.count(b"# TYPE adcore_apples_total counter") == 1
    assert metrics.merge({}) == b""


def test_reasons_are_summed_over_placements() -> None:
    by_placement = {"top": {"paused": 1, "os": 2}, "side": {"os": 3}}
    assert metrics.by_reason(by_placement) == {"paused": 1, "os": 5}
