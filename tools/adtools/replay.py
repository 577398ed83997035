"""`adctl replay`: decide a delivery log again, and say where it is not what the tables of that time give.

Every impression and unfilled record is decided again on the table that its server served, which servers keep in
--archive-dir. The ad, its chance, the reasons and the campaigns held back must all come out the same.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from adcore.config import load_config
from adcore.core.adtable import AdTable, build_table
from adcore.core.calendar import Calendar
from adcore.core.decision import Eligible, draw
from adcore.core.hindsight import decide_again
from adcore.core.inventory import parse_inventory, to_document
from adcore.deliverylog.reader import Damage, read_records
from adcore.deliverylog.record import Answer, AnyRecord, Click, Impression, Unfilled, View, type_of
from adcore.errors import ConfigError
from adtools import audit, weighting
from adtools.inventory import read_document
from adtools.log import open_with_progress, time_text
from adtools.tables import Tables, past_of

REWARDS: dict[str, type[AnyRecord]] = {"click": Click, "view": View}

EPILOG = """\
examples:
  adctl replay /var/lib/adcore/delivery.log*          both forms, renamed and .gz files too
  adctl replay --archive /srv/tables day.log.gz       logs of many hosts: copy their folders into one
  adctl replay --audit delivery.log*                  and do the shares match the weights (chi-square)
  adctl replay --against other.json delivery.log*     and what would this inventory have earned

Exit status: 0 nothing differs, 1 something does (a record, a table that is missing or was changed, damage, a share), 2
the command line or a file is wrong.
"""


class Difference(NamedTuple):
    """A record that does not come out again: in which of its fields, or why it could not be decided."""

    file: str
    id: str
    time: float
    placement: str
    what: str
    logged: object = None
    decided: object = None


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "replay",
        help="decide a log again and report any difference",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--archive", type=Path, metavar="DIR", help="where the tables are (default: the server's)")
    parser.add_argument("--time-zone", metavar="NAME", help="the site's: hours and weekdays of records are checked too")
    parser.add_argument("--show", type=int, default=20, metavar="N", help="differences to print (default: 20)")
    parser.add_argument("--audit", action="store_true", help="test whether shares match the weights")
    parser.add_argument("--against", metavar="INVENTORY", help="estimate what this inventory (JSON) would have earned")
    parser.add_argument(
        "--reward", choices=sorted(REWARDS), default="click", help="what --against counts (default: click)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    parser.add_argument("files", nargs="+", metavar="FILE", help="a delivery log; - is standard input")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print what differs; the exit status."""
    try:
        calendar = Calendar(ZoneInfo(args.time_zone)) if args.time_zone else None
    except (KeyError, ValueError):
        raise ConfigError(f"--time-zone: there is no zone {args.time_zone!r}") from None
    replay = Replay(Tables(args.archive or load_config().archive_dir), calendar, args.show)
    if args.audit:
        replay.audit = audit.Audit()
    try:
        if args.against is not None:
            inventory = parse_inventory(read_document(args.against))
            replay.other = build_table(to_document(inventory), revision=0)
            replay.rewarded = _rewarded(args.files, REWARDS[args.reward])
        for name in args.files:
            for record in _records(name, replay.note_damage):
                replay.add(name, record)
    except OSError as error:
        print(f"adctl replay: {error.filename}: {error.strerror or error}", file=sys.stderr)
        return 2
    verdicts = replay.audit.verdicts() if replay.audit is not None else []
    failed = bool(replay.differing or replay.damaged or any(verdict.failed for verdict in verdicts))
    if args.json:
        print(json.dumps(as_object(replay, verdicts), indent=2))
    else:
        print("\n".join(as_lines(replay, verdicts, args.reward)))
    return int(failed)


