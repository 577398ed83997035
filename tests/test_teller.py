"""Exchanging counts beside the loop: what it costs the loop, what is kept whatever happens, and what operators see."""

import asyncio
import json
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
from pymemcache import Client

from adcore.bank import Places, TallyProcess
from adcore.core.adtable import build_table, finish
from adcore.core.calendar import Calendar
from adcore.counterfile import CounterFile, Kept
from adcore.counters import STEP_CAMPAIGNS, Counters
from adcore.counts import CounterState
from adcore.published import Published
from adcore.sources import Note
from adcore.sources.child import ChildError
from adcore.sources.memcached import Memcached
from adcore.sources.seal import Seals
from adcore.tally import MEMBER, Answer, Ask, Tally
from adcore.teller import Bank, Teller, wanted_of
from tests import services
from tests.inventories import campaign, document
from tests.process import Adcore, adctl, ask, environment, serving, wait_for

BROWSER = "Mozilla/5.0 (X11; Linux x86_64)"
CAMPAIGNS = 5000
DAY = date(2026, 11, 25).toordinal()
KEYS = (b"secret" * 5,)
NOON = datetime(2026, 11, 25, 12, tzinfo=UTC).timestamp()


class FakeBank:
    """Answers what it is given, or as `what` does."""

    def __init__(self, others: Sequence[CounterState] = (), error: Exception | None = None) -> None:
        self.others = list(others)
        self.error = error
        self.asked: list[tuple[Ask, list[CounterState]]] = []
        self.hanging: threading.Event | None = None
        self.store_error: str | None = "the store is away"

    def exchange(self, ask: Ask, own: Sequence[CounterState]) -> tuple[Answer, list[CounterState]]:
        self.asked.append((ask, list(own)))
        if self.hanging is not None:
            self.hanging.wait()
        if self.error is not None:
            raise self.error
        return Answer((Note("memcached", None), Note("store", self.store_error))), self.others

    def close(self) -> None:
        if self.hanging is not None:
            self.error = ChildError("killed")
            self.hanging.set()


def counters_with(campaigns: int) -> Counters:
    counters = Counters(Calendar(UTC))
    limits = {"goal": {"impressions": 10**6}, "daily_cap": {"impressions": 10**4}}
    limited = [campaign(f"c{number}", **limits) for number in range(campaigns)]
    counters.use(build_table(document(*limited), revision=1), counters.calendar.moment(NOON))
    return counters


def teller(bank: Bank, counters: Counters, file: CounterFile, work: Callable[[], object] = object) -> Teller:
    labels = {"files": "files", "store": "store", "memcached": "memcached"}
    return Teller(
        *(bank, file, counters),
        generation=lambda: "g",
        interval_s=1.0,
        labels=labels,
        uniform=lambda: 0.0,
        work=work,
        clock_wall=lambda: NOON,
    )


@pytest.fixture
def file(tmp_path: Path) -> Iterator[CounterFile]:
    file = CounterFile(tmp_path / "counts.json")
    file.lock()
    yield file
    file.close()


def deliver(counters: Counters, campaign_id: str, number: int = 1) -> None:
    for _ in range(number):
        counters.count_impression(counters.of(campaign_id), DAY, NOON)


def test_5000_campaigns_are_taken_in_small_steps(file: CounterFile) -> None:
    counters = counters_with(CAMPAIGNS)
    for number in range(CAMPAIGNS):
        deliver(counters, f"c{number}")
    one = teller(FakeBank(), counters, file)
    others: list[CounterState] = [
        {f"c{number}": (20_000, 0, DAY, 20_000, 0) for number in range(start, start + 250)}
        for start in range(0, CAMPAIGNS, 250)
    ]
    turn = counters.turn_in_steps(lambda: NOON)
    for steps in (counters.untold(), wanted_of(counters.limited), one._take_in(others), turn):
        # The loop looks at the clock between two steps; a step is what it cannot take back.
        assert 1 + sum(1 for _ in steps) >= CAMPAIGNS / STEP_CAMPAIGNS
    assert len(counters.held) == CAMPAIGNS


def test_a_round_of_counts(file: CounterFile) -> None:
    counters = counters_with(2)
    deliver(counters, "c0", 2)
    bank = FakeBank([{"c1": (10_000, 0, DAY, 10_000, 0)}])

    async def rounds() -> None:
        one = teller(bank, counters, file)
        assert await one.exchange()
        deliver(counters, "c1")
        assert await one.exchange()
        assert await one.exchange()
        status = one.status()
        assert (status["exchanges"], status["errors"], status["last"]) == (3, 3, None)

    asyncio.run(rounds())
    assert bank.asked == [
        (Ask(DAY, "g", {"c0": False, "c1": False}), [{"c0": (2, 0, DAY, 2, 0)}]),
        (Ask(DAY, "g", None), [{"c1": (1, 0, DAY, 1, 0)}]),
        (Ask(DAY, "g", None), []),
    ]
    assert counters.of("c1").impressions == 10_001
    assert set(counters.held) == {"c1"}


