"""The command line as a real child process: what it prints and how it exits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from adcore import __version__
from adcore.version import git_revision, pip_revision

ROOT = Path(__file__).parent.parent


def adcore(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("ADCORE_")}
    return subprocess.run(
        [sys.executable, "-m", "adcore", *arguments],
        cwd=ROOT,
        env=inherited | environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_version_is_printed() -> None:
    done = adcore("--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"adcore {__version__}")


def test_help_names_the_signals_and_exit_statuses() -> None:
    done = adcore("--help")
    assert done.returncode == 0
    assert "USR1 reopens" in " ".join(done.stdout.split())
    assert "3 could not start" in " ".join(done.stdout.split())


def test_check_config_says_where_it_would_listen() -> None:
    done = adcore("--check-config", "--unix", "/run/ad.sock")
    assert (done.returncode, done.stderr) == (0, "")
    assert "unix:/run/ad.sock" in done.stdout


@pytest.mark.parametrize("action", ["--check-config", "--print-config"])
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--port", "x"], "adcore: --port: must be a whole number"),
        (["--portt", "1"], "adcore: unrecognized arguments: --portt"),
        (["--por", "1"], "adcore: unrecognized arguments: --por"),
        (["--port"], "adcore: argument --port: expected one argument"),
        (["--version"], "not allowed with argument"),
    ],
)
def test_wrong_usage_exits_2_with_one_line(action: str, arguments: list[str], says: str) -> None:
    done = adcore(action, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr
    assert done.stderr.count("\n") == 1


def test_printed_configuration_is_taken_back_through_config(tmp_path: Path) -> None:
    path = tmp_path / "ad.toml"
    arguments = ("--unix", "/run/ad.sock", "--no-cookie-secure", "--refresh", "2.5")
    path.write_text(adcore("--print-config", *arguments, XDG_STATE_HOME="/var/state").stdout)
    done = adcore("--print-config", "--config", str(path))
    assert done.returncode == 0

    def values(text: str) -> list[str]:
        return [line for line in text.splitlines() if line and not line.startswith("# ")]

    assert values(done.stdout) == values(path.read_text())
    assert "cookie_secure = false" in values(done.stdout)


def test_the_secret_is_never_printed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("k1:" + "5ec7e7" * 10)
    done = adcore("--print-config", "--state-dir", str(tmp_path), ADCORE_SOURCE="mysql://u:5ec7e7@db/ads")
    assert done.returncode == 0
    assert "5ec7e7" not in done.stdout + done.stderr


def test_a_bad_environment_variable_exits_2_and_is_named() -> None:
    done = adcore("--check-config", ADCORE_PORT="eighty")
    assert done.returncode == 2
    assert done.stderr.startswith("adcore: ADCORE_PORT: must be a whole number")


def test_a_server_that_cannot_start_exits_3_and_names_what_is_missing(tmp_path: Path) -> None:
    done = adcore("--state-dir", str(tmp_path), "--unix", str(tmp_path / "none" / "ad.sock"))
    assert done.returncode == 3
    assert f"there is no directory {tmp_path}/none; create it first" in done.stderr
    assert "Traceback" not in done.stderr


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({".git/HEAD": COMMIT}, COMMIT),
        ({".git/HEAD": "ref: refs/heads/main\n", ".git/refs/heads/main": COMMIT + "\n"}, COMMIT),
        (
            {
                ".git/HEAD": "ref: refs/heads/main",
                ".git/packed-refs": f"# pack-refs\n{COMMIT} refs/heads/main\n",
            },
            COMMIT,
        ),
        (
            {
                ".git": "gitdir: g/worktrees/a\n",
                "g/worktrees/a/HEAD": "ref: refs/heads/a",
                "g/worktrees/a/commondir": "../..",
                "g/refs/heads/a": COMMIT,
            },
            COMMIT,
        ),
        ({".git/HEAD": "ref: refs/heads/unborn"}, None),
        ({".git/HEAD": "nonsense"}, None),
        ({}, None),
    ],
)
def test_git_revision_is_read_from_a_checkout(tmp_path: Path, files: dict[str, str], expected: str | None) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert git_revision(tmp_path) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            json.dumps({"url": "https://example.net/ads", "vcs_info": {"vcs": "git", "commit_id": COMMIT}}),
            COMMIT,
        ),
        (json.dumps({"url": "file:///srv/adcore", "dir_info": {}}), None),
        ("nonsense", None),
        (None, None),
    ],
)
def test_git_revision_is_known_of_what_pip_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, expected: str | None
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    folder = tmp_path / "ads_x-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: ads-x\nVersion: 1.0\n")
    if text is not None:
        (folder / "direct_url.json").write_text(text)
    assert pip_revision("ads-x") == expected
    assert pip_revision("ads-y") is None
