"""What a person sees and may do: the lists and forms of Django's admin over the inventory.

Whatever is saved goes through the same check as `adctl apply`, in one transaction that nobody else's change comes
between, is confirmed for the servers, and is written down with who, when, and what was before and after.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from typing import Any, ClassVar

from django.conf import settings
from django.contrib import admin, messages
from django.contrib.admin.models import LogEntry
from django.contrib.admin.utils import flatten_fieldsets
from django.db import models, transaction
from django.db.models.functions import Coalesce
from django.http import FileResponse, Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, URLResolver, path, re_path, reverse
from django.utils.html import format_html
from django.utils.http import urlencode
from django.utils.safestring import SafeString

from adcore.sources import sqlstore
from adtools.admin import documents
from adtools.admin.admission import slow_work
from adtools.admin.delivery import delivery_view, moment
from adtools.admin.explain import explain_view
from adtools.admin.forms import (
    CREATIVES_MAX,
    CampaignForm,
    CreativeForm,
    CreativeFormSet,
    PlacementForm,
    advertisers,
    keep_uploads,
    sent_creatives,
)
from adtools.admin.imagestore import CACHE_CONTROL, NAME
from adtools.admin.lists import MOMENT, NUMBER, TEXT, BoundedAdmin
from adtools.admin.logins import count_try, locked_out, note_failure, note_success, password_turn
from adtools.admin.models import Advertiser, Campaign, Creative, Delivered, Placement, Revision, Stored
from adtools.admin.preview import preview_view

# A campaign's form takes 15 ms for each creative and 0.3 ms for each placement: beyond this it is slow work.
LARGE_FORM_CREATIVES = 50
PLACEMENTS_PER_CREATIVE = 50
# Of an entry of the history, whose pages have 100 of them. A change of 1,000 creatives has up to 2 MB.
ENTRY_CHARS_MAX = 20_000


class Site(admin.AdminSite):
    site_header = "adcore"
    site_title = "adcore"
    index_title = "Inventory"
    site_url = None
    enable_nav_sidebar = False
    empty_value_display = "–"

    def get_urls(self) -> list[URLResolver | URLPattern]:
        return [
            path("explain/", self.admin_view(self._page(explain_view)), name="explain"),
            path("delivery/", self.admin_view(self._page(slowly(delivery_view))), name="delivery"),
            path("preview/", self.admin_view(preview_view), name="preview"),
            re_path(rf"^creatives/({NAME.pattern})\Z", image_view, name="image"),
            *super().get_urls(),
        ]

    def index(self, request: HttpRequest, extra_context: Any = None) -> Any:
        return redirect("admin:adcore_campaign_changelist")

    def login(self, request: HttpRequest, extra_context: Any = None) -> Any:
        if request.method != "POST":
            return super().login(request, extra_context)
        with password_turn(request):
            return super().login(request, extra_context)

    def password_change(self, request: HttpRequest, extra_context: Any = None) -> Any:
        """The old password is tried as at the login, and no more often: a session may be a stolen one."""
        if request.method != "POST":
            return super().password_change(request, extra_context)
        with password_turn(request):
            return self._change_password(request, extra_context)

    def _change_password(self, request: HttpRequest, extra_context: Any) -> Any:
        name = request.user.get_username()
        if not count_try(request, name):
            return locked_out(request)
        response = super().password_change(request, extra_context)
        form = (getattr(response, "context_data", None) or {}).get("form")
        if form is not None and "old_password" in form.errors:
            note_failure(request)
        else:
            note_success(request, request.user)
        return response

    def _page(
        self, view: Callable[[HttpRequest, dict[str, Any]], HttpResponse]
    ) -> Callable[[HttpRequest], HttpResponse]:
        def answer(request: HttpRequest) -> HttpResponse:
            return view(request, self.each_context(request))

        return answer


def slowly(view: Callable[..., TemplateResponse]) -> Callable[..., HttpResponse]:
    """A view that is slow work, with the page that it makes."""

    def answer(*args: Any) -> HttpResponse:
        with slow_work.turn():
            return view(*args).render()

    return answer


def image_view(request: HttpRequest, name: str) -> FileResponse:
    """An uploaded image, for anybody: it is part of an ad."""
    folder = settings.ADCORE.images_dir
    try:
        file = (folder / name).open("rb") if folder is not None else None
    except OSError:
        file = None
    if file is None:
        raise Http404("there is no such image")
    response = FileResponse(file)
    response.headers["Cache-Control"] = CACHE_CONTROL
    return response


def shown(form_field: str) -> Callable[[Any, Any], str]:
    """How a form's field reads for somebody who may only look."""

    def show(self: Any, row: Stored) -> str:
        value = row.shown_fields().get(form_field)
        return ", ".join(map(str, value)) if isinstance(value, list) else str(value or "–")

    show.short_description = ""  # type: ignore[attr-defined]
    return show


