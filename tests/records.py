"""Records to write and read."""

from typing import Any

from adcore.deliverylog.record import Click, View


def click(number: int = 1) -> Click:
    return Click(**_fields(number))


def view(number: int = 1) -> View:
    return View(**_fields(number))


def _fields(number: int) -> dict[str, Any]:
    return {
        "time": 1_800_000_000.5 + number,
        "id": f"{number:032x}",
        "placement": "top",
        "revision": 1,
        "host": "h",
        "device": "mobile",
        "os": "ios",
        "country": "JP",
        "ivt": True,
        "ip": "192.0.2.0",
        "campaign": "spring",
        "creative": "spring-1",
    }
