"""One process asks the sources and the others know: the note, and the refreshers that go by it."""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from adcore.sources import Revision
from adcore.sources.lookboard import LookBoard
from adcore.sources.refresh import Health
from tests.sources.fakes import FakeStore, rows
from tests.sources.test_refresh import Process

FIRST = Revision("first", 7, 0)


@pytest.fixture
def boards(tmp_path: Path) -> Iterator[list[LookBoard]]:
    made = [LookBoard(tmp_path / "last-look", "sqlite:///ads") for _ in range(3)]
    yield made
    for board in made:
        board.close()


def test_one_leads_until_it_is_gone(tmp_path: Path) -> None:
    first, second = (LookBoard(tmp_path / "last-look", "") for _ in range(2))
    assert [first.lead(), second.lead(), first.lead()] == [True, False, True]
    first.close()
    assert second.lead()
    second.close()


def test_a_note_speaks_of_one_revision(boards: list[LookBoard]) -> None:
    leader, follower, _ = boards
    assert follower.asked(FIRST, 100.0) is None
    leader.note(FIRST, 99.5)
    assert follower.asked(FIRST, 100.0) == 99.5
    assert follower.asked(FIRST._replace(confirmed=7), 100.0) == 99.5
    assert follower.asked(FIRST._replace(number=8), 100.0) is None
    assert follower.asked(FIRST._replace(generation="second"), 100.0) is None
    assert follower.asked(FIRST, 99.0) is None  # of a time to come


@pytest.mark.parametrize(
    "other",
    [{"identity": "sqlite:///others"}, {"identity": "sqlite:///ads", "boot": bytes(16)}],
    ids=["another store", "another boot"],
)
def test_a_note_of_another_world_says_nothing(tmp_path: Path, boards: list[LookBoard], other: dict[str, str]) -> None:
    boards[0].note(FIRST, 99.5)
    stranger = LookBoard(tmp_path / "last-look", **other)  # type: ignore[arg-type]
    assert stranger.asked(FIRST, 100.0) is None
    stranger.close()


def test_a_damaged_note_says_nothing(tmp_path: Path, boards: list[LookBoard]) -> None:
    boards[0].note(FIRST, 99.5)
    path = tmp_path / "last-look"
    whole = path.read_bytes()[:44]
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        assert boards[1].asked(FIRST, 100.0) is None, position
    path.write_bytes(whole[:20])
    assert boards[1].asked(FIRST, 100.0) is None


def test_the_leader_sees_that_others_rely_on_it(boards: list[LookBoard]) -> None:
    assert boards[0].read_monotonic() == float("-inf")
    boards[1].asked(FIRST, 100.0)
    assert boards[0].read_monotonic() == 100.0