def test_a_process_that_counts_nothing_exchanges_seldom(file: CounterFile, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        bank, answers, turns = FakeBank(), [0], [0]
        bank.store_error = None
        telling = teller(bank, counters_with(1), file, lambda: answers[0])

        async def sleep(seconds: float) -> None:
            turns[0] += 1
            if turns[0] in (16, 17):
                answers[0] += 1
            if turns[0] == 20:
                raise asyncio.CancelledError
            asked.append(len(bank.asked))

        asked: list[int] = []
        monkeypatch.setattr("adcore.teller.asyncio.sleep", sleep)
        with pytest.raises(asyncio.CancelledError):
            await telling.run()
        # The first, one in six while nothing is counted, and one at the next turn once something is.
        assert asked == [0, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 3, 3, 3, 4, 5, 5]

    asyncio.run(main())


@pytest.mark.parametrize("interval_s", [1.0, 300.0])
@pytest.mark.parametrize("fails", [False, True])
def test_an_idle_process_exchanges_after_an_error_and_often_enough_to_be_watched(
    file: CounterFile, monkeypatch: pytest.MonkeyPatch, interval_s: float, fails: bool
) -> None:
    async def main() -> None:
        bank, turns = FakeBank(), [0]
        bank.store_error = "the store is away" if fails else None
        telling = teller(bank, counters_with(1), file, lambda: 0)
        telling.interval_s = interval_s

        async def sleep(seconds: float) -> None:
            turns[0] += 1
            if turns[0] == 6:
                raise asyncio.CancelledError

        monkeypatch.setattr("adcore.teller.asyncio.sleep", sleep)
        with pytest.raises(asyncio.CancelledError):
            await telling.run()
        assert len(bank.asked) == (5 if fails or interval_s == 300.0 else 1)

    asyncio.run(main())


def test_after_an_error_all_is_told_again(file: CounterFile) -> None:
    counters = counters_with(1)
    deliver(counters, "c0")
    bank = FakeBank(error=ChildError("it ended"))

    async def rounds() -> None:
        one = teller(bank, counters, file)
        assert not await one.exchange()
        bank.error = None
        assert await one.exchange()

    asyncio.run(rounds())
    assert bank.asked[0] == bank.asked[1]


@pytest.mark.parametrize("what", ["hangs", "fails", "was never asked"])
def test_the_last_counts_are_kept_whatever_the_bank_does(
    what: str, file: CounterFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adcore.teller.LAST_EXCHANGE_S", 0.05)
    kept = Kept({"old": (7, 0, DAY, 7, 0)}, {"c0:i": (5, 1, 0)}, {"c0": (3, 0, DAY, 3, 0)})
    file.save(kept)
    counters = counters_with(1)
    deliver(counters, "c0", 4)
    bank = FakeBank()

    async def end() -> None:
        one = teller(bank, counters, file)
        if what != "was never asked":
            assert await one.exchange()
        if what == "hangs":
            bank.hanging = threading.Event()
        bank.error = ChildError("it ended")
        await one.close()

    asyncio.run(end())
    assert len(bank.asked) == (0 if what == "was never asked" else 2)
    kept.counts["c0"] = (4, 0, DAY, 4, 0)
    assert file.load() == kept


def test_a_disk_that_hangs_does_not_hold_up_the_end(
    file: CounterFile, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("adcore.teller.LAST_SAVE_S", 0.05)
    disk = threading.Event()
    monkeypatch.setattr(file, "save", lambda kept: disk.wait())
    counters = counters_with(1)
    deliver(counters, "c0")
    turns = 0

    async def turn() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    async def end() -> None:
        turning = asyncio.ensure_future(turn())
        await teller(FakeBank(), counters, file).close()
        turning.cancel()

    asyncio.run(end())
    disk.set()
    assert turns > 1
    assert f"the last counts could not be kept in {file.path}" in caplog.text


def test_counts_that_cannot_be_saved_are_an_error_and_are_saved_later(file: CounterFile) -> None:
    counters = counters_with(1)
    deliver(counters, "c0")
    tally = Tally(file)
    file.path.with_suffix(".new").mkdir()
    answer, _ = tally.exchange(Ask(DAY, None, None), finish(counters.untold()))
    assert [(note.source, note.error) for note in answer.notes] == [
        ("files", f"cannot save the delivery counts in {file.path}: Is a directory")
    ]
    file.path.with_suffix(".new").rmdir()
    assert tally.exchange(Ask(DAY, None, None), [])[0].notes == (Note("files", None),)
    assert file.load().counts == {"c0": (1, 0, DAY, 1, 0)}


def test_nothing_is_sent_that_is_not_saved(file: CounterFile) -> None:
    class Cache:
        label = "memcached"

        def __init__(self) -> None:
            self.stored: dict[str, bytes] = {}

        def begin(self, seconds: float, bytes_max: int) -> None:
            pass

        def get_many(self, keys: Sequence[str]) -> dict[str, bytes]:
            return {}

        def set_many(self, values: Mapping[str, bytes], expire_s: int) -> None:
            self.stored.update(values)

        def append(self, key: str, value: bytes, expire_s: int) -> None:
            pass

    cache = Cache()
    tally = Tally(file, cache)
    file.path.with_suffix(".new").mkdir()
    own: list[CounterState] = [{"c": (2, 0, DAY, 2, 0)}]
    answer, _ = tally.exchange(Ask(DAY, "g", {"c": False}, KEYS), own)
    assert [key for key in cache.stored if not key.endswith(":signer")] == []
    assert "cannot save" in str(answer.notes)
    file.path.with_suffix(".new").rmdir()
    tally.exchange(Ask(DAY, "g", None, KEYS), [])
    assert len(cache.stored) == 2
    assert file.load().shared.keys() == {MEMBER}


def published(memcached: services.Service, places: Places) -> CounterState:
    """What is in memcached, of all members together."""
    found: CounterState = {}
    with closing(Memcached(f"unix:{memcached.path}", 1.0)) as cache:
        reading = Published(cache, places.memcached_prefix)
        reading.use(Seals(KEYS), "g", DAY)
        reading.begin()
        reading.read()
        for counts in reading.known.values():
            assert not found.keys() & counts.keys()
            found |= counts
    return found


class TestProcess:
    """A TallyProcess with a real memcached and an SQLite store."""

    @pytest.fixture
    def places(self, tmp_path: Path, memcached: services.Service, file: CounterFile) -> Places:
        url = f"sqlite://{tmp_path}/ads.db"
        assert adctl("migrate", "--source", url).returncode == 0
        return Places(str(file.path), str(file.path), url, f"unix:{memcached.path}", f"{tmp_path.name}:")

    @pytest.fixture
    def bank(self, places: Places, file: CounterFile, monkeypatch: pytest.MonkeyPatch) -> Iterator[TallyProcess]:
        monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
        bank = TallyProcess(places, file.lock_fds)
        yield bank
        bank.close()
        bank._end()

    def test_it_answers_as_a_tally_does(
        self, bank: TallyProcess, file: CounterFile, memcached: services.Service, places: Places
    ) -> None:
        own: list[CounterState] = [{"c": (2, 1, DAY, 2, 1)}]
        answer, others = bank.exchange(Ask(DAY, "g", {"c": True}, KEYS), own)
        assert others == []
        assert set(answer.notes) == {Note("files", None), Note("memcached", None)}
        assert file.load().counts == own[0]
        assert published(memcached, places) == own[0]

    def test_one_that_is_killed_counts_nothing_twice(
        self, bank: TallyProcess, memcached: services.Service, places: Places
    ) -> None:
        wanted = {"c": False}
        bank.exchange(Ask(DAY, "g", wanted, KEYS), [{"c": (2, 0, DAY, 2, 0)}])
        assert bank.pid is not None
        os.kill(bank.pid, signal.SIGKILL)
        with pytest.raises(ChildError, match="the counts process ended by signal 9"):
            bank.exchange(Ask(DAY, "g", wanted, KEYS), [{"c": (3, 0, DAY, 3, 0)}])
        bank.exchange(Ask(DAY, "g", wanted, KEYS), [{"c": (3, 0, DAY, 3, 0)}])
        assert published(memcached, places) == {"c": (3, 0, DAY, 3, 0)}

    def test_it_keeps_the_lock_until_it_is_gone(self, bank: TallyProcess, file: CounterFile) -> None:
        bank.exchange(Ask(DAY, "g", None), [])
        file.close()
        other = CounterFile(file.path)
        other.lock()
        assert other.path != file.path
        other.close()
        bank.close()
        bank._end()
        other = CounterFile(file.path)
        other.lock()
        assert other.path == file.path
        other.close()


class TestServers:
    """Two servers with nothing in common but memcached and the store."""

    @pytest.fixture
    def args(self, tmp_path: Path, memcached: services.Service) -> list[str]:
        url = f"sqlite://{tmp_path}/ads.db"
        capped = campaign("capped", daily_cap={"impressions": 10}, goal={"impressions": 1000})
        apply(url, capped, campaign("filler", priority="house"))
        return [
            *("--source", url, "--refresh", "0.4", "--secret-file", f"{tmp_path}/secret"),
            *("--memcached", f"unix:{memcached.path}", "--memcached-prefix", f"{tmp_path.name}:"),
        ]

    def test_a_cap_holds_across_servers_whatever_memcached_loses(
        self, tmp_path: Path, args: list[str], memcached: services.Service
    ) -> None:
        with serving(tmp_path / "a", *args) as a, serving(tmp_path / "b", *args) as b:
            shown(a, "capped", 4)
            shown(b, "capped", 3)
            for server in (a, b):
                wait_for(lambda server=server: today(server) == 7)
            with closing(Client(f"unix:{memcached.path}", default_noreply=False)) as client:
                client.flush_all()
            shown(a, "capped", 3)
            for server in (a, b):
                wait_for(lambda server=server: is_held(server), lambda: f"{a.status()} {b.status()}")
                assert today(server) == 10
            assert ask_for(b) == "filler"
            # One that starts knows at once; so does one that was killed.
            with serving(tmp_path / "c", *args) as c:
                assert ask_for(c) == "filler"
            b.process.kill()
            b.process.wait()
            with serving(tmp_path / "b", *args) as b:
                assert ask_for(b) == "filler"

    def test_without_memcached_the_rest_goes_on_and_it_is_said(self, tmp_path: Path, args: list[str]) -> None:
        with serving(tmp_path / "a", *args[:-4], "--memcached", f"unix:{tmp_path}/none.sock") as a:
            wait_for(lambda: health(a, "memcached")["ok"] is False)
            assert "No such file" in health(a, "memcached")["last_error"]
            shown(a, "capped", 10)
            wait_for(lambda: is_held(a))
            assert a.status()["counts"]["sharing"]["errors"] > 0
            assert a.stop() == 0
        with serving(tmp_path / "a", *args) as a:
            assert ask_for(a) == "filler"

    def test_the_database_says_what_nobody_else_knows(self, tmp_path: Path, args: list[str]) -> None:
        with sqlite3.connect(tmp_path / "ads.db") as connection:
            today = datetime.now(UTC).date().isoformat()
            connection.execute("INSERT INTO delivered VALUES ('capped', ?, 10, 0)", (today,))
        connection.close()
        with serving(tmp_path / "a", *args) as a:
            wait_for(lambda: is_held(a))
            assert ask_for(a) == "filler"

    def test_a_hanging_memcached_holds_up_nothing(
        self, tmp_path: Path, args: list[str], memcached: services.Service
    ) -> None:
        with serving(tmp_path / "a", *args) as a:
            memcached.signal(signal.SIGSTOP)
            try:
                wait_for(lambda: health(a, "memcached")["ok"] is False)
                began = time.monotonic()
                shown(a, "capped", 1)
                assert time.monotonic() - began < 5
                assert a.stop() == 0
            finally:
                memcached.signal(signal.SIGCONT)
        assert CounterFile(tmp_path / "a" / "counts.json").load().counts["capped"][0] == 1

    def test_operators_see_it(self, tmp_path: Path, args: list[str]) -> None:
        with serving(tmp_path / "a", *args) as a:
            wait_for(lambda: a.status()["counts"]["sharing"]["exchanges"] >= 3)
            sharing = a.status()["counts"]["sharing"]
            assert sharing["age_s"] < 20
            assert sharing["took_s"] > 0
            assert [source["ok"] for source in sharing["sources"] if source["source"].startswith("memcached")] == [True]
            metrics = ask(a.control, "/metrics").body.decode()
            assert 'adcore_counts_source_up{source="memcached unix:' in metrics
            assert "\nadcore_counts_age_seconds " in metrics


def apply(url: str, *campaigns: dict[str, Any]) -> None:
    applied = adctl("apply", "--source", url, "-", stdin=json.dumps(document(*campaigns)))
    assert applied.returncode == 0, applied.stderr


def ask_for(server: Adcore) -> str:
    shown: str = server.ask("/v1/decision?placement=side", User_Agent=BROWSER).json()["campaign"]
    return shown


def shown(server: Adcore, campaign_id: str, number: int) -> None:
    assert [ask_for(server) for _ in range(number)] == [campaign_id] * number


def is_held(server: Adcore) -> bool:
    return "capped" in server.status()["counts"]["held"]


def today(server: Adcore) -> int:
    busiest = ask(server.control, "/status?campaigns=5").json()["campaigns"]
    return sum(each["impressions_today"] for each in busiest if each["campaign"] == "capped")


def health(server: Adcore, name: str) -> dict[str, Any]:
    sources = server.status()["counts"]["sharing"]["sources"]
    found: dict[str, Any] = next(source for source in sources if source["source"].startswith(name))
    return found
