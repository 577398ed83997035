"""/metrics: the numbers of /status in Prometheus' text format 0.0.4.

The numbers are plain attributes that nothing on the request path renders or locks; prometheus_client is given them when
it is asked, as a collector. Labels have few values, whatever visitors send: routes, statuses, record types, reasons,
sources. Placements and campaigns are as many as the site books, so they stay in /status.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from adcore.http1.histogram import Histogram

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# Upper bounds of the buckets in microseconds. From 1024 on they are bounds of Histogram's own, so nothing is split.
BOUNDS_US = (10, 25, 50, 75, 100, 150, 250, 500, 1000, *(1 << bits for bits in range(11, 24)))


class Given(Collector):
    """A collector of metrics that are there already."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def render(metrics: Iterable[Metric]) -> bytes:
    return generate_latest(Given(metrics))


def merge(texts: Mapping[str, bytes]) -> bytes:
    """The metrics of several workers as one text: each sample gets the label `worker`, whose values are the keys."""
    merged: dict[str, Metric] = {}
    for worker, text in texts.items():
        for metric in text_string_to_metric_families(text.decode()):
            into = merged.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
            for sample in metric.samples:
                into.add_sample(sample.name, {**sample.labels, "worker": worker}, sample.value)
    return render(merged.values())


def workers_up(answered: Mapping[str, bool]) -> Metric:
    up = GaugeMetricFamily("adcore_worker_up", "Whether the worker answered.", labels=["worker"])
    for worker, did in answered.items():
        up.add_metric([worker], did)
    return up


def collect(status: Mapping[str, Any], histograms: Mapping[str, Histogram]) -> Iterator[Metric]:
    """`status` is the document that /status shows."""
    yield from PlatformCollector(registry=None).collect()
    yield from ProcessCollector(registry=None).collect()

    version = status["version"]
    build = GaugeMetricFamily("adcore_build_info", "The version that runs.", labels=list(version))
    build.add_metric([str(text) for text in version.values()], 1)
    yield build

    process = status["process"]
    yield gauge("adcore_tasks", "Tasks on the event loop.", process["tasks"])
    yield gauge("adcore_threads", "Threads of the process.", process["threads"])
    yield gauge(
        "adcore_allocated_blocks", "Memory blocks that Python has allocated.", process["memory"]["allocated_blocks"]
    )
    yield counter(
        "adcore_gc_collections_total",
        "Garbage collections by generation.",
        {str(generation): count for generation, count in enumerate(status["gc"]["collections"])},
        "generation",
    )
    yield histogram(
        "adcore_gc_pause_seconds", "How long garbage collections stopped everything.", histograms["gc_pause"]
    )
    yield histogram("adcore_event_loop_lag_seconds", "How late the event loop ran what was due.", histograms["lag"])

    connections = status["connections"]
    yield gauge("adcore_connections_open", "Open public connections.", connections["open"])
    yield counter("adcore_connections_accepted_total", "Public connections taken.", connections["accepted"])
    yield counter(
        "adcore_connections_turned_away_total",
        "Public connections closed at once, as there were too many.",
        connections["turned_away"],
    )
    yield counter(
        "adcore_connections_timed_out_total",
        "Connections ended by the clock, or cut for others.",
        connections["timeouts"],
        "waiting_for",
    )
    yield counter("adcore_responses_total", "Answers by status.", connections["responses"], "status")
    yield counter(
        "adcore_requests_refused_total", "Requests that were not valid HTTP.", connections["refused"], "status"
    )
    yield counter("adcore_handler_errors_total", "Requests that failed in the handler.", connections["handler_errors"])
    yield histogram(
        "adcore_request_duration_seconds", "From reading a request to writing its answer.", histograms["latency"]
    )

    delivery = status["delivery"]
    requests = CounterMetricFamily("adcore_requests", "Answers by route and status.", labels=["route", "status"])
    for route, statuses in delivery["requests"].items():
        for code, count in statuses.items():
            requests.add_metric([route, code], count)
    yield requests
    yield counter("adcore_decisions_filled_total", "Slots that got an ad.", sum(delivery["filled"].values()))
    yield counter("adcore_decisions_unfilled_total", "Slots that got none.", by_reason(delivery["unfilled"]), "reason")
    yield counter(
        "adcore_candidates_dropped_total",
        "Campaigns that were considered and not shown.",
        by_reason(delivery["dropped"]),
        "reason",
    )
    yield counter("adcore_tokens_refused_total", "Links that were not taken.", delivery["tokens_refused"], "reason")
    yield counter("adcore_clicks_repeated_total", "Clicks within the window.", delivery["clicks_repeated"])
    yield counter("adcore_views_repeated_total", "Views within the window.", delivery["views_repeated"])

    yield from collect_table(status["table"], status["refresh"])
    yield from collect_counts(status["counts"])
    yield from collect_log(status["log"])


