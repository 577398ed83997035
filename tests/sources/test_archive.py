"""The archive of served tables: what went in comes out, what was changed is found out, and it keeps its bounds."""

import contextlib
import copy
import json
import multiprocessing
import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adcore.errors import SourceError
from adcore.sources import Revision, Rows, archive, open_store
from adcore.sources.archive import TableArchive
from adcore.sources.lastgood import LastGood
from adcore.sources.reader import Answer, Ask, Reader
from tests.inventories import campaign, document
from tests.process import Adcore, adctl, serving, wait_for

DAY_S = 86_400.0
NOTHING = Ask(None, None, 0, b"", b"")


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


def rows(number: int, *, generation: str = "store", weight: int = 1, campaigns: int = 40) -> Rows:
    booked = [campaign(f"c{at}") for at in range(campaigns)]
    booked[0]["weight"] = weight
    return Rows(Revision(generation, number, number), document(*booked))


def opened(folder: Path, clock: Clock | None = None, **bounds: Any) -> TableArchive:
    return TableArchive(folder, **{"days": 30, "bytes_max": 1 << 30, "clock_wall": clock or Clock(), **bounds})


def numbers(tables: TableArchive) -> list[int]:
    return sorted(entry.key[1] for entry in tables.entries())


def only(tables: TableArchive, number: int) -> Path:
    return next(entry.path for entry in tables.entries() if entry.key[1] == number)


def test_what_was_kept_is_there(tmp_path: Path) -> None:
    tables = opened(tmp_path / "tables")
    for number in range(5):
        tables.keep(rows(number, weight=number + 1))
    for number in range(5):
        assert tables.load(("store", number)) == [rows(number, weight=number + 1).document]
    assert tables.load(("store", 9)) == []
    assert tables.load(("elsewhere", 1)) == []
    assert sorted(path.name for path in tables.folder.iterdir() if path.suffix != ".zst") == ["lock"]


def test_a_small_change_takes_little_room(tmp_path: Path) -> None:
    tables = opened(tmp_path)
    tables.keep(rows(1, campaigns=2000))
    tables.keep(rows(2, campaigns=2000, weight=7))
    whole, difference = only(tables, 1).stat().st_size, only(tables, 2).stat().st_size
    assert difference * 20 < whole


def test_a_large_change_is_kept_whole(tmp_path: Path) -> None:
    tables = opened(tmp_path)
    tables.keep(rows(1, campaigns=10))
    other = Rows(Revision("store", 2, 2), document(*(campaign(os.urandom(20).hex()) for _ in range(50))))
    tables.keep(other)
    assert [entry.base for entry in tables.entries()] == ["", ""]
    assert tables.load(("store", 2)) == [other.document]


def test_equal_numbers_of_two_stores_are_told_apart(tmp_path: Path) -> None:
    tables = opened(tmp_path)
    for generation, weight in (("one", 1), ("two", 2), ("../a.b/ü", 3)):
        tables.keep(rows(7, generation=generation, weight=weight))
    assert tables.load(("one", 7)) == [rows(7, weight=1).document]
    assert tables.load(("two", 7)) == [rows(7, weight=2).document]
    assert tables.load(("../a.b/ü", 7)) == [rows(7, weight=3).document]
    assert len(tables.load(("", 7))) == 3


def test_a_store_that_was_set_back_gives_both_its_tables(tmp_path: Path) -> None:
    tables = opened(tmp_path)
    tables.keep(rows(7, weight=1))
    tables.keep(rows(7, weight=2))
    tables.keep(rows(7, weight=1))
    found = [there["campaigns"][0]["weight"] for there in tables.load(("store", 7))]
    assert sorted(found) == [1, 2]


def test_folders_of_several_hosts_make_one(tmp_path: Path) -> None:
    a, b = opened(tmp_path / "a"), opened(tmp_path / "b")
    for number in (1, 2, 3):
        a.keep(rows(number, weight=number))
    for number in (2, 4):
        b.keep(rows(number, weight=number))
    for path in b.folder.glob("*.zst"):
        (a.folder / path.name).write_bytes(path.read_bytes())
    for number in (1, 2, 3, 4):
        assert {there["campaigns"][0]["weight"] for there in a.load(("store", number))} == {number}


