"""Which of a placement's campaigns accept a request, as integer bit masks.

Campaign i of a placement is bit i. For each facet (device, country, …) the index holds one mask of the campaigns
that do not target it and one mask per value that somebody targets. A request then costs a few dictionary look-ups
and one AND per facet, however many campaigns there are, and the campaigns that fell to a facet are counted with one
`bit_count`. `TargetingIndex.accepting` is the only place that knows the rules: `match` counts with it and `explain`
reads it.
"""

from collections.abc import Generator, Hashable, Iterable, Iterator, Sequence

from adcore.core.calendar import Moment
from adcore.core.facts import Facts
from adcore.core.inventory import Targeting
from adcore.core.reason import Reason

Dropped = tuple[tuple[Reason, int], ...]


class Facet:
    """The campaigns by the values that they ask for; a campaign that asks for none is in `indifferent`."""

    __slots__ = ("by_value", "indifferent")

    def __init__(self, wanted: Iterable[Sequence[Hashable]]) -> None:
        self.indifferent = 0
        self.by_value: dict[Hashable, int] = {}
        for position, values in enumerate(wanted):
            bit = 1 << position
            if not values:
                self.indifferent |= bit
            for value in values:
                self.by_value[value] = self.by_value.get(value, 0) | bit

    def naming(self, values: Iterable[Hashable]) -> int:
        """The campaigns that ask for one of these values by name."""
        mask = 0
        by_value = self.by_value
        if by_value:
            for value in values:
                mask |= by_value.get(value, 0)
        return mask

    def accepting(self, values: Iterable[Hashable]) -> int:
        """The campaigns that ask for one of these values, or for none at all."""
        return self.indifferent | self.naming(values)


class TargetingIndex:
    """The targeting of a placement's campaigns; bit i of every mask is campaign i of the given sequence."""

    countries: Facet
    devices: Facet
    everyone: int
    hours: Facet
    key_values: dict[str, Facet]
    keywords: frozenset[Hashable] | set[Hashable]
    keywords_any: Facet
    keywords_none: Facet
    languages: Facet
    os: Facet
    weekdays: Facet

    __slots__ = (
        "countries",
        "devices",
        "everyone",
        "hours",
        "key_values",
        "keywords",
        "keywords_any",
        "keywords_none",
        "languages",
        "os",
        "weekdays",
    )

    @classmethod
    def compile(cls, targetings: Sequence[Targeting]) -> "Generator[None, None, TargetingIndex]":
        """The index, made facet by facet: there may be thousands of campaigns, and others wait."""
        index = cls()
        index.everyone = (1 << len(targetings)) - 1
        index.devices = Facet([t.devices for t in targetings])
        yield
        index.os = Facet([t.os for t in targetings])
        yield
        index.countries = Facet([t.countries for t in targetings])
        yield
        index.languages = Facet([t.languages for t in targetings])
        yield
        index.keywords_any = Facet([t.keywords_any for t in targetings])
        yield
        index.keywords_none = Facet([t.keywords_none for t in targetings])
        yield
        index.hours = Facet([t.hours for t in targetings])
        yield
        index.weekdays = Facet([t.weekdays for t in targetings])
        yield
        index.keywords = index.keywords_any.by_value.keys() | index.keywords_none.by_value.keys()
        names = {name for targeting in targetings for name in targeting.key_values}
        index.key_values = {}
        for name in sorted(names):
            index.key_values[name] = Facet([t.key_values.get(name, ()) for t in targetings])
            yield
        return index

    def accepting(self, facts: Facts, moment: Moment) -> Iterator[tuple[Reason, int]]:
        """Yield (the reason to give when refused, the mask of campaigns that accept), facet by facet."""
        yield Reason.DEVICE, self.devices.accepting((facts.device,))
        yield Reason.OS, self.os.accepting((facts.os,))
        yield Reason.COUNTRY, self.countries.accepting((facts.country,))
        yield Reason.LANGUAGE, self.languages.accepting(facts.languages)
        yield Reason.KEYWORD_MISSING, self.keywords_any.accepting(facts.keywords)
        yield Reason.KEYWORD_EXCLUDED, self.everyone & ~self.keywords_none.naming(facts.keywords)
        if self.key_values:
            # A campaign must find a match under every name that it targets; other names do not concern it.
            mask = self.everyone
            for name, facet in self.key_values.items():
                mask &= facet.accepting(value for key, value in facts.key_values if key == name)
            yield Reason.KEY_VALUE, mask
        yield Reason.HOUR, self.hours.accepting((moment.hour,))
        yield Reason.WEEKDAY, self.weekdays.accepting((moment.weekday,))

    def relevant(self, facts: Facts) -> Facts:
        """The facts without the keywords and key-values that nobody here asks about: alike for more requests."""
        if not facts.keywords and not facts.key_values:
            return facts
        return facts._replace(
            keywords=tuple(word for word in facts.keywords if word in self.keywords),
            key_values=tuple(pair for pair in facts.key_values if pair[0] in self.key_values),
        )

    def match(self, facts: Facts, moment: Moment, mask: int) -> tuple[int, Dropped]:
        """Those campaigns of `mask` that accept the request, and how many of the others fell first to each reason."""
        dropped = []
        for reason, accepting in self.accepting(facts, moment):
            left = mask & accepting
            if left != mask:
                dropped.append((reason, (mask ^ left).bit_count()))
                mask = left
        return mask, tuple(dropped)
