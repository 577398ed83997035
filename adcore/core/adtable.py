"""The ad table: everything a decision reads, compiled once from a document and then never changed.

The idea is that a decision only ever looks at its own placement: `PlacementIndex` numbers the campaigns that could
be shown there and keeps every rule about them as a bit mask over those numbers (see targeting.py). What it remembers
besides (`Window`, `Drawing`) are results of pure functions of the table, kept within stated bounds; forgetting them
at any moment changes nothing but the time the next decision takes.

A new table is built beside the old one, shares with it what has not changed, and takes its place in a single
assignment, so no answer mixes two. It is built in small steps (`change_table`), between which requests are answered.
Most of it are structs that the garbage collector need not look at (`gc=False`): they are trees.
"""

from array import array
from bisect import bisect_right
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, compress, count
from typing import NamedTuple, TypeVar

import msgspec

from adcore.core.calendar import Moment
from adcore.core.facts import Facts
from adcore.core.frequency import Cap, Caps, campaign_key
from adcore.core.inventory import Campaign, Creative, Inventory, Placement, Problem, check_inventory
from adcore.core.learned import read_learned, teach
from adcore.core.pacing import is_limited
from adcore.core.reason import Reason
from adcore.core.targeting import Dropped, TargetingIndex, mask_at

# Bytes of "0" and "1" as false and true: 500 bits in 10 µs, where picking one after the other takes 32.
_FLAGS = bytes(character == ord("1") for character in range(256))
PRIORITIES = ("sponsorship", "standard", "house")

# Distinct combinations of facts remembered per placement. Real traffic repeats a few hundred; random keywords must
# not fill the memory.
MATCHES_MAX = 4096
# Weighted choices remembered per placement, in campaigns over all of them (16 bytes each). The key of each is a mask
# with a bit for each campaign of the placement.
DRAWN_MAX = 65536
MASK_CAMPAIGNS = 128
# The creatives are kept in so many parts, so that a change copies only those parts that it concerns.
PARTS = 256

BATCH = 250
# Campaigns that one is searched among, before they are drawn up.
SEARCHED_MIN = 256
# Campaigns that are faster to look up one by one than with all others of a placement.
FEW = 64

S = TypeVar("S")
T = TypeVar("T")
Steps = Generator[None, None, T]
"""Work in small steps, so that whoever runs it can do something else in between; it returns a T."""


class Ad(msgspec.Struct, frozen=True, eq=False, gc=False):
    """One creative in one placement, with the campaign it belongs to: what a decision chooses."""

    placement: Placement
    campaign: Campaign
    creative: Creative


class Entrant(msgspec.Struct, frozen=True, eq=False, gc=False):
    """What a campaign has to show in one placement."""

    campaign: Campaign
    ads: tuple[Ad, ...]
    bounds: "array[int]"  # in quotes, since Python 3.11's can't be subscripted
    """The sums of the creatives' weights up to each."""

    def pick(self, draw: float) -> tuple[Ad, float]:
        """The ad at `draw`, a number in [0, 1), and the probability with which it is picked."""
        ads, bounds = self.ads, self.bounds
        # The last one has no upper bound, so that it takes a product that rounds up to the total itself.
        at = bisect_right(bounds, draw * bounds[-1], hi=len(ads) - 1)
        return ads[at], (bounds[at] - bounds[at - 1] if at else bounds[0]) / bounds[-1]


class Window:
    """A stretch of time, [start, end) in epoch seconds, in which no campaign of the placement starts or ends."""

    __slots__ = ("dropped", "early", "end", "late", "matches", "running", "start")

    def __init__(self, start: float, end: float, running: int, early: int, late: int) -> None:
        self.start = start
        self.end = end
        self.running = running
        self.early = early
        self.late = late
        counts = ((Reason.NOT_STARTED, early.bit_count()), (Reason.ENDED, late.bit_count()))
        self.dropped: Dropped = tuple(entry for entry in counts if entry[1])
        self.matches: dict[tuple[Facts, int, int], tuple[int, Dropped]] = {}


