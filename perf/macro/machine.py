"""Where and with what the results came to be."""

import os
import platform
import re
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from perf.macro.servers import ROOT

PACKAGES = ("aiohttp", "granian", "httptools", "msgpack", "msgspec", "uvicorn", "uvloop")


def describe() -> dict[str, Any]:
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_mib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20,
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "load_average": os.getloadavg(),
    }


def versions(go: str) -> dict[str, str]:
    found = {name: _package_version(name) for name in PACKAGES}
    for name, command, pattern in (
        ("nginx", ["nginx", "-v"], r"nginx/([\d.]+)"),
        ("h2load", ["h2load", "--version"], r"nghttp2/([\d.]+)"),
        ("fasthttp", ["dpkg-query", "-W", "golang-github-valyala-fasthttp-dev"], r"\s(?:\d+:)?([\d.]+)"),
    ):
        found[name] = _search(pattern, _output(command))
    found["go"] = _search(r"go([\d.]+)", go)
    return {name: version for name, version in sorted(found.items()) if version}


def commit() -> str:
    """Of this checkout, short; "-changed" when there is more than what was committed."""
    head = _output(["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"]).strip()
    if not head:
        return "unknown"
    # Results of an earlier run change nothing that is measured.
    changed = _output(["git", "-C", str(ROOT), "status", "--porcelain", "--", ".", ":!perf/results"]).strip()
    return head + ("-changed" if changed else "")


def stolen_s() -> float:
    """CPU time that the host of this virtual machine gave to others, since boot."""
    fields = Path("/proc/stat").read_text().partition("\n")[0].split()
    return int(fields[8]) / os.sysconf("SC_CLK_TCK")


def _cpu_model() -> str:
    return _search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text()) or platform.processor()


def _package_version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _output(command: list[str]) -> str:
    program = shutil.which(command[0], path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin")))
    if program is None:
        return ""
    done = subprocess.run([program, *command[1:]], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr if done.returncode == 0 else ""


def _search(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    return found[1] if found else ""
