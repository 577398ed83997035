"""Folders that other users may write to, by owner, mode, group or ACL: what is opened there, and who starts there."""

import contextlib
import errno
import os
import re
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from adcore.errors import AdcoreError, SourceError
from adcore.files import create_own, folder_problem, open_found, open_own, read_own, replace_own
from adcore.pidfile import PidFile
from adcore.sources.sqlite import SqliteStore
from tests.process import Adcore
from tests.test_files import NAMES, OPENERS, OTHER_UID, needs_root, plant_file_of_another, plant_link, plant_second_name

OWN_UID = 65533
LONELY_GID = 54_321
"""No user of this host is in it."""
DAEMON_GID = 1
"""The user daemon is in it, on every Linux."""


@pytest.fixture
def folder() -> Iterator[Path]:
    """One that every user reaches, unlike pytest's own."""
    above = Path(tempfile.mkdtemp(prefix="adcore-folders-"))
    above.chmod(0o755)
    (above / "precious").write_text("precious")
    (above / "precious").chmod(0o600)
    path = above / "folder"
    path.mkdir()
    path.chmod(0o755)
    yield path
    shutil.rmtree(above)


@contextlib.contextmanager
def acting_as(uid: int) -> Iterator[None]:
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(uid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def let_in_by_acl(path: Path, uid: int) -> None:
    """`setfacl -m u:UID:rwx`, see acl(5) and linux/posix_acl_xattr.h."""
    entries = [(0x01, 7, -1), (0x02, 7, uid), (0x04, 5, -1), (0x10, 7, -1), (0x20, 5, -1)]
    packed = b"".join(struct.pack("<HHi", *entry) for entry in entries)
    os.setxattr(path, "system.posix_acl_access", struct.pack("<I", 2) + packed)


# --- another user's folder


@needs_root
@pytest.mark.parametrize("opener", sorted({*OPENERS} - {"found log"}))
def test_nothing_of_adcores_own_is_opened_or_made_in_the_folder_of_another_user(folder: Path, opener: str) -> None:
    folder.chmod(0o777)
    os.chown(folder, OTHER_UID, OTHER_UID)
    with acting_as(OWN_UID), pytest.raises((AdcoreError, OSError)) as caught:
        OPENERS[opener](folder / NAMES.get(opener, "name"))
    assert f"the folder {folder} belongs to nobody (uid 65534), who could put anything there" in str(caught.value)
    assert f"`chown uid {OWN_UID}` it, run this as nobody, or choose another folder" in str(caught.value)
    assert list(folder.iterdir()) == []


@needs_root
@pytest.mark.parametrize(
    "make",
    [lambda path: create_own(path, os.fsync), lambda path: replace_own(path, b"", mode=0o600, aside="aside")],
    ids=["create", "replace"],
)
def test_nothing_new_is_made_there_either(folder: Path, make: Callable[[Path], object]) -> None:
    folder.chmod(0o777)
    os.chown(folder, OTHER_UID, OTHER_UID)
    with acting_as(OWN_UID), pytest.raises(OSError, match="belongs to nobody"):
        make(folder / "name")
    assert list(folder.iterdir()) == []


@needs_root
@pytest.mark.parametrize("owner", [OWN_UID, 0])
def test_a_folder_of_this_user_or_of_root_is_trusted(folder: Path, owner: int) -> None:
    (folder / "elsewhere").write_text("held")
    (folder / "name").symlink_to("elsewhere")
    os.chown(folder, owner, owner)
    with acting_as(OWN_UID):
        assert read_own(folder / "name")[0] == b"held"


@needs_root
def test_a_log_of_the_service_is_read_by_another_user_and_no_link_beside_it(folder: Path) -> None:
    """Who is in the service's group reads its logs and its archive, and answers for the choice of the folder."""
    os.chown(folder, OTHER_UID, OTHER_UID)
    for name, uid in (("log", OTHER_UID), ("root's", 0), ("mine", OWN_UID), ("third", 65532)):
        (folder / name).write_text(name)
        os.chown(folder / name, uid, uid)
    (folder / "link").symlink_to("log")
    with acting_as(OWN_UID):
        for name in ("log", "root's", "mine"):
            with os.fdopen(open_found(folder / name)) as file:
                assert file.read() == name
        with pytest.raises(
            OSError, match=r"another user \(uid 65532\), where the user nobody may write: .*; remove it"
        ):
            open_found(folder / "third")
        with pytest.raises(OSError, match="symbolic link where the user nobody may write"):
            open_found(folder / "link")


@needs_root
def test_root_works_on_the_files_of_the_service_and_follows_no_link_of_it(folder: Path) -> None:
    """As `sudo adctl` does."""
    os.chown(folder, OTHER_UID, OTHER_UID)
    (folder / "name").write_text("the service's")
    os.chown(folder / "name", OTHER_UID, OTHER_UID)
    assert read_own(folder / "name")[0] == b"the service's"
    os.close(open_own(folder / "new", os.O_RDWR | os.O_CREAT))
    replace_own(folder / "name", b"root's", mode=0o640, aside="aside")
    assert read_own(folder / "name")[0] == b"root's"
    for plant, why in ((plant_link, "symbolic link"), (plant_second_name, "second name")):
        plant(folder / plant.__name__)
        with pytest.raises(OSError, match=f"{why},? where the user nobody may write"):
            open_own(folder / plant.__name__, os.O_RDWR)
    os.chown(folder / "name", OWN_UID, OWN_UID)
    with pytest.raises(OSError, match=r"another user \(uid 65533\)"):
        read_own(folder / "name")


# --- a folder in which others may write


def by_group(folder: Path) -> None:
    os.chown(folder, 0, DAEMON_GID)
    folder.chmod(0o2770)


def by_acl(folder: Path) -> None:
    let_in_by_acl(folder, OTHER_UID)


@needs_root
@pytest.mark.parametrize("let_in", [by_group, by_acl])
@pytest.mark.parametrize("plant", [plant_link, plant_second_name, plant_file_of_another])
def test_what_a_group_or_an_acl_lets_others_put_there_is_refused(
    folder: Path, let_in: Callable[[Path], None], plant: Callable[[Path], None]
) -> None:
    let_in(folder)
    plant(folder / "name")
    with pytest.raises(OSError, match=r"where its group may write: .*remove"):
        open_own(folder / "name", os.O_RDWR)
    (folder / "name").unlink()
    os.close(open_own(folder / "name", os.O_RDWR | os.O_CREAT))
    os.close(open_own(folder / "name", os.O_RDWR))


@needs_root
@pytest.mark.parametrize(
    ("owner", "gid", "mode", "problem", "problem_of_spools"),
    [
        (0, 0, 0o755, None, None),
        (OWN_UID, 0, 0o750, None, None),
        (OTHER_UID, 0, 0o700, "belongs to nobody: `chown", "belongs to nobody: `chown"),
        (0, 0, 0o1777, "every user of this host may write to the .*: chmod o-w it", None),
        (0, 0, 0o777, "every user of this host may write to", r"every user of this host may remove files .*chmod \+t"),
        (
            0,
            DAEMON_GID,
            0o770,
            "daemon, of its group, may write to the .*: chmod g-w",
            "daemon, of its group, may remove",
        ),
        (0, DAEMON_GID, 0o1770, "daemon, of its group, may write to", None),
        (0, DAEMON_GID, 0o750, None, None),
        (OWN_UID, LONELY_GID, 0o770, None, None),
    ],
)
def test_a_folder_is_judged_by_its_owner_and_by_who_else_may_write(
    folder: Path, owner: int, gid: int, mode: int, problem: str | None, problem_of_spools: str | None
) -> None:
    os.chown(folder, owner, gid)
    folder.chmod(mode)
    with acting_as(OWN_UID):
        for sticky, expected in ((False, problem), (True, problem_of_spools)):
            found = folder_problem(folder, "state directory", sticky=sticky)
            if expected is None:
                assert found is None
            else:
                assert found is not None
                assert re.search(expected, found), found


@needs_root
def test_a_file_system_without_acls_has_groups(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> list[str]:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(os, "listxattr", fail)
    by_group(folder)
    assert folder_problem(folder, "x") == f"daemon, of its group, may write to the x {folder}: chmod g-w it"


@needs_root
def test_an_acl_that_lets_another_user_write_is_named(folder: Path) -> None:
    let_in_by_acl(folder, OTHER_UID)
    assert folder_problem(folder, "x") == f"a user of its ACL may write to the x {folder}: chmod g-w it"
    folder.chmod(0o755)  # that is the ACL's mask
    assert folder_problem(folder, "x") is None
    with acting_as(OTHER_UID), pytest.raises(PermissionError):
        (folder / "name").touch()


@needs_root
def test_a_pid_file_is_locked_by_no_other_user(folder: Path) -> None:
    """A lock needs no more than to read the file, and tells of a server that runs."""
    with PidFile(folder / "pid"), acting_as(OWN_UID), pytest.raises(PermissionError):
        os.open(folder / "pid", os.O_RDONLY)


@pytest.mark.parametrize("through_link", [False, True])
@pytest.mark.parametrize("use", [SqliteStore.migrate, SqliteStore.load])
def test_no_sqlite_store_is_where_every_user_may_put_a_log_beside_it(
    folder: Path, use: Callable[[SqliteStore], object], through_link: bool
) -> None:
    """SQLite plays back the pages that a file NAME-wal has, whoever made that."""
    path = folder / "store.db"
    store = SqliteStore(f"sqlite://{path}")
    store.migrate()
    store.close()
    before = path.read_bytes()
    folder.chmod(0o1777)
    if through_link:
        (folder.parent / "link.db").symlink_to(path)
        path = folder.parent / "link.db"
    with pytest.raises(SourceError, match=f"every user of this host may write to {folder}.*folder of adcore's own"):
        use(SqliteStore(f"sqlite://{path}"))
    assert [one.name for one in folder.iterdir()] == ["store.db"]
    assert path.read_bytes() == before


# --- where no server starts


@needs_root
@pytest.mark.parametrize("kind", ["state", "spool"])
def test_no_server_starts_in_the_folder_of_another_user(tmp_path: Path, kind: str) -> None:
    """Not even root's: it maps files there, which their owner could cut short."""
    folders = {"state": tmp_path / "state", "spool": tmp_path / "spool"}
    for path in folders.values():
        path.mkdir()
    os.chown(folders[kind], OTHER_UID, OTHER_UID)
    server = Adcore(folders["state"], "--spool-dir", str(folders["spool"]))
    assert server.process.wait(20) == 3
    assert (
        f"the {kind} directory {folders[kind]} belongs to nobody: `chown root` it, or run this as nobody, "
        f"or choose another --{kind}-dir" in server.errors
    )
    assert not list(folders[kind].glob("*.followed"))
    assert not list(folders[kind].glob("secret"))


@needs_root
def test_no_server_starts_with_spools_that_others_may_remove(tmp_path: Path) -> None:
    spools = tmp_path / "spool"
    spools.mkdir()
    spools.chmod(0o777)
    server = Adcore(tmp_path / "state", "--spool-dir", str(spools))
    assert server.process.wait(20) == 3
    assert f"every user of this host may remove files from the spool directory {spools}: chmod +t" in server.errors


def test_a_spool_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    server = Adcore(tmp_path / "state", "--spool-dir", str(tmp_path / "none"))
    assert server.process.wait(20) == 3
    assert f"{tmp_path / 'none'}: No such file or directory; see --spool-dir" in server.errors
