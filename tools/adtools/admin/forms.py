"""The forms of campaigns, creatives and placements. They gather what a person wrote; documents.py has it checked."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import Any, NamedTuple, cast, get_args

from django import forms
from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.validators import MaxLengthValidator
from django.db.models import Max
from django.forms.models import BaseInlineFormSet

from adcore.core.inventory import DEVICES, FORMATS, OPERATING_SYSTEMS, Inventory, Priority, to_document
from adtools.admin import documents
from adtools.admin.admission import slow_work
from adtools.admin.decoder import decode_apart
from adtools.admin.images import EncodedImage, ImageError
from adtools.admin.imagestore import ImageStoreError
from adtools.admin.models import Advertiser, Campaign, Creative, Placement

Choices = Iterable[tuple[str, str]]

NEW_CAMPAIGN = {
    "status": "active",
    "priority": "standard",
    "weight": "1",
    "pacing": "asap",
    "frequency_cap_unit": "86400",
}
# The longest is the HTML of a creative; beyond this nothing is even looked at.
FIELD_CHARS_MAX = 300_000
# Of a value of a list of choices, and of how many of them are chosen.
CHOICE_CHARS_MAX = 200
CHOSEN_MAX = 5000
# Of one form. Each is some twenty fields, and a page of this many takes a browser seconds.
CREATIVES_MAX = 1000
NEW_CREATIVE = {"format": "image", "weight": "1"}
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_NAMES = {"ios": "iOS", "macos": "macOS", "chromeos": "ChromeOS", "tv": "TV", "html": "HTML"}
_FREE_OF_TYPE = {"autocomplete": "off", "spellcheck": "false"}


def named(values: Iterable[str]) -> list[tuple[str, str]]:
    return [(value, _NAMES.get(value, value.capitalize())) for value in values]


class Words(forms.CharField):
    """Text as it was written."""

    def __init__(self, label: str, help_text: str = "", *, lines: int = 1, **attributes: str) -> None:
        attrs = {**_FREE_OF_TYPE, **attributes}
        widget = forms.TextInput(attrs) if lines == 1 else forms.Textarea({"rows": lines, "cols": 60, **attrs})
        super().__init__(
            label=label,
            help_text=help_text,
            required=False,
            strip=lines == 1,
            widget=widget,
            validators=[MaxLengthValidator(FIELD_CHARS_MAX)],
        )


class Number(Words):
    """A number, kept as the text that it was written as."""

    def __init__(self, label: str, help_text: str = "") -> None:
        super().__init__(label, help_text)
        self.widget.attrs.update({"inputmode": "numeric", "class": "number"})


class Moment(Words):
    """A date and time by the site's clocks."""

    def __init__(self, label: str, help_text: str = "") -> None:
        super().__init__(label, help_text)
        self.widget = forms.TextInput({"type": "datetime-local", "max": "9999-12-31T23:59"})


class One(forms.CharField):
    """One of a few values."""

    def __init__(self, label: str, choices: Choices, help_text: str = "") -> None:
        super().__init__(
            label=label,
            help_text=help_text,
            required=False,
            widget=forms.Select(choices=list(choices)),
            validators=[MaxLengthValidator(CHOICE_CHARS_MAX)],
        )

    def offer(self, value: str) -> None:
        """Have this value among the choices, whatever else is: saving must not change what nobody touched."""
        assert isinstance(self.widget, forms.Select)
        if value and value not in dict(self.widget.choices):
            self.widget.choices = [*self.widget.choices, (value, value)]


class Some(forms.Field):
    """Any number of a few values; none of them means any."""

    def __init__(self, label: str, choices: Choices = (), help_text: str = "Any, if none is chosen.") -> None:
        super().__init__(
            label=label, help_text=help_text, required=False, widget=forms.CheckboxSelectMultiple(choices=list(choices))
        )

    def to_python(self, value: list[str] | None) -> list[str]:
        chosen = list(value or ())
        if len(chosen) > CHOSEN_MAX or any(len(item) > CHOICE_CHARS_MAX for item in chosen):
            raise ValidationError(f"At most {CHOSEN_MAX} are chosen, each of {CHOICE_CHARS_MAX} characters.")
        return chosen

    def offer(self, values: Iterable[str]) -> None:
        """Have these among the choices: one that went away must not turn "only there" into "anywhere"."""
        assert isinstance(self.widget, forms.CheckboxSelectMultiple)
        known = dict(self.widget.choices)
        gone = [(value, f"{value} (there is none)") for value in values if value not in known]
        self.widget.choices = [*self.widget.choices, *gone]


