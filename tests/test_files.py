"""Names that others got to first: links, pipes, devices and files of other users where every user may write."""

import contextlib
import fcntl
import mmap
import multiprocessing
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from adcore import files
from adcore.counterfile import CounterFile, Kept
from adcore.deliverylog.queue import RecordQueue
from adcore.deliverylog.reader import open_found_log
from adcore.deliverylog.record import FORMS
from adcore.deliverylog.spool import Spool, Spools, take_over
from adcore.deliverylog.writer import LogWriter
from adcore.errors import AdcoreError, StartError
from adcore.files import create_own, open_own, read_own, replace_own
from adcore.followed import BUCKETS, MAGIC, Followed
from adcore.pidfile import PidFile
from adcore.sources.lastgood import LastGood
from adcore.tokens import KeyRing
from adtools.tail import PositionFile
from tests.process import Adcore, environment
from tests.records import click
from tests.sources.fakes import rows

ROOT = os.geteuid() == 0
OTHER_UID = 65534
needs_root = pytest.mark.skipif(not ROOT, reason="only root can make files of another user")


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A folder like /tmp."""
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o1777)
    return folder


def pid_file(path: Path) -> None:
    with PidFile(path):
        pass


def log_file(path: Path) -> None:
    LogWriter(RecordQueue(1 << 20, FORMS["json"]), path).open()


OPENERS: dict[str, Callable[[Path], object]] = {
    "pid file": pid_file,
    "delivery log": log_file,
    "secret": KeyRing.load,
    "links followed": lambda path: Followed.open(path, 3600),
    "last good rows": lambda path: LastGood(path).load(),
    "counts": lambda path: CounterFile(path).load(),
    "lock of the counts": lambda path: CounterFile(path.with_suffix(".json")).lock(),
    "positions": lambda path: PositionFile(path),
    "found log": open_found_log,
}
OPENERS_THAT_MAKE: dict[str, Callable[[Path], object]] = {
    "secret": KeyRing.load_or_create,
    "links followed": OPENERS["links followed"],
}
NAMES = {"lock of the counts": "counts.lock", "found log": "delivery.log.1"}


def plant_link(path: Path) -> None:
    path.symlink_to(path.parent.parent / "precious")


def plant_second_name(path: Path) -> None:
    os.link(path.parent.parent / "precious", path)


def plant_file_of_another(path: Path) -> None:
    path.write_bytes(MAGIC.ljust((BUCKETS + 1) * 256, b"\0"))
    path.chmod(0o640)
    os.chown(path, OTHER_UID, OTHER_UID)


TRAPS = [
    pytest.param(plant_link, "symbolic link|Too many levels of symbolic links", id="link"),
    pytest.param(plant_second_name, "second name", id="second name"),
    pytest.param(
        plant_file_of_another, r"belongs to another user \(uid 65534\)|Permission", id="other", marks=needs_root
    ),
]


@pytest.mark.parametrize(("plant", "why"), TRAPS)
@pytest.mark.parametrize("opener", OPENERS)
def test_what_others_put_where_every_user_may_write_is_refused(
    shared: Path, opener: str, plant: Callable[[Path], None], why: str
) -> None:
    precious = shared.parent / "precious"
    precious.write_text("precious")
    precious.chmod(0o600)
    path = shared / NAMES.get(opener, "name")
    plant(path)
    with pytest.raises((AdcoreError, OSError), match=why):
        OPENERS[opener](path)
    assert precious.read_text() == "precious"


@pytest.mark.parametrize("opener", sorted({*OPENERS} - {"delivery log"}))
def test_a_pipe_holds_up_no_open(tmp_path: Path, opener: str) -> None:
    path = tmp_path / NAMES.get(opener, "name")
    os.mkfifo(path)
    with pytest.raises((AdcoreError, OSError), match=r"not a regular file|is not a file"):
        OPENERS[opener](path)


def test_a_folder_of_ones_own_may_have_links(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("held")
    (tmp_path / "name").symlink_to("elsewhere")
    assert read_own(tmp_path / "name")[0] == b"held"


@needs_root
def test_a_spool_that_another_user_made_is_not_taken_over(
    shared: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Else every user of the host could write records into the log."""
    forged = FORMS["json"].encode(click())
    spool = Spool(shared)
    spool.append(forged)
    fcntl.flock(spool._fd, fcntl.LOCK_UN)  # as when its process is killed
    (path,) = shared.glob("*.spool")
    os.chown(path, OTHER_UID, OTHER_UID)
    queue = RecordQueue(1 << 20, FORMS["json"])
    assert take_over(shared, tmp_path / "delivery.log", queue) == 0
    assert f"{path} is not taken over: it belongs to another user" in caplog.text
    assert path.exists()
    os.chown(path, 0, 0)
    assert take_over(shared, tmp_path / "delivery.log", queue) == 1


