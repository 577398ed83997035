"""The counts that a revision is held to: baseline.json, by Python's minor version: each allocates its own way."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

BASELINE = Path(__file__).with_name("baseline.json")
TOLERANCE = 0.05
"""A stage may take this much more than its baseline: releases of msgspec and httptools differ by less."""
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"


class NoBaseline(Exception):
    """There is nothing to hold this version of Python to."""


def read_blocks(path: Path) -> dict[str, float]:
    """The blocks of each stage in this version of Python. Raises NoBaseline."""
    known = _read(path)
    if VERSION not in known:
        raise NoBaseline(f"{path.name} has Python {', '.join(known) or 'of no version'}; write {VERSION} with --update")
    return dict(known[VERSION]["blocks"])


def write(path: Path, blocks: Mapping[str, float], instructions: Mapping[str, float]) -> None:
    """Replace the stages given, of this version of Python; the others stay."""
    known = _read(path)
    version = known.setdefault(VERSION, {"blocks": {}, "instructions": {}})
    version["blocks"].update({stage: round(count, 2) for stage, count in blocks.items()})
    version["instructions"].update({stage: round(count) for stage, count in instructions.items()})
    path.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n")


def regressions(counted: Mapping[str, float], held_to: Mapping[str, float]) -> list[str]:
    """Each stage that allocates too much, and by how much; a stage without a baseline is one too."""
    found = []
    for stage, blocks in counted.items():
        limit = held_to.get(stage)
        if limit is None:
            found.append(f"{stage}: {blocks:.2f} blocks/op, and no baseline; write it with --update")
        elif blocks > limit * (1 + TOLERANCE):
            more = f"{blocks / limit - 1:.1%} more" if limit else "more"
            found.append(f"{stage}: {blocks:.2f} blocks/op, {more} than its baseline of {limit:.2f}")
    return found


def improvements(counted: Mapping[str, float], held_to: Mapping[str, float]) -> list[str]:
    """Each stage that allocates so much less that its baseline no longer holds it to anything."""
    return [
        f"{stage}: {blocks:.2f} blocks/op, {1 - blocks / held_to[stage]:.1%} below its baseline; hold it with --update"
        for stage, blocks in counted.items()
        if blocks < held_to.get(stage, 0) * (1 - TOLERANCE)
    ]


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text())) if path.exists() else {}
