"""The admin's Django project, set up once in this process and put on a store of each test's own."""

import atexit
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from adcore.core.inventory import parse_inventory
from adcore.sources import open_store, sqlite_path
from adtools.admin.imagestore import Directory
from adtools.admin.project import Options, database, migrate, set_up

URL = "http://127.0.0.1:8081"
ZONE = ZoneInfo("Asia/Tokyo")
set_up(
    Options(
        source="sqlite:////nowhere",
        url=URL,
        secret="s" * 50,
        time_zone=ZONE,
        images=Directory(Path("/nowhere"), ""),
        archive=Path("/nowhere"),
    )
)

from axes.models import AccessAttempt  # noqa: E402
from django.conf import settings  # noqa: E402
from django.contrib.admin.models import LogEntry  # noqa: E402
from django.contrib.auth.models import User  # noqa: E402
from django.db import connections  # noqa: E402
from django.test import Client  # noqa: E402
from django.test.utils import setup_test_environment  # noqa: E402

from adtools.admin.users import make_user  # noqa: E402

# A hash that is safe takes half a second.
settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
setup_test_environment()  # answers have the context that they were drawn from


@contextmanager
def sqlite_store(folder: Path, document: dict[str, Any]) -> Iterator[str]:
    """The project on an SQLite store with this inventory; its URL."""
    url = f"sqlite://{folder}/ads.db"
    use_store(url, document, folder)
    yield url
    close()


def use_store(source: str, document: dict[str, Any], folder: Path, **options: Any) -> None:
    """Put the project on the store at this URL, and this inventory and nobody's history into that.

    Django's migrations take seconds: an SQLite store is a copy of one that has them, and a MySQL one is used again.
    """
    if source.startswith("sqlite:"):
        shutil.copyfile(_migrated_file(), sqlite_path(source))
    else:
        _migrate(source)
    store = open_store(source)
    store.apply(lambda _: parse_inventory(document))
    store.close()
    connect(source)
    for model in (LogEntry, User, AccessAttempt):
        model.objects.all().delete()
    images = Directory(folder / "creatives", f"{URL}/creatives")
    settings.ADCORE = replace(
        settings.ADCORE, **{"source": source, "images": images, "images_dir": images.path, "control": None, **options}
    )


def with_control(control: str) -> Options:
    """The options of this test's store, and the control listener of a server."""
    options: Options = settings.ADCORE
    return replace(options, control=control)


@cache
def _migrated_file() -> Path:
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    _migrate(f"sqlite://{folder}/ads.db")
    # The write-ahead log goes with the last connection.
    close()
    return folder / "ads.db"


@cache
def _migrate(source: str) -> None:
    store = open_store(source)
    store.migrate()
    store.close()
    connect(source)
    migrate()


def connect(source: str) -> None:
    close()
    connections.settings["default"] = connections.configure_settings({"default": database(source)})["default"]


def close() -> None:
    """Let go of the store."""
    for opened in connections.all(initialized_only=True):
        opened.close()
        del connections[opened.alias]


def client(role: str, name: str = "") -> Client:
    """A browser in which a person of this role is logged in."""
    browser = Client(SERVER_NAME="127.0.0.1", raise_request_exception=True)
    browser.force_login(make_user(name or role, role), backend="django.contrib.auth.backends.ModelBackend")
    return browser


def person(name: str, role: str, password: str) -> User:
    """Somebody who can log in."""
    user = make_user(name, role)
    user.set_password(password)
    user.save()
    return user


def stored(source: str) -> dict[str, Any]:
    """The document of the store."""
    store = open_store(source)
    try:
        return store.load().document
    finally:
        store.close()


def posted(page: Any, **changes: str | list[str]) -> dict[str, Any]:
    """What a browser would post from a campaign's or placement's page, with these fields filled in differently."""
    form = page.context["adminform"].form
    data: dict[str, Any] = _values(form)
    for inline in page.context.get("inline_admin_formsets", ()):
        formset = inline.formset
        data |= _values(formset.management_form)
        for creative in formset.forms:
            data |= _values(creative)
    data |= changes
    return {name: value for name, value in data.items() if value is not None}


def _values(form: Any) -> dict[str, Any]:
    return {form.add_prefix(name): form[name].value() for name in form.fields if name not in ("upload", "DELETE")}


def errors(page: Any) -> dict[str, list[str]]:
    """The messages beside the fields of a page, by name; those of a creative after its prefix."""
    found = dict(page.context["adminform"].form.errors)
    for inline in page.context.get("inline_admin_formsets", ()):
        for form in inline.formset.forms:
            found |= {form.add_prefix(name): messages for name, messages in form.errors.items()}
    return {name: [str(message) for message in messages] for name, messages in found.items()}


def history() -> list[tuple[str, str, str]]:
    """(who, what, how) of all changes, the first one first."""
    return [
        (entry.user.get_username(), entry.object_id or "", entry.get_change_message())
        for entry in LogEntry.objects.select_related("user").order_by("pk")
    ]
