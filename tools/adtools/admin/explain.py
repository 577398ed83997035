"""The page "Why is my ad not showing?": a described request, and what each campaign's chance or obstacles are.

Asks the running server that --control names, which knows what was delivered; without one it decides on the inventory.
Of an answer in the log it says the same as it was then, on the table that was served then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from io import BufferedIOBase
from pathlib import Path
from typing import Any, NamedTuple, cast, get_args

from django import forms
from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse

from adcore.control.explain import ExplainError
from adcore.core.adtable import AdTable, build_table
from adcore.core.calendar import Calendar
from adcore.core.inventory import DEVICES, OPERATING_SYSTEMS, Priority
from adcore.deliverylog.reader import open_found_log
from adcore.deliverylog.record import Answer
from adcore.errors import AdcoreError
from adcore.sources import Revision, open_store, sqlstore
from adtools.admin import deadline
from adtools.admin.admission import slow_work
from adtools.admin.forms import Moment, One, Words, named
from adtools.admin.models import Campaign, Placement
from adtools.control import ControlError
from adtools.explain import ask, explain_answer, explain_table, find_answer
from adtools.tables import Tables
from adtools.tail import family_of

# A search of the logs. Others wait for its turn, and nginx gives up after 60 s.
LOG_S_MAX = 10.0
# What stands against a campaign, for a person. {wanted} is what it targets, {given} what the request says.
TEXTS = {
    "paused": "It is paused.",
    "placement": "It is booked for {wanted}, and not for {given}.",
    "format": "The placement takes none of its creatives' formats.",
    "size": "None of its creatives has the placement's size.",
    "not_started": "It starts at {starts_at}.",
    "ended": "It ended at {ends_at}.",
    "device": "It is for {wanted}; the request's device: {given}.",
    "os": "It is for {wanted}; the request's system: {given}.",
    "country": "It is for {wanted}; the request's country: {given}.",
    "language": "It is for readers of {wanted}; the visitor's languages: {given}.",
    "keyword_missing": "It needs one of the keywords {wanted}; the page's: {given}.",
    "keyword_excluded": "It avoids pages with {wanted}; the page's keywords: {given}.",
    "key_value": "It needs {wanted}; the page's: {given}.",
    "hour": "It runs in the hours {wanted} only.",
    "weekday": "It runs on other days of the week only.",
    "goal_reached": "Its goal is reached.",
    "daily_cap": "It had all that its daily cap allows today.",
    "ahead_of_schedule": "It is ahead of its schedule and waits; its pacing is even.",
    "frequency_cap": "This visitor has seen it as often as its frequency cap allows.",
    "already_on_page": "It is on this page already.",
    "lower_priority": "A campaign of a higher priority is eligible, and goes first.",
    "others_behind": "A campaign of its priority is behind its schedule, and goes first.",
    "behind_schedule": "It is behind its schedule, and goes before the others of its priority.",
    "lost_draw": "It was eligible, and another one was drawn.",
}
# The field of the targeting and that of the request that a reason is about.
ABOUT = {
    "placement": ("placements", "placement"),
    "device": ("devices", "device"),
    "os": ("os", "os"),
    "country": ("countries", "country"),
    "language": ("languages", "languages"),
    "keyword_missing": ("keywords_any", "keywords"),
    "keyword_excluded": ("keywords_none", "keywords"),
    "key_value": ("key_values", "key_values"),
    "hour": ("hours", "time"),
}
NO_CANDIDATE = {
    "unknown_placement": "There is no such placement.",
    "no_campaigns": "No campaign can be shown there.",
    "page_limit": "The slots before it took what one request may take.",
}


class ExplainForm(forms.Form):
    placement = One("Placement", [])
    device = One("Device", [("", "unknown"), *named(DEVICES)])
    os = One("Operating system", [("", "unknown"), *named(OPERATING_SYSTEMS)])
    country = Words("Country", "JP", maxlength="2")
    languages = Words("Languages", "As browsers send them: ja, en")
    keywords = Words("Keywords of the page", "Separated by commas.")
    key_values = Words("Key-values of the page", "A line each: section = manga", lines=2)
    user = Words("Visitor's key", "Whose frequency caps to apply.")
    time = Moment("Time", "Empty: now.")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["placement"].widget.choices = [
            (placement.id, f"{placement.id} ({placement.width} × {placement.height})")
            for placement in Placement.objects.all()
        ]
        self.fields["time"].help_text += f" Clocks of {settings.ADCORE.time_zone.key}."

    def clean_placement(self) -> str:
        placement = str(self.cleaned_data["placement"])
        if "," in placement:  # /explain takes several, and the page shows one
            raise forms.ValidationError("The page explains one placement at a time.")
        return placement

    def pairs(self) -> list[tuple[str, str]]:
        """The request as /explain takes it."""
        given = self.cleaned_data
        pairs = [(name, given[name]) for name in self.fields if name != "key_values" and given[name]]
        for line in filter(None, map(str.strip, given["key_values"].splitlines())):
            name, _, value = line.partition("=")
            pairs.append((f"kv.{name.strip()}", value.strip()))
        return pairs


class PastForm(forms.Form):
    impression = forms.CharField(
        label="Impression id", help_text="As in the log, and in place of {click_id} in landing URLs."
    )


class Row(NamedTuple):
    """One campaign's answer."""

    campaign: str
    name: str
    chance: float
    """In percent."""
    creatives: list[tuple[str, float]]
    reasons: list[tuple[str, str]]
    """Each by its name in the logs, and for a person."""
    wanted: bool
    """It is the one that the person asks about."""


