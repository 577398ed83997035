"""The loader process: it answers as a Reader does, survives no server, and is replaced when it was killed."""

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from adcore.core.adtable import EMPTY, AdTable, finish
from adcore.sources import open_store
from adcore.sources.archive import TableArchive
from adcore.sources.child import Child, ChildError
from adcore.sources.lastgood import LastGood
from adcore.sources.loader import REST_S, Loader, Sources
from adcore.sources.reader import Answer, Ask, Reader, apply_offer
from tests.inventories import campaign, document, text_creative
from tests.process import Adcore, adctl, ask, descendant, environment, serving, wait_for
from tests.rogue import MysqlPeer, Rogue

NOTHING = Ask(None, None, 0, b"", b"")


def apply(url: str, *campaigns: dict[str, object]) -> None:
    applied = adctl("apply", "--source", url, "-", stdin=json.dumps(document(*campaigns)))
    assert applied.returncode == 0, applied.stderr


@pytest.fixture
def url(tmp_path: Path) -> str:
    url = f"sqlite://{tmp_path}/ads.db"
    apply(url, campaign("a"), campaign("b"), campaign("c"))
    return url


@pytest.fixture
def loader(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Loader]:
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
    loader = Loader(Sources(url, None, "", "", str(tmp_path / "rows"), str(tmp_path / "tables"), 1.0, 1 << 30))
    yield loader
    loader.close()
    loader._end()


def pid_of(loader: Loader) -> int:
    assert loader.pid is not None
    return loader.pid


def after(table: AdTable, answer: Answer, parts: list[bytes]) -> AdTable:
    assert answer.offer is not None
    return finish(apply_offer(answer.offer, parts, table))


def about(table: AdTable, answer: Answer) -> Ask:
    assert answer.offer is not None
    return Ask(answer.offer.revision, answer.offer.revision, table.creative_count, b"", answer.offer.known)