def collect_table(table: Mapping[str, Any], refresh: Mapping[str, Any]) -> Iterator[Metric]:
    if table["revision"] is not None:
        yield gauge("adcore_table_revision", "Revision of the table that is served.", table["revision"])
        for what in ("placements", "campaigns", "creatives"):
            yield gauge(f"adcore_table_{what}", f"Number of {what} in the table.", table[what])
        yield gauge("adcore_table_rejected_rows", "Bad rows that were left out.", table["rejected_count"])
    if refresh["age_s"] is not None:
        yield gauge("adcore_table_age_seconds", "Since a source last confirmed the table.", refresh["age_s"])
    yield gauge(
        "adcore_table_refused",
        "Whether a table is held back that lost most of its ads.",
        refresh["refused"] is not None,
    )
    yield counter("adcore_table_looks_total", "Times that a source was asked for news.", refresh["looks"])
    yield counter("adcore_table_loads_total", "Tables by where they came from.", refresh["loads"], "origin")
    up = GaugeMetricFamily("adcore_source_up", "Whether a source answered when last asked.", labels=["source"])
    for source in refresh["sources"]:
        if source["ok"] is not None:
            up.add_metric([source["source"]], source["ok"])
    yield up


def collect_counts(counts: Mapping[str, Any]) -> Iterator[Metric]:
    sharing = counts["sharing"]
    yield gauge("adcore_campaigns_held", "Campaigns held back by a goal, a cap or even pacing.", len(counts["held"]))
    yield counter("adcore_counts_exchanges_total", "Times that counts were exchanged.", sharing["exchanges"])
    yield counter("adcore_counts_errors_total", "Errors on the way.", sharing["errors"])
    yield gauge("adcore_counts_age_seconds", "Since that went without an error.", sharing["age_s"])
    yield gauge("adcore_counts_exchange_seconds", "How long the last one took.", sharing["took_s"])
    up = GaugeMetricFamily("adcore_counts_source_up", "Whether it answered when last asked.", labels=["source"])
    for source in sharing["sources"]:
        if source["ok"] is not None:
            up.add_metric([source["source"]], source["ok"])
    yield up


def collect_log(log: Mapping[str, Any]) -> Iterator[Metric]:
    yield gauge("adcore_log_queue_records", "Records that wait for the disk.", log["waiting"])
    yield gauge("adcore_log_queue_bytes", "Their size.", log["waiting_bytes"])
    yield gauge("adcore_log_queue_capacity_bytes", "What may wait.", log["waiting_bytes_max"])
    yield gauge("adcore_log_queue_unpaid_bytes", "Of unfilled slots and robots.", log["waiting_bytes_unpaid"])
    # Each type from the start, as rate() and increase() miss the first one of a series that appears with it.
    none = {"impression": 0, "view": 0, "click": 0, "unfilled": 0}
    yield counter("adcore_log_records_accepted_total", "Records queued.", none | log["accepted"], "type")
    yield counter("adcore_log_records_written_total", "Records written.", none | log["written"], "type")
    dropped = none | log["dropped"]
    yield counter("adcore_log_records_dropped_total", "Records lost, as too many waited.", dropped, "type")
    paid = {"impression": 0, "view": 0, "click": 0, **log["dropped_paid"]}
    yield counter("adcore_log_paid_records_dropped_total", "Those of them that are revenue.", paid, "type")
    yield counter("adcore_log_written_bytes_total", "Bytes written.", log["written_bytes"])
    yield counter("adcore_log_write_errors_total", "Writes that failed and were tried again.", log["write_errors"])
    yield counter("adcore_log_reopens_total", "Times that the log was reopened.", log["reopens"])
    yield counter("adcore_log_reopen_failures_total", "Times that it could not be.", log["reopen_failures"])


def gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value)


def counter(name: str, text: str, value: float | Mapping[Any, float], label: str = "") -> Metric:
    """One number, or a number for each value of a label."""
    if not isinstance(value, Mapping):
        return CounterMetricFamily(name, text, value)
    family = CounterMetricFamily(name, text, labels=[label])
    for labelled, count in value.items():
        family.add_metric([str(labelled)], count)
    return family


def histogram(name: str, text: str, durations: Histogram) -> Metric:
    buckets: list[tuple[str, float]] = []
    counted = 0.0
    filled = durations.buckets_us()
    at = 0
    for bound in BOUNDS_US:
        while at < len(filled) and filled[at][0] <= bound:
            counted += filled[at][1]
            at += 1
        buckets.append((str(bound / 1e6), counted))
    buckets.append(("+Inf", counted + sum(count for _, count in filled[at:])))
    return HistogramMetricFamily(name, text, buckets=buckets, sum_value=durations.total_us / 1e6)


def by_reason(placements: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    """{placement: {reason: count}} summed over the placements."""
    totals: dict[str, int] = {}
    for reasons in placements.values():
        for reason, count in reasons.items():
            totals[str(reason)] = totals.get(str(reason), 0) + count
    return totals
