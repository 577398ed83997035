"""People and what they may do. Nobody knows another one's password: each sets their own through a one-time link."""

from __future__ import annotations

from typing import Any, ClassVar

from django import forms
from django.conf import settings
from django.contrib import admin, messages
from django.contrib.auth.models import AbstractBaseUser, Group, User
from django.contrib.auth.tokens import default_token_generator
from django.http import HttpRequest
from django.urls import reverse
from django.utils.encoding import force_bytes
from django.utils.http import urlsafe_base64_encode

from adtools.admin.project import LINK_SECONDS
from adtools.admin.roles import ROLES
from adtools.admin.site import TitledAdmin


def one_time_link(user: AbstractBaseUser) -> str:
    """Where this person sets a password: once, and for LINK_SECONDS."""
    place = reverse(
        "password_link",
        args=[urlsafe_base64_encode(force_bytes(user.pk)), default_token_generator.make_token(user)],
    )
    return f"{settings.ADCORE.url}{place}"


def make_user(name: str, role: str) -> User:
    """The person of this name with this role, made if they are not there. Their password stays as it is."""
    user, made = User.objects.get_or_create(username=name, defaults={"is_staff": True})
    if made:
        user.set_unusable_password()
    user.is_staff = user.is_active = True
    user.save()
    user.groups.set([Group.objects.get(name=role)])
    return user


def somebody_can_log_in() -> bool:
    """Whether any administrator has a password."""
    people = User.objects.filter(is_active=True, groups__name="administrator")
    return any(user.has_usable_password() for user in people)


class PersonForm(forms.ModelForm):
    role = forms.ModelChoiceField(Group.objects.order_by("id"), label="Role", empty_label=None)

    class Meta:
        model = User
        fields = ("username", "first_name", "last_name", "email", "is_active")
        labels: ClassVar = {"username": "Name to log in with", "is_active": "May log in"}
        help_texts: ClassVar = {"is_active": "People are not deleted: what they changed stays under their name."}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["role"].help_text = "; ".join(f"{role}: {text}" for role, (text, _) in ROLES.items())
        if self.instance.pk:
            self.fields["role"].initial = self.instance.groups.first()


class PersonAdmin(TitledAdmin):
    form = PersonForm
    list_title = "People"
    list_display = ("username", "get_full_name", "role", "is_active", "last_login")
    search_fields = ("username", "first_name", "last_name", "email")
    fields = ("username", "role", "first_name", "last_name", "email", "is_active")
    actions = ("give_link",)

    @admin.display(description="Role")
    def role(self, user: User) -> str:
        return ", ".join(user.groups.values_list("name", flat=True))

    def save_model(self, request: HttpRequest, obj: User, form: Any, change: bool) -> None:
        obj.is_staff = True
        if not change:
            obj.set_unusable_password()
        super().save_model(request, obj, form, change)
        obj.groups.set([form.cleaned_data["role"]])
        if not change:
            self._show_link(request, obj)

    @admin.action(description="Give a one-time link to set a password", permissions=["change"])
    def give_link(self, request: HttpRequest, queryset: Any) -> None:
        for user in queryset.filter(is_active=True):
            self.log_change(request, user, "Got a one-time link to set a password.")
            self._show_link(request, user)

    def _show_link(self, request: HttpRequest, user: User) -> None:
        messages.warning(
            request,
            f"Give {user} this link, where nobody else reads it. It works once, within {LINK_SECONDS // 3600} hours: "
            f"{one_time_link(user)}",
        )

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False
