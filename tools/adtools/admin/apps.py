"""The Django application: its label is `adcore`, and its templates and static files are in this folder."""

from django.apps import AppConfig


class AdminConfig(AppConfig):
    name = "adtools.admin"
    label = "adcore"
    verbose_name = "Inventory"
    default_auto_field = "django.db.models.BigAutoField"
