import gzip
import json
import os
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from adcore.deliverylog.record import FORMS, RECORDS, AnyRecord
from adtools import tail as tail_module
from adtools.tail import Batch, PositionFile, Tail, TailError
from tests.records import click


class Log:
    """A delivery log in a folder of its own, and what a reader made of it."""

    def __init__(self, folder: Path, form: str) -> None:
        self.folder = folder
        self.path = folder / "delivery.log"
        self.form = FORMS[form]
        self.written = 0
        self.seen: list[int] = []
        self.damage: list[str] = []
        self.start()

    def start(self) -> None:
        self.positions = PositionFile(self.folder / "positions")
        self.tail = Tail(self.path, self.positions, RECORDS)

    def restart(self) -> None:
        self.close()
        self.start()

    def write(self, count: int, path: Path | None = None) -> None:
        with (path or self.path).open("ab") as file:
            for _ in range(count):
                file.write(self.form.encode(click(self.written)))
                self.written += 1

    def append(self, data: bytes) -> None:
        with self.path.open("ab") as file:
            file.write(data)

    def rotate(self, *, pack: bool = True) -> None:
        """As logrotate does it with delaycompress."""
        for number in range(9, 0, -1):
            packed = self.path.with_name(f"delivery.log.{number}.gz")
            if packed.exists():
                packed.rename(self.path.with_name(f"delivery.log.{number + 1}.gz"))
        plain = self.path.with_name("delivery.log.1")
        if plain.exists():
            if pack:
                self.pack(plain, self.path.with_name("delivery.log.2.gz"))
            else:
                plain.rename(self.path.with_name("delivery.log.2"))
        self.path.rename(plain)

    def pack(self, plain: Path, packed: Path) -> None:
        status = plain.stat()
        packed.write_bytes(gzip.compress(plain.read_bytes()))
        os.utime(packed, ns=(status.st_atime_ns, status.st_mtime_ns))
        plain.unlink()

    def read(self) -> list[int]:
        """Take and commit all that there is; the numbers of the records."""
        new: list[int] = []
        while (batch := self.tail.next()) is not None:
            new += numbers(batch)
            self.damage += [damage.reason for damage in batch.damage]
            self.tail.commit(batch)
        self.seen += new
        return new

    def close(self) -> None:
        self.tail.close()
        self.positions.close()


def numbers(batch: Batch[AnyRecord]) -> list[int]:
    return [int(record.id, 16) for record in batch.records]


@pytest.fixture(params=sorted(FORMS))
def log(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Log]:
    log = Log(tmp_path, request.param)
    yield log
    log.close()


def test_records_are_read_as_they_come(log: Log) -> None:
    assert log.read() == []
    log.write(3)
    assert log.read() == [0, 1, 2]
    assert log.read() == []
    log.write(1)
    assert log.read() == [3]


def test_a_restarted_reader_goes_on_where_it_was(log: Log) -> None:
    log.write(3)
    assert log.read() == [0, 1, 2]
    log.restart()
    log.write(2)
    assert log.read() == [3, 4]


def test_a_log_is_read_over_rotations_from_the_oldest_file_on(log: Log) -> None:
    for _ in range(4):
        log.write(5)
        log.rotate()
    log.write(5)
    assert [path.name for path in sorted(log.folder.glob("delivery*"))] == [
        *("delivery.log", "delivery.log.1", "delivery.log.2.gz", "delivery.log.3.gz", "delivery.log.4.gz")
    ]
    assert log.read() == list(range(25))
    log.restart()
    assert log.read() == []


def test_what_was_read_is_not_read_again_under_another_name_or_compressed(log: Log) -> None:
    log.write(5)
    assert log.read() == list(range(5))
    log.rotate()
    log.write(5)
    log.rotate()
    log.restart()
    assert log.read() == list(range(5, 10))
    log.rotate() if log.path.exists() else log.write(1)
    assert log.read() == [10]


