"""Slow work takes its share of the threads, and every other page is served meanwhile."""

import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from adcore.core.inventory import parse_inventory
from adcore.sources import open_store
from adcore.sources.sqlite import SqliteStore
from adtools.admin import admission, deadline, site
from adtools.admin.admission import Admission, Busy, password_hashes, slow_work
from adtools.admin.security import LARGE_BODY_BYTES
from tests.inventories import campaign, document, text_creative
from tests.process import Answer, ask, wait_for
from tests.tools.admin import project
from tests.tools.admin.served import PASSWORD, Admin, make_store
from tests.tools.admin.test_images import encoded

LARGE = "/adcore/campaign/large/change/"
SMALL = "/adcore/campaign/small/change/"


def inventory(count: int = site.LARGE_FORM_CREATIVES + 1) -> dict[str, Any]:
    large = campaign("large", creatives=[text_creative(f"large-{number}") for number in range(count)])
    return document(large, campaign("small", targeting={"placements": ["side"]}))


@pytest.fixture
def source(tmp_path: Path) -> Iterator[str]:
    with project.sqlite_store(tmp_path, inventory()) as url:
        yield url


# The mechanism


def made(waiting: int = 1, wait_s: float = 60.0) -> Admission:
    return Admission(waiting=waiting, wait_s=wait_s, reason="busy", status=HTTPStatus.SERVICE_UNAVAILABLE)


