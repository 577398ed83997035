"""What was delivered, as plain data: what counter files hold and processes tell each other."""

CounterState = dict[str, tuple[int, int, int, int, int]]
"""{campaign: (impressions, clicks, day, impressions on that day, clicks on that day)}; a day is a date's ordinal"""
NOTHING = (0, 0, 0, 0, 0)
Figures = tuple[int, int, int, int]
"""Impressions and clicks, in all and on the day in question."""
ZERO: Figures = (0, 0, 0, 0)
# So many campaigns are told at once: what encodes them holds the loop up for some 50 us.
PART_MAX = 250


def figures(counts: tuple[int, int, int, int, int], day: int) -> Figures:
    impressions, clicks, of_day, impressions_today, clicks_today = counts
    return (impressions, clicks, impressions_today, clicks_today) if of_day == day else (impressions, clicks, 0, 0)


def add_to_parts(parts: list[CounterState], campaign: str, counts: tuple[int, int, int, int, int]) -> None:
    """Put the counts into the last part, or into another one when that is full."""
    if not parts or len(parts[-1]) == PART_MAX:
        parts.append({})
    parts[-1][campaign] = counts
