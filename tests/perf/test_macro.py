"""perf/macro: its arithmetic, its reading of /proc, whether the peers do adcore's job, and one small real run."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC
from http.client import HTTPMessage
from pathlib import Path
from typing import Any

import msgspec
import pytest

from adcore.core import facts
from adcore.core.adtable import build_table
from adcore.core.agents import parse_user_agent
from adcore.core.calendar import Calendar
from adcore.core.decision import Decision, decide
from adcore.deliverylog.record import RECORDS, Impression
from adcore.render import CompiledDecision
from perf.macro import changes, check, cpu, inventory, table, traffic
from perf.macro.errors import Missing, RunError
from perf.macro.golang import Go
from perf.macro.load import Closed, parse_h2load, parse_open
from perf.macro.peers import job as peer
from perf.macro.results import ClosedSample, OpenSample, Spread, summarise_closed, summarise_open, to_object
from perf.macro.servers import CONTENDERS, usual_answer
from tests.process import PATIENCE_S, ROOT, adctl, wait_for
from tests.services import SEARCH, program

KEY = b"k" * 32
CALENDAR = Calendar(UTC)
BY_NAME = {contender.name: contender for contender in CONTENDERS}


# Statistics


def closed(round_number: int, contender: str, **cpu_us: float) -> ClosedSample:
    return ClosedSample(round_number, contender, "same", 100, cpu_us, 1e6 / sum(cpu_us.values()))


def test_the_ratio_is_the_median_of_ratios_within_a_round() -> None:
    # The machine is half as fast in the second round: times double, ratios don't.
    samples = [
        closed(0, "nginx", nginx=5.0),
        closed(0, "adcore", adcore=10.0),
        closed(1, "nginx", nginx=10.0),
        closed(1, "adcore", adcore=20.0),
        closed(2, "nginx", nginx=6.0),
        closed(2, "adcore", adcore=15.0),
    ]
    adcore = summarise_closed(samples)[1]
    assert adcore.ratio == Spread(2.0, 2.0, 2.5)
    assert adcore.cpu_us == Spread(15.0, 10.0, 20.0)
    assert adcore.parts_us == {}


def test_a_contender_of_two_programs_has_the_sum_and_each() -> None:
    both = summarise_closed([closed(0, "adcore-nginx", adcore=10.0, nginx=8.0)])[0]
    assert both.cpu_us == Spread(18.0, 18.0, 18.0)
    assert both.parts_us == {"adcore": Spread(10.0, 10.0, 10.0), "nginx": Spread(8.0, 8.0, 8.0)}
    assert both.ratio is None  # nginx alone was not measured


def opened(round_number: int, p99: float, maximum: float, kept_up: bool = True) -> OpenSample:
    latency = {"p50": 10.0, "p99": p99, "p99.9": 2 * p99, "max": maximum}
    return OpenSample(round_number, "adcore", 1000.0, latency, kept_up, 0, 5.0)


def test_percentiles_are_medians_of_the_rounds_and_the_maximum_is_the_maximum() -> None:
    summary = summarise_open([opened(0, 100, 900), opened(1, 5000, 6000, kept_up=False), opened(2, 120, 800)])[0]
    assert summary.latency_us == {"p50": 10.0, "p99": 120, "p99.9": 240, "max": 6000}
    assert summary.kept_up  # one hiccup of the machine is not the contender's


def test_latencies_are_listed_rate_by_rate() -> None:
    samples = [opened(0, 100, 900)._replace(contender=name, rate=rate) for name in "ab" for rate in (1.0, 2.0)]
    assert [(one.rate, one.contender) for one in summarise_open(samples)] == [(1, "a"), (1, "b"), (2, "a"), (2, "b")]


def at_rate(round_number: int, contender: str, p99: float, **cpu_us: float) -> OpenSample:
    return opened(round_number, p99, 900)._replace(contender=contender, cpu_us=cpu_us, voluntary=1.0, involuntary=0.5)


def test_cpu_at_a_rate_is_divided_by_that_of_nginx_and_of_nethttp_in_the_same_round() -> None:
    samples = [
        at_rate(0, "nginx", 50, nginx=10.0),
        at_rate(0, "nethttp", 100, nethttp=40.0),
        at_rate(0, "adcore", 110, adcore=50.0, loader=10.0),
        at_rate(1, "nginx", 50, nginx=20.0),
        at_rate(1, "nethttp", 300, nethttp=80.0),
        at_rate(1, "adcore", 400, adcore=80.0),
    ]
    nginx, _, adcore = summarise_open(samples)
    assert adcore.cpu_us == Spread(70.0, 60.0, 80.0)
    assert adcore.parts_us == {"adcore": Spread(65.0, 50.0, 80.0), "loader": Spread(5.0, 0.0, 10.0)}
    assert adcore.cpu_ratios == {"nginx": Spread(5.0, 4.0, 6.0), "nethttp": Spread(1.25, 1.0, 1.5)}
    # ... and latencies by the median over the rounds.
    assert adcore.latency_ratios["p99"] == Spread(1.275, 0.55, 2.0)
    assert (adcore.voluntary.median, adcore.involuntary.median) == (1.0, 0.5)
    assert (nginx.parts_us, nginx.cpu_ratios["nginx"]) == ({}, Spread(1.0, 1.0, 1.0))
    alone = summarise_open(samples[2:3])[0]
    assert (alone.cpu_ratios, alone.latency_ratios) == ({}, {})


def test_named_tuples_are_objects_in_the_json() -> None:
    assert to_object([Spread(1.0, 0.12345, 2.0)]) == [{"median": 1.0, "low": 0.123, "high": 2.0}]


def test_the_tables() -> None:
    labels = {"nginx": "nginx return 200", "adcore": "adcore"}
    samples = [closed(0, "nginx", nginx=5.0), closed(0, "adcore", adcore=10.0)]
    samples += [closed(1, "nginx", nginx=5.0), closed(1, "adcore", adcore=11.0)]
    assert table.closed_table(summarise_closed(samples), labels) == (
        "Closed loop, one request again and again (h2load): median (lowest to highest round)\n"
        "                  CPU µs/request       times nginx          requests/s\n"
        "nginx return 200  5.0                  1.00                 200,000\n"
        "adcore            10.5 (10.0 to 11.0)  2.10 (2.00 to 2.20)  95,455 (90,909 to 100,000)"
    )
    assert table.open_table(summarise_open([opened(0, 100, 900, kept_up=False)]), labels) == (
        "Open loop, mixed requests, from when each was due: medians of the rounds\n"
        "requests/s  latency in µs  p50  p99  p99.9  max\n"
        "1,000       adcore         10   100  200    900  does not keep up"
    )
    assert table.rates_table(summarise_open([at_rate(0, "adcore", 100, adcore=30.0)]), labels) == (
        "Open loop, mixed requests, CPU of all processes: median (lowest to highest round)\n"
        "requests/s          CPU µs/request  times nginx  times net/http  switches: voluntary  involuntary\n"
        "1,000       adcore  30.0            -            -               1.00                 0.50"
    )


# CPU


def test_stat_of_a_program_with_a_troublesome_name() -> None:
    line = "77 (a b) R 1 (c) S 42 77 77 0 -1 4194304 1 2 3 4 150 50 7 8 20 0 3 0 999 1 2"
    assert cpu.parse_stat(line) == cpu.Stat(parent=42, ticks=200)


def test_the_family_of_a_process_and_its_time() -> None:
    spin = "import os, time\nos.fork()\nprint('up', flush=True)\nwhile time.process_time() < 0.2: pass\ntime.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", spin], start_new_session=True) as process:
        try:
            wait_for(lambda: len(cpu.family(process.pid)) == 2)
            pids = cpu.family(process.pid)
            assert process.pid in pids
            assert os.getpid() not in pids
            wait_for(lambda: cpu.seconds(pids) >= 0.38)  # both of them, to a tick each
        finally:
            os.killpg(process.pid, signal.SIGKILL)
    with pytest.raises(FileNotFoundError):
        cpu.seconds([process.pid])


SPENDING = """
import os, sys, time
def spin(seconds):
    while time.process_time() < seconds: pass