class Replay:
    """Decides records again; with `audit`, `other` and `rewarded` set, counts for those as well."""

    def __init__(self, tables: Tables, calendar: Calendar | None, differences_max: int) -> None:
        self._tables = tables
        self._calendar = calendar
        self._differences_max = differences_max
        self.decided = 0
        self.passed_over = 0
        """Views and clicks."""
        self.damaged: list[tuple[str, Damage]] = []
        self.differing: Counter[str] = Counter()
        self.differences: list[Difference] = []
        self.audit: audit.Audit | None = None
        self.weighting = weighting.Weighting()
        self.other: AdTable | None = None
        self.rewarded: set[str] = set()

    def note_damage(self, name: str, damage: Damage) -> None:
        self.damaged.append((name, damage))

    def add(self, name: str, record: AnyRecord) -> None:
        if not isinstance(record, Answer):
            self.passed_over += 1
            return
        self.decided += 1
        tables, missing = self._tables.of(record)
        if missing:
            self._note(name, record, "table", record.revision, missing)
            return
        problems: list[tuple[str, object, object]] = []
        try:
            for table in tables:
                eligible = decide_again(table, past_of(record))
                problems = compare(record, eligible)
                if not problems:
                    break
        except ValueError as error:
            # Of an id that is no number, or a reason that there is not.
            problems = [("record", str(error), None)]
            eligible = None
        if self._calendar is not None:
            problems += self._compare_time(self._calendar, record)
        for what, logged, decided in problems:
            self._note(name, record, what, logged, decided)
        if not problems and eligible is not None:
            self._count(record, eligible)

    def _count(self, record: Answer, eligible: Eligible) -> None:
        """For the audit and the estimate, what was found to be true."""
        if self.audit is not None and isinstance(record, Impression):
            assert eligible.drawing is not None
            self.audit.add(record.placement, eligible.drawing, record.creative)
        if self.other is not None and not record.ivt:
            other = decide_again(self.other, past_of(record)).drawing
            if isinstance(record, Impression):
                assert eligible.drawing is not None
                rewarded = record.id in self.rewarded
                shown = record.campaign, record.creative, record.chance
                self.weighting.add_impression(eligible.drawing, other, *shown, rewarded)
            else:
                self.weighting.add_unfilled(other)

    def _compare_time(self, calendar: Calendar, record: Answer) -> list[tuple[str, object, object]]:
        moment = calendar.moment(record.time)
        pairs = (("hour", record.hour, moment.hour), ("weekday", record.weekday, moment.weekday))
        return [pair for pair in pairs if pair[1] != pair[2]]

    def _note(self, name: str, record: Answer, what: str, logged: object, decided: object) -> None:
        self.differing[what] += 1
        if len(self.differences) < self._differences_max:
            self.differences.append(Difference(name, record.id, record.time, record.placement, what, logged, decided))


def compare(record: Answer, eligible: Eligible) -> list[tuple[str, object, object]]:
    """(field, what the record says, what is decided now) of what differs. ValueError for an id that is no number."""
    problems: list[tuple[str, object, object]] = []

    def check(what: str, logged: object, decided: object) -> None:
        if logged != decided:
            problems.append((what, logged, decided))

    drawing = eligible.drawing
    match record:
        case Impression():
            if drawing is None:
                check("type", type_of(record), "unfilled")
            else:
                ad, chance = drawing.pick(draw(record.id))
                check("campaign", record.campaign, ad.campaign.id)
                check("creative", record.creative, ad.creative.id)
                check("chance", record.chance, chance)
        case Unfilled():
            if drawing is not None:
                check("type", type_of(record), "impression")
            else:
                refusal = eligible.refuse()
                check("reason", record.reason, refusal.reason)
                check("reasons", record.reasons, dict(refusal.dropped))
    if record.excluded != eligible.excluded:
        check("excluded", record.excluded, eligible.excluded)
    return problems


def _records(name: str, note_damage: Any) -> Iterator[AnyRecord]:
    """A file's records. Raises OSError."""
    with closing(open_with_progress(name)) as file:
        for item in read_records(file):
            if isinstance(item, Damage):
                note_damage(name, item)
            else:
                yield item


def _rewarded(names: list[str], kind: type[AnyRecord]) -> set[str]:
    """The ids of impressions that were clicked (or seen), bots' apart."""
    if "-" in names:
        raise ConfigError("--against reads the files twice, so none of them can be standard input")
    return {
        record.id
        for name in names
        for record in _records(name, lambda name, damage: None)
        if isinstance(record, kind) and not record.ivt
    }


# What is printed


def as_object(replay: Replay, verdicts: list[audit.Verdict]) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "decided": replay.decided,
        "other_records": replay.passed_over,
        "differing": dict(replay.differing),
        "differences": [difference._asdict() for difference in replay.differences],
        "damage": [{"file": name, **damage._asdict()} for name, damage in replay.damaged],
    }
    if replay.audit is not None:
        answer["audit"] = {
            "choices": replay.audit.choices(),
            "tests": len(verdicts),
            "failed": [_verdict_object(verdict) for verdict in verdicts if verdict.failed],
            "least_p_adjusted": verdicts[0].p_adjusted if verdicts else None,
        }
    if replay.other is not None:
        found = replay.weighting
        answer["against"] = {
            "requests": found.requests,
            "then": {"impressions": found.impressions_then, "rewards": found.rewards_then},
            "other": {
                "impressions": found.impressions,
                "rewards": found.rewards()._asdict(),
                "rate": found.rate()._asdict(),
            },
            "coverage": found.coverage,
            "effective_sample_size": found.sample_size,
            "campaigns": {
                name: {
                    "then": {"impressions": there.impressions_then, "rewards": there.rewards_then},
                    "other": {
                        "impressions": there.impressions,
                        "rewards": there.rewarded.total(found.requests)._asdict(),
                    },
                }
                for name, there in sorted(found.campaigns.items())
            },
        }
    return answer


