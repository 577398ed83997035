"""The Django settings, made from what `adctl admin` was told: secure ones, whatever it was told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from adcore.sources import sqlite_path
from adcore.sources.mysql import parse_url
from adtools.admin import statements
from adtools.admin.imagestore import ImageStore

# A working day; closing the browser ends a session, too.
SESSION_SECONDS = 12 * 3600
# Within which a one-time link has to be opened.
LINK_SECONDS = 24 * 3600
# Another process's write, as in adcore.sources.sqlite.
BUSY_TIMEOUT_S = 10

# Everything comes from here. Only images are shown from elsewhere, in the previews' own documents.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; frame-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What one admin is run with. Its views find it as `settings.ADCORE`."""

    source: str
    """The store's URL."""
    url: str
    """Where browsers find the admin, without a slash at its end."""
    secret: str
    """Signs sessions and one-time links."""
    time_zone: ZoneInfo
    images: ImageStore
    logs: Sequence[Path] = ()
    """Delivery logs, in which answers of the past are looked up; rotated ones are beside them."""
    archive: Path
    """The tables that these answers were decided on."""
    images_dir: Path | None = None
    """Served under /creatives/ by the admin itself."""
    control: str | None = None
    """The control listener of a server that explains."""


def django_settings(options: Options) -> dict[str, Any]:
    """What `django.conf.settings.configure` takes."""
    url = urlsplit(options.url)
    secure = url.scheme == "https"
    # Browsers keep a cookie of this prefix for this host alone, and only if it came over https.
    prefix = "__Host-" if secure else ""
    return {
        "ADCORE": options,
        "DEBUG": False,
        "SECRET_KEY": options.secret,
        "ALLOWED_HOSTS": [url.hostname],
        "CSRF_TRUSTED_ORIGINS": [options.url],
        "ROOT_URLCONF": "adtools.admin.urls",
        "DATABASES": {"default": database(options.source)},
        "DEFAULT_AUTO_FIELD": "django.db.models.BigAutoField",
        "INSTALLED_APPS": [
            # Before django.contrib.admin, whose templates it replaces some of.
            "adtools.admin.apps.AdminConfig",
            "django.contrib.admin.apps.SimpleAdminConfig",
            "django.contrib.auth",
            "django.contrib.contenttypes",
            "django.contrib.sessions",
            "django.contrib.messages",
            "django.contrib.staticfiles",
            "axes",
        ],
        "MIDDLEWARE": [
            "django.middleware.security.SecurityMiddleware",
            "whitenoise.middleware.WhiteNoiseMiddleware",
            "adtools.admin.security.content_security_policy",
            "adtools.admin.security.Failures",
            "django.contrib.sessions.middleware.SessionMiddleware",
            "django.middleware.common.CommonMiddleware",
            "django.middleware.csrf.CsrfViewMiddleware",
            "django.contrib.auth.middleware.AuthenticationMiddleware",
            "django.contrib.messages.middleware.MessageMiddleware",
            "adtools.admin.security.standing_session",
            # Before any view or middleware reads the form.
            "adtools.admin.security.bounded_form",
            "adtools.admin.logins.known_browser",
            "django.middleware.clickjacking.XFrameOptionsMiddleware",
            "axes.middleware.AxesMiddleware",
        ],
        "TEMPLATES": [
            {
                "BACKEND": "django.template.backends.django.DjangoTemplates",
                "APP_DIRS": True,
                "OPTIONS": {
                    "context_processors": [
                        "django.template.context_processors.request",
                        "django.contrib.auth.context_processors.auth",
                        "django.contrib.messages.context_processors.messages",
                    ]
                },
            }
        ],
        # Files from the packages themselves: nothing to collect on installation.
        "STATIC_URL": "/static/",
        "WHITENOISE_USE_FINDERS": True,
        "WHITENOISE_MAX_AGE": 3600,
        "TIME_ZONE": options.time_zone.key,
        "USE_TZ": True,
        "USE_I18N": False,
        # A campaign of some hundreds of creatives is one form; each may have 256 KiB of HTML and an image.
        "DATA_UPLOAD_MAX_NUMBER_FIELDS": 20_000,
        "DATA_UPLOAD_MAX_NUMBER_FILES": 100,
        "DATA_UPLOAD_MAX_MEMORY_SIZE": 16 << 20,
        # Who may come in.
        "AUTHENTICATION_BACKENDS": [
            "axes.backends.AxesStandaloneBackend",
            "django.contrib.auth.backends.ModelBackend",
        ],
        "AUTH_PASSWORD_VALIDATORS": [
            {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
            {
                "NAME": "django.contrib.auth.password_validation.MinimumLengthValidator",
                "OPTIONS": {"min_length": 12},
            },
            {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
            {"NAME": "django.contrib.auth.password_validation.NumericPasswordValidator"},
        ],
        "LOGIN_URL": "admin:login",
        # For who comes without an address to go to, or with one that leads elsewhere.
        "LOGIN_REDIRECT_URL": "admin:index",
        "PASSWORD_RESET_TIMEOUT": LINK_SECONDS,
        "AXES_HANDLER": "adtools.admin.logins.LoginLimits",
        "AXES_LOCKOUT_CALLABLE": "adtools.admin.logins.locked_out",
        "AXES_LOCKOUT_PARAMETERS": [["username", "ip_address"]],
        "AXES_CLIENT_IP_CALLABLE": "adtools.admin.security.client_address",
        "AXES_ENABLE_ADMIN": False,
        "AXES_DISABLE_ACCESS_LOG": True,
        "AXES_VERBOSE": False,
        # Sessions and what guards them.
        "SESSION_COOKIE_NAME": f"{prefix}adcore_session",
        "SESSION_COOKIE_AGE": SESSION_SECONDS,
        "SESSION_EXPIRE_AT_BROWSER_CLOSE": True,
        "SESSION_COOKIE_SECURE": secure,
        "SESSION_COOKIE_HTTPONLY": True,
        "SESSION_COOKIE_SAMESITE": "Lax",
        "CSRF_COOKIE_NAME": f"{prefix}adcore_csrf",
        "CSRF_COOKIE_SECURE": secure,
        "CSRF_COOKIE_HTTPONLY": True,
        "CSRF_COOKIE_SAMESITE": "Strict",
        "ADCORE_BROWSER_COOKIE": f"{prefix}adcore_browser",
        "SECURE_PROXY_SSL_HEADER": None,  # the WSGI server says which scheme it was, and whom it believes
        "SECURE_HSTS_SECONDS": 365 * 86_400 if secure else 0,
        "SECURE_CONTENT_TYPE_NOSNIFF": True,
        "SECURE_REFERRER_POLICY": "same-origin",
        "X_FRAME_OPTIONS": "DENY",
        "LOGGING": {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"plain": {"format": "%(levelname)s %(name)s: %(message)s"}},
            "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "plain"}},
            "root": {"handlers": ["stderr"], "level": "WARNING"},
            "loggers": {
                "django": {"handlers": [], "propagate": True},
                # A page's files come at once, and wait for each other a millisecond.
                "waitress.queue": {"level": "ERROR"},
            },
        },
    }


def database(source: str) -> dict[str, Any]:
    """Django's description of the store at a URL."""
    if source.startswith("sqlite:"):
        return {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": sqlite_path(source),
            # IMMEDIATE waits its turn at the start; a read turned into a write could not wait.
            "OPTIONS": {"timeout": BUSY_TIMEOUT_S, "transaction_mode": "IMMEDIATE"},
        }
    arguments: dict[str, Any] = parse_url(source)[0]
    names = ("db", "user", "passwd", "unix_socket", "host", "port")
    return {
        "ENGINE": "django.db.backends.mysql",
        "NAME": arguments["db"],
        "USER": arguments.get("user", ""),
        "PASSWORD": arguments.get("passwd", ""),
        # Django takes what starts with a slash for a socket.
        "HOST": arguments.get("unix_socket", arguments.get("host", "")),
        "PORT": arguments.get("port", ""),
        "CONN_MAX_AGE": 60,
        "CONN_HEALTH_CHECKS": True,
        "OPTIONS": {
            # TLS, and what the server may ask for: as the servers have it.
            **{name: value for name, value in arguments.items() if name not in names},
            "charset": "utf8mb4",
            "init_command": statements.mysql_session(),
            "isolation_level": "repeatable read",
            "connect_timeout": 3,
            "read_timeout": 30,
            "write_timeout": 30,
        },
    }


def migrate() -> None:
    """Create or update Django's own tables in the store."""
    from django.core.management import call_command
    from django.db import connection

    if connection.vendor == "mysql":
        # Django's tables take the database's character set, which may have no room for what people write.
        with connection.cursor() as cursor:
            name = connection.ops.quote_name(connection.settings_dict["NAME"])
            cursor.execute(statements.mysql_session(0))  # a large table takes its time
            cursor.execute(f"ALTER DATABASE {name} CHARACTER SET utf8mb4")
    call_command("migrate", verbosity=0, interactive=False)


def set_up(options: Options) -> None:
    """Make this process the admin of one store. Once in a process: Django's settings are global."""
    import django
    from django.conf import settings

    settings.configure(**django_settings(options))
    django.setup()
