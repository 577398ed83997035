"""`python -m adtools` is `adctl`."""

import sys

from adtools.cli import main

if __name__ == "__main__":
    sys.exit(main())
