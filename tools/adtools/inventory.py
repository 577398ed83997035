"""`adctl apply`, `export` and `migrate`: the inventory as one JSON file, into a store and out of it.

A file is the whole inventory unless --keep says otherwise: what the store has and the file does not is
removed, so that a file under version control and the store cannot drift apart.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import msgspec

from adcore.core.inventory import (
    Inventory,
    InventoryError,
    Problem,
    check_inventory,
    parse_inventory,
    to_document,
)
from adcore.errors import SourceError
from adcore.sources import Rows, open_store

# An inventory of 100,000 creatives has 50 MiB; what it is parsed into takes ten times its size.
FILE_BYTES_MAX = 256 << 20

APPLY_EPILOG = """\
The file is checked as a whole first, and every error is named by its JSON path; then it is applied in one
transaction. Servers show it within one refresh interval and a second. An SQLite store is made when it is not
there yet; a MySQL one needs `adctl migrate` once.

examples:
  adctl apply ads.json                     make the store hold exactly what the file says
  adctl apply --dry-run ads.json           say what that would change, and change nothing
  adctl apply --keep spring.json           add or change these rows and leave the others as they are; an
                                           error past the end of the file is in a row that the store has
  adctl export | jq '…' | adctl apply -    from standard input
  adctl apply --source 'mysql://adcore@/adcore?unix_socket=/run/mysqld/mysqld.sock' ads.json

a file:
  {"placements": [{"id": "top", "width": 728, "height": 90}],
   "campaigns": [{"id": "spring", "name": "Spring sale", "priority": "standard",
     "creatives": [{"id": "spring-1", "placement_size": [728, 90], "format": "text",
                    "data": {"text": "Everything must go"},
                    "landing_url": "https://shop.example.net/"}]}]}

Exit status: 0 applied or nothing to do, 1 the file is not valid or the store failed, 2 there is no such file.
"""

EXPORT_EPILOG = """\
Every field is written out, and applying the output changes nothing. Rows that are not valid (someone changed
them by SQL) are written as they are and named on standard error.

examples:
  adctl export > ads.json
  adctl export | jq -r '.campaigns[] | select(.status == "active").id'
  adctl export --source sqlite:///srv/old.db | adctl apply --source mysql://adcore@db.example.net/adcore -
"""

MIGRATE_EPILOG = """\
Migrations are numbered SQL files; those that the store has are left out, so this is safe to run again. SQLite
stores migrate by themselves.

examples:
  adctl migrate --source mysql://adcore:secret@db.example.net/adcore
  ADCORE_SOURCE=mysql://… adctl migrate       keeps the password out of the process list
"""


def add_parser(subparsers: Any) -> None:
    apply = _add(subparsers, "apply", "check an inventory file and put it into the store", APPLY_EPILOG, run_apply)
    apply.add_argument("file", metavar="FILE", help="the inventory as JSON; - is standard input")
    apply.add_argument("--keep", action="store_true", help="leave rows alone that the file does not have")
    apply.add_argument("--dry-run", action="store_true", help="say what would change, and change nothing")
    apply.add_argument("--json", action="store_true", help="print the outcome as JSON, for programs")
    _add(subparsers, "export", "print the inventory of the store as JSON", EXPORT_EPILOG, run_export)
    migrate = _add(subparsers, "migrate", "create or update the tables of the store", MIGRATE_EPILOG, run_migrate)
    migrate.add_argument("--json", action="store_true", help="print the migrations applied as JSON, for programs")


def _add(subparsers: Any, name: str, text: str, epilog: str, run: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--source", metavar="URL", help="the store: sqlite:///PATH or mysql://USER:PASSWORD@HOST/DATABASE"
    )
    parser.set_defaults(run=run)
    return parser


def run_apply(args: argparse.Namespace) -> int:
    """Apply a file; 0, or 1 for a bad file or store, 2 when the file cannot be read."""
    try:
        document = read_document(args.file)
    except OSError as error:
        print(f"adctl apply: cannot read {args.file}: {error.strerror}", file=sys.stderr)
        return 2
    except InventoryError as error:
        return _refuse(error, args.json)
    changes: Changes = {}

    def choose(there: Rows) -> Inventory:
        chosen = wanted
        if args.keep:
            chosen = in_order_of(there.document, parse_inventory(merge(document, there.document)))
        changes.update(compare(there.document, chosen))
        return chosen

    try:
        # Before the store is touched, which may be far away or not there yet.
        wanted = Inventory((), ()) if args.keep else parse_inventory(document)
        store = open_store(args.source)
        try:
            if args.dry_run:
                before = store.load()
                revision = before.revision
                choose(before)
            else:
                # Without a change too: it confirms what the servers hesitate to take over.
                revision = store.apply(choose)
        finally:
            store.close()
    except (InventoryError, SourceError) as error:
        return _refuse(error, args.json)
    if args.json:
        print(json.dumps({"ok": True, "dry_run": args.dry_run, "revision": revision.number, **changes}, indent=2))
    else:
        print(summary(changes, store.label, revision.number, args.dry_run))
    return 0


def _refuse(error: InventoryError | SourceError, as_json: bool) -> int:
    if as_json:
        problems = error.problems if isinstance(error, InventoryError) else [{"message": str(error)}]
        print(json.dumps({"ok": False, "errors": msgspec.to_builtins(problems)}, indent=2))
    print(f"adctl apply: nothing was changed: {error}", file=sys.stderr)
    return 1


def run_export(args: argparse.Namespace) -> int:
    """Print the store's document."""
    store = open_store(args.source)
    try:
        document = store.load().document
    finally:
        store.close()
    inventory, problems = check_inventory(document)
    for problem in problems:
        print(f"adctl export: a row is not valid and not delivered: {problem}", file=sys.stderr)
    print(json.dumps(document if problems else to_document(inventory), indent=2, ensure_ascii=False))
    return 0