@pytest.mark.parametrize("number", [1, 2])
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_a_changed_byte_is_found_out(
    number: int, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tables = opened(tmp_path_factory.mktemp("tables"))
    tables.keep(rows(1))
    tables.keep(rows(2, weight=5))
    path = only(tables, number)
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    with contextlib.suppress(SourceError):
        # A few bits of zstd's frame say nothing about what is in it.
        assert tables.load(("store", number)) == [rows(number, weight=1 if number == 1 else 5).document]


def test_a_small_file_that_unfolds_into_all_memory_is_not_unfolded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = opened(tmp_path)
    tables.keep(rows(1))
    only(tables, 1).write_bytes(archive._compress(bytes(8 << 20), None))
    monkeypatch.setattr(archive, "DOCUMENT_BYTES_MAX", 4 << 20)
    with pytest.raises(SourceError, match="claims to have 8 MiB"):
        tables.load(("store", 1))


def test_what_stands_under_another_name_is_found_out(tmp_path: Path) -> None:
    tables = opened(tmp_path)
    tables.keep(rows(1))
    other = opened(tmp_path / "other")
    other.keep(rows(1, weight=9))
    only(tables, 1).write_bytes(only(other, 1).read_bytes())
    with pytest.raises(SourceError, match="the file was changed"):
        tables.load(("store", 1))


def test_a_difference_without_its_base_says_so(tmp_path: Path) -> None:
    tables = opened(tmp_path)
    tables.keep(rows(1))
    tables.keep(rows(2, weight=5))
    only(tables, 1).unlink()
    with pytest.raises(SourceError, match="gone"):
        tables.load(("store", 2))
    tables.keep(rows(3, weight=6))
    assert tables.load(("store", 3))


def test_days_count_from_when_a_table_was_last_served(tmp_path: Path) -> None:
    clock = Clock()
    tables = opened(tmp_path, clock)
    tables.keep(rows(1))
    tables.keep(rows(2, weight=2))
    for _ in range(40):
        clock.now += DAY_S
        assert tables.note_served(rows(1).revision)
    assert numbers(tables) == [1]


def test_what_a_kept_table_differs_from_stays(tmp_path: Path) -> None:
    clock = Clock()
    tables = opened(tmp_path, clock)
    tables.keep(rows(1))
    for day in range(40):
        clock.now += DAY_S
        if day == 0:
            tables.keep(rows(2, weight=2))
        assert tables.note_served(rows(2).revision)
    assert numbers(tables) == [1, 2]
    assert tables.load(("store", 2))


def test_bytes_are_bounded_and_the_newest_stays(tmp_path: Path) -> None:
    clock = Clock()
    tables = opened(tmp_path, clock, bytes_max=1)
    for number in range(4):
        clock.now += 1
        tables.keep(rows(number, generation=f"g{number}"))
    assert numbers(tables) == [3]


def test_zero_days_keep_nothing(tmp_path: Path) -> None:
    tables = opened(tmp_path / "tables", days=0)
    tables.keep(rows(1))
    assert tables.note_served(rows(1).revision) is None
    assert not tables.folder.exists()


def test_a_link_among_the_tables_leads_to_no_file_that_is_touched(tmp_path: Path) -> None:
    folder, precious = tmp_path / "tables", tmp_path / "precious"
    tables = opened(folder)
    tables.keep(rows(1))
    (path,) = folder.glob("*.zst")
    path.rename(precious)
    os.utime(precious, ns=(5, 5))
    path.symlink_to(precious)
    tables.note_served(rows(1).revision)
    assert precious.stat().st_mtime_ns == 5


def test_what_a_killed_writer_left_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "new").write_bytes(b"half of it")
    tables = opened(tmp_path)
    tables.keep(rows(1))
    assert tables.load(("store", 1))
    assert not (tmp_path / "new").exists()


