"""A campaign as the fields of a form, and as the document that `adctl apply` takes: both ways.

The form judges nothing. What a person wrote becomes the document as it is, adcore.core.inventory checks that, and each
problem finds its way back to the field that it is about, so that the rules stand in one place. Knows nothing of Django.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from adcore.core.inventory import Campaign, Placement, check_inventory
from adtools.inventory import without_repeats

Fields = Mapping[str, Any]
"""What a form holds, by field: text as a person wrote it, and lists of texts where they chose among boxes."""

# The units that a frequency cap's time may be given in, the largest first, in seconds.
UNITS_S = {86_400: "days", 3600: "hours", 60: "minutes", 1: "seconds"}

_CHOSEN = ("placements", "devices", "os", "hours", "weekdays")
_NUMBERED = ("hours", "weekdays")
_LISTED = ("countries", "languages", "keywords_any", "keywords_none")
TARGETING = (*_CHOSEN, *_LISTED, "key_values")


class Fault(NamedTuple):
    """What is wrong, and at which field: of the campaign, or of its creative at this position."""

    creative: int | None
    field: str
    message: str


def check_campaign(
    placements: Iterable[Mapping[str, Any]], campaign: Mapping[str, Any]
) -> tuple[Campaign | None, list[Fault]]:
    """The campaign of a document among these placements, or every fault in it."""
    inventory, problems = check_inventory({"placements": list(placements), "campaigns": [campaign]})
    faults = [_fault(problem.path, problem.message, campaign) for problem in problems if "campaigns" in problem.path]
    return (inventory.campaigns[0] if inventory.campaigns and not faults else None), faults


def check_placement(document: Mapping[str, Any]) -> tuple[Placement | None, list[Fault]]:
    """The placement of a document, or every fault in it."""
    inventory, problems = check_inventory({"placements": [document], "campaigns": []})
    faults = [Fault(None, _steps(problem.path)[2], _sentence(problem.message)) for problem in problems]
    return (inventory.placements[0] if not faults else None), faults


# From the fields to the document


def campaign_document(fields: Fields, creatives: list[dict[str, Any]], zone: ZoneInfo) -> dict[str, Any]:
    """The document that a campaign's fields describe; times without an offset are those of `zone`."""
    return {
        **{name: fields[name] for name in ("id", "name", "advertiser", "priority", "status", "pacing")},
        "optimize": fields["optimize"] or None,
        "weight": _number(fields["weight"]),
        "starts_at": _instant(fields["starts_at"], zone),
        "ends_at": _instant(fields["ends_at"], zone),
        "goal": _limits(fields, "goal"),
        "daily_cap": _limits(fields, "daily_cap"),
        "frequency_cap": _frequency_cap(fields),
        "targeting": {
            **{name: list(fields[name]) for name in _CHOSEN},
            **{name: [_number(item) for item in fields[name]] for name in _NUMBERED},
            **{name: _listed(fields[name]) for name in _LISTED},
            "key_values": _key_values(fields["key_values"]),
        },
        "creatives": creatives,
    }


def creative_document(fields: Fields) -> dict[str, Any]:
    """The document that a creative's fields describe."""
    return {
        **{name: fields[name] for name in ("id", "format", "alt")},
        **{name: fields[name] or None for name in ("image_url", "html", "landing_url")},
        "placement_size": size_of(fields["size"]) or fields["size"] or None,
        "weight": _number(fields["weight"]),
        "data": _data(fields),
    }


def placement_document(fields: Fields) -> dict[str, Any]:
    """The document that a placement's fields describe."""
    return {
        "id": fields["id"],
        "width": _number(fields["width"]),
        "height": _number(fields["height"]),
        "formats": list(fields["formats"]),
    }


def _number(text: str) -> Any:
    """A number if it is written as one; else the text, which the check will refuse."""
    return int(text) if re.fullmatch(r"-?[0-9]{1,30}", text) else (text or None)


