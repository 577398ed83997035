"""`adctl apply`, `export` and `migrate`: a file in; exit status, what is printed and stored."""

import io
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import adcore
from adcore.core.inventory import parse_inventory, to_document
from adcore.sources import open_store
from adtools import cli
from adtools.inventory import SHOWN_MAX

SAMPLE = Path(adcore.__file__).with_name("sample_inventory.json")


class Outcome(NamedTuple):
    status: int
    out: str
    err: str


Adctl = Callable[..., Outcome]


@pytest.fixture
def source(tmp_path: Path) -> str:
    return f"sqlite://{tmp_path}/ads.db"


@pytest.fixture
def adctl(source: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Adctl:
    """Run `adctl` on a store of this test's own."""
    for name in list(os.environ):
        if name.startswith("ADCORE_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("ADCORE_SOURCE", source)

    def run(*argv: object) -> Outcome:
        status = cli.main([str(argument) for argument in argv])
        return Outcome(status, *capsys.readouterr())

    return run


def creative(creative_id: str, **fields: Any) -> dict[str, Any]:
    return {
        "id": creative_id,
        "placement_size": [728, 90],
        "format": "text",
        "data": {"text": "あ"},
        "landing_url": "https://shop.example.net/",
        **fields,
    }


def campaign(campaign_id: str, *creatives: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {
        "id": campaign_id,
        "name": campaign_id,
        "priority": "house",
        "creatives": list(creatives) or [creative(f"{campaign_id}-1")],
        **fields,
    }


def document(*campaigns: dict[str, Any]) -> dict[str, Any]:
    return {"placements": [{"id": "top", "width": 728, "height": 90}], "campaigns": list(campaigns)}


def written(folder: Path, value: object) -> Path:
    path = folder / "ads.json"
    path.write_text(json.dumps(value))
    return path


def stored(source: str) -> dict[str, Any]:
    store = open_store(source)
    try:
        return to_document(parse_inventory(store.load().document))
    finally:
        store.close()


def revision(source: str) -> tuple[int, int]:
    store = open_store(source)
    try:
        return store.revision().number, store.revision().confirmed
    finally:
        store.close()


# Apply


def test_apply_makes_the_store_hold_what_the_file_says(tmp_path: Path, source: str, adctl: Adctl) -> None:
    outcome = adctl("apply", SAMPLE)
    assert (outcome.status, outcome.err) == (0, "")
    assert '+ campaign "manga-week"' in outcome.out
    assert stored(source)["campaigns"] == to_document(parse_inventory(json.loads(SAMPLE.read_text())))["campaigns"]

    value = document(campaign("new"))
    outcome = adctl("apply", written(tmp_path, value))
    assert outcome.status == 0
    assert '~ placement "top"' not in outcome.out
    assert '+ creative "new-1"' in outcome.out
    assert '- campaign "manga-week"' in outcome.out
    assert stored(source) == to_document(parse_inventory(value))


def test_apply_shows_what_is_added_changed_and_removed(tmp_path: Path, source: str, adctl: Adctl) -> None:
    adctl("apply", written(tmp_path, document(campaign("a"), campaign("b", creative("b-1"), creative("b-2")))))
    changed = document(campaign("b", creative("b-1", weight=2), creative("b-3")), campaign("c", weight=3))
    path = written(tmp_path, changed)
    assert json.loads(adctl("apply", "--dry-run", "--json", path).out) == {
        "ok": True,
        "dry_run": True,
        "revision": revision(source)[0],
        "added": ['creative "b-3"', 'campaign "c"', 'creative "c-1"'],
        "changed": ['creative "b-1"'],
        "removed": ['campaign "a"', 'creative "a-1"', 'creative "b-2"'],
    }
    assert [c["id"] for c in stored(source)["campaigns"]] == ["a", "b"]
    outcome = adctl("apply", path)
    assert outcome.out.splitlines()[1:] == [
        '  + creative "b-3"',
        '  + campaign "c"',
        '  + creative "c-1"',
        '  ~ creative "b-1"',
        '  - campaign "a"',
        '  - creative "a-1"',
        '  - creative "b-2"',
    ]
    assert outcome.out.startswith(f"sqlite://{tmp_path}/ads.db: applied as revision {revision(source)[0]}\n")


def test_a_creative_that_moves_to_another_campaign_is_changed(tmp_path: Path, source: str, adctl: Adctl) -> None:
    first = document(campaign("a", creative("k"), creative("a-1")), campaign("b"))
    second = document(campaign("a", creative("a-1")), campaign("b", creative("b-1"), creative("k")))
    adctl("apply", written(tmp_path, first))
    report = json.loads(adctl("apply", "--json", written(tmp_path, second)).out)
    assert (report["added"], report["changed"], report["removed"]) == ([], ['creative "k"'], [])
    assert stored(source) == to_document(parse_inventory(second))


def test_applying_what_is_there_already_changes_nothing_and_confirms(tmp_path: Path, source: str, adctl: Adctl) -> None:
    path = written(tmp_path, document(campaign("a", creative("k", weight=2))))
    adctl("apply", path)
    with closing(sqlite3.connect(tmp_path / "ads.db", isolation_level=None)) as by_hand:
        by_hand.execute("UPDATE creatives SET weight = 3")
        by_hand.execute("UPDATE creatives SET weight = 2")
    number, confirmed = revision(source)
    assert number > confirmed
    outcome = adctl("apply", path)
    assert outcome.status == 0
    assert "nothing to change" in outcome.out
    assert revision(source) == (number, number)


def test_export_names_rows_that_are_bad_and_apply_mends_them(tmp_path: Path, source: str, adctl: Adctl) -> None:
    path = written(tmp_path, document(campaign("a", creative("k"), creative("j"))))
    adctl("apply", path)
    with closing(sqlite3.connect(tmp_path / "ads.db", isolation_level=None)) as by_hand:
        by_hand.execute("UPDATE creatives SET landing_url = 'javascript:x' WHERE id = 'k'")
    exported = adctl("export")
    assert exported.status == 0
    assert exported.err.startswith("adctl export: a row is not valid and not delivered: $.campaigns[0].creatives[0]")
    assert json.loads(exported.out)["campaigns"][0]["creatives"][0]["landing_url"] == "javascript:x"
    report = json.loads(adctl("apply", "--json", path).out)
    assert report["changed"] == ['creative "k"']
    assert adctl("export").err == ""


def test_keep_leaves_other_rows_alone(tmp_path: Path, source: str, adctl: Adctl) -> None:
    adctl("apply", written(tmp_path, document(campaign("a"), campaign("b", creative("b-1"), creative("b-2")))))
    more = {
        "placements": [],
        # The placement is known to the store only.
        "campaigns": [
            campaign("b", creative("b-2", weight=5)),
            campaign("c", targeting={"placements": ["top"]}),
        ],
    }
    report = json.loads(adctl("apply", "--keep", "--json", written(tmp_path, more)).out)
    assert report["added"] == ['campaign "c"', 'creative "c-1"']
    assert report["changed"] == ['creative "b-2"']
    assert report["removed"] == ['creative "b-1"']
    rows = {c["id"]: [k["id"] for k in c["creatives"]] for c in stored(source)["campaigns"]}
    assert rows == {"a": ["a-1"], "b": ["b-2"], "c": ["c-1"]}
    assert list(rows) == ["a", "b", "c"]
    assert [p["id"] for p in stored(source)["placements"]] == ["top"]


def test_keep_refuses_what_does_not_go_with_the_rows_kept(tmp_path: Path, source: str, adctl: Adctl) -> None:
    adctl("apply", written(tmp_path, document(campaign("a", creative("k")))))
    before = stored(source)
    outcome = adctl(
        "apply", "--keep", written(tmp_path, {"placements": [], "campaigns": [campaign("b", creative("k"))]})
    )
    assert outcome.status == 1
    assert "must be unique" in outcome.err
    assert stored(source) == before


def test_every_error_is_named_and_nothing_is_changed(tmp_path: Path, source: str, adctl: Adctl) -> None:
    adctl("apply", written(tmp_path, document(campaign("a"))))
    before, number = stored(source), revision(source)
    bad = document(campaign("a", weight=0), campaign("b", creative("b-1", landing_url="javascript:x"), creative("b-2")))
    outcome = adctl("apply", written(tmp_path, bad))
    assert (outcome.status, outcome.out) == (1, "")
    assert outcome.err.startswith("adctl apply: nothing was changed: the inventory has 2 errors:\n")
    assert '$.campaigns[0].weight (campaign "a"): must be a whole number from 1 to 1000000; got 0' in outcome.err
    assert '$.campaigns[1].creatives[0].landing_url (creative "b-1")' in outcome.err
    report = json.loads(adctl("apply", "--json", written(tmp_path, bad)).out)
    assert report["ok"] is False
    assert [error["path"] for error in report["errors"]] == [
        "$.campaigns[0].weight",
        "$.campaigns[1].creatives[0].landing_url",
    ]
    assert (stored(source), revision(source)) == (before, number)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "line 1, column 1"),
        (b'{"placements": [],\n "campaigns": [}', "line 2, column 16"),
        (b'{"placements": [], "placements": [], "campaigns": []}', '"placements" stands twice'),
        (b'\n\n{"a": "\xff"}', "line 3 is not UTF-8"),
        (b"[" * 100_000, "recursion"),
        (b'{"a": ' + b"9" * 5000 + b"}", "digits"),
        (b"[]", "must be an object"),
    ],
)
def test_a_file_that_is_no_inventory(tmp_path: Path, adctl: Adctl, raw: bytes, message: str) -> None:
    path = tmp_path / "ads.json"
    path.write_bytes(raw)
    outcome = adctl("apply", path)
    assert outcome.status == 1
    assert message in outcome.err
    assert "Traceback" not in outcome.err
    assert not (tmp_path / "ads.db").exists()


