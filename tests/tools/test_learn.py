"""`adctl learn` from results to decisions."""

import json
import sqlite3
import time
from pathlib import Path

from tests.inventories import campaign, document, text_creative
from tests.process import adctl


def test_what_is_learned_decides(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/ads.db"
    rivals = [text_creative("dull"), text_creative("bright")]
    inventory = document(campaign("c", optimize="ctr", creatives=rivals))
    assert adctl("apply", "--source", url, "-", stdin=json.dumps(inventory)).returncode == 0
    hour = int(time.time()) // 3600 * 3600 - 3600
    store = sqlite3.connect(tmp_path / "ads.db")
    for creative, clicks in (("dull", 10), ("bright", 1000)):
        store.executemany(
            "INSERT INTO results VALUES (?, 'side', 'c', ?, 'mobile', 'JP', 1000, 0, ?, 0)",
            [(hour - 3600 * back, creative, clicks if back == 0 else 0) for back in range(24)],
        )
    store.commit()
    store.close()
    learned = adctl("learn", "--source", url, "--json", "--time-zone", "Asia/Tokyo")
    assert learned.returncode == 0, learned.stderr
    lesson = json.loads(learned.stdout)
    assert lesson["written"] == ["side", "bright", "dull"]
    again = adctl("learn", "--source", url, "--time-zone", "Asia/Tokyo")
    assert again.stdout == (
        f"sqlite://{tmp_path}/ads.db: the traffic of 1 placements and the results of 2 creatives are known; "
        f"0 changed (revision {lesson['revision']})\n"
    )
    explained = adctl("explain", "--source", url, "--json", "placement=side")
    assert json.loads(explained.stdout)["candidates"][0]["creatives"]["bright"] > 0.999
    exported = json.loads(adctl("export", "--source", url).stdout)
    assert "learned" not in exported
    assert exported["campaigns"][0]["optimize"] == "ctr"
    assert [creative["weight"] for creative in exported["campaigns"][0]["creatives"]] == [1, 1]


def test_an_unknown_zone_is_named(tmp_path: Path) -> None:
    refused = adctl("learn", "--source", f"sqlite:///{tmp_path}/ads.db", "--time-zone", "Mars/Base")
    assert refused.returncode == 2
    assert "there is no zone 'Mars/Base'" in refused.stderr
