"""What tools/requirements locks: all that pyproject.toml wants, in versions that it takes, each by hash."""

import re
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.process import ROOT, environment

FOLDER = ROOT / "tools" / "requirements"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
BASE = PROJECT["project"]["dependencies"]
EXTRAS = PROJECT["project"]["optional-dependencies"]
WANTED = {
    "adcore": BASE,
    "build": PROJECT["build-system"]["requires"],
    **{name: [*BASE, *wanted] for name, wanted in (*EXTRAS.items(), *PROJECT["dependency-groups"].items())},
}
WANTED["test"] = [*WANTED["test"], *(one for wanted in EXTRAS.values() for one in wanted)]
HERE: dict[str, str] = {**{name: str(value) for name, value in default_environment().items()}, "extra": ""}
PLACES = [
    {**HERE, "python_version": version, "python_full_version": f"{version}.1", "platform_machine": machine}
    for version in ("3.11", "3.12", "3.13")
    for machine in ("x86_64", "aarch64")
]


class Pin(NamedTuple):
    requirement: Requirement
    hashes: list[str]


def pins(name: str) -> list[Pin]:
    """Those of a file, and of the files that it names."""
    found = []
    for line in (FOLDER / f"{name}.txt").read_text().replace("\\\n", " ").splitlines():
        if line.startswith("-r "):
            found += pins(line.removeprefix("-r ").removesuffix(".txt"))
        elif not line.startswith("#"):
            text, *hashes = re.split(r"\s+--hash=", line)
            found.append(Pin(Requirement(text), hashes))
    return found


def versions(name: str, place: dict[str, str]) -> dict[str, str]:
    """By package, what is installed there."""
    found: dict[str, str] = {}
    for requirement, _ in pins(name):
        if requirement.marker is None or requirement.marker.evaluate(place):
            (specifier,) = requirement.specifier
            version = found.setdefault(canonicalize_name(requirement.name), specifier.version)
            assert version == specifier.version, f"{name}: {requirement.name} has two versions"
    return found


def test_every_extra_and_group_has_its_file_and_no_other_has() -> None:
    assert {path.stem for path in FOLDER.glob("*.txt")} == {*WANTED, "lock"}


@pytest.mark.parametrize("name", [*WANTED, "lock"])
def test_each_package_has_one_version_and_its_hashes(name: str) -> None:
    for requirement, hashes in pins(name):
        assert [one.operator for one in requirement.specifier] == ["=="], requirement
        assert requirement.url is None
        assert hashes, requirement
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", one) for one in hashes), requirement


@pytest.mark.parametrize("name", WANTED)
def test_what_is_wanted_is_locked_in_a_version_that_is_wanted(name: str) -> None:
    for place in PLACES:
        locked = versions(name, place)
        for requirement in map(Requirement, WANTED[name]):
            if requirement.marker is None or requirement.marker.evaluate(place):
                version = locked.get(canonicalize_name(requirement.name))
                assert version is not None, f"{name}.txt lacks {requirement.name}: run tools/lock"
                assert requirement.specifier.contains(version), (
                    f"{name}.txt has {version} of {requirement}: run tools/lock"
                )


@pytest.mark.parametrize("name", ["adcore", *EXTRAS, "test"])
def test_what_the_locked_packages_need_is_locked(name: str) -> None:
    """As the packages themselves say it that are installed here."""
    locked = versions(name, HERE)
    reached = {canonicalize_name(Requirement(one).name) for one in WANTED[name]}
    asked = [Requirement(one) for one in WANTED[name]]
    seen: set[str] = set()
    while asked:
        wanted = asked.pop()
        if str(wanted) in seen or (wanted.marker is not None and not wanted.marker.evaluate(HERE)):
            continue
        seen.add(str(wanted))
        package = canonicalize_name(wanted.name)
        assert package in locked, f"{name}.txt lacks {package}: run tools/lock"
        assert metadata.version(package) == locked[package], f"{package} is another one here: run tools/test"
        reached.add(package)
        for text in metadata.requires(package) or ():
            needed = Requirement(text)
            if needed.marker is None or any(
                needed.marker.evaluate({**HERE, "extra": extra}) for extra in ("", *wanted.extras)
            ):
                needed.marker = None
                asked.append(needed)
    assert {package for package in locked if package not in reached} == set()


