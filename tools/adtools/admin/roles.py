"""What people may do, by role. Migrations make a group of each; nobody has rights of their own."""

from __future__ import annotations

_VIEW = ("adcore.view_placement", "adcore.view_campaign", "adcore.view_creative", "admin.view_logentry")
_EDIT = tuple(
    f"adcore.{verb}_{noun}" for noun in ("placement", "campaign", "creative") for verb in ("add", "change", "delete")
)
_ADMINISTER = ("auth.view_user", "auth.add_user", "auth.change_user")

ROLES: dict[str, tuple[str, tuple[str, ...]]] = {
    "viewer": ("sees everything", _VIEW),
    "editor": ("books, changes and pauses ads, too", (*_VIEW, *_EDIT)),
    "administrator": ("lets people in, too", (*_VIEW, *_EDIT, *_ADMINISTER)),
}