if not os.fork():
    spin(0.1)
    sys.exit()
os.wait()
print("up", flush=True)
sys.stdin.readline()
started = time.process_time()
for _ in range(50): time.sleep(0.001)
print(time.process_time() - started, flush=True)
sys.stdin.readline()
"""


def test_the_usage_of_a_process_has_nanoseconds_its_ended_children_and_its_switches() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SPENDING], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdout.readline()
            before = cpu.usage(process.pid)
            assert before.seconds[cpu.ENDED] >= 0.09  # to a tick
            process.stdin.write("\n")
            own_s = float(process.stdout.readline())
            used = cpu.difference(before, cpu.usage(process.pid))
        finally:
            process.kill()
    [(name, seconds)] = used.seconds.items()
    assert name == Path(sys.executable).name
    # 50 sleeps take two milliseconds: a fifth of a tick, and all of it is seen from outside.
    assert own_s <= seconds < own_s + 0.005
    assert used.voluntary >= 50
    with pytest.raises(FileNotFoundError):
        cpu.usage(process.pid)


def test_a_child_that_ended_between_two_readings_is_counted_once() -> None:
    before = cpu.Usage({"adcore": 1.0, "loader": 0.3, cpu.ENDED: 0.1}, 10, 1)
    after = cpu.Usage({"adcore": 1.5, "bank": 0.2, cpu.ENDED: 0.6}, 15, 3)
    used = cpu.difference(before, after)
    assert used.seconds == pytest.approx({"adcore": 0.5, "bank": 0.2, cpu.ENDED: 0.2})
    assert used[1:] == (5, 2)
    assert cpu.total([before, after]).seconds == {"adcore": 2.5, "loader": 0.3, "bank": 0.2, cpu.ENDED: 0.7}


@pytest.mark.parametrize("words", [["sleep", "60"], [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "0"]])
def test_a_python_module_is_a_program_of_its_own(words: list[str]) -> None:
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            wait_for(lambda: cpu.program(process.pid) == ("sleep" if words[0] == "sleep" else "http.server"))
        finally:
            process.kill()


def test_the_time_of_one_core(tmp_path: Path) -> None:
    (tmp_path / "stat").write_text("cpu  9 9 9 9\ncpu0 1 1 1 9\ncpu1 100 20 30 7 5 5 5\nintr 1\n")
    assert cpu.core_seconds(1, tmp_path) == pytest.approx(150 / cpu.TICKS_PER_S)


# The load


H2LOAD = """
finished in 120.50ms, 82987.55 req/s, 57.14MB/s
requests: 10000 total, 10000 started, 10000 done, {succeeded} succeeded, {failed} failed, 0 errored, 0 timeout
status codes: {succeeded} 2xx, 0 3xx, {failed} 4xx, 0 5xx
"""


def test_what_h2load_says() -> None:
    assert parse_h2load(H2LOAD.format(succeeded=10000, failed=0), 10000) == Closed(10000, 82987.55)
    with pytest.raises(RunError, match="9999 succeeded"):
        parse_h2load(H2LOAD.format(succeeded=9999, failed=1), 10000)
    with pytest.raises(RunError, match="could not connect"):
        parse_h2load("could not connect to host", 10000)


@pytest.mark.parametrize(
    ("unanswered", "backlog", "kept_up"), [(0, 0, True), (0, 32, True), (0, 101, False), (1, 0, False)]
)
def test_keeping_up_is_to_have_answered_all_but_what_is_on_its_way(
    unanswered: int, backlog: int, kept_up: bool
) -> None:
    outcome = {
        "requests": 10000 - unanswered,
        "unanswered": unanswered,
        "backlog": backlog,
        "connections": 32,
        "latency_us": {"p99": 1.0},
        "late_p99_us": 1.0,
    }
    assert parse_open(outcome, 1000.0).kept_up is kept_up


def test_without_go_what_it_would_build_is_missing(tmp_path: Path) -> None:
    go = Go(tmp_path, tmp_path)
    go.program = None
    with pytest.raises(Missing, match="golang-go"):
        go.build("load")


# The traffic


def test_the_mixed_requests_are_as_mixed_as_they_should_be_and_the_same_each_time() -> None:
    requests = traffic.mixed()
    assert requests == traffic.mixed()
    assert len({request.encode() for request in requests}) >= 2000
    assert len(set(traffic.user_agents())) >= 200
    names = [dict(request.headers) for request in requests]
    assert sum("Cookie" in one for one in names) == len(requests) // 2
    for name in ("User-Agent", "Accept-Language", "X-Real-IP", "X-Country", "Referer"):
        assert len({one[name] for one in names}) > 10
    proxy = {"X-Real-IP", "X-Country", "Cookie"}
    assert all(len(one.keys() - proxy) == 8 for one in names)


def test_the_file_for_the_load_has_each_request_behind_its_length(tmp_path: Path) -> None:
    path = tmp_path / "requests"
    one = traffic.same()
    traffic.write([one, one], path)
    encoded = one.encode()
    assert path.read_bytes() == 2 * (len(encoded).to_bytes(4, "big") + encoded)
    assert encoded.startswith(b"GET /v1/decision?placement=top&keywords=manga,books HTTP/1.1\r\nHost: ")
    assert encoded.endswith(b"\r\n\r\n")


# The peers' job


def test_the_inventory_is_valid_and_has_50_candidates() -> None:
    adtable = build_table(inventory.document(), revision=1)
    assert adtable.rejected == ()
    assert len(adtable.placements[inventory.PLACEMENT].campaigns) == 50


def test_a_hundred_times_as_many_campaigns_are_the_same_candidates_of_the_placement_that_is_asked_for() -> None:
    few, many = inventory.document(), inventory.document(inventory.CAMPAIGNS_MANY)
    assert many["campaigns"][: inventory.CAMPAIGNS] == few["campaigns"]
    adtable = build_table(many, revision=1)
    assert adtable.rejected == ()
    assert adtable.creative_count == inventory.creatives(many) == 9967
    assert len(adtable.campaigns) == inventory.CAMPAIGNS_MANY
    candidates = adtable.placements[inventory.PLACEMENT].campaigns
    assert {campaign.id for campaign in candidates} == {campaign["id"] for campaign in few["campaigns"]}


def test_changes_reach_the_store_while_a_load_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "FIRST_S", 0.0)
    monkeypatch.setattr(changes, "EVERY_S", 0.01)
    document = tmp_path / "inventory.json"
    document.write_text(json.dumps(inventory.document(60)))
    source = f"sqlite://{tmp_path}/ads.db"
    assert adctl("apply", "--source", source, str(document)).returncode == 0

    def weights() -> dict[str, int]:
        exported = json.loads(adctl("export", "--source", source).stdout)
        return {campaign["id"]: campaign["weight"] for campaign in exported["campaigns"]}

    before = weights()
    with changes.changing(tmp_path / "ads.db", 60):
        wait_for(lambda: weights() != before)
    after = weights()
    changed = {name for name in before if before[name] != after[name]}
    assert "campaign-01" in changed  # a candidate
    assert changed <= before.keys() == after.keys()


def test_the_peers_decide_as_adcore_does() -> None:
    """The same facts, the same eligible campaigns, and for the same draw the same creative with the same chance."""
    document = inventory.document()
    adtable = build_table(document, revision=1)
    index = adtable.placements[inventory.PLACEMENT]
    theirs = peer.Placement(document["placements"][0], document["campaigns"])
    moment = CALENDAR.moment(1.8e9)
    for number, request in enumerate(traffic.mixed()):
        given = dict(request.headers)
        placement, keywords = peer.parse_query(request.target.partition("?")[2])
        agent = peer.parse_user_agent(given["User-Agent"])
        assert agent == tuple(parse_user_agent(given["User-Agent"])), given["User-Agent"]
        languages = peer.parse_accept_language(given["Accept-Language"])
        assert languages == facts.parse_accept_language(given["Accept-Language"])
        assert peer.truncate_ip(given["X-Real-IP"]) == facts.truncate_ip(given["X-Real-IP"])
        asked = facts.Facts(agent.device, agent.os, given["X-Country"], languages, keywords, (), agent.bot)
        mask = theirs.eligible(agent.device, given["X-Country"], languages, keywords)
        assert mask == index.match(asked, moment)[0]
        impression_id = f"{number * 0x9E3779B97F4A7C15 % 2**64:016x}{number:016x}"
        decision = decide(adtable, placement, asked, moment, impression_id)
        picked = theirs.pick(mask, int(impression_id[:13], 16) / 0x10_0000_0000_0000)
        assert isinstance(decision, Decision)
        assert picked is not None
        assert picked[0].creative_id == decision.ad.creative.id
        assert picked[1] == pytest.approx(decision.chance)


def test_the_peers_answer_and_record_as_adcore_does(tmp_path: Path) -> None:
    log = tmp_path / "log"
    job = peer.Job(inventory.document(), str(log), KEY)
    answer = job.answer("placement=top&keywords=Manga,board%20games", "iPhone", "ja,en;q=0.5", "JP", "198.51.100.7")
    job.close()
    assert answer is not None
    decision = json.loads(answer)
    record = RECORDS.payload(log.read_bytes())
    assert isinstance(record, Impression)
    assert (record.id, record.campaign) == (decision["impression_id"], decision["campaign"])
    assert (record.device, record.os, record.country) == ("mobile", "ios", "JP")
    assert (record.languages, record.keywords) == (("ja", "en"), ("board games", "manga"))
    assert record.ip == "198.51.100.0"
    adtable = build_table(inventory.document(), revision=1)
    found = adtable.creatives.get(record.creative)
    assert found is not None
    campaign, creative = found
    placement = adtable.placements["top"].placement
    tokens = [decision[field].rpartition("?t=")[2] for field in ("click_url", "view_url")]
    expected = CompiledDecision(placement, campaign.id, creative, "").json(record.id.encode(), tokens[0].encode())
    assert answer == expected


def test_a_goal_that_is_reached_ends_a_campaign_of_the_peers() -> None:
    document = inventory.document()
    document["campaigns"][0]["goal"] = {"impressions": 2}
    placement = peer.Placement(document["placements"][0], document["campaigns"])
    for expected in (1, 1, 0):
        assert placement.live & 1 == expected
        placement.count(0)


# The check before measuring


class Given:
    """An answer, whole unless a test takes something from it."""

    def __init__(self, body: bytes, status: int = 200, without: str = "") -> None:
        self.status = status
        self.body = body
        self.headers = HTTPMessage()
        for name, value in {**check.HEADERS, "date": "Mon"}.items():
            if name != without:
                self.headers[name] = value


USUAL = usual_answer(KEY.hex())
OTHER = USUAL.replace(b'"impression_id":"', b'"impression_id":"0')


@pytest.mark.parametrize(
    ("one", "problem"),
    [
        (Given(USUAL), None),
        (Given(USUAL, status=204), "status 204"),
        (Given(USUAL, without="cache-control"), "cache-control: None"),
        (Given(USUAL, without="date"), "no Date"),
        (Given(b"{}"), "the shape"),
        (Given(b"ok"), "not JSON"),
        (Given(USUAL.replace(b'"view_url"', b'"view"')), "the shape"),
        (Given(USUAL.replace(b"728x90.webp", b"")), "usual"),
        (Given(USUAL.replace(b"~top~", b"~")), "click_url has no token"),
        (Given(OTHER), "the same"),
    ],
)
def test_who_answers_less_is_found_out(one: Any, problem: str | None) -> None:
    other: Any = Given(OTHER)
    problems = check.compare(BY_NAME["uvicorn"], one, other, USUAL)
    if problem is None:
        assert problems == []
    else:
        assert problem in "; ".join(problems)


def test_who_records_less_is_found_out() -> None:
    fields: dict[str, Any] = dict.fromkeys(("type", *Impression.__struct_fields__), "")
    assert check.compare_record(fields) == []
    del fields["ip"], fields["chance"]
    assert check.compare_record(fields) == ["the record lacks chance, ip"]


# Runs


@contextmanager
def running(tmp_path: Path, *options: str, **variables: str) -> Iterator["subprocess.Popen[str]"]:
    temporary = tmp_path / "t"
    temporary.mkdir(exist_ok=True)
    with subprocess.Popen(
        [sys.executable, "perf/macro", "--output", str(tmp_path / "results"), *options],
        cwd=ROOT,
        env={**os.environ, "PATH": SEARCH, "TMPDIR": str(temporary), **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def results(tmp_path: Path) -> Any:
    [path] = (tmp_path / "results").glob("macro-*.json")
    return msgspec.json.decode(path.read_bytes())


def left_over(tmp_path: Path) -> list[str]:
    """What a run left in its temporary folder, and processes that work there."""
    mark = str(tmp_path / "t" / "adcore-macro-").encode()
    found = [path.name for path in (tmp_path / "t").iterdir()]
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if mark in command.read_bytes():
                found.append(str(command))
        except OSError:
            continue
    return found


def test_a_small_run(tmp_path: Path) -> None:
    """What the load in Go would add is missing on a machine without Go, and named."""
    program("nginx", "nginx")
    program("h2load", "nghttp2-client")
    options = ("--quick", "--only", "nginx,adcore", "--requests", "20000", "--seconds", "0.2", "--allow-missing")
    with running(tmp_path, *options) as process:
        out, errors = process.communicate(timeout=6 * PATIENCE_S)
    assert process.returncode == 0, errors
    assert "adcore, unix socket" in out
    found = results(tmp_path)
    assert found["missing"].keys() <= {"mix mixed and all rates", "picture"}
    same = {one["contender"]: one for one in found["closed"] if one["mix"] == "same"}
    assert same.keys() == {"nginx", "adcore"}
    assert same["adcore"]["ratio"]["median"] > 0
    assert same["adcore"]["per_second"]["median"] > 0
    assert found["body_bytes"]["nginx"] == pytest.approx(found["body_bytes"]["adcore"], rel=0.03)
    if shutil.which("go", path=SEARCH):
        at_rates = {one["contender"]: one for one in found["open"]}
        assert at_rates.keys() == {"nginx", "adcore"}
        assert at_rates["adcore"]["cpu_us"]["median"] > 0
        assert at_rates["adcore"]["cpu_ratios"]["nginx"]["median"] > 1
        assert at_rates["adcore"]["voluntary"]["median"] > 0
    assert left_over(tmp_path) == []


def test_a_small_run_with_changes(tmp_path: Path) -> None:
    """Of the load at fixed rates only, so nothing is left to measure on a machine without Go."""
    program("nginx", "nginx")
    options = ("--quick", "--only", "nginx,adcore", "--requests", "3000", "--seconds", "1", "--changing")
    with running(tmp_path, *options, "--allow-missing") as process:
        _, errors = process.communicate(timeout=6 * PATIENCE_S)
    assert process.returncode == 0, errors
    [path] = (tmp_path / "results").glob("changing-*.json")
    found = msgspec.json.decode(path.read_bytes())
    assert found["settings"]["campaigns"] == inventory.CAMPAIGNS_MANY
    assert found["closed"] == []
    assert {one["contender"] for one in found["open"]} == (
        {"nginx", "adcore"} if shutil.which("go", path=SEARCH) else set()
    )
    assert left_over(tmp_path) == []


def test_a_run_that_would_measure_nothing_is_a_mistake(tmp_path: Path) -> None:
    with running(tmp_path, "--no-closed", "--rates", "none") as process:
        _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 2
    assert "nothing to measure" in errors


def test_what_is_missing_is_named_and_fails_the_run(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "taskset").symlink_to(program("taskset", "util-linux"))
    for options, status in (((), 1), (("--allow-missing",), 0)):
        with running(tmp_path, "--quick", "--only", "fasthttp", *options, PATH=str(tools)) as process:
            out, errors = process.communicate(timeout=6 * PATIENCE_S)
        assert process.returncode == status, errors
        assert "go is not installed" in out
        assert "h2load is not installed" in out
        missing = results(tmp_path)["missing"]
        assert {"fasthttp", "mix same", "mix mixed and all rates"} <= missing.keys()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_stopped_leaves_nothing_behind(tmp_path: Path, number: signal.Signals) -> None:
    options = ("--only", "nginx", "--rounds", "1000", "--requests", "2000", "--rates", "none", "--wait", "0")
    with running(tmp_path, *options) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "round 2" in line:
                break
        else:
            pytest.fail("it ended by itself")
        process.send_signal(number)
        process.communicate(timeout=PATIENCE_S)
        assert process.returncode == (1 if number == signal.SIGTERM else 130)
    wait_for(lambda: not left_over(tmp_path), lambda: str(left_over(tmp_path)))


def test_an_unknown_contender_is_a_mistake(tmp_path: Path) -> None:
    with running(tmp_path, "--only", "apache") as process:
        _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 2
    assert "no contender is called 'apache'" in errors
