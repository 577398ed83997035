"""Where things are: Django's admin with our pages at the root, and the one-time links."""

from __future__ import annotations

from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.urls import path

from adtools.admin.models import Campaign, Placement
from adtools.admin.site import CampaignAdmin, ChangeAdmin, PlacementAdmin, Site
from adtools.admin.users import LinkView, PersonAdmin

site = Site()
site.register(Campaign, CampaignAdmin)
site.register(Placement, PlacementAdmin)
site.register(LogEntry, ChangeAdmin)
site.register(User, PersonAdmin)

urlpatterns = [
    path("password/<uidb64>/<token>/", LinkView.as_view(), name="password_link"),
    path("", site.urls),
]
handler400 = "adtools.admin.security.bad_request"
handler403 = "adtools.admin.security.forbidden"
handler404 = "adtools.admin.security.not_found"
handler500 = "adtools.admin.security.server_error"
