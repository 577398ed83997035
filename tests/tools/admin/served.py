"""`adctl admin` in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path
from types import TracebackType

from playwright.sync_api import Page, expect

from tests.inventories import campaign, document
from tests.process import PATIENCE_S, adctl, ask, environment, wait_for

PASSWORD = "correct horse battery staple"


def make_store(state: Path) -> None:
    """An SQLite store with one campaign, where a server with this state directory looks for it."""
    state.mkdir(exist_ok=True)
    ads = json.dumps(document(campaign("house", priority="house")))
    applied = adctl("apply", "--source", f"sqlite://{state}/adcore.db", "-", stdin=ads)
    assert applied.returncode == 0, applied.stderr


class Admin:
    """The admin of the server with this state directory, on HOST:PORT or the socket among its arguments."""

    def __init__(self, state: Path, *args: str, address: str = "") -> None:
        self.args = args
        self._address = address or f"unix:{args[args.index('--unix') + 1]}"
        self.url = f"http://{self._address}"
        self._told = {"ADCORE_STATE_DIR": str(state), "ADCORE_CONTROL": f"unix:{state}/control.sock"}
        self._errors = state / "admin.txt"
        self.process: subprocess.Popen[bytes]

    def __enter__(self) -> "Admin":
        with self._errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "adtools", "admin", *self.args],
                stdout=errors,
                stderr=errors,
                env=environment(**self._told),
            )
        wait_for(self._answers, lambda: self._errors.read_text())
        return self

    def _answers(self) -> bool:
        assert self.process.poll() is None, self._errors.read_text()
        try:
            # Whatever it says to a host name that is not its own.
            return ask(self._address, "/login/").status in (200, 400)
        except OSError:
            return False

    def link(self, name: str, role: str) -> str:
        """A one-time link for somebody of this role."""
        given = adctl("admin", *self.args, "createuser", name, "--role", role, **self._told)
        assert given.returncode == 0, given.stderr
        return given.stdout.splitlines()[-1]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.terminate()
        try:
            assert self.process.wait(PATIENCE_S) == 0, self._errors.read_text()
        finally:
            self.process.kill()


def log_in(page: Page, admin: Admin, name: str, role: str = "editor") -> None:
    """By the one-time link, with the keyboard alone."""
    page.goto(admin.link(name, role))
    page.get_by_label("New password:").focus()
    page.keyboard.type(PASSWORD)
    page.keyboard.press("Tab")
    page.keyboard.type(PASSWORD)
    page.keyboard.press("Enter")
    expect(page).to_have_url(f"{admin.url}/login/")
    page.keyboard.type(name)
    page.keyboard.press("Tab")
    page.keyboard.type(PASSWORD)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Campaigns")).to_be_visible()
