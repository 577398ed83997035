"""Step the wall clock of servers under load, and let it pass hard midnights: `python -m tests.chaos.clocks`.

- an hour forward and an hour back, --count times: no request fails, connections and the refresh timer go on as before,
  the age of the table stays true, and a link that was handed out before a step is followed after it;
- the change to summer time and back, leap day, the end of the year, in zones of both hemispheres: each record's hour
  and weekday are those of the site's zone, campaigns booked for hours and weekdays keep to them, and daily caps begin
  again with the local day and not before.
"""

import argparse
import json
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from tests.chaos.faulty import Faulty
from tests.inventories import campaign, document
from tests.load import WRONG, Load, read_log
from tests.process import Adcore, Connection, adctl, serving, wait_for

REFRESH_S = 0.5
STEP_S = 3600.0
# What a busy machine may take for a second's work; a timer that followed the step would be an hour off.
LATE_S = 10.0
CAP = 3
ASK = "/v1/decision?placement=side&kv.n=none"  # of no Load


class Midnight(NamedTuple):
    """A moment in a zone at which the local reading jumps or turns in an unusual way."""

    what: str
    zone: str
    local: str
    """A second before it, in local time."""
    hour: int
    """The hour that follows."""
    is_new_day: bool


MIDNIGHTS = (
    Midnight("summer time begins", "Europe/Berlin", "2026-03-29T01:59:59", 3, False),
    Midnight("summer time ends", "Europe/Berlin", "2026-10-25T02:59:59", 2, False),
    Midnight("summer time begins at midnight", "Africa/Cairo", "2026-04-23T23:59:59", 1, True),
    Midnight("summer time ends, by half an hour", "Australia/Lord_Howe", "2026-04-05T01:59:59", 1, False),
    Midnight("leap day", "Asia/Tokyo", "2028-02-28T23:59:59", 0, True),
    Midnight("after leap day", "Asia/Tokyo", "2028-02-29T23:59:59", 0, True),
    Midnight("no leap day", "America/New_York", "2027-02-28T23:59:59", 0, True),
    Midnight("the year ends", "Pacific/Auckland", "2026-12-31T23:59:59", 0, True),
)


def apply(url: str, *campaigns: dict[str, Any]) -> None:
    applied = adctl("apply", "--source", url, "-", stdin=json.dumps(document(*campaigns)))
    assert applied.returncode == 0, applied.stderr


def step(folder: Path, count: int) -> list[str]:
    """What went wrong over so many steps to and fro."""
    problems: list[str] = []
    url = f"sqlite://{folder}/ads.db"
    apply(url, campaign("a"))
    faulty = Faulty(folder / "faulty", folder / "nothing")
    variables: dict[str, Any] = faulty.variables
    with serving(folder / "state", "--source", url, "--refresh", str(REFRESH_S), **variables) as server:
        kept = Connection(server.address)
        kept.connect()  # idle all the time
        with Load(server.address, pause_s=0.001) as load:
            for number in range(count):
                click_url = server.ask(ASK).json()["click_url"]
                for offset_s in (STEP_S, 0.0) if number % 2 else (-STEP_S, 0.0):
                    looks = server.status()["refresh"]["looks"]
                    faulty.clock_offset_s = offset_s
                    load.wait_for(20)
                    if server.ask(click_url).status != 302:
                        problems.append(
                            f"a link from before a step to {offset_s:+} s is refused: {server.ask(click_url)}"
                        )
                    stepped = time.monotonic()
                    wait_for(lambda looks=looks: server.status()["refresh"]["looks"] >= looks + 2)
                    if (took := time.monotonic() - stepped) > LATE_S:
                        problems.append(f"two looks took {took:.1f} s after a step to {offset_s:+} s")
                    age = server.status()["refresh"]["age_s"]
                    if not 0 <= age <= LATE_S:
                        problems.append(f"after a step to {offset_s:+} s the table is {age} s old")
        kept.request("GET", "/ping")
        if kept.getresponse().status != 200:
            problems.append("an idle connection was closed")
        kept.close()
        if timeouts := server.status()["connections"]["timeouts"]:
            problems.append(f"connections timed out: {timeouts}")
        server.stop()
        counts = load.check(read_log(server.log))
    problems += [f"{counts[what]} {what}" for what in (*WRONG, "phantom") if counts[what]]
    return [*problems, *load.failures[:3]]


def pass_midnight(folder: Path, midnight: Midnight) -> list[str]:
    """What went wrong when the clock passed this moment."""
    before = datetime.fromisoformat(midnight.local).replace(tzinfo=ZoneInfo(midnight.zone))
    if midnight.what.startswith("summer time ends"):
        before = before.replace(fold=0)
    after_wall = before.timestamp() + 2
    after = datetime.fromtimestamp(after_wall, ZoneInfo(midnight.zone))
    assert after.hour == midnight.hour, (midnight, after)
    url = f"sqlite://{folder}/ads.db"
    capped = campaign("capped", priority="sponsorship", daily_cap={"impressions": CAP})
    hours = {"hours": [after.hour], "weekdays": [after.weekday()]}
    apply(url, capped, campaign("booked", targeting=hours), campaign("house", priority="house"))
    faulty = Faulty(folder / "faulty", folder / "nothing")
    faulty.set_clock(before.timestamp() - 1)
    variables: dict[str, Any] = faulty.variables
    args = ("--source", url, "--refresh", str(REFRESH_S), "--time-zone", midnight.zone)
    problems = []
    with serving(folder / "state", *args, **variables) as server:
        faulty.set_clock(before.timestamp() - 60)
        shown = [shown_by(server) for _ in range(CAP + 1)]
        otherwise = "booked" if (before.hour, before.weekday()) == (after.hour, after.weekday()) else "house"
        if shown != ["capped"] * CAP + [otherwise]:
            problems.append(f"before: {shown}")
        faulty.set_clock(after_wall)
        if midnight.is_new_day:
            wait_for(lambda: shown_by(server) == "capped")
            for _ in range(CAP - 1):
                shown_by(server)
        if (now := shown_by(server)) != "booked":
            problems.append(f"after: {now}")
        server.stop()
        for record in read_log(server.log):
            local = datetime.fromtimestamp(record["time"], ZoneInfo(midnight.zone))
            if (record["hour"], record["weekday"]) != (local.hour, local.weekday()):
                problems.append(f"at {local} a record says {record['hour']}, {record['weekday']}")
    return problems


def shown_by(server: Adcore) -> str:
    answer = server.ask(ASK)
    assert answer.status == 200, answer
    return str(answer.json()["campaign"])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.clocks", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--count", type=int, default=20, help="steps to and fro (default: 20)")
    count = parser.parse_args().count
    failed = False
    with tempfile.TemporaryDirectory(prefix="adcore-") as name:
        folder = Path(name)
        (folder / "steps").mkdir()
        results = {f"{count} steps of an hour to and fro": step(folder / "steps", count)}
        for number, midnight in enumerate(MIDNIGHTS):
            (folder / str(number)).mkdir()
            results[f"{midnight.what}, {midnight.zone}"] = pass_midnight(folder / str(number), midnight)
    for what, problems in results.items():
        print(f"{what}: {'; '.join(problems) or 'well'}")
        failed |= bool(problems)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
