"""`adctl log cat`: print delivery logs, in either form, and say where they are damaged."""

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from io import BufferedIOBase
from pathlib import Path
from typing import Any

import msgspec

from adcore.deliverylog.reader import Damage, open_log, read_records
from adcore.deliverylog.record import AnyRecord, Click, Impression, Unfilled, View, to_object, type_of
from adtools.progress import with_progress

EPILOG = """\
examples:
  adctl log cat delivery.log                      a line per record, for a person
  adctl log cat --json delivery.log* | jq .id     JSON, for programs; .gz files too
  adctl log cat - < delivery.log

Damage (a torn record, say, after a crash) is reported on stderr with its file, place and length, and what follows it
is printed all the same. Exit status: 0 all records were whole, 1 there was damage, 2 a file cannot be read.
"""


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser("log", help="read delivery logs")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    cat = commands.add_parser(
        "cat",
        help="print the records of delivery logs",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    cat.add_argument("--json", action="store_true", help="one JSON object a line, whatever the form of the log")
    cat.add_argument("files", nargs="+", metavar="FILE", help="a delivery log, - for standard input")
    cat.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    form = as_json if args.json else as_text
    status = 0
    try:
        for name in args.files:
            try:
                for damage in cat(name, form):
                    status = max(status, 1)
                    where = f"adctl log cat: {name}: {damage.length} bytes at {damage.offset}"
                    print(f"{where} are no record: {damage.reason}", file=sys.stderr)
            except BrokenPipeError:
                raise
            except OSError as error:
                status = 2
                print(f"adctl log cat: {name}: {error.strerror or error}", file=sys.stderr)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read us has seen enough. Python would complain again while it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return status


def cat(name: str, form: Any) -> Iterator[Damage]:
    """Print a file's records; the damage in it is left to the caller. Raises OSError."""
    # A pipe gives what has come so far, and somebody may be waiting for that.
    flush = name == "-"
    with closing(open_with_progress(name)) as file:
        for item in read_records(file):
            if isinstance(item, Damage):
                yield item
            else:
                print(form(item), flush=flush)


def as_json(record: AnyRecord) -> str:
    return msgspec.json.encode(to_object(record)).decode()


def as_text(record: AnyRecord) -> str:
    """Time, type, id, placement, what was shown or why not, and who asked."""
    match record:
        case Impression():
            what = f"{record.campaign}/{record.creative} chance {record.chance:.4g}"
        case Unfilled():
            what = " ".join([record.reason, *(f"{reason}={count}" for reason, count in record.reasons.items())])
        case View() | Click():
            what = f"{record.campaign}/{record.creative}"
    who = " ".join(filter(None, (record.device, record.os, record.country, record.ip)))
    if record.ivt:
        who += " ivt"
    return f"{time_text(record.time)}  {type_of(record):<10}  {record.id}  {record.placement:<12}  {what}  [{who}]"


def time_text(time: float) -> str:
    """In UTC, to the millisecond."""
    try:
        return datetime.fromtimestamp(time, UTC).isoformat(timespec="milliseconds")
    except (OverflowError, ValueError, OSError):
        return repr(time)  # no clock of ours, but somebody's record


def open_with_progress(name: str) -> BufferedIOBase:
    """A log, or standard input for "-". Raises OSError."""
    if name == "-":
        return os.fdopen(os.dup(sys.stdin.fileno()), "rb")
    path = Path(name)
    total = None if path.suffix == ".gz" else path.stat().st_size
    return with_progress(open_log(path), total, path.name)
