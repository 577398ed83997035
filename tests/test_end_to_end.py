"""From a booking to the report, over all parts: MariaDB, memcached, nginx, adcore, the admin, and a browser."""

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from playwright.sync_api import Page, expect

from tests import services
from tests.chromium import USER_AGENT, chromium
from tests.inventories import campaign, document
from tests.process import Adcore, adctl, ask, free_address, serving, wait_for
from tests.tools.admin.served import Admin, log_in

REFRESH_S = 0.2
SITE = "http://site.test/"


class Host(NamedTuple):
    source: str
    address: str
    """nginx's HOST:PORT."""
    server: Adcore
    admin: Admin

    def adctl(self, *args: str) -> str:
        done = adctl(*args, ADCORE_SOURCE=self.source, ADCORE_STATE_DIR=str(self.server.state))
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    """A host on which one house ad is booked."""
    state, address, admin_address = tmp_path / "state", free_address(), free_address()
    for name in ("mariadb", "memcached"):
        (tmp_path / name).mkdir()
    with ExitStack() as running:
        source = running.enter_context(services.mariadb(tmp_path / "mariadb")).create("ads")
        memcached = running.enter_context(services.memcached(tmp_path / "memcached"))
        ads = json.dumps(document(campaign("house", priority="house")))
        for command in (["migrate"], ["apply", "-"], ["admin", "migrate"]):
            done = adctl(*command, stdin=ads, ADCORE_SOURCE=source, ADCORE_STATE_DIR=str(state))
            assert done.returncode == 0, done.stderr
        server = running.enter_context(
            serving(
                *(state, "--source", source, "--memcached", f"unix:{memcached.path}", "--refresh", str(REFRESH_S)),
                *("--public-url", f"http://{address}", "--cors-origins", SITE.rstrip("/")),
            )
        )
        running.enter_context(services.nginx(tmp_path / "nginx", state / "ad.sock", address))
        port = admin_address.partition(":")[2]
        # A state directory of its own: it has to be told where the server's log and tables are.
        (tmp_path / "admin").mkdir()
        told = ("--source", source, "--archive", str(state / "tables"), "--log", str(server.log), "--port", port)
        admin = running.enter_context(Admin(tmp_path / "admin", *told, address=admin_address))
        yield Host(source, address, server, admin)


def book(page: Page, landing_url: str) -> None:
    page.get_by_role("link", name=re.compile("Add campaign")).click()
    page.get_by_label("Id:", exact=True).first.fill("spring")
    page.get_by_label("Name:", exact=True).fill("Spring sale")
    page.get_by_label("Advertiser:").fill("Example Shop")
    page.get_by_label("Priority:").select_option("sponsorship")
    creative = page.locator("#creatives-0")
    creative.get_by_label("Id:").fill("spring-1")
    creative.get_by_label("Format:").select_option("text")
    creative.get_by_label("Size:").select_option("300x250")
    creative.get_by_label("Text:", exact=True).fill("Half price today")
    creative.get_by_label("Landing URL:").fill(landing_url)
    page.get_by_role("button", name="Save", exact=True).press("Enter")
    expect(page.get_by_text("was added successfully")).to_be_visible()


def records_of(server: Adcore, campaign_id: str) -> dict[str, list[dict[str, Any]]]:
    """What the log has of a campaign, by type."""
    found: dict[str, list[dict[str, Any]]] = {"impression": [], "view": [], "click": []}
    for record in server.records():
        if record.get("campaign") == campaign_id:
            found[record["type"]].append(record)
    return found


def test_an_ad_is_booked_seen_clicked_counted_and_reported(host: Host) -> None:
    tag = f'<script async src="http://{host.address}/v1/tag.js"></script><ins data-adcore-placement="side"></ins>'
    with chromium() as browser, browser.new_context(user_agent=USER_AGENT) as context:
        person, visitor = context.new_page(), context.new_page()
        visitor.route(SITE, lambda route: route.fulfill(body=f"<!DOCTYPE html>{tag}", content_type="text/html"))
        visitor.goto(SITE)
        expect(visitor.get_by_role("link", name="Buy one")).to_be_visible()

        log_in(person, host.admin, "anna")
        book(person, f"http://{host.address}/ping?from={{click_id}}")
        wait_for(lambda: "spring" in ask(host.server.control, "/explain?placement=side").body.decode())
        visitor.bring_to_front()
        visitor.goto(SITE)
        ad = visitor.get_by_role("link", name="Half price today")
        expect(ad).to_be_visible()
        wait_for(lambda: records_of(host.server, "spring")["view"])
        with visitor.expect_popup() as landing:
            ad.click()
        landing.value.wait_for_url(f"http://{host.address}/ping?from=*")
        wait_for(lambda: records_of(host.server, "spring")["click"])

        logged = records_of(host.server, "spring")
        (impression_id,) = {record["id"] for records in logged.values() for record in records}
        assert {kind: len(records) for kind, records in logged.items()} == {"impression": 1, "view": 1, "click": 1}
        assert landing.value.url.endswith(f"from={impression_id}")

        host.adctl("collect", str(host.server.log))
        rows = json.loads(host.adctl("report", "--by", "campaign", "--format", "json"))
        (reported,) = (row for row in rows if row["campaign"] == "spring")
        assert (reported["impressions"], reported["views"], reported["clicks"]) == (1, 1, 1)
        person.bring_to_front()
        person.goto(f"{host.admin.url}/delivery/")
        counted = re.compile(r"^spring 1 50\.0 % 1 100\.00% 1 100\.00% 0$")
        expect(person.get_by_role("row", name=counted)).to_be_visible()
        person.goto(f"{host.admin.url}/explain/")
        person.get_by_label("Impression id:").fill(impression_id)
        person.get_by_role("button", name="Look back").click()
        expect(person.get_by_text("side showed spring-1 of spring.")).to_be_visible()
        expect(person.get_by_role("row", name=re.compile("house.*A campaign of a higher priority"))).to_be_visible()
