"""Counted exactly once, whatever happens: against an independent count of the same records, in both stores."""

import gzip
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest

from adcore.core.calendar import Calendar
from adcore.core.inventory import parse_inventory
from adcore.deliverylog.record import FORMS, Answer, AnyRecord
from adcore.sources import learning, open_store, results
from adcore.sources.mysql import MysqlStore
from adcore.sources.sqlite import SqliteStore
from adtools import collect as collect_module
from adtools import tail as tail_module
from adtools.aggregate import COUNTED, Aggregator
from adtools.collect import Collector, StorePositions
from tests.inventories import campaign, document
from tests.process import PATIENCE_S, adctl, environment, wait_for
from tests.services import MariaDB
from tests.services import mariadb as mariadb_service
from tests.tools.traffic import START, Count, asked_again, count, traffic


@pytest.fixture(params=["sqlite", "mariadb"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A migrated store."""
    if request.param == "sqlite":
        made = f"sqlite:///{tmp_path}/ads.db"
    else:
        made = request.getfixturevalue("mariadb").create("collected")
    with closing(open_store(made)) as store:
        store.migrate()
    return made


def write(path: Path, records: Sequence[AnyRecord], form: str = "msgpack") -> None:
    with path.open("ab") as file:
        file.write(b"".join(map(FORMS[form].encode, records)))


def collect(url: str, *paths: Path, zone: str = "UTC", window_s: float = 3600.0) -> Collector:
    """Count what is there, in this process."""
    with closing(open_store(url)) as store:
        said: list[str] = []
        collector = Collector(paths, store, Calendar(ZoneInfo(zone)), window_s, said.append, lambda seconds: False)
        with closing(collector):
            collector.run_once()
    return collector


def stored(url: str) -> Count:
    """The tables in the form of `count`."""
    tables = {
        "results": (results.RESULT_KEYS, results.RESULT_NUMBERS),
        "unfilled": (results.UNFILLED_KEYS, results.UNFILLED_NUMBERS),
        "delivered": (("campaign", "day"), ("impressions", "clicks")),
    }
    with closing(open_store(url)) as store:
        return {
            table: {
                (*(row[key] for key in keys), number): row[number]
                for row in rows(store, table)
                for number in numbers
                if row[number]
            }
            for table, (keys, numbers) in tables.items()
        }


def rows(store: Any, table: str) -> list[Any]:
    found: list[Any] = store.run(lambda db: db.query(f"SELECT * FROM {table}"))
    return found


@pytest.mark.parametrize("form", sorted(FORMS))
def test_a_log_is_counted_over_rotations_and_workers(url: str, tmp_path: Path, form: str) -> None:
    logs = [traffic(1500, seed, host=f"h{seed}") for seed in range(4)]
    write(tmp_path / "delivery.log.2", logs[0], form)
    (tmp_path / "delivery.log.2.gz").write_bytes(gzip.compress((tmp_path / "delivery.log.2").read_bytes()))
    (tmp_path / "delivery.log.2").unlink()
    write(tmp_path / "delivery.log.1", logs[1], form)
    write(tmp_path / "delivery.log", logs[2], form)
    write(tmp_path / "worker-2.log", logs[3], form)
    collector = collect(url, tmp_path / "delivery.log", tmp_path / "worker-2.log")
    assert stored(url) == count(logs)
    assert collector.records == 6000
    assert collector.damaged == 0
    assert 0 < collector.repeated == 6000 - sum(sum(stored(url)[table].values()) for table in ("results", "unfilled"))


def test_what_comes_later_is_added(url: str, tmp_path: Path) -> None:
    records = traffic(1000, 1)
    log = tmp_path / "delivery.log"
    for start in range(0, 1000, 250):
        write(log, records[start : start + 250])
        assert collect(url, log).records == 250
    assert stored(url) == count([records])


@pytest.mark.parametrize("zone", ["Asia/Tokyo", "Asia/Kolkata", "America/New_York", "Australia/Lord_Howe"])
def test_hours_and_days_are_those_of_the_site(tmp_path: Path, zone: str) -> None:
    url = f"sqlite:///{tmp_path}/ads.db"
    with closing(open_store(url)) as store:
        store.migrate()
    records = traffic(500, 2, span_s=86_400.0)
    write(tmp_path / "delivery.log", records)
    collect(url, tmp_path / "delivery.log", zone=zone, window_s=0)
    assert stored(url) == count([records], zone, window_s=0)


# Once, whatever happens


def test_a_file_counts_once_under_whatever_name(url: str, tmp_path: Path) -> None:
    records = traffic(1000, 3)
    log = tmp_path / "delivery.log"
    write(log, records)
    collect(url, log)
    collect(url, log)
    shutil.copy(log, tmp_path / "copy.log")
    log.rename(tmp_path / "delivery.log.1")
    packed = tmp_path / "backup-3.gz"
    packed.write_bytes(gzip.compress((tmp_path / "delivery.log.1").read_bytes()))
    for path in (log, tmp_path / "delivery.log.1", tmp_path / "copy.log", packed):
        assert collect(url, path).records == 0
    collect(url, *[tmp_path / "copy.log", packed, log, tmp_path / "delivery.log.1"])
    assert stored(url) == count([records])


def test_a_new_file_in_an_old_inode_is_counted(url: str, tmp_path: Path) -> None:
    first, second = traffic(500, 4), traffic(700, 5)
    log = tmp_path / "delivery.log"
    write(log, first)
    collect(url, log)
    inode = log.stat().st_ino
    with log.open("r+b") as file:
        file.truncate()
    write(log, second)
    assert log.stat().st_ino == inode
    collect(url, log)
    assert stored(url) == count([first, second])


def test_files_named_twice_count_once(url: str, tmp_path: Path) -> None:
    """As a shell expands delivery.log*."""
    logs = [traffic(300, 6), traffic(300, 7)]
    write(tmp_path / "delivery.log.1", logs[0])
    write(tmp_path / "delivery.log", logs[1])
    collect(url, tmp_path / "delivery.log", tmp_path / "delivery.log.1", tmp_path / "delivery.log")
    assert stored(url) == count(logs)


class Killed(Exception):
    """What a child would say if it outlived its SIGKILL."""


def collect_and_be_killed(url: str, log: Path, at: int, before: bool) -> bool:
    """Count in a child that kills itself at its `at`-th statement, before or after it; whether it lived to the end."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    status = 1
    try:
        left = at

        def hooked(method: Any) -> Any:
            def call(self: Any, *args: Any) -> Any:
                nonlocal left
                left -= 1
                if not left and before:
                    os.kill(os.getpid(), signal.SIGKILL)
                result = method(self, *args)
                if not left:
                    os.kill(os.getpid(), signal.SIGKILL)
                return result

            return call

        for owner in (SqliteStore, MysqlStore):
            for name in ("query", "execute", "execute_many"):
                setattr(owner, name, hooked(getattr(owner, name)))
        # Where the transaction is committed and this process does not know it yet.
        StorePositions.note_stored = hooked(StorePositions.note_stored)  # type: ignore[method-assign]
        collect(url, log)
        status = 0
    finally:
        os._exit(status)


@pytest.mark.parametrize("seed", range(3))
def test_killed_between_any_two_statements_nothing_is_lost_or_counted_twice(
    url: str, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tail_module, "READ_BYTES", 20_000)
    monkeypatch.setattr(collect_module, "BYTES_MAX", 30_000)
    rng = random.Random(seed)
    records = traffic(600, seed)
    log = tmp_path / "delivery.log"
    write(log, records, rng.choice(sorted(FORMS)))
    kills = 0
    while not collect_and_be_killed(url, log, at=rng.randrange(1, 25), before=rng.random() < 0.5):
        kills += 1
        assert kills < 500
    assert stored(url) == count([records]), f"seed {seed}, {kills} kills"
    assert kills > 3


@contextmanager
def following(url: str, *args: str | Path) -> Iterator["subprocess.Popen[str]"]:
    child = subprocess.Popen(
        [sys.executable, "-m", "adtools", "collect", "--follow", "--source", url, *map(str, args)],
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    try:
        yield child
    finally:
        child.kill()
        child.wait(PATIENCE_S)
        assert child.stderr is not None
        child.stderr.close()


def records_in(url: str) -> int:
    tables = stored(url)
    return sum(sum(tables[table].values()) for table in ("results", "unfilled"))


def test_a_follower_killed_again_and_again_counts_everything_once(url: str, tmp_path: Path) -> None:
    records = traffic(4000, 8)
    log = tmp_path / "delivery.log"
    log.touch()
    written = 0
    for turn in range(4):
        with following(url, log) as child:
            write(log, records[written : written + 500])
            written += 500
            counted = records_in(url)
            wait_for(lambda before=counted: records_in(url) > before)
            write(log, records[written : written + 500])
            written += 500
            child.kill()
        if turn % 2:
            log.rename(tmp_path / f"delivery.log.{9 - turn}")
    assert adctl("collect", "--source", url, str(log)).returncode == 0
    assert stored(url) == count([records])


def test_several_at_once_count_everything_once(url: str, tmp_path: Path) -> None:
    logs = [traffic(20_000, 10, host="a"), traffic(20_000, 11, host="b")]
    paths = [tmp_path / "a.log", tmp_path / "b.log"]
    for path, records in zip(paths, logs, strict=True):
        write(path, records)
    command = [sys.executable, "-m", "adtools", "collect", "--source", url]
    children = [
        subprocess.Popen([*command, *map(str, order)], stderr=subprocess.PIPE, env=environment())
        for order in (paths, paths, [*reversed(paths)])
    ]
    for child in children:
        _, said = child.communicate(timeout=60)
        assert child.returncode == 0, said.decode()
    assert stored(url) == count(logs)


# Views and clicks


def test_a_click_counts_once_whichever_host_and_process_tells_of_it(url: str, tmp_path: Path) -> None:
    records = traffic(1000, 12)
    for host in ("a", "b", "c"):
        events = [record for record in records if hasattr(record, "campaign") and not hasattr(record, "chance")]
        write(tmp_path / f"{host}.log", [*events[ord(host) - 97 :], *events[: ord(host) - 97]])
    for host in ("a", "b", "c"):
        collect(url, tmp_path / f"{host}.log")
    total = sum(stored(url)["results"].values())
    assert total == len({(type(event), event.id, event.ivt) for event in events})


def test_an_answer_that_a_proxy_asked_for_twice_counts_once(url: str, tmp_path: Path) -> None:
    """Its records have the same id and different times, in the same file or another worker's."""
    records = traffic(300, 7)
    again = asked_again(records[:40], 0.5)
    write(tmp_path / "a.log", [*records[:40], *again, *records[40:]])
    write(tmp_path / "b.log", again, "json")
    collect(url, tmp_path / "a.log", tmp_path / "b.log")
    assert stored(url) == count([records])


def test_the_answers_remembered_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adtools.aggregate.ANSWERS_REMEMBERED", 100)
    aggregator = Aggregator(Calendar(ZoneInfo("UTC")))
    payloads = [msgspec.msgpack.encode(one) for one in traffic(2000, 8) if isinstance(one, Answer)]
    for at in range(0, len(payloads), 50):
        aggregator.add(COUNTED.payloads(payloads[at : at + 50]))
        assert len(aggregator._answered) + len(aggregator._answered_before) <= 2 * (100 + 50)
    aggregator.add(COUNTED.payloads(payloads[-50:]))
    results_counted = sum(map(sum, aggregator.tally.results.values()))
    assert results_counted + sum(map(sum, aggregator.tally.unfilled.values())) == len(payloads)


def test_a_click_after_its_window_counts_again_and_without_a_window_each_does(url: str, tmp_path: Path) -> None:
    (click,) = [record for record in traffic(200, 13) if type(record).__name__ == "Click" and not record.ivt][:1]
    fields = {name: getattr(click, name) for name in click.__struct_fields__}
    times = [0, 10, 3599, 3600, 3700, 7300]
    clicks = [type(click)(**{**fields, "time": START + time}) for time in times]
    write(tmp_path / "a.log", clicks[:3])
    write(tmp_path / "b.log", clicks[3:])
    collect(url, tmp_path / "a.log")
    collect(url, tmp_path / "b.log")
    assert sum(stored(url)["results"].values()) == 3
    write(tmp_path / "c.log", [type(click)(**{**fields, "host": "c", "time": START + time}) for time in times])
    collect(url, tmp_path / "c.log", window_s=0)
    assert sum(stored(url)["results"].values()) == 3 + 6


def test_events_are_forgotten_after_their_window(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "PRUNE_MIN", 10)
    calendar = Calendar(ZoneInfo("UTC"))
    row = (0, "top", "spring", "spring-1", "mobile", "JP")

    def add(first: int, count: int, now: float) -> None:
        tally = results.Tally()
        tally.events = [results.Event(-number, now, row, results.VIEWS) for number in range(first, first + count)]
        store.run(lambda db: results.add_tally(db, tally, [], calendar=calendar, window_s=60, now=now))

    with closing(open_store(url)) as store:
        add(0, 100, now=1000)
        add(100, 1, now=1059)
        assert len(rows(store, "collected_events")) == 101
        add(200, 20, now=1100)
        assert len(rows(store, "collected_events")) == 81, "twice as many as came"
        for _ in range(10):
            add(0, 0, now=1100)
        assert {row["event"] for row in rows(store, "collected_events")} == {*range(-219, -199), -100}
    assert sum(stored(url)["results"].values()) == 121


# What goes wrong


def test_damage_is_named_and_all_else_is_counted(url: str, tmp_path: Path) -> None:
    records = traffic(100, 14)
    log = tmp_path / "delivery.log"
    write(log, records[:50])
    with log.open("ab") as file:
        file.write(FORMS["msgpack"].encode(records[0])[:60])
    write(log, records[50:])
    ran = adctl("collect", "--source", url, str(log))
    assert ran.returncode == 1
    assert f"{log}: 60 bytes at" in ran.stderr
    assert "100 records counted" in ran.stderr
    assert stored(url) == count([records])
    assert adctl("collect", "--source", url, str(log)).returncode == 0, "it is told once"


def test_a_record_too_wide_for_the_tables_is_damage(url: str, tmp_path: Path) -> None:
    records = traffic(100, 15)
    fields = {name: getattr(records[0], name) for name in records[0].__struct_fields__}
    wide = type(records[0])(**{**fields, "country": "Atlantis!"})
    write(tmp_path / "delivery.log", [*records[:50], wide, *records[50:]], "json")
    ran = adctl("collect", "--source", url, str(tmp_path / "delivery.log"))
    assert ran.returncode == 1
    assert "length <= 8 - at `$.country`" in ran.stderr
    assert stored(url) == count([records])


def test_a_log_or_store_that_is_not_there_is_named(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/ads.db"
    write(tmp_path / "delivery.log", traffic(10, 16))
    ran = adctl("collect", "--source", url, str(tmp_path / "delivery.log"))
    assert (ran.returncode, "adctl apply makes a new store" in ran.stderr) == (1, True), ran.stderr
    with closing(open_store(url)) as store:
        store.migrate()
    ran = adctl("collect", "--source", url, str(tmp_path / "other.log"))
    assert (ran.returncode, "there is no file" in ran.stderr) == (2, True), ran.stderr
    ran = adctl("collect", "--source", url, "--time-zone", "Mars/Base", str(tmp_path / "delivery.log"))
    assert (ran.returncode, "--time-zone" in ran.stderr) == (2, True), ran.stderr


def test_mysql_without_its_tables_is_told_to_migrate(mariadb: MariaDB, tmp_path: Path) -> None:
    write(tmp_path / "delivery.log", traffic(10, 16))
    ran = adctl("collect", "--source", mariadb.create("unmigrated"), str(tmp_path / "delivery.log"))
    assert ran.returncode == 1
    assert "run adctl migrate" in ran.stderr


def follow_for(rounds: int, url: str, log: Path) -> tuple[str, list[str]]:
    """What the traffic of "top" is known to be after so many looks at the log, and what was said."""
    said: list[str] = []
    waits = iter([False] * (rounds - 1))

    def wait(seconds: float) -> bool:
        # Without a pause nobody is asked whether to go on: there is more, or a transaction is being filled.
        return bool(seconds) and next(waits, True)

    with closing(open_store(url)) as store:
        collector = Collector([log], store, Calendar(ZoneInfo("UTC")), 3600.0, said.append, wait)
        try:
            collector.follow()
        finally:
            collector.close()
        known = store.run(lambda db: db.query("SELECT requests FROM placement_traffic WHERE placement = 'top'"))
    return "".join(row["requests"] for row in known), said


def test_a_follower_learns_from_what_it_has_counted_once_an_hour(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(open_store(url)) as store:
        store.apply(lambda there: parse_inventory(document(campaign("spring"))))
    log = tmp_path / "delivery.log"
    write(log, traffic(3000, 18, span_s=3 * 86_400.0))
    learned = []

    def learn(db: Any, now: float, calendar: Calendar) -> object:
        learned.append(now)
        return learning.learn(db, START + 4 * 86_400.0, calendar)  # the day after the traffic, instead of today

    monkeypatch.setattr(collect_module, "learn", learn)
    hours, said = follow_for(3, url, log)
    assert len(json.loads(hours)) == 168
    assert (len(learned), said) == (1, [])
    monkeypatch.setattr(collect_module, "LEARN_EVERY_S", 0.0)
    follow_for(3, url, log)
    assert len(learned) == 4


def test_a_follower_that_cannot_learn_says_so_and_counts_on(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = traffic(1000, 19)
    log = tmp_path / "delivery.log"
    write(log, records[:500])

    def fail(*args: object) -> None:
        write(log, records[500:])  # what comes meanwhile
        raise ValueError("no such hour")

    monkeypatch.setattr(collect_module, "learn", fail)
    _, said = follow_for(2, url, log)
    assert said == ["cannot learn from the results, it is tried again in an hour: no such hour"]
    assert stored(url) == count([records])


def test_a_follower_waits_for_a_store_that_is_away_and_ends_on_term(tmp_path: Path) -> None:
    records = traffic(1000, 17)
    log = tmp_path / "delivery.log"
    with mariadb_service(tmp_path / "mariadb") as service:
        url = service.create("away")
        with closing(open_store(url)) as store:
            store.migrate()
        with following(url, log) as child:
            assert child.stderr is not None
            write(log, records[:500])
            wait_for(lambda: stored(url) == count([records[:500]]))
            child.send_signal(signal.SIGUSR1)  # logrotate sends it to all of adcore
            assert service.process is not None
            service.process.terminate()
            write(log, records[500:])
            assert "the log keeps what is not counted" in child.stderr.readline()
            service.process.wait(PATIENCE_S)
            service.start()
            wait_for(lambda: stored(url) == count([records]))
            child.send_signal(signal.SIGTERM)
            assert child.wait(PATIENCE_S) == 0
            assert "answers again" in child.stderr.readline()
            assert "1000 records counted" in child.stderr.readline()
