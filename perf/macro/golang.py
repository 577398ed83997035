"""The Go programs: two peers and the load generator, built from source with Debian's packages, without network."""

import os
import shutil
import subprocess
from pathlib import Path

from perf.macro.errors import Missing

# Where Debian's golang-*-dev packages put their sources.
DEBIAN_GOPATH = "/usr/share/gocode"
HERE = Path(__file__).parent


class Go:
    """Builds into `folder`; the compiler's cache outlives it in `cache`."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.folder = folder
        self.cache = cache
        self.program = shutil.which("go")
        # All under one name, so that the peers can import the package that they share.
        self.sources = folder / "src" / "adcoreperf"
        shutil.copytree(HERE / "peers", self.sources, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
        shutil.copytree(HERE / "load", self.sources / "load")

    def build(self, name: str) -> Path:
        """The program `name`. Raises Missing."""
        if self.program is None:
            raise Missing("go is not installed (Debian: golang-go)")
        binary = self.folder / "bin" / name
        if not binary.exists():
            built = subprocess.run(
                [self.program, "build", "-o", str(binary), f"adcoreperf/{name}"],
                env={
                    **os.environ,
                    "GO111MODULE": "off",
                    "GOPATH": f"{self.folder}{os.pathsep}{DEBIAN_GOPATH}",
                    "GOCACHE": str(self.cache),
                    "CGO_ENABLED": "0",
                },
                capture_output=True,
                text=True,
                check=False,
            )
            if built.returncode:
                raise Missing(f"go build: {' / '.join(built.stderr.splitlines()[:3])}")
        return binary

    def version(self) -> str:
        if self.program is None:
            return ""
        return subprocess.run([self.program, "version"], capture_output=True, text=True, check=False).stdout.strip()