class Weights:
    """The weights of a placement's campaigns, by their bits, so that those of a mask are added up without a loop."""

    __slots__ = ("_bits", "_entrants")

    def __init__(self, entrants: tuple[Entrant, ...]) -> None:
        self._entrants = entrants
        numbers = [entrant.campaign.weight for entrant in entrants]
        self._bits = [
            mask_at([at for at, number in enumerate(numbers) if number >> bit & 1], len(numbers))
            for bit in range(max(numbers, default=0).bit_length())
        ]
        """For each bit, the campaigns whose weight has it."""

    def weigh(self, mask: int) -> int:
        """The sum of the weights of these campaigns."""
        return sum((mask & weights).bit_count() << bit for bit, weights in enumerate(self._bits))

    def search(self, mask: int, point: float) -> tuple[Entrant, int]:
        """The first of these campaigns up to which the weights add up to more than `point`, and what is before it."""
        parts = [(bit, part) for bit, weights in enumerate(self._bits) if (part := mask & weights)]
        first, size, before = 0, mask.bit_length(), 0
        while size > 1:
            half = size >> 1
            lower_half = (1 << half) - 1
            lower = [(bit, part & lower_half) for bit, part in parts]
            middle = before + sum(part.bit_count() << bit for bit, part in lower)
            if point < middle:
                parts, size = lower, half
            else:
                parts = [(bit, part >> half) for bit, part in parts]
                first, size, before = first + half, size - half, middle
        return self._entrants[first], before

    def entrants_in(self, mask: int) -> tuple[Entrant, ...]:
        return tuple(compress(self._entrants, flags(mask)))


class Drawing:
    """The weighted choice among the campaigns of the first tier that has any, and then among the creatives of one.

    In two steps, so that it is as long as there are campaigns, however many creatives they have. Thousands of campaigns
    are not drawn up before the second pick: many a choice is made for one visitor only, and to find one campaign in
    the masks takes 20 µs, where to add up the weights of all takes 200.
    """

    __slots__ = ("_bounds", "_entrants", "_live", "_was_searched", "_weights", "dropped", "total")

    def __init__(self, weights: Weights, live: int, dropped: Dropped) -> None:
        """`live` are the campaigns, at least one."""
        self._weights = weights
        self._live = live
        self.total = float(weights.weigh(live))
        """Of their weights."""
        self.dropped = dropped
        self._was_searched = False
        self._entrants: tuple[Entrant, ...] = ()
        self._bounds = _NO_BOUNDS
        """Of half-open intervals of [0, total). The last one has none, so that it takes what rounds up to the total."""
        if len(self) < SEARCHED_MIN:
            self._draw_up()

    def __len__(self) -> int:
        return self._live.bit_count()

    def pick(self, draw: float) -> tuple[Ad, float]:
        """The ad at `draw`, a number in [0, 1), and the probability with which it is picked."""
        total = self.total
        point = draw * total
        entrants = self._entrants
        if not entrants:
            if not self._was_searched:
                self._was_searched = True
                entrant, start = self._weights.search(self._live, point)
                return _pick(entrant, point - start, total)
            self._draw_up()
            entrants = self._entrants
        at = bisect_right(self._bounds, point)
        entrant = entrants[at]
        ads = entrant.ads
        if len(ads) == 1:
            return ads[0], entrant.campaign.weight / total
        return _pick(entrant, point - (self._bounds[at - 1] if at else 0.0), total)

    def chances(self) -> Iterator[tuple[Ad, float]]:
        """Each ad, and the probability with which it is picked."""
        for entrant in self._entrants or self._weights.entrants_in(self._live):
            for ad in entrant.ads:
                yield ad, ad.creative.weight / entrant.bounds[-1] * entrant.campaign.weight / self.total

    def _draw_up(self) -> None:
        self._entrants = self._weights.entrants_in(self._live)
        bounds = array("d", accumulate([entrant.campaign.weight for entrant in self._entrants]))
        bounds.pop()
        self._bounds = bounds


_NO_BOUNDS = array("d")


def _pick(entrant: Entrant, point: float, total: float) -> tuple[Ad, float]:
    """The ad at `point` of a campaign's own interval."""
    weight = entrant.campaign.weight
    ads = entrant.ads
    if len(ads) == 1:
        return ads[0], weight / total
    # Where in the campaign's interval the point lies is as random as the point itself.
    ad, chance = entrant.pick(point / weight)
    return ad, chance * weight / total


KeptBack = tuple[tuple[Reason, int], ...]
"""Campaigns of a placement as masks, by what keeps them back; each is there once."""


class Standing(NamedTuple):
    """Which campaigns of a placement delivery counts hold back, and which go first in their tier."""

    held: KeptBack
    behind: int

    def held_of(self, mask: int) -> KeptBack:
        """Those of `mask` that are held back, by reason."""
        return tuple((reason, some) for reason, held in self.held if (some := mask & held)) if self.held else ()


