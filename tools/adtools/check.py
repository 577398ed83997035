"""`adctl check`: one look at a running server, as a Nagios plugin.

Prints one line with performance data; the exit status is 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN. Thresholds are
ranges of the Nagios plugin guidelines: `10` alerts below 0 and above 10, `5:` below 5, `~:10` above 10, `@5:10`
within.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import nagiosplugin

from adcore.errors import AdcoreError
from adtools.control import CONTROL_HELP, ControlError, Host, address, ask_host

OK, WARNING, CRITICAL, UNKNOWN = range(4)


class Value(NamedTuple):
    """What is looked at. `warning` and `critical` are Nagios ranges, "" for none."""

    unit: str
    warning: str
    critical: str
    help: str
    of: Callable[[Host], float | None]


def _ms(us: float | None) -> float | None:
    return None if us is None else us / 1000


def _percent(share: float | None) -> float | None:
    return None if share is None else share * 100


VALUES = {
    "table_age": Value(
        *("s", "60", "600", "since a source last confirmed the ad table"), lambda h: h.worst("refresh", "age_s")
    ),
    "log_queue": Value(*("%", "50", "90", "how full the queue of records is"), lambda h: _percent(h.log_queue_share())),
    "drops": Value(
        *("", "", "0", "impressions, views and clicks lost since the last check"),
        lambda h: drops[0] if (drops := h.drops()) else None,
    ),
    "drops_unpaid": Value(
        *("", "0", "", "records of unfilled slots and robots lost since the last check"),
        lambda h: drops[1] if (drops := h.drops()) else None,
    ),
    "bad_rows": Value(
        *("", "0", "", "rows of the inventory that were left out"), lambda h: h.worst("table", "rejected_count")
    ),
    "workers_missing": Value(*("", "", "0", "workers that do not answer"), lambda h: float(len(h.missing))),
    "workers": Value(*("", "", "", "that answer"), lambda h: float(len(h.workers))),
    "latency_p99": Value(
        *("ms", "", "", "of requests since the last check"), lambda h: _ms(h.worst("rates", "latency_us", "p99"))
    ),
    "lag_p99": Value(
        *("ms", "", "", "of the event loop since the last check"), lambda h: _ms(h.worst("rates", "lag_us", "p99"))
    ),
    "requests": Value(
        *("", "", "", "per second since the last check"), lambda h: h.total("rates", "per_second", "requests")
    ),
}

EPILOG = (
    "values, with their default warning and critical ranges:\n"
    + "".join(
        f"  {name:<16} {value.help}{f' ({value.unit})' if value.unit else ''}"
        f": {value.warning or '-'}, {value.critical or '-'}\n"
        for name, value in VALUES.items()
    )
    + """
examples:
  adctl check --control unix:/run/adcore/control.sock
  adctl check --control 'unix:/run/adcore/*/control.sock' -c workers=2:
  adctl check -w table_age=30 -c table_age=120 -w latency_p99=5 -c requests=1:
"""
)


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "check",
        help="a Nagios plugin: is the server well",
        description=__doc__.partition("\n\n")[2],
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--control", metavar="ADDR", help=CONTROL_HELP)
    for flag, short in (("--warning", "-w"), ("--critical", "-c")):
        parser.add_argument(
            short, flag, action="append", default=[], metavar="NAME=RANGE", help="a threshold, as often as wanted"
        )
    parser.add_argument(
        "--poller",
        default="nagios",
        metavar="NAME",
        help="whose last check 'since the last check' means (default: nagios)",
    )
    parser.set_defaults(run=run)


class _Resource(nagiosplugin.Resource):  # type: ignore[misc]
    def __init__(self, host: Host) -> None:
        self.host = host

    def probe(self) -> Iterator[Any]:
        for name, value in VALUES.items():
            found = value.of(self.host)
            if found is not None:
                yield nagiosplugin.Metric(name, round(found, 3), value.unit, min=0, context=name)


def run(args: argparse.Namespace) -> int:
    """Print the line; its exit status."""
    try:
        contexts = _contexts(args.warning, args.critical)
        control = address(args.control)
        host = ask_host(control, args.poller)
    except ControlError as error:
        return _print(CRITICAL, str(error))
    except AdcoreError as error:
        return _print(UNKNOWN, str(error))
    if not host.workers:
        why = "; ".join(f"worker {name}: {error}" for name, error in host.missing.items())
        return _print(CRITICAL, why or "no worker is running")
    check = nagiosplugin.Check(_Resource(host), *contexts)
    check()
    code = int(check.exitcode)
    problems = [str(result) for result in check.results if result.state.code != OK]
    if None in [status["table"]["revision"] for status in host.workers]:
        code = CRITICAL
        problems.insert(0, "no ad table yet")
    fine = f"revision {host.worst('table', 'revision'):.0f}, " if code == OK else ""
    text = "; ".join(problems) or f"{fine}{host.total('rates', 'per_second', 'requests') or 0:.1f} requests/s"
    return _print(code, text, " ".join(str(performance) for performance in check.perfdata))


def report_usage() -> int:
    """What Nagios is told when the command line is wrong: argparse's 2 would be CRITICAL."""
    return _print(UNKNOWN, "the command line is wrong; see adctl check --help")


def _contexts(warnings: list[str], criticals: list[str]) -> list[Any]:
    ranges = {name: [value.warning, value.critical] for name, value in VALUES.items()}
    for place, given in enumerate((warnings, criticals)):
        for threshold in given:
            name, equals, text = threshold.partition("=")
            if not equals or name not in VALUES:
                raise AdcoreError(f"{threshold!r} is not NAME=RANGE; there are {', '.join(VALUES)}")
            ranges[name][place] = text
    contexts = []
    for name, (warning, critical) in ranges.items():
        try:
            contexts.append(nagiosplugin.ScalarContext(name, warning or None, critical or None))
        except ValueError as error:
            raise AdcoreError(f"{name}: {error}; a range is like 10, 5:, ~:10, 5:10 or @5:10") from None
    return contexts


def _print(code: int, text: str, performance: str = "") -> int:
    state = ("OK", "WARNING", "CRITICAL", "UNKNOWN")[code]
    # A line, whatever an error says; and "|" starts the performance data.
    text = " ".join(text.replace("|", "/").split())
    print(f"ADCORE {state} - {text}" + (f" | {performance}" if performance else ""))
    return code
