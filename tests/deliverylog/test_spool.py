"""What a killed process leaves behind is in the log once, wherever the kill came."""

import errno
import fcntl
import os
import tracemalloc
from pathlib import Path

import pytest

from adcore.deliverylog.queue import RecordQueue
from adcore.deliverylog.reader import read_records
from adcore.deliverylog.record import FORMS, AnyRecord
from adcore.deliverylog.spool import HEADER_BYTES, NoSpaceError, Spool, take_over
from adcore.errors import StartError
from tests.records import click, view

FORM = FORMS["msgpack"]


class Process:
    """The part of a server that keeps records, until it is killed."""

    def __init__(self, folder: Path, ring_bytes: int = 1 << 16) -> None:
        self.log_path = folder / "log"
        self.spool = Spool(folder, ring_bytes)
        self.queue = RecordQueue(1 << 20, FORM, self.spool)

    def write(self, bytes_max: int = 1 << 20, *, released: bool = True) -> None:
        """What the writer does with a batch; `released=False` is a kill right after the system call."""
        with self.log_path.open("ab") as log:
            self.spool.note_log(log.fileno())
            data = b"".join(batch.data for batch in self.queue.take(bytes_max))
            log.write(data)
        if released:
            self.queue.release(len(data))

    def kill(self) -> None:
        """Only the file is left, and no lock."""
        fcntl.flock(self.spool._fd, fcntl.LOCK_UN)


def start_next(folder: Path) -> tuple[int, list[AnyRecord]]:
    """The next process takes over and writes: how many records it found, and all that the log has then."""
    process = Process(folder)
    count = take_over(folder, process.log_path, process.queue)
    process.write()
    process.spool.close()
    assert not list(folder.glob("*.spool"))
    with process.log_path.open("rb") as file:
        found = list(read_records(file))
    return count, [one for one in found if not isinstance(one, tuple)]


def test_what_was_not_written_is_taken_over(tmp_path: Path) -> None:
    process = Process(tmp_path)
    for n in range(10):
        process.queue.put(click(n) if n % 2 else view(n))
    process.kill()
    assert start_next(tmp_path) == (10, [click(n) if n % 2 else view(n) for n in range(10)])


@pytest.mark.parametrize("renamed", [False, True])
def test_what_was_written_but_not_yet_released_is_not_doubled(tmp_path: Path, renamed: bool) -> None:
    process = Process(tmp_path)
    process.queue.put(click(1))
    process.write()
    for n in (2, 3):
        process.queue.put(click(n))
    process.write(released=False)
    process.queue.put(click(4))
    process.kill()
    if renamed:
        process.log_path.rename(tmp_path / "log.1")
    count, records = start_next(tmp_path)
    assert count == 1
    assert records == ([click(4)] if renamed else [click(1), click(2), click(3), click(4)])


def test_a_log_that_is_renamed_while_it_is_looked_for_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = Process(tmp_path)
    process.queue.put(click(1))
    process.write(released=False)
    process.kill()
    look = Path.stat

    def rename_first(path: Path, **options: bool) -> os.stat_result:
        if path == process.log_path and os.path.exists(path):
            path.rename(tmp_path / "log.1")
        return look(path, **options)

    following = Process(tmp_path)
    with monkeypatch.context() as patching:
        patching.setattr(Path, "stat", rename_first)
        assert take_over(tmp_path, following.log_path, following.queue) == 0


@pytest.mark.parametrize("length", range(1, 400, 23))
def test_a_write_that_was_cut_short_leaves_every_record_once(tmp_path: Path, length: int) -> None:
    process = Process(tmp_path)
    for n in range(3):
        process.queue.put(click(n))
    with process.log_path.open("ab") as log:
        process.spool.note_log(log.fileno())
        log.write(b"".join(batch.data for batch in process.queue.take(1 << 20))[:length])
    process.kill()
    _, records = start_next(tmp_path)
    assert sorted(records, key=lambda one: one.id) == [click(n) for n in range(3)]


def test_records_go_round_the_ring(tmp_path: Path) -> None:
    process = Process(tmp_path, ring_bytes=1000)
    for n in range(50):
        process.queue.put(click(n))
        process.queue.put(view(n))
        assert process.spool.complete
        if n < 49:
            process.write()
    process.kill()
    count, records = start_next(tmp_path)
    assert count == 2
    assert records[-2:] == [click(49), view(49)]
    assert len(records) == 100


def test_a_full_ring_goes_on_when_all_was_written(tmp_path: Path) -> None:
    process = Process(tmp_path, ring_bytes=1000)
    for n in range(10):
        process.queue.put(click(n))
    assert not process.spool.complete
    process.write(1)
    process.queue.put(click(10))
    assert not process.spool.complete  # those before it are not there
    process.write()
    assert process.spool.complete
    process.queue.put(click(11))
    process.kill()
    count, records = start_next(tmp_path)
    assert count == 1
    assert records == [click(n) for n in range(12)]


