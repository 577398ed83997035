"""adctl replay: a log of a real server comes out again, and whatever was changed in it or in the tables is found."""

import copy
import gzip
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from adcore.core.adtable import build_table
from adcore.core.decision import Decision, decide
from adcore.deliverylog.reader import open_log, read_records
from adcore.deliverylog.record import FORMS, Answer, AnyRecord, Click, Impression, Unfilled
from adcore.sources import Revision, Rows
from adcore.sources.archive import TableArchive
from adtools.tables import past_of
from tests.inventories import campaign, document, text_creative
from tests.process import Adcore, adctl, serving, wait_for

BROWSERS = (
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/120.0 Safari/537.36",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_0 like Mac OS X) AppleWebKit/605.1.15 Mobile/15E148 Safari/604.1",
    "Googlebot/2.1 (+http://www.google.com/bot.html)",
)
QUERIES = (
    "placement=side",
    "placement=side&user=u-1",
    "placement=side,foot,side",
    "placement=foot&keywords=manga,news&kv.section=a",
    "placement=top",
    "placement=nowhere",
)


def inventory(weight: int) -> dict[str, Any]:
    return document(
        campaign("plain", weight=weight, creatives=[text_creative("plain-1", weight=3), text_creative("plain-2")]),
        campaign("phones", targeting={"devices": ["mobile"], "countries": ["JP"]}, priority="sponsorship", weight=5),
        campaign("capped", frequency_cap={"impressions": 2, "seconds": 3600}, weight=90),
        campaign("reached", goal={"impressions": 3}, priority="sponsorship"),
        campaign("slow", goal={"impressions": 10}, pacing="even", starts_at="2020-01-01T00:00:00+00:00",
                 ends_at="2090-01-01T00:00:00+00:00"),
        campaign("words", targeting={"keywords_any": ["manga"], "key_values": {"section": ["a", "b"]}}),
        campaign("early", starts_at="2090-01-01T00:00:00+00:00"),
        campaign("paused", status="paused", creatives=[text_creative("paused-1", (728, 90))]),
    )  # fmt: skip


