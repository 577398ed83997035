"""Which of a placement's campaigns accept a request, as integer bit masks.

Campaign i of a placement is bit i. For each facet (device, country, …) the index holds one mask of the campaigns
that do not target it and one mask per value that somebody targets. A request then costs a few dictionary look-ups
and one AND per facet, however many campaigns there are, and the campaigns that fell to a facet are counted with one
`bit_count`. `TargetingIndex.accepting` is the only place that knows the rules: `match` counts with it and `explain`
reads it.
"""

from collections.abc import Generator, Hashable, Iterable, Iterator, Sequence
from typing import TypeVar

from adcore.core.calendar import Moment
from adcore.core.facts import Facts
from adcore.core.inventory import Targeting
from adcore.core.reason import Reason

Dropped = tuple[tuple[Reason, int], ...]

# Values of a facet that are looked at in one step of making an index: some 50 µs.
STEP_VALUES = 250
_ONE = ord("1")

T = TypeVar("T")
Steps = Generator[None, None, T]


def mask_at(positions: Iterable[int], size: int) -> int:
    """The mask with these bits, of `size`: to set a bit copies all of a mask, and to set a digit does not."""
    digits = bytearray(b"0") * size
    one = _ONE
    for position in positions:
        digits[position] = one
    return int(digits[::-1] or b"0", 2)


class Facet:
    """The campaigns by the values that they ask for; a campaign that asks for none is in `indifferent`."""

    __slots__ = ("by_value", "indifferent")

    @classmethod
    def compile(cls, wanted: Sequence[Sequence[Hashable]]) -> "Steps[Facet]":
        facet = cls()
        facet.indifferent = mask_at([at for at, values in enumerate(wanted) if not values], len(wanted))
        facet.by_value = yield from _by_value(enumerate(wanted))
        return facet

    def __init__(self) -> None:
        self.indifferent = 0
        self.by_value: dict[Hashable, int] = {}

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


class KeyValues:
    """The campaigns by the key-values that they ask for: one needs a match under every name that it targets.

    Those that target the same names are a group, which is looked at where a request has the rarest of these names: what
    a request costs follows from the names that it has, and not from all that are targeted.
    """

    __slots__ = ("_by_name", "_groups", "_indifferent")

    @classmethod
    def compile(cls, targetings: Sequence[Targeting]) -> "Steps[KeyValues]":
        index = cls()
        members: dict[tuple[str, ...], list[int]] = {}
        of_name: dict[str, list[tuple[int, Sequence[Hashable]]]] = {}
        for position, targeting in enumerate(targetings):
            wanted = {name: values for name, values in targeting.key_values.items() if values}
            members.setdefault(tuple(sorted(wanted)), []).append(position)
            for name, values in wanted.items():
                of_name.setdefault(name, []).append((position, values))
            if position % STEP_VALUES == 0:
                yield
        index._indifferent = mask_at(members.pop((), ()), len(targetings))
        for name, some in of_name.items():
            index._by_name[name] = yield from _by_value(some)
        for names, positions in members.items():
            rarest = min(names, key=lambda name: len(of_name[name]))
            others = tuple(name for name in names if name != rarest)
            index._groups.setdefault(rarest, []).append((others, mask_at(positions, len(targetings))))
            yield
        return index

    def __init__(self) -> None:
        self._indifferent = 0
        self._by_name: dict[str, dict[Hashable, int]] = {}
        self._groups: dict[str, list[tuple[tuple[str, ...], int]]] = {}
        """By the rarest of the names: the other ones, and who targets them all."""

    def __contains__(self, pair: tuple[str, str]) -> bool:
        """Whether a campaign targets this value of this name."""
        name, value = pair
        return value in self._by_name.get(name, ())

    def __bool__(self) -> bool:
        return bool(self._by_name)

    def accepting(self, pairs: Iterable[tuple[str, str]]) -> int:
        """The campaigns that find a match for each of their names, or have none."""
        found: dict[str, int] = {}
        for name, value in pairs:
            by_value = self._by_name.get(name)
            if by_value is not None:
                found[name] = found.get(name, 0) | by_value.get(value, 0)
        mask = self._indifferent
        for rarest, matching in found.items():
            for others, group in self._groups.get(rarest, ()):
                group &= matching
                for name in others:
                    group &= found.get(name, 0)
                mask |= group
        return mask


def _by_value(wanted: Iterable[tuple[int, Sequence[Hashable]]]) -> Steps[dict[Hashable, int]]:
    """Of (position, values): the mask of the positions of each value."""
    masks: dict[Hashable, int] = {}
    count = 0
    for position, values in wanted:
        bit = 1 << position
        for value in values:
            masks[value] = masks.get(value, 0) | bit
            count += 1
            if count % STEP_VALUES == 0:
                yield
    return masks


class TargetingIndex:
    """The targeting of a placement's campaigns; bit i of every mask is campaign i of the given sequence."""

    countries: Facet
    devices: Facet
    everyone: int
    hours: Facet
    key_values: KeyValues
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
    def compile(cls, targetings: Sequence[Targeting]) -> "Steps[TargetingIndex]":
        """The index, made facet by facet: there may be thousands of campaigns, and others wait."""
        index = cls()
        index.everyone = (1 << len(targetings)) - 1
        index.devices = yield from Facet.compile([t.devices for t in targetings])
        yield
        index.os = yield from Facet.compile([t.os for t in targetings])
        yield
        index.countries = yield from Facet.compile([t.countries for t in targetings])
        yield
        index.languages = yield from Facet.compile([t.languages for t in targetings])
        yield
        index.keywords_any = yield from Facet.compile([t.keywords_any for t in targetings])
        yield
        index.keywords_none = yield from Facet.compile([t.keywords_none for t in targetings])
        yield
        index.hours = yield from Facet.compile([t.hours for t in targetings])
        yield
        index.weekdays = yield from Facet.compile([t.weekdays for t in targetings])
        yield
        index.keywords = index.keywords_any.by_value.keys() | index.keywords_none.by_value.keys()
        index.key_values = yield from KeyValues.compile(targetings)
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
            yield Reason.KEY_VALUE, self.key_values.accepting(facts.key_values)
        yield Reason.HOUR, self.hours.accepting((moment.hour,))
        yield Reason.WEEKDAY, self.weekdays.accepting((moment.weekday,))

    def relevant(self, facts: Facts) -> Facts:
        """The facts without the keywords and key-values that nobody here asks about: alike for more requests."""
        if not facts.keywords and not facts.key_values:
            return facts
        return facts._replace(
            keywords=tuple(word for word in facts.keywords if word in self.keywords),
            key_values=tuple(pair for pair in facts.key_values if pair in self.key_values),
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
