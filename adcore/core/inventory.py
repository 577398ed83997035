"""The inventory: placements, campaigns and creatives, from JSON to validated, frozen rows and back.

A *document* is the JSON form as plain objects. `check_inventory` leaves bad rows out and names every error in
every row by its JSON path: the types below say what a field may hold, `_Row` reads one object field by field,
and the `_check_*` functions add the rules that no single field can hold.

Must not know where documents come from (files, SQL, memcached) or what a table looks like.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from difflib import get_close_matches
from functools import cache
from itertools import chain
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, get_args, get_origin
from urllib.parse import quote

import msgspec
from msgspec import Meta

from adcore.errors import AdcoreError

# Eight times what ad networks allow for a whole creative; a page waits for it.
HTML_BYTES_MAX = 256 * 1024
# A native ad is a handful of short texts and URLs; it is copied into every decision that shows it.
DATA_BYTES_MAX = 64 * 1024
DATA_DEPTH_MAX = 16
# The largest integer that a browser reads as the same number.
JSON_INTEGER_MAX = 2**53 - 1
HOURS_OF_WEEK = 168
# A person keeps such a list by hand; longer ones are better told as key-values by the page.
TARGETS_MAX = 1000
# Of a keyword, and of the name and the value of a key-value: pages send them in a URL of at most 8 KiB.
WORD_CHARS_MAX = 128
# Four characters are the most that normal form makes one of (Unicode Standard Annex 15, table 8).
WORD_WRITTEN_CHARS_MAX = 4 * WORD_CHARS_MAX
# Problems of a document that are told what may have been meant: to look for a name among 5,000 takes 50 ms.
ADVISED_MAX = 20
# Of a name in a path; a longer one is shown in part, since each value below it has a path of its own.
STEP_CHARS_MAX = 64

# Without control characters and lone surrogates: nothing can break a header, a line of a log or UTF-8 itself.
_LINE = r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]*\Z"
_WORD = rf"^(?=.*\S)[^\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff,]{{1,{WORD_CHARS_MAX}}}\Z"
_TEXT = r"^[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]*\Z"
# RFC 3986 in ASCII, with the braces of macros and without a user or password, which only serve to mislead.
_URL = (
    r"^(?i:https?)://(?:[A-Za-z0-9][A-Za-z0-9._-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?"
    r"(?:[/?#][!#-;=?-\[\]_a-~]*)?\Z"
)
# What a browser may be led to, whoever wrote it. Nothing stands before it: browsers skip spaces and control characters.
_WEB_URL = re.compile(r"(?i:https?)://")

Id = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z",
        description="an id: 1 to 64 of A-Z a-z 0-9 _ . - and no sign first",
    ),
]
# MySQL takes names that differ in the spaces at their end for equal.
Name = Annotated[
    str,
    Meta(
        max_length=200,
        pattern=r"^(?!\s)" + _LINE.removeprefix("^").removesuffix(r"\Z") + r"(?<!\s)\Z",
        description="one line of at most 200 characters, without spaces around it",
    ),
]
# What a browser shows beside or instead of the picture.
Alt = Annotated[str, Meta(max_length=1000, pattern=_LINE, description="one line of at most 1000 characters")]
# What every browser, proxy and Location header carries.
URL_CHARS_MAX = 2048
Url = Annotated[
    str,
    Meta(
        max_length=URL_CHARS_MAX,
        pattern=_URL,
        description=f"an http or https URL of at most {URL_CHARS_MAX} characters",
    ),
]
Html = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=HTML_BYTES_MAX,
        pattern=_TEXT,
        description="HTML of 1 byte to 256 KiB without control characters",
    ),
]
Text = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=2000,
        pattern=_TEXT,
        description="1 to 2000 characters without control characters",
    ),
]
# Weights are shares: a million to one is finer than any traffic can show, and sums stay exact in a float.
Weight = Annotated[int, Meta(ge=1, le=1_000_000, description="a whole number from 1 to 1000000")]
# In CSS pixels; no screen is larger.
Pixels = Annotated[int, Meta(ge=1, le=10_000, description="a whole number of pixels from 1 to 10000")]
Count = Annotated[int, Meta(ge=1, le=10**12, description="a whole number from 1 to 1000000000000")]
# A cap higher than this does not cap; the count travels in a cookie.
CapCount = Annotated[int, Meta(ge=1, le=10_000, description="a whole number from 1 to 10000")]
# Browsers forget a cookie after 400 days.
CapSeconds = Annotated[
    int, Meta(ge=1, le=366 * 86_400, description="a whole number of seconds from 1 to 31622400 (366 days)")
]
Instant = Annotated[
    datetime,
    Meta(tz=True, description='a date and time with its offset, such as "2026-11-01T00:00:00+09:00"'),
]
Country = Annotated[
    str,
    Meta(pattern=r"^(?!(?i:uk)\Z)[A-Za-z]{2}\Z", description='an ISO 3166 country code such as "JP" or "GB"'),
]
Language = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8}){0,4}\Z",
        description='a language tag such as "ja" or "pt-BR"',
    ),
]
Word = Annotated[
    str,
    Meta(pattern=_WORD, description=f"one word or phrase of 1 to {WORD_CHARS_MAX} characters without a comma"),
]
Hour = Annotated[int, Meta(ge=0, le=23, description="an hour from 0 to 23")]
Weekday = Annotated[int, Meta(ge=0, le=6, description="a weekday from 0 (Monday) to 6 (Sunday)")]

Device = Literal["desktop", "mobile", "tablet", "tv", "other"]
DEVICES: tuple[Device, ...] = get_args(Device)
OperatingSystem = Literal["windows", "macos", "ios", "android", "linux", "chromeos", "other"]
OPERATING_SYSTEMS: tuple[OperatingSystem, ...] = get_args(OperatingSystem)
Format = Literal["image", "html", "text", "native"]
FORMATS: tuple[Format, ...] = get_args(Format)
Priority = Literal["sponsorship", "standard", "house"]

_Item = TypeVar("_Item")
Targets = Annotated[
    tuple[_Item, ...], Meta(max_length=TARGETS_MAX, description=f"a list of at most {TARGETS_MAX} entries")
]
Size = Annotated[tuple[Pixels, Pixels], Meta(description="[width, height] in pixels, each from 1 to 10000")]

# What a creative of each format cannot be shown without.
_NEEDS: dict[Format, tuple[str, ...]] = {
    "image": ("image_url", "landing_url"),
    "html": ("html",),
    "text": ("data", "landing_url"),
    "native": ("data", "landing_url"),
}


_NOT_IN_DOCUMENT = frozenset({"forecast"})

# Rows of 100,000 creatives stay for long and are trees, so the garbage collector need not look at any (`gc=False`).


class Placement(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False):
    """A slot on a page."""

    id: Id
    width: Pixels
    height: Pixels
    formats: Annotated[
        tuple[Format, ...],
        Meta(min_length=1, description=f"a list with at least one of {', '.join(FORMATS)}"),
    ] = FORMATS


class Creative(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False):
    """What is shown. Fields that its format does not use are kept and not shown."""

    id: Id
    placement_size: Size
    format: Format
    weight: Weight = 1
    image_url: Url | None = None
    alt: Alt = ""
    html: Html | None = None
    data: dict[str, Any] | None = None
    landing_url: Url | None = None


class TextData(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The `data` of a creative of format text."""

    text: Text
    title: Name = ""