def explain_view(request: HttpRequest, context: dict[str, Any]) -> HttpResponse:
    """The forms, and the answer if one was asked for. `?campaign=ID` marks one campaign in it."""
    if not ("placement" in request.GET or "impression" in request.GET):
        return _page(request, context)
    with slow_work.turn():
        return _page(request, context).render()


def _page(request: HttpRequest, context: dict[str, Any]) -> TemplateResponse:
    asked, asked_past = "placement" in request.GET, "impression" in request.GET
    form = ExplainForm(request.GET if asked else None, initial={"device": "desktop"})
    past_form = PastForm(request.GET if asked_past else None)
    campaign = request.GET.get("campaign", "")
    answer: dict[str, Any] = {}
    if asked and form.is_valid():
        try:
            answer = explanation(form.pairs(), form.cleaned_data, campaign)
        except (ExplainError, AdcoreError) as error:
            form.add_error(None, str(error))
    elif asked_past and past_form.is_valid():
        try:
            answer = past_explanation(past_form.cleaned_data["impression"], campaign)
        except AdcoreError as error:
            past_form.add_error("impression", str(error))
    return TemplateResponse(
        request,
        "adtools/explain.html",
        {
            **context,
            "title": "Why is my ad not showing?",
            "form": form,
            "past_form": past_form,
            "campaign": campaign,
            **answer,
        },
    )


def explanation(pairs: list[tuple[str, str]], described: Mapping[str, str], wanted: str) -> dict[str, Any]:
    """What the page shows of the answer. Raises ExplainError, and AdcoreError when nobody answers."""
    options = settings.ADCORE
    unanswered = ""
    if options.control is not None:
        try:
            (found,) = ask(options.control, pairs)
        except ControlError as error:
            unanswered = f"{error}."
    else:
        unanswered = "This admin knows no running server (--control)."
    if unanswered:
        (found,) = explain_table(inventory_table(options.source), Calendar(options.time_zone), pairs)
    documents = {campaign.id: sqlstore.campaign_object(campaign.row(), []) for campaign in Campaign.objects.all()}
    return {"unanswered": unanswered, **_by_tier(found, documents, described, wanted)}


class _Kept(NamedTuple):
    source: str
    revision: Revision
    table: AdTable


_kept: _Kept | None = None
"""The table of the newest revision that was asked about. Read and replaced within a turn of the slow work alone."""


def inventory_table(source: str) -> AdTable:
    """The inventory of the store; loaded again only when its revision is another one."""
    global _kept
    store = open_store(source)
    try:
        if _kept is not None and (_kept.source, _kept.revision) == (source, store.revision()):
            return _kept.table
        # Not beside the next one: with 100,000 creatives each has some 100 MiB.
        _kept = None
        rows = store.load()
    finally:
        store.close()
    _kept = _Kept(source, rows.revision, build_table(rows.document, revision=rows.revision.number))
    return _kept.table


