"""Frequency caps: what one visitor has seen of capped campaigns, and which of these are at their cap.

A history is a list of (campaign, time, count), in any order. The window slides: a cap of 3 per day means at
most 3 within any 24 hours. Histories live in the visitor's cookies, or here in memory for callers that name
their visitors; both keep them packed, 12 bytes an entry.
"""

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b
from struct import Struct
from typing import NamedTuple

# A folded history of this many entries fills 2 KiB of a cookie, a quarter of nginx's default header buffer.
ENTRIES_MAX = 128
# Folding merges entries of one campaign within this part of its window; coarser ones only when there is no
# room.
GRANULARITY = 8
_GRANULARITIES = (GRANULARITY, 2, 1)
# What no cap asks about is kept this long: another host may know the campaign already, or a bad row hide it
# for a while.
UNKNOWN_KEPT_S = 86_400
# Caps end at 10,000, so a count that stops here is still over any cap.
COUNT_MAX = 0xFFFF

_ENTRY = Struct(">HIIH")  # 48 bits of campaign, 32 of time, 16 of count
ENTRY_BYTES = _ENTRY.size


class Seen(NamedTuple):
    """`impressions` of a campaign (by its 48-bit key), the last of them at `time` (epoch seconds)."""

    campaign_key: int
    time: int
    impressions: int


class Cap(NamedTuple):
    impressions: int
    seconds: int
    campaign: str


History = tuple[Seen, ...]
Caps = Mapping[int, Cap]
"""By campaign key."""


def campaign_key(campaign_id: str) -> int:
    """48 bits that stand for the campaign where space is dear."""
    return int.from_bytes(blake2b(campaign_id.encode(), digest_size=6).digest())


def capped(history: Iterable[Seen], caps: Caps, now: float) -> frozenset[str]:
    """The ids of the campaigns whose cap this history has reached."""
    counts: dict[int, int] = {}
    for key, time, count in history:
        cap = caps.get(key)
        if cap is not None and time > now - cap.seconds:
            counts[key] = counts.get(key, 0) + count
    return frozenset(caps[key].campaign for key, count in counts.items() if count >= caps[key].impressions)


def fold(history: Iterable[Seen], caps: Caps, now: float) -> History:
    """The same history in at most ENTRIES_MAX entries: without what is past its window, neighbours merged.

    Entries of one campaign merge when they fall into the same eighth of its window, counted from the epoch,
    and take the latest time of them. So a cap never ends early; it may hold up to an eighth of its window
    longer, and folding again adds nothing to that. Only for a visitor who has seen a dozen capped campaigns
    or more do the eighths become halves and then wholes; past 64 campaigns the oldest are forgotten.
    """
    live = [
        seen
        for seen in history
        if seen.time > now - (caps[seen.campaign_key].seconds if seen.campaign_key in caps else UNKNOWN_KEPT_S)
    ]
    if len(live) < 2:
        return tuple(live)
    folded: list[Seen] = []
    for granularity in _GRANULARITIES:
        folded = sorted(_merge(live, caps, granularity), key=_by_time)
        if len(folded) <= ENTRIES_MAX:
            break
    return tuple(folded[-ENTRIES_MAX:])


def _merge(history: Iterable[Seen], caps: Caps, granularity: int) -> Iterator[Seen]:
    merged: dict[tuple[int, int], tuple[int, int]] = {}
    for key, time, count in history:
        cap = caps.get(key)
        # The window of an unknown campaign may be of any length, so only what is of one second merges.
        step = max(1, cap.seconds // granularity) if cap is not None else 1
        slot = key, time // step
        latest, total = merged.get(slot, (0, 0))
        merged[slot] = max(latest, time), min(total + count, COUNT_MAX)
    return (Seen(key, time, count) for (key, _), (time, count) in merged.items())


def _by_time(seen: Seen) -> tuple[int, int]:
    # The key breaks ties, so that a fold does not depend on the order in which its history came.
    return seen.time, seen.campaign_key


def needed_until(history: Iterable[Seen], caps: Caps) -> int:
    """When the last entry falls out of its window (epoch seconds), 0 for no entries."""
    return max((time + (caps[key].seconds if key in caps else UNKNOWN_KEPT_S) for key, time, _ in history), default=0)


def pack(history: Iterable[Seen]) -> bytes:
    return b"".join(
        _ENTRY.pack(key >> 32, key & 0xFFFFFFFF, time, min(count, COUNT_MAX)) for key, time, count in history
    )


def unpack(packed: bytes) -> History:
    """The history in a whole number of entries."""
    return tuple(Seen(high << 32 | low, time, count) for high, low, time, count in _ENTRY.iter_unpack(packed))


class FrequencyMemory:
    """Histories by user key, for callers that know their visitors. Past `users_max`, those forget first who
    were shown a capped campaign longest ago.

    A user costs some 250 bytes and 12 per entry, and nothing that the garbage collector looks at.
    """

    __slots__ = ("_packed", "users_max")

    # A history is folded each time that it reaches a multiple of this many entries: a fold every so many
    # records whatever its length, and never more than ENTRIES_MAX + FOLD_EVERY of them.
    FOLD_EVERY = 16

    def __init__(self, users_max: int = 200_000) -> None:
        self.users_max = users_max
        self._packed: OrderedDict[str, bytes] = OrderedDict()

    def __len__(self) -> int:
        return len(self._packed)

    def history(self, user: str) -> History:
        packed = self._packed.get(user)
        return unpack(packed) if packed is not None else ()

    def record(self, user: str, seen: Seen, caps: Caps, now: float) -> None:
        packed = self._packed.get(user, b"") + pack((seen,))
        if len(packed) % (self.FOLD_EVERY * ENTRY_BYTES) == 0:
            packed = pack(fold(unpack(packed), caps, now))
        self._packed[user] = packed
        self._packed.move_to_end(user)
        if len(self._packed) > self.users_max:
            self._packed.popitem(last=False)
