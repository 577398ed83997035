"""The control listener of a real server, and several of them behind one; and its connections, with odd peers."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from adcore.control.server import TURNED_AWAY_MAX
from adcore.control.workers import WorkersControl, WorkerView
from adcore.deliverylog.record import TYPES
from adcore.http1.request import Limits, Request
from adcore.http1.response import Response, respond
from tests.control.listener import listening
from tests.control.test_metrics import check, samples
from tests.inventories import campaign, document
from tests.process import Adcore, Answer, Connection, adctl, after, ask, connect, serving, wait_for

# Every key of golang-stats-api-handler's Stats, in its order.
GOLANG_KEYS = [
    *("time", "go_version", "go_os", "go_arch", "cpu_num", "goroutine_num", "gomaxprocs", "cgo_call_num"),
    *("memory_alloc", "memory_total_alloc", "memory_sys", "memory_lookups", "memory_mallocs", "memory_frees"),
    *("memory_stack", "heap_alloc", "heap_sys", "heap_idle", "heap_inuse", "heap_released", "heap_objects"),
    *("gc_next", "gc_last", "gc_num", "gc_per_second", "gc_pause_per_second", "gc_pause"),
]

# A sample is taken each 5 ms of CPU time, so these are 20.
CPU_NS_ENOUGH = 100_000_000


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    url = f"sqlite:///{tmp_path_factory.mktemp('store')}/ads.db"
    applied = adctl("apply", "--source", url, "-", stdin=json.dumps(document(campaign("a"), campaign("b"))))
    assert applied.returncode == 0, applied.stderr
    return url


# An idle server collects garbage after a second, not only after a minute.
IMPATIENT = after("from adcore import collector; collector.IDLE_S = 1.0")


@pytest.fixture(scope="module")
def server(source: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Adcore]:
    state = tmp_path_factory.mktemp("state")
    where = ("--unix", f"{state}/ad.sock", "--source", source)
    with serving(state, *where, launcher=IMPATIENT) as server:
        yield server
        assert server.stop() == 0


@contextmanager
def load(address: str) -> Iterator[None]:
    """One connection that asks for decisions without a pause."""
    stop = threading.Event()

    def run() -> None:
        connection = Connection(address)
        while not stop.is_set():
            connection.request("GET", "/v1/decision?placement=side")
            connection.getresponse().read()
        connection.close()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("path", ["/status", "/metrics", "/version", "/profile", "/explain?placement=side"])
def test_the_public_listener_knows_nothing_of_it(server: Adcore, path: str) -> None:
    assert server.ask(path).status == 404
    assert server.ask(path, X_Real_IP="127.0.0.1").status == 404


def test_status_has_what_an_operator_asks_of_a_process(server: Adcore) -> None:
    server.ask("/v1/decision?placement=side")
    wait_for(lambda: server.status()["loop"]["lag_us"]["p50"] is not None)
    status = server.status()
    process, memory = status["process"], status["process"]["memory"]
    assert process["pid"] == server.process.pid
    assert abs(process["time"] - time.time()) < 60
    assert process["uptime_s"] > 0
    assert process["cpu_count"] >= 1 == process["workers"]
    assert process["tasks"] >= 4
    assert process["threads"] >= 2
    assert 1 << 20 < process["rss_bytes"] <= memory["rss_max_bytes"] <= memory["virtual_bytes"]
    assert memory["allocated_blocks"] > 10_000
    assert memory["mallocs"] is None
    assert status["gc"]["count"] >= 1  # the server collects before it serves
    assert 0 < status["gc"]["pause_max_s"] <= status["gc"]["pause_total_s"]
    assert len(status["gc"]["collections"]) == 3
    assert status["version"]["python"] == process["python"]
    assert set(status["loop"]["lag_us"]) == {"p50", "p99", "p99.9"}


def test_status_in_the_words_of_go_has_every_key_and_no_invented_number(server: Adcore) -> None:
    first = ask(server.control, "/status?format=golang-stats&poller=munin").json()
    assert list(first) == GOLANG_KEYS
    process = server.status()["process"]
    assert first["go_version"] == f"python{process['python']}"
    assert (first["go_os"], first["cpu_num"], first["gomaxprocs"]) == ("linux", process["cpu_count"], 1)
    assert abs(first["time"] / 1e9 - time.time()) < 60
    assert abs(first["gc_last"] / 1e9 - time.time()) < 600
    unknown = {key for key, value in first.items() if value is None}
    assert unknown == {
        *("cgo_call_num", "gc_next", "heap_alloc", "heap_idle", "heap_released", "heap_sys", "memory_alloc"),
        *("memory_frees", "memory_lookups", "memory_mallocs", "memory_total_alloc"),
    }
    assert len(first["gc_pause"]) == first["gc_num"] >= 1  # all, as this poller has seen none
    assert sum(first["gc_pause"]) == pytest.approx(
        first["gc_pause_per_second"] * first["gc_num"] / first["gc_per_second"]
    )
    wait_for(lambda: server.status()["gc"]["count"] > first["gc_num"])
    second = ask(server.control, "/status?format=golang-stats&poller=munin").json()
    assert len(second["gc_pause"]) == second["gc_num"] - first["gc_num"] > 0
    seconds = (second["time"] - first["time"]) / 1e9
    assert second["gc_per_second"] == pytest.approx((second["gc_num"] - first["gc_num"]) / seconds, rel=0.2)
    other = ask(server.control, "/status?format=golang-stats&poller=zabbix").json()
    assert len(other["gc_pause"]) == other["gc_num"]


def test_rates_are_per_poller_by_name_or_by_agent(server: Adcore) -> None:
    def requests(target: str = "/status", **headers: str) -> float:
        counted: float = ask(server.control, target, "GET", None, **headers).json()["rates"]["counted"]["requests"]
        return counted

    requests("/status?poller=one"), requests(User_Agent="two")
    for _ in range(3):
        server.ask("/v1/decision?placement=side")
    assert requests("/status?poller=one") == 3
    assert requests("/status?poller=one") == 0
    server.ask("/v1/decision?placement=side")
    assert requests(User_Agent="two") == 4
    rates = ask(server.control, "/status?poller=one").json()["rates"]
    assert rates["per_second"]["impression"] == pytest.approx(1 / rates["interval_s"])
    assert rates["latency_us"]["p50"] > 0


def test_the_busiest_campaigns_on_demand(server: Adcore) -> None:
    server.ask("/v1/decision?placement=side")
    assert "campaigns" not in server.status()
    busiest = ask(server.control, "/status?campaigns=2").json()["campaigns"]
    assert {c["campaign"] for c in busiest} == {"a", "b"}
    assert busiest[0]["impressions_today"] >= busiest[1]["impressions_today"]
    assert len(ask(server.control, "/status?campaigns=1").json()["campaigns"]) == 1


def test_metrics_are_good_prometheus_text_and_agree_with_status(server: Adcore) -> None:
    server.ask("/v1/decision?placement=side")
    server.ask("/v1/decision?placement=nowhere-0")
    before = ask(server.control, "/metrics")
    assert before.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    check(before.body)
    found, status = samples(before.body), server.status()
    assert found["adcore_requests_total"]["decision", "200"] == status["delivery"]["requests"]["decision"]["200"]
    assert found["adcore_decisions_filled_total"][()] == sum(status["delivery"]["filled"].values())
    assert found["adcore_decisions_unfilled_total"]["unknown_placement",] >= 1
    assert found["adcore_table_campaigns"][()] == 2
    for name in ("accepted", "written", "dropped"):
        assert {*found[f"adcore_log_records_{name}_total"]} == {(kind,) for kind in TYPES}
    assert found["adcore_log_records_dropped_total"]["impression",] == 0
    assert {*found["adcore_log_paid_records_dropped_total"]} == {("impression",), ("view",), ("click",)}
    assert found["adcore_request_duration_seconds_count"][()] > 0
    assert found["adcore_event_loop_lag_seconds_count"][()] > 0
    # Whatever visitors send, there are no more series than before.
    for number in range(5):
        server.ask(f"/v1/decision?placement=nowhere-{number}&keywords=k{number}", user_agent=f"agent {number}")
        server.ask(f"/nothing/{number}")
        server.ask("/v1/view?t=xyz")
    series = {name: set(values) for name, values in samples(ask(server.control, "/metrics").body).items()}
    for number in range(5, 10):
        server.ask(f"/v1/decision?placement=nowhere-{number}&keywords=k{number}", user_agent=f"agent {number}")
        server.ask(f"/nothing/{number}")
        server.ask("/v1/view?t=xyz")
    assert {name: set(values) for name, values in samples(ask(server.control, "/metrics").body).items()} == series


@pytest.mark.parametrize(
    ("target", "error"),
    [
        ("/status?format=xml", "format must be adcore or golang-stats, not 'xml'"),
        ("/status?colour=red", "no argument 'colour'"),
        ("/status?campaigns=0", "campaigns must be a number from 1 to 1000, not '0'"),
        ("/profile?seconds=61", "seconds must be a number from 0.1 to 60, not '61'"),
        ("/profile?seconds=nan", "not 'nan'"),
        ("/profile?seconds=soon", "not 'soon'"),
        (f"/explain?placement={'a,' * 32}a", "placement names 33 placements, and may name 32"),
        ("/explain?device=tv", "placement is missing"),
        *(
            (f"/explain?placement=a&time={quote(time)}", f"like 2026-11-01T20:00, in the years 2 to 9998, not {time!r}")
            for time in (
                *("0001-01-01", "0001-01-01T00:00:00+14:00", "9999-12-31", "9999-12-31T23:59:59-23:59", "10000-01-01"),
                *("1e400", "", "\0", "9" * 5000, "2026-11-01T20:00+99:00", "2026-02-30"),
            )
        ),
        ("/explain?placement=a&placement=b", "placement is given twice"),
        ("/profile?format=png", "format must be svg, speedscope, pdf, not 'png'"),
    ],
)
def test_what_cannot_be_answered_is_named(server: Adcore, target: str, error: str) -> None:
    answer = ask(server.control, target)
    assert answer.status == 400
    assert error in answer.json()["error"]


def take_profile(server: Adcore, form: str, is_enough: Callable[[Answer], bool]) -> Answer:
    """A profile under load, longer and longer: what it shows is CPU time, of which a busy machine gives little."""
    with load(server.address):
        for seconds in (0.5, 1, 2, 4, 8, 16):
            answer = ask(server.control, f"/profile?seconds={seconds}&format={form}")
            if is_enough(answer):
                break
    return answer


def main_thread(answer: Answer) -> Any:
    return next((p for p in answer.json()["profiles"] if p["name"] == "MainThread"), {"endValue": 0})


def test_a_profile_of_a_server_under_load_shows_what_requests_cost(server: Adcore) -> None:
    profile = take_profile(server, "speedscope", lambda answer: main_thread(answer)["endValue"] >= CPU_NS_ENOUGH)
    assert profile.headers["Content-Type"] == "application/json"
    names = [frame["name"] for frame in profile.json()["shared"]["frames"]]
    assert any(name.startswith("adcore.delivery.") for name in names)
    main = main_thread(profile)
    hot = sum(
        weight
        for stack, weight in zip(main["samples"], main["weights"], strict=True)
        if "adcore.http1.protocol.Http1Protocol.data_received" in {names[place] for place in stack}
    )
    # A fifth where a client that waits for each answer leaves a turn of the loop per request; more under real load.
    assert hot > 0.05 * main["endValue"]


def test_a_flame_graph_and_a_call_graph_of_a_server_under_load(server: Adcore) -> None:
    flames = take_profile(server, "svg", lambda answer: b"Http1Protocol.data_received" in answer.body)
    assert flames.headers["Content-Type"] == "image/svg+xml"
    assert b"Http1Protocol.data_received" in flames.body
    graph = take_profile(server, "pdf", lambda answer: answer.status == 200)
    assert graph.body.startswith(b"%PDF-")


def test_while_a_profile_is_taken_others_are_answered_and_a_second_is_refused(server: Adcore) -> None:
    slow = Connection(server.control)
    slow.request("GET", "/profile?seconds=2")
    while (refused := ask(server.control, "/profile?seconds=0.1")).status == 200:
        pass  # the slow one has not got there yet
    assert refused.status == 503
    assert "being taken already; try again in" in refused.json()["error"]
    assert server.status()["process"]["pid"] == server.process.pid
    assert server.ask("/v1/decision?placement=side").status == 200
    assert slow.getresponse().status == 200
    slow.close()


def test_the_server_ends_although_a_profile_is_under_way(source: str, tmp_path: Path) -> None:
    with serving(tmp_path / "s", "--source", source) as server:
        slow = Connection(server.control)
        slow.request("GET", "/profile?seconds=60")
        wait_for(lambda: ask(server.control, "/profile?seconds=0.1").status == 503)
        assert server.stop() == 0
        slow.close()
        assert "Traceback" not in server.errors


# Several workers behind one listener


def test_several_workers_are_all_reported(source: str, tmp_path: Path) -> None:
    with (
        serving(tmp_path / "a", "--source", source) as one,
        serving(tmp_path / "b", "--source", source) as two,
    ):
        for server, count in ((one, 2), (two, 5)):
            for _ in range(count):
                assert server.ask("/v1/decision?placement=side").status == 200
        views = [
            WorkerView(1, one.process.pid, "serving", f"{tmp_path}/a/control.sock"),
            WorkerView(2, two.process.pid, "serving", f"{tmp_path}/b/control.sock"),
            WorkerView(1, 1, "draining", f"{tmp_path}/gone.sock"),
        ]
        control = WorkersControl(lambda: views, lambda: {"restarts": 1})
        with listening(control, tmp_path / "all.sock") as address:
            status = ask(address, "/status").json()
            assert status["parent"] == {"restarts": 1}
            assert [(w["number"], w["process"]["pid"]) for w in status["workers"][:2]] == [
                (1, one.process.pid),
                (2, two.process.pid),
            ]
            assert "no connection" in status["workers"][2]["error"]
            views.pop()
            text = ask(address, "/metrics").body
            check(text)
            found = samples(text)
            assert found["adcore_decisions_filled_total"] == {("1",): 2, ("2",): 5}
            assert found["adcore_worker_up"] == {("1",): 1, ("2",): 1}
            golang = ask(address, "/status?format=golang-stats").json()
            assert list(golang) == [*GOLANG_KEYS, "workers", "parent"]
            first, second = golang["workers"]
            assert list(second)[4:] == GOLANG_KEYS
            assert (golang["go_version"], golang["cpu_num"]) == (first["go_version"], first["cpu_num"])
            assert (golang["gomaxprocs"], golang["memory_alloc"]) == (2, None)
            for key in ("goroutine_num", "heap_objects", "gc_num", "gc_per_second", "gc_pause"):
                assert golang[key] == first[key] + second[key]
            assert golang["gc_last"] == max(first["gc_last"], second["gc_last"])
            assert ask(address, "/explain?placement=side&worker=2").json()["placement"] == "side"
            assert ask(address, "/version").json() == ask(one.control, "/version").json()
            with load(two.address):
                wait_for(lambda: b"data_received" in ask(address, "/profile?seconds=0.5&worker=2").body)
            assert "no worker '3' is serving; there are 1, 2" in ask(address, "/profile?worker=3").json()["error"]
            assert ask(address, "/status?format=xml").status == 400
            assert ask(address, "/ping").body == b"ok\n"

            # Each program that asks the one has rates of its own at the others.
            def counted(agent: str) -> list[float]:
                status = ask(address, "/status", user_agent=agent).json()["workers"]
                return [worker["rates"]["counted"]["impression"] for worker in status]

            counted("x"), counted("y")
            one.ask("/v1/decision?placement=side")
            assert (counted("x"), counted("y"), counted("x")) == ([1, 0], [1, 0], [0, 0])
            # One is gone: the other is still reported.
            two.stop()
            workers = ask(address, "/status").json()["workers"]
            assert workers[0]["process"]["pid"] == one.process.pid
            assert "no connection" in workers[1]["error"]
            text = ask(address, "/metrics").body
            check(text)
            assert samples(text)["adcore_worker_up"] == {("1",): 1, ("2",): 0}
            assert "worker 2: no connection" in ask(address, "/explain?placement=side&worker=2").json()["error"]
            one.stop()


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"", "not HTTP"),
        (b"hello\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\nContent-Type: a/b\r\n\r\nshort", "cut short"),
        (None, "no answer within 0.2 s"),
    ],
)
def test_a_worker_that_answers_nonsense_or_nothing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes | None, error: str
) -> None:
    monkeypatch.setattr("adcore.control.workers.TIMEOUT_S", 0.2)

    async def main() -> Any:
        async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            if answer is None:
                await reader.read()
            else:
                writer.write(answer)
            writer.close()

        async with await asyncio.start_unix_server(speak, tmp_path / "w.sock"):
            control = WorkersControl(lambda: [WorkerView(1, 1, "serving", f"{tmp_path}/w.sock")], dict)
            return json.loads((await control(Request(b"GET", b"/status"))).body)

    assert error in asyncio.run(main())["workers"][0]["error"]


def test_without_any_worker_there_is_nothing_to_report() -> None:
    control = WorkersControl(list, dict)
    assert json.loads(asyncio.run(control(Request(b"GET", b"/status"))).body) == {"workers": [], "parent": {}}
    assert asyncio.run(control(Request(b"GET", b"/version"))).status == 503


# Connections


async def greet(request: Request) -> Response:
    if request.path == b"/fail":
        raise RuntimeError("a mistake")
    if request.path == b"/wait":
        await asyncio.sleep(60)
    return respond(200, request.method + b" " + request.path, content_type="text/plain")


def converse(address: str, *pieces: bytes) -> bytes:
    """Send these, and read until the listener closes."""
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(20)
        peer.connect(address.removeprefix("unix:"))
        for piece in pieces:
            peer.sendall(piece)
        answer = b""
        while data := peer.recv(65536):
            answer += data
        return answer


@pytest.mark.parametrize(
    ("pieces", "status", "ending"),
    [
        ([b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"], 200, b"GET /a"),
        ([b"GET /a HT", b"TP/1.1\r\nHost: x\r\n", b"\r\n"], 200, b"GET /a"),
        ([b"HEAD /a HTTP/1.1\r\nHost: x\r\n\r\n"], 200, b"\r\n\r\n"),
        ([b"GET /a HTTP/1.1\r\n\r\n"], 400, b'"}'),
        ([b"nonsense\r\n\r\n"], 400, b'"}'),
        ([b"GET /fail HTTP/1.1\r\nHost: x\r\n\r\n"], 500, b'"}'),
        ([b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n", b"hi"], 200, b"POST /a"),
    ],
)
def test_one_request_one_answer_then_it_closes(tmp_path: Path, pieces: list[bytes], status: int, ending: bytes) -> None:
    with listening(greet, tmp_path / "c.sock") as address:
        answer = converse(address, *pieces).removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert b"\r\nConnection: close\r\n" in answer
    assert answer.endswith(ending)


def test_who_says_nothing_is_not_waited_for(tmp_path: Path) -> None:
    with listening(greet, tmp_path / "c.sock", Limits(request_s=0.05)) as address:
        assert converse(address) == b""
        assert converse(address, b"GET /a HT") == b""
        with socket.socket(socket.AF_UNIX) as peer:  # leaves in the middle
            peer.connect(address.removeprefix("unix:"))
            peer.sendall(b"GET /a")
        assert converse(address, b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n").endswith(b"GET /a")


def test_too_many_at_once_are_refused_before_they_ask(tmp_path: Path) -> None:
    """One that says nothing until the end of its time would hold a descriptor all along, and wait for its answer."""
    with listening(greet, tmp_path / "c.sock", Limits(connections=1)) as address:
        waiting = Connection(address)
        waiting.request("GET", "/wait")
        wait_for(lambda: converse(address, b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n").startswith(b"HTTP/1.1 503 "))
        answer = converse(address)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"1 others are asking already" in answer
        waiting.close()


def test_connections_that_were_refused_do_not_pile_up(tmp_path: Path) -> None:
    with ExitStack() as crowd:
        limits = Limits(connections=1, linger_s=600)
        address = crowd.enter_context(listening(greet, tmp_path / "c.sock", limits))
        waiting = Connection(address)
        waiting.request("GET", "/wait")
        wait_for(lambda: converse(address).startswith(b"HTTP/1.1 503 "))
        newcomers = [crowd.enter_context(connect(address)) for _ in range(TURNED_AWAY_MAX + 20)]
        for peer in newcomers:
            answer = b"".join(iter(lambda: peer.recv(65536), b""))  # noqa: B023
            assert answer.startswith(b"HTTP/1.1 503 ")
        # Each has its answer and the end of the stream; some could still be read from, and the others are gone.
        wait_for(lambda: sum(is_open(peer) for peer in newcomers) == TURNED_AWAY_MAX)
        waiting.close()


def is_open(peer: socket.socket) -> bool:
    try:
        peer.send(b"x")
    except BrokenPipeError:
        return False
    return True


def test_the_parent_asks_a_bounded_number_of_workers_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each connection takes a descriptor of the process that has to start workers."""
    monkeypatch.setattr("adcore.control.workers.ASKING_MAX", 3)
    at_once: list[int] = []
    there = 0

    async def count(request: Request) -> Response:
        nonlocal there
        there += 1
        at_once.append(there)
        await asyncio.sleep(0.01)
        there -= 1
        return respond(200, b"{}", content_type="application/json")

    with listening(count, tmp_path / "worker.sock") as worker:
        views = [WorkerView(n, n, "serving", worker.removeprefix("unix:")) for n in range(5)]
        with (
            listening(WorkersControl(lambda: views, dict), tmp_path / "all.sock") as address,
            ThreadPoolExecutor(4) as pool,
        ):
            targets = ["/status", "/status", "/version", "/status"]
            answers = list(pool.map(lambda target: ask(address, target), targets))
        assert [answer.status for answer in answers] == [200] * 4
        assert len(at_once) == 16
        assert max(at_once) == 3