def test_the_file_is_its_owners_and_follows_no_link(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        LookBoard(tmp_path / "last-look", "").close()
    finally:
        os.umask(before)
    assert (tmp_path / "last-look").stat().st_mode & 0o777 == 0o600
    (tmp_path / "link").symlink_to(tmp_path / "last-look")
    with pytest.raises(OSError, match="link"):
        LookBoard(tmp_path / "link", "")


# The refreshers


class Fleet:
    """Processes with one state directory and one store; each turn is one of its timer."""

    def __init__(self, boards: list[LookBoard], path: Path) -> None:
        self.store = FakeStore()
        self.now = 1000.0
        self.processes = [Process(self.store, None, path / f"{n}", interval_s=5.0) for n in range(len(boards))]
        for process, board in zip(self.processes, boards, strict=True):
            process.refresher._board = board

    async def start(self) -> None:
        for process in self.processes:
            await process.refresher.start()
        self.store.calls.clear()

    async def turn(self, after_s: float = 1.0) -> list[int | None]:
        self.now += after_s
        for process in self.processes:
            process.now = self.now
            await process.refresher._turn()
        return [process.table.revision if process.table else None for process in self.processes]


def test_one_process_asks_for_all(tmp_path: Path, boards: list[LookBoard]) -> None:
    async def main() -> None:
        fleet = Fleet(boards, tmp_path)
        await fleet.start()
        for _ in range(5):
            assert await fleet.turn() == [1, 1, 1]
        assert fleet.store.calls == ["revision"] * 5
        assert [process.refresher.status()["age_s"] for process in fleet.processes] == [0.0] * 3
        assert [process.refresher.looks for process in fleet.processes] == [6, 6, 6]

        fleet.store.rows = rows(2)
        assert await fleet.turn() == [2, 2, 2]
        fleet.store.calls.clear()
        assert await fleet.turn() == [2, 2, 2]
        assert fleet.store.calls == ["revision"]

    asyncio.run(main())


def test_a_follower_whose_archive_has_failed_looks_until_it_is_well(tmp_path: Path, boards: list[LookBoard]) -> None:
    async def main() -> None:
        fleet = Fleet(boards, tmp_path)
        await fleet.start()
        follower = fleet.processes[1].refresher
        archive = follower.healths["archive"] = Health("the archive")
        archive.note_error("the archive: no space left on device")
        await fleet.turn()
        assert fleet.store.calls == ["revision"] * 2
        archive.note_ok(1000.0)
        await fleet.turn()
        assert fleet.store.calls == ["revision"] * 3

    asyncio.run(main())


def test_a_follower_waits_a_part_of_the_interval_and_so_does_the_leader(
    tmp_path: Path, boards: list[LookBoard]
) -> None:
    async def main() -> None:
        fleet = Fleet(boards, tmp_path)
        await fleet.start()
        leader, follower, _ = (process.refresher for process in fleet.processes)
        assert leader._pause_s() == 4.5  # 5 s, and the half of a jitter of a fifth
        await fleet.turn()
        assert leader._pause_s() + follower._pause_s() < 5.0
        for refresher in (leader, follower):
            refresher._uniform = lambda: 0.0
        assert leader._pause_s() + follower._pause_s() < 5.0

    asyncio.run(main())


def test_a_leader_that_hangs_or_is_gone_is_not_waited_for(tmp_path: Path, boards: list[LookBoard]) -> None:
    async def main() -> None:
        fleet = Fleet(boards, tmp_path)
        await fleet.start()
        await fleet.turn()
        leader = fleet.processes.pop(0)
        fleet.store.rows = rows(2)
        assert await fleet.turn(5.0) == [1, 1]
        assert await fleet.turn(5.0) == [2, 2]  # the note is older than one and a half intervals
        fleet.store.calls.clear()
        assert await fleet.turn() == [2, 2]
        assert fleet.store.calls == ["revision"] * 2  # it holds the lock, so each looks for itself

        assert leader.refresher._board is not None
        leader.refresher._board.close()
        boards[0] = LookBoard(tmp_path / "unused", "")
        fleet.store.calls.clear()
        assert await fleet.turn() == [2, 2]
        assert await fleet.turn() == [2, 2]
        assert fleet.store.calls == ["revision"] * 2  # one each turn

    asyncio.run(main())


def test_a_store_that_is_away_confirms_nothing_to_anybody(tmp_path: Path, boards: list[LookBoard]) -> None:
    async def main() -> None:
        fleet = Fleet(boards, tmp_path)
        await fleet.start()
        await fleet.turn()
        fleet.store.away = True
        for _ in range(10):
            await fleet.turn()
        assert [process.refresher.status()["age_s"] for process in fleet.processes] == [10.0] * 3
        fleet.store.away = False
        await fleet.turn()
        assert [process.refresher.status()["age_s"] for process in fleet.processes] == [0.0] * 3

    asyncio.run(main())


def test_an_operator_s_reload_is_a_look_of_its_own(tmp_path: Path, boards: list[LookBoard]) -> None:
    async def main() -> None:
        fleet = Fleet(boards, tmp_path)
        await fleet.start()
        await fleet.turn()
        fleet.store.calls.clear()
        fleet.processes[1].refresher.request()
        await fleet.processes[1].refresher._turn()
        assert fleet.store.calls == ["revision", "load"]

    asyncio.run(main())
