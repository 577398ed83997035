"""Reports against an independent count, pages that need no network, and the check that all of it adds up."""

import csv
import io
import json
import re
import sqlite3
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adcore.core.inventory import parse_inventory
from adcore.deliverylog.record import FORMS, AnyRecord
from adcore.sources import open_store
from adtools.report import KEYS, wilson
from tests.inventories import campaign, document
from tests.process import Adcore, adctl, serving, wait_for
from tests.tools.traffic import START, count, traffic

DAY_S = 86_400.0
BOOKED = document(
    campaign(
        "spring",
        name="</td><script>alert(1)</script> & 春",
        goal={"impressions": 900},
        starts_at="2027-01-15T00:00:00Z",
        ends_at="2027-01-20T00:00:00Z",
    ),
    campaign("summer", goal={"clicks": 50}),
)


@pytest.fixture(scope="module")
def records() -> Sequence[AnyRecord]:
    return traffic(3000, 1, span_s=3 * DAY_S)


@pytest.fixture(scope="module", params=["sqlite", "mariadb"])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, records: Sequence[AnyRecord]) -> str:
    """A store in which they are counted."""
    folder = tmp_path_factory.mktemp("report")
    made = f"sqlite:///{folder}/ads.db"
    if request.param == "mariadb":
        made = request.getfixturevalue("mariadb").create("reported")
    (folder / "delivery.log").write_bytes(b"".join(map(FORMS["msgpack"].encode, records)))
    with closing(open_store(made)) as store:
        store.migrate()
        store.apply(lambda there: parse_inventory(BOOKED))
    assert adctl("collect", "--source", made, "--time-zone", "Asia/Tokyo", str(folder / "delivery.log")).returncode == 0
    return made


BROWSER = "Mozilla/5.0 (X11; Linux x86_64) Firefox/130.0"


def report(url: str, *args: str) -> str:
    ran = adctl("report", "--source", url, "--time-zone", "Asia/Tokyo", *args)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def by_campaign_and(records: Sequence[AnyRecord], key: str) -> Counter[tuple[str, ...]]:
    """{(campaign, value of the key, column): count}, reckoned from the records."""
    place = {"placement": 1, "creative": 3}[key]
    sums: Counter[tuple[str, ...]] = Counter()
    for row, number in count([records], "Asia/Tokyo")["results"].items():
        sums[row[2], row[place], row[6]] += number
    return sums


@pytest.mark.parametrize("key", ["placement", "creative"])
def test_rows_have_the_keys_that_were_asked_for_and_the_sums(url: str, records: Sequence[AnyRecord], key: str) -> None:
    rows = json.loads(report(url, "--by", f"campaign,{key}", "--format", "json"))
    assert [list(row) for row in rows] == [["campaign", key, "impressions", "views", "clicks", "ivt"]] * len(rows)
    assert {
        (row["campaign"], row[key], column): row[column]
        for row in rows
        for column in ("impressions", "views", "clicks", "ivt")
        if row[column]
    } == by_campaign_and(records, key)


def test_totals_are_the_same_by_whatever_keys(url: str, records: Sequence[AnyRecord]) -> None:
    counted = count([records], "Asia/Tokyo")
    for keys in (*KEYS, ",".join(KEYS), "day,placement", "hour,campaign"):
        rows = json.loads(report(url, "--by", keys, "--format", "json"))
        for column in ("impressions", "views", "clicks", "ivt"):
            assert sum(row[column] for row in rows) == sum(
                number for row, number in counted["results"].items() if row[-1] == column
            )
        if "unfilled" in rows[0]:
            requests = sum(number for row, number in counted["unfilled"].items() if row[-1] == "requests")
            assert sum(row["unfilled"] for row in rows) == requests


def test_days_and_hours_are_local(url: str) -> None:
    rows = json.loads(report(url, "--by", "day,hour", "--format", "json"))
    assert rows[0]["hour"] == "2027-01-15T17:00+09:00"
    assert {row["day"] for row in rows} == {"2027-01-15", "2027-01-16", "2027-01-17", "2027-01-18"}
    assert all(row["hour"].startswith(row["day"]) for row in rows)


