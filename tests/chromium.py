"""Debian's Chromium, driven by Playwright, as the tests of pages use it."""

from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, expect, sync_playwright

from tests.process import PATIENCE_S
from tests.services import program

FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
    # A site of the tests is none of this machine, which the ad server is on.
    "--disable-features=LocalNetworkAccessChecks",
)
# Chromium without a screen says that it is a robot, and those count nowhere.
USER_AGENT = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36"
# A busy machine takes its time.
expect.set_options(timeout=1000 * PATIENCE_S)


@contextmanager
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program("chromium", "chromium"), args=list(FLAGS))
        yield browser
        browser.close()
