"""Several workers and their parent, as real processes: starting, replacing, dying, stopping, and what they share."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from adcore.seat import READY, Loads
from adcore.workers import RESTART_PAUSE_MAX_S, RESTART_PAUSE_MIN_S, STABLE_S, Backoff, describe_end
from tests.chaos.restarts import pids, restart
from tests.inventories import campaign, document
from tests.load import WRONG, Load
from tests.process import KINDS, PATIENCE_S, Adcore, Connection, adctl, ask, environment, serving, wait_for


def flawless(load: Load, records: list[dict[str, Any]]) -> bool:
    counts = load.check(records)
    assert {what: counts[what] for what in WRONG} == dict.fromkeys(WRONG, 0), load.failures[:5]
    return counts["answered"] > 0


@contextmanager
def working(state: Path, *args: str, **variables: Any) -> Iterator[Adcore]:
    """A server all of whose workers serve."""
    workers = 2
    with serving(state, "--workers", str(workers), *args, **variables) as server:
        wait_for(lambda: len(pids(server)) == workers, lambda: server.errors)
        yield server


def parent_status(server: Adcore) -> dict[str, Any]:
    status: dict[str, Any] = server.status()["parent"]
    return status


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@contextmanager
def begun_request(server: Adcore) -> Iterator[Connection]:
    """A connection whose request is not complete, which holds up a drain."""
    with closing(Connection(server.address)) as connection:
        connection.connect()
        connection.sock.sendall(b"GET /v1/decision?placement=top HTTP/1.1\r\nHost:")
        wait_for(lambda: any(one["connections"]["open"] for one in server.status()["workers"]))
        yield connection


def finish_request(connection: Connection) -> bytes:
    connection.sock.sendall(b" ad\r\n\r\n")
    return connection.sock.recv(65536)


# Restarts lose nothing


@pytest.mark.parametrize("kind", KINDS)
def test_no_request_fails_and_each_is_logged_once_while_workers_are_replaced(tmp_path: Path, kind: str) -> None:
    outcome = restart(kind, tmp_path / "state", 5)
    assert outcome.problems == []
    assert outcome.replaced >= 5
    assert outcome.counts["answered"] > 100


def test_hup_replaces_the_workers_one_at_a_time_and_a_second_one_waits_its_turn(tmp_path: Path) -> None:
    with working(tmp_path) as server:
        before = pids(server)
        server.signal(signal.SIGHUP)
        wait_for(lambda: "HUP: replacing" in server.errors)
        server.signal(signal.SIGHUP)
        server.signal(signal.SIGHUP)  # the same as one: neither has begun
        least = len(before)

        def rolled_over_twice() -> bool:
            nonlocal least
            least = min(least, len(pids(server)))
            return bool(parent_status(server)["rollovers"] == 2)

        wait_for(rolled_over_twice, lambda: server.errors)
        assert least == 2
        after = pids(server)
        assert set(after) == {1, 2}
        assert not set(before.values()) & set(after.values())
        assert not any(is_alive(pid) for pid in before.values())
        assert parent_status(server)["restarts"] == 0
        assert server.errors.count("HUP: replacing") == 2
        assert server.stop() == 0


def test_a_new_version_that_cannot_start_leaves_the_old_one_serving(tmp_path: Path) -> None:
    config = tmp_path / "ad.toml"
    config.write_text("token_lifetime = 100\n")
    with working(tmp_path / "state", "--config", str(config)) as server:
        before = pids(server)
        config.write_text("token_lifetime = 'never'\n")
        with Load(server.address) as load:
            server.signal(signal.SIGHUP)
            wait_for(lambda: parent_status(server)["rollovers_failed"] == 1, lambda: server.errors)
        assert pids(server) == before
        assert "token_lifetime: must be a number" in server.errors
        assert "exited with status 2" in server.errors
        assert "HUP: the new worker 1 does not start" in server.errors
        config.write_text("token_lifetime = 200\n")
        server.signal(signal.SIGHUP)
        wait_for(lambda: parent_status(server)["rollovers"] == 1)
        assert not set(before.values()) & set(pids(server).values())
        assert server.stop() == 0
        assert flawless(load, server.records())


def test_a_worker_that_is_killed_is_replaced_and_the_others_serve_meanwhile(tmp_path: Path) -> None:
    with working(tmp_path) as server:
        victim = pids(server)[1]
        os.kill(victim, signal.SIGKILL)
        wait_for(lambda: victim not in pids(server).values() and len(pids(server)) == 2, lambda: server.errors)
        assert f"worker 1, pid {victim}, was killed by SIGKILL" in server.errors
        assert parent_status(server)["restarts"] == 1
        assert server.ask("/v1/decision?placement=top").status == 200
        assert server.stop() == 0


def test_a_worker_that_cannot_live_is_started_less_and_less_often(tmp_path: Path) -> None:
    with working(tmp_path) as server:
        secret = (tmp_path / "secret").read_text()
        (tmp_path / "secret").write_text("nonsense\n")
        os.kill(pids(server)[2], signal.SIGKILL)
        wait_for(lambda: "worker 2 is started again in 0.4 s" in server.errors, lambda: server.errors)
        assert server.ask("/v1/decision?placement=top").status == 200
        (tmp_path / "secret").write_text(secret)
        wait_for(lambda: len(pids(server)) == 2)
        assert server.stop() == 0


def test_a_worker_that_was_told_to_end_comes_back_soon_however_often(tmp_path: Path) -> None:
    with working(tmp_path) as server:
        for count in range(1, 4):
            os.kill(pids(server)[2], signal.SIGTERM)
            wait_for(lambda: parent_status(server)["restarts"] == count and len(pids(server)) == 2)  # noqa: B023
        assert server.errors.count("worker 2 is started again in 0.1 s") == 3
        assert server.stop() == 0


def test_a_worker_that_has_served_is_started_again_at_once_however_often(tmp_path: Path) -> None:
    with working(tmp_path) as server:
        for _ in range(2):
            victim = pids(server)[1]
            time.sleep(STABLE_S)  # the very thing: how long it has served
            os.kill(victim, signal.SIGKILL)
            wait_for(lambda victim=victim: pids(server).get(1, victim) != victim, lambda: server.errors)
        assert server.errors.count(f"worker 1 is started again in {RESTART_PAUSE_MIN_S} s") == 2, server.errors
        assert server.stop() == 0


def test_pauses_double_up_to_a_bound_and_start_again_after_a_stable_life() -> None:
    backoff = Backoff()
    pauses = [backoff.after(0.0) for _ in range(12)]
    assert pauses[:4] == [RESTART_PAUSE_MIN_S * 2**n for n in range(4)]
    assert pauses[-1] == RESTART_PAUSE_MAX_S
    assert backoff.after(STABLE_S) == RESTART_PAUSE_MIN_S
    assert backoff.after(STABLE_S / 2) == RESTART_PAUSE_MIN_S * 2


@pytest.mark.parametrize(
    ("status", "text"),
    [(0, "has ended"), (3, "exited with status 3"), (-9, "was killed by SIGKILL"), (-99, "exited with status -99")],
)
def test_an_end_is_described(status: int, text: str) -> None:
    assert describe_end(status) == text


# Starting


def test_what_keeps_a_worker_from_starting_ends_the_parent_with_3_and_is_named(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("nonsense\n")
    (tmp_path / "secret").chmod(0o600)
    server = Adcore(tmp_path, "--workers", "2", "--pid-file", str(tmp_path / "pid"))
    assert server.process.wait(PATIENCE_S) == 3
    assert "must be KEYID:HEX" in server.errors
    assert "worker 1 could not start: it exited with status 3" in server.errors
    assert "Traceback" not in server.errors
    assert server.errors.count("KEYID") == 1
    assert not (tmp_path / "pid").exists()
    assert not (tmp_path / "ad.sock").exists()


def test_a_socket_in_use_and_a_live_pid_file_are_refused(tmp_path: Path) -> None:
    with working(tmp_path, "--pid-file", str(tmp_path / "pid")) as server:
        assert (tmp_path / "pid").read_text() == f"{server.process.pid}\n"
        for args, says in (
            (["--unix", str(tmp_path / "ad.sock")], "another server is answering there"),
            (["--unix", str(tmp_path / "b.sock"), "--pid-file", str(tmp_path / "pid")], "belongs to the running"),
        ):
            other = Adcore(tmp_path / "other", "--workers", "2", *args)
            assert other.process.wait(PATIENCE_S) == 3
            assert says in other.errors
        assert server.stop() == 0
    assert not (tmp_path / "pid").exists()


def test_a_path_too_long_for_the_workers_sockets_is_named(tmp_path: Path) -> None:
    state = tmp_path / ("x" * 100)
    server = Adcore(tmp_path / "run", "--workers", "2", "--state-dir", str(state), "--unix", str(tmp_path / "ad.sock"))
    assert server.process.wait(PATIENCE_S) == 3
    assert "choose a shorter --state-dir" in server.errors


CLOSED = '{"number": 1, "slot": 0, "slots": 2, "alone": true, "listener_fd": 900, "parent_fd": 901, "loads_fd": 902}'


@pytest.mark.parametrize("text", ["1", CLOSED, CLOSED.replace("900", "9" * 20)])
def test_the_variable_of_a_seat_is_refused_from_anybody_else(tmp_path: Path, text: str) -> None:
    server = Adcore(tmp_path, _ADCORE_SEAT=text)
    assert server.process.wait(PATIENCE_S) == 3
    assert "_ADCORE_SEAT is for workers that adcore starts itself" in server.errors


def test_a_parent_without_a_fork_server_starts_workers_of_this_version(tmp_path: Path) -> None:
    """As those of earlier versions do, on a HUP after the code has been replaced."""
    loads = Loads.create(2)
    mine, its = socket.socketpair()
    with mine, socket.create_server(("127.0.0.1", 0)) as listener:
        listener.listen(64)
        seat = {
            "number": 1,
            "slot": 0,
            "slots": 2,
            "alone": True,
            "listener_fd": listener.fileno(),
            "parent_fd": its.fileno(),
            "loads_fd": loads.fd,
        }
        server = Adcore(
            tmp_path,
            *("--workers", "2"),
            address=f"127.0.0.1:{listener.getsockname()[1]}",
            pass_fds=(listener.fileno(), its.fileno(), loads.fd),
            _ADCORE_SEAT=json.dumps(seat),
        )
        its.close()
        mine.settimeout(PATIENCE_S)
        assert mine.recv(16) == READY
        assert server.ask("/v1/decision?placement=top").status == 200
        mine.close()
        assert server.process.wait(PATIENCE_S) == 0


def test_processes_that_start_at_once_on_an_empty_directory_share_it(tmp_path: Path) -> None:
    """One secret, one sample inventory, a file of counts each."""
    with ExitStack() as stack:
        servers = []
        for number in range(4):
            server = Adcore(
                tmp_path, "--unix", str(tmp_path / f"{number}.sock"), "--control", f"unix:{tmp_path}/c{number}"
            )
            stack.callback(server.process.kill)
            server.address, server.control = f"unix:{tmp_path}/{number}.sock", f"unix:{tmp_path}/c{number}"
            servers.append(server)
        for server in servers:
            server.wait_until_ready()
        token = servers[0].ask("/v1/decision?placement=top").json()["click_url"]
        assert [server.ask(token).status for server in servers] == [302] * 4
        assert len({server.status()["counts"]["file"] for server in servers}) == 4
        assert len({server.status()["table"]["revision"] for server in servers}) == 1
        assert [server.stop() for server in servers] == [0] * 4


def test_workers_get_nothing_of_what_a_service_manager_gave_the_parent(tmp_path: Path) -> None:
    with working(tmp_path, NOTIFY_SOCKET="@nobody", WATCHDOG_USEC="1", LISTEN_FDS="0") as server:
        for pid in pids(server).values():
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            assert not [v for v in environment if v.startswith((b"NOTIFY_", b"WATCHDOG_", b"LISTEN_"))]
        assert server.stop() == 0


# Stopping


def test_term_finishes_what_is_under_way_also_when_every_process_gets_one(tmp_path: Path) -> None:
    """As systemd sends it, to all processes of the unit."""
    with (
        working(tmp_path, "--graceful-timeout", "60", "--pid-file", str(tmp_path / "pid")) as server,
        begun_request(server) as connection,
    ):
        workers = pids(server)
        server.signal(signal.SIGTERM)
        for pid in workers.values():
            os.kill(pid, signal.SIGTERM)
        wait_for(lambda: sum(is_alive(pid) for pid in workers.values()) == 1, lambda: server.errors)
        assert b" 200 OK" in finish_request(connection)
        assert server.process.wait(PATIENCE_S) == 0
        assert [path.name for path in tmp_path.iterdir() if path.suffix in (".sock", ".pid")] == []
        assert len(server.records()) == 1


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_all_at_once(tmp_path: Path, second: signal.Signals) -> None:
    with working(tmp_path, "--graceful-timeout", "600") as server, begun_request(server) as connection:
        workers = pids(server)
        server.signal(signal.SIGTERM)
        wait_for(lambda: "the workers finish what is under way" in server.errors)
        server.signal(second)
        assert server.process.wait(PATIENCE_S) == 0
        assert not any(is_alive(pid) for pid in workers.values())
        assert connection.sock.recv(100) == b""


def test_a_worker_that_is_stuck_is_killed(tmp_path: Path) -> None:
    with working(tmp_path, "--graceful-timeout", "0") as server:
        os.kill(pids(server)[1], signal.SIGSTOP)
        assert server.stop() == 1
        assert "does not end; it is killed" in server.errors


def test_workers_drain_when_their_parent_is_killed(tmp_path: Path) -> None:
    with working(tmp_path, "--graceful-timeout", "60") as server, begun_request(server) as connection:
        workers = pids(server)
        server.process.kill()
        server.process.wait()
        killed = server.process.pid
        with socket.socket(socket.AF_UNIX) as stale:  # as of a worker that was killed with its parent
            stale.bind(str(tmp_path / f"worker-{killed}.sock"))
        wait_for(lambda: sum(is_alive(pid) for pid in workers.values()) == 1, lambda: server.errors)
        # A new parent can start at the same place at once.
        with working(tmp_path) as successor:
            assert not (tmp_path / f"worker-{killed}.sock").exists()
            assert b" 200 OK" in finish_request(connection)
            wait_for(lambda: not any(is_alive(pid) for pid in workers.values()))
            assert successor.stop() == 0


# What they share


def test_usr1_has_every_worker_reopen_the_log(tmp_path: Path) -> None:
    with working(tmp_path) as server:
        with Load(server.address) as load:
            load.wait_for(50)
            server.log.rename(tmp_path / "old.log")
            server.signal(signal.SIGUSR1)
            wait_for(lambda: [one["log"]["reopens"] for one in server.status()["workers"]] == [1, 1])
            load.wait_for(50)
        assert server.stop() == 0
        assert server.log.stat().st_size
        assert flawless(load, server.records(tmp_path / "old.log", server.log))


def test_usr1_does_not_end_a_worker_that_is_starting(tmp_path: Path) -> None:
    with working(tmp_path) as server:
        os.kill(pids(server)[1], signal.SIGKILL)

        def starting() -> list[dict[str, Any]]:
            return [one for one in server.status()["workers"] if one["state"] == "starting"]

        wait_for(starting)
        while starting():
            server.signal(signal.SIGUSR1)
        assert parent_status(server)["restarts"] == 1
        assert server.stop() == 0


def test_the_control_address_answers_for_all_of_them(tmp_path: Path) -> None:
    with working(tmp_path) as server:
        status = server.status()
        assert [one["number"] for one in status["workers"]] == [1, 2]
        for one in status["workers"]:
            assert one["pid"] == one["process"]["pid"]
            assert ask(one["control"], "/status").json()["process"]["pid"] == one["pid"]
            assert Path(one["control"].removeprefix("unix:")).stat().st_mode & 0o777 == 0o660
        assert status["parent"]["pid"] == server.process.pid
        assert status["parent"]["uptime_s"] > 0
        assert ask(server.control, "/version").json()["version"] == status["parent"]["version"]
        explained = adctl("explain", "--control", server.control, "placement=top")
        assert explained.returncode == 0, explained.stderr
        assert ask(server.control, "/explain?placement=top&x=1").status == 400
        assert ask(server.control, "/nothing").status == 404
        head = ask(server.control, "/status", "HEAD")
        assert (head.status, head.body) == (200, b"")
        os.kill(pids(server)[1], signal.SIGSTOP)
        stopped, other = server.status()["workers"]
        assert "no answer" in stopped["error"]
        assert other["connections"]["open"] == 0
        os.kill(stopped["pid"], signal.SIGCONT)
        assert server.stop() == 0


def test_visitors_facts_are_believed_from_the_unix_socket(tmp_path: Path) -> None:
    with working(tmp_path) as server:
        server.ask("/v1/decision?placement=top", X_Country="JP", X_Real_IP="198.51.100.7")
        assert server.stop() == 0
        assert [(r["country"], r["ip"]) for r in server.records()] == [("JP", "198.51.100.0")]


def test_what_all_delivered_counts_after_a_restart_with_more_or_fewer_workers(tmp_path: Path) -> None:
    source = f"sqlite://{tmp_path}/ads.db"
    wanted = document(campaign("goal", goal={"impressions": 40}))
    assert adctl("apply", "--source", source, "-", stdin=json.dumps(wanted)).returncode == 0
    args = ("--source", source, "--refresh", "0.1")

    def deliver(server: Adcore, wanted: int) -> int:
        return sum(server.ask("/v1/decision?placement=side").status == 200 for _ in range(wanted))

    delivered = 0
    for workers in (2, 3, 1):
        with serving(tmp_path / "state", *args, "--workers", str(workers)) as server:
            delivered += deliver(server, 10)
            assert server.stop() == 0
    assert delivered == 30
    with serving(tmp_path / "state", *args) as server:
        assert deliver(server, 20) == 10
        assert server.stop() == 0
    with working(tmp_path / "state", *args) as server:
        assert deliver(server, 20) == 0
        assert server.stop() == 0


def test_a_goal_that_one_worker_reaches_is_soon_reached_for_the_others(tmp_path: Path) -> None:
    source = f"sqlite://{tmp_path}/ads.db"
    wanted = document(campaign("goal", goal={"impressions": 5}))
    assert adctl("apply", "--source", source, "-", stdin=json.dumps(wanted)).returncode == 0
    with working(tmp_path / "state", "--source", source, "--refresh", "0.1") as server:
        for _ in range(20):
            server.ask("/v1/decision?placement=side")
        wait_for(
            lambda: [one["counts"]["held"] for one in server.status()["workers"]] == [{"goal": "goal_reached"}] * 2
        )
        assert server.stop() == 0


def test_connections_are_shared_out_and_stay_so(tmp_path: Path) -> None:
    """Also after all were made while one worker stood still."""
    with working(tmp_path) as server, ExitStack() as stack:
        connections = [Connection(server.address) for _ in range(64)]
        for connection in connections:
            stack.callback(connection.close)

        def ask_all() -> None:
            for connection in connections:
                connection.request("GET", "/v1/decision?placement=top")
                response = connection.getresponse()
                assert response.status == 200
                response.read()

        def spread() -> float:
            ask_all()
            opens: list[int] = [one["connections"]["open"] for one in server.status()["workers"]]
            return max(opens) * 2 / sum(opens)

        stopped = pids(server)[2]
        os.kill(stopped, signal.SIGSTOP)
        ask_all()
        os.kill(stopped, signal.SIGCONT)
        wait_for(lambda: spread() <= 1.1)
        for connection in connections:
            connection.close()
        wait_for(lambda: spread() <= 1.1)
        assert server.stop() == 0


def test_the_parent_imports_nothing_that_serves_ads() -> None:
    code = "import sys; import adcore.workers, adcore.config; print(*sys.modules)"
    # Coverage would import more.
    alone = {name: value for name, value in environment().items() if not name.startswith("COVERAGE")}
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, capture_output=True, text=True, check=True, env=alone).stdout.split()
    assert not {"uvloop", "adcore.server", "adcore.delivery", "sqlite3", "ua_parser"} & set(found)