def test_a_file_that_is_not_there_is_2(tmp_path: Path, adctl: Adctl) -> None:
    outcome = adctl("apply", tmp_path / "no.json")
    assert outcome.status == 2
    assert f"cannot read {tmp_path}/no.json: No such file" in outcome.err
    assert adctl("apply", tmp_path).status == 2


def test_apply_reads_standard_input(tmp_path: Path, source: str, adctl: Adctl, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = b"\xef\xbb\xbf" + json.dumps(document(campaign("a"))).encode()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(raw)))
    assert adctl("apply", "-").status == 0
    assert [c["id"] for c in stored(source)["campaigns"]] == ["a"]


def test_a_long_summary_is_cut(tmp_path: Path, adctl: Adctl) -> None:
    outcome = adctl("apply", written(tmp_path, document(campaign("a", *(creative(f"k{n}") for n in range(100))))))
    assert len(outcome.out.splitlines()) == 2 + SHOWN_MAX
    assert f"and {102 - SHOWN_MAX} more (102 added)" in outcome.out


# Export


def test_what_export_prints_changes_nothing_when_applied(tmp_path: Path, source: str, adctl: Adctl) -> None:
    adctl("apply", SAMPLE)
    exported = adctl("export")
    assert exported.status == 0
    assert exported.err == ""
    path = tmp_path / "exported.json"
    path.write_text(exported.out)
    assert "nothing to change" in adctl("apply", path).out
    assert adctl("export").out == exported.out


