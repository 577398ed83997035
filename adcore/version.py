"""Which adcore this is: its version, and the git revision when it runs from a checkout or pip has fetched it by git.

The revision is read from git's own files: git may be missing, or refuse a checkout of another owner.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

from adcore import __version__

_REVISION = re.compile(r"[0-9a-f]{40,64}")


def version_text() -> str:
    """`adcore 0.1.0 (git 0123456789ab)`, or without the part in brackets."""
    known = revision()
    return f"adcore {__version__}" + (f" (git {known[:12]})" if known else "")


@cache
def revision() -> str:
    """The full git revision; empty when nobody knows it."""
    return git_revision() or pip_revision() or ""


def pip_revision(package: str = "adcore") -> str | None:
    """The revision that pip has fetched by git (PEP 610); None when it had it from elsewhere."""
    from importlib.metadata import PackageNotFoundError, distribution  # only a server that was installed pays for it

    try:
        origin = json.loads(distribution(package).read_text("direct_url.json") or "{}")
        return _revision(str(origin.get("vcs_info", {}).get("commit_id", "")))
    except (PackageNotFoundError, OSError, ValueError):
        return None


def git_revision(checkout: Path = Path(__file__).parent.parent) -> str | None:
    """The full revision checked out at `checkout`; None when that is no git checkout or has no commit."""
    try:
        git = checkout / ".git"
        if git.is_file():  # a worktree: "gitdir: PATH"
            git = checkout / git.read_text().partition(":")[2].strip()
        head = (git / "HEAD").read_text().strip()
        if not head.startswith("ref: "):
            return _revision(head)
        name = head.removeprefix("ref: ")
        common = git / (git / "commondir").read_text().strip() if (git / "commondir").is_file() else git
        if (common / name).is_file():
            return _revision((common / name).read_text().strip())
        for line in (common / "packed-refs").read_text().splitlines():
            if line.endswith(f" {name}"):
                return _revision(line.split(" ")[0])
    except (OSError, UnicodeDecodeError):
        pass
    return None


def _revision(text: str) -> str | None:
    return text if _REVISION.fullmatch(text) else None
