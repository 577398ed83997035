"""`adctl admin`: runs the web application, and lets the first people in.

Django is imported when one of these runs, and not before: adctl does without it.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from adcore.config import Config, load_config
from adcore.errors import AdcoreError, ConfigError
from adcore.files import make_folder
from adcore.listen import Listener, UnixAddress, group_id, open_address, take_systemd_listener, unix_path_problem
from adcore.notify import Notifier
from adcore.sources import open_store, sqlite_path
from adcore.tokens import KeyRing

EPILOG = """\
The pages are for browsers at --url; put nginx and TLS in front for anybody who is not on this host (tools/nginx has
the configuration). People get in by a one-time link, with which they set a password of their own.

examples:
  adctl admin createuser anna                 a link for the first administrator
  adctl admin                                 on http://127.0.0.1:8081, for a browser on this host
  adctl admin --unix /run/adcore-admin/admin.sock --url https://adcore.example.net
  adctl admin migrate                         the admin's own tables (an SQLite store gets them by itself)
  adctl admin --images s3://BUCKET/creatives --images-url https://ads.example.net/creatives

The store, the time zone, the control listener, the log and its tables are those of the server on this host: --source,
--time-zone, --control, --log and --archive, else ADCORE_* variables, else the file that ADCORE_CONFIG names.
"""
# Django makes a page in memory before its first byte is sent. waitress keeps it for a slow reader in a temporary file;
# beyond this size it would hold the thread that made the page. The largest one has some 20 MiB.
UNSENT_BYTES_MAX = 256 << 20
# An image of 4 MiB and a form around it.
REQUEST_BYTES_MAX = 24 << 20
# As nginx takes them: four buffers of 8 KiB.
HEADER_BYTES_MAX = 32 << 10
DEFAULT_PORT = 8081
BACKLOG = 64
# Of the socket: only nginx can connect there, so that what it says of visitors is true.
UNIX_MODE = 0o660


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "admin",
        help="the web application in which people book ads",
        description="Serve the admin: a web application in which people book, check and pause ads.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--source", metavar="URL", help="the store: sqlite:///PATH or mysql://USER:PASSWORD@HOST/DATABASE"
    )
    parser.add_argument("--control", metavar="ADDR", help="a server's control listener, to explain what it shows")
    parser.add_argument(
        "--log",
        metavar="FILE",
        nargs="+",
        type=Path,
        help="delivery logs, to explain what was shown; rotated ones beside them are found (default: the server's)",
    )
    parser.add_argument(
        "--archive", metavar="DIR", type=Path, help="the tables that were served (default: the server's)"
    )
    parser.add_argument("--time-zone", metavar="NAME", help="the site's (default: the server's)")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--unix", metavar="PATH", help="listen on this unix socket, for nginx, which says who is there")
    where.add_argument(
        "--port", metavar="N", type=int, help=f"listen on this port of 127.0.0.1 (default: {DEFAULT_PORT})"
    )
    parser.add_argument(
        "--unix-group", metavar="GROUP", help="group of --unix, which nginx is in (default: the server's --unix-group)"
    )
    parser.add_argument("--url", metavar="URL", help="where browsers find it (default: http://127.0.0.1:PORT)")
    parser.add_argument(
        "--secret-file",
        metavar="PATH",
        help="signs sessions and links; made when missing (default: STATE_DIR/admin-secret)",
    )
    parser.add_argument(
        "--images",
        metavar="WHERE",
        help="keep uploaded images in a directory or s3://BUCKET/PREFIX (default: STATE_DIR/creatives)",
    )
    parser.add_argument("--images-url", metavar="URL", help="where browsers find them (default: URL/creatives)")
    parser.add_argument("--s3-endpoint", metavar="URL", help="of an S3-compatible store that is not Amazon's")
    parser.set_defaults(run=run, what="serve")
    whats = parser.add_subparsers(title="instead of serving", metavar="COMMAND")
    migrate = whats.add_parser("migrate", help="create or update the admin's own tables in the store")
    migrate.set_defaults(what="migrate")
    user = whats.add_parser("createuser", help="let somebody in: print a one-time link to set a password")
    user.add_argument("name", metavar="NAME", help="to log in with; one who is there gets a new link")
    user.add_argument("--role", choices=("viewer", "editor", "administrator"), default="administrator")
    user.add_argument("--first", action="store_true", help="only while no administrator has a password")
    user.set_defaults(what="createuser")


def run(args: argparse.Namespace) -> int:
    """Serve until TERM, or do the one thing that was asked for. Raises AdcoreError."""
    try:
        import django  # noqa: F401
        import waitress  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"the admin needs pip install 'adcore[admin]' ({error})") from None
    from adtools.admin.project import migrate

    _set_up(args)
    if args.what == "migrate":
        migrate()
        print("the admin's tables are up to date")
        return 0
    _check_tables(args.source)
    return _create_user(args) if args.what == "createuser" else _serve(args)


def _set_up(args: argparse.Namespace) -> None:
    from adtools.admin.imagestore import open_image_store
    from adtools.admin.project import Options, set_up

    config = load_config()
    make_folder(config.state_dir, 0o700)
    args.source = args.source or config.source
    args.unix_group = args.unix_group or config.unix_group
    args.url = _checked_url(args.url or f"http://127.0.0.1:{args.port or DEFAULT_PORT}")
    # Those that serve need a socket for it; the other commands need no more than the URL.
    if args.what == "serve" and args.url.startswith("https:") and args.unix is None and "LISTEN_FDS" not in os.environ:
        raise ConfigError(
            "--url https://… needs --unix PATH: the admin itself speaks no TLS, nginx in front of it does"
        )
    images = args.images or str(config.state_dir / "creatives")
    images_url = (args.images_url or f"{args.url}/creatives").rstrip("/")
    secret_file = Path(args.secret_file) if args.secret_file else config.state_dir / "admin-secret"
    set_up(
        Options(
            source=args.source,
            url=args.url,
            secret=KeyRing.load_or_create(secret_file).derive(b"adcore admin").hex(),
            time_zone=_zone(args.time_zone, config),
            images=open_image_store(images, images_url, args.s3_endpoint),
            images_dir=None if images.startswith("s3://") else Path(images).absolute(),
            control=args.control or config.control,
            logs=args.log or [config.log],
            archive=args.archive or config.archive_dir,
        )
    )


def _checked_url(url: str) -> str:
    url = url.rstrip("/")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path or parts.query or parts.fragment:
        raise ConfigError(f"--url must be scheme and host alone, like https://adcore.example.net, not {url!r}")
    if parts.scheme == "http" and parts.hostname not in ("127.0.0.1", "localhost", "::1"):
        raise ConfigError("--url: passwords go over https alone; http is for a browser on this host (127.0.0.1)")
    return url


def _zone(name: str | None, config: Config) -> ZoneInfo:
    if name is None:
        return config.time_zone
    return load_config({"time_zone": name}).time_zone


def _check_tables(source: str) -> None:
    """All tables are there: SQLite's are made now, MySQL's by whoever may."""
    from django.db import DatabaseError, connection
    from django.db.migrations.executor import MigrationExecutor

    from adtools.admin.project import migrate

    if source.startswith("sqlite:"):
        if not sqlite_path(source).exists():
            raise AdcoreError(f"there is no store at {source}: start a server, or adctl apply a first inventory")
        store = open_store(source)
        try:
            store.migrate()
        finally:
            store.close()
        migrate()
        return
    try:
        executor = MigrationExecutor(connection)
        waiting = executor.migration_plan(executor.loader.graph.leaf_nodes())
    except DatabaseError as error:
        raise AdcoreError(f"the store does not answer: {error}") from None
    if waiting:
        raise AdcoreError("the store lacks tables of the admin: run adctl migrate, then adctl admin migrate")


def _create_user(args: argparse.Namespace) -> int:
    from adtools.admin.users import make_user, one_time_link, somebody_can_log_in

    if args.first and somebody_can_log_in():
        return 0
    user = make_user(args.name, args.role)
    print(f"{args.name} ({args.role}) sets a password here, once, within a day:\n{one_time_link(user)}")
    return 0


def _serve(args: argparse.Namespace) -> int:
    import waitress.server
    from django.core.wsgi import get_wsgi_application

    from adtools.admin.admission import THREADS
    from adtools.admin.guard import guarded
    from adtools.admin.users import somebody_can_log_in
    from adtools.admin.watchdog import Watchdog

    listener = _open_socket(args)
    where: dict[str, Any] = {"listen": f"127.0.0.1:{args.port or DEFAULT_PORT}"}
    if listener is not None:
        where = {
            "sockets": [listener.sock],
            "trusted_proxy": "*",
            "trusted_proxy_headers": {"x-forwarded-for", "x-forwarded-proto"},
        }
    notifier = Notifier()
    watchdog = Watchdog(notifier, f"serving {args.url}")
    try:
        server = waitress.server.create_server(
            guarded(get_wsgi_application(), watchdog),
            **where,
            threads=THREADS,
            max_request_body_size=REQUEST_BYTES_MAX,
            max_request_header_size=HEADER_BYTES_MAX,
            outbuf_high_watermark=UNSENT_BYTES_MAX,
            clear_untrusted_proxy_headers=True,
            ident=None,
        )
    except OSError as error:
        raise AdcoreError(f"cannot listen on {where.get('listen', args.unix)}: {error.strerror}") from None
    signal.signal(signal.SIGTERM, _leave)
    print(f"adctl admin: open {args.url}/", file=sys.stderr)
    if not somebody_can_log_in():
        print("adctl admin: nobody can log in yet: adctl admin createuser NAME", file=sys.stderr)
    notifier.ready(f"serving {args.url}")
    watchdog.start()
    server.run()
    if listener is not None:
        listener.close()
    return 0


def _open_socket(args: argparse.Namespace) -> Listener | None:
    """systemd's unix socket, or the one at --unix; None for TCP."""
    passed = take_systemd_listener(BACKLOG, "--unix" if args.unix else "--port" if args.port else "")
    if passed is not None:
        # What is believed of a proxy must not be anybody's to say.
        if passed.sock.family != socket.AF_UNIX:
            raise ConfigError("systemd passed a TCP socket; the admin takes a unix one: ListenStream=/run/…")
        return passed
    if not args.unix:
        return None
    if (problem := unix_path_problem(Path(args.unix))) is not None:
        raise ConfigError(f"--unix: {problem}")
    address = UnixAddress(Path(args.unix).absolute())
    return open_address(address, backlog=BACKLOG, unix_mode=UNIX_MODE, unix_group=group_id(args.unix_group))


def _leave(number: int, frame: FrameType | None) -> None:
    """TERM ends it as Ctrl-C does: waitress finishes what its threads are at."""
    raise SystemExit(0)