NOBODY_STANDS = Standing((), 0)

_named: tuple[Mapping[str, Reason], dict[Reason, list[str]]] = {}, {}


def _names_by_reason(held: Mapping[str, Reason]) -> dict[Reason, list[str]]:
    """The campaigns by reason, in the order in which reasons are checked: once for all placements of a page."""
    global _named
    if held is not _named[0]:
        names: dict[Reason, list[str]] = {reason: [] for reason in Reason}
        for campaign_id, reason in held.items():
            names[reason].append(campaign_id)
        _named = held, {reason: some for reason, some in names.items() if some}
    return _named[1]


class PlacementIndex:
    """The campaigns that have something to show in one placement; campaign i is bit i of every mask."""

    __slots__ = (
        "_drawing_room",
        "_drawings",
        "_held",
        "_standing",
        "_weights",
        "_window",
        "absent",
        "campaigns",
        "ends",
        "entrants",
        "ids",
        "placement",
        "positions",
        "starts",
        "targeting",
        "tiers",
    )

    def __init__(self, placement: Placement, entrants: Sequence[Entrant], absent: Mapping[str, Reason]) -> None:
        for _ in self._compile(placement, entrants, absent):
            pass

    @classmethod
    def compile(
        cls, placement: Placement, entrants: Sequence[Entrant], absent: Mapping[str, Reason]
    ) -> "Steps[PlacementIndex]":
        """The same as the constructor, step by step."""
        index = cls.__new__(cls)
        yield from index._compile(placement, entrants, absent)
        return index

    def _compile(
        self, placement: Placement, entrants: Sequence[Entrant], absent: Mapping[str, Reason]
    ) -> "Steps[None]":
        self.placement = placement
        self.entrants = tuple(entrants)
        self.campaigns = tuple(entrant.campaign for entrant in entrants)
        self.absent = absent
        self.ids = tuple(campaign.id for campaign in self.campaigns)
        self.positions = {campaign_id: position for position, campaign_id in enumerate(self.ids)}
        self._weights = Weights(self.entrants)
        yield
        self.targeting = yield from TargetingIndex.compile([campaign.targeting for campaign in self.campaigns])
        self.starts = tuple(c.starts_at.timestamp() if c.starts_at else None for c in self.campaigns)
        self.ends = tuple(c.ends_at.timestamp() if c.ends_at else None for c in self.campaigns)
        yield
        tiers = dict.fromkeys(PRIORITIES, 0)
        for position, campaign in enumerate(self.campaigns):
            tiers[campaign.priority] |= 1 << position
        self.tiers = tuple(mask for mask in tiers.values() if mask)
        yield
        self._window = self._find_window(0.0)
        self._drawings: dict[int, Drawing | None] = {}
        self._drawing_room = DRAWN_MAX
        self._held: Mapping[str, Reason] = {}
        self._standing = NOBODY_STANDS

    def match(self, facts: Facts, moment: Moment) -> tuple[int, Dropped]:
        """The campaigns that dates and targeting let through, and how many of the others fell to what first."""
        window = self.window_at(moment.time)
        key = (self.targeting.relevant(facts), moment.hour, moment.weekday)
        matches = window.matches
        found = matches.get(key)
        if found is None:
            mask, dropped = self.targeting.match(facts, moment, window.running)
            found = mask, window.dropped + dropped
            if len(matches) >= MATCHES_MAX:
                matches.clear()
            matches[key] = found
        return found

    def window_at(self, time: float) -> Window:
        """The dates' verdict at `time` (epoch seconds)."""
        window = self._window
        if not window.start <= time < window.end:
            window = self._window = self._find_window(time)
        return window

    def standing(self, held: Mapping[str, Reason]) -> "Standing":
        """Which campaigns `held` holds back, and which go first, being behind their schedule.

        `held` is replaced, never changed, so its identity is its version.
        """
        if held is not self._held:
            self._standing = self._find_standing(held)
            self._held = held
        return self._standing

    def yielding(self, mask: int, behind: int) -> int:
        """Those of the first tier in `mask` that let others of it, which are `behind`, go first."""
        for tier in self.tiers:
            live = mask & tier
            if live:
                return live & ~behind if live & behind else 0
        return 0

    def mask_of(self, campaign_ids: Collection[str]) -> int:
        found = [at for at in map(self.positions.get, campaign_ids) if at is not None]
        return sum(1 << at for at in found) if len(found) < FEW else mask_at(found, len(self.ids))

    def ids_in(self, mask: int) -> Iterator[str]:
        return compress(self.ids, flags(mask))

    def drawing(self, mask: int, *, is_common: bool = True) -> Drawing | None:
        """The choice among the campaigns of `mask`, None when there are none; large ones are kept if `is_common`."""
        if mask in self._drawings:
            return self._drawings[mask]
        live = next((mask & tier for tier in self.tiers if mask & tier), 0)
        size = live.bit_count()
        drawing = Drawing(self._weights, live, self._dropped(mask, live)) if size else None
        if not is_common and size >= SEARCHED_MIN:
            return drawing
        room = (size or 1) + len(self.entrants) // MASK_CAMPAIGNS
        if self._drawing_room < room:
            self._drawings.clear()
            self._drawing_room = DRAWN_MAX
        self._drawing_room -= room
        self._drawings[mask] = drawing
        return drawing

    def forget(self) -> Steps[None]:
        """Empty the memories, a little at a time."""
        for memory in (self._window.matches, self._drawings):
            while memory:
                for _ in range(min(len(memory), BATCH)):
                    memory.popitem()
                yield
        self._drawing_room = DRAWN_MAX

    @staticmethod
    def _dropped(mask: int, live: int) -> Dropped:
        """Those of `mask` that are not drawn, when one of `live`, its first tier, is."""
        counts = (
            (Reason.LOWER_PRIORITY, (mask ^ live).bit_count()),
            (Reason.LOST_DRAW, live.bit_count() - 1),
        )
        return tuple(entry for entry in counts if entry[1])

    def _find_standing(self, held: Mapping[str, Reason]) -> Standing:
        masks = {
            reason: mask_at([at for at in map(self.positions.get, names) if at is not None], len(self.ids))
            for reason, names in _names_by_reason(held).items()
        }
        behind = masks.pop(Reason.BEHIND_SCHEDULE, 0)
        return Standing(tuple((reason, mask) for reason, mask in masks.items() if mask), behind)

    def _find_window(self, time: float) -> Window:
        window_start, window_end = float("-inf"), float("inf")
        early: list[int] = []
        late: list[int] = []
        for position, (start, end) in enumerate(zip(self.starts, self.ends, strict=True)):
            if start is not None and time < start:
                early.append(position)
                window_end = min(window_end, start)
            elif end is not None and time >= end:
                late.append(position)
                window_start = max(window_start, end)
            else:
                window_start = max(window_start, start or window_start)
                window_end = min(window_end, end or window_end)
        size = len(self.ids)
        early_mask, late_mask = mask_at(early, size), mask_at(late, size)
        return Window(window_start, window_end, self.targeting.everyone ^ early_mask ^ late_mask, early_mask, late_mask)


