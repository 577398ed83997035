"""People and what they may do. Nobody knows another one's password: each sets their own through a one-time link."""

from __future__ import annotations

from typing import Any, ClassVar

from django import forms
from django.contrib import admin, messages
from django.contrib.auth.models import Group, User
from django.contrib.auth.views import INTERNAL_RESET_SESSION_TOKEN, PasswordResetConfirmView
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.urls import reverse_lazy

from adtools.admin.logins import password_turn, remember_browser
from adtools.admin.models import Access
from adtools.admin.people import end_access, link_tokens, one_time_link, standing
from adtools.admin.project import LINK_SECONDS
from adtools.admin.roles import ROLES
from adtools.admin.site import TitledAdmin

__all__ = ["LinkView", "PersonAdmin", "make_user", "one_time_link", "somebody_can_log_in"]


def make_user(name: str, role: str) -> User:
    """The person of this name with this role, made if they are not there. Their password stays as it is."""
    with transaction.atomic():
        user, made = User.objects.get_or_create(username=name, defaults={"is_staff": True})
        before = standing(user)
        if made:
            user.set_unusable_password()
        user.is_staff = user.is_active = True
        user.save()
        user.groups.set([Group.objects.get(name=role)])
        if standing(user) != before:
            end_access(user)
    return user


def somebody_can_log_in() -> bool:
    """Whether any administrator has a password."""
    people = User.objects.filter(is_active=True, groups__name="administrator")
    return any(user.has_usable_password() for user in people)


class LinkView(PasswordResetConfirmView):
    """The page that a one-time link leads to."""

    token_generator = link_tokens
    success_url = reverse_lazy("admin:login")
    extra_context = {"site_header": "adcore"}  # noqa: RUF012  # Django's, an instance may have its own

    def post(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        with password_turn(request):
            return super().post(request, *args, **kwargs)

    def form_valid(self, form: Any) -> HttpResponse:
        """Set the password, if no one else does so with the same link at the same moment."""
        assert self.user is not None
        with transaction.atomic():
            # One after the other; the second one finds the link used.
            Access.objects.select_for_update().filter(user_id=self.user.pk).first()
            self.user = form.user = User.objects.get(pk=self.user.pk)
            if not link_tokens.check_token(self.user, self.request.session.get(INTERNAL_RESET_SESSION_TOKEN)):
                self.validlink = False
                return self.render_to_response(self.get_context_data())
            end_access(self.user)
            response = super().form_valid(form)
        remember_browser(self.request, self.user)
        return response


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
        before = standing(User.objects.get(pk=obj.pk)) if change else None
        obj.is_staff = True
        if not change:
            obj.set_unusable_password()
        super().save_model(request, obj, form, change)
        obj.groups.set([form.cleaned_data["role"]])
        if change and standing(obj) != before:
            end_access(obj)
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
            f"Give {user} this link, where nobody else reads it. It works once, within {LINK_SECONDS // 3600} hours, "
            f"and one given before works no more: "
            f"{one_time_link(user)}",
        )

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False
