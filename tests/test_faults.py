"""Short forms of what tests/chaos does for long: kills, bad disks, stores that are away, clocks, and all at once."""

import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.clocks import MIDNIGHTS, Midnight, pass_midnight, step
from tests.chaos.disks import FAULTS, suffer
from tests.chaos.faulty import Faulty, Volume
from tests.chaos.kills import kill
from tests.chaos.restarts import pids
from tests.chaos.rotation import rotate
from tests.chaos.soak import soak
from tests.chaos.stores import Stores, start_without_sources
from tests.chaos.stores import suffer as suffer_stores
from tests.load import Load
from tests.process import KINDS, Adcore, wait_for
from tests.services import MariaDB, Service

# What a busy machine may be late by; tests/chaos/stores.py holds adcore to a second.
BUSY_S = 10.0
SHORT = ("summer time begins", "leap day", "the year ends")
SOAK_S = float(os.environ.get("ADCORE_TEST_SOAK_S", "60"))


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_answered_before_a_worker_is_killed_is_logged_once(tmp_path: Path, kind: str) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    outcome = kill(kind, tmp_path, 2, random.Random(seed))
    assert outcome.problems == []
    assert outcome.counts["answered"] > 0


@pytest.mark.parametrize(
    ("fault", "args", "drops"),
    [
        ("full", ("--workers", "2"), False),
        ("full", (), True),
        ("failing", ("--log-format", "json"), False),
        ("short", ("--workers", "2", "--log-format", "json"), False),
        ("slow", (), True),
    ],
)
def test_a_bad_log_volume_fails_no_request_and_loses_only_what_is_counted(
    tmp_path: Path, fault: str, args: tuple[str, ...], drops: bool
) -> None:
    assert suffer(FAULTS[fault], tmp_path, 1.0, *args, drops=drops).problems == []


@pytest.mark.parametrize("by_logrotate", [False, True])
def test_every_record_is_in_one_file_however_often_the_log_is_rotated(tmp_path: Path, by_logrotate: bool) -> None:
    outcome = rotate("unix", tmp_path, 2.0, by_logrotate=by_logrotate)
    assert outcome.problems == []
    assert outcome.files > 1


def test_a_slow_disk_under_the_state_directory_holds_up_no_request(tmp_path: Path) -> None:
    state = tmp_path / "state"
    faulty = Faulty(tmp_path / "faulty", state)
    variables: dict[str, Any] = faulty.variables
    server = Adcore(state, "--refresh", "0.2", **variables)
    try:
        server.wait_until_ready()
        faulty.be_slow(3.0)
        with Load(server.address, clients=2) as load:
            load.wait_for(1)
            writes = faulty.writes
            wait_for(lambda: faulty.writes > writes)
            wait_for(lambda: (state / "counts.json").exists(), lambda: str(list(state.iterdir())))
        faulty.heal()
        assert server.stop() == 0
    finally:
        server.process.kill()
        server.process.wait()
    assert load.failures == []
    assert max(took for _, took in load.latencies) < 2.0


def test_a_worker_that_is_killed_comes_back_on_a_full_disk(tmp_path: Path) -> None:
    volume = Volume(tmp_path / "volume", 64 << 20)
    state = tmp_path / "volume" / "state"
    address = f"{tmp_path}/ad.sock"
    # Its folder is on the volume, and its control socket is not.
    command = ("--state-dir", str(state), "--unix", address, "--workers", "2")
    server = Adcore(tmp_path / "outside", *command, launcher=volume.launcher)
    server.address = f"unix:{address}"
    try:
        volume.attach(server.process.pid)
        server.wait_until_ready()
        wait_for(lambda: len(pids(server)) == 2)
        volume.fill()
        victim = pids(server)[1]
        os.kill(victim, signal.SIGKILL)
        wait_for(lambda: pids(server).get(1, victim) != victim, lambda: server.errors)
        assert server.ask("/v1/decision?placement=top").status == 200
        assert "No space left on device" in server.errors
        volume.free()
        assert server.stop() == 0
    finally:
        server.process.kill()
        server.process.wait()
        volume.close()


@pytest.fixture
def stores(tmp_path: Path, mariadb: MariaDB, memcached: Service) -> Any:
    folder = tmp_path / "stores"
    folder.mkdir()
    stores = Stores(folder, mariadb, memcached, "faults")
    with stores.proxies["mysql"], stores.proxies["memcached"]:
        yield stores


@pytest.mark.parametrize(("who", "fault"), [("mysql", "stop"), ("memcached", "garbage"), ("both", "refuse")])
def test_stores_that_are_away_are_gone_around(tmp_path: Path, stores: Stores, who: str, fault: str) -> None:
    assert suffer_stores(stores, tmp_path / "state", who, fault, 2.0, late_s=BUSY_S).problems == []


def test_a_start_without_any_source_serves_what_is_on_disk(tmp_path: Path, stores: Stores) -> None:
    assert start_without_sources(stores, tmp_path / "starts", late_s=BUSY_S) == []


def test_a_clock_that_steps_disturbs_nothing(tmp_path: Path) -> None:
    assert step(tmp_path, 1) == []


# tests/core/test_calendar.py has many more.
@pytest.mark.parametrize("midnight", [one for one in MIDNIGHTS if one.what in SHORT], ids=lambda one: one.what)
def test_hours_days_and_caps_are_those_of_the_sites_zone(tmp_path: Path, midnight: Midnight) -> None:
    assert pass_midnight(tmp_path, midnight) == []


def test_everything_at_once(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    outcome = soak(tmp_path, SOAK_S, seed)
    assert outcome.problems == []
    assert outcome.faults["kill"] > 0