def size_choices() -> list[tuple[str, str]]:
    """`728x90` and what is of that size, for each size of a placement."""
    of_size: dict[str, list[str]] = {}
    for placement in Placement.objects.all():
        of_size.setdefault(f"{placement.width}x{placement.height}", []).append(placement.id)
    return [(size, f"{size.replace('x', ' × ')}: {', '.join(ids)}") for size, ids in of_size.items()]


def uploaded_image(upload: Any, size: str) -> EncodedImage:
    """The image of an upload, for a creative of this size as its field has it. Raises ImageError, Busy, OutOfTime."""
    wanted = documents.size_of(size)
    largest = Placement.objects.aggregate(width=Max("width"), height=Max("height"))
    if wanted is None or largest["width"] is None:
        raise ImageError("Choose the creative's size before its image")
    return decode_apart(upload, (wanted[0], wanted[1]), (largest["width"], largest["height"]))


class KeptImage(NamedTuple):
    """Where an uploaded image is, or why it is nowhere."""

    url: str
    refusal: str


def keep_upload(upload: Any, size: str) -> KeptImage:
    """Decode an upload and keep its image. Raises Busy, and OutOfTime."""
    try:
        # A bucket takes as long as the image.
        with slow_work.turn():
            return KeptImage(settings.ADCORE.images.put(uploaded_image(upload, size)), "")
    except (ImageError, ImageStoreError) as error:
        return KeptImage("", str(error))


def keep_uploads(files: Mapping[str, Any], fields: Mapping[str, Any]) -> None:
    """Keep the images of a campaign's form, before its transaction: others wait for that to end."""
    for name, upload in files.items():
        if found := re.fullmatch(r"(creatives-[0-9]{1,4}-)upload", name):
            upload.kept = keep_upload(upload, str(fields.get(f"{found[1]}size", "")))


def is_whole(form: forms.BaseForm) -> bool:
    """Whether every field holds what its kind can hold: what does not is refused before anything is read from it."""
    return all(name in form.cleaned_data for name in form.fields)


class PlacementForm(forms.ModelForm):
    id = Words("Id", "How pages name it: letters, digits and _ . - It can't be changed later.")
    width = Number("Width", "CSS pixels")
    height = Number("Height", "CSS pixels")
    formats = Some("Formats", [], "What it takes; at least one.")

    class Meta:
        model = Placement
        fields = ("id", "width", "height", "formats")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.before = self.instance.document() if self.instance.pk else None
        self.after: dict[str, Any] | None = None
        """An inventory of this placement alone, as it is going to be, when nothing is wrong with it."""
        self.fields["formats"].widget.choices = named(FORMATS)
        self.initial.update(self.before or {"formats": list(FORMATS)})

    def clean(self) -> dict[str, Any]:
        super().clean()  # has ids that are taken refused
        if not is_whole(self):
            return self.cleaned_data
        fields = {"id": self.instance.pk, **self.cleaned_data}
        placement, faults = documents.check_placement(documents.placement_document(fields))
        for fault in faults:
            self.add_error(fault.field if fault.field in self.fields else None, fault.message)
        if placement is not None:
            self.after = to_document(Inventory((placement,)))
        return self.cleaned_data

    def _post_clean(self) -> None:
        super()._post_clean()  # type: ignore[misc]
        if self.after is not None:
            self.instance.take("placements", self.after)


