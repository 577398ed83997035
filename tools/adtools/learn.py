"""`adctl learn`: work out of the results in the store what delivery learns from them.

It learns when the visitors of each placement come, hour by hour of the week, which `"pacing": "even"` follows; and for
campaigns with `"optimize": "ctr"` how often each creative was shown and clicked. Only what changed by enough to matter
is written, since servers load it like any change of the inventory.
"""

import argparse
import json
import time
from typing import Any
from zoneinfo import ZoneInfo

from adcore.config import load_config
from adcore.core.calendar import Calendar
from adcore.errors import ConfigError
from adcore.sources import open_store
from adcore.sources.learning import learn

EPILOG = """\
Results are what `adctl collect` has counted; the last four weeks of them are used. A placement is known when there is a
result for each hour of a day.

examples:
  adctl learn
  adctl learn --json --source mysql://adcore@db.example.net/adcore
"""


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "learn",
        help="let delivery learn from its results",
        description=__doc__.partition("\n\n")[2],
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--source", metavar="URL", help="the store: sqlite:///PATH or mysql://USER:PASSWORD@HOST/DATABASE"
    )
    parser.add_argument("--time-zone", metavar="NAME", help="the site's (default: the server's)")
    parser.add_argument("--json", action="store_true", help="print the outcome as JSON, for programs")
    parser.set_defaults(run=run)


def site_calendar(time_zone: str | None) -> Calendar:
    """The calendar of --time-zone, or else of the server's configuration. Raises ConfigError."""
    try:
        return Calendar(ZoneInfo(time_zone) if time_zone else load_config().time_zone)
    except (KeyError, ValueError):
        raise ConfigError(f"--time-zone: there is no zone {time_zone!r}") from None


def run(args: argparse.Namespace) -> int:
    calendar = site_calendar(args.time_zone)
    store = open_store(args.source)
    try:
        lesson = store.run(lambda db: learn(db, time.time(), calendar))
    finally:
        store.close()
    if args.json:
        print(json.dumps(lesson._asdict()))
    else:
        print(
            f"{store.label}: the traffic of {len(lesson.placements)} placements and the results of "
            f"{len(lesson.creatives)} creatives are known; {len(lesson.written)} changed (revision {lesson.revision})"
        )
    return 0