def test_the_rest_of_a_file_is_read_after_it_was_compressed(log: Log) -> None:
    log.write(5)
    log.read()
    log.write(5)
    log.rotate()
    log.write(5)
    log.rotate()
    assert log.path.with_name("delivery.log.2.gz").exists()
    assert log.read() == list(range(5, 15))


def test_a_slow_worker_writes_to_a_renamed_file_and_is_heard(log: Log) -> None:
    log.write(2)
    log.rotate()
    log.write(2)
    assert log.read() == [0, 1, 2, 3]
    log.write(1, log.path.with_name("delivery.log.1"))
    assert log.read() == [4]


def test_a_file_that_is_there_twice_while_it_is_compressed_is_read_once(log: Log) -> None:
    log.write(500)
    log.rotate()
    log.write(1)
    plain, packed = log.path.with_name("delivery.log.1"), log.path.with_name("delivery.log.1.gz")
    whole = gzip.compress(plain.read_bytes())
    for size in (0, 10, len(whole) // 2, len(whole)):
        packed.write_bytes(whole[:size])
        log.read()
    plain.unlink()
    log.read()
    assert log.seen == list(range(501))
    assert log.damage == []


def test_another_file_with_the_same_inode_is_another_file(log: Log) -> None:
    log.write(3)
    assert log.read() == [0, 1, 2]
    # The same inode and name, new content of the same length and more.
    with log.path.open("r+b") as file:
        file.truncate()
        for number in (3, 4, 5, 6):
            file.write(log.form.encode(click(number)))
    assert log.read() == [3, 4, 5, 6]


def test_a_record_that_is_half_there_waits_for_its_rest(log: Log) -> None:
    data = log.form.encode(click(0)) + log.form.encode(click(1))
    for byte in range(len(data)):
        log.append(data[byte : byte + 1])
        log.read()
    assert log.seen == [0, 1]
    assert log.damage == []


def test_damage_is_passed_over_and_reported(log: Log) -> None:
    torn = log.form.encode(click(99))[:100]
    log.write(1)
    log.append(torn + (b"\n" if log.form.lines else b""))
    assert log.read() == [0]
    log.write(2)
    assert log.read() == [1, 2]
    assert len(log.damage) == 1


def test_what_is_torn_at_the_end_of_a_compressed_file_is_damage(log: Log) -> None:
    log.write(2)
    log.append(log.form.encode(click(99))[:100])
    assert log.read() == [0, 1]
    log.rotate()
    log.write(1)
    assert log.read() == [2]
    assert log.damage == []
    log.rotate()
    assert log.read() == []
    assert log.damage == ["a torn record"]
    log.restart()
    assert log.read() == []
    assert log.damage == ["a torn record"], "it is reported once"


def test_a_damaged_compressed_file_gives_what_it_can(log: Log) -> None:
    log.write(2000)
    packed = log.path.with_name("delivery.log.2.gz")
    packed.write_bytes(gzip.compress(log.path.read_bytes())[:-2000])
    log.path.unlink()
    log.write(1)
    log.read()
    count = len(log.seen) - 1
    assert 0 < count < 2000
    assert log.seen == [*range(count), 2000]
    assert any("compressed file is damaged" in reason for reason in log.damage)
    assert log.read() == []


def test_nonsense_without_end_does_not_stop_the_reader(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail_module, "READ_BYTES", 1000)
    monkeypatch.setattr(tail_module, "READ_BYTES_MAX", 4000)
    log.write(1)
    log.append(b"\xff" * 10_000)
    log.write(1) if not log.form.lines else log.append(b"\n" + log.form.encode(click(1)))
    assert log.read() == [0, 1]
    assert log.damage


def test_what_was_begun_and_not_committed_comes_again_with_the_same_bounds(log: Log) -> None:
    log.write(3)
    batch = log.tail.next()
    assert batch is not None
    assert not batch.again
    log.tail.begin(batch)
    log.restart()
    log.write(3)
    log.rotate()
    log.write(3)
    again = log.tail.next()
    assert again is not None
    assert again.again
    assert (again.identity, again.start, again.end) == (batch.identity, batch.start, batch.end)
    assert numbers(again) == [0, 1, 2]
    log.tail.commit(again)
    assert log.read() == list(range(3, 9))


def test_what_was_begun_and_is_gone_does_not_stop_the_reader(log: Log) -> None:
    log.write(3)
    batch = log.tail.next()
    assert batch is not None
    log.tail.begin(batch)
    log.path.unlink()
    log.restart()
    log.write(1)
    assert log.read() == [3]


def test_positions_of_files_that_are_gone_are_forgotten(log: Log) -> None:
    log.write(1)
    log.read()
    log.path.unlink()
    log.write(1)
    for _ in range(tail_module.ABSENT_SCANS_MAX + 2):
        log.read()
    assert len(log.positions.files) == 1


def test_files_of_another_name_are_no_part_of_the_log(log: Log) -> None:
    for name in ("delivery.log.bak", "delivery.log~", "other.log", "delivery.log.1.gz.tmp", "xdelivery.log"):
        log.write(1, log.folder / name)
    assert log.read() == []
    log.write(1, log.folder / "delivery.log-20261124")
    assert log.read() == [5]


def test_a_second_reader_with_the_same_positions_is_refused(log: Log) -> None:
    with pytest.raises(TailError, match="another process reads"):
        PositionFile(log.folder / "positions")


@pytest.mark.parametrize("text", ["", "[]", '{"v": 2}', '{"files": 1}'])
def test_a_position_file_that_is_none_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "positions").write_text(text)
    with pytest.raises(TailError, match=r"positions is no position file .*move it away"):
        PositionFile(tmp_path / "positions")


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    positions = PositionFile(tmp_path / "positions")
    reader = Tail(tmp_path / "none" / "delivery.log", positions, RECORDS)
    with pytest.raises(TailError, match=r"cannot list .*none"):
        reader.next()
    positions.close()
    with pytest.raises(TailError, match="choose another position file"):
        PositionFile(tmp_path / "none" / "positions")


