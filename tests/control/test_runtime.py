"""What a process measures of itself, with clocks and timers moved by hand; and once for real."""

import contextlib
import gc
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from adcore.control.rates import POLLERS_MAX, Pollers, Sample, compare
from adcore.control.runtime import (
    LAG_IDLE_INTERVAL_S,
    LAG_INTERVAL_S,
    LAG_MISSED_MAX,
    GcWatch,
    LoopLag,
    count_descriptors,
    read_memory,
)
from adcore.ticks import until_tick


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class ManualLoop:
    """Holds the one timer that was set, until the test fires it."""

    def __init__(self) -> None:
        self.callback: Callable[[], object] | None = None

    def time(self) -> float:
        return 0.0

    def call_later(self, delay: float, callback: Callable[[], object]) -> "ManualLoop":
        assert delay == LAG_INTERVAL_S or 0.0 < delay <= LAG_IDLE_INTERVAL_S
        self.callback = callback
        return self

    def cancel(self) -> None:
        self.callback = None

    def fire(self) -> None:
        assert self.callback is not None
        self.callback()


def test_the_lag_is_how_much_too_late_a_timer_ran() -> None:
    clock, loop = Clock(), ManualLoop()
    lag = LoopLag(clock)
    lag.start(loop)
    clock.now += LAG_INTERVAL_S + 0.000_300
    loop.fire()
    assert [bound for bound, _ in lag.histogram.buckets_us()] in ([300], [301])
    clock.now += LAG_INTERVAL_S - 0.001  # libuv may be early
    loop.fire()
    assert lag.histogram.buckets_us()[0] == (1, 1)
    assert 299 <= lag.to_status()["lag_max_us"] <= 301  # type: ignore[operator]
    lag.stop()
    assert loop.callback is None


def test_a_long_hang_counts_as_all_the_looks_that_fell_into_it() -> None:
    clock, loop = Clock(), ManualLoop()
    lag = LoopLag(clock)
    lag.start(loop)
    clock.now += LAG_INTERVAL_S + 1.001
    loop.fire()
    buckets = dict(lag.histogram.buckets_us())
    assert sum(buckets.values()) == 21
    assert buckets[1 << 20] == 10  # 0.52 to 1.05 s
    clock.now += 1e6
    loop.fire()
    assert sum(dict(lag.histogram.buckets_us()).values()) == 21 + LAG_MISSED_MAX + 1


def test_collections_and_their_pauses_are_counted() -> None:
    clock = Clock()
    watch = GcWatch(clock)
    for pause_s in (0.25, 0.5, 0.125):
        watch.on_gc("start", {})
        clock.now += pause_s
        watch.on_gc("stop", {})
    status = watch.to_status()
    assert (status["count"], status["pause_last_s"]) == (3, 0.125)
    assert (status["pause_max_s"], status["pause_total_s"]) == (0.5, 0.875)
    assert list(watch.recent) == [0.25, 0.5, 0.125]


def test_a_real_collection_is_seen_until_the_watch_is_stopped() -> None:
    watch = GcWatch()
    watch.start()
    gc.collect()
    seen = watch.count
    watch.stop()
    gc.collect()
    assert watch.count == seen >= 1
    assert watch.pause_last_s is not None
    assert 0 < watch.pause_last_s <= watch.pause_total_s


def test_memory_that_the_kernel_does_not_tell_is_none(tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text("Name:\tpython\nVmRSS:\t   1024 kB\nThreads:\t3\n")
    assert read_memory(status)["VmRSS"] == 1 << 20
    assert read_memory(status)["RssAnon"] is None
    assert None not in read_memory().values()


def sample(monotonic: float, requests: float, **buckets: dict[int, int]) -> Sample:
    return Sample(monotonic, {"requests": requests}, buckets)


def test_each_pollers_rates_are_over_its_own_interval() -> None:
    pollers = Pollers(started_monotonic=100.0)
    at = [
        sample(110.0, 50, lag={5: 10}),
        sample(120.0, 150, lag={5: 10, 9: 10}),
        sample(160.0, 190, lag={5: 11, 9: 10}),
    ]
    first = compare(pollers.turn("munin", at[0]), at[0])
    assert (first["interval_s"], first["per_second"]["requests"]) == (10.0, 5.0)  # since the start
    other = compare(pollers.turn("zabbix", at[1]), at[1])
    assert (other["interval_s"], other["per_second"]["requests"]) == (20.0, 7.5)
    second = compare(pollers.turn("munin", at[2]), at[2])
    assert (second["interval_s"], second["counted"]["requests"], second["per_second"]["requests"]) == (50.0, 140, 2.8)
    assert second["lag_us"]["p50"] == 9
    again = compare(pollers.turn("munin", at[2]), at[2])
    assert again["per_second"]["requests"] is None  # no time has passed
    assert again["lag_us"]["p50"] is None


def test_pollers_that_come_and_go_take_bounded_memory() -> None:
    pollers = Pollers(0.0)
    for number in range(POLLERS_MAX * 3):
        pollers.turn("steady", sample(number, number))
        pollers.turn(f"one-off {number}", sample(number, number))
    assert len(pollers) == POLLERS_MAX
    assert pollers.turn("steady", sample(999.0, 0)).monotonic == POLLERS_MAX * 3 - 1
    assert pollers.turn("x" * 1000, sample(1.0, 0)).monotonic == 0.0
    assert pollers.turn("x" * 1000 + "y", sample(2.0, 0)).monotonic == 1.0


def test_descriptors_are_counted_with_and_without_the_kernels_help() -> None:
    before = count_descriptors()
    with contextlib.ExitStack() as stack:
        for _ in range(50):
            stack.enter_context(open(os.devnull))
        assert count_descriptors() == before + 50
    # Where a directory has no size, as before Linux 6.2, its names are counted.
    assert count_descriptors("/proc/self/task") == len(os.listdir("/proc/self/task"))


def test_an_idle_loop_is_asked_less_often() -> None:
    clock, loop, work = Clock(), ManualLoop(), [0]
    lag = LoopLag(clock)
    lag.start(loop, lambda: work[0])
    waits = []
    for answers in (1, 2, 2, 2, 3):
        work[0] = answers
        waits.append(lag._due - clock.now)
        clock.now = lag._due
        loop.fire()
    often, seldom = LAG_INTERVAL_S, until_tick(LAG_IDLE_INTERVAL_S, loop.time())
    assert waits == pytest.approx([often, often, often, seldom, seldom])