def test_from_and_to_are_whole_days(url: str) -> None:
    everything = json.loads(report(url, "--by", "day", "--format", "json"))
    for args, days in (
        (["--from", "2027-01-17"], everything[2:]),
        (["--to", "2027-01-16"], everything[:2]),
        (["--from", "2027-01-16", "--to", "2027-01-16"], everything[1:2]),
        (["--from", "2028-01-01"], []),
    ):
        assert json.loads(report(url, "--by", "day", "--format", "json", *args)) == days


def test_no_cell_of_a_csv_is_a_formula_and_no_id_is_markup(tmp_path: Path) -> None:
    starts = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d")
    hostile = [f'{start}HYPERLINK("https://evil.example.net")<script>alert(1)</script>' for start in starts]
    path = tmp_path / "ads.db"
    with closing(open_store(f"sqlite://{path}")) as store:
        store.migrate()
    with closing(sqlite3.connect(path)) as database:
        for text in hostile:
            row = (1_800_000_000, text, text, text, "other", "JP", -1, 0, 0, 0)
            database.execute(f"INSERT INTO results VALUES ({', '.join('?' * len(row))})", row)
        database.commit()
    args = (f"sqlite://{path}", "--by", "campaign,placement,creative", "--format")
    printed = [[*line.values()] for line in csv.DictReader(io.StringIO(report(*args, "csv"), newline=""))]
    # Line ends are read as one sort of them by the test, on the way from the command.
    marked = sorted(f"'{text}".replace("\r", "\n") for text in hostile)
    assert sorted(cells[0].replace("\r", "\n") for cells in printed) == marked
    for cells in printed:
        assert cells[0] == cells[1] == cells[2]
        assert cells[3] == "-1"
    assert "<script>" not in report(*args, "html")


def test_csv_and_table_say_the_same(url: str) -> None:
    rows = json.loads(report(url, "--by", "campaign,day", "--format", "json"))
    as_csv = [*csv.DictReader(io.StringIO(report(url, "--by", "campaign,day", "--format", "csv")))]
    assert as_csv == [{name: str(value) for name, value in row.items()} for row in rows]
    head, *lines, total = report(url, "--by", "campaign,day").splitlines()
    assert head.split()[:6] == ["campaign", "day", "impressions", "views", "clicks", "ivt"]
    assert [line.split()[:3] for line in lines] == [
        [row["campaign"], row["day"], f"{row['impressions']:,}"] for row in rows
    ]
    assert total.split()[:2] == ["all", f"{sum(row['impressions'] for row in rows):,}"]


@pytest.mark.parametrize(
    ("clicks", "impressions", "low", "high"),
    # Newcombe 1998, table I, method 3: Wilson without continuity correction.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_intervals_are_wilsons(clicks: int, impressions: int, low: float, high: float) -> None:
    assert wilson(clicks, impressions) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(0, 10**9), st.integers(0, 10**9))
def test_an_interval_is_around_its_share(clicks: int, impressions: int) -> None:
    low, high = wilson(clicks, impressions)
    assert 0 <= low <= high <= 1
    if impressions and clicks <= impressions:
        assert low <= clicks / impressions + 1e-12
        assert high >= clicks / impressions - 1e-12


# The page