class Site(NamedTuple):
    """What a host that served has left."""

    tables: Path
    logs: dict[str, Path]
    """By form."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    folder = tmp_path_factory.mktemp("site")
    url = f"sqlite://{folder}/ads.db"
    logs = {}
    for form in FORMS:
        apply(url, inventory(1))
        state = folder / form
        with serving(
            state, "--source", url, "--refresh", "0.05", "--log-format", form, "--archive-dir", str(folder / "tables")
        ) as server:
            for weight in (2, 3, 4):
                ask_for_everything(server)
                revision = apply(url, inventory(weight))
                wait_for(lambda revision=revision: server.status()["table"]["revision"] == revision)
            ask_for_everything(server)
            assert server.stop() == 0
            logs[form] = server.log
    return Site(folder / "tables", logs)


def apply(url: str, there: dict[str, Any]) -> int:
    applied = adctl("apply", "--json", "--source", url, "-", stdin=json.dumps(there))
    assert applied.returncode == 0, applied.stderr
    revision: int = json.loads(applied.stdout)["revision"]
    return revision


def ask_for_everything(server: Adcore) -> None:
    cookie = ""
    for number in range(40):
        answer = server.ask(
            f"/v1/decision?{QUERIES[number % len(QUERIES)]}",
            user_agent=BROWSERS[number // len(QUERIES) % len(BROWSERS)],
            x_country="JP" if number % 2 else "DE",
            accept_language="ja, en;q=0.5",
            cookie=cookie,
        )
        assert answer.status in (200, 204)
        cookie = (answer.headers["Set-Cookie"] or cookie).partition(";")[0]
        if answer.status == 200 and "decisions" not in answer.json():
            assert server.ask(answer.json()["click_url"]).status == 302


def replay(*args: object, **variables: str) -> tuple[int, dict[str, Any]]:
    done = adctl("replay", "--json", *map(str, args), **variables)
    assert done.stderr == ""
    return done.returncode, json.loads(done.stdout)


def records_of(path: Path) -> list[AnyRecord]:
    with open_log(path) as file:
        found = list(read_records(file))
    assert all(isinstance(record, msgspec.Struct) for record in found)
    return found  # type: ignore[return-value]


def answers_of(path: Path) -> list[Answer]:
    return [record for record in records_of(path) if isinstance(record, Answer)]


def write(path: Path, records: list[Any], form: str = "msgpack") -> Path:
    path.write_bytes(b"".join(map(FORMS[form].encode, records)))
    return path


def test_the_site_has_seen_every_kind_of_answer(site: Site) -> None:
    answers = answers_of(site.logs["json"])
    reasons = {reason for answer in answers for reason in answer.excluded.values()}
    assert reasons >= {"frequency_cap", "already_on_page", "goal_reached", "ahead_of_schedule"}
    assert {answer.reason for answer in answers if isinstance(answer, Unfilled)} >= {"unknown_placement", "paused"}
    assert len({answer.revision for answer in answers}) == 4
    assert {answer.ivt for answer in answers} == {True, False}
    assert len({answer.generation for answer in answers}) == 1


@pytest.mark.parametrize("seed", ["0", "1", "random"])
def test_an_untouched_log_has_no_difference(site: Site, seed: str) -> None:
    status, found = replay(*("--archive", site.tables, "--time-zone", "UTC", *site.logs.values()), PYTHONHASHSEED=seed)
    answers = sum(len(answers_of(path)) for path in site.logs.values())
    assert (status, found["decided"], found["differing"], found["damage"]) == (0, answers, {}, [])
    assert found["other_records"] > 0


def test_renamed_and_compressed_files_are_read(site: Site, tmp_path: Path) -> None:
    packed = tmp_path / "delivery.log.2.gz"
    packed.write_bytes(gzip.compress(site.logs["msgpack"].read_bytes()))
    done = adctl("replay", "--archive", str(site.tables), str(packed))
    count = len(answers_of(packed))
    assert (done.returncode, done.stdout) == (0, f"{count} decisions made again, 0 differences\n")


def test_the_servers_own_archive_is_the_default(site: Site) -> None:
    log = site.logs["json"]
    status, found = replay(log, ADCORE_ARCHIVE_DIR=str(site.tables))
    assert (status, found["decided"]) == (0, len(answers_of(log)))


def first(kind: type[Answer], condition: Callable[[Any], bool] = lambda record: True) -> Callable[[Answer], bool]:
    return lambda record: isinstance(record, kind) and condition(record)


TAMPERED: dict[str, tuple[Callable[[Answer], bool], dict[str, Any], str]] = {
    "campaign": (first(Impression), {"campaign": "early"}, "campaign"),
    "creative": (first(Impression), {"creative": "early-1"}, "creative"),
    "chance": (first(Impression), {"chance": 0.123}, "chance"),
    "device": (first(Impression, lambda r: r.campaign == "phones"), {"device": "desktop"}, "campaign"),
    "country": (first(Impression, lambda r: r.campaign == "phones"), {"country": "DE"}, "campaign"),
    "placement": (first(Impression), {"placement": "top"}, "type"),
    "id": (first(Impression), {"id": "not a number"}, "record"),
    "excluded": (first(Impression, lambda r: r.excluded), {"excluded": {}}, "chance"),
    "an excluded one more": (first(Impression), {"excluded": {"paused": "goal_reached"}}, "excluded"),
    "a reason that there is not": (first(Impression), {"excluded": {"plain": "whim"}}, "record"),
    "reason": (first(Unfilled), {"reason": "device"}, "reason"),
    "reasons": (first(Unfilled), {"reasons": {"device": 3}}, "reasons"),
    "revision": (first(Impression), {"revision": 999_999}, "table"),
    "generation": (first(Impression), {"generation": "another"}, "table"),
    "hour": (first(Impression), {"hour": 25}, "hour"),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_a_tampered_record_is_found(site: Site, tmp_path: Path, what: str) -> None:
    chosen, change, difference = TAMPERED[what]
    records = records_of(site.logs["msgpack"])
    at, record = next((at, r) for at, r in enumerate(records) if isinstance(r, Answer) and chosen(r))
    records[at] = msgspec.structs.replace(record, **change)
    log = write(tmp_path / "log", records, "json")
    status, found = replay("--archive", site.tables, "--time-zone", "UTC", log)
    assert status == 1
    assert difference in found["differing"]
    assert {one["id"] for one in found["differences"]} == {records[at].id}
    assert {one["file"] for one in found["differences"]} == {str(log)}


def test_a_difference_is_told_to_a_person(site: Site, tmp_path: Path) -> None:
    record = next(r for r in answers_of(site.logs["msgpack"]) if isinstance(r, Impression))
    log = write(tmp_path / "log", [msgspec.structs.replace(record, chance=2.0)] * 3)
    done = adctl("replay", "--archive", str(site.tables), "--show", "1", str(log))
    assert done.returncode == 1
    told, more, summary = done.stdout.splitlines()
    assert f" {record.id} {record.placement}: chance is 2.0 in the log and {record.chance!r} decided again" in told
    assert more == "… and 2 more; see --show"
    assert summary == "3 decisions made again, 3 differences, chance 3"


def test_damage_is_told(site: Site, tmp_path: Path) -> None:
    log = tmp_path / "log"
    content = bytearray(site.logs["msgpack"].read_bytes())
    content[len(content) // 2] ^= 1
    log.write_bytes(content)
    status, found = replay("--archive", site.tables, log)
    assert (status, found["differing"], len(found["damage"])) == (1, {}, 1)


@pytest.fixture
def tables(site: Site, tmp_path: Path) -> Path:
    """A copy to be changed."""
    return shutil.copytree(site.tables, tmp_path / "tables")


def test_a_table_that_is_gone_is_found(site: Site, tables: Path) -> None:
    revision = answers_of(site.logs["json"])[0].revision
    for entry in TableArchive(tables).entries():
        if entry.key[1] == revision:
            entry.path.unlink()
    status, found = replay("--archive", tables, site.logs["json"])
    assert status == 1
    # Others may have been kept as what differs from it.
    assert found["differing"]["table"] >= sum(a.revision == revision for a in answers_of(site.logs["json"]))
    assert "has no revision" in found["differences"][0]["decided"]


def test_a_changed_table_is_found(site: Site, tables: Path) -> None:
    whole = next(entry.path for entry in TableArchive(tables).entries() if not entry.base)
    content = bytearray(whole.read_bytes())
    content[len(content) // 2] ^= 1
    whole.write_bytes(content)
    status, found = replay("--archive", tables, site.logs["json"])
    assert status == 1
    assert "damaged" in found["differences"][0]["decided"] or "changed" in found["differences"][0]["decided"]


def test_a_weight_that_was_changed_with_all_care_is_found(site: Site, tmp_path: Path) -> None:
    """Under the right name, with the right digest: as somebody would who wants to hide what was served."""
    log = answers_of(site.logs["json"])
    generation = log[0].generation
    forged = TableArchive(tmp_path / "forged", days=1, bytes_max=1 << 30)
    for revision in {answer.revision for answer in log}:
        (there,) = TableArchive(site.tables).load((generation, revision))
        there = copy.deepcopy(there)
        there["campaigns"][0]["weight"] += 1
        forged.keep(Rows(Revision(generation, revision, revision), there))
    status, found = replay("--archive", forged.folder, site.logs["json"])
    assert status == 1
    assert found["differing"]["chance"] > 10


def test_a_record_that_names_no_store_is_held_against_each(site: Site, tables: Path, tmp_path: Path) -> None:
    answers = answers_of(site.logs["json"])
    old = [msgspec.structs.replace(answer, generation="") for answer in answers]
    archive = TableArchive(tables, days=1, bytes_max=1 << 30)
    archive.keep(Rows(Revision("another", answers[0].revision, 0), inventory(77)))
    status, found = replay("--archive", tables, write(tmp_path / "log", old))
    assert (status, found["differing"]) == (0, {})


def test_what_cannot_be_read_is_named(site: Site, tmp_path: Path) -> None:
    done = adctl("replay", str(tmp_path / "nothing"))
    assert (done.returncode, done.stderr) == (2, f"adctl replay: {tmp_path}/nothing: No such file or directory\n")
    done = adctl("replay", "--time-zone", "Mars/Olympus", str(site.logs["json"]))
    assert (done.returncode, done.stderr) == (2, "adctl replay: --time-zone: there is no zone 'Mars/Olympus'\n")
    done = adctl("replay", "--against", "x.json", "-")
    assert done.returncode == 2


# A moment in the past


@pytest.mark.parametrize("kind", [Impression, Unfilled])
def test_a_logged_answer_is_explained(site: Site, kind: type[Answer]) -> None:
    record = next(r for r in answers_of(site.logs["msgpack"]) if isinstance(r, kind) and r.placement != "nowhere")
    arguments = ("--archive", str(site.tables), "--log", *map(str, site.logs.values()), f"id={record.id}")
    told = adctl("explain", "--json", *arguments)
    assert told.returncode == 0, told.stderr
    explained = json.loads(told.stdout)
    assert (explained["placement"], explained["revision"]) == (record.placement, record.revision)
    assert (explained["id"], explained["time"]) == (record.id, record.time)
    against = {candidate["campaign"]: candidate.get("reasons", []) for candidate in explained["candidates"]}
    assert against.keys() == {"plain", "phones", "capped", "reached", "slow", "words", "early", "paused"}
    for name, reason in record.excluded.items():
        assert reason in against[name]
    if isinstance(record, Impression):
        assert explained["shown"] == {"campaign": record.campaign, "creative": record.creative}
        chances = {k: v for candidate in explained["candidates"] for k, v in candidate.get("creatives", {}).items()}
        assert chances[record.creative] == pytest.approx(record.chance)
    else:
        assert explained["shown"] is None
    as_text = adctl("explain", *arguments).stdout
    assert ("nothing was shown" in as_text) == (kind is Unfilled)


def test_an_answer_that_cannot_be_explained_says_why(site: Site, tmp_path: Path) -> None:
    log = str(site.logs["json"])
    record = answers_of(site.logs["json"])[0]
    for arguments, status, why in (
        (("--log", log), 2, "with --log say which answer"),
        (("--log", log, "id=0"), 1, "has the id 0"),
        (("--log", str(tmp_path / "none"), "id=0"), 2, "none: No such file"),
        (("--archive", str(tmp_path), "--log", log, f"id={record.id}"), 1, "has no revision"),
    ):
        told = adctl("explain", *arguments)
        assert (told.returncode, why in told.stderr) == (status, True), told.stderr
    forged = write(tmp_path / "forged", [msgspec.structs.replace(record, excluded={"x": "y"})])
    told = adctl("explain", "--archive", str(site.tables), "--log", str(forged), f"id={record.id}")
    assert (told.returncode, "makes no sense" in told.stderr) == (1, True)


# Shares and other weights


def drawn(weights: dict[str, int], count: int, folder: Path, ids: Iterator[str]) -> list[Impression]:
    """A log of one placement that an archive in `folder` knows, with these ids."""
    there = document(*(campaign(name, weight=weight) for name, weight in weights.items()))
    TableArchive(folder, days=1, bytes_max=1 << 30).keep(Rows(Revision("g", 1, 1), there))
    table = build_table(there, revision=1, generation="g")
    fields: dict[str, Any] = {
        "time": 1.8e9,
        "placement": "side",
        "revision": 1,
        "generation": "g",
        "host": "h",
        "device": "mobile",
        "os": "ios",
        "country": "JP",
        "ivt": False,
        "ip": "",
        "languages": (),
        "keywords": (),
        "key_values": (),
        "hour": 8,
        "weekday": 4,
        "user": "",
        "excluded": {},
    }
    records = []
    for _ in range(count):
        record = Impression(**fields, id=next(ids), campaign="", creative="", chance=0.0)
        past = past_of(record)
        decision = decide(table, "side", past.facts, past.moment, record.id)
        assert isinstance(decision, Decision)
        records.append(
            msgspec.structs.replace(
                record, campaign=decision.ad.campaign.id, creative=decision.ad.creative.id, chance=decision.chance
            )
        )
    return records


def random_ids(seed: int) -> Iterator[str]:
    draw = random.Random(seed)
    while True:
        yield f"{draw.getrandbits(128):032x}"


def test_shares_match_the_weights(tmp_path: Path) -> None:
    log = write(tmp_path / "log", drawn({"a": 1, "b": 2, "c": 7}, 5000, tmp_path / "tables", random_ids(1)))
    status, found = replay("--audit", "--archive", tmp_path / "tables", log)
    assert (status, found["audit"]["tests"], found["audit"]["failed"]) == (0, 1, [])


def test_ids_that_are_not_random_are_found_by_the_shares(tmp_path: Path) -> None:
    """As of a proxy that counts: each choice follows from its id, and yet the weights are not kept."""
    ids = (f"{number % 200:03x}{number:029x}" for number in range(5000))
    log = write(tmp_path / "log", drawn({"a": 1, "b": 2, "c": 7}, 5000, tmp_path / "tables", ids))
    status, found = replay("--audit", "--archive", tmp_path / "tables", log)
    assert (status, found["differing"]) == (1, {})
    (failed,) = found["audit"]["failed"]
    assert failed["p_adjusted"] < 1e-6
    assert failed["creatives"]["c-1"]["expected"] == pytest.approx(3500)
    told = adctl("replay", "--audit", "--archive", str(tmp_path / "tables"), str(log))
    assert "side: shares do not match the weights" in told.stdout


def rewarded(records: list[Impression], rates: dict[str, float], seed: int) -> list[AnyRecord]:
    draw = random.Random(seed)
    log: list[AnyRecord] = []
    for record in records:
        log.append(record)
        if draw.random() < rates[record.campaign]:
            names = ("time", "id", "placement", "revision", "host", "device", "os", "country", "ivt", "ip", "campaign")
            log.append(Click(**{name: getattr(record, name) for name in names}, creative=record.creative))
    return log


def test_other_weights_are_estimated(tmp_path: Path) -> None:
    """The estimate of what weights would earn holds against a log of those weights, with the same click rates."""
    rates = {"a": 0.2, "b": 0.02, "c": 0.05}
    then, other = {"a": 1, "b": 8, "c": 1}, {"a": 6, "b": 3, "c": 1}
    log = write(tmp_path / "log", rewarded(drawn(then, 8000, tmp_path / "tables", random_ids(2)), rates, 3))
    wanted = document(*(campaign(name, weight=weight) for name, weight in other.items()))
    (tmp_path / "other.json").write_text(json.dumps(wanted))
    status, found = replay("--against", tmp_path / "other.json", "--archive", tmp_path / "tables", log)
    assert status == 0
    against = found["against"]
    truth = 8000 * sum(rates[name] * weight / 10 for name, weight in other.items())
    assert against["other"]["rewards"]["low"] < truth < against["other"]["rewards"]["high"]
    assert against["other"]["rate"]["low"] < truth / 8000 < against["other"]["rate"]["high"]
    assert against["other"]["impressions"] == 8000
    assert against["campaigns"]["a"]["other"]["impressions"] == pytest.approx(4800)
    assert against["coverage"] == pytest.approx(1.0)
    assert 1000 < against["effective_sample_size"] < 4000
    assert against["then"]["rewards"] < against["other"]["rewards"]["low"]
    told = adctl("replay", "--against", str(tmp_path / "other.json"), "--archive", str(tmp_path / "tables"), str(log))
    assert "the log can speak of 100.0% of what the other would show" in told.stdout


def test_what_a_log_cannot_tell_is_said(tmp_path: Path) -> None:
    log = write(tmp_path / "log", drawn({"a": 1}, 100, tmp_path / "tables", random_ids(4)))
    (tmp_path / "other.json").write_text(json.dumps(document(campaign("a"), campaign("new", weight=3))))
    _, found = replay("--against", tmp_path / "other.json", "--archive", tmp_path / "tables", log)
    assert found["against"]["coverage"] == pytest.approx(0.25)
