"""The service manager hears what is so, when it is so, and can do no harm by not listening."""

import itertools
import json
import os
import signal
import socket
from pathlib import Path

import pytest

from adcore.notify import Notifier
from tests.inventories import campaign, document
from tests.manager import NotifySocket, managing
from tests.process import adctl, wait_for

numbers = itertools.count()


@pytest.fixture(params=["path", "abstract"])
def heard(request: pytest.FixtureRequest, tmp_path: Path) -> NotifySocket:
    return NotifySocket(f"{tmp_path}/notify" if request.param == "path" else f"@{tmp_path}/{next(numbers)}")


def apply(url: str) -> None:
    applied = adctl("apply", "--source", url, "-", stdin=json.dumps(document(campaign("spring"))))
    assert applied.returncode == 0, applied.stderr


# --- the protocol


def test_each_call_is_one_datagram(heard: NotifySocket) -> None:
    environ = {"NOTIFY_SOCKET": heard.name, "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid()), "OTHER": "x"}
    notifier = Notifier(environ)
    assert environ == {"OTHER": "x"}
    assert (notifier.wanted, notifier.watchdog_interval_s) == (True, 1.5)
    notifier.ready("up")
    notifier.reloading()
    notifier.alive("still up")
    notifier.stopping("bye")
    up, reload, alive, stop = heard.receive()
    assert up == {"READY": "1", "STATUS": "up"}
    assert reload.keys() == {"RELOADING", "MONOTONIC_USEC"}
    assert int(reload["MONOTONIC_USEC"]) > 0
    assert alive == {"STATUS": "still up", "WATCHDOG": "1"}
    assert stop == {"STOPPING": "1", "STATUS": "bye"}
    notifier.close()
    heard.close()


@pytest.mark.parametrize(
    ("usec", "pid", "interval_s"),
    [
        ("10000000", "", 5.0),
        ("10000000", str(os.getpid()), 5.0),
        ("10000000", "1", None),
        ("0", "", None),
        ("", "", None),
        ("-5", "", None),
        ("x", "", None),
    ],
)
def test_the_watchdog_is_for_the_process_it_names(usec: str, pid: str, interval_s: float | None) -> None:
    assert Notifier({"WATCHDOG_USEC": usec, "WATCHDOG_PID": pid}).watchdog_interval_s == interval_s


def test_a_process_that_is_not_watched_sends_no_watchdog(heard: NotifySocket) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": heard.name})
    notifier.alive("up")
    assert heard.receive() == [{"STATUS": "up"}]
    notifier.close()
    heard.close()


def test_a_status_can_neither_add_a_field_nor_grow(heard: NotifySocket) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": heard.name})
    notifier.ready("bad file\nMAINPID=1\r\0" + "ü" * 10_000)
    (message,) = heard.receive()
    assert message.keys() == {"READY", "STATUS"}
    assert len(message["STATUS"]) == 500
    notifier.close()
    heard.close()


@pytest.mark.parametrize("name", ["", "/nonexistent/notify", "@nobody-listens-here", "vsock:2:1234", "notify"])
def test_a_manager_that_is_not_there_is_no_error(name: str, caplog: pytest.LogCaptureFixture) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": name})
    notifier.ready("up")
    notifier.alive("up")
    notifier.stopping("bye")
    notifier.close()
    assert len(caplog.records) == (1 if name else 0)


def test_a_manager_that_does_not_read_is_not_waited_for_and_hears_ready_later(tmp_path: Path) -> None:
    manager = NotifySocket(f"{tmp_path}/notify")
    notifier = Notifier({"NOTIFY_SOCKET": manager.name})
    for _ in range(10_000):
        notifier.alive("starting")
    notifier.ready("up")
    assert not manager.said("READY")
    notifier.alive("still up")
    notifier.alive("and still")
    assert manager.receive()[-2:] == [{"STATUS": "still up", "READY": "1"}, {"STATUS": "and still"}]
    notifier.close()
    manager.close()


# --- a worker


def test_a_worker_reports_its_life(tmp_path: Path) -> None:
    with managing(tmp_path) as manager:
        worker = manager.start("1", WATCHDOG_USEC="200000")
        assert worker.ask("/ping").status == 200
        ready = next(message for message in worker.notify.messages if "READY" in message)
        assert ready["STATUS"].startswith("revision 26; ")
        wait_for(lambda: sum("WATCHDOG" in message for message in worker.notify.receive()) >= 3)
        wait_for(lambda: worker.notify.status() == "revision 26; 1 requests, 0 connections", worker.notify.status)
        worker.notify.messages.clear()
        worker.signal(signal.SIGHUP)
        wait_for(lambda: worker.notify.said("READY"))
        fields = [next(iter(message)) for message in worker.notify.messages if "WATCHDOG" not in message]
        assert fields == ["RELOADING", "READY"]
        notify = worker.notify
        manager.stop("1")
        assert any("STOPPING" in message for message in notify.messages)


def test_a_reload_that_fails_ends_all_the_same_and_says_why(tmp_path: Path) -> None:
    config = tmp_path / "adcore.toml"
    config.write_text("refresh = 5\n")
    with managing(tmp_path) as manager:
        worker = manager.start("1", "--config", str(config))
        for text, says in (("refresh = 'soon'\n", "the reload failed: "), ("refresh = 6\n", "")):
            config.write_text(text)
            worker.notify.messages.clear()
            worker.signal(signal.SIGHUP)
            wait_for(lambda: worker.notify.said("READY"))
            assert worker.notify.said("RELOADING")
            status = worker.notify.status()
            assert ("the reload failed" in status) == bool(says)
            assert (f"{config}: refresh: must be a number" in status) == bool(says)


def test_a_worker_without_a_table_is_not_ready_and_accepts_nothing(tmp_path: Path) -> None:
    store = tmp_path / "store" / "ads.db"
    url = f"sqlite://{store}"
    with managing(tmp_path, url) as manager:
        waiting = manager.launch("1", "--refresh", "0.1")
        wait_for(lambda: "no ad table yet" in waiting.notify.status(), waiting.notify.status)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(manager.path))
            client.sendall(b"GET /ping HTTP/1.1\r\nHost: h\r\n\r\n")
            looks = waiting.status()["refresh"]["looks"]
            wait_for(lambda: waiting.status()["refresh"]["looks"] > looks)
            assert waiting.status()["connections"]["accepted"] == 0
            assert not waiting.notify.said("READY")
            store.parent.mkdir()
            apply(url)
            # It was in the socket all the time.
            client.settimeout(20)
            assert client.recv(100).startswith(b"HTTP/1.1 200")
        wait_for(waiting.is_ready)
        manager.stop("1")


