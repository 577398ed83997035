"""What /status says, made up; and a server that says it."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def status(**changes: Any) -> dict[str, Any]:
    """One process that is well. `changes` replace parts: `refresh={"age_s": 700}`."""
    percentiles = {"p50": 40, "p99": 400, "p99.9": 1500}
    document: dict[str, Any] = {
        "process": {
            "pid": 1,
            "host": "ads1",
            "uptime_s": 93_784.0,
            "rss_bytes": 50_000_000,
            "memory": {"private_bytes": 30_000_000},
        },
        "version": {"version": "0.1.0"},
        "connections": {"open": 12, "responses": {"200": 900, "204": 90, "404": 9, "503": 1}},
        "table": {"revision": 7, "rejected_count": 0},
        "refresh": {"age_s": 2.5},
        "log": {
            "waiting_bytes": 500,
            "waiting_bytes_max": 1000,
            "accepted": {"impression": 900, "click": 5},
            "dropped": {},
            "dropped_paid": {},
            "dropped_late": {},
        },
        "rates": {
            "interval_s": 2.0,
            "counted": {"log_dropped": 0, "log_dropped_paid": 0},
            "per_second": {
                "requests": 1234.5,
                "impression": 1000.0,
                "view": 0.0,
                "click": 2.5,
                "unfilled": 234.5,
                "cpu_s": 0.25,
                "gc_pause_s": 0.001,
            },
            "latency_us": percentiles,
            "lag_us": {"p50": 16, "p99": 1024, "p99.9": None},
            "gc_pause_us": percentiles,
        },
        "campaigns": [
            {"campaign": "spring", "impressions_today": 1500, "clicks_today": 15},
            {"campaign": "[red]odd", "impressions_today": 0, "clicks_today": 0},
        ],
    }
    for name, change in changes.items():
        document[name] = {**document[name], **change}
    return document


def of_workers(*workers: dict[str, Any]) -> dict[str, Any]:
    return {"workers": [{"number": number, **worker} for number, worker in enumerate(workers, 1)], "parent": {}}


@contextmanager
def answering(body: Any, code: int = 200) -> Iterator[str]:
    """The address of a server that answers every GET so; `body` is JSON data, or bytes."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
