"""Records to write and read."""

from typing import Any

from adcore.deliverylog.record import Click, Unfilled, View


def click(number: int = 1, *, ivt: bool = False) -> Click:
    return Click(**_fields(number, ivt))


def view(number: int = 1, *, ivt: bool = False) -> View:
    return View(**_fields(number, ivt))


def unfilled(number: int = 1, *, ivt: bool = False) -> Unfilled:
    fields = _fields(number, ivt)
    del fields["campaign"], fields["creative"]
    of_page: dict[str, Any] = {"languages": (), "keywords": (), "key_values": (), "hour": 9, "weekday": 0}
    return Unfilled(**fields, **of_page, user="", excluded={}, reason="no_campaigns", reasons={})


def _fields(number: int, ivt: bool) -> dict[str, Any]:
    return {
        "time": 1_800_000_000.5 + number,
        "id": f"{number:032x}",
        "placement": "top",
        "revision": 1,
        "host": "h",
        "device": "mobile",
        "os": "ios",
        "country": "JP",
        "ivt": ivt,
        "ip": "192.0.2.0",
        "campaign": "spring",
        "creative": "spring-1",
    }
