from adcore.core.once import OncePerWindow


def test_a_key_is_first_once_per_window() -> None:
    once = OncePerWindow(60)
    assert [once.first("a", t) for t in (0, 1, 59.9, 60, 61, 119.9, 120)] == [
        True,
        False,
        False,
        True,
        False,
        False,
        True,
    ]


def test_keys_do_not_disturb_each_other() -> None:
    once = OncePerWindow(60)
    assert once.first("a", 0)
    assert once.first("b", 30)
    assert once.first("a", 60)
    assert not once.first("b", 60)


def test_the_memory_is_bounded_and_forgets_the_oldest() -> None:
    once = OncePerWindow(60, keys_max=3)
    assert all(once.first(key, 0) for key in "abc")
    assert once.first("d", 1)
    assert not once.first("c", 1)
    assert once.first("a", 1)


def test_a_clock_set_back_does_not_keep_a_key_for_longer() -> None:
    once = OncePerWindow(60)
    assert once.first("a", 3600)
    assert once.first("a", 0)
    assert not once.first("a", 1)
