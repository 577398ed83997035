"""What was delivered, in the tables that `adctl collect` fills."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from adcore.sources.sqlstore import Dialect

# Of the parameters that a statement may have, SQLite allows the fewest: 999 in versions before 3.32.
_CAMPAIGNS_AT_ONCE = 500


def read_delivered(db: "Dialect", campaigns: Sequence[str], day: str) -> dict[str, tuple[int, int, int, int]]:
    """What is collected: {campaign: (impressions, clicks, impressions on `day`, clicks on `day`)}.

    `day` is a date of the site's time zone, YYYY-MM-DD. A campaign of which nothing is collected is missing.
    """
    delivered = {}
    for start in range(0, len(campaigns), _CAMPAIGNS_AT_ONCE):
        some = campaigns[start : start + _CAMPAIGNS_AT_ONCE]
        rows = db.query(
            "SELECT campaign, SUM(impressions) AS impressions, SUM(clicks) AS clicks, "
            f"SUM(CASE WHEN day = {db.placeholder} THEN impressions ELSE 0 END) AS impressions_today, "
            f"SUM(CASE WHEN day = {db.placeholder} THEN clicks ELSE 0 END) AS clicks_today "
            f"FROM delivered WHERE campaign IN ({', '.join([db.placeholder] * len(some))}) GROUP BY campaign",
            (day, day, *some),
        )
        for row in rows:
            delivered[row["campaign"]] = (
                *(int(row["impressions"]), int(row["clicks"])),
                *(int(row["impressions_today"]), int(row["clicks_today"])),
            )
    return delivered
