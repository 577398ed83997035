"""`adctl explain`: what a described request would get, and why every other campaign would not be shown.

Asks a running server (--control), which knows what has been delivered, or decides here on the inventory of a store
(--source), where no goal, cap or pacing applies. With --log, says the same of a moment in the past: of the answer with
this impression id, on the table that was served then.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterable
from contextlib import closing
from io import BufferedIOBase
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from zoneinfo import ZoneInfo

import msgspec

from adcore.config import load_config
from adcore.control.explain import NAMES, ExplainError, explain_request
from adcore.core.adtable import AdTable, build_table
from adcore.core.calendar import Calendar
from adcore.core.hindsight import decide_again, explain_again
from adcore.deliverylog.reader import read_records
from adcore.deliverylog.record import Answer, Impression
from adcore.errors import AdcoreError
from adcore.sources import open_store
from adtools.control import get
from adtools.log import open_with_progress, time_text
from adtools.replay import compare
from adtools.tables import Tables, past_of

EPILOG = f"""\
arguments, all but placement optional:
  placement=top        or several, separated by commas
  device=mobile os=ios country=JP languages=ja,en keywords=news,manga
  kv.section=manga     a key-value of the page
  user_agent='…'       instead of device and os
  user=KEY             whose frequency caps to apply (with --control)
  time=2026-12-24T20:00    another moment, in the site's time zone

names: {", ".join(NAMES)}

examples:
  adctl explain placement=top device=mobile country=JP
  adctl explain --control unix:/run/adcore/control.sock placement=top,side user=u-123
  adctl explain --log /var/lib/adcore/delivery.log* id=53e05ab20a7c3f38d1a3ba9c0f2ae61f
"""


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "explain",
        help="say what a request would get, and why not the rest",
        description=__doc__.partition("\n\n")[2],
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--control", metavar="ADDR", help="a running server's control listener: unix:PATH or HOST:PORT")
    where.add_argument("--source", metavar="URL", help="decide on this store's inventory, without counts")
    where.add_argument("--log", metavar="FILE", nargs="+", help="explain a logged answer: id=IMPRESSION_ID")
    parser.add_argument("--archive", metavar="DIR", type=Path, help="with --log: the tables (default: the server's)")
    parser.add_argument("--time-zone", metavar="NAME", help="with --source: the site's (default: the server's)")
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    parser.add_argument("arguments", nargs="*", metavar="NAME=VALUE")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the explanations; 0, or 1 when a store or server fails, 2 for arguments that make no sense."""
    if args.log:
        # `--log FILE… id=ID` gives the id to --log as well.
        args.arguments += [name for name in args.log if name.startswith("id=")]
        args.log = [name for name in args.log if not name.startswith("id=")]
    pairs = []
    for argument in args.arguments:
        name, equals, value = argument.partition("=")
        if not equals:
            print(f"adctl explain: {argument!r} is not NAME=VALUE", file=sys.stderr)
            return 2
        pairs.append((name, value))
    try:
        if args.log is not None:
            explanations = look_back(args, pairs)
        else:
            explanations = ask(args.control, pairs) if args.control else decide_here(args, pairs)
    except ExplainError as error:
        print(f"adctl explain: {error}", file=sys.stderr)
        return 2
    for explanation in explanations:
        print(json.dumps(explanation, indent=2) if args.json else as_text(explanation))
    return 0