def _instant(text: str, zone: ZoneInfo) -> str | None:
    if not text:
        return None
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        return text
    return (instant if instant.tzinfo else instant.replace(tzinfo=zone)).isoformat()


def _limits(fields: Fields, group: str) -> dict[str, Any] | None:
    limits = {name: _number(fields[f"{group}_{name}"]) for name in ("impressions", "clicks")}
    return {name: value for name, value in limits.items() if value is not None} or None


def _frequency_cap(fields: Fields) -> dict[str, Any] | None:
    impressions, period = _number(fields["frequency_cap_impressions"]), _number(fields["frequency_cap_period"])
    if impressions is None and period is None:
        return None
    unit = next((unit for unit in UNITS_S if str(unit) == fields["frequency_cap_unit"]), None)
    seconds = (
        period * unit if isinstance(period, int) and unit is not None else (fields["frequency_cap_period"] or None)
    )
    given = {"impressions": impressions, "seconds": seconds}
    return {name: value for name, value in given.items() if value is not None}


def _listed(text: str) -> list[str]:
    """The items of a list that a person wrote, separated by commas or line ends."""
    return [item for item in (item.strip() for item in re.split(r"[,\n]", text)) if item]


def _key_values(text: str) -> Any:
    """`NAME = VALUE, VALUE`, a name a line; the text itself when it is not of this form."""
    found: dict[str, list[str]] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        name, equals, values = line.partition("=")
        if not equals or not _listed(values):
            return line
        found.setdefault(name.strip(), []).extend(_listed(values))
    return found


def size_of(text: str) -> list[int] | None:
    """`300x250` as width and height; None for what is not of this form."""
    found = re.fullmatch(r"([0-9]{1,6})x([0-9]{1,6})", text)
    return [int(found[1]), int(found[2])] if found else None


def _data(fields: Fields) -> Any:
    if fields["format"] == "text":
        words = {name: fields[name] for name in ("title", "text") if fields[name]}
        return words or None
    if not fields["data"].strip():
        return None
    try:
        return json.loads(fields["data"], object_pairs_hook=without_repeats)
    except (ValueError, RecursionError):
        return fields["data"]


# From the document to the fields. It may come from rows that other hands wrote: anything may be in it.