def test_a_pipe_among_the_spools_holds_up_no_start(
    shared: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    os.mkfifo(shared / "0.spool")
    assert take_over(shared, tmp_path / "delivery.log", RecordQueue(1 << 20, FORMS["json"])) == 0
    assert "0.spool is not taken over: it is not a regular file" in caplog.text


@needs_root
def test_whoever_could_cut_a_mapped_file_short_does_not_own_it(shared: Path) -> None:
    """A page past the end of a mapped file is a SIGBUS, and the end of every worker."""
    path = shared / "clicks.followed"
    plant_file_of_another(path)
    code = (
        "import os, sys; from pathlib import Path; from adcore.followed import Followed\n"
        "path = Path(sys.argv[1]); table = Followed.open(path, 3600)\n"
        "os.truncate(path, 4096); table.first('f' * 32, 1.0)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, path], env=environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 1
    assert "StartError" in ended.stderr


@pytest.mark.parametrize("plant", [plant_link, plant_second_name, os.mkfifo])
@pytest.mark.parametrize("save", ["counts", "rows", "positions", "any"])
def test_a_trap_at_the_name_of_the_new_file_is_removed(
    tmp_path: Path, save: str, plant: Callable[[Path], None]
) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    precious = tmp_path / "precious"
    precious.write_text("precious")
    path = folder / "name.json"
    aside = {"counts": "name.new", "rows": f"name.json.{os.getpid()}", "positions": "name.json.new", "any": "aside"}
    plant(folder / aside[save])
    if save == "counts":
        CounterFile(path).save(Kept())
    elif save == "rows":
        LastGood(path).save(rows(1))
    elif save == "positions":
        positions = PositionFile(path)
        positions.save(durable=False)
        positions.close()
    else:
        replace_own(path, b"new", mode=0o640, aside="aside", modified_ns=5)
        assert path.stat().st_mtime_ns == 5
    assert precious.read_text() == "precious"
    assert stat.S_ISREG(path.lstat().st_mode)
    assert path.stat().st_nlink == 1
    assert not (folder / aside[save]).exists()


@contextlib.contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def test_a_new_file_is_not_for_everybody_under_any_umask(tmp_path: Path) -> None:
    with umask(0):
        replace_own(tmp_path / "name", b"", mode=0o640, aside="aside")
        os.close(open_own(tmp_path / "other", os.O_RDWR | os.O_CREAT))
    assert stat.S_IMODE((tmp_path / "name").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "other").stat().st_mode) == 0o600


def test_a_file_that_cannot_be_replaced_stays_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    (tmp_path / "name").mkdir()
    with pytest.raises(IsADirectoryError):
        replace_own(tmp_path / "name", b"new", mode=0o640, aside="aside")
    assert [path.name for path in tmp_path.iterdir()] == ["name"]


def test_a_state_directory_where_every_user_may_write_is_refused(shared: Path) -> None:
    server = Adcore(shared)
    assert server.process.wait(20) == 3
    assert f"every user of this host may write to the state directory {shared}: chmod o-w it" in server.errors


@needs_root
def test_a_server_starts_beside_the_files_of_others(shared: Path, tmp_path: Path) -> None:
    """Whatever it finds in a shared folder for spools, it starts at once or says what to remove."""
    (shared / "views.followed").symlink_to(tmp_path / "precious")
    (tmp_path / "precious").write_bytes(b"precious")
    server = Adcore(tmp_path / "state", "--spool-dir", str(shared))
    assert server.process.wait(20) == 3
    assert "views.followed: it is a symbolic link where every user may write" in server.errors
    assert (tmp_path / "precious").read_bytes() == b"precious"


# --- files that are made whole


@pytest.fixture(params=["no name", "two names"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Without a name until it is whole, or, as where the file system lacks that, under two names for a moment."""
    if request.param == "two names":
        # With these flags alone open(2) fails as it does where O_TMPFILE is not known: EISDIR.
        monkeypatch.setattr(os, "O_TMPFILE", os.O_DIRECTORY)
    return str(request.param)


def start_at_once(folder: Path) -> None:
    """Open and close what each process of a server opens first."""
    ring = KeyRing.load_or_create(folder / "secret")
    followed = [Followed.open(folder / f"{kind}.followed", 60) for kind in ("clicks", "views")]
    spools = Spools(folder, 4096, 4096)
    assert take_over(folder, folder / "log", RecordQueue(1 << 20, FORMS["json"])) == 0
    for links in followed:
        links.close()
    spools.close()
    with (folder.parent / "keys").open("a") as keys:
        keys.write(f"{ring.derive(b'x').hex()}\n")


@pytest.mark.usefixtures("way")
def test_processes_that_start_at_once_in_a_shared_folder_all_start(shared: Path) -> None:
    """None takes what another one is making for a trap, or for what a dead one has left."""
    fork = multiprocessing.get_context("fork")
    for _ in range(10):
        gate = fork.Barrier(16)

        def run(gate: Barrier = gate) -> None:
            gate.wait(60)
            start_at_once(shared)

        processes = [fork.Process(target=run) for _ in range(16)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(120)
        assert [process.exitcode for process in processes] == [0] * 16
        keys = (shared.parent / "keys").read_text().split()
        assert (len(keys), len(set(keys))) == (16, 1)
        assert sorted(path.name for path in shared.iterdir()) == ["clicks.followed", "secret", "views.followed"]
        for path in (*shared.iterdir(), shared.parent / "keys"):
            path.unlink()


def test_servers_that_start_at_once_on_a_fresh_state_directory_all_start(shared: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    servers = [
        Adcore(
            state,
            *(
                "--spool-dir",
                str(shared),
                "--unix",
                str(tmp_path / f"{n}.sock"),
                "--control",
                f"unix:{tmp_path}/c{n}.sock",
            ),
            address=f"unix:{tmp_path}/{n}.sock",
        )
        for n in range(6)
    ]
    try:
        for server in servers:
            server.wait_until_ready()
    finally:
        for server in servers:
            server.process.kill()
            server.process.wait()
    assert "second name" not in servers[0].errors
    assert "is no spool" not in servers[0].errors


@pytest.mark.usefixtures("way")
def test_a_file_is_whole_before_it_has_its_name_and_replaces_none(tmp_path: Path) -> None:
    path = tmp_path / "name"
    seen = []

    def fill(fd: int) -> None:
        os.write(fd, b"first")
        seen.append(path.exists())

    with umask(0):
        fd = create_own(path, fill, mode=0o640, durable=True)
    assert (os.pread(fd, 9, 0), os.fstat(fd).st_nlink, seen) == (b"first", 1, [False])
    assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o640
    assert not os.get_inheritable(fd)
    os.close(fd)
    with pytest.raises(FileExistsError):
        create_own(path, lambda fd: os.write(fd, b"second"))
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.usefixtures("way")
def test_one_that_cannot_be_filled_leaves_nothing(tmp_path: Path) -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match=r"File too large|No space"):
        create_own(tmp_path / "name", lambda fd: os.posix_fallocate(fd, 0, 1 << 60))
    assert list(tmp_path.iterdir()) == []
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_a_second_name_that_stays_is_refused_with_the_remedy(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also by those who wait for the maker of a file: not for long."""
    monkeypatch.setattr(files, "SETTLE_S", 0.01)
    plant_second_name_of_ours(shared / "secret")
    with pytest.raises(StartError, match=r"second name.*`find / -xdev -samefile .*secret` shows both: remove this one"):
        KeyRing.load_or_create(shared / "secret")


@pytest.mark.parametrize("opener", ["secret", "links followed"])
def test_a_second_name_that_goes_is_waited_for(shared: Path, monkeypatch: pytest.MonkeyPatch, opener: str) -> None:
    """Of a file that another process makes at this moment."""
    OPENERS_THAT_MAKE[opener](shared / "name")
    os.link(shared / "name", shared / "other")
    monkeypatch.setattr(time, "sleep", lambda _: (shared / "other").unlink())
    OPENERS_THAT_MAKE[opener](shared / "name")
    assert [path.name for path in shared.iterdir()] == ["name"]


def test_a_second_name_in_a_folder_of_ones_own_is_used_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as that of a backup."""
    keys = KeyRing.load_or_create(tmp_path / "secret").keys
    os.link(tmp_path / "secret", tmp_path / "other")
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("waited"))
    assert KeyRing.load_or_create(tmp_path / "secret").keys == keys


def plant_second_name_of_ours(path: Path) -> None:
    path.touch(0o600)
    os.link(path, path.with_name("other"))


def test_locks_and_maps_work_on_what_is_opened(tmp_path: Path) -> None:
    fd = open_own(tmp_path / "name", os.O_RDWR | os.O_CREAT)
    assert os.get_blocking(fd)
    assert not os.get_inheritable(fd)
    os.posix_fallocate(fd, 0, mmap.PAGESIZE)
    fcntl.flock(fd, fcntl.LOCK_EX)
    mmap.mmap(fd, 0).close()
    os.close(fd)