def test_the_file_of_a_live_process_is_left_alone(tmp_path: Path) -> None:
    process = Process(tmp_path)
    process.queue.put(click(1))
    other = RecordQueue(1 << 20, FORM)
    assert take_over(tmp_path, tmp_path / "log", other) == 0
    assert process.spool.path.exists()
    process.kill()
    assert take_over(tmp_path, tmp_path / "log", other) == 1
    assert not process.spool.path.exists()


def test_what_cannot_be_written_by_the_end_waits_for_the_next_start(tmp_path: Path) -> None:
    process = Process(tmp_path)
    process.queue.put(click(1))
    process.queue.drop(process.queue.take(1 << 20))
    process.spool.close()
    assert start_next(tmp_path) == (1, [click(1)])


def test_one_that_is_killed_while_it_takes_over_doubles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Process(tmp_path)
    for n in range(10):
        first.queue.put(click(n))
    first.kill()
    second = Process(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda path: 1 / 0)  # its last moment
        with pytest.raises(ZeroDivisionError):
            take_over(tmp_path, second.log_path, second.queue)
    second.kill()
    assert start_next(tmp_path) == (10, [click(n) for n in range(10)])


def test_a_log_in_another_form_gets_them_in_its_own(tmp_path: Path) -> None:
    process = Process(tmp_path)
    process.queue.put(click(1))
    process.kill()
    queue = RecordQueue(1 << 20, FORMS["json"])
    assert take_over(tmp_path, tmp_path / "log", queue) == 1
    (batch,) = queue.take(1)
    assert batch.data == FORMS["json"].encode(click(1))


@pytest.mark.parametrize(
    ("at", "with_bytes"), [(0, b"other"), (8, b"\xff" * 8), (16, b"\xff" * 8), (HEADER_BYTES, b"\0" * 90)]
)
def test_a_damaged_file_stops_nobody(
    tmp_path: Path, at: int, with_bytes: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    process = Process(tmp_path)
    process.queue.put(click(1))
    process.queue.put(click(2))
    process.kill()
    with process.spool.path.open("r+b") as file:
        file.seek(at)
        file.write(with_bytes)
    count, records = start_next(tmp_path)
    assert (count, records) == ((1, [click(2)]) if at == HEADER_BYTES else (0, []))
    assert bool(caplog.records)


@pytest.mark.parametrize("content", [b"", b"adcspool", b"x" * 5000])
def test_what_is_no_spool_is_removed(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "0.spool").write_bytes(content)
    assert start_next(tmp_path) == (0, [])


def test_a_log_that_is_elsewhere_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    process = Process(tmp_path)
    process.queue.put(click(1))
    process.write(released=False)
    process.kill()
    (tmp_path / "elsewhere").mkdir()
    process.log_path.rename(tmp_path / "elsewhere" / "log")
    assert start_next(tmp_path) == (1, [click(1)])
    assert "may be there twice" in caplog.text


def test_a_folder_that_cannot_hold_it_is_named(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"--spool-dir"):
        Spool(tmp_path / "missing")
    with pytest.raises(StartError, match=r"No space|File too large"):
        Spool(tmp_path, ring_bytes=1 << 50)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_from_other_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", fill)
    with pytest.raises(NoSpaceError, match=r"No space left on device; see --spool-dir"):
        Spool(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("has_nameless_files", [True, False])
def test_the_file_is_locked_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_nameless_files: bool
) -> None:
    """Otherwise a process that starts at the same moment would take it for a dead one's."""
    steps = []
    flock, link = fcntl.flock, os.link

    def lock(fd: int, operation: int) -> None:
        assert list(tmp_path.glob("*.spool")) == []
        steps.append("locked")
        flock(fd, operation)

    def name(source: str, target: str, **how: int | bool) -> None:
        steps.append("named")
        link(source, target, **how)  # type: ignore[arg-type]

    if not has_nameless_files:
        monkeypatch.setattr(os, "O_TMPFILE", os.O_DIRECTORY)
    monkeypatch.setattr(fcntl, "flock", lock)
    monkeypatch.setattr(os, "link", name)
    Spool(tmp_path, 4096).close()
    assert steps == ["locked", "named"]


def test_of_a_log_that_has_grown_for_long_only_what_waits_is_remembered(tmp_path: Path) -> None:
    process = Process(tmp_path)
    process.queue.put(click(1))
    process.queue.put(click(2))
    process.write(released=False)
    process.kill()
    with process.log_path.open("ab") as log:
        log.writelines(FORM.encode(view(n)) for n in range(20_000))
    queue = RecordQueue(1 << 20, FORM)
    process.log_path.rename(tmp_path / "log.1")
    tracemalloc.start()
    try:
        assert take_over(tmp_path, process.log_path, queue) == 0
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # The spool's 64 KiB and a MiB or two of the log at a time; 20,000 keys have 5 MB.
    assert peak < 3.5e6


def test_one_that_had_written_nothing_yet_has_no_log_to_look_into(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    process = Process(tmp_path)
    process.queue.put(click(1))
    process.kill()
    process.log_path.write_bytes(FORM.encode(click(2)))
    assert start_next(tmp_path) == (1, [click(2), click(1)])
    assert "may be there twice" not in caplog.text