class TitledAdmin(BoundedAdmin):
    """A list that is headed by what is in it."""

    list_title: str

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> Any:
        return super().changelist_view(request, {"title": self.list_title, **(extra_context or {})})


class InventoryAdmin(TitledAdmin):
    """Saving: one at a time, confirmed, and written down as a readable difference."""

    def changeform_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        # Without the right to save it is refused, and locks nothing.
        if request.method != "POST" or not self.may_save(request):
            return super().changeform_view(request, *args, **kwargs)
        with transaction.atomic():
            Revision.lock()
            return super().changeform_view(request, *args, **kwargs)

    def may_save(self, request: HttpRequest) -> bool:
        return bool(self.has_change_permission(request) or self.has_add_permission(request))

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> tuple[str, ...]:
        return ("id",) if obj is not None else ()

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        if not change:
            last = self.model.objects.aggregate(models.Max("position"))["position__max"]
            obj.position = 0 if last is None else last + 1
        super().save_model(request, obj, form, change)

    def save_related(self, request: HttpRequest, form: Any, formsets: Any, change: bool) -> None:
        super().save_related(request, form, formsets, change)
        Revision.confirm()

    def construct_change_message(self, request: HttpRequest, form: Any, formsets: Any, add: bool = False) -> Any:
        after = (form.after["placements"] + form.after["campaigns"])[0]
        return "\n".join(documents.changes(form.before, after)) or "Saved without a change."

    def log_addition(self, request: HttpRequest, obj: Any, message: Any) -> Any:
        return self._log(super().log_addition, request, obj, message)

    def log_change(self, request: HttpRequest, obj: Any, message: Any) -> Any:
        return self._log(super().log_change, request, obj, message)

    def _log(self, log: Callable[..., Any], request: HttpRequest, obj: Any, message: str) -> Any:
        """An entry, or several for what is longer than lists can show."""
        return [log(request, obj, part) for part in documents.in_parts(message, ENTRY_CHARS_MAX)][-1]

    def delete_model(self, request: HttpRequest, obj: Any) -> None:
        with transaction.atomic():
            Revision.lock()
            super().delete_model(request, obj)
            remove_idle_advertisers()
            Revision.confirm()

    def delete_queryset(self, request: HttpRequest, queryset: Any) -> None:
        with transaction.atomic():
            Revision.lock()
            super().delete_queryset(request, queryset)
            remove_idle_advertisers()
            Revision.confirm()


class PlacementAdmin(InventoryAdmin):
    form = PlacementForm
    list_title = "Placements"
    list_display = ("id", "size", "formats_shown", "campaigns")
    fields = ("id", "width", "height", "formats")
    search_fields = ("id",)

    @admin.display(description="Size", ordering="width")
    def size(self, placement: Placement) -> str:
        return f"{placement.width} × {placement.height}"

    @admin.display(description="Formats")
    def formats_shown(self, placement: Placement) -> str:
        return documents.listed(placement.document().get("formats", ["any"]))

    @admin.display(description="Who is shown?")
    def campaigns(self, placement: Placement) -> SafeString:
        query = urlencode({"placement": placement.id})
        return format_html('<a href="{}?{}">explain</a>', reverse("admin:explain"), query)

    def get_deleted_objects(self, objs: Any, request: HttpRequest) -> Any:
        """A placement that a campaign is booked for has to stay, as `adctl apply` says."""
        deleted, counts, needed, protected = super().get_deleted_objects(objs, request)
        ids = {placement.id for placement in objs}
        for campaign in Campaign.objects.all():
            # Without its creatives, each of which would be a statement.
            targeting = sqlstore.campaign_object(campaign.row(), [])["targeting"]
            targets = targeting.get("placements", ()) if isinstance(targeting, dict) else ()
            if ids & {target for target in targets if isinstance(target, str)}:
                protected = [*protected, f"Campaign: {campaign}"]
        return deleted, counts, needed, protected

    formats = shown("formats")


