"""Small inventories for tests, as documents and tables."""

from typing import Any

from adcore.core.adtable import AdTable, change_table, finish
from adcore.core.inventory import check_inventory


def text_creative(creative_id: str, size: tuple[int, int] = (300, 250), **fields: Any) -> dict[str, Any]:
    return {
        "id": creative_id,
        "placement_size": list(size),
        "format": "text",
        "data": {"text": "Buy one"},
        "landing_url": "https://shop.example.net/?c={click_id}",
        **fields,
    }


def campaign(campaign_id: str, **fields: Any) -> dict[str, Any]:
    return {
        "id": campaign_id,
        "name": f"The campaign {campaign_id}",
        "advertiser": "Example Shop",
        "priority": "standard",
        "creatives": [text_creative(f"{campaign_id}-1")],
        **fields,
    }


def document(*campaigns: dict[str, Any]) -> dict[str, Any]:
    return {
        "placements": [
            {"id": "side", "width": 300, "height": 250},
            {"id": "foot", "width": 300, "height": 250},
            {"id": "top", "width": 728, "height": 90},
        ],
        "campaigns": list(campaigns),
    }


def change(before: AdTable, to: dict[str, Any], revision: int = 2) -> AdTable:
    """As apply_offer does it: what has not changed is the object that was there."""
    inventory, problems = check_inventory(to)
    there = before.campaigns
    campaigns = [there[c.id] if there.get(c.id) == c else c for c in inventory.campaigns]
    return finish(change_table(before, revision, inventory.placements, campaigns, problems))
