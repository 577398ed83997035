"""The tables of the store, as adcore/sources/migrations makes them: Django reads and writes them and never alters one.

Columns are plain text wherever Django has rules of its own: what is right is for adcore.core.inventory to say.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from django.conf import settings
from django.db import models

from adcore.core.inventory import web_url
from adcore.sources import sqlstore
from adtools.admin import documents


class Stored(models.Model):
    """A row of the inventory."""

    class Meta:
        abstract = True

    def row(self) -> dict[str, Any]:
        """The columns by name, as the stores of adcore read them."""
        fields = self._meta.concrete_fields
        return {str(field.column): sqlstore.as_text(getattr(self, field.attname)) for field in fields}

    def shown_fields(self) -> dict[str, Any]:
        """What a form has of it, for those who may only look."""
        raise NotImplementedError

    def take(self, table: str, document: Mapping[str, Any]) -> None:
        """Set every column but the position to what `adctl apply` would write for the one row of this table there."""
        (values,) = sqlstore.wanted_rows(dict(document))[table].values()
        for column, value in zip(sqlstore.COLUMNS[table], values, strict=True):
            if column not in ("position", "campaign"):
                setattr(self, column, value)


class Placement(Stored):
    id = models.TextField(primary_key=True)
    position = models.IntegerField(default=0)
    width = models.IntegerField()
    height = models.IntegerField()
    formats = models.TextField(null=True)

    class Meta:
        managed = False
        db_table = "placements"
        ordering: ClassVar = ["position", "id"]

    def __str__(self) -> str:
        return str(self.id)

    def document(self) -> dict[str, Any]:
        return sqlstore.placement_object(self.row())

    def shown_fields(self) -> dict[str, Any]:
        return self.document()


class Advertiser(models.Model):
    name = models.TextField(primary_key=True)

    class Meta:
        managed = False
        db_table = "advertisers"
        default_permissions = ()


class Campaign(Stored):
    id = models.TextField(primary_key=True)
    position = models.IntegerField(default=0)
    name = models.TextField()
    advertiser = models.TextField(default="")
    priority = models.TextField(default="standard")
    weight = models.IntegerField(default=1)
    status = models.TextField(default="active")
    starts_at = models.TextField(null=True)
    ends_at = models.TextField(null=True)
    goal_impressions = models.BigIntegerField(null=True)
    goal_clicks = models.BigIntegerField(null=True)
    daily_cap_impressions = models.BigIntegerField(null=True)
    daily_cap_clicks = models.BigIntegerField(null=True)
    pacing = models.TextField(default="asap")
    optimize_for = models.TextField(null=True)
    frequency_cap_impressions = models.IntegerField(null=True)
    frequency_cap_seconds = models.IntegerField(null=True)
    targeting = models.TextField(null=True)

    class Meta:
        managed = False
        db_table = "campaigns"
        ordering: ClassVar = ["position", "id"]

    def __str__(self) -> str:
        return f"{self.name} ({self.id})"

    def document(self) -> dict[str, Any]:
        """With its creatives."""
        creatives = [creative.document() for creative in Creative.objects.filter(campaign=self.pk)]
        return sqlstore.campaign_object(self.row(), creatives)

    def shown_fields(self) -> dict[str, Any]:
        return documents.campaign_fields(self.document(), settings.ADCORE.time_zone)

    def faults(self) -> list[str]:
        """Why servers leave this row, or a creative of it, out: other hands wrote what is not valid."""
        document = self.document()
        creatives = document["creatives"]
        _, faults = documents.check_campaign([placement.document() for placement in Placement.objects.all()], document)
        return [
            f"{fault.field}: {fault.message}"
            if fault.creative is None
            else f"creative {creatives[fault.creative]['id']}, {fault.field}: {fault.message}"
            for fault in faults
        ]


class Creative(Stored):
    id = models.TextField(primary_key=True)
    campaign = models.ForeignKey(Campaign, models.CASCADE, db_column="campaign", related_name="creatives")
    position = models.IntegerField(default=0)
    width = models.IntegerField()
    height = models.IntegerField()
    format = models.TextField(default="image")
    weight = models.IntegerField(default=1)
    image_url = models.TextField(null=True)
    alt = models.TextField(null=True)
    html = models.TextField(null=True)
    data = models.TextField(null=True)
    landing_url = models.TextField(null=True)

    class Meta:
        managed = False
        db_table = "creatives"
        ordering: ClassVar = ["position", "id"]

    def __str__(self) -> str:
        return str(self.id)

    def document(self) -> dict[str, Any]:
        return sqlstore.creative_object(self.row())

    def shown_fields(self) -> dict[str, Any]:
        return documents.creative_fields(self.document())

    @property
    def landing_link(self) -> str:
        """The landing URL if it is one: other hands may have written anything."""
        return web_url(self.landing_url)


class Revision(models.Model):
    """One row; triggers raise `revision` with every change of the inventory."""

    revision = models.BigIntegerField()
    confirmed = models.BigIntegerField()

    class Meta:
        managed = False
        db_table = "revision"
        default_permissions = ()

    @classmethod
    def lock(cls) -> None:
        """Within a transaction: nobody else changes the inventory until it ends."""
        cls.objects.select_for_update().get(pk=1)

    @classmethod
    def confirm(cls) -> None:
        """A person meant what this transaction changes: servers take it as they take what `adctl apply` wrote."""
        cls.objects.filter(pk=1).update(confirmed=models.F("revision"))


class Result(models.Model):
    """What an hour delivered; written by `adctl collect`, only read here."""

    pk = models.CompositePrimaryKey("hour", "placement", "campaign", "creative", "device", "country")
    hour = models.BigIntegerField()
    placement = models.TextField()
    campaign = models.TextField()
    creative = models.TextField()
    device = models.TextField()
    country = models.TextField()
    impressions = models.BigIntegerField()
    views = models.BigIntegerField()
    clicks = models.BigIntegerField()
    ivt = models.BigIntegerField()

    class Meta:
        managed = False
        db_table = "results"
        default_permissions = ()


class Delivered(models.Model):
    """What counts towards a campaign's goal, by day of the site's time zone."""

    pk = models.CompositePrimaryKey("campaign", "day")
    campaign = models.TextField()
    day = models.TextField()
    impressions = models.BigIntegerField()
    clicks = models.BigIntegerField()

    class Meta:
        managed = False
        db_table = "delivered"
        default_permissions = ()


class Access(models.Model):
    """What a person's links and sessions hang on; see people.py. Without a row: no link, and the first generation."""

    user = models.OneToOneField("auth.User", models.CASCADE, primary_key=True, related_name="+")
    link = models.CharField(max_length=32, default="")
    """Drawn for the newest one-time link; empty once it was used, or taken back."""
    generation = models.PositiveIntegerField(default=0)
    """Sessions of an earlier one have ended."""

    class Meta:
        default_permissions = ()
