"""The load client sees what it is there to see."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.load import Load

ANSWER = b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n"


@contextmanager
def server(path: Path, serve: Callable[[socket.socket], None]) -> Iterator[str]:
    """`serve` is given each connection, one after the other."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()

        def run() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection:
                    serve(connection)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield f"unix:{path}"
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()


def record(request_id: str) -> dict[str, Any]:
    return {"type": "impression", "key_values": [["n", request_id]]}


def test_records_are_held_against_the_answers() -> None:
    load = Load("unix:/nonexistent")
    load.sent += ["a0-0", "a0-1", "a0-2", "a0-3"]
    load.answered += ["a0-0", "a0-1", "a0-2"]
    records = [record("a0-0"), record("a0-0"), record("a0-2"), record("a9-9"), record("b0-0"), {"type": "view"}]
    counts = load.check(records)
    right = {"answered": 3, "repeated": 0, "failed": 0}
    assert counts == {**right, "lost": 1, "doubled": 1, "unanswered": 1, "phantom": 1}


def test_a_new_connection_that_is_cut_is_a_failure(tmp_path: Path) -> None:
    with server(tmp_path / "s", lambda connection: None) as address, Load(address, clients=1) as load:
        load.wait_for(1)
    assert load.failures
    assert load.repeated == 0


def test_a_kept_connection_that_is_cut_is_asked_again(tmp_path: Path) -> None:
    def one_answer(connection: socket.socket) -> None:
        if connection.recv(65536):
            connection.sendall(ANSWER)

    with server(tmp_path / "s", one_answer) as address, Load(address, clients=1) as load:
        load.wait_for(3)
    assert load.failures == []
    assert load.repeated > 0


def test_a_status_that_is_no_answer_is_a_failure(tmp_path: Path) -> None:
    def unavailable(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    with server(tmp_path / "s", unavailable) as address, Load(address, clients=1) as load:
        load.wait_for(1)
    assert "status 503" in load.failures[0]


def test_nobody_there_is_a_failure(tmp_path: Path) -> None:
    with Load(f"unix:{tmp_path}/nobody", clients=1) as load:
        load.wait_for(1)
    assert "FileNotFoundError" in load.failures[0]
