"""A person at the admin, in Debian's Chromium: books an ad, sees it live on a running adcore, pauses it.

The pages are held to axe-core's rules on the way, and must work under their own content security policy.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, expect

from tests.chromium import chromium
from tests.process import Adcore, free_address, serving, wait_for
from tests.services import npm_packages
from tests.tools.admin.served import Admin, log_in, make_store

REFRESH_S = 0.2


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Adcore, Admin]]:
    """A server with a small inventory, and its admin."""
    state = tmp_path_factory.mktemp("state")
    make_store(state)
    address = free_address()
    with (
        serving(state, "--refresh", str(REFRESH_S)) as server,
        Admin(state, "--port", address.partition(":")[2], address=address) as admin,
    ):
        yield server, admin


@pytest.fixture
def complaints() -> list[str]:
    """What the browser says is wrong with the scripts and the styles of a page, or against its policy."""
    return []


@pytest.fixture
def page(browser: Browser, complaints: list[str]) -> Iterator[Page]:
    """A page that must raise no complaint."""

    def complain(message: ConsoleMessage) -> None:
        # A preview's report of its view is not let out: of text it is a script that does not run, of HTML it goes to a
        # host that is nowhere.
        in_preview = "/preview/" in message.text or "preview.invalid" in message.location["url"]
        if message.type == "error" and not in_preview:
            complaints.append(message.text)

    context = browser.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
    page = context.new_page()
    page.on("console", complain)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    yield page
    context.close()
    assert complaints == []


@pytest.fixture
def check_access(complaints: list[str]) -> Callable[[Page], None]:
    """Fails with what axe-core finds wrong in a page: labels, contrast, order, names of what can be operated."""
    axe = npm_packages(Path(__file__).parent, "axe-core") / "axe-core" / "axe.min.js"

    def check(page: Page) -> None:
        count = len(complaints)
        # Not by a script element, which the policy refuses.
        page.evaluate(axe.read_text())
        found = page.evaluate("() => axe.run(document, {iframes: false})")
        del complaints[count:]  # axe's own styles
        violations = {
            violation["id"]: [node["html"][:200] for node in violation["nodes"]] for violation in found["violations"]
        }
        assert violations == {}, page.url

    return check


def shown(server: Adcore) -> str:
    return str(server.ask("/v1/decision?placement=side").json()["campaign"])


def test_an_ad_is_booked_seen_explained_and_paused(
    site: tuple[Adcore, Admin], page: Page, check_access: Callable[[Page], None]
) -> None:
    server, admin = site
    assert shown(server) == "house"
    log_in(page, admin, "anna")
    check_access(page)

    page.get_by_role("link", name=re.compile("Add campaign")).click()
    page.get_by_label("Id:", exact=True).first.fill("spring")
    page.get_by_label("Name:", exact=True).fill("Spring sale")
    page.get_by_label("Advertiser:").fill("Example Shop")
    page.get_by_label("Priority:").select_option("sponsorship")
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.get_by_text("Is missing: a creative of format image needs it.").first).to_be_visible()
    check_access(page)

    creative = page.locator("#creatives-0")
    creative.get_by_label("Id:").fill("spring-1")
    creative.get_by_label("Format:").select_option("html")
    creative.get_by_label("Size:").select_option("300x250")
    creative.get_by_label("HTML:").fill("<h1 id=x>Half price</h1><script>x.textContent += ' today'</script>")
    # The sandboxed frame within the document that servers send.
    preview = creative.frame_locator("iframe").frame_locator("iframe")
    expect(preview.get_by_role("heading", name="Half price today")).to_be_visible()
    frame = creative.locator("iframe").bounding_box()
    assert frame is not None
    assert (frame["width"], frame["height"]) == (302, 252), "its size and a border"
    expect(creative.get_by_label("Alternative text:")).to_be_hidden()
    # By the keyboard: a busy Chromium takes a click for one into the frame that was there before it scrolled.
    page.get_by_role("button", name="Save", exact=True).press("Enter")
    expect(page.get_by_text("was added successfully")).to_be_visible()
    wait_for(lambda: shown(server) == "spring")

    page.get_by_role("link", name="Spring sale").first.click()
    check_access(page)
    page.get_by_role("link", name="Why is it not showing?").click()
    page.get_by_label("Placement:").select_option("side")
    page.get_by_role("button", name="Explain").click()
    expect(page.get_by_role("row", name=re.compile("Spring sale.*100.0 %"))).to_be_visible()
    expect(page.get_by_role("row", name=re.compile("house.*A campaign of a higher priority"))).to_be_visible()
    check_access(page)

    page.get_by_role("navigation", name="Pages").get_by_role("link", name="Campaigns").click()
    page.get_by_role("row", name=re.compile("Spring sale")).get_by_role("checkbox").check()
    page.get_by_label("Action:").select_option("pause")
    page.get_by_role("button", name=re.compile("Go|Run")).click()
    expect(page.get_by_text("1 campaign paused.")).to_be_visible()
    wait_for(lambda: shown(server) == "house")

    page.get_by_role("link", name="Changes").click()
    expect(page.get_by_text("status: active → paused")).to_be_visible()
    check_access(page)
    page.get_by_role("link", name="Delivery").click()
    expect(page.get_by_text("Nothing was counted")).to_be_visible()
    check_access(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_are_readable_on_a_phone(
    site: tuple[Adcore, Admin], page: Page, check_access: Callable[[Page], None], scheme: Any
) -> None:
    _, admin = site
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": 390, "height": 844})
    log_in(page, admin, f"{scheme}-reader", "viewer")
    for place in ("/adcore/campaign/house/change/", "/explain/?placement=side&device=mobile", "/delivery/"):
        page.goto(admin.url + place)
        check_access(page)
        width = page.evaluate("() => document.documentElement.scrollWidth")
        assert width <= 390, f"{place} is wider than the screen"
