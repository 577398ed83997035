"""Writes the lock files beside it: for each extra and dependency group of pyproject.toml, what is installed, by hash.

adcore.txt is what adcore itself needs; the file of an extra or group names that one (pip reads `-r` lines) and adds
what is missing there. build.txt is what setuptools builds with, lock.txt the resolver. One resolution stands behind all
of them, so that a package has one version wherever it is installed, on Linux and any Python that adcore runs on.
`tools/lock` runs this with the resolver of lock.txt (uv); the files are for pip alone.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

FOLDER = Path(__file__).parent
PYPROJECT = FOLDER.parent.parent / "pyproject.toml"
# What the files must install on, from wheels alone.
PLATFORMS = ("x86_64-manylinux_2_28", "aarch64-manylinux_2_28")
PYTHONS = ("3.11", "3.12", "3.13")
# What has no wheels anywhere.
BUILT = ("mysqlclient",)
# Groups that need the whole program, and those that need what adcore itself needs.
WITH_EXTRAS = {"test"}
RESOLVER = "uv>=0.9"

Pins = dict[str, str]
"""By the line that names package, version and marker: that line and those of its hashes."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="tools/lock", description=__doc__, allow_abbrev=False)
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions, not those locked before")
    upgrade = parser.parse_args().upgrade
    with PYPROJECT.open("rb") as file:
        project = tomllib.load(file)
    before: Pins = {}
    if not upgrade:
        for path in sorted(FOLDER.glob("*.txt")):
            before |= parse(path.read_text())

    base = project["project"]["dependencies"]
    extras = project["project"]["optional-dependencies"]
    groups = project["dependency-groups"]
    of_extras = [*base, *chain.from_iterable(extras.values())]
    whole = resolve([*of_extras, *chain.from_iterable(groups.values())], before)

    def locked(requirements: Iterable[str]) -> Pins:
        return resolve(requirements, whole, constrained=True)

    adcore, with_extras = locked(base), locked(of_extras)
    write("adcore", (), adcore)
    for name, wanted in extras.items():
        write(name, ["adcore"], without(locked([*base, *wanted]), adcore))
    for name, wanted in groups.items():
        if name in WITH_EXTRAS:
            write(name, ["adcore", *extras], without(locked([*of_extras, *wanted]), with_extras))
        else:
            write(name, ["adcore"], without(locked([*base, *wanted]), adcore))
    write("build", (), resolve(project["build-system"]["requires"], before))
    write("lock", (), resolve([RESOLVER], before))
    check_wheels(whole)
    return 0


def check_wheels(pins: Pins) -> None:
    """Whether each machine and Python finds a wheel of each of them."""
    built = [word for name in BUILT for word in ("--no-binary", name)]
    for platform in PLATFORMS:
        for python in PYTHONS:
            where = ("--python-platform", platform, "--python-version", python)
            command = ("uv", "pip", "compile", "--quiet", "--no-config", "--only-binary", ":all:", *built, *where, "-")
            subprocess.run(command, check=True, input="\n".join(pins), text=True, stdout=subprocess.DEVNULL)


def resolve(requirements: Iterable[str], preferred: Pins, *, constrained: bool = False) -> Pins:
    """What these come to; `preferred` versions where they fit, or if `constrained` no others."""
    with tempfile.TemporaryDirectory() as name:
        wanted, constraints, found = (Path(name) / file for file in ("wanted.in", "constraints.txt", "found.txt"))
        wanted.write_text("\n".join(requirements) + "\n")
        text = "".join(preferred.values())
        constraints.write_text(text if constrained else "")
        found.write_text(text)
        command: Sequence[str] = (
            *("uv", "pip", "compile", "--quiet", "--no-config", "--universal", "--python-version", oldest_python()),
            *("--generate-hashes", "--no-header", "--no-annotate", "--no-emit-index-url", "--no-emit-find-links"),
            *("--constraints", str(constraints), "--output-file", str(found), str(wanted)),
        )
        subprocess.run(command, check=True)
        pins = parse(found.read_text())
    return {line: pin for line, pin in pins.items() if "sys_platform == 'win32'" not in line}


def oldest_python() -> str:
    with PYPROJECT.open("rb") as file:
        return str(tomllib.load(file)["project"]["requires-python"].removeprefix(">="))


def parse(text: str) -> Pins:
    pins: Pins = {}
    for pin in re.findall(r"^[A-Za-z0-9].*\n(?:[ \t]+.*\n)*", text, re.MULTILINE):
        pins[pin.partition(" \\\n")[0]] = pin
    return pins


def without(pins: Pins, others: Pins) -> Pins:
    return {line: pin for line, pin in pins.items() if line not in others}


def write(name: str, parts: Sequence[str], pins: Pins) -> None:
    lines = ["# Made by tools/lock from pyproject.toml; do not edit.\n", *(f"-r {part}.txt\n" for part in parts)]
    (FOLDER / f"{name}.txt").write_text("".join([*lines, *(pins[line] for line in sorted(pins))]))


if __name__ == "__main__":
    sys.exit(main())
