"""The order in which sources are asked, and what is done when they are away; no clock, no socket, no sleep."""

import asyncio
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from adcore import sources
from adcore.core.adtable import AdTable, Steps
from adcore.sources.lastgood import LastGood
from adcore.sources.reader import Reader
from adcore.sources.refresh import Refresher
from adcore.ticks import TICK_S
from tests.sources.fakes import FakeSnapshot, FakeStore, rows


class Process:
    """A refresher and the table it has swapped in, with the reader in a thread."""

    def __init__(self, store: FakeStore, snapshot: FakeSnapshot | None, path: Path, interval_s: float = 5.0) -> None:
        self.table: AdTable | None = None
        self.now = 1000.0
        self.clock_ahead_s = 0.0
        last_good = LastGood(path)
        labels = {"store": "store", **({"snapshot": "memcached"} if snapshot else {}), "disk": last_good.label}
        client: Any = snapshot.of(str(path)) if snapshot else None
        self.client = client
        self.refresher = Refresher(
            Reader(store, client, last_good, clock_monotonic=lambda: self.now),
            last_good,
            labels=labels,
            use=self.use,
            interval_s=interval_s,
            uniform=lambda: 0.5,
            clock_wall=lambda: self.now + self.clock_ahead_s,
            clock_monotonic=lambda: self.now,
            seals=lambda: (b"of the fakes, which sign nothing",),
        )

    def use(self, table: AdTable) -> Steps[None]:
        yield
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
    monkeypatch.setattr("adcore.sources.reader.LOCK_WAIT_S", 0.0)


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
        store.rows = rows(2, size=20)
        assert await process.look() == 2
        store.rows = rows(3, size=9)
        assert await process.look() == 2
        assert "9 creatives" in str(process.refresher.refused)
        # Another one that is small: it starts over.
        store.rows = rows(4, size=3)
        assert await process.look() == 2
        assert await process.look() == 4
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
        shared.rows = rows(99, generation="before")
        process = Process(FakeStore(), shared, tmp_path / "rows")
        assert await process.look() == 1

    run(main)


def test_a_store_set_up_anew_is_not_taken_for_the_one_before(tmp_path: Path) -> None:
    """Its revisions start again, and may come to the very number that was served."""

    async def main() -> None:
        shared = FakeSnapshot()
        store = FakeStore()
        store.rows = rows(5)
        process = Process(store, shared, tmp_path / "rows")
        await process.look()
        store.rows = rows(5, size=2, generation="second")
        await process.look()
        assert process.table is not None
        assert process.table.creative_count == 2
        assert shared.rows == store.rows

    run(main)


def test_a_snapshot_of_what_the_store_has_become_meanwhile_is_taken(tmp_path: Path) -> None:
    async def main() -> None:
        shared, store = FakeSnapshot(), FakeStore()
        store.rows = rows(2)

        process = Process(store, shared, tmp_path / "rows")
        revision = process.client.revision

        def change() -> sources.Revision | None:
            # Another process was quicker, and has read it already.
            shared.rows = store.rows = rows(3)
            found: sources.Revision | None = revision()
            return found

        process.client.revision = change
        assert await process.look() == 3
        assert store.calls == ["revision", "revision"]
        assert process.loads == {"snapshot": 1}

    run(main)


@pytest.mark.parametrize("number", [1, 10**9])
def test_the_store_always_wins_when_it_answers(tmp_path: Path, number: int) -> None:
    """One that was set back, or a snapshot that was made up by who has the secret: the number decides nothing."""

    async def main() -> None:
        shared, store = FakeSnapshot(), FakeStore()
        process = Process(store, shared, tmp_path / "rows")
        shared.rows, store.rows = rows(number, size=1, confirmed=number), rows(2)
        assert await process.look() == 2
        assert shared.rows == store.rows
        # And by what was served before, too: while the store was away this was the newest there was.
        store.away, shared.rows = True, rows(10**9 + 1, confirmed=10**9 + 1)
        assert await process.look() == 10**9 + 1
        store.away, store.rows = False, rows(3)
        assert await process.look() == 3
        assert process.table is not None
        assert process.table.creative_count == 10

    run(main)


@pytest.mark.parametrize("number", [1, 4, 5])
def test_without_the_store_no_older_snapshot_is_taken(tmp_path: Path, number: int) -> None:
    async def main() -> None:
        shared, store = FakeSnapshot(), FakeStore()
        store.rows = rows(5)
        process = Process(store, shared, tmp_path / "rows")
        assert await process.look() == 5
        store.away, shared.rows = True, rows(number, size=1, confirmed=number)
        assert await process.look() == 5
        assert process.table is not None
        assert process.table.creative_count == 10

    run(main)


def test_a_snapshot_that_is_nobodys_word_is_named(tmp_path: Path) -> None:
    async def main() -> None:
        shared = FakeSnapshot()
        process = Process(FakeStore(), shared, tmp_path / "rows")
        process.client.problem = "memcached: signed with another secret"
        assert await process.look() == 1
        health = process.refresher.healths["snapshot"]
        assert (health.ok, health.last_error) == (False, "memcached: signed with another secret")
        assert shared.published == 1

    run(main)