def test_the_position_file_is_replaced_whole(log: Log) -> None:
    log.write(2)
    log.read()
    content = json.loads((log.folder / "positions").read_bytes())
    assert [mark["offset"] for mark in content["files"].values()] == [log.path.stat().st_size]
    assert not (log.folder / "positions.new").exists()


@pytest.mark.parametrize("seed", range(30))
def test_whatever_happens_each_record_comes_once(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A random life of a log. Small reads, so that batches end everywhere."""
    rng = random.Random(seed)
    monkeypatch.setattr(tail_module, "READ_BYTES", rng.choice([300, 1000, 5000]))
    log = Log(tmp_path, rng.choice(sorted(FORMS)))
    for _ in range(60):
        action = rng.choice(["write", "write", "read", "rotate", "restart", "one", "late"])
        if action == "write":
            log.write(rng.randrange(8))
        elif action == "late" and (old := log.path.with_name("delivery.log.1")).exists():
            log.write(1, old)
        elif action == "read":
            log.read()
        elif action == "one" and (batch := log.tail.next()) is not None:
            log.tail.begin(batch)
            if rng.random() < 0.5:
                log.restart()
                batch = log.tail.next()
                assert batch is not None
                assert batch.again
            log.seen += numbers(batch)
            log.tail.commit(batch)
        elif action == "rotate" and log.path.exists() and log.path.stat().st_size:
            log.rotate(pack=True)
        elif action == "restart":
            log.restart()
    log.read()
    log.close()
    lost = log.folder / "delivery.log.11.gz"
    assert not lost.exists()
    assert Counter(log.seen) == Counter(range(log.written)), f"seed {seed}"
    assert log.damage == []
