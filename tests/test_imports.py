"""Imports point one way: core <- handlers <- server, http1 <- server; drivers stay where they belong.

Every import statement counts, in whatever function it stands; only those under `if TYPE_CHECKING:` do not.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.process import environment

ROOT = Path(__file__).parent.parent
FILES = {
    path.relative_to(base).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__"): path
    for base, package in ((ROOT, "adcore"), (ROOT / "tools", "adtools"))
    for path in sorted((base / package).rglob("*.py"))
}

# What would let a decision depend on anything but its arguments.
IMPURE = {
    *("asyncio", "concurrent", "multiprocessing", "signal", "subprocess", "threading"),
    *("http", "io", "os", "pathlib", "select", "selectors", "socket", "tempfile", "urllib.request"),
    *("random", "secrets", "time", "uuid"),
    *("logging", "warnings"),
    *("MySQLdb", "httptools", "pymemcache", "sqlite3", "uvloop"),
}
# The parts of adcore that a part may import, besides itself, adcore.errors and adcore.files.
MAY_IMPORT = {
    "adcore.core": set[str](),
    "adcore.http1": set[str](),
    "adcore.sources": {
        "adcore.core",
        "adcore.background",
        "adcore.files",
        "adcore.forkserver",
        "adcore.memory",
        "adcore.ticks",
    },
    "adcore.deliverylog": {"adcore.core", "adcore.background", "adcore.files"},
    # A handler cannot be written without the two nouns that it turns into each other.
    "adcore.control": {
        *("adcore.core", "adcore.http1.histogram", "adcore.http1.request", "adcore.http1.response", "adcore.memory"),
        "adcore.ticks",
    },
}
# A driver or transport, and the only modules that may import it.
ONLY_IN = {
    "MySQLdb": {"adcore.sources.mysql"},
    "sqlite3": {"adcore.sources.sqlite"},
    "pymemcache": {"adcore.sources.memcached"},
    "httptools": {"adcore.http1.request", "adcore.http1.plain"},
    "backports": {"adcore.sources.archive"},
    "maxminddb": {"adcore.geoip"},
    "uvloop": {"adcore.server"},
    # They are a third of what a server's start takes, and the loader starts with every load.
    "ua_parser": {"adcore.core.agents"},
    "crawleruseragents": {"adcore.core.agents"},
    "adcore.core.agents": {"adcore.delivery", "adcore.control.explain"},
    "prometheus_client": {"adcore.control.metrics"},
    "adcore.server": {"adcore.cli"},
    "adcore.cli": {"adcore.__main__"},
}


def imports(module: str) -> set[str]:
    """Every module that `module` imports: `from a import b` gives both a and a.b."""
    is_package = FILES[module].name == "__init__.py"
    return set(imported_by([ast.parse(FILES[module].read_text())], module, is_package))


def imported_by(nodes: Iterable[ast.AST], module: str, is_package: bool = False) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names = module.split(".")
            package = names[: len(names) - node.level + is_package] if node.level else []
            base = ".".join([*package, *([node.module] if node.module else [])])
            yield from (base, *(f"{base}.{alias.name}" for alias in node.names))
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            yield from imported_by(node.orelse, module, is_package)
        else:
            yield from imported_by(ast.iter_child_nodes(node), module, is_package)


def within(module: str, part: str) -> bool:
    return module == part or module.startswith(part + ".")


def test_there_is_something_to_check() -> None:
    assert {"adcore.cli", "adcore.core.decision", "adtools"} <= set(FILES)


@pytest.mark.parametrize("module", [m for m in FILES if within(m, "adcore.core")])
def test_core_is_pure(module: str) -> None:
    assert [name for name in imports(module) if any(within(name, bad) for bad in IMPURE)] == []


@pytest.mark.parametrize("module", [m for m in FILES if any(within(m, part) for part in MAY_IMPORT)])
def test_each_part_imports_only_what_it_may_know(module: str) -> None:
    part = next(part for part in MAY_IMPORT if within(module, part))
    allowed = {part, "adcore.errors", "adcore.files", *MAY_IMPORT[part]}
    wrong = [
        name
        for name in imports(module)
        if within(name, "adcore") and name != "adcore" and not any(within(name, a) for a in allowed)
    ]
    assert wrong == []


@pytest.mark.parametrize("imported", ONLY_IN)
def test_only_its_owner_imports(imported: str) -> None:
    importers = {m for m in FILES if any(within(name, imported) for name in imports(m))}
    assert importers <= ONLY_IN[imported]


@pytest.mark.parametrize("imported", ["django", "PIL", "waitress", "boto3"])
def test_the_admins_libraries_stay_in_the_admin(imported: str) -> None:
    importers = {m for m in FILES if any(within(name, imported) for name in imports(m))}
    assert importers
    assert all(within(m, "adtools.admin") for m in importers)


def test_adctl_does_without_the_admins_libraries() -> None:
    loaded = "import sys, adtools.cli; print([m for m in ('django', 'PIL', 'waitress') if m in sys.modules])"
    shown = subprocess.run(
        [sys.executable, "-c", loaded], env=environment(), capture_output=True, text=True, timeout=60, check=True
    )
    assert shown.stdout == "[]\n"


@pytest.mark.parametrize("module", [m for m in FILES if within(m, "adcore")])
def test_adcore_never_imports_adtools(module: str) -> None:
    assert [name for name in imports(module) if within(name, "adtools")] == []


def test_handlers_do_no_io() -> None:
    impure = {"asyncio", "socket", "sqlite3", "uvloop", "httptools", "adcore.sources", "adcore.server"}
    for module in ("adcore.handlers", "adcore.delivery", "adcore.state"):
        assert [name for name in imports(module) if any(within(name, bad) for bad in impure)] == []


@pytest.mark.parametrize(
    ("text", "module", "expected"),
    [
        ("import os.path", "a.b", {"os.path"}),
        ("from ..c import d", "a.b.x", {"a.c", "a.c.d"}),
        ("from . import d", "a.b.x", {"a.b", "a.b.d"}),
        ("def f():\n  try:\n    import MySQLdb\n  except ImportError: pass", "a", {"MySQLdb"}),
        ("if TYPE_CHECKING:\n  import os\nelse:\n  import io", "a", {"io"}),
    ],
)
def test_imports_are_found_wherever_they_stand(text: str, module: str, expected: set[str]) -> None:
    assert set(imported_by([ast.parse(text)], module)) == expected
