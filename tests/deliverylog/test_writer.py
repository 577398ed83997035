"""The writer against files, and against every fault that a disk can have."""

import asyncio
import contextlib
import errno
import fcntl
import json
import os
import random
import resource
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from io import BytesIO
from pathlib import Path
from threading import Thread
from threading import enumerate as enumerate_threads
from typing import Any

import msgspec
import pytest

from adcore.background import BackgroundThread
from adcore.deliverylog import writer as writer_module
from adcore.deliverylog.queue import RecordQueue
from adcore.deliverylog.reader import Damage, read_records
from adcore.deliverylog.record import FORMS, AnyRecord, Click
from adcore.deliverylog.writer import LogWriter, open_log
from adcore.errors import StartError
from tests.records import click, view

FORMATS = ("json", "msgpack")


def read(*paths: Path) -> list[AnyRecord | Damage]:
    found: list[AnyRecord | Damage] = []
    for path in paths:
        with path.open("rb") as file:
            found += read_records(file)
    return found


def run(main: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner() as runner:
        runner.run(main)


class Running:
    """A writer and its task; the block's end closes it."""

    def __init__(self, path: Path, form: str, bytes_max: int = 1 << 20, **faults: Any) -> None:
        self.queue = RecordQueue(bytes_max, FORMS[form])
        self.writer = LogWriter(self.queue, path, **faults)
        self.close_timeout_s = 20.0

    async def __aenter__(self) -> "Running":
        self.writer.open()
        self.task = asyncio.get_running_loop().create_task(self.writer.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        async def within(written: Awaitable[object]) -> None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(written, self.close_timeout_s)

        await self.writer.close(self.task, within)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                await asyncio.sleep(0.001)

    async def drained(self) -> None:
        await self.until(lambda: self.queue.bytes == 0)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many of these tests wait for thousands of writes."""
    monkeypatch.setattr(writer_module, "GATHER_S", 0.005)


@pytest.mark.parametrize("end", ["enough", "close", "reopen"])
def test_records_wait_for_others_until_there_are_enough_or_there_is_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.setattr(writer_module, "GATHER_S", 3600.0)

    async def main() -> None:
        path = tmp_path / "log"
        async with Running(path, "json") as running:
            for _ in range(3):  # before each write, and not only before the first one
                writes = running.writer.writes
                number = 0
                while running.queue.bytes < writer_module.GATHER_BYTES - 1024:
                    running.queue.put(click(number))
                    number += 1
                    if number % 100 == 0:
                        await asyncio.sleep(0)
                await asyncio.sleep(0.01)
                assert running.writer.writes == writes
                if end == "close":
                    break
                if end == "reopen":
                    running.writer.reopen()
                else:
                    for _ in range(10):
                        running.queue.put(click(number))
                        number += 1
                await running.drained()
                assert running.writer.writes == writes + 1
        assert running.queue.bytes == 0
        assert len(read(path)) >= number

    run(main())


@pytest.mark.parametrize("form", FORMATS)
def test_every_record_is_written_in_order(tmp_path: Path, form: str) -> None:
    path = tmp_path / "log"
    records = [click(n) if n % 3 else view(n) for n in range(5000)]

    async def main() -> None:
        async with Running(path, form, bytes_max=8 << 20) as log:
            for number, one in enumerate(records):
                assert log.queue.put(one)
                if number % 700 == 0:
                    await asyncio.sleep(0)
        assert log.writer.written == Counter(click=3333, view=1667)
        assert log.writer.bytes_written == path.stat().st_size
        assert log.queue.bytes == 0

    run(main())
    assert read(path) == records


@pytest.mark.parametrize("form", FORMATS)
def test_records_that_come_within_the_pause_are_one_write_and_counted_as_one(tmp_path: Path, form: str) -> None:
    calls = 0

    def write(fd: int, data: bytes) -> int:
        nonlocal calls
        calls += 1
        return os.write(fd, data)

    async def main() -> None:
        async with Running(tmp_path / "log", form, write=write) as log:
            for number in range(50):
                assert log.queue.put(click(number))
                await asyncio.sleep(0)
            await log.drained()
            # The first pause of the writer may end at any moment of this, on a machine that stands still for so long.
            assert 1 <= log.writer.writes == calls <= 2
            assert log.writer.statistics()["writes"] == calls

    run(main())


class Faulty:
    """os.write that fails at its n-th call, or writes only some bytes of it."""

    def __init__(self, nth: int, fault: int | str) -> None:
        self.nth = nth
        self.fault = fault
        self.calls = 0

    def __call__(self, fd: int, data: bytes) -> int:
        self.calls += 1
        if self.calls == self.nth:
            if isinstance(self.fault, int):
                raise OSError(self.fault, os.strerror(self.fault))
            return os.write(fd, data[: len(data) // 3])
        return os.write(fd, data)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("fault", [errno.ENOSPC, errno.EIO, "short"])
@pytest.mark.parametrize("nth", range(1, 6))
def test_a_fault_at_the_nth_write_loses_and_doubles_nothing(
    tmp_path: Path, form: str, fault: int | str, nth: int
) -> None:
    path = tmp_path / "log"
    records = [click(n) for n in range(40)]
    write = Faulty(nth, fault)

    async def main() -> None:
        async with Running(path, form, write=write) as log:
            for start in range(0, 40, 8):
                for one in records[start : start + 8]:
                    log.queue.put(one)
                await log.drained()
        assert write.calls > 5
        assert log.writer.write_errors == (0 if fault == "short" else 1)
        assert not log.queue.dropped

    run(main())
    assert read(path) == records


@pytest.mark.parametrize("form", FORMATS)
def test_a_write_may_stop_at_any_byte(tmp_path: Path, form: str) -> None:
    records = [click(n) for n in range(3)]
    size = sum(len(FORMS[form].encode(one)) for one in records)

    async def main(stop: int) -> None:
        first = [stop]

        def write(fd: int, data: bytes) -> int:
            return os.write(fd, data[: first.pop()]) if first else os.write(fd, data)

        async with Running(tmp_path / str(stop), form, write=write) as log:
            for one in records:
                log.queue.put(one)

    for stop in range(1, size):
        run(main(stop))
        assert read(tmp_path / str(stop)) == records


@pytest.mark.parametrize("form", FORMATS)
def test_a_record_torn_at_any_byte_takes_no_shorter_one_behind_it_along(tmp_path: Path, form: str) -> None:
    long: Click = msgspec.structs.replace(click(1), campaign="long" * 16)
    records: list[AnyRecord] = [long, click(2), view(3)]
    theirs = FORMS[form].encode(view(99))

    async def main(stop: int) -> None:
        path = tmp_path / str(stop)
        first = [stop]

        def write(fd: int, data: bytes) -> int:
            if not first:
                return os.write(fd, data)
            written = os.write(fd, data[: first.pop()])
            _append(path, theirs)
            return written

        async with Running(path, form, write=write) as log:
            for one in records:
                log.queue.put(one)
        assert log.writer.written == Counter(click=2, view=1)
        found = [one for one in read(path) if not isinstance(one, Damage)]
        assert sorted(found, key=lambda one: one.time) == [*records, view(99)]

    for stop in range(1, sum(len(FORMS[form].encode(one)) for one in records)):
        run(main(stop))


def test_a_line_that_lacks_only_its_end_is_ended_by_nobody_else(tmp_path: Path) -> None:
    """Its record is written again, and would be there twice."""
    path = tmp_path / "log"
    whole = FORMS["json"].encode(click(1))
    path.write_bytes(whole[:-1])  # a worker was killed in the middle of a write

    async def main() -> None:
        async with Running(path, "json") as log:
            log.queue.put(click(1))

    run(main())
    assert [one for one in read(path) if not isinstance(one, Damage)] == [click(1)]


@pytest.mark.parametrize("form", FORMATS)
def test_what_does_not_fit_is_dropped_and_counted_exactly(tmp_path: Path, form: str) -> None:
    path = tmp_path / "log"
    full = [True]

    def write(fd: int, data: bytes) -> int:
        if full:
            raise OSError(errno.ENOSPC, "full")
        return os.write(fd, data)

    async def main() -> None:
        async with Running(path, form, bytes_max=4096, write=write) as log:
            taken = []
            for n in range(100):
                one = view(n) if n % 4 == 0 else click(n)
                if log.queue.put(one):
                    taken.append(one)
                await asyncio.sleep(0)
            await log.until(lambda: log.writer.write_errors > 0)
            assert log.queue.bytes <= 4096
            full.clear()
        assert read(path) == taken
        kinds = Counter("view" if n % 4 == 0 else "click" for n in range(100))
        assert log.writer.written + log.queue.dropped == kinds
        assert log.queue.accepted == log.writer.written
        statistics = log.writer.statistics()
        assert statistics["dropped"] == dict(log.queue.dropped)
        assert sum(log.queue.dropped.values()) == 100 - len(taken) > 0

    run(main())


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(("shorts", "at"), [(1, 1), (1, 2), *((99, at) for at in range(1, 5))])
def test_whenever_another_worker_appends_to_a_record_cut_short_both_are_written_whole(
    tmp_path: Path, form: str, shorts: int, at: int
) -> None:
    """The other one comes right before the `at`-th write, after all that this worker may have looked at."""
    path = tmp_path / "log"
    theirs = FORMS[form].encode(view(99))
    calls = 0

    def write(fd: int, data: bytes) -> int:
        nonlocal calls
        calls += 1
        if calls == at:
            _append(path, theirs)
        return os.write(fd, data[: len(data) * 3 // 4] if calls <= shorts and len(data) > 40 else data)

    async def main() -> None:
        async with Running(path, form, write=write) as log:
            for number in range(4):
                log.queue.put(click(number))
            await log.drained()

    run(main())
    assert calls >= at
    found = read(path)
    records = [one for one in found if not isinstance(one, Damage)]
    assert sorted(one.time for one in records) == [one.time for one in (*map(click, range(4)), view(99))]
    assert len(found) <= len(records) + 2


@pytest.mark.parametrize("form", FORMATS)
def test_no_other_worker_comes_between_a_look_at_the_file_and_the_write(tmp_path: Path, form: str) -> None:
    """It could bring the rest of its own torn record, and with that by chance the missing bytes of this one."""
    path = tmp_path / "log"
    alone: list[bytes] = []

    def write(fd: int, data: bytes) -> int:
        with path.open("rb") as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        alone.append(data)
        return os.write(fd, data[:-1] if len(alone) < 3 else data)

    async def main() -> None:
        async with Running(path, form, write=write) as log:
            for number in range(4):
                log.queue.put(click(number))
            await log.drained()
            with path.open("rb") as other:
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)

    run(main())
    assert read(path) == [click(number) for number in range(4)]
    assert len(alone) >= 3


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("lock", [None, "reader's", "none"])
def test_the_rests_of_torn_records_of_two_workers_complete_no_other(
    tmp_path: Path, form: str, lock: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Most writes lack their last byte, which all records have in common."""
    path = tmp_path / "log"
    path.touch()
    chance = random.Random(6)
    # A machine may be busy.
    monkeypatch.setattr(writer_module, "LOCK_TRIES", 10_000 if lock is None else 1)

    def write(fd: int, data: bytes) -> int:
        time.sleep(chance.uniform(0, 0.0005))
        return os.write(fd, data[:-1] if chance.random() < 0.7 else data)

    async def main() -> None:
        async with Running(path, form, write=write) as a, Running(path, form, write=write) as b:
            for number in range(0, 500, 2):
                a.queue.put(click(number))
                b.queue.put(click(number + 1))
                await a.drained()
            await b.drained()

    with path.open("rb") as reader:
        if lock == "reader's":
            fcntl.flock(reader, fcntl.LOCK_SH)
        elif lock == "none":
            monkeypatch.setattr(fcntl, "flock", refuse_lock)
        run(main())
    found = [one for one in read(path) if not isinstance(one, Damage)]
    assert sorted(found, key=lambda one: one.time) == [click(number) for number in range(500)]
    if lock is None and form == "json":
        # Also for who reads it line by line, such as fluentd.
        lines = [line for line in path.read_bytes().splitlines() if not line.endswith(b" torn")]
        assert len([json.loads(line) for line in lines]) == 500


def test_large_writes_of_two_workers_to_a_pipe_do_not_get_mixed(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    pieces: list[bytes] = []

    def consume() -> None:
        with path.open("rb", buffering=0) as pipe:
            while piece := pipe.read(4096):
                pieces.append(piece)
                time.sleep(0.0005)

    async def main() -> None:
        async with Running(path, "msgpack") as a, Running(path, "msgpack") as b:
            for number in range(0, 3000, 2):
                a.queue.put(click(number))
                b.queue.put(click(number + 1))
            await a.drained()
            await b.drained()

    # With this the pipe can be opened, and does not end, before all others are there.
    both_ends = os.open(path, os.O_RDWR)
    reader = Thread(target=consume)
    reader.start()
    run(main())
    os.close(both_ends)
    reader.join()
    found = list(read_records(BytesIO(b"".join(pieces))))
    assert not any(isinstance(one, Damage) for one in found)
    assert len(found) == 3000


def test_a_writer_that_has_given_up_writes_nothing_once_it_gets_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    other = open_log(path)
    fcntl.flock(other, fcntl.LOCK_EX)
    thread = "one that gives up"

    async def main() -> None:
        log = Running(path, "msgpack", thread=BackgroundThread(thread))
        log.close_timeout_s = 0.1
        async with log:
            log.queue.put(click(1))
        assert log.queue.dropped == Counter(click=1)
        os.close(other)
        await log.until(lambda: thread not in (one.name for one in enumerate_threads()))

    run(main())
    assert os.read(reader, 1000) == b""
    os.close(reader)


def test_a_log_that_somebody_keeps_locked_is_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "log"

    async def main() -> None:
        async with Running(path, "msgpack") as log:
            with path.open("rb") as reader:
                fcntl.flock(reader, fcntl.LOCK_SH)
                for number in range(3):
                    log.queue.put(click(number))
                    await log.drained()

    with caplog.at_level("WARNING", "adcore.deliverylog"):
        run(main())
    assert read(path) == list(map(click, range(3)))
    assert [record.getMessage() for record in caplog.records] == [
        f"the delivery log {path} cannot be locked now; it is written all the same"
    ]


def refuse_lock(*_: object) -> None:
    """As on NFS without its lock daemon."""
    raise OSError(errno.ENOLCK, "no locks available")


def test_each_outage_is_told_when_it_begins_and_when_it_is_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    full = [True]

    def write(fd: int, data: bytes) -> int:
        if full:
            raise OSError(errno.ENOSPC, "full")
        return os.write(fd, data)

    async def fail_twice(log: Running) -> None:
        full[:] = [True]
        enough = log.writer.write_errors + 2
        log.queue.put(click())
        await log.until(lambda: log.writer.write_errors >= enough)
        full.clear()
        await log.drained()

    async def main() -> None:
        async with Running(tmp_path / "log", "msgpack", write=write) as log:
            await fail_twice(log)
            await fail_twice(log)

    with caplog.at_level("WARNING", "adcore.deliverylog"):
        run(main())
    told = [record.getMessage() for record in caplog.records]
    assert ["it is tried again" in one for one in told] == [True, False, True, False]
    assert ["can be written again" in one for one in told] == [False, True, False, True]


def test_a_torn_record_that_cannot_be_looked_at_is_written_again(tmp_path: Path) -> None:
    """Rather twice than not at all."""
    path = tmp_path / "log"
    whole = FORMS["msgpack"].encode(click(1))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    calls = 0

    def write(fd: int, data: bytes) -> int:
        nonlocal calls
        calls += 1
        if calls > 1:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            return os.write(fd, data)
        written = os.write(fd, data[:-1])
        _append(path, whole[-1:])
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
        return written

    async def main() -> None:
        async with Running(path, "msgpack", write=write) as log:
            log.queue.put(click(1))

    try:
        run(main())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert read(path) == [click(1), click(1)]


def _append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


@pytest.mark.parametrize("form", FORMATS)
def test_every_record_is_in_one_file_across_reopenings(tmp_path: Path, form: str) -> None:
    path = tmp_path / "log"
    records = [click(n) for n in range(2000)]
    files = []

    async def main() -> None:
        async with Running(path, form) as log:
            for number, one in enumerate(records):
                log.queue.put(one)
                if number % 250 == 249:
                    files.append(path.rename(tmp_path / f"log.{number}"))
                    reopens = log.writer.reopens
                    log.writer.reopen()
                    log.writer.reopen()
                    if number % 500 == 249:
                        await log.until(lambda n=reopens: log.writer.reopens > n)  # type: ignore[misc]
                await asyncio.sleep(0)
                if not path.exists():
                    await log.until(path.exists)
        assert log.writer.reopen_failures == 0

    run(main())
    assert read(*files, path) == records


def test_what_waits_at_a_reopening_goes_to_the_old_file(tmp_path: Path) -> None:
    path, old = tmp_path / "log", tmp_path / "old"

    async def main() -> None:
        async with Running(path, "json") as log:
            log.queue.put(click(1))
            path.rename(old)
            log.writer.reopen()
            await log.until(lambda: log.writer.reopens == 1)
            log.queue.put(click(2))

    run(main())
    assert (read(old), read(path)) == ([click(1)], [click(2)])


def test_an_open_that_fails_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "log"
    path.parent.mkdir()
    gone = tmp_path / "gone"

    async def main() -> None:
        async with Running(path, "json") as log:
            path.parent.rename(gone)
            log.writer.reopen()
            await log.until(lambda: log.writer.reopen_failures == 1)
            log.queue.put(click(1))
            await log.drained()
            assert log.writer.last_error == "No such file or directory"

    run(main())
    assert read(gone / "log") == [click(1)]


@pytest.mark.parametrize("form", FORMATS)
def test_a_record_torn_by_a_full_disk_is_whole_in_the_next_file(tmp_path: Path, form: str) -> None:
    path, old = tmp_path / "log", tmp_path / "old"
    state = ["first"]

    def write(fd: int, data: bytes) -> int:
        if state == ["first"]:
            state[0] = "full"
            return os.write(fd, data[: len(data) // 2])
        if state == ["full"]:
            raise OSError(errno.ENOSPC, "full")
        return os.write(fd, data)

    records = [click(n) for n in range(5)]

    async def main() -> None:
        async with Running(path, form, write=write) as log:
            for one in records:
                log.queue.put(one)
            await log.until(lambda: log.writer.write_errors > 0)
            path.rename(old)
            log.writer.reopen()
            await log.until(lambda: log.writer.reopens == 1)
            state[0] = "good"
        assert log.writer.written == Counter(click=5)
        assert log.queue.bytes == 0

    run(main())
    found = read(old, path)
    assert [item for item in found if not isinstance(item, Damage)] == records
    assert [item.reason for item in found if isinstance(item, Damage)] == ["a torn record"]


@pytest.mark.parametrize("form", FORMATS)
def test_what_cannot_be_written_by_the_end_is_counted(tmp_path: Path, form: str) -> None:
    def write(fd: int, data: bytes) -> int:
        raise OSError(errno.EIO, "broken")

    async def main() -> None:
        log = Running(tmp_path / "log", form, write=write)
        log.close_timeout_s = 0.05
        async with log:
            for n in range(7):
                log.queue.put(click(n))
            await log.until(lambda: log.writer.write_errors > 0)
            for n in range(7, 10):
                log.queue.put(click(n))
        assert log.queue.dropped == Counter(click=10)
        assert not log.writer.written
        assert log.queue.bytes == 0

    run(main())


def test_a_hung_disk_does_not_hold_up_the_exit(tmp_path: Path) -> None:
    import threading

    go_on = threading.Event()

    def write(fd: int, data: bytes) -> int:
        go_on.wait(20)
        return os.write(fd, data)

    async def main() -> None:
        log = Running(tmp_path / "log", "json", write=write)
        log.close_timeout_s = 0.05
        async with log:
            log.queue.put(click(1))
            await asyncio.sleep(0)
            log.queue.put(click(2))
        assert log.queue.dropped == Counter(click=2)
        assert log.queue.bytes == 0
        go_on.set()

    run(main())


@pytest.mark.parametrize("form", FORMATS)
def test_a_reopening_on_a_full_disk_stops_nothing_and_loses_nothing(tmp_path: Path, form: str) -> None:
    """A record torn by a full disk, USR1 while it is still full, then room: all in one file."""
    path = tmp_path / "log"
    room = [500]

    def write(fd: int, data: bytes) -> int:
        fits = data[: room[0]]
        if not fits:
            raise OSError(errno.ENOSPC, "full")
        room[0] -= len(fits)
        return os.write(fd, fits)

    async def main() -> None:
        async with Running(path, form, write=write) as log:
            for n in range(5):
                log.queue.put(click(n))
            await log.until(lambda: log.writer.write_errors > 0)
            log.writer.reopen()
            await log.until(lambda: log.writer.reopens == 1)
            room[0] = 1 << 20
            await log.drained()
            assert log.writer.written == Counter(click=5)

    run(main())
    found = read(path)
    assert [item for item in found if not isinstance(item, Damage)] == [click(n) for n in range(5)]
    assert [item.reason for item in found if isinstance(item, Damage)] != []


@pytest.mark.parametrize("first", FORMATS)
@pytest.mark.parametrize("second", FORMATS)
def test_a_torn_record_takes_no_other_with_it_when_the_form_changes(tmp_path: Path, first: str, second: str) -> None:
    path = tmp_path / "log"
    whole = FORMS[first].encode(click(1))

    async def main() -> None:
        async with Running(path, second) as log:
            log.queue.put(click(2))
            log.queue.put(click(3))

    for length in range(1, len(whole), 7):
        path.write_bytes(whole + whole[:length])
        run(main())
        assert [item for item in read(path) if not isinstance(item, Damage)] == [click(1), click(2), click(3)], length


def test_a_record_that_just_fits_is_taken() -> None:
    data = FORMS["json"].encode(click(1))
    assert RecordQueue(len(data), FORMS["json"]).put(click(1))
    assert not RecordQueue(len(data) - 1, FORMS["json"]).put(click(1))


def test_the_log_is_not_for_everybody(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        os.close(open_log(tmp_path / "log"))
    finally:
        os.umask(before)
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o640


def test_a_pipe_that_nobody_reads_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StartError, match="a pipe that nobody reads"):
        asyncio.run(_open(LogWriter(RecordQueue(1000, FORMS["json"]), tmp_path / "pipe")))


def test_every_file_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "log"

    def open_here() -> list[str]:
        links = (os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd"))
        return [link for link in links if link == str(path)]

    async def main() -> None:
        log = Running(path, "json")
        async with log:
            for reopens in range(1, 4):
                log.queue.put(click(1))
                log.writer.reopen()
                await log.until(lambda n=reopens: log.writer.reopens == n)  # type: ignore[misc]
            await log.until(lambda: len(open_here()) == 1)
        await log.until(lambda: not open_here())

    run(main())


@pytest.mark.parametrize("form", FORMATS)
def test_a_log_with_a_torn_tail_is_continued(tmp_path: Path, form: str) -> None:
    path = tmp_path / "log"
    whole = FORMS[form].encode(click(1))

    async def main() -> None:
        async with Running(path, form) as log:
            log.queue.put(click(2))

    # A line that lacks only its end is a whole record, once the writer has ended it.
    for length in range(1, len(whole) - 1):
        path.write_bytes(whole + whole[:length])
        run(main())
        found = read(path)
        assert [item for item in found if not isinstance(item, Damage)] == [click(1), click(2)], length
        assert sum(isinstance(item, Damage) for item in found) == 1


def test_a_log_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    queue = RecordQueue(1000, FORMS["json"])
    with pytest.raises(StartError, match=r"nowhere/log: No such file or directory; create its directory"):
        asyncio.run(_open(LogWriter(queue, tmp_path / "nowhere" / "log")))


async def _open(writer: LogWriter) -> None:
    writer.open()


def test_of_the_impressions_of_a_turn_the_first_ones_that_fit_are_taken() -> None:
    form = FORMS["json"]
    parts = [(b'"a":1,', b"", b"", b"", b"", 0.5, float(n), b"%032x" % n) for n in range(10)]
    sizes = [len(record) for record in form.impressions(parts)]
    queue = RecordQueue(sum(sizes[:7]) + 5, form)
    queue.impressions.extend(parts)
    queue.commit()
    assert (queue.accepted, queue.dropped, len(queue)) == (Counter(impression=7), Counter(impression=3), 7)
    (batch,) = queue.take(1)
    assert batch == ("impression", sizes[:7], b"".join(form.impressions(parts[:7])))
    assert queue.impressions == []
