"""The Django application: its label is `adcore`, and its templates and static files are in this folder."""

from django.apps import AppConfig


class AdminConfig(AppConfig):
    name = "adtools.admin"
    label = "adcore"
    verbose_name = "Inventory"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from django.contrib.auth.signals import user_logged_in
        from django.db.backends.signals import connection_created

        from adtools.admin import people, statements

        connection_created.connect(statements.bound_connection, dispatch_uid="adtools.admin.statements")
        user_logged_in.connect(people.begin_session, dispatch_uid="adtools.admin.people")
