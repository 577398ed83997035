"""Where things are: Django's admin with our pages at the root, and the one-time links."""

from __future__ import annotations

from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.contrib.auth.views import PasswordResetConfirmView
from django.urls import path, reverse_lazy

from adtools.admin.models import Campaign, Placement
from adtools.admin.site import CampaignAdmin, ChangeAdmin, PlacementAdmin, Site
from adtools.admin.users import PersonAdmin

site = Site()
site.register(Campaign, CampaignAdmin)
site.register(Placement, PlacementAdmin)
site.register(LogEntry, ChangeAdmin)
site.register(User, PersonAdmin)

urlpatterns = [
    path(
        "password/<uidb64>/<token>/",
        PasswordResetConfirmView.as_view(
            success_url=reverse_lazy("admin:login"), extra_context={"site_header": "adcore"}
        ),
        name="password_link",
    ),
    path("", site.urls),
]
