"""Counting a thing once per window: a bounded memory of keys and when they were first seen."""

from collections import OrderedDict


class OncePerWindow:
    """Remembers up to `keys_max` keys for `window_s` seconds each; past the bound the oldest is forgotten early."""

    def __init__(self, window_s: float, keys_max: int = 1_000_000) -> None:
        self.window_s = window_s
        self.keys_max = keys_max
        self._seen: OrderedDict[str, float] = OrderedDict()

    def first(self, key: str, now: float) -> bool:
        """Whether `key` is seen for the first time in its window, which starts now if so (`now` in seconds)."""
        seen = self._seen
        while seen:
            oldest, at = next(iter(seen.items()))
            # A clock set back must not keep keys for longer than a window.
            if 0 <= now - at < self.window_s and len(seen) < self.keys_max:
                break
            del seen[oldest]
        if key in seen:
            return False
        seen[key] = now
        return True