class Booking(msgspec.Struct, frozen=True, eq=False, gc=False):
    """A creative and its campaign."""

    campaign: Campaign
    creative: Creative


class Creatives:
    """Every creative by its id, with its campaign."""

    __slots__ = ("_count", "_parts")

    def __init__(self, parts: Sequence[dict[str, Booking]]) -> None:
        self._parts = parts
        self._count = sum(map(len, parts))

    def __len__(self) -> int:
        return self._count

    def get(self, creative_id: str) -> tuple[Campaign, Creative] | None:
        booking = self._parts[hash(creative_id) % PARTS].get(creative_id)
        return None if booking is None else (booking.campaign, booking.creative)

    def parts(self) -> Iterator[object]:
        yield from self._parts

    def changed(self, gone: Iterable[Campaign], new: Iterable[Campaign]) -> Steps["Creatives"]:
        """The same without the creatives of some campaigns, and with those of others."""
        parts = list(self._parts)
        copied: set[int] = set()

        def part_of(creative: Creative) -> dict[str, Booking]:
            number = hash(creative.id) % PARTS
            if number not in copied:
                copied.add(number)
                parts[number] = parts[number].copy()
            return parts[number]

        for campaign in gone:
            for creative in campaign.creatives:
                del part_of(creative)[creative.id]
            yield
        for campaign in new:
            for creative in campaign.creatives:
                part_of(creative)[creative.id] = Booking(campaign, creative)
            yield
        return Creatives(parts)


