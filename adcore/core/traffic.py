"""The traffic to expect of a placement in each hour of a week, from what came in the weeks before. Pure.

An hour of the week is taken for what it was on average, and for as much as one week's worth for what that hour of the
day was on all days: four weeks tell Mondays from Sundays, one week not quite, a day not at all.
"""

from collections.abc import Iterable, Mapping

from adcore.core.calendar import Calendar
from adcore.core.inventory import HOURS_OF_WEEK

WEEKS = 4
"""Before that, the site was another one."""
PRIOR_WEEKS = 1.0
HOUR_S = 3600
# Differences that no line shows: this part of the week's traffic came in other hours, and so much more or less in all.
SHIFT_MAX = 0.02
CHANGE_MAX = 0.1


def expected_traffic(
    requests: Mapping[int, int], observed: Iterable[int], calendar: Calendar
) -> tuple[float, ...] | None:
    """The requests to expect in each hour of the week, from Monday 0:00, to three digits.

    `requests` has those of one placement by hour, `observed` the hours in which anything was counted anywhere: others
    say nothing, except that nobody counted. Hours are named by their start, in epoch seconds. None as long as there is
    an hour of the day of which nothing is known.
    """
    first = min(requests, default=0)
    weeks = [0.0] * HOURS_OF_WEEK
    sums = [0.0] * HOURS_OF_WEEK
    for hour in observed:
        if requests and hour >= first:
            moment = calendar.moment(hour)
            of_week = moment.weekday * 24 + moment.hour
            weeks[of_week] += 1
            sums[of_week] += requests.get(hour, 0)
    days = [sum(weeks[hour::24]) for hour in range(24)]
    if not all(days):
        return None
    means = [sum(sums[hour::24]) / days[hour] for hour in range(24)]
    return tuple(
        float(f"{(sums[h] + PRIOR_WEEKS * means[h % 24]) / (weeks[h] + PRIOR_WEEKS):.3g}") for h in range(HOURS_OF_WEEK)
    )


def is_other_traffic(before: tuple[float, ...], after: tuple[float, ...]) -> bool:
    """Whether the difference is one that matters to a campaign's line."""
    total_before, total_after = sum(before), sum(after)
    if not total_before or not total_after:
        return total_before != total_after
    shift = sum(abs(a / total_before - b / total_after) for a, b in zip(before, after, strict=True)) / 2
    return shift > SHIFT_MAX or abs(total_after / total_before - 1) > CHANGE_MAX
