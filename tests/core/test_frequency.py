from hypothesis import given
from hypothesis import strategies as st

from adcore.core.frequency import (
    ENTRIES_MAX,
    GRANULARITY,
    Cap,
    FrequencyMemory,
    Seen,
    campaign_key,
    capped,
    fold,
)

A, B = campaign_key("a"), campaign_key("b")
CAPS = {A: Cap(3, 3600, "a"), B: Cap(1, 60, "b")}

HISTORIES = st.lists(
    st.builds(Seen, st.sampled_from([A, B, 7]), st.integers(0, 20_000), st.integers(1, 3)), max_size=60
)


def test_a_cap_holds_from_its_last_impression_and_slides() -> None:
    history = (Seen(A, 0, 1), Seen(A, 1000, 1), Seen(A, 2000, 1))
    assert capped(history[:2], CAPS, 2000) == frozenset()
    assert capped(history, CAPS, 2000) == {"a"}
    assert capped(history, CAPS, 3599.9) == {"a"}
    assert capped(history, CAPS, 3600) == frozenset()


def test_a_campaign_without_a_cap_is_never_capped() -> None:
    assert capped((Seen(7, 0, 99),), CAPS, 0) == frozenset()


def test_keys_are_48_bits_and_differ() -> None:
    keys = {campaign_key(f"c{n}") for n in range(10_000)}
    assert len(keys) == 10_000
    assert max(keys) < 1 << 48


@given(HISTORIES, st.integers(0, 25_000), st.integers(0, 4000))
def test_folding_never_forgets_and_holds_at_most_an_eighth_longer(history: list[Seen], now: int, later: int) -> None:
    seen = [entry for entry in history if entry.time <= now]
    folded = fold(seen, CAPS, now)
    assert capped(folded, CAPS, now + later) >= capped(seen, CAPS, now + later)
    # What only the folded one still holds, the whole one held an eighth of the window ago.
    for campaign_id in capped(folded, CAPS, now + later) - capped(seen, CAPS, now + later):
        cap = CAPS[campaign_key(campaign_id)]
        alone = [entry for entry in seen if entry.campaign_key == campaign_key(campaign_id)]
        assert campaign_id in capped(alone, CAPS, now + later - cap.seconds // GRANULARITY - 1)
    assert len(folded) <= ENTRIES_MAX
    assert fold(folded, CAPS, now) == folded


def test_a_folded_history_is_bounded() -> None:
    caps = {key: Cap(1, 3600, str(key)) for key in range(1000)}
    folded = fold([Seen(key, key, 1) for key in range(1000)], caps, 1000)
    assert [entry.time for entry in folded] == list(range(1000 - ENTRIES_MAX, 1000))


def test_memory_holds_a_users_cap_and_forgets_the_least_recent_user() -> None:
    memory = FrequencyMemory(users_max=2)
    for number in range(3):
        assert capped(memory.history("u1"), CAPS, number) == frozenset()
        memory.record("u1", Seen(A, number, 1), CAPS, number)
    assert capped(memory.history("u1"), CAPS, 3) == {"a"}
    memory.record("u2", Seen(A, 3, 1), CAPS, 3)
    memory.record("u1", Seen(B, 4, 1), CAPS, 4)
    memory.record("u3", Seen(A, 5, 1), CAPS, 5)
    assert memory.history("u2") == ()
    assert capped(memory.history("u1"), CAPS, 5) == {"a", "b"}
    assert len(memory) == 2


def test_memory_per_user_is_bounded() -> None:
    memory = FrequencyMemory()
    caps = {A: Cap(10_000, 86_400, "a")}
    for second in range(20_000):
        memory.record("u", Seen(A, second, 1), caps, second)
    assert len(memory.history("u")) <= 2 * GRANULARITY + 1
    assert sum(entry.impressions for entry in memory.history("u")) == 20_000