class Goal(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False):
    """How much is wanted over the whole flight."""

    impressions: Count | None = None
    clicks: Count | None = None


class DailyCap(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False):
    """How much at most on one day of the site's time zone."""

    impressions: Count | None = None
    clicks: Count | None = None


class FrequencyCap(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False):
    """How often at most to one visitor within any stretch of `seconds`."""

    impressions: CapCount
    seconds: CapSeconds


class Targeting(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False):
    """Who sees a campaign: every facet must accept, an empty one accepts anything. Held in normal form."""

    placements: Targets[Id] = ()
    devices: Targets[Device] = ()
    os: Targets[OperatingSystem] = ()
    countries: Targets[Country] = ()
    languages: Targets[Language] = ()
    keywords_any: Targets[Word] = ()
    keywords_none: Targets[Word] = ()
    hours: Targets[Hour] = ()
    weekdays: Targets[Weekday] = ()
    key_values: Annotated[
        dict[Word, Targets[Word]],
        Meta(
            max_length=TARGETS_MAX,
            description=f"an object with at most {TARGETS_MAX} names, each with a list",
        ),
    ] = {}


class Campaign(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False):
    """A flight of creatives with its dates, priority, limits and targeting."""

    id: Id
    name: Name
    priority: Priority
    advertiser: Name = ""
    weight: Weight = 1
    status: Literal["active", "paused"] = "active"
    starts_at: Instant | None = None
    ends_at: Instant | None = None
    goal: Goal | None = None
    daily_cap: DailyCap | None = None
    pacing: Literal["asap", "even"] = "asap"
    optimize: Literal["ctr"] | None = None
    frequency_cap: FrequencyCap | None = None
    targeting: Targeting = Targeting()
    creatives: tuple[Creative, ...] = ()
    forecast: tuple[int, ...] = ()
    """No part of the document: what part of a week's traffic is expected by the end of each hour of it, from Monday
    0:00 (learned.py); () where nothing is learned."""


