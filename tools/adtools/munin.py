"""`adctl munin`: a Munin plugin with a graph for each name that it is linked to.

Link tools/munin/adcore_ into /etc/munin/plugins as adcore_requests, adcore_latency and so on (`munin-node-configure
--suggest --shell` prints the links), and name the server in /etc/munin/plugin-conf.d/adcore:

  [adcore_*]
  user adcore
  env.ADCORE_CONTROL unix:/run/adcore/*/control.sock
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any, NamedTuple

from adcore.errors import AdcoreError
from adtools.control import CONTROL_HELP, ControlError, Host, address, ask_host

PREFIX = "adcore_"


class Field(NamedTuple):
    """A line of a graph. COUNTER-like values are DERIVE with min 0: a restart shows as a gap, not as a spike."""

    label: str
    of: Callable[[Host], float | None]
    type: str = "GAUGE"
    draw: str = "LINE1"


class Graph(NamedTuple):
    title: str
    vertical: str
    info: str
    fields: dict[str, Field]
    args: str = "--base 1000 --lower-limit 0"


def _seconds(*path: str) -> Callable[[Host], float | None]:
    def of(host: Host) -> float | None:
        us = host.worst(*path)
        return None if us is None else us / 1e6

    return of


def _responses(first_digit: str) -> Callable[[Host], float]:
    return lambda host: sum(
        count for status, count in host.counts("connections", "responses").items() if status[0] == first_digit
    )


def _records(kind: str) -> Callable[[Host], float]:
    return lambda host: host.records().get(kind, 0)


def _dropped(kind: str) -> Callable[[Host], float]:
    return lambda host: host.counts("log", "dropped").get(kind, 0)


def _total(*path: str, times: float = 1) -> Callable[[Host], float | None]:
    def of(host: Host) -> float | None:
        value = host.total(*path)
        return None if value is None else value * times

    return of


def _percentiles(of: str) -> dict[str, Field]:
    return {
        "p50": Field("median", _seconds("rates", of, "p50")),
        "p99": Field("99 %", _seconds("rates", of, "p99")),
        "p999": Field("99.9 %", _seconds("rates", of, "p99.9")),
    }


RECORDS = {"impression": "impressions", "view": "views", "click": "clicks", "unfilled": "unfilled slots"}
GRAPHS = {
    "requests": Graph(
        "Requests by status",
        "requests / ${graph_period}",
        "Answers by the first digit of their status.",
        {f"status{d}xx": Field(f"{d}xx", _responses(d), "DERIVE", "AREASTACK") for d in "2345"},
    ),
    "delivery": Graph(
        "Delivery",
        "per ${graph_period}",
        "What went into the delivery log.",
        {kind: Field(label, _records(kind), "DERIVE") for kind, label in RECORDS.items()},
    ),
    "latency": Graph("Latency", "seconds", "From reading a request to writing its answer.", _percentiles("latency_us")),
    "lag": Graph("Event loop lag", "seconds", "How late the event loop runs what is due.", _percentiles("lag_us")),
    "connections": Graph(
        "Connections", "connections", "Public connections.", {"open": Field("open", _total("connections", "open"))}
    ),
    "table": Graph(
        "Age of the ad table",
        "seconds",
        "Since a source last confirmed it. Old but served: a source is away.",
        {"age": Field("age", lambda host: host.worst("refresh", "age_s"))},
    ),
    "log": Graph(
        "Records that wait for the disk",
        "bytes",
        "The delivery log's queue; what does not fit is dropped.",
        {
            "waiting": Field("waiting", _total("log", "waiting_bytes"), draw="AREA"),
            "capacity": Field("capacity", _total("log", "waiting_bytes_max")),
        },
        "--base 1024 --lower-limit 0",
    ),
    "drops": Graph(
        "Records lost",
        "records / ${graph_period}",
        "Dropped, as the log's queue was full. All but unfilled ones and robots' are revenue.",
        {kind: Field(label, _dropped(kind), "DERIVE", "AREASTACK") for kind, label in RECORDS.items()},
    ),
    "memory": Graph(
        "Memory",
        "bytes",
        "Of all workers together; shared pages count in each.",
        {
            "resident": Field("resident", _total("process", "rss_bytes"), draw="AREA"),
            "private": Field("private", _total("process", "memory", "private_bytes")),
        },
        "--base 1024 --lower-limit 0",
    ),
    "cpu": Graph(
        "CPU time",
        "% of a core",
        "Of all workers together, and what garbage collections took of it.",
        {
            "cpu": Field("cpu", _total("rates", "per_second", "cpu_s", times=100), draw="AREA"),
            "gc": Field("garbage collections", _total("rates", "per_second", "gc_pause_s", times=100)),
        },
    ),
}


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "munin",
        help="a Munin plugin: graphs of the server",
        description=__doc__.partition("\n\n")[2],
        epilog="graphs:\n" + "".join(f"  {PREFIX}{name:<12} {graph.title}\n" for name, graph in GRAPHS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--control", metavar="ADDR", help=CONTROL_HELP)
    parser.add_argument("name", metavar="NAME", help="what the plugin is called, like adcore_requests")
    parser.add_argument("mode", nargs="?", default="fetch", choices=("fetch", "config", "autoconf", "suggest"))
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print what Munin asks for; 1 when the server does not answer."""
    if args.mode == "suggest":
        print("\n".join(GRAPHS))
        return 0
    if args.mode == "autoconf":
        try:
            ask_host(address(args.control), "munin-autoconf")
        except AdcoreError as error:
            print(f"no ({' '.join(str(error).split())})")
        else:
            print("yes")
        return 0
    name = args.name.removeprefix(PREFIX)
    graph = GRAPHS.get(name)
    if graph is None:
        raise AdcoreError(f"there is no graph {args.name!r}; link the plugin as one of {_names()}")
    if args.mode == "config":
        print("\n".join(config(graph)))
        if os.environ.get("MUNIN_CAP_DIRTYCONFIG") != "1":
            return 0
    try:
        # Each graph is a poller of its own, since munin asks for one after the other.
        host = ask_host(address(args.control), f"munin-{name}")
    except ControlError:
        if args.mode == "config":  # the graph is there all the same, with a gap
            host = Host({"workers": []})
        else:
            raise
    print("\n".join(values(graph, host)))
    return 0


def config(graph: Graph) -> list[str]:
    lines = [
        f"graph_title adcore: {graph.title}",
        f"graph_args {graph.args}",
        f"graph_vlabel {graph.vertical}",
        "graph_category adserver",
        f"graph_info {graph.info}",
    ]
    for name, field in graph.fields.items():
        lines += [f"{name}.label {field.label}", f"{name}.type {field.type}", f"{name}.draw {field.draw}"]
        lines.append(f"{name}.min 0")
    return lines


def values(graph: Graph, host: Host) -> list[str]:
    """Munin takes `U` for what is not known."""
    lines = []
    for name, field in graph.fields.items():
        value = field.of(host) if host.workers else None
        shown = "U" if value is None else f"{value:.0f}" if field.type == "DERIVE" else f"{value:.10g}"
        lines.append(f"{name}.value {shown}")
    return lines


def _names() -> str:
    return ", ".join(PREFIX + name for name in GRAPHS)
