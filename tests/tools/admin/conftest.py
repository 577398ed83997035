"""Django is set up before any test here imports what needs it."""

import tests.tools.admin.project  # noqa: F401