def is_there(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def same(first: tuple[Answer, list[bytes]], second: tuple[Answer, list[bytes]]) -> bool:
    """But for the time of the look."""
    return (msgspec.structs.replace(first[0], asked_monotonic=second[0].asked_monotonic), first[1]) == second


def test_it_answers_as_a_reader_does(loader: Loader, url: str, tmp_path: Path) -> None:
    archive = TableArchive(tmp_path / "tables", days=1, bytes_max=1 << 30)
    reader = Reader(open_store(url), None, LastGood(tmp_path / "other"), archive)
    mine, its = reader.look(NOTHING), loader.look(NOTHING)
    assert same(its, mine)
    table = after(EMPTY, *its)
    assert list(table.campaigns) == ["a", "b", "c"]
    assert loader.keep() == reader.keep()
    assert (tmp_path / "rows").read_bytes() == (tmp_path / "other").read_bytes()
    unchanged = loader.look(about(table, its[0]))
    assert unchanged[0].fresh
    assert same(unchanged, reader.look(about(table, its[0])))
    reader.close()


def test_only_what_differs_is_told(loader: Loader, url: str) -> None:
    first = loader.look(NOTHING)
    table = after(EMPTY, *first)
    apply(url, campaign("b"), campaign("a", weight=7), campaign("d"))
    answer, parts = loader.look(about(table, first[0]))
    assert len(parts) == 2
    other = after(table, answer, parts)
    assert list(other.campaigns) == ["b", "a", "d"]
    assert other.campaigns["b"] is table.campaigns["b"]
    assert other.campaigns["a"].weight == 7


def test_bad_rows_are_named(loader: Loader, url: str) -> None:
    first = loader.look(NOTHING)
    table = after(EMPTY, *first)
    with sqlite3.connect(url.removeprefix("sqlite://")) as connection:
        connection.execute("UPDATE creatives SET landing_url = 'nowhere' WHERE id = 'b-1'")
    other = after(table, *loader.look(about(table, first[0])))
    assert list(other.campaigns) == ["a", "c"]
    assert [problem.row for problem in other.rejected] == ['creative "b-1"']


def test_one_that_is_killed_is_an_error_and_then_another_one_starts(loader: Loader) -> None:
    loader.look(NOTHING)
    killed = pid_of(loader)
    os.kill(killed, signal.SIGKILL)
    with pytest.raises(ChildError, match="ended by signal 9"):
        loader.look(NOTHING)
    assert loader.look(NOTHING)[0].offer is not None
    assert pid_of(loader) != killed


def test_one_that_makes_no_progress_is_killed(loader: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    loader.look(NOTHING)
    os.kill(pid_of(loader), signal.SIGSTOP)
    monkeypatch.setattr("adcore.sources.child.ANSWER_S", 0.01)
    with pytest.raises(ChildError, match="ended by signal 9"):
        loader.look(NOTHING)


def test_it_ends_after_the_first_load_so_that_its_memory_goes_with_it(loader: Loader) -> None:
    loader.look(NOTHING)
    pid = pid_of(loader)
    loader.keep()
    assert loader.pid is None
    assert not is_there(pid)


def change(loader: Loader, url: str, table: AdTable, offered: Answer, weight: int) -> tuple[AdTable, Answer]:
    apply(url, campaign("a", weight=weight))
    answer, parts = loader.look(about(table, offered))
    table = after(table, answer, parts)
    loader.keep()
    return table, answer


def test_it_stays_while_changes_keep_coming_and_ends_a_minute_later(loader: Loader, url: str) -> None:
    now = 1000.0
    loader._clock = lambda: now
    offered, parts = loader.look(NOTHING)
    table = after(EMPTY, offered, parts)
    loader.keep()
    pids = set()
    for weight in (2, 3, 4):
        table, offered = change(loader, url, table, offered, weight)
        pids.add(loader.pid)
        now += REST_S - 1
        assert loader.look(about(table, offered))[0].fresh
        loader.rest()
        pids.add(loader.pid)
    assert len(pids) == 1
    now += 1
    assert loader.look(about(table, offered))[0].fresh
    assert loader.pid is None


def test_it_ends_after_many_loads(loader: Loader, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adcore.sources.loader.LOADS_MAX", 3)
    offered, parts = loader.look(NOTHING)
    table = after(EMPTY, offered, parts)
    loader.keep()
    awake = []
    for weight in (2, 3, 4, 5):
        table, offered = change(loader, url, table, offered, weight)
        awake.append(loader.is_awake)
    assert awake == [True, True, False, True]


def test_what_is_meant_for_the_server_does_not_end_it(loader: Loader) -> None:
    loader.look(NOTHING)
    pid = pid_of(loader)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        os.kill(pid, number)
    assert loader.look(NOTHING)[0].offer is not None
    assert pid_of(loader) == pid


def test_a_closed_one_starts_no_more(loader: Loader) -> None:
    loader.look(NOTHING)
    pid = pid_of(loader)
    loader.close()
    wait_for(lambda: not is_there(pid))
    with pytest.raises(ChildError):
        loader.look(NOTHING)
    with pytest.raises(ChildError, match="closed"):
        loader.look(NOTHING)


def test_it_gives_way_to_requests_once_there_is_a_table_to_answer_them_with(loader: Loader) -> None:
    def priority() -> int:
        return os.getpriority(os.PRIO_PROCESS, pid_of(loader))

    first = loader.look(NOTHING)
    at_first = priority()
    assert at_first == os.getpriority(os.PRIO_PROCESS, 0)
    asked = about(after(EMPTY, *first), first[0])
    for _ in range(2):
        loader.look(asked)
        assert priority() > at_first


def loader_of(server: Adcore) -> int | None:
    loader = descendant("adcore loader", server)
    return loader.pid if loader else None


def wait_for_loader(server: Adcore) -> int:
    """Its pid, once it has looked. (The one that loaded the first table ends by itself.)"""
    wait_for(lambda: server.status()["refresh"]["looks"] > 1 and loader_of(server) is not None)
    pid = loader_of(server)
    assert pid is not None
    return pid


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_it_leaves_with_its_server(url: str, tmp_path: Path, number: signal.Signals) -> None:
    with serving(tmp_path / "state", "--source", url, "--refresh", "0.2") as server:
        pid = wait_for_loader(server)
        server.signal(number)
        server.process.wait(20)
        wait_for(lambda: not is_there(pid))


def test_a_stopped_driver_does_not_keep_it_alive(url: str, tmp_path: Path) -> None:
    """Its server is gone while it waits for another one's write to end."""
    writer = sqlite3.connect(url.removeprefix("sqlite://"), isolation_level=None)
    writer.execute("PRAGMA locking_mode = EXCLUSIVE")
    writer.execute("BEGIN EXCLUSIVE")
    sources = Sources(url, None, "", "", str(tmp_path / "rows"), str(tmp_path / "tables"), 1.0, 1 << 30)
    program = (
        "import sys, msgspec; from adcore.sources.loader import *; from adcore.sources.reader import Ask\n"
        "loader = Loader(msgspec.json.decode(sys.argv[1], type=Sources)); loader._start()\n"
        "print(loader.pid, flush=True); loader.look(Ask(None, None, 0, b'', b''))"
    )
    command = [
        sys.executable,
        "-c",
        program,
        json.dumps({name: getattr(sources, name) for name in sources.__struct_fields__}),
    ]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment(), text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert is_there(pid)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait_for(lambda: not is_there(pid))
    writer.close()


def test_it_holds_no_socket_of_its_server(url: str, tmp_path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "inherited"))
    listener.listen()
    args = ["--source", url, "--refresh", "0.2", "--fd", str(listener.fileno())]
    server = Adcore(tmp_path / "state", *args, pass_fds=(listener.fileno(),))
    server.address = f"unix:{tmp_path}/inherited"
    try:
        server.wait_until_ready()
        pid = wait_for_loader(server)
        kept = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
        assert not [name for name in kept if name.startswith("socket:")], kept
    finally:
        server.process.kill()
        server.process.wait()
        listener.close()


def test_a_server_whose_loader_is_killed_goes_on_and_takes_the_next_table(url: str, tmp_path: Path) -> None:
    with serving(tmp_path / "state", "--source", url, "--refresh", "0.2") as server:
        for weight in (2, 3):
            os.kill(wait_for_loader(server), signal.SIGKILL)
            assert server.ask("/v1/decision?placement=side").status == 200
            before = server.status()["table"]["revision"]
            apply(url, campaign("a", weight=weight))
            wait_for(lambda revision=before: server.status()["table"]["revision"] > revision)


def test_tables_come_where_priorities_are_forbidden(url: str, tmp_path: Path) -> None:
    """As a filter of system calls does it: with EPERM."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os\ndef forbidden(n): raise PermissionError(1, 'Operation not permitted')\nos.nice = forbidden\n"
    )
    path = f"{tmp_path}{os.pathsep}{environment()['PYTHONPATH']}"
    with serving(tmp_path / "state", "--source", url, "--refresh", "0.2", PYTHONPATH=path) as server:
        before = server.status()["table"]["revision"]
        apply(url, campaign("a"), campaign("d"))
        wait_for(lambda: server.status()["table"]["revision"] > before, lambda: server.errors)
        assert server.stop() == 0
        assert "PermissionError" not in server.errors


def test_no_answer_mixes_two_tables(url: str, tmp_path: Path) -> None:
    """Both campaigns of every revision carry the same mark; a page of both never shows two."""

    def marked(mark: int) -> list[dict[str, object]]:
        link = f"https://shop.example.net/{mark}"
        return [
            campaign(
                place,
                targeting={"placements": [place]},
                creatives=[text_creative(f"{place}-1", landing_url=link, data={"text": f"mark {mark}"})],
            )
            for place in ("side", "foot")
        ]

    # Many others, so that a table takes many slices.
    others = [campaign(f"o{n}", targeting={"placements": ["side"], "devices": ["tv"]}) for n in range(500)]
    apply(url, *marked(0), *others)
    with serving(tmp_path / "state", "--source", url, "--refresh", "0.1") as server:
        seen: set[str] = set()
        for mark in (1, 2, 3):
            apply(url, *marked(mark), *({**one, "weight": 1 + mark} for one in others))

            def is_taken(wanted: str = f"mark {mark}") -> bool:
                page = ask(server.address, "/v1/decision?placement=side,foot", user_agent="phone").json()
                texts = {one["creative"]["data"]["text"] for one in page["decisions"]}
                assert len(texts) == 1, texts
                seen.update(texts)
                return texts == {wanted}

            wait_for(is_taken)
    assert {"mark 1", "mark 2", "mark 3"} <= seen


# Its memory


def peak_mib(pid: int) -> float:
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


def test_a_store_that_answers_without_end_takes_what_the_process_has_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def serve(connection: socket.socket) -> None:
        peer = MysqlPeer(connection)
        peer.log_in()
        peer.next_select()
        peer.send_columns("generation", "revision", "confirmed")
        while True:
            peer.send_row(b"x" * 60_000, b"1", b"1")

    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
    with Rogue(serve) as rogue:
        url = f"mysql://u@{rogue.address}/d"
        folders = str(tmp_path / "rows"), str(tmp_path / "tables")
        loader = Loader(Sources(url, None, "", "", *folders, 1.0, 1 << 30, 256 << 20))
        try:
            for _ in range(2):
                (note,) = loader.look(NOTHING)[0].notes
                assert note.error is not None
                assert "see --helper-bytes" in note.error
            assert peak_mib(pid_of(loader)) < 256
            limits = Path(f"/proc/{pid_of(loader)}/limits").read_text()
            assert [line.split()[3:5] for line in limits.splitlines() if "address space" in line] == [["268435456"] * 2]
        finally:
            loader.close()
            loader._end()


def test_a_process_without_memory_for_its_work_ends_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
    hungry = Child("tests.sources.hungry", "hungry", b"", memory_bytes=256 << 20)
    with (
        pytest.raises(ChildError, match="needed more than the 256 MiB that --helper-bytes gives it"),
        hungry._asking([]),
    ):
        hungry._read()
    hungry.close()


def test_a_process_that_cannot_be_started_is_an_error_like_one_that_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    hungry = Child("tests.sources.hungry", "hungry", b"")
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(ChildError, match="the hungry process cannot be started: N"), hungry._asking([]):
        pass
    assert hungry.pid is None


def test_a_host_that_leaves_less_memory_than_a_process_may_have_is_kept_to() -> None:
    """`ulimit -v`, LimitAS=: only root may give a process more than that."""
    program = (
        "import subprocess; from adcore.memory import limit_memory\n"
        "process = subprocess.Popen(['sleep', '60'])\n"
        "limit_memory(process.pid, 1 << 40)\n"
        "print(open(f'/proc/{process.pid}/limits').read()); process.kill(); process.wait()\n"
        "limit_memory(process.pid, 1 << 40)"
    )
    command = ["bash", "-c", 'ulimit -v 900000; exec "$@"', "bash", sys.executable, "-c", program]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    (line,) = [line for line in done.stdout.splitlines() if "address space" in line]
    assert line.split()[3:5] == [str(900_000 * 1024)] * 2
