"""A small site with ads on it, served on `/` with `--demo`: what a newcomer sees first, and the numbers beside it.

Every other server answers 404 there. The page uses the tag as any site would; what it shows besides are the counts of
this process, which it asks for each second.
"""

from importlib import resources

import msgspec

from adcore.delivery import Delivery
from adcore.http1.request import Request
from adcore.http1.response import Response, respond

CAMPAIGNS_MAX = 12
_NO_STORE = ("Cache-Control", "no-store")
_NOSNIFF = ("X-Content-Type-Options", "nosniff")


class Demo:
    """The pages of the sample site. Does no I/O."""

    def __init__(self, delivery: Delivery) -> None:
        self._delivery = delivery
        self._page = resources.files("adcore").joinpath("demo.html").read_bytes()

    def page(self, request: Request) -> Response:
        return respond(200, self._page, content_type="text/html; charset=utf-8", headers=(_NO_STORE, _NOSNIFF))

    def numbers(self, request: Request) -> Response:
        """What was counted: records since the start, by type, and the busiest campaigns of the day.

        {"revision": 26, "records": {"impression": 12, "view": 7}, "campaigns": [{"campaign": "spring", "impressions":
        9, "clicks": 1}]}
        """
        state = self._delivery.state
        day = self._delivery.calendar.moment(request.time).day
        busiest = state.counters.busiest(CAMPAIGNS_MAX, day)
        body = msgspec.json.encode(
            {
                "revision": None if state.table is None else state.table.revision,
                "records": dict(self._delivery.queue.accepted),
                "campaigns": [
                    {
                        "campaign": count.campaign_id,
                        "impressions": count.impressions_today,
                        "clicks": count.clicks_today,
                    }
                    for count in busiest
                    if count.impressions_today
                ],
            }
        )
        return respond(200, body, content_type="application/json", headers=(_NO_STORE, _NOSNIFF))