class CreativeInline(admin.StackedInline):
    model = Creative
    form = CreativeForm
    formset = CreativeFormSet
    template = "adtools/creatives.html"
    extra = 0
    fieldsets = (
        (None, {"fields": (("id", "format"), ("size", "weight"), "landing_url")}),
        ("Image", {"fields": ("upload", "image_url", "alt"), "classes": ("for-image",)}),
        ("Text", {"fields": ("title", "text"), "classes": ("for-text",)}),
        ("HTML", {"fields": ("html",), "classes": ("for-html",)}),
        ("Native", {"fields": ("data",), "classes": ("for-native",)}),
    )

    def get_formset(self, request: HttpRequest, obj: Campaign | None = None, **kwargs: Any) -> Any:
        return super().get_formset(request, obj, absolute_max=CREATIVES_MAX, **kwargs)

    def get_min_num(self, request: HttpRequest, obj: Campaign | None = None, **kwargs: Any) -> int | None:
        return 1 if obj is None else None  # one to fill in; that there has to be one says the check


for name in ("size", "title", "text", "upload"):
    setattr(CreativeInline, name, shown(name))


class CampaignAdmin(InventoryAdmin):
    form = CampaignForm
    list_title = "Campaigns"
    inlines = (CreativeInline,)
    change_form_template = "adtools/campaign_form.html"
    list_display = ("label", "advertiser", "priority", "weight", "state", "flight", "goal")
    list_filter = ("status", "priority", "advertiser")
    list_lookups: ClassVar = {"status": TEXT, "priority": TEXT, "advertiser": TEXT}
    search_fields = ("id", "name", "advertiser")
    list_per_page = 50
    actions = ("pause", "activate")
    fieldsets = (
        (None, {"fields": ("seen", "id", "name", "advertiser", "status")}),
        ("Share", {"fields": (("priority", "weight"), "optimize")}),
        ("Flight", {"fields": (("starts_at", "ends_at"), ("goal_impressions", "goal_clicks"), "pacing")}),
        (
            "Limits",
            {
                "fields": (
                    ("daily_cap_impressions", "daily_cap_clicks"),
                    ("frequency_cap_impressions", "frequency_cap_period", "frequency_cap_unit"),
                )
            },
        ),
        (
            "Who sees it",
            {
                "fields": ("placements", "devices", "os", ("countries", "languages")),
                "description": "Every one of these has to fit the request. What is left empty fits any.",
            },
        ),
        ("On which pages", {"fields": (("keywords_any", "keywords_none"), "key_values")}),
        ("When", {"fields": ("weekdays", "hours")}),
    )

    class Media:
        css: ClassVar = {"all": ("adtools/admin.css",)}
        js = ("adtools/campaign.js",)

    def changeform_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        with self._turn(request, kwargs.get("object_id") or (args[0] if args else None)):
            if request.method == "POST" and self.may_save(request):
                keep_uploads(request.FILES, request.POST)
            response = super().changeform_view(request, *args, **kwargs)
            return response.render() if isinstance(response, TemplateResponse) else response

    def _turn(self, request: HttpRequest, campaign: str | None) -> AbstractContextManager[None]:
        """Of the slow work, for a form that is some; taken before the transaction, for which others wait."""
        if not (self.may_save(request) or self.has_view_permission(request)):
            return nullcontext()
        creatives = Creative.objects.filter(campaign=campaign).count() if campaign is not None else 0
        if request.method == "POST":
            creatives = max(creatives, sent_creatives(request.POST))
        large = creatives + Placement.objects.count() // PLACEMENTS_PER_CREATIVE > LARGE_FORM_CREATIVES
        uploads = bool(request.FILES) and self.may_save(request)
        return slow_work.turn() if large or uploads else nullcontext()

    def get_queryset(self, request: HttpRequest) -> Any:
        delivered = Delivered.objects.filter(campaign=models.OuterRef("pk")).values("campaign")
        return (
            super()
            .get_queryset(request)
            .annotate(
                **{
                    f"delivered_{unit}": Coalesce(
                        models.Subquery(delivered.annotate(total=models.Sum(unit)).values("total")), 0
                    )
                    for unit in ("impressions", "clicks")
                }
            )
        )

    def get_fieldsets(self, request: HttpRequest, obj: Campaign | None = None) -> Any:
        if obj is None or self.has_change_permission(request, obj):
            return self.fieldsets
        return ((None, {"fields": ("id", "name", "advertiser", "status")}), *self.fieldsets[1:])

    def render_change_form(self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        campaign = kwargs.get("obj")
        if campaign is not None and request.method == "GET":
            for fault in campaign.faults():
                messages.warning(request, f"Servers leave this out. {fault}")
        return super().render_change_form(request, {**context, "advertisers": advertisers()}, *args, **kwargs)

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        Advertiser.objects.get_or_create(name=obj.advertiser)
        super().save_model(request, obj, form, change)

    def save_related(self, request: HttpRequest, form: Any, formsets: Any, change: bool) -> None:
        super().save_related(request, form, formsets, change)
        remove_idle_advertisers()

    # The list

    @admin.display(description="Campaign", ordering="name")
    def label(self, campaign: Campaign) -> SafeString:
        return format_html('{} <span class="quiet">{}</span>', campaign.name or campaign.id, campaign.id)

    @admin.display(description="State", ordering="status")
    def state(self, campaign: Campaign) -> SafeString:
        state = state_of(campaign, datetime.now(UTC))
        return format_html('<span class="state state-{}">{}</span>', state.replace(" ", "-"), state)

    @admin.display(description="Flight", ordering="starts_at")
    def flight(self, campaign: Campaign) -> str:
        days = [f"{at:%Y-%m-%d}" if at else "" for at in map(moment, (campaign.starts_at, campaign.ends_at))]
        return " – ".join(days) if any(days) else "always"

    @admin.display(description="Delivered")
    def goal(self, campaign: Any) -> SafeString:
        for unit in ("impressions", "clicks"):
            goal, delivered = getattr(campaign, f"goal_{unit}"), getattr(campaign, f"delivered_{unit}")
            if goal:
                return format_html(
                    '<meter max="{0}" value="{1}" aria-label="of the goal">{1}</meter> {1} of {0} {2}',
                    goal,
                    delivered,
                    unit,
                )
        return format_html("{} impressions", campaign.delivered_impressions)

    @admin.action(description="Pause", permissions=["change"])
    def pause(self, request: HttpRequest, queryset: Any) -> None:
        self._set_status(request, queryset, "paused")

    @admin.action(description="Activate", permissions=["change"])
    def activate(self, request: HttpRequest, queryset: Any) -> None:
        self._set_status(request, queryset, "active")

    def _set_status(self, request: HttpRequest, queryset: Any, status: str) -> None:
        with transaction.atomic():
            Revision.lock()
            changed = list(queryset.exclude(status=status))
            for campaign in changed:
                before, campaign.status = campaign.status, status
                campaign.save(update_fields=["status"])
                self.log_change(request, campaign, f"status: {before} → {status}")
            Revision.confirm()
        count = "1 campaign" if len(changed) == 1 else f"{len(changed)} campaigns"
        self.message_user(request, f"{count} {status}.", messages.SUCCESS)


for name in flatten_fieldsets(CampaignAdmin.fieldsets):
    if name not in ("id", "goal"):
        setattr(CampaignAdmin, name, shown(name))


class ChangeAdmin(TitledAdmin):
    """Who changed what, and when. Nobody changes this."""

    list_title = "Changes"
    list_display = ("action_time", "user", "what", "change")
    list_display_links = None
    list_filter = ("action_time", "user")
    list_lookups: ClassVar = {"action_time__gte": MOMENT, "action_time__lt": MOMENT, "user__id__exact": NUMBER}
    search_fields = ("object_id", "object_repr")
    list_select_related = ("user", "content_type")
    list_per_page = 50

    @admin.display(description="What")
    def what(self, entry: LogEntry) -> SafeString | str:
        name = f"{entry.content_type}: {entry.object_repr}" if entry.content_type else entry.object_repr
        url = entry.get_admin_url() if not entry.is_deletion() else None
        return format_html('<a href="{}">{}</a>', url, name) if url else name

    @admin.display(description="Change")
    def change(self, entry: LogEntry) -> SafeString:
        verb = "Added" if entry.is_addition() else "Deleted" if entry.is_deletion() else ""
        return format_html(
            '<span class="difference">{}</span>', "\n".join(filter(None, [verb, str(entry.get_change_message())]))
        )

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


def state_of(campaign: Campaign, now: datetime) -> str:
    """One word or two for what servers do with it."""
    starts, ends = moment(campaign.starts_at), moment(campaign.ends_at)
    if ends is not None and ends <= now:
        return "ended"
    if campaign.status == "paused":
        return "paused"
    return "not started" if starts is not None and starts > now else "running"


def remove_idle_advertisers() -> None:
    """Those whom no campaign has, as `adctl apply` does."""
    Advertiser.objects.exclude(name__in=Campaign.objects.values("advertiser")).delete()