def past_explanation(impression_id: str, wanted: str) -> dict[str, Any]:
    """What the page shows of a logged answer. Raises AdcoreError when it, its log or its table is not there."""
    options = settings.ADCORE
    record = logged_answer(options.logs, impression_id)
    tables = Tables(options.archive)
    found = explain_answer(record, tables)
    # Campaigns as they were: the store has them as they are. Of two tables with one number it is open which one it was.
    documents = tables.archive.load((record.generation, record.revision))
    campaigns = {one["id"]: one for one in documents[0]["campaigns"]} if len(documents) == 1 else {}
    return {
        "past": Calendar(options.time_zone).local(record.time),
        **_by_tier(found, campaigns, described_by(record), wanted),
    }


def logged_answer(logs: Sequence[Path], impression_id: str) -> Answer:
    """The answer of this id in these logs or the rotated ones beside them. Raises AdcoreError."""
    ends = deadline.now() + deadline.remaining_s(LOG_S_MAX)
    files = {path: None for log in logs for path in sorted(log.parent.glob("*")) if family_of(log).fullmatch(path.name)}
    names = ", ".join(map(str, logs))
    if not files:
        raise AdcoreError(f"There is no log {names}: see --log.")
    for path in files:
        try:
            with closing(TimedFile(open_found_log(path), ends)) as file:
                record = find_answer(cast("BufferedIOBase", file), impression_id)
        except FileNotFoundError:
            # Rotated away just now.
            continue
        except OSError as error:
            raise AdcoreError(f"The log {path} cannot be read: {error}") from None
        if record is not None:
            return record
    raise AdcoreError(f"No impression and no unfilled record of {names} has the id {impression_id}.")


class TimedFile:
    """A log that can be read until a moment. Whole records or damage: what is read takes the time."""

    def __init__(self, file: BufferedIOBase, ends_monotonic: float) -> None:
        self._file, self._ends_monotonic = file, ends_monotonic

    def read1(self, size: int) -> bytes:
        """Raises AdcoreError when the time is over."""
        if deadline.now() > self._ends_monotonic:
            raise AdcoreError(
                f"The logs are too large to be searched in {LOG_S_MAX:g} s, which is all that a page takes: on the "
                "host, adctl explain --log FILE id=ID searches them to their end."
            )
        return self._file.read1(size)

    def close(self) -> None:
        self._file.close()


def described_by(record: Answer) -> dict[str, str]:
    """A logged request in the words of the form."""
    return {
        "placement": record.placement,
        "device": record.device,
        "os": record.os,
        "country": record.country,
        "languages": ", ".join(record.languages),
        "keywords": ", ".join(record.keywords),
        "key_values": "; ".join(f"{name} = {value}" for name, value in record.key_values),
    }


def _by_tier(
    found: Mapping[str, Any], documents: Mapping[str, Mapping[str, Any]], described: Mapping[str, str], wanted: str
) -> dict[str, Any]:
    rows: dict[str, list[Row]] = {tier: [] for tier in get_args(Priority)}
    for candidate in found["candidates"]:
        rows[candidate["priority"]].append(_row(candidate, documents.get(candidate["campaign"], {}), described, wanted))
    return {
        "found": found,
        "no_ad": NO_CANDIDATE.get(found["reason"] or "", "No campaign is eligible."),
        "tiers": [
            (tier, sorted(tier_rows, key=lambda row: -row.chance)) for tier, tier_rows in rows.items() if tier_rows
        ],
    }


def _row(candidate: Mapping[str, Any], document: Mapping[str, Any], described: Mapping[str, str], wanted: str) -> Row:
    return Row(
        candidate["campaign"],
        candidate["name"],
        round(100 * candidate.get("chance", 0.0), 2),
        [(creative, round(100 * share, 2)) for creative, share in candidate.get("creatives", {}).items()],
        [(reason, reason_text(reason, document, described)) for reason in candidate.get("reasons", ())],
        candidate["campaign"] == wanted,
    )


def reason_text(reason: str, document: Mapping[str, Any], described: Mapping[str, str]) -> str:
    """One reason in words, with what the campaign wants and what the request is. A new reason is shown by its name."""
    targeting, given = ABOUT.get(reason, ("", ""))
    return TEXTS.get(reason, reason).format(
        wanted=_listed(document.get("targeting", {}).get(targeting)) or "something else",
        given=described.get(given) or "none that it tells",
        starts_at=document.get("starts_at"),
        ends_at=document.get("ends_at"),
    )


def _listed(value: Any) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{name} = {' or '.join(map(str, values))}" for name, values in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else ""
