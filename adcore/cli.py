"""The command line: read it, then check, print or serve.

Exit status: 0 clean, 1 failed while running, 2 usage, 3 could not start.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

from adcore import config as configuration
from adcore.errors import AdcoreError, ConfigError, StartError
from adcore.files import settle_umask
from adcore.seat import Seat
from adcore.version import version_text


def main(argv: Sequence[str] | None = None) -> int:
    """Run `adcore` with these arguments (default: the process's own) and return its exit status."""
    settle_umask()
    # logrotate tells all that run, and these two would end a process that is only starting: they wait for its handlers.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGHUP, signal.SIGUSR1))
    try:
        return _run(sys.argv[1:] if argv is None else argv)
    except AdcoreError as error:
        print(f"adcore: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 3 if isinstance(error, StartError) else 1
    except KeyboardInterrupt:  # before the server has its own handler
        return 130


def _run(argv: Sequence[str]) -> int:
    parser = configuration.argument_parser()
    actions = parser.add_argument_group("instead of serving").add_mutually_exclusive_group()
    for flag, text in (
        ("--check-config", "check the configuration and exit with 0, or with 2 and what is wrong"),
        ("--print-config", "print the configuration in effect, as a file that --config takes"),
        ("--version", "print the version, and the git revision of a checkout"),
    ):
        actions.add_argument(flag, action="store_true", help=text)
    flags = vars(parser.parse_args(argv))
    check, show, version = (flags.pop(name, False) for name in ("check_config", "print_config", "version"))
    if version:
        print(version_text())
        return 0
    seat = Seat.take()
    config = configuration.load_config(flags)
    if show:
        print(configuration.format_toml(config), end="")
        return 0
    if check:
        print(f"adcore: the configuration is right; it would listen on {config.describe_listener()}")
        return 0
    check_hashing()
    if seat is None and config.workers > 1:
        from adcore import workers

        return workers.run(config)
    from adcore import server  # only now: the rest needs no event loop and no driver

    return server.run(config, seat)


def check_hashing() -> None:
    """What visitors send is looked up in dicts, whose time is bounded only while nobody can know Python's hashes.

    Raises StartError.
    """
    seed = "random" if sys.flags.ignore_environment else os.environ.get("PYTHONHASHSEED", "random")
    if seed not in ("", "random"):
        raise StartError(
            f"PYTHONHASHSEED={seed} makes the hashes of texts known, and so every lookup as slow as a visitor likes: "
            "unset it"
        )
