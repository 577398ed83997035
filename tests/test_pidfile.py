"""One running server per pid file; a stale one is no obstacle, another's is never harmed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from adcore.errors import StartError
from adcore.pidfile import PidFile

HOLD = """
import sys
from pathlib import Path
from adcore.pidfile import PidFile
with PidFile(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def dead_pid() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        pass
    return child.pid


def test_the_file_holds_the_pid_and_is_removed_on_exit(tmp_path: Path) -> None:
    path = tmp_path / "ad.pid"
    with PidFile(path):
        assert path.read_text() == f"{os.getpid()}\n"
    assert not path.exists()


def test_a_live_owner_is_refused_by_its_pid_and_keeps_its_file(tmp_path: Path) -> None:
    path = tmp_path / "ad.pid"
    root = Path(__file__).parent.parent
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root
    ) as owner:
        assert owner.stdin is not None
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"held\n"
        with pytest.raises(StartError, match=rf"{path} belongs to the running process {owner.pid}"):
            PidFile(path).acquire()
        assert path.read_text() == f"{owner.pid}\n"
        path.write_text("nonsense")  # the lock says that it lives, whatever the file says
        with pytest.raises(StartError, match=rf"{path} belongs to a running process"):
            PidFile(path).acquire()
        owner.kill()
    assert path.exists()
    with PidFile(path):  # what a killed owner leaves is stale
        assert path.read_text() == f"{os.getpid()}\n"


@pytest.mark.parametrize("text", ["", "nonsense", "999999999999999999999999\n", "12 34"])
def test_a_file_without_a_pid_is_stale(tmp_path: Path, text: str) -> None:
    path = tmp_path / "ad.pid"
    path.write_text(text)
    with PidFile(path):
        assert path.read_text() == f"{os.getpid()}\n"


def test_the_pid_of_no_process_is_stale(tmp_path: Path) -> None:
    path = tmp_path / "ad.pid"
    path.write_text(f"{dead_pid()}\n")
    with PidFile(path):
        assert path.read_text() == f"{os.getpid()}\n"


def test_another_programs_file_is_refused_while_that_program_runs(tmp_path: Path) -> None:
    path = tmp_path / "nginx.pid"
    path.write_text(f"{os.getppid()}\n")
    with pytest.raises(StartError, match=f"running process {os.getppid()}"):
        PidFile(path).acquire()
    assert path.read_text() == f"{os.getppid()}\n"


def test_a_reused_pid_is_stale(tmp_path: Path) -> None:
    path = tmp_path / "ad.pid"
    path.write_text(f"{os.getppid()}\n")
    long_ago = time.time() - 10 * 365 * 86400
    os.utime(path, (long_ago, long_ago))
    with PidFile(path):
        assert path.read_text() == f"{os.getpid()}\n"


def test_a_successors_file_stays_on_exit(tmp_path: Path) -> None:
    path = tmp_path / "ad.pid"
    with PidFile(path):
        path.unlink()
        path.write_text("77\n")
    assert path.read_text() == "77\n"


def test_a_file_overwritten_with_another_pid_stays_on_exit(tmp_path: Path) -> None:
    path = tmp_path / "ad.pid"
    with PidFile(path):
        path.write_text("77\n")
    assert path.read_text() == "77\n"


def test_releasing_twice_is_harmless(tmp_path: Path) -> None:
    file = PidFile(tmp_path / "ad.pid")
    file.acquire()
    file.release()
    file.release()


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=f"cannot open the pid file .*check {tmp_path}/none"):
        PidFile(tmp_path / "none" / "ad.pid").acquire()


def test_a_symbolic_link_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("1\n")
    (tmp_path / "ad.pid").symlink_to(target)
    with pytest.raises(StartError, match="cannot open the pid file"):
        PidFile(tmp_path / "ad.pid").acquire()
    assert target.read_text() == "1\n"
