"""What a caller asks of /v1/decision and /v1/frame: the query string or the JSON body -> one `Query`.

Both forms are checked by the same rules.
"""

from collections.abc import Iterable
from urllib.parse import unquote_plus

import msgspec

from adcore.core.facts import FactsError, parse_key_values, parse_keywords
from adcore.errors import AdcoreError

# A page has a handful of slots; more in one request is a mistake or an attack on the log.
SLOTS_MAX = 32
# Parameters, our own and others'. Taking one apart costs a microsecond; pages add a handful. (PHP's max_input_vars and
# Django's DATA_UPLOAD_MAX_NUMBER_FIELDS are 1000, for forms.)
PARAMETERS_MAX = 256
# Bytes of JSON that keywords and key-values take in the records of all slots together, as each record has them: 2 KiB a
# slot for a page of eight, and for a single slot more than a request line can say.
FACTS_BYTES_MAX = 16 * 1024
PLACEMENT_CHARS_MAX = 64
USER_CHARS_MAX = 256


class QueryError(AdcoreError):
    """The request asks for something that does not exist or is not allowed (HTTP 400)."""


class Visitor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a server-side caller says of the visitor it asks for; None means: take the request's own."""

    user_agent: str | None = None
    accept_language: str | None = None
    ip: str | None = None
    country: str | None = None


class Query(msgspec.Struct, frozen=True):
    slots: tuple[str, ...]
    """The placements to fill, in order, each as often as it is wanted."""
    keywords: tuple[str, ...]
    key_values: tuple[tuple[str, str], ...]
    user: str
    """The caller's key for the visitor, "" if none is given."""
    single: bool
    """Asked for one decision: the answer is that decision and not a list."""
    visitor: Visitor | None


class _Body(msgspec.Struct, forbid_unknown_fields=True):
    placement: str | list[str]
    n: int | None = None
    keywords: str | list[str] = ""
    key_values: dict[str, str | list[str]] = {}
    user: str = ""
    visitor: Visitor | None = None


_BODY = msgspec.json.Decoder(_Body)
_to_json = msgspec.json.Encoder().encode


def parse_query(raw: bytes) -> Query:
    """Parse a raw query string. Raises QueryError naming the parameter."""
    if raw.count(b"&") >= PARAMETERS_MAX:
        raise QueryError(f"the query string has more than {PARAMETERS_MAX} parameters")
    given: dict[str, str] = {}
    key_values: list[tuple[str, str]] = []
    for part in raw.split(b"&"):
        if not part:
            continue
        name_bytes, _, value_bytes = part.partition(b"=")
        try:
            name = unquote_plus(name_bytes.decode("ascii"), errors="strict")
            value = unquote_plus(value_bytes.decode("ascii"), errors="strict")
        except UnicodeDecodeError:
            raise QueryError("the query string is not percent-encoded UTF-8") from None
        if name.startswith("kv."):
            key_values.extend((name[3:], one) for one in value.split(","))
        elif name in ("placement", "keywords") and name in given:
            given[name] += "," + value
        elif name in ("n", "user") and name in given:
            raise QueryError(f"{name} is given twice")
        elif name in ("placement", "n", "keywords", "user"):
            given[name] = value
        # Other parameters are not ours: pages add cache busters and campaign tags of their own.
    count = given.get("n", "1")
    if not (count.isascii() and count.isdigit() and len(count) <= 4):
        raise QueryError(f"n must be a whole number from 1 to {SLOTS_MAX}")
    return _query(
        given.get("placement", "").split(","),
        int(count),
        "n" in given,
        given.get("keywords", ""),
        key_values,
        given.get("user", ""),
        None,
    )


def parse_body(raw: bytes) -> Query:
    """Parse the JSON body of POST /v1/decision. Raises QueryError naming the field."""
    try:
        body = _BODY.decode(raw)
    except (msgspec.ValidationError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise QueryError(f"the body is not the JSON expected: {error}") from None
    placements = body.placement if isinstance(body.placement, list) else body.placement.split(",")
    keywords = body.keywords if isinstance(body.keywords, str) else ",".join(body.keywords)
    key_values = [
        (name, value)
        for name, values in body.key_values.items()
        for value in ([values] if isinstance(values, str) else values)
    ]
    several = isinstance(body.placement, list) or body.n is not None
    count = 1 if body.n is None else body.n
    return _query(placements, count, several, keywords, key_values, body.user, body.visitor)


def _query(
    placements: list[str],
    count: int,
    several: bool,
    keywords: str,
    key_values: Iterable[tuple[str, str]],
    user: str,
    visitor: Visitor | None,
) -> Query:
    if placements in ([], [""]):
        raise QueryError("placement is missing: name one, or several separated by commas")
    if count < 1 or count * len(placements) > SLOTS_MAX:
        raise QueryError(f"n must be at least 1, and n times the placements at most {SLOTS_MAX}")
    for placement in placements:
        if not placement or len(placement) > PLACEMENT_CHARS_MAX or not placement.isprintable():
            raise QueryError(f"placement must be 1 to {PLACEMENT_CHARS_MAX} printable characters")
    if len(user) > USER_CHARS_MAX:
        raise QueryError(f"user must be at most {USER_CHARS_MAX} characters")
    slots = tuple(placement for placement in placements for _ in range(count))
    try:
        words, pairs = parse_keywords(keywords), parse_key_values(key_values)
        if words or pairs:
            _check_size(words, pairs, len(slots))
        return Query(
            slots,
            words,
            pairs,
            user,
            len(placements) == 1 and not several,
            visitor,
        )
    except FactsError as error:
        raise QueryError(str(error)) from None


def _check_size(keywords: tuple[str, ...], key_values: tuple[tuple[str, str], ...], slots: int) -> None:
    size = len(_to_json((keywords, key_values)))
    if size * slots > FACTS_BYTES_MAX:
        most = FACTS_BYTES_MAX // slots
        raise QueryError(
            f"keywords and key-values are {size} bytes, and for {slots} slots at most {most}: "
            "say less, or ask for fewer slots in one request"
        )