class CreativeForm(forms.ModelForm):
    id = Words("Id", "Letters, digits and _ . - It can't be changed later.")
    format = One("Format", named(FORMATS))
    size = One("Size", [], "Of the placements that it is to be shown in.")
    weight = Number("Weight", "Its share among this campaign's creatives of the same size.")
    upload = forms.FileField(
        label="Upload an image",
        required=False,
        help_text="PNG, JPEG, WebP or GIF, of the creative's size or two or three times that. Its URL is filled in.",
        widget=forms.FileInput({"accept": "image/png,image/jpeg,image/webp,image/gif"}),
    )
    image_url = Words("Image URL", type="url")
    alt = Words("Alternative text", "What a visitor hears or reads who does not see the image.")
    title = Words("Title")
    text = Words("Text", lines=2)
    html = Words("HTML", "{click_url} becomes the counted link.", lines=6)
    data = Words(  # type: ignore[assignment]  # no attribute: Django takes it out of the class
        "Data", "A JSON object for the page to draw.", lines=6
    )
    landing_url = Words("Landing URL", "Where a click leads. {click_id} becomes the impression's id.", type="url")

    class Meta:
        model = Creative
        fields = (
            *("id", "format", "size", "weight", "landing_url"),
            *("upload", "image_url", "alt", "title", "text", "html", "data"),
        )

    def __init__(self, *args: Any, sizes: Choices = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.values: dict[str, Any] | None = None
        """What was written, of fields with an error too; None when a field can't be read at all."""
        size = self.fields["size"]
        assert isinstance(size, One)
        size.widget.choices = list(sizes)
        if self.instance.pk:
            self.initial.update(documents.creative_fields(self.instance.document()))
            self.fields["id"].widget.attrs["readonly"] = True
            size.offer(self.initial["size"])
        else:
            self.initial = {**NEW_CREATIVE, **self.initial}

    def clean(self) -> dict[str, Any]:
        super().clean()  # has ids that are taken refused
        upload, whole = self.cleaned_data.get("upload"), is_whole(self)
        if upload is not None:
            self._take_image(upload)
        if whole:
            self.values = dict(self.cleaned_data)
        return self.cleaned_data

    def _take_image(self, upload: Any) -> None:
        kept = getattr(upload, "kept", None) or keep_upload(upload, self.cleaned_data.get("size", ""))
        if kept.refusal:
            self.add_error("upload", f"{kept.refusal}.")
        else:
            self.cleaned_data["image_url"] = kept.url

    def document(self) -> dict[str, Any]:
        assert self.values is not None
        return documents.creative_document(self.values)


def sent_creatives(fields: Iterable[str], prefix: str = "creatives") -> int:
    """How many creatives have a field among these names of a campaign's form."""
    return len({name.split("-")[1] for name in fields if name.startswith(f"{prefix}-") and name.count("-") > 1})


class CreativeFormSet(BaseInlineFormSet):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # A campaign and its creatives are checked as one document, by the campaign's form, which has the same instance.
        self.instance.creative_formset = self
        self._sizes: list[tuple[str, str]] | None = None

    def get_form_kwargs(self, index: int | None) -> dict[str, Any]:
        if self._sizes is None:
            self._sizes = size_choices()
        return {**super().get_form_kwargs(index), "sizes": self._sizes}

    def total_form_count(self) -> int:
        """As many as the form says, and as have a field in it: nothing is made of a number alone."""
        count: int = super().total_form_count()
        if not self.is_bound:
            return count
        return max(0, min(count, sent_creatives(self.data, str(self.prefix))))

    def initial_form_count(self) -> int:
        return max(0, min(super().initial_form_count(), CREATIVES_MAX))

    def is_complete(self) -> bool:
        """Whether every stored creative of the campaign is among the forms, once."""
        stored = sorted(self.get_queryset().values_list("pk", flat=True))
        return stored == sorted(form.instance.pk for form in self.forms if not form.instance._state.adding)

    def clean(self) -> None:
        """Ids that stand twice are found by the campaign's check."""

    def kept_forms(self) -> list[CreativeForm]:
        """Of the creatives that the campaign will have."""
        gone = self.deleted_forms
        kept = [form for form in self.forms if form not in gone and (form.instance.pk or form.has_changed())]
        return cast("list[CreativeForm]", kept)


class CampaignForm(forms.ModelForm):
    seen = forms.CharField(required=False, widget=forms.HiddenInput)
    """A digest of what the person saw, so that nobody undoes what another one saved meanwhile."""
    id = Words("Id", "Letters, digits and _ . - It can't be changed later.")
    name = Words("Name")
    advertiser = Words("Advertiser", list="advertisers")
    status = One("Status", named(("active", "paused")))
    priority = One(
        "Priority", named(get_args(Priority)), "The highest with anything eligible wins: sponsorship, standard, house."
    )
    weight = Number("Weight", "Its share within its priority.")
    starts_at = Moment("Starts", "Empty: it has always been running.")
    ends_at = Moment("Ends", "Empty: it never ends.")
    goal_impressions = Number("Goal, impressions", "Over the whole flight.")
    goal_clicks = Number("Goal, clicks")
    daily_cap_impressions = Number("Daily cap, impressions")
    daily_cap_clicks = Number("Daily cap, clicks")
    pacing = One("Pacing", [("asap", "As soon as possible"), ("even", "Even, as visitors are expected")])
    optimize = One(
        "Creatives share", [("", "By weight"), ("ctr", "By clicks")], "By clicks: those that are clicked more get more."
    )
    frequency_cap_impressions = Number("Impressions per visitor")
    frequency_cap_period = Number("within")
    frequency_cap_unit = One("Unit", [(str(unit), name) for unit, name in documents.UNITS_S.items()])
    placements = Some("Placements")
    devices = Some("Devices", named(DEVICES))
    os = Some("Operating systems", named(OPERATING_SYSTEMS))
    countries = Words("Countries", "Two-letter codes, separated by commas: JP, DE")
    languages = Words("Languages", "ja, pt-BR; ja takes ja-JP too")
    keywords_any = Words("Keywords, any of", "At least one of these, separated by commas.")
    keywords_none = Words("Keywords, none of")
    key_values = Words("Key-values", "A line each: section = manga, news", lines=2)
    weekdays = Some("Weekdays", [(str(number), name) for number, name in enumerate(WEEKDAYS)])
    hours = Some("Hours", [(str(hour), f"{hour:02}") for hour in range(24)])

    class Meta:
        model = Campaign
        fields = ("id",)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.before = self.instance.document() if self.instance.pk else None
        self.after: dict[str, Any] | None = None
        """An inventory of this campaign alone, as it is going to be, when nothing is wrong with it."""
        self.fields["placements"].widget.choices = [
            (placement.id, f"{placement.id} ({placement.width} × {placement.height})")
            for placement in Placement.objects.all()
        ]
        zone = settings.ADCORE.time_zone
        for name in ("starts_at", "ends_at", "hours", "weekdays"):
            self.fields[name].help_text += f" Clocks of {zone.key}."
        if self.before is None:
            self.initial = {**NEW_CAMPAIGN, **self.initial}
            return
        shown = documents.campaign_fields(self.before, zone)
        self.initial.update(shown)
        self.initial["seen"] = digest(self.before)
        for name, field in self.fields.items():
            if isinstance(field, Some | One):
                field.offer(shown[name])

    def clean(self) -> dict[str, Any]:
        super().clean()  # has ids that are taken refused
        formset: CreativeFormSet = self.instance.creative_formset
        formset.is_valid()
        forms_of_creatives = formset.kept_forms()
        if self.before is not None and self.cleaned_data.get("seen") != digest(self.before):
            self.add_error(None, "Somebody else changed this campaign after you opened it. Open it again to see how.")
        elif not formset.is_complete():
            self.add_error(None, "The form did not come whole: creatives are missing in it. Open it again.")
        if not is_whole(self) or any(form.values is None for form in forms_of_creatives):
            return self.cleaned_data
        campaign, faults = documents.check_campaign(
            [placement.document() for placement in Placement.objects.all()],
            self._document([form.document() for form in forms_of_creatives]),
        )
        for fault in faults:
            form = self if fault.creative is None else forms_of_creatives[fault.creative]
            if fault.field in form.fields:
                form.add_error(fault.field, fault.message)
            else:
                form.add_error(None, f"{fault.field.capitalize()}: {fault.message}")
        if campaign is not None:
            self.after = to_document(Inventory((), (campaign,)))
            self._take_creatives(forms_of_creatives)
        return self.cleaned_data

    def _document(self, creatives: list[dict[str, Any]]) -> dict[str, Any]:
        fields = {"id": self.instance.pk, **self.cleaned_data}
        document = documents.campaign_document(fields, creatives, settings.ADCORE.time_zone)
        for name in ("starts_at", "ends_at"):
            # The same moment, as its writer wrote it: the offset may be another one.
            if self.before is not None and fields[name] == self.initial[name]:
                document[name] = self.before[name]
        return document

    def _take_creatives(self, forms_of_creatives: list[CreativeForm]) -> None:
        assert self.after is not None
        (campaign,) = self.after["campaigns"]
        position = max(
            (form.instance.position for form in forms_of_creatives if not form.instance._state.adding), default=-1
        )
        for form, creative in zip(forms_of_creatives, campaign["creatives"], strict=True):
            form.instance.take("creatives", {"placements": [], "campaigns": [{**campaign, "creatives": [creative]}]})
            if form.instance._state.adding:
                position += 1
                form.instance.position = position

    def _post_clean(self) -> None:
        super()._post_clean()  # type: ignore[misc]
        if self.after is not None:
            self.instance.take("campaigns", self.after)


def digest(document: Mapping[str, Any]) -> str:
    return sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:32]


def advertisers() -> list[str]:
    """Whom to suggest."""
    return list(Advertiser.objects.exclude(name="").order_by("name").values_list("name", flat=True))