def keep_many(folder: Path, first: int) -> None:
    for number in range(first, first + 20):
        opened(folder).keep(rows(number // 2, weight=number // 2 + 1))


def test_several_processes_write_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=keep_many, args=(tmp_path, first)) for first in (0, 10, 20)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    for number in range(20):
        assert opened(tmp_path).load(("store", number)) == [rows(number, weight=number + 1).document]


def test_a_stopped_writer_stops_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "LOCK_WAIT_S", 0.05)
    tables = opened(tmp_path)
    with opened(tmp_path)._writing(), pytest.raises(SourceError, match="another process"):
        tables.keep(rows(1))


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    tables = opened(tmp_path / "file" / "tables")
    with pytest.raises(SourceError, match="file/tables: the table cannot be kept for replay"):
        tables.keep(rows(1))


def reader_of(tmp_path: Path, tables: TableArchive) -> Reader:
    url = f"sqlite://{tmp_path}/ads.db"
    if not (tmp_path / "ads.db").exists():
        applied = adctl("apply", "--source", url, "-", stdin=json.dumps(document(campaign("a"))))
        assert applied.returncode == 0, applied.stderr
    return Reader(open_store(url), None, LastGood(tmp_path / "rows"), tables)


def served(answer: Answer) -> Ask:
    assert answer.offer is not None
    return Ask(answer.offer.revision, answer.offer.revision, 1, b"", answer.offer.known)


def test_a_table_is_there_before_anybody_serves_it(tmp_path: Path) -> None:
    tables = opened(tmp_path / "tables")
    answer, _ = reader_of(tmp_path, tables).look(NOTHING)
    assert answer.offer is not None
    assert tables.load(answer.offer.revision[:2])


def test_what_is_served_comes_back_after_the_folder_was_cleared(tmp_path: Path) -> None:
    reader = reader_of(tmp_path, tables := opened(tmp_path / "tables"))
    answer, _ = reader.look(NOTHING)
    reader.keep()
    for path in tables.folder.glob("*.zst"):
        path.unlink()
    reader.look(served(answer))
    assert answer.offer is not None
    assert tables.load(answer.offer.revision[:2])


def test_a_full_disk_is_noted_and_the_table_served(tmp_path: Path) -> None:
    (tmp_path / "tables").touch()
    answer, _ = reader_of(tmp_path, opened(tmp_path / "tables")).look(NOTHING)
    assert answer.offer is not None
    (note,) = [note for note in answer.notes if note.source == "archive"]
    assert note.error is not None
    assert "cannot be kept for replay" in note.error


def test_a_server_keeps_every_table_that_it_served(tmp_path: Path) -> None:
    url = f"sqlite://{tmp_path}/ads.db"
    wanted = {}
    inventory = document(campaign("a"), campaign("b"))
    apply(url, inventory)
    with serving(tmp_path / "state", "--source", url, "--refresh", "0.05") as server:
        for weight in (1, 2, 3):
            inventory = copy.deepcopy(inventory)
            inventory["campaigns"][0]["weight"] = weight
            revision = apply(url, inventory)
            wait_for(partial(is_served, server, revision))
            wanted[revision] = weight
        health = {source["source"]: source for source in server.status()["refresh"]["sources"]}
        assert health[str(tmp_path / "state" / "tables")]["ok"]
    tables = TableArchive(tmp_path / "state" / "tables")
    for revision, weight in wanted.items():
        (there,) = tables.load(("", revision))
        assert there["campaigns"][0]["weight"] == weight


def is_served(server: Adcore, revision: int) -> bool:
    return bool(server.status()["table"]["revision"] == revision)


def apply(url: str, inventory: dict[str, Any]) -> int:
    applied = adctl("apply", "--json", "--source", url, "-", stdin=json.dumps(inventory))
    assert applied.returncode == 0, applied.stderr
    revision: int = json.loads(applied.stdout)["revision"]
    return revision