def test_one_package_has_one_version_in_all_files() -> None:
    for place in PLACES:
        everywhere: dict[str, str] = {}
        for name in WANTED:
            for package, version in versions(name, place).items():
                assert everywhere.setdefault(package, version) == version, f"{package} in {name}.txt"


def test_no_file_says_where_packages_come_from() -> None:
    for path in FOLDER.glob("*.txt"):
        text = path.read_text()
        assert "://" not in text
        assert re.findall(r"^-.*", text, re.MULTILINE) == re.findall(r"^-r [a-z0-9]+\.txt$", text, re.MULTILINE)


def test_whatever_the_commands_install_is_looked_at_by_hash() -> None:
    scripts = [ROOT / "tools" / name for name in ("run", "test", "lock", "install", "venv.sh")]
    lines = [line.strip() for path in (*scripts, ROOT / "perf" / "run") for line in path.read_text().splitlines()]
    (pip,) = (line for line in lines if re.search(r"-m pip\b.* install\b|\bpip3? install\b", line) and line[0] != "#")
    assert pip.startswith('"$venv/bin/python" -m pip --disable-pip-version-check install ')  # that of run_pip
    for line in lines:
        if line.startswith("run_pip "):
            assert "--require-hashes" in line or "--no-deps --no-build-isolation" in line, line
    for path in (ROOT / "tests").rglob("*.py"):
        assert not re.search(r'"npm"?, "?install', path.read_text()), f"{path}: npm ci looks at hashes"


def test_every_package_of_npm_has_its_hash() -> None:
    for path in (ROOT / "tests").rglob("package-lock.json"):
        locked = re.findall(r'"node_modules/[^"]+": \{([^}]*)', path.read_text())
        assert locked
        assert all('"integrity": "sha512-' in one for one in locked), path


def make_venv(folder: Path, pip: str) -> "subprocess.CompletedProcess[str]":
    """tools/venv.sh on a checkout in `folder`, with this program as the virtual environment's Python."""
    (folder / "tools" / "requirements").mkdir(parents=True)
    for name in ("venv.sh", "requirements/adcore.txt", "requirements/build.txt"):
        (folder / "tools" / name).write_text((ROOT / "tools" / name).read_text())
    (folder / "pyproject.toml").touch()
    python = folder / "python"
    python.write_text(
        "#!/bin/sh\n"
        f'[ "$2" != venv ] || {{ mkdir -p "$3/bin" && cp "$0" "$3/bin/python"; exit; }}\n'
        f'case "$*" in *" pip "*) echo "$*" >>{folder}/calls; {pip} ;; *) exec {{python}} "$@" ;; esac\n'.replace(
            "{python}", "python3"
        )
    )
    python.chmod(0o755)
    script = f'program=t; . {folder}/tools/venv.sh; python={python}; make_venv "$root/.adcore/venv" x adcore'
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_package_with_another_hash_is_not_installed_and_named(tmp_path: Path) -> None:
    log = f'log={tmp_path}/.adcore/pip.log; echo "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES" >>$log; exit 1'
    made = make_venv(tmp_path, log)
    assert made.returncode == 1
    assert "a package is not the one that tools/requirements locks" in made.stderr
    assert not (tmp_path / ".adcore/venv/stamp").exists()
    assert len((tmp_path / "calls").read_text().splitlines()) == 1


def test_what_builds_comes_first_then_what_is_needed_then_the_project(tmp_path: Path) -> None:
    assert make_venv(tmp_path, "exit 0").returncode == 0
    build, needed, project = (tmp_path / "calls").read_text().splitlines()
    assert "--require-hashes --only-binary :all:" in build
    assert build.endswith("/tools/requirements/build.txt")
    assert "--require-hashes" in needed
    assert needed.endswith("/tools/requirements/adcore.txt")
    assert "--no-deps --no-build-isolation --editable" in project
    assert (tmp_path / ".adcore/venv/stamp").exists()
