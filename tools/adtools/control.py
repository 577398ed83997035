"""What a running server says on its control listener: one process, several workers behind one, or several units.

Units of systemd have a listener each, so `*` in the path of a socket stands for all of a host's:
unix:/run/adcore/*/control.sock
"""

import glob
import http.client
import json
import socket
from collections.abc import Iterator, Mapping
from typing import Any

from adcore.config import load_config
from adcore.errors import AdcoreError, ConfigError
from adcore.listen import UnixAddress, parse_address

# A server under load answers in milliseconds; one that takes this long is stuck.
TIMEOUT_S = 5.0

CONTROL_HELP = "the server's control listener: unix:PATH or HOST:PORT; * in PATH: of every server of this host"


class ControlError(AdcoreError):
    """The control listener does not answer, or not as one."""


def get(control: str, target: str, timeout_s: float = TIMEOUT_S) -> tuple[int, Any]:
    """The status and the JSON at `target`. Raises ConfigError for what is no address, ControlError."""
    try:
        address = parse_address(control)
    except ValueError as error:
        raise ConfigError(f"--control: {error}") from None
    connection = http.client.HTTPConnection(
        *(("localhost", 80) if isinstance(address, UnixAddress) else (address.host, address.port)),
        timeout=timeout_s,
    )
    try:
        if isinstance(address, UnixAddress):
            connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.sock.settimeout(timeout_s)
            connection.sock.connect(str(address.path))
        connection.request("GET", target)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise ControlError(f"no answer from {control} ({error}); is it the --control address of a server?") from None
    finally:
        connection.close()


def address(given: str | None) -> str:
    """`given`, else that of the server that this host's configuration describes. Raises ConfigError."""
    control = given or load_config().control
    if control is None:
        raise ConfigError("which server? Say --control unix:PATH, or set ADCORE_CONTROL or ADCORE_CONFIG")
    return control


class Host:
    """/status of a server: of its one process, or of each of its workers."""

    def __init__(self, status: Mapping[str, Any]) -> None:
        answers: list[Mapping[str, Any]] = status.get("workers", [status])
        self.workers = [answer for answer in answers if "error" not in answer]
        self.missing = {str(answer["number"]): str(answer["error"]) for answer in answers if "error" in answer}
        """Workers that do not answer, and what was wrong."""

    def each(self, *path: str) -> Iterator[Any]:
        """What is at this path of each worker's status, where there is something."""
        for status in self.workers:
            value: Any = status
            for key in path:
                value = value.get(key) if isinstance(value, Mapping) else None
            if value is not None:
                yield value

    def total(self, *path: str) -> float | None:
        """The sum over the workers; None if none has it."""
        values = list(self.each(*path))
        return sum(values) if values else None

    def worst(self, *path: str) -> float | None:
        """The highest of the workers'; None if none has it."""
        return max(self.each(*path), default=None)

    def counts(self, *path: str) -> dict[str, int]:
        """The counts by key, summed over the workers."""
        totals: dict[str, int] = {}
        for counts in self.each(*path):
            for key, count in counts.items():
                totals[key] = totals.get(key, 0) + count
        return totals

    def records(self) -> dict[str, int]:
        """Impressions, views, clicks and unfilled slots since the start, by type, those that were dropped too."""
        totals = self.counts("log", "accepted")
        for kind, count in self.counts("log", "dropped").items():
            totals[kind] = totals.get(kind, 0) + count
        for kind, count in self.counts("log", "dropped_late").items():
            totals[kind] -= count
        return totals

    def drops(self) -> tuple[int, int] | None:
        """Records lost in the interval of the rates: impressions, views and clicks, and those that nobody pays for."""
        counted = [counts for counts in self.each("rates", "counted") if "log_dropped" in counts]
        # A worker of an earlier version does not tell them apart.
        paid = sum(counts.get("log_dropped_paid", counts["log_dropped"]) for counts in counted)
        return (paid, sum(counts["log_dropped"] for counts in counted) - paid) if counted else None

    def log_queue_share(self) -> float | None:
        """How full the fullest worker's queue is, from 0 to 1."""
        return max((log["waiting_bytes"] / log["waiting_bytes_max"] for log in self.each("log")), default=None)


def ask_host(control: str, poller: str, **arguments: str) -> Host:
    """/status of all that `control` stands for, with the rates of this poller. Raises ControlError."""
    target = f"/status?poller={poller}" + "".join(f"&{name}={value}" for name, value in arguments.items())
    if not (control.startswith("unix:") and "*" in control):
        return Host(_status(control, target))
    units = [f"unix:{path}" for path in sorted(glob.glob(control.removeprefix("unix:")))]
    if not units:
        raise ControlError(f"there is no socket {control}; is a server running, and may this user see it?")
    answers: list[Mapping[str, Any]] = []
    for unit in units:
        try:
            status = _status(unit, target)
        except ControlError as error:
            answers.append({"number": unit, "error": str(error)})
        else:
            workers = status.get("workers", [{**status, "number": "the one"}])
            answers += [{**worker, "number": f"{worker['number']} of {unit}"} for worker in workers]
    return Host({"workers": answers})


def _status(control: str, target: str) -> Mapping[str, Any]:
    code, status = get(control, target)
    if code != 200 or not isinstance(status, dict) or not ("workers" in status or "process" in status):
        if code in (403, 421) and isinstance(status, dict) and "error" in status:  # it takes us for a web page
            raise ControlError(f"{control} answers {code}: {status['error']}")
        raise ControlError(f"{control} answers {code}, and no status; is it the --control address of a server?")
    return status