def run_migrate(args: argparse.Namespace) -> int:
    """Bring the store's tables up to date."""
    store = open_store(args.source)
    try:
        applied = store.migrate()
    finally:
        store.close()
    if args.json:
        print(json.dumps({"applied": applied}))
    else:
        print(f"{store.label}: " + (f"applied {', '.join(applied)}" if applied else "already up to date"))
    return 0


# The file


def read_document(name: str) -> object:
    """The JSON in a file ("-": standard input). Raises OSError, or InventoryError when it is no JSON."""
    if name == "-":
        raw = sys.stdin.buffer.read(FILE_BYTES_MAX + 1)
    else:
        with Path(name).open("rb") as file:
            raw = file.read(FILE_BYTES_MAX + 1)
    if len(raw) > FILE_BYTES_MAX:
        raise _not_json(f"it is longer than {FILE_BYTES_MAX >> 20} MiB")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise _not_json(f"line {line} is not UTF-8; save the file as UTF-8") from None
    try:
        return json.loads(text, object_pairs_hook=without_repeats)
    except json.JSONDecodeError as error:
        raise _not_json(f"line {error.lineno}, column {error.colno}: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise _not_json(str(error)) from None


def _not_json(message: str) -> InventoryError:
    return InventoryError((Problem("$", "file", f"is not the JSON of an inventory: {message}"),))


def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            # JSON lets the last one win in silence, which is never what was meant.
            raise ValueError(f'"{name[:64]}" stands twice in one object, the second time with {str(value)[:64]!r}')
        found[name] = value
    return found


# What changes

Changes = dict[str, list[str]]
SHOWN_MAX = 20
_NOT_VALID = object()


def compare(before: dict[str, Any], after: Inventory) -> Changes:
    """The rows that an inventory adds to a document, changes in it and removes, as 'creative "spring-1"'."""
    had, has = _rows(before), _rows(to_document(after))
    return {
        "added": [name for name in has if name not in had],
        "changed": [name for name in has if name in had and has[name] != had[name]],
        "removed": [name for name in had if name not in has],
    }


def _rows(document: dict[str, Any]) -> dict[str, object]:
    """Every row by its name, in a form to compare; one that is not valid equals nothing."""
    found: dict[str, object] = {}
    for placement in document["placements"]:
        found[f'placement "{placement.get("id")}"'] = _NOT_VALID
    for campaign in document["campaigns"]:
        found[f'campaign "{campaign.get("id")}"'] = _NOT_VALID
        for creative in campaign["creatives"]:
            found[f'creative "{creative.get("id")}"'] = _NOT_VALID
    inventory, _ = check_inventory(document)
    for valid_placement in inventory.placements:
        found[f'placement "{valid_placement.id}"'] = valid_placement
    for valid_campaign in inventory.campaigns:
        found[f'campaign "{valid_campaign.id}"'] = msgspec.structs.replace(valid_campaign, creatives=())
        for valid_creative in valid_campaign.creatives:
            found[f'creative "{valid_creative.id}"'] = (valid_campaign.id, valid_creative)
    return found


def merge(document: object, stored: dict[str, Any]) -> object:
    """A document with the stored rows behind its own, except those that it has itself.

    Its own come first so that an error in them has the path that it has in the file.
    """
    if not isinstance(document, dict):
        return document
    merged = dict(document)
    for name in ("placements", "campaigns"):
        own = document.get(name)
        if isinstance(own, list):
            ids = [row.get("id") for row in own if isinstance(row, dict)]
            merged[name] = [*own, *(row for row in stored[name] if row.get("id") not in ids)]
    return merged


def in_order_of(stored: dict[str, Any], inventory: Inventory) -> Inventory:
    """An inventory in the order that the store has, new rows last."""
    placements, campaigns = (
        {row.get("id"): position for position, row in enumerate(stored[name])} for name in ("placements", "campaigns")
    )
    return Inventory(
        tuple(sorted(inventory.placements, key=lambda row: placements.get(row.id, len(placements)))),
        tuple(sorted(inventory.campaigns, key=lambda row: campaigns.get(row.id, len(campaigns)))),
    )


def summary(changes: Changes, label: str, revision: int, dry_run: bool) -> str:
    """What happened, for a person."""
    if not any(changes.values()):
        return f"{label}: nothing to change (revision {revision})"
    lines = [f"{label}: {'would change' if dry_run else f'applied as revision {revision}'}"]
    for what, sign in (("added", "+"), ("changed", "~"), ("removed", "-")):
        names = changes[what]
        lines += (f"  {sign} {name}" for name in names[:SHOWN_MAX])
        if len(names) > SHOWN_MAX:
            lines.append(f"  {sign} and {len(names) - SHOWN_MAX} more ({len(names)} {what})")
    return "\n".join(lines)
