"""Frequency caps: the window slides, a fold never forgets what a cap still asks about."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adcore.core.frequency import (
    COUNT_MAX,
    ENTRIES_MAX,
    GRANULARITY,
    UNKNOWN_KEPT_S,
    Cap,
    Caps,
    FrequencyMemory,
    History,
    Seen,
    campaign_key,
    capped,
    fold,
    needed_until,
    pack,
    unpack,
)

NOW = 1_800_000_000
A, B = campaign_key("a"), campaign_key("b")
TWO_A_DAY: Caps = {A: Cap(2, 86_400, "a")}


def caps_of(*windows: tuple[int, int]) -> Caps:
    return {campaign_key(str(n)): Cap(*window, str(n)) for n, window in enumerate(windows)}


# A cap's (impressions, seconds) for up to five campaigns, and who saw which of them how long ago.
windows = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 2000)), min_size=1, max_size=5)
ages = st.integers(0, 2500) | st.integers(0, 20)
events = st.lists(st.tuples(st.integers(0, 4), ages), max_size=60)


def history_of(events: list[tuple[int, int]]) -> History:
    return tuple(Seen(campaign_key(str(n)), NOW - age, 1) for n, age in events)


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        ((), set()),
        ((Seen(A, NOW, 1),), set()),
        ((Seen(A, NOW, 1), Seen(A, NOW - 100, 1)), {"a"}),
        ((Seen(A, NOW, 2),), {"a"}),
        ((Seen(A, NOW, 1), Seen(A, NOW - 86_399, 1)), {"a"}),
        ((Seen(A, NOW, 1), Seen(A, NOW - 86_400, 1)), set()),
        ((Seen(A, NOW, 1), Seen(B, NOW, 9)), set()),
        # Another host's clock is ahead.
        ((Seen(A, NOW + 200, 1), Seen(A, NOW, 1)), {"a"}),
    ],
)
def test_a_campaign_is_capped_when_its_window_holds_its_cap(history: History, expected: set[str]) -> None:
    assert capped(history, TWO_A_DAY, NOW) == expected


def test_keys_are_48_bits_and_differ() -> None:
    keys = {campaign_key(f"campaign-{n}") for n in range(10_000)}
    assert len(keys) == 10_000
    assert max(keys) < 2**48


@settings(max_examples=300, deadline=None)
@given(windows, events)
def test_a_fold_never_counts_less_and_holds_at_most_an_eighth_longer(
    windows: list[tuple[int, int]], events: list[tuple[int, int]]
) -> None:
    caps, history = caps_of(*windows), history_of(events)
    longer = {key: cap._replace(seconds=cap.seconds + cap.seconds // GRANULARITY) for key, cap in caps.items()}
    folded = fold(history, caps, NOW)
    # Whenever an impression leaves its window, and just before.
    ends = {seen.time + caps[seen.campaign_key].seconds for seen in history if seen.campaign_key in caps}
    for now in {NOW, *ends, *(end - 1 for end in ends)}:
        if now >= NOW:
            assert capped(history, caps, now) <= capped(folded, caps, now) <= capped(history, longer, now)


def test_merged_entries_take_the_latest_time() -> None:
    start = NOW - NOW % (86_400 // GRANULARITY)
    history = (Seen(A, start + 5, 1), Seen(A, start + 7, 2), Seen(A, start + 6, 1), Seen(A, start - 1, 1))
    assert fold(history, TWO_A_DAY, start + 7) == (Seen(A, start - 1, 1), Seen(A, start + 7, 4))


@settings(max_examples=200, deadline=None)
@given(windows, events)
def test_folding_again_and_again_adds_nothing_to_that(
    windows: list[tuple[int, int]], events: list[tuple[int, int]]
) -> None:
    caps, history = caps_of(*windows), history_of(events)
    folded: History = ()
    for seen in sorted(history, key=lambda seen: seen.time):
        folded = fold((*folded, seen), caps, seen.time)
    longer = {key: cap._replace(seconds=cap.seconds + cap.seconds // GRANULARITY) for key, cap in caps.items()}
    assert capped(history, caps, NOW) <= capped(folded, caps, NOW) <= capped(history, longer, NOW)
    assert fold(fold(history, caps, NOW), caps, NOW) == fold(history, caps, NOW)


@given(windows, events, st.randoms(use_true_random=False))
def test_a_fold_does_not_depend_on_the_order(
    windows: list[tuple[int, int]], events: list[tuple[int, int]], random: Random
) -> None:
    caps, history = caps_of(*windows), history_of(events)
    shuffled = random.sample(history, len(history))
    assert fold(shuffled, caps, NOW) == fold(history, caps, NOW)


def test_a_fold_of_many_campaigns_is_bounded_and_forgets_none() -> None:
    caps = caps_of(*[(40, 80_000)] * (ENTRIES_MAX // 2))
    history = [Seen(key, NOW - 2000 * n, 1) for key in caps for n in range(40)]
    folded = fold(history, caps, NOW)
    assert len(folded) <= ENTRIES_MAX
    assert capped(folded, caps, NOW) == {str(n) for n in range(ENTRIES_MAX // 2)}


def test_past_the_bound_the_oldest_are_forgotten() -> None:
    caps = caps_of(*[(1, 80_000)] * 2 * ENTRIES_MAX)
    history = [Seen(key, NOW - 100 * n, 1) for n, key in enumerate(caps)]
    assert capped(fold(history, caps, NOW), caps, NOW) == {str(n) for n in range(ENTRIES_MAX)}


def test_a_campaign_that_is_not_known_here_is_kept_for_a_day_as_it_is() -> None:
    history = (Seen(B, NOW - UNKNOWN_KEPT_S, 1), Seen(B, NOW - 9, 1), Seen(B, NOW - 8, 1))
    assert fold(history, TWO_A_DAY, NOW) == history[1:]
    assert needed_until(history, TWO_A_DAY) == NOW - 8 + UNKNOWN_KEPT_S


def test_counts_stop_at_16_bits() -> None:
    history = (Seen(A, NOW, COUNT_MAX), Seen(A, NOW, COUNT_MAX))
    assert fold(history, TWO_A_DAY, NOW) == (Seen(A, NOW, COUNT_MAX),)
    assert unpack(pack([Seen(A, NOW, COUNT_MAX + 1)])) == (Seen(A, NOW, COUNT_MAX),)


def test_a_history_is_needed_until_its_last_entry_leaves_its_window() -> None:
    assert needed_until((), TWO_A_DAY) == 0
    history = (Seen(A, NOW - 5, 1), Seen(A, NOW - 7, 1))
    assert needed_until(history, TWO_A_DAY) == NOW - 5 + 86_400


@given(
    st.lists(
        st.builds(Seen, st.integers(0, 2**48 - 1), st.integers(0, 2**32 - 1), st.integers(0, COUNT_MAX)),
        max_size=9,
    )
)
def test_packing_goes_both_ways(history: list[Seen]) -> None:
    packed = pack(history)
    assert len(packed) == 12 * len(history)
    assert unpack(packed) == tuple(history)


@settings(max_examples=100, deadline=None)
@given(windows, st.lists(st.tuples(st.integers(0, 4), st.integers(0, 300)), max_size=120))
def test_the_memory_never_lets_a_user_over_the_cap(
    windows: list[tuple[int, int]], visits: list[tuple[int, int]]
) -> None:
    caps = caps_of(*windows)
    memory = FrequencyMemory()
    shown: list[tuple[str, int]] = []
    now = NOW
    for n, pause in visits:
        now += pause
        name, key = str(n), campaign_key(str(n))
        if key in caps and name not in capped(memory.history("u"), caps, now):
            memory.record("u", Seen(key, now, 1), caps, now)
            shown.append((name, now))
            impressions, seconds, _ = caps[key]
            assert sum(one == name and time > now - seconds for one, time in shown) <= impressions


def test_the_memory_is_bounded_in_users_and_forgets_who_was_shown_longest_ago() -> None:
    memory = FrequencyMemory(users_max=3)
    for user in ("a", "b", "c", "a", "d"):
        memory.record(user, Seen(A, NOW, 1), TWO_A_DAY, NOW)
    assert len(memory) == 3
    assert memory.history("b") == ()
    assert [len(memory.history(user)) for user in "acd"] == [2, 1, 1]


def test_the_memory_is_bounded_in_entries_of_a_user() -> None:
    caps = caps_of(*[(9, 86_400)] * 300)
    memory = FrequencyMemory()
    longest = 0
    for n, key in enumerate([*caps] * 3):
        memory.record("u", Seen(key, NOW + n, 1), caps, NOW + n)
        longest = max(longest, len(memory.history("u")))
    assert ENTRIES_MAX < longest < ENTRIES_MAX + FrequencyMemory.FOLD_EVERY