def test_export_keeps_text_readable(tmp_path: Path, adctl: Adctl) -> None:
    adctl("apply", written(tmp_path, document(campaign("a"))))
    assert '"text": "あ"' in adctl("export").out


def test_export_into_a_pipe_that_closes_is_quiet(tmp_path: Path, source: str, adctl: Adctl) -> None:
    creatives = (creative(f"k{n}") for n in range(2000))
    adctl("apply", written(tmp_path, document(campaign("a", *creatives))))
    command = f"'{sys.executable}' -m adtools export --source {source} | head -n 1"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, env=environment, timeout=60, check=True
    )
    assert (done.stdout, done.stderr) == ("{\n", "")


# Migrate, and the command line


def test_migrate_can_be_run_again(source: str, adctl: Adctl) -> None:
    adctl("migrate")
    outcome = adctl("migrate")
    assert outcome.status == 0
    assert "already up to date" in outcome.out
    assert json.loads(adctl("migrate", "--json").out) == {"applied": []}


def test_a_flag_wins_over_the_environment(tmp_path: Path, source: str, adctl: Adctl) -> None:
    path = written(tmp_path, document(campaign("a")))
    other = f"sqlite://{tmp_path}/other.db"
    assert adctl("apply", "--source", other, path).status == 0
    assert [c["id"] for c in stored(other)["campaigns"]] == ["a"]
    assert not (tmp_path / "ads.db").exists()


def test_ads_can_be_applied_before_the_first_start_of_a_server(
    tmp_path: Path, adctl: Adctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ADCORE_SOURCE")
    monkeypatch.setenv("ADCORE_STATE_DIR", str(tmp_path / "a/state"))
    outcome = adctl("export")
    assert outcome.status == 1
    assert f"there is no directory {tmp_path}/a/state" in outcome.err
    assert adctl("apply", written(tmp_path, document(campaign("a")))).status == 0
    assert (tmp_path / "a/state").stat().st_mode & 0o777 == 0o700
    assert [c["id"] for c in json.loads(adctl("export").out)["campaigns"]] == ["a"]


@pytest.mark.parametrize("command", ["export", "migrate"])
def test_a_store_out_of_reach_is_1_and_names_it_without_its_password(adctl: Adctl, command: str) -> None:
    outcome = adctl(command, "--source", "mysql://me:hush@127.0.0.1:1/ads")
    assert outcome.status == 1
    assert outcome.err.startswith(f"adctl {command}: ")
    assert "127.0.0.1" in outcome.err
    assert "hush" not in outcome.err
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "COMMAND"),
        (["aply"], "invalid choice: 'aply'"),
        (["apply"], "FILE"),
        (["export", "--sorce", "x"], "--sorce"),
    ],
)
def test_usage_errors_are_2(adctl: Adctl, argv: list[str], message: str) -> None:
    outcome = adctl(*argv)
    assert outcome.status == 2
    assert message in outcome.err


def test_a_bad_source_in_the_environment_is_2(adctl: Adctl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADCORE_SOURCE", "postgres://x")
    outcome = adctl("export")
    assert outcome.status == 2
    assert outcome.err.startswith("adctl export: ADCORE_SOURCE: must be sqlite:///")


@pytest.mark.parametrize("command", ["apply", "export", "migrate", "doctor", "explain"])
def test_the_help_of_each_command_shows_examples(adctl: Adctl, command: str) -> None:
    outcome = adctl(command, "--help")
    assert outcome.status == 0
    assert "examples:" in outcome.out
    assert f"adctl {command}" in outcome.out.partition("examples:")[2]
    assert command in adctl("--help").out


def test_a_file_without_end_is_refused_and_not_read_to_it(source: str, adctl: Adctl) -> None:
    applied = adctl("apply", "--source", source, "/dev/zero")
    assert applied.status == 1
    assert "it is longer than 256 MiB" in applied.err
