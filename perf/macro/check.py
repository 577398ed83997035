"""Before anything is measured: does each contender do the whole job?

One request, and the answer must have adcore's status, headers and JSON shape, no less of a body, a token for each
link, and a record in the log with every field of adcore's. A contender that does less would win by it, so the run ends.
"""

import http.client
import json
import re
import socket
import time
from typing import Any

import msgpack

from adcore.deliverylog.record import HEADER, MAGIC, Impression
from perf.macro.errors import Missing, RunError
from perf.macro.servers import PATIENCE_S, Contender, Server
from perf.macro.traffic import Request

# The least that a record with these fields takes, in adcore's msgpack or in JSON.
RECORD_BYTES_MIN = 250
# The texts of two ads may differ by a few characters.
BODY_SHARE_MIN = 0.99
HEADERS = {
    "content-type": "application/json",
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
}
_TOKEN = re.compile(r"\w+~[0-9a-f]{8}~[0-9a-f]{32}~[\w.-]+~[\w.-]+~[0-9a-f]{32}")


class Answer:
    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.body = response.read()


def ask(address: str, request: Request) -> Answer:
    """One request with the very bytes that the load sends."""
    if address.startswith("unix:"):
        connection = socket.socket(socket.AF_UNIX)
        where: Any = address.removeprefix("unix:")
    else:
        connection = socket.socket()
        host, _, port = address.rpartition(":")
        where = host, int(port)
    with connection:
        connection.settimeout(PATIENCE_S)
        connection.connect(where)
        connection.sendall(request.encode())
        response = http.client.HTTPResponse(connection)
        try:
            response.begin()
            return Answer(response)
        finally:
            response.close()


def wait_until_ready(server: Server, request: Request) -> None:
    """Until it answers 200. Raises Missing with what it wrote when it does not start."""
    deadline_monotonic = time.monotonic() + PATIENCE_S
    problem = "nothing answers"
    while time.monotonic() < deadline_monotonic:
        if failure := server.failure():
            raise Missing(f"does not start: {failure}")
        try:
            answer = ask(server.address, request)
        except (OSError, http.client.HTTPException) as error:
            problem = str(error)
        else:
            if answer.status == 200:
                return
            problem = f"it answers {answer.status}"
        time.sleep(0.02)
    raise Missing(f"does not start within {PATIENCE_S:.0f} s: {problem}")


def does_the_job(contender: Contender, server: Server, request: Request, usual: bytes) -> int:
    """Raises RunError naming what is less than adcore's; else the size of an answer's body."""
    logged = server.log_bytes()
    one, other = ask(server.address, request), ask(server.address, request)
    problems = compare(contender, one, other, usual)
    if contender.decides:
        if grows(server, logged + 2 * RECORD_BYTES_MIN):
            problems += compare_record(first_record(server, logged))
        else:
            problems.append("the log has no record of it")
    if problems:
        raise RunError(f"{contender.name} does not do the whole job: {'; '.join(problems)}")
    return len(one.body)


def compare(contender: Contender, one: Answer, other: Answer, usual: bytes) -> list[str]:
    """What is wrong with two answers to one request, beside a usual one."""
    if one.status != 200:
        return [f"status {one.status}"]
    problems = [
        f"{name}: {one.headers.get(name)}"
        for name, value in HEADERS.items()
        if (one.headers.get(name) or "").lower() != value
    ]
    if "date" not in one.headers:
        problems.append("no Date")
    try:
        decision, expected = json.loads(one.body), json.loads(usual)
    except ValueError:
        return [*problems, "the body is not JSON"]
    if shape(decision) != shape(expected):
        return [*problems, f"the shape of the JSON differs: {shape(decision)} and not {shape(expected)}"]
    if len(one.body) < len(usual) * BODY_SHARE_MIN:
        problems.append(f"{len(one.body)} bytes of body, and {len(usual)} are usual")
    problems += [
        f"{field} has no token"
        for field in ("click_url", "view_url")
        if not _TOKEN.fullmatch(decision[field].rpartition("?t=")[2])
    ]
    if contender.decides and one.body == other.body:
        problems.append("two answers are the same")
    return problems


def first_record(server: Server, offset: int) -> dict[str, Any]:
    """The record at this place of the log: a line of JSON, a frame of adcore's or bare msgpack."""
    assert server.log is not None
    data = server.log.read_bytes()[offset:]
    if data.startswith(b"{"):
        found: dict[str, Any] = json.loads(data.partition(b"\n")[0])
        return found
    unpacker = msgpack.Unpacker()
    unpacker.feed(data[HEADER.size :] if data.startswith(MAGIC) else data)
    unpacked: dict[str, Any] = unpacker.unpack()
    return unpacked


def compare_record(record: dict[str, Any]) -> list[str]:
    wanted = {"type", *Impression.__struct_fields__}
    absent = ", ".join(sorted(wanted - record.keys()))
    return [f"the record lacks {absent}"] if absent else []


def shape(value: Any) -> Any:
    """Keys and types, in order."""
    if isinstance(value, dict):
        return {name: shape(inner) for name, inner in value.items()}
    return type(value).__name__


def grows(server: Server, size: int) -> bool:
    """Whether the log reaches a size within the time that the slowest flush takes."""
    deadline_monotonic = time.monotonic() + 5.0
    while server.log_bytes() < size:
        if time.monotonic() > deadline_monotonic:
            return False
        time.sleep(0.02)
    return True
