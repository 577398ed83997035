"""What a person's access hangs on beside their password: one newest link, and sessions of this generation.

A link sets a password once. It is good while it is the newest one of its person, nothing of their access has changed
since, they may log in, and its time has not passed. Sessions end with any change of the role or of "may log in".
"""

from __future__ import annotations

import secrets
from typing import Any

from django.conf import settings
from django.contrib.auth.models import AbstractBaseUser, User
from django.contrib.auth.tokens import PasswordResetTokenGenerator
from django.db.models import F
from django.http import HttpRequest
from django.urls import reverse
from django.utils.encoding import force_bytes
from django.utils.http import urlsafe_base64_encode

from adtools.admin.models import Access

SESSION_KEY = "adcore_generation"


def one_time_link(user: AbstractBaseUser) -> str:
    """Where this person sets a password, once and within LINK_SECONDS; any link made before it is void."""
    Access.objects.update_or_create(user_id=user.pk, defaults={"link": secrets.token_hex(16)})
    place = reverse("password_link", args=[urlsafe_base64_encode(force_bytes(user.pk)), link_tokens.make_token(user)])
    return f"{settings.ADCORE.url}{place}"


def end_access(user: AbstractBaseUser) -> None:
    """End the sessions of a person and void their link. They may get in anew, as they are now."""
    Access.objects.get_or_create(user_id=user.pk)
    Access.objects.filter(user_id=user.pk).update(link="", generation=F("generation") + 1)


def standing(user: User) -> tuple[object, ...]:
    """All of a person's access that an administrator decides on. When it changes, `end_access` follows."""
    return (
        user.is_active,
        user.is_staff,
        user.is_superuser,
        tuple(user.groups.order_by("pk").values_list("pk", flat=True)),
    )


def begin_session(request: HttpRequest, user: AbstractBaseUser, **_: Any) -> None:
    """Receives Django's signal that somebody has logged in."""
    request.session[SESSION_KEY] = _generation(user)


def session_stands(request: HttpRequest) -> bool:
    return request.session.get(SESSION_KEY) == _generation(request.user)


def _generation(user: Any) -> int:
    return Access.objects.filter(user_id=user.pk).values_list("generation", flat=True).first() or 0


class LinkTokens(PasswordResetTokenGenerator):
    """Django's tokens, of people who may log in and whose newest link has not been used."""

    key_salt = "adtools.admin.people.LinkTokens"

    def check_token(self, user: AbstractBaseUser | None, token: str | None) -> bool:
        if user is None or not user.is_active:
            return False
        return bool(_newest_link(user)) and super().check_token(user, token)

    def _make_hash_value(self, user: AbstractBaseUser, timestamp: int) -> str:
        return f"{super()._make_hash_value(user, timestamp)} {_newest_link(user)} {_generation(user)}"


def _newest_link(user: AbstractBaseUser) -> str:
    return Access.objects.filter(user_id=user.pk).values_list("link", flat=True).first() or ""


link_tokens = LinkTokens()