def test_a_failed_load_gives_the_lock_back(tmp_path: Path) -> None:
    async def main() -> None:
        shared, store = FakeSnapshot(), FakeStore()
        process = Process(store, shared, tmp_path / "rows")
        store.failing = "load"
        assert await process.look() is None
        assert shared.holder is None
        store.failing = ""
        assert await process.look() == 1
        assert shared.published == 1

    run(main)


def test_the_table_of_a_start_from_disk_has_its_true_age(tmp_path: Path) -> None:
    async def main() -> None:
        store = FakeStore()
        await Process(store, None, tmp_path / "rows").refresher.start()
        os.utime(tmp_path / "rows", (400.0, 400.0))
        store.away = True
        process = Process(store, None, tmp_path / "rows")
        assert await process.refresher.start()
        assert process.refresher.status()["age_s"] == 600.0

    run(main)


def test_the_age_grows_only_while_the_store_is_away(tmp_path: Path) -> None:
    async def main() -> None:
        store = FakeStore()
        process = Process(store, None, tmp_path / "rows")
        ages = []
        for away in (False, False, True, True, False):
            store.away = away
            process.now += 10
            await process.look()
            ages.append(process.refresher.status()["age_s"])
        assert ages == [0, 0, 10, 20, 0]
        assert process.refresher.healths["store"].ok

    run(main)


@pytest.mark.parametrize("step_s", [-3600.0, 3600.0])
def test_a_clock_that_steps_makes_no_table_older_or_younger(tmp_path: Path, step_s: float) -> None:
    async def main() -> None:
        store = FakeStore()
        process = Process(store, None, tmp_path / "a")
        await process.look()
        store.away = True
        process.now += 7
        process.clock_ahead_s = step_s
        await process.look()
        assert process.refresher.status()["age_s"] == 7

    run(main)


def test_an_answer_is_as_old_as_its_question(tmp_path: Path) -> None:
    async def main() -> None:
        store = FakeStore()
        process = Process(store, None, tmp_path / "a")

        def take_time() -> None:
            process.now += 8

        store.on_revision = take_time
        for _ in range(2):
            await process.look()
            assert process.refresher.status()["age_s"] == 8

    run(main)


def test_a_store_that_lost_most_of_its_creatives_is_doubted_at_the_start_too(tmp_path: Path) -> None:
    async def main() -> None:
        store = FakeStore()
        await Process(store, None, tmp_path / "rows").refresher.start()
        store.rows = rows(2, size=1)
        process = Process(store, None, tmp_path / "rows")
        assert await process.refresher.start()
        assert process.table is not None
        assert process.table.revision == 1
        assert "1 creatives" in str(process.refresher.refused)
        assert await process.look() == 2
        # Another store is another matter.
        store.rows = rows(1, size=0, generation="second")
        other = Process(store, None, tmp_path / "rows")
        assert await other.refresher.start()
        assert other.table is not None
        assert other.table.creative_count == 0

    run(main)


def test_a_disk_that_keeps_nothing_stops_no_table(tmp_path: Path) -> None:
    async def main() -> None:
        (tmp_path / "file").touch()
        store = FakeStore()
        process = Process(store, None, tmp_path / "file" / "rows")
        assert await process.refresher.start()
        store.rows = rows(2)
        assert await process.look() == 2
        assert process.refresher.healths["disk"].ok is False

    run(main)


def test_a_hup_during_a_refresh_is_not_lost(tmp_path: Path) -> None:
    async def main() -> None:
        store = FakeStore()
        process = Process(store, None, tmp_path / "rows")
        await process.look()
        store.calls.clear()
        store.on_revision = process.refresher.request
        await process.look()
        store.on_revision = lambda: None
        await process.look()
        assert store.calls == ["revision", "revision", "load"]

    run(main)


@pytest.mark.parametrize("uniform", [0.0, 0.5, 0.999])
def test_a_wait_is_never_longer_than_the_interval(
    tmp_path: Path, uniform: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        process = Process(FakeStore(), None, tmp_path / "rows", interval_s=4.0)
        process.refresher._uniform = lambda: uniform
        waits: list[float] = []

        async def wait_for(waiting: Coroutine[Any, Any, object], seconds: float) -> None:
            waiting.close()
            waits.append(seconds)
            raise asyncio.CancelledError if len(waits) == 3 else TimeoutError

        monkeypatch.setattr(asyncio, "wait_for", wait_for)
        with pytest.raises(asyncio.CancelledError):
            await process.refresher.run()
        assert all(4.0 * 0.8 - TICK_S < wait <= 4.0 for wait in waits), waits

    run(main)


def test_a_source_that_stays_away_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")

    async def main() -> None:
        store = FakeStore()
        process = Process(store, None, tmp_path / "rows")
        store.away = True
        for _ in range(3):
            await process.look()
        store.away = False
        await process.look()
        process.refresher.close()
        async with asyncio.timeout(20):
            while not store.closed:
                await asyncio.sleep(0.001)

    run(main)
    assert [record.message for record in caplog.records] == ["store: away", "store answers again"]


def test_a_surprise_does_not_stop_the_timer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        store = FakeStore()
        failures = [RuntimeError("a bug")]

        def load() -> sources.Rows:
            if failures:
                raise failures.pop()
            return rows(1)

        store.load = load  # type: ignore[method-assign]
        process = Process(store, None, tmp_path / "rows")
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
