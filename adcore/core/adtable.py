"""The ad table: everything a decision reads, compiled once from a document and then never changed.

The idea is that a decision only ever looks at its own placement: `PlacementIndex` numbers the campaigns that could
be shown there and keeps every rule about them as a bit mask over those numbers (see targeting.py). What it remembers
besides (`Window`, `Drawing`) are results of pure functions of the table, kept within stated bounds; forgetting them
at any moment changes nothing but the time the next decision takes.

A new table is built beside the old one and takes its place in a single assignment, so no answer mixes two.
"""

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate

from adcore.core.calendar import Moment
from adcore.core.facts import Facts
from adcore.core.frequency import Cap, campaign_key
from adcore.core.inventory import Campaign, Creative, Placement, Problem, check_inventory
from adcore.core.pacing import is_limited
from adcore.core.reason import Reason
from adcore.core.targeting import Dropped, TargetingIndex

PRIORITIES = ("sponsorship", "standard", "house")

# Distinct combinations of facts remembered per placement. Real traffic repeats a few hundred; random keywords must
# not fill the memory.
MATCHES_MAX = 4096
# Weighted choices remembered per placement, in creatives over all of them (16 bytes each).
DRAWN_ADS_MAX = 65536


class Ad:
    """One creative in one placement, with the campaign it belongs to: what a decision chooses."""

    __slots__ = ("campaign", "creative", "placement")

    def __init__(self, placement: Placement, campaign: Campaign, creative: Creative) -> None:
        self.placement = placement
        self.campaign = campaign
        self.creative = creative


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


class Drawing:
    """The weighted choice among the ads of the first tier that has any: half-open intervals of [0, total)."""

    __slots__ = ("_bounds", "_total", "chances", "dropped")

    def __init__(self, ads: Sequence[Ad], weights: Sequence[float], dropped: Dropped) -> None:
        bounds = list(accumulate(weights))
        self._total = bounds.pop()
        # The last one has no upper bound, so that it takes a product that rounds up to the total itself.
        self._bounds = bounds
        self.chances = [(ad, weight / self._total) for ad, weight in zip(ads, weights, strict=True)]
        """Each ad, and the probability with which it is picked."""
        self.dropped = dropped

    def pick(self, draw: float) -> tuple[Ad, float]:
        """The ad at `draw`, a number in [0, 1), and the probability with which it is picked."""
        return self.chances[bisect_right(self._bounds, draw * self._total)]


class PlacementIndex:
    """The campaigns that have something to show in one placement; campaign i is bit i of every mask."""

    __slots__ = (
        "_drawing_room",
        "_drawings",
        "_held",
        "_held_mask",
        "_window",
        "absent",
        "ads",
        "campaigns",
        "ends",
        "placement",
        "positions",
        "starts",
        "targeting",
        "tiers",
    )

    def __init__(
        self,
        placement: Placement,
        candidates: Sequence[tuple[Campaign, tuple[Ad, ...]]],
        absent: Mapping[str, Reason],
    ) -> None:
        self.placement = placement
        self.campaigns = tuple(campaign for campaign, _ in candidates)
        self.ads = tuple(ads for _, ads in candidates)
        self.absent = absent
        self.positions = {campaign.id: position for position, campaign in enumerate(self.campaigns)}
        self.targeting = TargetingIndex([campaign.targeting for campaign in self.campaigns])
        self.starts = tuple(c.starts_at.timestamp() if c.starts_at else None for c in self.campaigns)
        self.ends = tuple(c.ends_at.timestamp() if c.ends_at else None for c in self.campaigns)
        tiers = dict.fromkeys(PRIORITIES, 0)
        for position, campaign in enumerate(self.campaigns):
            tiers[campaign.priority] |= 1 << position
        self.tiers = tuple(mask for mask in tiers.values() if mask)

        self._window = self._find_window(0.0)
        self._drawings: dict[int, Drawing | None] = {}
        self._drawing_room = DRAWN_ADS_MAX
        self._held: Mapping[str, Reason] = {}
        self._held_mask = 0

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

    def held_mask(self, held: Mapping[str, Reason]) -> int:
        """The campaigns that `held` names. `held` is replaced, never changed, so its identity is its version."""
        if held is not self._held:
            self._held_mask = self.mask_of(held)
            self._held = held
        return self._held_mask

    def mask_of(self, campaign_ids: Mapping[str, Reason] | frozenset[str] | set[str]) -> int:
        mask = 0
        positions = self.positions
        for campaign_id in campaign_ids:
            position = positions.get(campaign_id)
            if position is not None:
                mask |= 1 << position
        return mask

    def ids_in(self, mask: int) -> Iterator[str]:
        for position in bits(mask):
            yield self.campaigns[position].id

    def drawing(self, mask: int) -> Drawing | None:
        """The choice among the campaigns of `mask`; None when there are none."""
        if mask in self._drawings:
            return self._drawings[mask]
        drawing = self._draw_up(mask)
        size = len(drawing.chances) if drawing else 1
        if self._drawing_room < size:
            self._drawings.clear()
            self._drawing_room = DRAWN_ADS_MAX
        self._drawing_room -= size
        self._drawings[mask] = drawing
        return drawing

    def _draw_up(self, mask: int) -> Drawing | None:
        for tier in self.tiers:
            live = mask & tier
            if live:
                break
        else:
            return None
        ads: list[Ad] = []
        weights: list[float] = []
        for position in bits(live):
            # A campaign's weight is shared out among its creatives, so that more creatives don't mean more share.
            campaign_weight = self.campaigns[position].weight
            of_campaign = self.ads[position]
            creatives_weight = sum(ad.creative.weight for ad in of_campaign)
            for ad in of_campaign:
                ads.append(ad)
                weights.append(campaign_weight * ad.creative.weight / creatives_weight)
        counts = (
            (Reason.LOWER_PRIORITY, (mask ^ live).bit_count()),
            (Reason.LOST_DRAW, live.bit_count() - 1),
        )
        return Drawing(ads, weights, tuple(entry for entry in counts if entry[1]))

    def _find_window(self, time: float) -> Window:
        window_start, window_end = float("-inf"), float("inf")
        running = early = late = 0
        for position, (start, end) in enumerate(zip(self.starts, self.ends, strict=True)):
            if start is not None and time < start:
                early |= 1 << position
                window_end = min(window_end, start)
            elif end is not None and time >= end:
                late |= 1 << position
                window_start = max(window_start, end)
            else:
                running |= 1 << position
                window_start = max(window_start, start or window_start)
                window_end = min(window_end, end or window_end)
        return Window(window_start, window_end, running, early, late)


