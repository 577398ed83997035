"""Links followed: once per window, for all processes of a host."""

import fcntl
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adcore.errors import StartError
from adcore.followed import BUCKETS, PLACES, Followed
from tests.process import environment

NOW = 1_800_000_000.0
ONE, OTHER = "1".rjust(32, "0"), "2".rjust(32, "0")


def test_a_link_is_first_once_per_window() -> None:
    followed = Followed.in_memory(60)
    assert [followed.first(ONE, NOW + t) for t in (0, 1, 59.9, 60, 61, 119.9, 120)] == [
        *(True, False, False, True, False, False, True)
    ]


def test_without_a_window_every_one_is_first() -> None:
    followed = Followed.in_memory(0)
    assert [followed.first(ONE, NOW) for _ in range(3)] == [True] * 3


@settings(max_examples=200)
@given(st.lists(st.tuples(st.integers(0, PLACES - 1), st.integers(0, 100)), max_size=60))
def test_links_do_not_disturb_each_other(events: list[tuple[int, int]]) -> None:
    """As many as a bucket holds, all of them in one, against a dictionary."""
    followed, known = Followed.in_memory(60, buckets=1), dict[int, float]()
    for link, at in sorted(events, key=lambda event: event[1]):
        is_first = link not in known or at - known[link] >= 60
        assert followed.first(f"{link + 1:032x}", NOW + at) == is_first
        if is_first:
            known[link] = at


def test_a_full_bucket_forgets_its_oldest() -> None:
    followed = Followed.in_memory(60, buckets=1)
    assert all(followed.first(f"{link:032x}", NOW + link / 10) for link in range(1, PLACES + 1))
    assert followed.first("f" * 32, NOW + 5)
    assert not followed.first(f"{2:032x}", NOW + 5)
    assert followed.first(f"{1:032x}", NOW + 5)


def test_both_halves_of_an_id_count() -> None:
    followed = Followed.in_memory(60)
    for bit in (*range(1, 64), *range(64, 74)):  # a thousand buckets
        assert followed.first(f"{1 << bit | 1 << 100:032x}", NOW), bit
    assert followed.first("0" * 32, NOW)
    assert not followed.first("0" * 32, NOW)


def test_a_clock_set_back_keeps_no_link_for_longer_than_a_window() -> None:
    followed = Followed.in_memory(60)
    assert followed.first(ONE, NOW + 3600)
    assert followed.first(ONE, NOW)
    assert not followed.first(ONE, NOW + 1)
    # Another process has read its clock a moment before.
    assert not followed.first(ONE, NOW - 0.001)


def test_processes_share_the_file_and_so_do_those_after_them(tmp_path: Path) -> None:
    path = tmp_path / "clicks.followed"
    one, other = Followed.open(path, 60), Followed.open(path, 60)
    assert one.first(ONE, NOW)
    assert not other.first(ONE, NOW)
    assert other.first(OTHER, NOW)
    one.close()
    other.close()
    again = Followed.open(path, 60)
    assert not again.first(OTHER, NOW)
    again.close()
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.stat().st_blocks * 512 >= (BUCKETS + 1) * 256  # nothing is left to be found on a full disk
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


RACE = """
import random, sys
from pathlib import Path
from adcore.followed import Followed
followed = Followed.open(Path(sys.argv[1]), 3600)
links = list(range(1, 4001))
random.Random(sys.argv[2]).shuffle(links)
sys.stdin.readline()
print(*(link for link in links if followed.first(f"{link << 60 | link:032x}", 1.8e9)))
"""


def test_of_processes_that_race_for_a_link_one_is_first(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    path = tmp_path / "clicks.followed"
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, str(path), str(seed + number % 2)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        for number in range(4)
    ]
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    won = [int(link) for racer in racers for link in racer.communicate(timeout=60)[0].split()]
    assert sorted(won) == list(range(1, 4001))
    assert [racer.returncode for racer in racers] == [0] * 4


HOLD = """
import fcntl, sys
file = open(sys.argv[1], "r+b")
for bucket in range(1, 65536):
    fcntl.lockf(file, fcntl.LOCK_EX, 1, bucket)
print("held", flush=True)
sys.stdin.read()
"""


def test_a_process_that_is_stopped_holds_nobody_up_and_one_that_dies_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "clicks.followed"
    followed = Followed.open(path, 60)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    began_monotonic = time.monotonic()
    assert not followed.first(ONE, NOW)
    assert time.monotonic() - began_monotonic < 5  # some milliseconds, on a machine that does nothing else
    holder.kill()
    holder.communicate()
    assert followed.first(ONE, NOW)
    fcntl.lockf(os.open(path, os.O_RDWR), fcntl.LOCK_EX | fcntl.LOCK_NB)
    followed.close()


@pytest.mark.parametrize("content", [b"", b"adcseen1", b"x" * (BUCKETS + 1) * 256])
def test_a_file_of_something_else_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "clicks.followed"
    path.write_bytes(content)
    with pytest.raises(StartError, match=r"clicks\.followed is not what adcore keeps there: remove it"):
        Followed.open(path, 60)
    assert path.read_bytes() == content


def test_a_place_that_takes_no_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"cannot keep 16 MiB for the links followed in .*--spool-dir"):
        Followed.open(tmp_path / "nowhere" / "clicks.followed", 60)
