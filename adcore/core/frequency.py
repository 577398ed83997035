"""Frequency caps: what one visitor has seen of capped campaigns, and which of these are at their cap.

A history is a list of (campaign, time, impressions). The window slides: 3 per day means at most 3 in any 24 hours.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import NamedTuple

# A folded history of this many entries fills 2 KiB of a cookie, a quarter of nginx's default header buffer.
ENTRIES_MAX = 128
# A window is folded into this many entries of a campaign, and one more at its edges.
GRANULARITY = 8


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


def campaign_key(campaign_id: str) -> int:
    """48 bits that stand for the campaign in cookies."""
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
    """The same history in fewer entries: without what no cap asks about, neighbours merged, bounded.

    A campaign's entries within the same eighth of its window, counted from the epoch, become one with the latest time.
    So a cap may hold up to an eighth of its window longer, never shorter, and folding again changes nothing. Past the
    bound the oldest entries are forgotten.
    """
    merged: dict[tuple[int, int], Seen] = {}
    for key, time, count in history:
        cap = caps.get(key)
        if cap is None or time <= now - cap.seconds:
            continue
        stretch = (key, time // max(cap.seconds // GRANULARITY, 1))
        before = merged.get(stretch)
        if before is not None:
            merged[stretch] = Seen(key, max(time, before.time), before.impressions + count)
        else:
            merged[stretch] = Seen(key, time, count)
    return tuple(sorted(merged.values(), key=lambda seen: seen.time)[-ENTRIES_MAX:])


class FrequencyMemory:
    """Histories by user key, for callers that know their visitors. The least recently shown users are forgotten."""

    def __init__(self, users_max: int = 200_000) -> None:
        self.users_max = users_max
        self._histories: OrderedDict[str, History] = OrderedDict()

    def __len__(self) -> int:
        return len(self._histories)

    def history(self, user: str) -> History:
        return self._histories.get(user, ())

    def record(self, user: str, seen: Seen, caps: Caps, now: float) -> None:
        histories = self._histories
        history = (*histories.get(user, ()), seen)
        # Sliding through 2 * the bound before folding keeps the cost of a record constant on average.
        histories[user] = fold(history, caps, now) if len(history) > 2 * GRANULARITY else history
        histories.move_to_end(user)
        if len(histories) > self.users_max:
            histories.popitem(last=False)
