"""The order in which sources are asked, and what is done when they are away; no clock, no socket, no sleep."""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from adcore.errors import SourceError
from adcore.sources import Revision, Rows
from adcore.sources.lastgood import LastGood
from adcore.sources.refresh import Refresher


class Table:
    def __init__(self, rows: Rows) -> None:
        self.revision = rows.revision
        self.creative_count = len(rows.document["campaigns"])


def rows(revision: int, size: int = 10, confirmed: int = 0) -> Rows:
    return Rows(revision, confirmed, {"placements": [], "campaigns": [{"id": f"{n}"} for n in range(size)]})


class FakeStore:
    """A store with the faults that a real one cannot be made to have on cue."""

    label = "store"

    def __init__(self) -> None:
        self.rows = rows(1)
        self.away = False
        self.calls: list[str] = []
        self.closed = False

    def _answer(self, call: str) -> None:
        self.calls.append(call)
        if self.away:
            raise SourceError("store: away")

    def revision(self) -> Revision:
        self._answer("revision")
        return Revision(self.rows.revision, self.rows.confirmed)

    def load(self) -> Rows:
        self._answer("load")
        return self.rows

    def close(self) -> None:
        self.closed = True


class FakeSnapshot:
    """A memcached shared by the processes of a test."""

    label = "memcached"

    def __init__(self) -> None:
        self.rows: Rows | None = None
        self.holder: str | None = None
        self.away = False
        self.published = 0

    def of(self, owner: str) -> "FakeClient":
        return FakeClient(self, owner)


class FakeClient:
    label = "memcached"

    def __init__(self, shared: FakeSnapshot, owner: str) -> None:
        self.shared = shared
        self.owner = owner

    def _check(self) -> None:
        if self.shared.away:
            raise SourceError("memcached: away")

    def revision(self) -> Revision | None:
        self._check()
        held = self.shared.rows
        return None if held is None else Revision(held.revision, held.confirmed)

    def load(self) -> Rows | None:
        self._check()
        return self.shared.rows

    def publish(self, published: Rows) -> None:
        self._check()
        self.shared.rows = published
        self.shared.published += 1

    def lock(self) -> bool:
        self._check()
        if self.shared.holder is None:
            self.shared.holder = self.owner
        return self.shared.holder == self.owner

    def unlock(self) -> None:
        self._check()
        if self.shared.holder == self.owner:
            self.shared.holder = None

    def close(self) -> None:
        pass


class Process:
    """A refresher and the table it has swapped in."""

    def __init__(self, store: FakeStore, snapshot: FakeSnapshot | None, path: Path, **options: Any) -> None:
        self.table: Table | None = None
        self.now = 1000.0
        self.refresher = Refresher[Table](
            store,
            snapshot.of(str(path)) if snapshot else None,  # type: ignore[arg-type]
            LastGood(path),
            build=options.pop("build", Table),
            use=self.use,
            interval_s=options.pop("interval_s", 5.0),
            uniform=lambda: 0.5,
            clock_wall=lambda: self.now,
        )

    def use(self, table: Table) -> None:
        self.table = table

    async def look(self) -> int | None:
        """One turn of the timer; the revision served after it."""
        await self.refresher._refresh()
        return self.table.revision if self.table else None

    @property
    def loads(self) -> dict[str, int]:
        return dict(self.refresher.loads)


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(main())


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adcore.sources.refresh.LOCK_WAIT_S", 0.0)


def test_an_unchanged_store_costs_one_row_per_look(tmp_path: Path) -> None:
    async def main() -> None:
        store = FakeStore()
        process = Process(store, None, tmp_path / "rows")
        assert await process.refresher.start()
        store.calls.clear()
        for _ in range(5):
            assert await process.look() == 1
        assert store.calls == ["revision"] * 5

    run(main)


def test_one_process_rebuilds_and_the_others_take_its_snapshot(tmp_path: Path) -> None:
    async def main() -> None:
        shared = FakeSnapshot()
        stores = [FakeStore() for _ in range(4)]
        processes = [Process(store, shared, tmp_path / f"{n}") for n, store in enumerate(stores)]
        for revision in (1, 2, 3):
            for store in stores:
                store.rows = rows(revision)
            for process in processes:
                assert await process.look() == revision
        assert sum(store.calls.count("load") for store in stores) == 3
        assert shared.published == 3
        assert [process.loads for process in processes] == [{"store": 3}] + [{"snapshot": 3}] * 3
        assert shared.holder is None

    run(main)