def ask(control: str, pairs: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """Let a running server explain."""
    status, answer = get(control, "/explain?" + urlencode(pairs))
    if status == 400:
        raise ExplainError(answer["error"])
    if status != 200:
        raise AdcoreError(f"{control} answered {status}: {answer.get('error', '')}")
    explanations: list[dict[str, Any]] = answer.get("explanations", [answer])
    return explanations


def decide_here(args: argparse.Namespace, pairs: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """Explain from the inventory alone, as if nothing had been delivered yet."""
    try:
        calendar = Calendar(ZoneInfo(args.time_zone) if args.time_zone else load_config().time_zone)
    except (KeyError, ValueError):
        raise ExplainError(f"--time-zone: there is no zone {args.time_zone!r}") from None
    return explain_inventory(args.source, calendar, pairs)


def explain_inventory(source: str, calendar: Calendar, pairs: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """What a server would say that has this store's inventory and has delivered nothing yet."""
    store = open_store(source)
    try:
        rows = store.load()
    finally:
        store.close()
    return explain_table(build_table(rows.document, revision=rows.revision.number), calendar, pairs)


def explain_table(table: AdTable, calendar: Calendar, pairs: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """What a server would say that has this table and has delivered nothing yet."""
    explanations = list(explain_request(table, pairs, calendar, time.time()))
    answer: list[dict[str, Any]] = msgspec.to_builtins(explanations)
    return answer


def look_back(args: argparse.Namespace, pairs: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """Explain a logged answer."""
    if [name for name, _ in pairs] != ["id"] or not args.log:
        raise ExplainError("with --log say which answer: --log FILE… id=IMPRESSION_ID")
    try:
        record = _find_in_files(args.log, pairs[0][1])
    except OSError as error:
        raise ExplainError(f"--log: {error.filename}: {error.strerror}") from None
    if record is None:
        raise AdcoreError(f"no impression and no unfilled record of these logs has the id {pairs[0][1]}")
    return [explain_answer(record, Tables(args.archive or load_config().archive_dir))]


def _find_in_files(names: Iterable[str], impression_id: str) -> Answer | None:
    for name in names:
        with closing(open_with_progress(name)) as file:
            found = find_answer(file, impression_id)
        if found is not None:
            return found
    return None


def find_answer(file: BufferedIOBase, impression_id: str) -> Answer | None:
    """The answer of this id in an open log; None when it is not there. Raises what reading the file raises."""
    for item in read_records(file):
        if isinstance(item, Answer) and item.id == impression_id:
            return item
    return None


def explain_answer(record: Answer, tables: Tables) -> dict[str, Any]:
    """What `adctl explain --json` prints, of a logged answer: with its "time", and what was "shown" (null: nothing).

    Raises AdcoreError when its table is not in the archive, or is another one.
    """
    candidates, why = tables.of(record)
    if why:
        raise AdcoreError(f"{why}, on which {record.id} was decided")
    try:
        table = next((t for t in candidates if not compare(record, decide_again(t, past_of(record)))), None)
        if table is None:
            raise AdcoreError(f"{record.id} does not come out again on its table; see adctl replay")
        explanation: dict[str, Any] = msgspec.to_builtins(explain_again(table, past_of(record)))
    except ValueError as error:
        raise AdcoreError(f"{record.id}: the record makes no sense: {error}") from None
    shown = {"campaign": record.campaign, "creative": record.creative} if isinstance(record, Impression) else None
    return {**explanation, "id": record.id, "time": record.time, "shown": shown}


def as_text(explanation: dict[str, Any]) -> str:
    """A table for a person: the campaigns with a chance first, then the others with their reasons."""
    verdict = "filled" if explanation["filled"] else f"no ad: {explanation['reason']}"
    lines = [f"{explanation['placement']}: {verdict} (revision {explanation['revision']})"]
    if "id" in explanation:
        shown = explanation["shown"]
        what = f"{shown['campaign']}/{shown['creative']} was shown" if shown else "nothing was shown"
        lines[0] += f", {time_text(explanation['time'])}: {what}"
    candidates = sorted(explanation["candidates"], key=lambda candidate: -candidate.get("chance", 0))
    width = max((len(candidate["campaign"]) for candidate in candidates), default=0)
    for candidate in candidates:
        chance = candidate.get("chance", 0)
        shown = f"{chance:7.2%}" if chance else "      -"
        why = ", ".join(candidate.get("reasons", ())) or ", ".join(
            f"{creative} {share:.2%}" for creative, share in candidate["creatives"].items()
        )
        lines.append(f"  {shown}  {candidate['campaign']:<{width}}  {candidate['priority']:<11}  {why}")
    return "\n".join(lines)