class AdTable:
    """All placements and campaigns of one revision, and the rows that were left out of it."""

    __slots__ = (
        "campaigns",
        "caps",
        "creatives",
        "generation",
        "limited",
        "placements",
        "rejected",
        "revision",
    )

    def __init__(
        self,
        revision: int,
        rejected: tuple[Problem, ...],
        campaigns: Mapping[str, Campaign],
        creatives: Creatives,
        limited: Mapping[str, Campaign],
        caps: Caps,
        placements: Mapping[str, PlacementIndex],
        generation: str = "",
    ) -> None:
        self.generation = generation
        """Of the store that `revision` is one of; "" when unknown."""
        self.revision = revision
        self.rejected = rejected
        self.campaigns = campaigns
        self.creatives = creatives
        """Clicks arrive after a campaign was paused or has ended, so all are here for their landing URLs."""
        self.limited = limited
        """The campaigns with a goal or a cap."""
        self.caps = caps
        self.placements = placements

    @property
    def creative_count(self) -> int:
        return len(self.creatives)

    def has(self, ad: Ad) -> bool:
        """Whether this very one can be picked from this table, and not its like from another revision."""
        index = self.placements.get(ad.placement.id)
        position = None if index is None else index.positions.get(ad.campaign.id)
        return index is not None and position is not None and ad in index.entrants[position].ads


EMPTY = AdTable(0, (), {}, Creatives([{} for _ in range(PARTS)]), {}, {}, {})


def build_table(document: object, *, revision: int, generation: str = "") -> AdTable:
    """Compile a document (the JSON form of the inventory, with what was learned). Bad rows are left out and named in
    `rejected`."""
    inventory, rejected = check_document(document)
    return finish(change_table(EMPTY, revision, inventory.placements, inventory.campaigns, rejected, generation))


def check_document(document: object) -> tuple[Inventory, tuple[Problem, ...]]:
    """The valid rows of a document, with what was learned about them, and what is wrong with the others."""
    inventory, problems = check_inventory(document)
    if isinstance(document, Mapping):
        learned, more = read_learned(document)
        return teach(inventory, learned), problems + more
    return inventory, problems


