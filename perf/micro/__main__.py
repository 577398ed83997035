"""`python perf/micro`: see command.py, or --help."""

import sys
from pathlib import Path

# This checkout's adcore is what is measured, and its tests have the fakes. This folder's own files are perf.micro.*.
sys.path[0] = str(Path(__file__).resolve().parents[2])

from perf.micro.command import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
