"""The command line: read it, then check, print or serve.

Exit status: 0 clean, 1 failed while running, 2 usage, 3 could not start.
"""

from __future__ import annotations

import importlib
import os
import resource
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress

from adcore import config as configuration
from adcore import forkserver
from adcore.errors import AdcoreError, ConfigError, StartError
from adcore.files import settle_umask
from adcore.memory import limit_memory
from adcore.seat import HELD_BACK, WORKER, Seat
from adcore.version import version_text

# All that workers and their helpers are made of, but for the store's driver. The last is what reads files of a package.
IMPORTED_ONCE = (
    *("adcore.server", "adcore.bank", "adcore.sources.loader", "adcore.sources.snapshot"),
    "importlib.readers",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `adcore` with these arguments (default: the process's own) and return its exit status."""
    settle_umask()
    # logrotate tells all that run, and these two would end a process that is only starting: they wait for its handlers.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGHUP, signal.SIGUSR1))
    # A parent that ignores it passes that on, and the kernel would keep no status of any process.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
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
    if (requests := forkserver.take()) is not None:
        task = fork_when_asked(requests, flags)
        if task is None:
            return 0
        if (module := task.request["run"]) != WORKER:
            return run_helper(module, task.fds, task.request["memory_bytes"])
        seat = Seat.of(task)
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


def fork_when_asked(requests: socket.socket, flags: Mapping[str, object]) -> forkserver.Task | None:
    """Be the fork server. Returns in each fork, with what it is for; None when no more are wanted."""
    forkserver.name_process("adcore forks")
    # A TERM to all processes of the unit does not end it: it exits after the last that needs it.
    signal.pthread_sigmask(signal.SIG_BLOCK, HELD_BACK)
    # Two descriptors for each process.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    for module in IMPORTED_ONCE:
        importlib.import_module(module)
    from adcore.sources import open_store

    with suppress(AdcoreError):  # the process that needs it reports the error
        open_store(configuration.load_config(flags).source).close()
    return forkserver.serve(requests)


def run_helper(module: str, fds: list[int], memory_bytes: int) -> int:
    """Be what `python -m MODULE` would be, with the first two descriptors as standard input and output."""
    if memory_bytes:
        limit_memory(os.getpid(), memory_bytes)
    for standard, fd in enumerate(fds[:2]):
        os.dup2(fd, standard)
        os.close(fd)
    importlib.import_module(module).main()
    return 0


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