def finish(steps: Steps[T]) -> T:
    """Do all the steps at once."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result


def change_table(
    before: AdTable,
    revision: int,
    placements: Sequence[Placement],
    campaigns: Sequence[Campaign],
    rejected: tuple[Problem, ...],
    generation: str = "",
) -> Steps[AdTable]:
    """Another table, which shares with `before` what is the same in both, and is otherwise as if built anew.

    A campaign is the same when it is the very object that `before` has. Each step takes some tens of microseconds, or
    as long as one look at every campaign of one placement.
    """
    there: dict[str, Campaign] = {}
    new: list[Campaign] = []
    for batch in _batches(campaigns):
        there.update({campaign.id: campaign for campaign in batch})
        new += [campaign for campaign in batch if before.campaigns.get(campaign.id) is not campaign]
        yield
    gone: list[Campaign] = []
    for batch in _batches(tuple(before.campaigns.values())):
        gone += [campaign for campaign in batch if there.get(campaign.id) is not campaign]
        yield
    creatives = yield from before.creatives.changed(gone, new)
    limited = dict(before.limited)
    caps = dict(before.caps)
    for batch in _batches(gone):
        for campaign in batch:
            limited.pop(campaign.id, None)
            caps.pop(campaign_key(campaign.id), None)
        yield
    for batch in _batches(new):
        for campaign in batch:
            if is_limited(campaign):
                limited[campaign.id] = campaign
            cap = campaign.frequency_cap
            if cap is not None:
                caps[campaign_key(campaign.id)] = Cap(cap.impressions, cap.seconds, campaign.id)
        yield
    indexes = yield from _index(before, placements, campaigns, there, new, gone)
    return AdTable(revision, rejected, there, creatives, limited, caps, indexes, generation)


def let_go(table: AdTable, successor: AdTable) -> Steps[None]:
    """Free what only `table` has, piece by piece, if the caller has dropped it; at once it would take milliseconds."""
    shared = set(map(id, successor.placements.values()))
    indexes = [index for index in table.placements.values() if id(index) not in shared]
    pieces: list[object] = [*table.creatives.parts(), *table.campaigns.values()]
    del table
    yield
    while pieces:
        pieces.pop()
        yield
    while indexes:
        yield from indexes.pop().forget()
        yield


def bits(mask: int) -> Iterator[int]:
    """The positions of the set bits, lowest first."""
    return compress(count(), flags(mask))


def flags(mask: int) -> bytes:
    """The bits as bytes, lowest first, up to the highest that is set."""
    return bin(mask)[:1:-1].encode().translate(_FLAGS)


def _batches(items: Sequence[S]) -> Iterator[Sequence[S]]:
    """As many at once as take some tens of microseconds to look at."""
    for start in range(0, len(items), BATCH):
        yield items[start : start + BATCH]


class _Sizes:
    """Placements, to be found by the campaigns that could be shown there."""

    def __init__(self, placements: Iterable[Placement]) -> None:
        self._by_id = {placement.id: placement for placement in placements}
        self._by_size: dict[tuple[int, int], list[Placement]] = {}
        for placement in self._by_id.values():
            self._by_size.setdefault((placement.width, placement.height), []).append(placement)

    def tried_by(self, campaign: Campaign) -> list[Placement]:
        """Campaigns for any placement are tried where their sizes fit, those that name placements there."""
        wanted = campaign.targeting.placements
        if wanted:
            return [self._by_id[placement_id] for placement_id in wanted if placement_id in self._by_id]
        sizes = dict.fromkeys(creative.placement_size for creative in campaign.creatives)
        return [placement for size in sizes for placement in self._by_size.get(size, ())]


def _index(
    before: AdTable,
    placements: Sequence[Placement],
    campaigns: Sequence[Campaign],
    there: Mapping[str, Campaign],
    new: Sequence[Campaign],
    gone: Sequence[Campaign],
) -> Steps[dict[str, PlacementIndex]]:
    """The index of each placement; that of `before` where neither the placement nor a campaign tried there changed."""
    kept = {
        placement.id: index
        for placement in placements
        if (index := before.placements.get(placement.id)) is not None and index.placement == placement
    }
    left_out = {campaign.id for campaign in gone}
    changed = {campaign.id for campaign in new}
    # Campaigns that changed places have changed the order in every index.
    positions: dict[str, int] = {}
    stayed = iter(before.campaigns)
    for batch in _batches(tuple(there)):
        for campaign_id in batch:
            positions[campaign_id] = len(positions)
            if kept and campaign_id not in changed:
                before_it = next(name for name in stayed if name not in left_out)
                if before_it != campaign_id:
                    kept = {}
        yield
    # By placement, what each campaign that has to be looked at has to show there, or why it has nothing.
    found: dict[str, dict[str, Entrant | Reason]] = {p.id: {} for p in placements if p.id not in kept}
    every, fresh = _Sizes(placements), _Sizes(p for p in placements if p.id not in kept)
    for campaign in campaigns if found else new:
        for placement in (every if campaign.id in changed else fresh).tried_by(campaign):
            found.setdefault(placement.id, {})[campaign.id] = _enter(placement, campaign)
        yield
    for campaign in gone:
        for placement in every.tried_by(campaign):
            found.setdefault(placement.id, {})
        yield
    indexes = {}
    for placement in placements:
        here = found.get(placement.id)
        index = kept.get(placement.id)
        if here is None:
            assert index is not None
            indexes[placement.id] = index
            continue
        entrants = {name: entrant for name, entrant in here.items() if isinstance(entrant, Entrant)}
        absent = {name: reason for name, reason in here.items() if isinstance(reason, Reason)}
        yield
        if index is not None:
            placement = index.placement
            for entrant in index.entrants:
                name = entrant.campaign.id
                if name not in left_out:
                    entrants[name] = entrant
            absent.update((name, why) for name, why in index.absent.items() if name not in left_out)
            yield
        in_order = [entrants[name] for name in sorted(entrants, key=positions.__getitem__)]
        yield
        indexes[placement.id] = yield from PlacementIndex.compile(placement, in_order, absent)
        yield
    return indexes


def _enter(placement: Placement, campaign: Campaign) -> Entrant | Reason:
    """What the campaign has to show in the placement, or why it has nothing."""
    size = placement.width, placement.height
    of_size = [creative for creative in campaign.creatives if creative.placement_size == size]
    fitting = [creative for creative in of_size if creative.format in placement.formats]
    if not fitting:
        return Reason.FORMAT if of_size else Reason.SIZE
    if campaign.status != "active":
        return Reason.PAUSED
    ads = tuple(Ad(placement, campaign, creative) for creative in fitting)
    return Entrant(campaign, ads, array("q", accumulate(creative.weight for creative in fitting)))
