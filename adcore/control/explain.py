"""/explain: what a described request would get, without recording anything.

The request is described by names and values rather than by headers, so that a person can ask "a phone in Japan, at
20:00": the same words in the query string of /explain and as arguments of `adctl explain`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime

from adcore.core.adtable import AdTable
from adcore.core.agents import parse_user_agent
from adcore.core.calendar import YEARS, Calendar
from adcore.core.decision import Explanation, explain
from adcore.core.facts import (
    Facts,
    FactsError,
    parse_accept_language,
    parse_country,
    parse_key_values,
    parse_keywords,
)
from adcore.core.inventory import DEVICES, OPERATING_SYSTEMS
from adcore.core.reason import Reason
from adcore.errors import AdcoreError

# As many as one request for ads may name. With 5,000 campaigns each takes 10 ms and a megabyte.
PLACEMENTS_MAX = 32
NAMES = (
    "placement",
    "device",
    "os",
    "country",
    "languages",
    "keywords",
    "kv.NAME",
    "user_agent",
    "user",
    "time",
)


class ExplainError(AdcoreError):
    """The described request makes no sense; the text names the argument."""


def explain_request(
    table: AdTable,
    arguments: Iterable[tuple[str, str]],
    calendar: Calendar,
    now: float,
    held: Callable[[], Mapping[str, Reason]] = dict,
    capped: Callable[[str], frozenset[str]] = lambda user: frozenset(),
) -> Iterator[Explanation]:
    """Explain each placement named by `arguments`, one at a time, so that a server can serve others in between.

    `now` is in epoch seconds; `held` and `capped` give the campaigns that counts and a user's history keep back. Raises
    ExplainError before the first one.
    """
    given: dict[str, str] = {}
    key_values = []
    for name, value in arguments:
        if name.startswith("kv."):
            key_values.append((name[3:], value))
        elif name not in NAMES:
            raise ExplainError(f"there is no argument {name!r}; there are {', '.join(NAMES)}")
        elif name in given:
            raise ExplainError(f"{name} is given twice")
        else:
            given[name] = value
    if not given.get("placement"):
        raise ExplainError("placement is missing: say placement=NAME")
    placements = given["placement"].split(",")
    if len(placements) > PLACEMENTS_MAX:
        raise ExplainError(f"placement names {len(placements)} placements, and may name {PLACEMENTS_MAX}")
    agent = parse_user_agent(given.get("user_agent", ""))
    try:
        facts = Facts(
            _one_of("device", given.get("device", agent.device), DEVICES),
            _one_of("os", given.get("os", agent.os), OPERATING_SYSTEMS),
            parse_country(given.get("country", "")),
            parse_accept_language(given.get("languages", "")),
            parse_keywords(given.get("keywords", "")),
            parse_key_values(key_values),
            agent.bot,
        )
    except FactsError as error:
        raise ExplainError(str(error)) from None
    if "time" in given:
        now = _parse_time(given["time"], calendar)
    for placement in placements:
        yield explain(
            table,
            placement,
            facts,
            calendar.moment(now),
            held=held(),
            capped=capped(given.get("user", "")),
        )


def _parse_time(text: str, calendar: Calendar) -> float:
    try:
        at = datetime.fromisoformat(text)
        if YEARS[0] <= at.year <= YEARS[1]:
            return (at if at.tzinfo else at.replace(tzinfo=calendar.zone)).timestamp()
    except (ValueError, OverflowError):
        pass
    raise ExplainError(
        f"time must be ISO 8601, like 2026-11-01T20:00, in the years {YEARS[0]} to {YEARS[1]}, not {text!r}"
    )


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise ExplainError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")
    return value
