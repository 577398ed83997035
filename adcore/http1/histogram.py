"""How long things took: counts in bounded space, and percentiles out of them."""

from collections.abc import Iterable

Bucket = tuple[int, int]
"""(upper bound in microseconds, count)"""


class Histogram:
    """Durations in buckets of one microsecond below a millisecond, and of powers of two above."""

    __slots__ = ("_coarse", "_fine", "total_us")

    FINE_MAX = 1000

    def __init__(self) -> None:
        self._fine = [0] * self.FINE_MAX
        self._coarse = [0] * 64
        """Bucket n has what took 2**(n-1) to 2**n microseconds."""
        self.total_us = 0
        """All durations together, each rounded down."""

    def add(self, seconds: float, count: int = 1) -> None:
        us = int(seconds * 1e6)
        if 0 <= us < 1000:
            self._fine[us] += count
            self.total_us += us * count
        elif us > 0:  # a clock that was set back says nothing
            self._coarse[min(us.bit_length(), 63)] += count
            self.total_us += us * count

    def buckets_us(self) -> list[Bucket]:
        """The buckets that have any, in order."""
        fine = [(us + 1, count) for us, count in enumerate(self._fine) if count]
        return fine + [(1 << bits, count) for bits, count in enumerate(self._coarse) if count]

    def percentiles_us(self) -> dict[str, int | None]:
        """Upper bounds of the median, p99 and p99.9 in microseconds; None before the first one."""
        return percentiles_us(self.buckets_us())


def percentiles_us(buckets: Iterable[Bucket]) -> dict[str, int | None]:
    """The same of any buckets, which come in order."""
    buckets = list(buckets)
    total = sum(count for _, count in buckets)
    found: dict[str, int | None] = {}
    for name, share in (("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)):
        left = total * share
        found[name] = None
        for bound, count in buckets:
            found[name] = bound
            left -= count
            if left <= 0:
                break
    return found
