"""A group for each role."""

from typing import Any

from django.contrib.auth.management import create_permissions
from django.db import migrations

from adtools.admin.roles import ROLES


def make_groups(apps: Any, schema_editor: Any) -> None:
    # Django makes permissions after the last migration; they are needed now.
    for config in apps.get_app_configs():
        config.models_module = True
        create_permissions(config, apps=apps, verbosity=0, using=schema_editor.connection.alias)
        config.models_module = None
    group_model, permission_model = apps.get_model("auth", "Group"), apps.get_model("auth", "Permission")
    for role, (_, names) in ROLES.items():
        group, _ = group_model.objects.get_or_create(name=role)
        for name in names:
            label, _, codename = name.partition(".")
            group.permissions.add(permission_model.objects.get(content_type__app_label=label, codename=codename))


class Migration(migrations.Migration):
    dependencies = [
        ("adcore", "0001_initial"),
        ("admin", "0003_logentry_add_action_flag_choices"),
        ("auth", "0012_alter_user_first_name_max_length"),
    ]
    operations = [migrations.RunPython(make_groups, migrations.RunPython.noop)]