def test_a_worker_that_waits_for_its_table_can_be_stopped(tmp_path: Path) -> None:
    with managing(tmp_path, f"sqlite://{tmp_path}/none/ads.db") as manager:
        waiting = manager.launch("1")
        wait_for(lambda: "no ad table yet" in waiting.notify.status(), waiting.notify.status)
        waiting.signal(signal.SIGHUP)
        notify = waiting.notify
        wait_for(lambda: "HUP: " in waiting.errors)
        assert not notify.said("RELOADING")
        manager.stop("1")


def test_the_parent_of_several_workers_reports_for_them(tmp_path: Path) -> None:
    with managing(tmp_path) as manager:
        parent = manager.start("1", "--workers", "2", WATCHDOG_USEC="200000")
        notify = parent.notify
        assert notify.status() == "2 of 2 workers serve; 0 restarts, 0 rollovers"
        assert parent.ask("/ping").status == 200
        notify.messages.clear()
        parent.signal(signal.SIGHUP)
        wait_for(lambda: notify.said("READY"), lambda: parent.errors)
        assert [next(iter(m)) for m in notify.messages if "WATCHDOG" not in m] == ["RELOADING", "READY"]
        assert notify.said("WATCHDOG")
        assert notify.status() == "2 of 2 workers serve; 0 restarts, 1 rollovers"
        manager.stop("1")
        assert any("STOPPING" in message for message in notify.messages)