def _verdict_object(verdict: audit.Verdict) -> dict[str, Any]:
    total = sum(verdict.shown.values())
    return {
        "placement": verdict.choice.placement,
        "chi_square": verdict.chi_square,
        "degrees": verdict.degrees,
        "p_value": verdict.p_value,
        "p_adjusted": verdict.p_adjusted,
        "creatives": {
            creative: {"shown": verdict.shown[creative], "expected": chance * total}
            for creative, chance in verdict.choice.chances
        },
    }


def as_lines(replay: Replay, verdicts: list[audit.Verdict], reward: str) -> Iterator[str]:
    for name, damage in replay.damaged:
        yield f"{name}: {damage.length} bytes at {damage.offset} are no record: {damage.reason}"
    for one in replay.differences:
        yield f"{one.file}: {time_text(one.time)} {one.id} {one.placement}: {_what(one)}"
    differing = sum(replay.differing.values())
    if differing > len(replay.differences):
        yield f"… and {differing - len(replay.differences)} more; see --show"
    by_field = "".join(f", {what} {count}" for what, count in replay.differing.most_common())
    yield f"{replay.decided} decisions made again, {differing} differences{by_field}"
    if replay.audit is not None:
        yield from _audit_lines(replay.audit, verdicts)
    if replay.other is not None:
        yield from _weighting_lines(replay.weighting, reward)


def _what(difference: Difference) -> str:
    if difference.what == "table":
        return str(difference.decided)
    if difference.what == "record":
        return f"the record makes no sense: {difference.logged}"
    as_json = {
        name: json.dumps(value) for name, value in (("logged", difference.logged), ("decided", difference.decided))
    }
    return f"{difference.what} is {as_json['logged']} in the log and {as_json['decided']} decided again"


def _audit_lines(counted: audit.Audit, verdicts: list[audit.Verdict]) -> Iterator[str]:
    failed = [verdict for verdict in verdicts if verdict.failed]
    for verdict in failed:
        total = sum(verdict.shown.values())
        yield (
            f"{verdict.choice.placement}: shares do not match the weights: chi-square {verdict.chi_square:.1f} with "
            f"{verdict.degrees} degrees of freedom, adjusted p {verdict.p_adjusted:.2g}"
        )
        for creative, chance in verdict.choice.chances:
            yield f"  {creative}: {verdict.shown[creative]} shown, {chance * total:.1f} expected"
    least = f"; the least adjusted p is {verdicts[0].p_adjusted:.2g}" if verdicts else ""
    yield (
        f"shares: {len(verdicts)} of {counted.choices()} choices were made often enough to test, {len(failed)} do not "
        f"match their weights{least}"
    )


def _weighting_lines(found: weighting.Weighting, reward: str) -> Iterator[str]:
    width = max([len("campaign"), *map(len, found.campaigns)])
    yield f"{'campaign':<{width}}  {'impressions':>11}  {'other':>11}  {reward + 's':>7}  {'other (95 %)':>25}"
    for name, there in sorted(found.campaigns.items()):
        yield (
            f"{name:<{width}}  {there.impressions_then:>11}  {there.impressions:>11.0f}  {there.rewards_then:>7}  "
            f"{_interval_text(there.rewarded.total(found.requests)):>25}"
        )
    yield (
        f"{'in all':<{width}}  {found.impressions_then:>11}  {found.impressions:>11.0f}  {found.rewards_then:>7}  "
        f"{_interval_text(found.rewards()):>25}"
    )
    rate = found.rate()
    then = found.rewards_then / found.impressions_then if found.impressions_then else 0.0
    interval = f"{rate.value:.4%} ({rate.low:.4%} to {rate.high:.4%})"
    yield f"{reward}s per impression: {then:.4%} then, {interval} with the other"
    yield (
        f"{found.requests} requests; the log can speak of {found.coverage:.1%} of what the other would show; effective "
        f"sample size {found.sample_size:.0f} impressions"
    )


def _interval_text(estimate: weighting.Estimate) -> str:
    return f"{estimate.value:.1f} ({estimate.low:.1f} to {estimate.high:.1f})"