class Inventory(msgspec.Struct, frozen=True):
    """Rows that are valid each by itself and together: ids unique, placements that are named exist."""

    placements: tuple[Placement, ...] = ()
    campaigns: tuple[Campaign, ...] = ()


class Problem(msgspec.Struct, frozen=True):
    """One error: where it is in the document, in which row, and what would be right."""

    path: str
    row: str
    message: str

    def __str__(self) -> str:
        return f"{self.path} ({self.row}): {self.message}"


class InventoryError(AdcoreError):
    """The document is not a valid inventory; `problems` names every error."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        self.problems = problems
        count = "1 error" if len(problems) == 1 else f"{len(problems)} errors"
        super().__init__("\n".join([f"the inventory has {count}:", *map(str, problems)]))


def parse_inventory(document: object) -> Inventory:
    """The inventory of a document that somebody wrote. Raises InventoryError with every error in it."""
    inventory, problems = check_inventory(document, ("placements", "campaigns"))
    if problems:
        raise InventoryError(problems)
    return inventory


def check_inventory(
    document: object, parts: Sequence[str] = ("placements", "campaigns", "learned")
) -> tuple[Inventory, tuple[Problem, ...]]:
    """The valid rows of a document of these parts, and every error in the others.

    A bad creative is left out alone, a bad campaign with its creatives; of two rows with one id the second. What a
    store has learned is no part of the inventory (see learned.py).
    """
    problems: list[Problem] = []
    top = _Row(problems, "$", "inventory", None)
    if not isinstance(document, Mapping):
        top.refuse("", 'must be an object: {"placements": [...], "campaigns": [...]}', document)
        return Inventory(), tuple(problems)
    top.refuse_unknown(document, parts)
    placements: list[Placement] = []
    placement_ids: dict[str, _Row] = {}
    for row, fields in top.read_rows(document, "placements", "placement"):
        values = row.read(Placement, fields)
        row.claim(fields, placement_ids)
        if row.good:
            placements.append(Placement(**values))

    campaigns: list[Campaign] = []
    campaign_ids: dict[str, _Row] = {}
    creative_ids: dict[str, _Row] = {}
    for row, fields in top.read_rows(document, "campaigns", "campaign"):
        values = row.read(Campaign, {name: fields[name] for name in fields if name != "creatives"})
        row.claim(fields, campaign_ids)
        _check_campaign(row, fields, values, placement_ids)
        creatives: list[Creative] = []
        for creative_row, creative_fields in row.read_rows(fields, "creatives", "creative"):
            creative_row.claim(creative_fields, creative_ids)
            creative = _plain_creative(creative_fields) or _read_creative(creative_row, creative_fields)
            if creative_row.good:
                assert creative is not None
                creatives.append(creative)
        if fields.get("creatives") == []:
            row.refuse(".creatives", "must have at least one creative: without one there is nothing to show")
        # A campaign whose creatives are all bad has nothing to show; each of them is already named.
        if row.good and creatives:
            campaigns.append(Campaign(**values, creatives=tuple(creatives)))
    return Inventory(tuple(placements), tuple(campaigns)), tuple(problems)


def to_document(inventory: Inventory) -> dict[str, Any]:
    """The document of an inventory, every field written out: parsing it gives an equal inventory."""
    document: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(inventory))
    for campaign in document["campaigns"]:
        for name in _NOT_IN_DOCUMENT:
            del campaign[name]
    return document


def web_url(value: object) -> str:
    """`value` if it is an http or https URL, else "": for a URL that no `Url` has checked, where it is put out."""
    return value if isinstance(value, str) and _WEB_URL.match(value) else ""


def normalise_word(text: str) -> str:
    """The form in which keywords and key-values are compared: composed, without outer space, case folded.

    A text that is too long to be a word in any form is cut first, and is still too long then: to sort the combining
    marks on one letter takes the square of their number.
    """
    return unicodedata.normalize("NFC", text.strip()[: WORD_WRITTEN_CHARS_MAX + 1]).casefold()


def _check_campaign(
    row: "_Row", given: Mapping[Any, Any], values: dict[str, Any], placement_ids: "Mapping[str, _Row]"
) -> None:
    starts_at, ends_at = values.get("starts_at"), values.get("ends_at")
    if starts_at is not None and ends_at is not None and ends_at <= starts_at:
        row.refuse(".ends_at", f"must be after starts_at, {starts_at.isoformat()}")
    for name in ("goal", "daily_cap"):
        limit = values.get(name)
        if limit is not None and limit.impressions is None and limit.clicks is None:
            row.refuse(f".{name}", f"must have impressions or clicks; write null for no {name}")
    # From the object itself: these are named even when another part of the targeting is bad.
    targets = given.get("targeting")
    wanted = targets.get("placements") if isinstance(targets, Mapping) else None
    for position, placement_id in enumerate(wanted[:TARGETS_MAX] if isinstance(wanted, list | tuple) else ()):
        if isinstance(placement_id, str) and placement_id not in placement_ids:
            advice = row.advise(placement_id, placement_ids)
            row.refuse(f".targeting.placements[{position}]", f"must be the id of a placement{advice}", placement_id)
    targeting = values.get("targeting")
    if targeting is not None:
        normal = values["targeting"] = _normalise(targeting)
        _check_words(row, targeting, normal)


def _check_words(row: "_Row", targeting: Targeting, normal: Targeting) -> None:
    if len(normal.key_values) != len(targeting.key_values):
        row.refuse(".targeting.key_values", "must not have a name twice (upper and lower case are the same)")
    for name, words in (
        ("keywords_any", normal.keywords_any),
        ("keywords_none", normal.keywords_none),
        (
            "key_values",
            (*normal.key_values, *chain.from_iterable(normal.key_values.values())),
        ),
    ):
        for word in words:
            # Folding can lengthen a word: "\u00df" becomes "ss".
            if len(word) > WORD_CHARS_MAX:
                message = f"must have words of at most {WORD_CHARS_MAX} characters in lower case"
                row.refuse(f".targeting.{name}", message, word)


def _normalise(targeting: Targeting) -> Targeting:
    return Targeting(
        placements=_unique(targeting.placements),
        devices=_unique(targeting.devices),
        os=_unique(targeting.os),
        countries=_unique(country.upper() for country in targeting.countries),
        languages=_unique(language.lower() for language in targeting.languages),
        keywords_any=_unique(map(normalise_word, targeting.keywords_any)),
        keywords_none=_unique(map(normalise_word, targeting.keywords_none)),
        hours=_unique(targeting.hours),
        weekdays=_unique(targeting.weekdays),
        key_values={
            normalise_word(name): _unique(map(normalise_word, values)) for name, values in targeting.key_values.items()
        },
    )


# msgspec encodes a text, or a field's name, that it holds against names: half a surrogate pair does not survive that.
_UNFIT = (msgspec.ValidationError, UnicodeEncodeError)


def _unique(values: Iterable[_Item]) -> tuple[_Item, ...]:
    return tuple(dict.fromkeys(values))


def _plain_creative(fields: Mapping[Any, Any]) -> Creative | None:
    """A creative with no fault and nothing in it that needs a closer look; most are, and this takes a tenth."""
    try:
        creative = msgspec.convert(fields, Creative)
    except _UNFIT:
        return None
    if creative.html is not None or creative.data is not None:
        return None
    complete = all(getattr(creative, name) is not None for name in _NEEDS[creative.format])
    return creative if complete else None


def _read_creative(row: "_Row", fields: Mapping[Any, Any]) -> Creative | None:
    values = row.read(Creative, fields)
    _check_creative(row, fields, values)
    return Creative(**values) if row.good else None


def _check_creative(row: "_Row", given: Mapping[Any, Any], values: dict[str, Any]) -> None:
    creative_format = values.get("format")
    if creative_format is not None:
        for name in _NEEDS[creative_format]:
            if given.get(name) is None:
                row.refuse(f".{name}", f"is missing: a creative of format {creative_format} needs it")
    html = values.get("html")
    if html is not None and len(html.encode()) > HTML_BYTES_MAX:
        row.refuse(".html", f"must be at most {HTML_BYTES_MAX} bytes of UTF-8, and is {len(html.encode())}")
    data = values.get("data")
    if data is None:
        return
    if creative_format == "text":
        row.read(TextData, data, ".data")
        return
    faults = list(_faults_in(data, ".data", DATA_DEPTH_MAX))
    for where, message in faults:
        row.refuse(where, message)
    if not faults and len(msgspec.json.encode(data)) > DATA_BYTES_MAX:
        row.refuse(".data", f"must be at most {DATA_BYTES_MAX} bytes of JSON")


def _faults_in(value: object, where: str, depth_left: int) -> Iterator[tuple[str, str]]:
    """What in free JSON a browser could not read back as it was meant: (path, message)."""
    if isinstance(value, str):
        if not re.search(_TEXT, value):
            yield where, "must not contain control characters or half a surrogate pair"
    elif isinstance(value, Mapping | list | tuple):
        if not depth_left:
            yield where, f"is nested deeper than {DATA_DEPTH_MAX} levels"
        elif isinstance(value, Mapping):
            for key, item in value.items():
                if not isinstance(key, str) or not re.search(_LINE, key):
                    yield where, f"must have keys of one line of text; got {_shown(key)}"
                else:
                    yield from _faults_in(item, where + _step(key), depth_left - 1)
        else:
            for position, item in enumerate(value):
                yield from _faults_in(item, f"{where}[{position}]", depth_left - 1)
    elif isinstance(value, float):
        if not -float("inf") < value < float("inf"):
            yield where, "must be a finite number"
    elif isinstance(value, int):
        if not -JSON_INTEGER_MAX <= value <= JSON_INTEGER_MAX:
            yield where, f"must be a number from -{JSON_INTEGER_MAX} to {JSON_INTEGER_MAX}; write it as text"
    elif value is not None:
        yield where, f"must be JSON; got {type(value).__name__}"


class _Row:
    """One object that is being read: where it is, what to call it, and whether it is good so far."""

    __slots__ = ("_id", "_kind", "_place", "good", "problems")

    def __init__(
        self, problems: list[Problem], place: "tuple[_Row, str, int] | str", kind: str, row_id: object
    ) -> None:
        self.problems = problems
        self._place = place
        """Its path, or the row that it is in, the list there and the position in that."""
        self._kind = kind
        self._id = row_id
        self.good = True

    # Written out only for a row with a problem: most have none.

    @property
    def path(self) -> str:
        if isinstance(self._place, str):
            return self._place
        row, name, position = self._place
        return f"{row.path}.{name}[{position}]"

    @property
    def label(self) -> str:
        if isinstance(self._place, str):
            return self._kind
        if isinstance(self._id, str):
            return f'{self._kind} "{repr(self._id[:64])[1:-1]}"'
        return f"{self._kind} without an id"

    def refuse(self, where: str, message: str, *got: object) -> None:
        """Add a problem at `where` (a path below this row), with the value there if that tells something."""
        self.good = False
        if got:
            message = f"{message}; got {_shown(got[0])}"
        self.problems.append(Problem(self.path + where, self.label, message))

    def refuse_unknown(self, fields: Mapping[Any, Any], known: Iterable[str], where: str = "") -> None:
        for name in fields:
            if name not in known:
                self.refuse(where + _step(name), "there is no such field" + self.advise(name, known))

    def advise(self, name: object, known: Iterable[str]) -> str:
        """What may have been meant by `name`, if anything is close to it."""
        return _did_you_mean(name, known) if len(self.problems) < ADVISED_MAX else ""

    def read_rows(self, fields: Mapping[Any, Any], name: str, kind: str) -> Iterator[tuple["_Row", Mapping[Any, Any]]]:
        """The rows in the list `name` of this object, one after the other."""
        values = fields.get(name)
        if not isinstance(values, list | tuple):
            what = f"must be a list of {kind}s"
            if name in fields:
                self.refuse(f".{name}", what, values)
            else:
                self.refuse(f".{name}", f"is missing: {what}")
            return
        for position, value in enumerate(values):
            if isinstance(value, Mapping):
                yield _Row(self.problems, (self, name, position), kind, value.get("id")), value
            else:
                row = _Row(self.problems, f"{self.path}.{name}[{position}]", kind, None)
                row.refuse("", f"must be an object that describes a {kind}", value)

    def claim(self, fields: Mapping[Any, Any], taken: "dict[str, _Row]") -> None:
        """Refuse an id that a row before this one has."""
        row_id = fields.get("id")
        if isinstance(row_id, str):
            first = taken.setdefault(row_id, self)
            if first is not self:
                self.refuse(".id", f"must be unique, but {first.path} has the same", row_id)

    def read(self, cls: type[msgspec.Struct], fields: Mapping[Any, Any], where: str = "") -> dict[str, Any]:
        """The good ones of an object's fields. A null in a field that has a default means the default."""
        specs = _fields_of(cls)
        self.refuse_unknown(fields, specs, where)
        values = {}
        for name, spec in specs.items():
            value = fields.get(name)
            if value is not None or (spec.required and name in fields):
                converted = self._convert(spec.type, value, f"{where}.{name}")
                if converted is not _BAD:
                    values[name] = converted
            elif spec.required:
                self.refuse(f"{where}.{name}", f"is missing: must be {_expected(spec.type)}")
        return values

    def _convert(self, wanted: Any, value: object, where: str) -> Any:
        """`value` as the type `wanted`, or _BAD after each part of it that is wrong has been refused."""
        try:
            return msgspec.convert(value, wanted)
        except _UNFIT:
            pass
        count = len(self.problems)
        plain = _plain(wanted)
        if isinstance(value, Mapping) and isinstance(plain, type) and issubclass(plain, msgspec.Struct):
            values = self.read(plain, value, where)
            if len(self.problems) == count:
                return plain(**values)
        elif isinstance(value, list | tuple) and get_args(plain)[1:] == (...,):
            for position, item in enumerate(value):
                self._convert(get_args(plain)[0], item, f"{where}[{position}]")
        elif isinstance(value, Mapping) and get_origin(plain) is dict:
            for key, item in value.items():
                self._convert(get_args(plain)[0], key, where + _step(key))
                self._convert(get_args(plain)[1], item, where + _step(key))
        if len(self.problems) == count:
            self.refuse(where, f"must be {_expected(wanted)}{self._advise_value(wanted, value)}", value)
        return _BAD

    def _advise_value(self, wanted: Any, value: object) -> str:
        if get_origin(wanted) is Literal:
            return self.advise(value, get_args(wanted))
        if isinstance(value, str) and not value.isascii() and _without_none(wanted) == Url:
            written = _in_ascii(value) if len(value) <= URL_CHARS_MAX else ""
            if re.search(_URL, written):
                return f" in ASCII: write {written}"
        return ""


