"""Waits that end together."""

import os

import pytest

from adcore.ticks import EARLY_S, TICK_S, until_tick


@pytest.mark.parametrize("seconds", [2.0, 3.3, 5.0, 60.0])
@pytest.mark.parametrize("now", [0.0, 0.4, 17.123, 100_000.999])
def test_a_wait_is_at_most_a_tick_shorter_and_never_longer(seconds: float, now: float) -> None:
    wait = until_tick(seconds, now)
    assert seconds - TICK_S < wait <= seconds + EARLY_S


def test_what_is_shorter_than_a_tick_stays() -> None:
    assert until_tick(0.05, 3.0) == 0.05
    assert until_tick(1.999, 3.0) == 1.999


def test_all_waits_of_a_process_end_with_the_same_ticks_and_those_of_others_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def tick(now: float, seconds: float) -> float:
        return round((now + until_tick(seconds, now)) % TICK_S, 6) % TICK_S

    found = set()
    for pid in (100, 101, 102, 103):
        monkeypatch.setattr(os, "getpid", lambda pid=pid: pid)
        ticks = {tick(now, seconds) for now in (0.0, 0.31, 8.75, 12.999) for seconds in (2.0, 2.9, 5.0)}
        assert len(ticks) == 1, ticks
        found |= ticks
    assert len(found) >= 3, "of 2,000 phases"


def test_a_timer_that_is_early_does_not_wait_for_the_same_tick_again() -> None:
    tick = until_tick(TICK_S, 50.0) + 50.0
    for early_s in (0.0, 0.001, 0.004):
        assert until_tick(TICK_S, tick - early_s) == pytest.approx(TICK_S + early_s)