class AdTable:
    """All placements and campaigns of one revision, and the rows that were left out of it."""

    __slots__ = (
        "campaigns",
        "caps",
        "creative_count",
        "creatives",
        "limited",
        "placements",
        "rejected",
        "revision",
    )

    def __init__(
        self,
        revision: int,
        placements: Sequence[Placement],
        campaigns: Sequence[Campaign],
        rejected: tuple[Problem, ...],
    ) -> None:
        self.revision = revision
        self.rejected = rejected
        self.campaigns = {campaign.id: campaign for campaign in campaigns}
        # Clicks arrive after a campaign was paused or has ended, so every valid creative is kept for its landing URL.
        self.creatives = {
            creative.id: (campaign, creative) for campaign in campaigns for creative in campaign.creatives
        }
        self.creative_count = len(self.creatives)
        self.limited = frozenset(campaign.id for campaign in campaigns if is_limited(campaign))
        self.caps = {
            campaign_key(campaign.id): Cap(cap.impressions, cap.seconds, campaign.id)
            for campaign in campaigns
            if (cap := campaign.frequency_cap) is not None
        }
        self.placements = _index(placements, campaigns)


def build_table(document: object, *, revision: int) -> AdTable:
    """Compile a document (the JSON form of the inventory). Bad rows are left out and named in `rejected`."""
    inventory, rejected = check_inventory(document)
    return AdTable(revision, inventory.placements, inventory.campaigns, rejected)


def bits(mask: int) -> Iterator[int]:
    """The positions of the set bits, lowest first."""
    while mask:
        lowest = mask & -mask
        yield lowest.bit_length() - 1
        mask ^= lowest


def _index(placements: Sequence[Placement], campaigns: Sequence[Campaign]) -> dict[str, PlacementIndex]:
    by_size: dict[tuple[int, int], list[Placement]] = {}
    for placement in placements:
        by_size.setdefault((placement.width, placement.height), []).append(placement)
    candidates: dict[str, list[tuple[Campaign, tuple[Ad, ...]]]] = {p.id: [] for p in placements}
    absent: dict[str, dict[str, Reason]] = {p.id: {} for p in placements}
    by_id = {placement.id: placement for placement in placements}
    for campaign in campaigns:
        # Campaigns for any placement are tried where their sizes fit, those that name placements there.
        wanted = campaign.targeting.placements
        sizes = dict.fromkeys(creative.placement_size for creative in campaign.creatives)
        tried = (
            [by_id[placement_id] for placement_id in wanted if placement_id in by_id]
            if wanted
            else [placement for size in sizes for placement in by_size.get(size, ())]
        )
        for placement in tried:
            of_size = [
                creative
                for creative in campaign.creatives
                if creative.placement_size == (placement.width, placement.height)
            ]
            fitting = tuple(
                Ad(placement, campaign, creative) for creative in of_size if creative.format in placement.formats
            )
            if fitting and campaign.status == "active":
                candidates[placement.id].append((campaign, fitting))
            else:
                reason = Reason.PAUSED if fitting else Reason.FORMAT if of_size else Reason.SIZE
                absent[placement.id][campaign.id] = reason
    return {p.id: PlacementIndex(p, candidates[p.id], absent[p.id]) for p in placements}