_BAD = object()


class _Field(NamedTuple):
    type: Any
    required: bool


@cache
def _fields_of(cls: type[msgspec.Struct]) -> dict[str, _Field]:
    fields = msgspec.structs.fields(cls)
    return {field.name: _Field(field.type, field.required) for field in fields if field.name not in _NOT_IN_DOCUMENT}


def _without_none(wanted: Any) -> Any:
    others = [arg for arg in get_args(wanted) if arg is not type(None)]
    return others[0] if type(None) in get_args(wanted) else wanted


def _plain(wanted: Any) -> Any:
    """A type without its constraints and without None."""
    wanted = _without_none(wanted)
    return get_args(wanted)[0] if get_origin(wanted) is Annotated else wanted


def _expected(wanted: Any) -> str:
    """What a person should have written."""
    wanted = _without_none(wanted)
    if get_origin(wanted) is Annotated:
        for meta in get_args(wanted)[1:]:
            if meta.description:
                return str(meta.description)
    if get_origin(wanted) is Literal:
        return f"one of {', '.join(get_args(wanted))}"
    return "an object"


def _in_ascii(url: str) -> str:
    """A URL as copied from a page, the way it is sent: the host in punycode, the rest percent-encoded."""
    scheme, _, rest = url.partition("://")
    host = re.split("[/?#]", rest, maxsplit=1)[0]
    try:
        encoded_host = host.encode("idna").decode()
        return f"{scheme}://{encoded_host}{quote(rest[len(host) :], safe=_URL_SAFE)}"
    except UnicodeError:
        return ""


_URL_SAFE = "".join(map(chr, range(0x21, 0x7F)))


def _step(name: object) -> str:
    """One step of a JSON path."""
    is_plain = isinstance(name, str) and len(name) <= STEP_CHARS_MAX and re.search(r"^\w+\Z", name)
    return f".{name}" if is_plain else f"[{_shown(name)}]"


def _shown(value: object) -> str:
    """A value as a person wrote it, short and on one line whatever it holds."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    if isinstance(value, str):
        return f'"{repr(value[:80])[1:-1]}{"…" if len(value) > 80 else ""}"'
    # Python refuses to write out integers of thousands of digits.
    if isinstance(value, int) and abs(value) > 10**80:
        return "a number of more than 80 digits"
    return repr(value)[:80]


def _did_you_mean(name: object, known: Iterable[str]) -> str:
    close = get_close_matches(name, known, 1) if isinstance(name, str) and len(name) <= 64 else []
    # What is close may be as bad as the name itself, such as a placement's id that was refused.
    return f"; did you mean {_shown(close[0])[1:-1]}?" if close else ""