def in_thread(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_turns_are_one_at_a_time_in_order_and_the_rest_is_refused() -> None:
    admission, order, refused = made(waiting=3), list[int](), list[int]()

    def work(number: int) -> None:
        try:
            with admission.turn():
                order.append(number)
        except Busy:
            refused.append(number)

    def waits(count: int) -> bool:
        return len(admission._queue) == count

    with admission.turn():
        threads = []
        for number in range(3):
            threads.append(in_thread(partial(work, number)))
            wait_for(partial(waits, number + 1))
        for number in (3, 4):
            in_thread(partial(work, number)).join(60)
        assert (order, refused) == ([], [3, 4])
    for thread in threads:
        thread.join(60)
    assert order == [0, 1, 2]
    with admission.turn():
        pass


def test_a_turn_within_a_turn_is_the_same_one() -> None:
    admission = made()
    with admission.turn():
        with admission.turn():
            pass
        assert admission._worker == threading.get_ident()
    assert admission._worker is None


def test_a_place_that_is_reserved_is_left_to_others() -> None:
    admission, seen = made(waiting=1), list[str]()

    def work(reserved: int) -> None:
        try:
            with admission.turn(reserved=reserved):
                seen.append("admitted")
        except Busy:
            seen.append("refused")

    with admission.turn():
        in_thread(lambda: work(1)).join(60)
        assert seen == ["refused"]
        waits = in_thread(lambda: work(0))
        wait_for(lambda: len(admission._queue) == 1)
    waits.join(60)
    assert seen == ["refused", "admitted"]


@pytest.mark.parametrize(("wait_s", "request_s"), [(0.01, 60.0), (60.0, 0.01)])
def test_a_wait_ends_and_leaves_the_queue(wait_s: float, request_s: float) -> None:
    admission, seen = made(wait_s=wait_s), list[Busy]()

    def work() -> None:
        try:
            with deadline.request(request_s), admission.turn():
                pass
        except Busy as error:
            seen.append(error)

    with admission.turn():
        in_thread(work).join(60)
        assert [error.status for error in seen] == [503]
        assert not admission._queue
    assert admission._worker is None


def test_a_request_without_time_left_takes_no_place() -> None:
    admission, seen = made(), list[str]()

    def work() -> None:
        try:
            with deadline.request(-1.0), admission.turn():
                pass
        except deadline.OutOfTime as error:
            seen.append(str(error))

    with admission.turn():
        in_thread(work).join(60)
    assert len(seen) == 1
    assert admission._worker is None
    assert not admission._queue


def test_there_are_threads_that_no_slow_work_takes() -> None:
    assert admission.THREADS - slow_work.threads - password_hashes.threads >= 2


# The pages


@contextmanager
def all_taken(admission: Admission) -> Iterator[None]:
    """Other requests are at work, and wait, in every place."""
    held, go = threading.Event(), threading.Event()

    def hold() -> None:
        with admission.turn():
            held.set()
            assert go.wait(60)

    thread = in_thread(hold)
    assert held.wait(60)
    admission._queue.extend([(0, threading.Event())] * (admission.threads - 1))
    try:
        yield
    finally:
        admission._queue.clear()
        go.set()
        thread.join(60)


def image_form(page: Any) -> dict[str, Any]:
    file = encoded("PNG", (300, 250))
    file.name = "a.png"
    return project.posted(page, **{"creatives-0-format": "image", "creatives-0-upload": file})  # type: ignore[arg-type]


def test_slow_pages_are_refused_where_all_places_are_taken_and_others_are_not(source: str) -> None:
    viewer, editor = project.client("viewer"), project.client("editor")
    small, large = editor.get(SMALL), editor.get(LARGE)
    before = project.stored(source)
    file = encoded("PNG", (300, 250))
    file.name = "a.png"
    slow: list[Callable[[], Any]] = [
        lambda: viewer.get("/explain/?placement=side"),
        lambda: viewer.get("/explain/?impression=" + "f" * 32),
        lambda: viewer.get("/delivery/"),
        lambda: viewer.get("/delivery/?campaign=small&days=90"),
        lambda: viewer.get(LARGE),
        lambda: editor.get(LARGE),
        lambda: editor.post(LARGE, project.posted(large, weight="7")),
        lambda: editor.post(SMALL, image_form(small)),
        lambda: editor.post("/adcore/campaign/add/", {f"creatives-{number}-id": "x" for number in range(60)}),
        lambda: viewer.post("/preview/", {"format": "image", "size": "300x250", "upload": file}),
        lambda: viewer.post("/preview/", {f"f{number}": "" for number in range(5000)}),
        lambda: viewer.post(SMALL, {"a": "b" * (LARGE_BODY_BYTES + 1)}),
    ]
    with all_taken(slow_work):
        for work in slow:
            page = work()
            assert page.status_code == 503, page.request
            assert int(page.headers["Retry-After"]) == slow_work.wait_s
            assert "The admin is at other work that takes long" in page.content.decode()
            assert "try again in a few seconds" in page.content.decode()
        assert project.stored(source) == before
        for page in (
            Client(SERVER_NAME="127.0.0.1").get("/login/"),
            viewer.get("/adcore/campaign/"),
            viewer.get(SMALL),
            viewer.get("/explain/"),
            viewer.get("/preview/?creative=small-1"),
            viewer.get("/admin/logentry/"),
            editor.get("/adcore/placement/top/delete/"),
        ):
            assert page.status_code == 200, page.request
        assert editor.post(SMALL, project.posted(small, weight="7")).status_code == 302
        # What a role may not do takes no place, and is refused as ever.
        assert viewer.post(SMALL, image_form(small)).status_code == 403
        assert project.client("viewer").post("/adcore/campaign/add/", {"creatives-0-id": "x"}).status_code == 403
    for work in slow[:6]:
        assert work().status_code == 200
    assert slow_work._worker is None


def test_placements_make_a_form_large_too(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site, "PLACEMENTS_PER_CREATIVE", 1)
    monkeypatch.setattr(site, "LARGE_FORM_CREATIVES", 3)
    viewer = project.client("viewer")
    with all_taken(slow_work):
        assert viewer.get(SMALL).status_code == 503
    assert viewer.get(SMALL).status_code == 200


def test_a_page_is_drawn_within_its_turn(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from django.template.response import TemplateResponse

    real, drawn = TemplateResponse.render, list[bool]()

    def render(self: Any) -> Any:
        if not self.is_rendered:
            drawn.append(slow_work._worker == threading.get_ident())
        return real(self)

    monkeypatch.setattr(TemplateResponse, "render", render)
    viewer = project.client("viewer")
    for page in ("/explain/?placement=side", "/delivery/", LARGE):
        assert viewer.get(page).status_code == 200
    assert drawn == [True] * 3


def test_the_inventory_is_loaded_once_for_each_revision(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[int] = []
    real = SqliteStore.load

    def load(self: Any) -> Any:
        loads.append(1)
        return real(self)

    monkeypatch.setattr(SqliteStore, "load", load)
    viewer = project.client("viewer")
    for _ in range(3):
        assert "The campaign small" in viewer.get("/explain/?placement=side").content.decode()
    assert len(loads) == 1
    store = open_store(source)
    store.apply(lambda _: parse_inventory(document(campaign("new"))))
    store.close()
    loads.clear()
    for _ in range(2):
        page = viewer.get("/explain/?placement=side").content.decode()
        assert "The campaign new" in page
        assert "The campaign small" not in page
    assert len(loads) == 1


def test_a_deletion_looks_at_campaigns_in_one_statement(source: str) -> None:
    editor = project.client("editor")
    with CaptureQueriesContext(connection) as few:
        assert "Campaign: The campaign small" in editor.get("/adcore/placement/side/delete/").content.decode()
    store = open_store(source)
    store.apply(lambda _: parse_inventory(document(*(campaign(f"c{number}") for number in range(40)))))
    store.close()
    with CaptureQueriesContext(connection) as many:
        editor.get("/adcore/placement/side/delete/")
    assert len(many) <= len(few)


def test_who_may_only_look_locks_nothing(source: str) -> None:
    viewer = project.client("viewer")
    with CaptureQueriesContext(connection) as queries:
        assert viewer.post(SMALL, {"weight": "7"}).status_code == 403
    assert not any("revision" in query["sql"] for query in queries)


# The admin as it runs


class Person:
    """A browser of few words, on the admin's socket."""

    def __init__(self, admin: Admin) -> None:
        self._address = admin.url.removeprefix("http://")
        self.cookies: dict[str, str] = {}

    def ask(self, target: str, form: dict[str, str] | None = None) -> Answer:
        cookie = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        body = urlencode(form).encode() if form else None
        answer = ask(
            self._address,
            target,
            "POST" if form else "GET",
            body,
            Host="127.0.0.1",
            Cookie=cookie,
            Content_Type="application/x-www-form-urlencoded",
        )
        for given in answer.headers.get_all("Set-Cookie", []):
            name, _, rest = given.partition("=")
            self.cookies[name] = rest.partition(";")[0]
        return answer

    def post(self, target: str, form: dict[str, str]) -> Answer:
        token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', self.ask(target).body.decode())
        assert token is not None
        return self.ask(target, {**form, "csrfmiddlewaretoken": token[1]})

    def set_password(self, link: str) -> None:
        place = self.ask("/" + link.split("/", 3)[3]).headers["Location"]
        assert self.post(place, {"new_password1": PASSWORD, "new_password2": PASSWORD}).status == 302

    def log_in(self, name: str) -> int:
        return self.post("/login/", {"username": name, "password": PASSWORD}).status


class Control:
    """A control listener that keeps whoever asks waiting."""

    def __init__(self, path: Path) -> None:
        self.asked: list[socket.socket] = []
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(path))
        self._socket.listen(16)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                self.asked.append(self._socket.accept()[0])
            except OSError:
                return

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for asked in self.asked:
            asked.close()


def test_twenty_explanations_at_once_keep_no_one_from_logging_in(tmp_path: Path) -> None:
    state = tmp_path / "state"
    make_store(state)
    control = Control(state / "control.sock")
    with Admin(state, "--unix", str(state / "admin.sock")) as admin:
        viewer, anna = Person(admin), Person(admin)
        for person, name, role in ((viewer, "victor", "viewer"), (anna, "anna", "editor")):
            person.set_password(admin.link(name, role))
        assert viewer.log_in("victor") == 302
        answers: list[Answer] = []

        def explain() -> None:
            answers.append(viewer.ask("/explain/?placement=side"))

        threads = [in_thread(explain) for _ in range(20)]
        # More than there are threads: those that have no place are answered while the server is asked still.
        wait_for(lambda: len(answers) >= 20 - slow_work.threads)
        refused = answers[: 20 - slow_work.threads]
        assert len(control.asked) <= slow_work.threads
        assert anna.log_in("anna") == 302
        assert anna.ask("/adcore/campaign/").status == 200
        assert anna.post("/adcore/placement/add/", {"id": "x"}).status == 200
        control.close()
        for thread in threads:
            thread.join(60)
    assert {answer.status for answer in refused} == {503}
    assert all(int(answer.headers["Retry-After"]) > 0 for answer in refused)
    assert [answer.status for answer in answers].count(200) == slow_work.threads
