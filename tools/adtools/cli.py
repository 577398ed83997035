"""`adctl`: one command, each subcommand in a module of its own that offers `add_parser(subparsers)`.

Exit status: 0 done, 1 something failed or is wrong, 2 the command line or the configuration is wrong.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from adcore.config import load_config
from adcore.errors import AdcoreError, ConfigError
from adcore.files import make_folder, settle_umask
from adcore.version import version_text
from adtools import (
    check,
    collect,
    doctor,
    explain,
    forward,
    inventory,
    learn,
    log,
    munin,
    replay,
    report,
    simulate,
    top,
)
from adtools.admin import command as admin
from adtools.terminal import guard

EPILOG = """\
a first round:
  adctl export > ads.json        what is delivered now, as one JSON file
  adctl apply --dry-run ads.json what would change, after you edited it
  adctl apply ads.json           change it, as a whole or not at all
  adctl explain placement=top    who would be shown, and why not the others
  adctl doctor                   is this host set up well

The store is the one that the server on this host uses: --source, else $ADCORE_SOURCE, else the file
that $ADCORE_CONFIG names, else the embedded SQLite file.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `adctl` with these arguments (default: the process's own) and return its exit status."""
    settle_umask()
    guard()
    parser = argument_parser()
    try:
        args = parser.parse_args(argv)
    except SystemExit as leaving:  # --help, --version, or a message on stderr
        code = leaving.code if isinstance(leaving.code, int) else 0
        return check.report_usage() if code and list(sys.argv[1:] if argv is None else argv)[:1] == ["check"] else code
    try:
        # Those that take a store all want the same default; an explanation by a running server needs none.
        if getattr(args, "source", "") is None and not (
            getattr(args, "control", None) or getattr(args, "inventory", None)
        ):
            config = load_config()
            args.source = config.source
            if config.source_is_default and args.command in ("apply", "migrate"):
                _make_state_dir(config.state_dir)
        status: int = args.run(args)
        sys.stdout.flush()
    except AdcoreError as error:
        print(f"adctl {args.command}: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    except BrokenPipeError:  # `adctl export | head`
        # Otherwise the interpreter would try to write the rest once more, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    return status


def _make_state_dir(path: Path) -> None:
    """Ads may be put in before the server's first start; for its user alone, as the server makes it."""
    try:
        make_folder(path, 0o700)
    except OSError as error:
        raise AdcoreError(f"cannot create the state directory {path}: {error.strerror}; see --source") from error


def argument_parser() -> argparse.ArgumentParser:
    """The parser of everything that `adctl` takes."""
    parser = argparse.ArgumentParser(
        prog="adctl",
        description="Put ads in, get them out, and see what the server does with them.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=version_text())
    subparsers = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)
    for module in (
        *(inventory, explain, log, collect, report, learn, simulate, replay, forward, top, check, munin, doctor, admin),
    ):
        module.add_parser(subparsers)
    return parser