def test_a_lock_that_nobody_releases_holds_nobody_up(tmp_path: Path) -> None:
    async def main() -> None:
        shared = FakeSnapshot()
        shared.holder = "a process that was killed"
        process = Process(FakeStore(), shared, tmp_path / "rows")
        assert await process.look() == 1
        assert process.loads == {"store": 1}

    run(main)


def test_what_is_away_is_gone_around(tmp_path: Path) -> None:
    async def main() -> None:
        store, shared = FakeStore(), FakeSnapshot()
        process = Process(store, shared, tmp_path / "rows")
        assert await process.look() == 1

        shared.away = True
        store.rows = rows(2)
        assert await process.look() == 2

        shared.away, store.away = False, True
        shared.rows = rows(3)
        assert await process.look() == 3

        shared.away = True
        process.now += 60
        assert await process.look() == 3
        status = process.refresher.status()
        assert status["age_s"] == 60
        assert [source["ok"] for source in status["sources"]] == [False, False, True]  # type: ignore[attr-defined]

        # A start while both are away: the last good rows from disk.
        again = Process(store, shared, tmp_path / "rows")
        assert await again.refresher.start()
        assert again.table is not None
        assert again.table.revision == 3
        assert again.loads == {"disk": 1}

        store.away = False
        store.rows = rows(4)
        assert await again.look() == 4

    run(main)


def test_without_any_source_there_is_no_table_until_one_answers(tmp_path: Path) -> None:
    async def main() -> None:
        store = FakeStore()
        store.away = True
        process = Process(store, None, tmp_path / "rows")
        assert not await process.refresher.start()
        store.away = False
        assert await process.look() == 1

    run(main)


def test_a_table_that_lost_most_of_its_creatives_waits_for_a_second_look(tmp_path: Path) -> None:
    async def main() -> None:
        store = FakeStore()
        process = Process(store, None, tmp_path / "rows")
        await process.look()
        store.rows = rows(2, size=4)
        assert await process.look() == 1
        assert "4 creatives" in str(process.refresher.refused)
        # Another one that is small: it starts over.
        store.rows = rows(3, size=3)
        assert await process.look() == 1
        assert await process.look() == 3
        assert process.refresher.refused is None

    run(main)


def test_half_of_the_creatives_are_enough(tmp_path: Path) -> None:
    async def main() -> None:
        store = FakeStore()
        process = Process(store, None, tmp_path / "rows")
        await process.look()
        store.rows = rows(2, size=5)
        assert await process.look() == 2

    run(main)


def test_an_applied_change_may_remove_anything(tmp_path: Path) -> None:
    async def main() -> None:
        store = FakeStore()
        process = Process(store, None, tmp_path / "rows")
        await process.look()
        store.rows = rows(2, size=0, confirmed=2)
        assert await process.look() == 2
        store.rows = rows(3, size=0, confirmed=2)
        assert await process.look() == 3

    run(main)


def test_a_snapshot_of_another_revision_is_not_taken(tmp_path: Path) -> None:
    """A database that was set up anew starts with low revisions, while the snapshot still has a high one."""

    async def main() -> None:
        shared = FakeSnapshot()
        shared.rows = rows(99)
        process = Process(FakeStore(), shared, tmp_path / "rows")
        assert await process.look() == 1

    run(main)


def test_a_surprise_does_not_stop_the_timer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        store = FakeStore()
        failures = [RuntimeError("a bug")]

        def build(found: Rows) -> Table:
            if failures:
                raise failures.pop()
            return Table(found)

        process = Process(store, None, tmp_path / "rows", build=build)
        assert await process.look() is None
        assert await process.look() == 1

    run(main)
    assert "a bug" in caplog.text


def test_a_hup_reads_everything_again_at_once(tmp_path: Path) -> None:
    async def main() -> None:
        store = FakeStore()
        process = Process(store, None, tmp_path / "rows", interval_s=3600.0)
        await process.refresher.start()
        running = asyncio.get_running_loop().create_task(process.refresher.run())
        store.calls.clear()
        process.refresher.request()
        async with asyncio.timeout(20):
            while "load" not in store.calls:
                await asyncio.sleep(0.001)
        running.cancel()
        process.refresher.close()

    run(main)
