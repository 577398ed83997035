"""`adctl explain`: what a described request would get, and why every other campaign would not be shown.

Asks a running server (--control), which knows what has been delivered, or decides here on the inventory of a store
(--source), where no goal, cap or pacing applies.
"""

import argparse
import json
import sys
import time
from typing import Any
from urllib.parse import urlencode
from zoneinfo import ZoneInfo

import msgspec

from adcore.config import load_config
from adcore.control.explain import NAMES, ExplainError, explain_request
from adcore.core.adtable import build_table
from adcore.core.calendar import Calendar
from adcore.errors import AdcoreError
from adcore.sources import open_store
from adtools.control import get

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
    parser.add_argument("--time-zone", metavar="NAME", help="with --source: the site's (default: the server's)")
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    parser.add_argument("arguments", nargs="+", metavar="NAME=VALUE")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the explanations; 0, or 1 when a store or server fails, 2 for arguments that make no sense."""
    pairs = []
    for argument in args.arguments:
        name, equals, value = argument.partition("=")
        if not equals:
            print(f"adctl explain: {argument!r} is not NAME=VALUE", file=sys.stderr)
            return 2
        pairs.append((name, value))
    try:
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
    table = build_table(rows.document, revision=rows.revision.number)
    explanations = explain_request(table, pairs, calendar, time.time())
    answer: list[dict[str, Any]] = msgspec.to_builtins(explanations)
    return answer


def as_text(explanation: dict[str, Any]) -> str:
    """A table for a person: the campaigns with a chance first, then the others with their reasons."""
    verdict = "filled" if explanation["filled"] else f"no ad: {explanation['reason']}"
    lines = [f"{explanation['placement']}: {verdict} (revision {explanation['revision']})"]
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