def campaign_fields(document: Mapping[str, Any], zone: ZoneInfo) -> dict[str, Any]:
    """The fields that show a campaign."""
    targeting, cap = _object(document["targeting"]), _object(document["frequency_cap"])
    seconds = cap.get("seconds")
    unit = next((unit for unit in UNITS_S if isinstance(seconds, int) and seconds % unit == 0), 1)
    return {
        **{name: document[name] for name in ("id", "name", "advertiser", "priority", "status", "pacing")},
        "optimize": _text(document["optimize"]),
        "weight": _text(document["weight"]),
        "starts_at": _local(document["starts_at"], zone),
        "ends_at": _local(document["ends_at"], zone),
        **{
            f"{group}_{name}": _text(_object(document[group]).get(name))
            for group in ("goal", "daily_cap")
            for name in ("impressions", "clicks")
        },
        "frequency_cap_impressions": _text(cap.get("impressions")),
        "frequency_cap_period": _text(seconds // unit if isinstance(seconds, int) else seconds),
        "frequency_cap_unit": str(unit),
        **{name: [_text(item) for item in _list(targeting.get(name))] for name in _CHOSEN},
        **{name: ", ".join(map(_text, _list(targeting.get(name)))) for name in _LISTED},
        "key_values": "\n".join(
            f"{name} = {', '.join(map(_text, _list(values)))}"
            for name, values in _object(targeting.get("key_values")).items()
        ),
    }


def creative_fields(document: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that show a creative."""
    data = document["data"]
    is_text = document["format"] == "text"
    words = _object(data) if is_text else {}
    width, height = document["placement_size"]
    return {
        **{name: _text(document[name]) for name in ("id", "format", "weight", "image_url", "alt", "html")},
        "landing_url": _text(document["landing_url"]),
        "size": f"{width}x{height}",
        "title": _text(words.get("title")),
        "text": _text(words.get("text")),
        "data": "" if is_text or data is None else json.dumps(data, indent=2, ensure_ascii=False),
    }


def _object(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def listed(value: object) -> str:
    """A list as a person reads it; what is none, as it is."""
    return ", ".join(map(_text, value)) if isinstance(value, list) else _text(value)


def _text(value: object) -> str:
    return "" if value is None else str(value)


def _local(text: Any, zone: ZoneInfo) -> str:
    """A moment as the clocks of `zone` show it, as `<input type="datetime-local">` wants it."""
    try:
        local = datetime.fromisoformat(text).astimezone(zone).replace(tzinfo=None)
    except (ValueError, TypeError, OverflowError):
        return _text(text)
    return local.isoformat(timespec="seconds" if local.second or local.microsecond else "minutes")


# From the path of a problem to the field


def _fault(path: str, message: str, campaign: Mapping[str, Any]) -> Fault:
    steps = _steps(path)
    if steps[2:3] == ["creatives"] and len(steps) > 3:
        position = int(steps[3])
        return Fault(position, _creative_field(steps[4:], campaign["creatives"][position]), _sentence(message))
    return Fault(None, _campaign_field(steps[2:]), _sentence(message))


def _steps(path: str) -> list[str]:
    """`$.campaigns[0].goal` -> campaigns, 0, goal. Steps that are quoted names are never a field's."""
    return re.findall(r"\w+", path.removeprefix("$"))


def _campaign_field(steps: list[str]) -> str:
    match steps:
        case ["targeting", name, *_]:
            return name
        case ["frequency_cap", "seconds", *_]:
            return "frequency_cap_period"
        case [("goal" | "daily_cap" | "frequency_cap") as group, *rest]:
            return f"{group}_{rest[0] if rest else 'impressions'}"
        case [name, *_]:
            return name
    return ""


def _creative_field(steps: list[str], creative: Mapping[str, Any]) -> str:
    match steps:
        case ["placement_size", *_]:
            return "size"
        case ["data", *rest] if creative["format"] == "text":
            return "title" if rest[:1] == ["title"] else "text"
        case [name, *_]:
            return name
    return ""


def _sentence(message: str) -> str:
    """A problem's text where the field stands beside it."""
    message = re.sub(
        r"\$\.campaigns\[\d+\]\.creatives\[(\d+)\]", lambda found: f"creative {int(found[1]) + 1}", message
    )
    return message[:1].upper() + message[1:] + "."


# What changed


def changes(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> list[str]:
    """How two documents of one thing differ, a line a field: `weight: 10 → 20`. None: it was, or is, not there."""
    had, has = (dict(_flat(document or {}, "")) for document in (before, after))
    return [
        f"{_shown(name)}: {_shown(had.get(name))} → {_shown(has.get(name))}"
        for name in dict.fromkeys((*had, *has))
        if had.get(name) != has.get(name)
    ]


def _flat(value: object, prefix: str, name: str = "") -> Iterable[tuple[str, object]]:
    """The leaves of a document by their names: objects and creatives are walked into, other lists are leaves."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if key == "creatives":
                for creative in item:
                    yield from _flat(creative, f"creative {creative['id']}, ")
            else:
                yield from _flat(item, prefix, f"{name}.{key}" if name else key)
    elif value not in (None, "", [], {}):
        yield prefix + name, value


def _shown(value: object) -> str:
    if value is None:
        return "nothing"
    text = json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value
    return text if len(text) <= 200 else text[:200] + "…"


def in_parts(text: str, chars: int) -> list[str]:
    """The lines of a text in parts of at most `chars` characters each, but for a longer line; at least one part."""
    parts: list[list[str]] = [[]]
    length = 0
    for line in text.split("\n"):
        if parts[-1] and length + len(line) >= chars:
            parts.append([])
            length = 0
        parts[-1].append(line)
        length += len(line) + 1
    return ["\n".join(lines) for lines in parts]