class Page(HTMLParser):
    """Its text and tags, and everything that a browser would fetch or run."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.text = ""
        self.fetched: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        for name, value in attrs:
            is_link = name in ("src", "href", "xlink:href", "action", "data", "srcset") or "url(" in (value or "")
            if is_link and not re.fullmatch(r"#\w+|.*url\(#\w+\).*", value or ""):
                self.fetched.append(f"{tag} {name}={value}")

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_needs_no_network_and_runs_nothing(url: str) -> None:
    html = report(url, "--format", "html")
    page = Page(html)
    assert page.fetched == []
    assert "@import" not in html
    assert page.tags["script"] == 0
    assert page.tags["svg"] == 3
    for text in (
        "Delivery against goal",
        "spring: impressions",
        "summer: clicks",
        "ideal",
        "95 % confidence",
        "daily_cap",
    ):
        assert text in page.text


def test_the_ideal_line_is_the_one_that_pacing_follows(tmp_path: Path) -> None:
    url = f"sqlite://{tmp_path}/ads.db"
    flight = {"starts_at": "2027-01-16T00:00:00+00:00", "ends_at": "2027-01-18T00:00:00+00:00"}
    even = campaign("even", goal={"impressions": 100}, pacing="even", **flight)
    with closing(open_store(url)) as store:
        store.apply(lambda rows: parse_inventory(document(even)))
        straight = report(url, "--campaign", "even", "--format", "html")
        traffic_by_hour = json.dumps([90 if hour % 24 == 20 else 10 for hour in range(168)])
        put = f"INSERT INTO placement_traffic VALUES ('side', '{traffic_by_hour}')"
        store.run(lambda db: db.execute(put))
    bent = report(url, "--campaign", "even", "--format", "html")
    # matplotlib leaves out points that do not turn a line, so the frame, of four, has the most beside a straight one.
    straight_points, bent_points = (max(path.count("L ") for path in paths(page)) for page in (straight, bent))
    assert straight_points == 4 < bent_points


@pytest.mark.parametrize("time_zone", ["Asia/Tokyo", "America/Los_Angeles"])
@pytest.mark.parametrize(
    ("start", "end"),
    [
        ("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-12:00"),
        ("0001-01-01T00:00:00Z", "0001-01-02T00:00:00Z"),
        ("9999-12-31T20:00:00-12:00", "9999-12-31T23:59:59-12:00"),
        ("2027-01-16T00:00:00Z", "9999-12-31T23:59:59Z"),
    ],
)
def test_a_flight_may_begin_and_end_in_any_year(tmp_path: Path, start: str, end: str, time_zone: str) -> None:
    url = f"sqlite://{tmp_path}/ads.db"
    even = campaign("even", goal={"impressions": 100}, pacing="even", starts_at=start, ends_at=end)
    with closing(open_store(url)) as store:
        store.apply(lambda rows: parse_inventory(document(even)))
    for form in ("html", "csv", "table"):
        assert report(url, "--campaign", "even", "--format", form, "--time-zone", time_zone)


def paths(page: str) -> list[str]:
    return re.findall(r'<path d="([^"]*)"', page)


def test_a_campaigns_page_says_what_was_booked_and_why_it_was_not_shown(url: str) -> None:
    page = Page(report(url, "--campaign", "spring", "--format", "html"))
    assert page.tags["script"] == 0
    assert "</td><script>alert(1)</script> & 春" in page.text
    assert "900 impressions" in page.text
    assert "No reasons were counted" in page.text
    with closing(open_store(url)) as store:
        put = "INSERT INTO refusals (day, campaign, placement, reason, requests) VALUES "
        store.run(
            lambda db: db.execute(
                put
                + "('2027-01-16', 'spring', 'top', 'lost_draw', 60), ('2027-01-17', 'spring', 'side', 'lost_draw', 15),"
                "('2027-01-17', 'spring', 'top', 'daily_cap', 25), ('2027-01-17', 'summer', 'top', 'hour', 1)"
            )
        )
    page = Page(report(url, "--campaign", "spring", "--format", "html"))
    assert re.search(r"lost_draw75.0%75\s*daily_cap25.0%25", page.text), page.text
    shown = report(url, "--campaign", "spring", "--from", "2027-01-17", "--by", "creative")
    assert "62.5%  daily_cap  (25)" in shown
    assert "summer" not in shown


def test_nothing_is_said_where_nothing_was_counted(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/ads.db"
    with closing(open_store(url)) as store:
        store.migrate()
    assert json.loads(report(url, "--format", "json")) == []
    assert "nothing was counted" in report(url)
    assert "Nothing was counted" in report(url, "--format", "html")


def test_without_matplotlib_it_is_said_what_to_install(url: str, tmp_path: Path) -> None:
    (tmp_path / "matplotlib.py").write_text("raise ImportError('no matplotlib here')")
    path = f"{tmp_path}:{Path(__file__).parents[2]}:{Path(__file__).parents[2] / 'tools'}"
    ran = adctl("report", "--source", url, "--format", "html", PYTHONPATH=path)
    assert (ran.returncode, "pip install 'adcore[report]'" in ran.stderr) == (2, True), ran.stderr


@pytest.mark.parametrize(
    ("args", "status", "message"),
    [
        (["--by", "campaign,colour"], 2, "--by colour: there is campaign, placement, creative, day, hour"),
        (["--from", "yesterday"], 2, "--from must be a date such as"),
        (["--from", "2026-02-01", "--to", "2026-01-01"], 2, "is after --to"),
        (["--campaign", "winter"], 1, "there is no campaign winter"),
        (["delivery.log"], 2, "are for --check"),
        (["--check", "/nowhere/delivery.log"], 1, "cannot list /nowhere"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, args: list[str], status: int, message: str) -> None:
    url = f"sqlite:///{tmp_path}/ads.db"
    with closing(open_store(url)) as store:
        store.migrate()
    ran = adctl("report", "--source", url, *args)
    assert (ran.returncode, message in ran.stderr) == (status, True), ran.stderr


# The check


def check(server: Adcore, *args: str) -> tuple[int, dict[str, Any]]:
    source = f"sqlite:///{server.state}/adcore.db"
    ran = adctl("report", "--check", "--format", "json", "--source", source, "--control", server.control, *args)
    assert ran.stdout, ran.stderr
    return ran.returncode, {line["name"]: line for line in json.loads(ran.stdout)}


def test_served_logged_and_counted_are_compared(tmp_path: Path) -> None:
    with serving(tmp_path / "state", "--log-format", "json") as server:
        log, source = str(server.log), f"sqlite:///{server.state}/adcore.db"

        def visit(user_agent: str) -> None:
            decision = server.ask("/v1/decision?placement=top", user_agent=user_agent).json()
            for name in ("view_url", "click_url", "click_url"):
                server.ask(decision[name], user_agent=user_agent)
            server.ask("/v1/decision?placement=nowhere", user_agent=user_agent)

        for _ in range(5):
            visit(BROWSER)
        visit("Googlebot/2.1")
        wait_for(lambda: server.status()["log"]["written"] == {"impression": 6, "view": 6, "click": 6, "unfilled": 6})
        status, lines = check(server, log)
        assert (status, lines["served = logged"]["differences"]) == (0, {})
        assert lines["logged = counted"]["note"] == " (24 wait to be counted)"
        assert adctl("collect", "--source", source, log).returncode == 0
        status, lines = check(server, log)
        assert status == 0
        assert lines["served = logged"]["expected"] == {"impression": 6, "view": 6, "click": 6, "unfilled": 6}
        assert lines["logged = counted"]["found"] == {
            "impressions": 5,
            "views": 5,
            "clicks": 5,
            "ivt": 4,
            "unfilled": 5,
        }
        text = server.log.read_text().splitlines(keepends=True)
        # What this server did not serve since it started is not compared.
        others = ({**json.loads(text[0]), "time": 1000.0}, {**json.loads(text[1]), "host": "elsewhere"})
        (tmp_path / "others.log").write_text("".join(json.dumps(record) + "\n" for record in others))
        status, lines = check(server, log, str(tmp_path / "others.log"))
        assert (status, lines["served = logged"]["differences"]) == (0, {})
        with closing(open_store(source)) as store:
            more = "UPDATE results SET impressions = impressions + 3 WHERE clicks > 0"
            store.run(lambda db: db.execute(more))
            (touched,) = store.run(lambda db: db.query("SELECT COUNT(*) AS n FROM results WHERE clicks > 0"))
        server.log.write_text("".join(line for line in text[1:] if '"type":"view"' not in line) + text[0])
        status, lines = check(server, log)
        assert status == 1
        assert lines["served = logged"]["differences"] == {"view": -6}
        (tmp_path / "whole.log").write_text("".join(text))
        status, lines = check(server, str(tmp_path / "whole.log"))
        assert (status, lines["logged = counted"]["differences"]) == (1, {"impressions": 3 * touched["n"]})


def test_the_check_of_a_log_that_grows_and_repeats_itself_is_exact(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/ads.db"
    with closing(open_store(url)) as store:
        store.migrate()
    records = traffic(4000, 2)
    log = tmp_path / "delivery.log"
    for start in range(0, 4000, 1000):
        with log.open("ab") as file:
            file.write(b"".join(map(FORMS["msgpack"].encode, records[start : start + 1000])))
        if start < 3000:
            adctl("collect", "--source", url, str(log))
    ran = adctl("report", "--check", "--source", url, str(log))
    assert ran.returncode == 0, ran.stdout
    counted = sum(sum(count([records[:3000]])[table].values()) for table in ("results", "unfilled"))
    assert ran.stdout == f"logged = counted: equal, {counted:,} records (1000 wait to be counted)\n"
    assert records[-1].time > START
