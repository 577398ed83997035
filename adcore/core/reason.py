"""Why a campaign was not shown: one fixed list, from the check made first to the one made last.

A candidate is counted under the first reason that applies to it, in this order; `explain` names them all.
"""

from enum import StrEnum


class Reason(StrEnum):
    # Known when the table is built.
    PAUSED = "paused"
    PLACEMENT = "placement"
    FORMAT = "format"
    SIZE = "size"
    # Known from the clock and the request.
    NOT_STARTED = "not_started"
    ENDED = "ended"
    DEVICE = "device"
    OS = "os"
    COUNTRY = "country"
    LANGUAGE = "language"
    KEYWORD_MISSING = "keyword_missing"
    KEYWORD_EXCLUDED = "keyword_excluded"
    KEY_VALUE = "key_value"
    HOUR = "hour"
    WEEKDAY = "weekday"
    # Known from what has been delivered so far.
    GOAL_REACHED = "goal_reached"
    DAILY_CAP = "daily_cap"
    AHEAD_OF_SCHEDULE = "ahead_of_schedule"
    FREQUENCY_CAP = "frequency_cap"
    ALREADY_ON_PAGE = "already_on_page"
    # Eligible, yet not the one shown.
    LOWER_PRIORITY = "lower_priority"
    OTHERS_BEHIND = "others_behind"
    LOST_DRAW = "lost_draw"
    # No candidate to speak of.
    UNKNOWN_PLACEMENT = "unknown_placement"
    NO_CAMPAIGNS = "no_campaigns"
    # The slots before it took what one request may take.
    PAGE_LIMIT = "page_limit"
    # Nothing against a campaign: it goes before the others of its tier, which are OTHERS_BEHIND.
    BEHIND_SCHEDULE = "behind_schedule"


# What depends on counts kept outside the table: a record names the campaigns that fell to these, so that the
# decision can be made again from the record alone.
HELD_REASONS = frozenset(
    {
        Reason.GOAL_REACHED,
        Reason.DAILY_CAP,
        Reason.AHEAD_OF_SCHEDULE,
        Reason.FREQUENCY_CAP,
        Reason.ALREADY_ON_PAGE,
        Reason.OTHERS_BEHIND,
    }
)
