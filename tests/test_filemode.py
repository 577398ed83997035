"""Every file and folder has a mode that was written down, whatever umask a program is started with."""

import os
import re
import signal
import socket
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgpack
import psutil
import pytest

from adcore.files import make_folder, open_file, replace_own
from adcore.sources import Revision, Rows
from adcore.sources.lastgood import LastGood
from adtools.admin.images import EncodedImage
from adtools.admin.imagestore import Directory
from tests.process import adctl, ask, serving, wait_for
from tests.tools.admin.served import Admin

UMASKS = [0o000, 0o022, 0o077]


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.mark.parametrize("mask", UMASKS)
def test_what_is_made_has_exactly_its_mode_and_what_was_there_keeps_its_own(tmp_path: Path, mask: int) -> None:
    with umask(mask):
        for wanted in (0o600, 0o640, 0o644):
            path = tmp_path / f"{wanted:o}"
            os.close(open_file(path, os.O_WRONLY | os.O_CREAT, wanted))
            assert mode(path) == wanted
            path.chmod(0o606)
            os.close(open_file(path, os.O_WRONLY | os.O_CREAT, wanted))
            assert mode(path) == 0o606
            replace_own(path, b"x", mode=wanted, aside="aside")
            assert (mode(path), path.read_bytes()) == (wanted, b"x"), "nothing of what was left there"
        with pytest.raises(FileExistsError):
            open_file(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        make_folder(tmp_path / "a/b/c", 0o750)
        make_folder(tmp_path / "a/b/c", 0o700)
        assert {mode(tmp_path / name) for name in ("a", "a/b", "a/b/c")} == {0o750}
        LastGood(tmp_path / "last-good.rows").save(Rows(Revision("g", 1, 1), {}))
        assert mode(tmp_path / "last-good.rows") == 0o640


def test_a_link_in_the_place_of_a_new_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "aside").symlink_to(tmp_path / "target")
    replace_own(tmp_path / "file", b"x", mode=0o640, aside="aside")
    assert not (tmp_path / "target").exists()
    assert not (tmp_path / "file").is_symlink()


@contextmanager
def collector() -> Iterator[str]:
    """HOST:PORT of a collector that acknowledges all that `adctl forward` sends."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            unpacker = msgpack.Unpacker()
            with connection:
                while data := connection.recv(1 << 16):
                    unpacker.feed(data)
                    for message in unpacker:
                        connection.sendall(msgpack.packb({"ack": message[-1]["chunk"]}))

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def modes(folder: Path) -> dict[str, str]:
    """What is in a folder, by name without its numbers: kind and mode."""
    found = {}
    for path in sorted(folder.rglob("*")):
        try:
            status = path.lstat()
        except FileNotFoundError:  # renamed meanwhile
            continue
        name = re.sub(r"[0-9a-f]{16,}|[0-9]+", "N", str(path.relative_to(folder)))
        name = name.replace("counts-N.", "counts.")  # the workers that answered have one, whichever they are
        found[name] = stat.filemode(status.st_mode)
    # What the tests themselves put there.
    return {name: mode for name, mode in found.items() if name not in ("stderr.txt", "admin.txt")}


def everything_made(tmp_path: Path, mask: int) -> dict[str, str]:
    """All that a server with two workers, `collect`, `forward` and the admin make, with this umask."""
    state = tmp_path / "state"
    state.mkdir()
    state.chmod(0o750)
    told = {"ADCORE_STATE_DIR": str(state)}
    own = ("--archive-dir", str(state / "deep/er/tables"), "--pid-file", str(state / "adcore.pid"))
    found: dict[str, str] = {}
    with umask(mask):
        applied = adctl("migrate", **told)
        assert applied.returncode == 0, applied.stderr
        found |= modes(state)
        with serving(state, *own, "--workers", "2") as server:
            wait_for(lambda: [one["state"] for one in server.status()["workers"]] == ["serving"] * 2)
            for _ in range(4):
                assert server.ask("/v1/decision?placement=top").status in (200, 204)
            # For what libraries make in any of its processes.
            for process in (psutil.Process(server.process.pid), *psutil.Process(server.process.pid).children(True)):
                assert "Umask:\t0027\n" in Path(f"/proc/{process.pid}/status").read_text(), process.cmdline()
            wait_for(lambda: "last-good.rows" in modes(state))
            wait_for(lambda: any(name.startswith("deep/er/tables/") for name in modes(state)))
            found |= modes(state)
            server.log.rename(state / "delivery.log.1")
            server.signal(signal.SIGUSR1)
            wait_for(server.log.exists)
            found |= modes(state)
            assert server.stop() == 0
        found |= modes(state)
        log = str(state / "delivery.log.1")
        for command in (("collect", log), ("learn",), ("report", "--by", "day")):
            done = adctl(*command, **told)
            assert done.returncode == 0, done.stderr
            found |= modes(state)
        with collector() as address:
            done = adctl("forward", log, "--to", address, **told)
            assert done.returncode == 0, done.stderr
        found |= modes(state)
        with Admin(state, "--unix", str(state / "admin.sock"), "--url", "http://localhost") as admin:
            admin.link("anna", "editor")
            assert ask(f"unix:{state}/admin.sock", "/login/").status in (200, 400)
            found |= modes(state)
    return found | modes(state)


def test_no_umask_changes_the_mode_of_anything_that_a_program_makes(tmp_path: Path) -> None:
    made = {}
    for mask in UMASKS:
        folder = tmp_path / f"{mask:03o}"
        folder.mkdir(mode=0o750)
        made[mask] = everything_made(folder, mask)
    for mask in UMASKS:
        for name, mode in made[mask].items():
            allowed = {"drwxr-x---", "srw-rw----", "-rw-r-----", "-rw-------"}
            assert mode in allowed, (mask, name, mode)
    names = set.intersection(*(set(found) for found in made.values()))
    assert names >= {
        *("adcore.db", "adcore.db-wal", "adcore.db-shm", "delivery.log", "delivery.log.N", "delivery.log.N.forward"),
        *("secret", "admin-secret", "last-good.rows", "counts.json", "clicks.followed", "views.followed", "adcore.pid"),
        *("deep", "deep/er", "deep/er/tables", "deep/er/tables/lock", "ad.sock", "control.sock", "worker-N.sock"),
        *("admin.sock", "N.spool"),
    }
    for name in names:
        assert len({found[name] for found in made.values()}) == 1, name


def test_images_are_public_and_no_more(tmp_path: Path) -> None:
    for mask in UMASKS:
        folder = tmp_path / f"{mask:03o}" / "creatives"
        with umask(mask):
            Directory(folder, "https://i.example.net").put(EncodedImage("0" * 40 + ".png", "image/png", b"x", 1, 1))
        assert {mode(folder.parent), mode(folder), mode(folder / ("0" * 40 + ".png"))} == {0o755, 0o644}
