"""What a list takes from its query string: its own filters, a search of some words, an order, a page, and no more.

Django lets a query string filter by any look-up of the model's own columns, regular expressions among them. Here each
list names the look-ups that its links have, with what their values look like.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

from django.contrib import admin, messages
from django.contrib.admin.exceptions import DisallowedModelAdminLookup
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.db import models
from django.http import HttpRequest

from adtools.admin.security import Unreadable

# Each word is one more condition on every search field.
SEARCH_WORDS_MAX = 8
SEARCH_CHARS_MAX = 200
# Ids, names and statuses, as the filters' links have them.
TEXT = re.compile(r"[^\0\n]{0,200}")
MOMENT = re.compile(r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d", re.ASCII)
NUMBER = re.compile(r"\d{1,9}", re.ASCII)
# Columns by number, each but once.
_ORDER = re.compile(r"(?:-?\d{1,2}\.){0,15}-?\d{1,2}|", re.ASCII)
_OWN = {
    "q": re.compile(r"(?s:.*)"),  # judged by get_search_results, which says what is wrong
    "o": _ORDER,
    "p": re.compile(r"-?\d{1,9}|", re.ASCII),
    "all": re.compile(r"\d?", re.ASCII),
    "e": re.compile(r"\d?", re.ASCII),
}


class BoundedAdmin(admin.ModelAdmin):
    """Lists and forms that take what their own pages send."""

    list_lookups: ClassVar[dict[str, re.Pattern[str]]] = {}
    """By the name of the parameter: how its values look."""
    show_facets = admin.ShowFacets.NEVER  # a count for each advertiser, of all campaigns

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest | None = None) -> bool:
        return lookup in self.list_lookups and self.list_lookups[lookup].fullmatch(value) is not None

    def to_field_allowed(self, request: HttpRequest, to_field: str) -> bool:
        return False  # no form of ours chooses from another list

    def get_changeform_initial_data(self, request: HttpRequest) -> dict[str, Any]:
        return {}  # an address is no way to fill in a form

    def get_changelist_instance(self, request: HttpRequest) -> Any:
        known = _OWN | self.list_lookups
        for name, values in request.GET.lists():
            if name not in known or len(values) > 1 or known[name].fullmatch(values[0]) is None:
                raise DisallowedModelAdminLookup(f"This list has no filter {name[:50]!r}, or none with such a value")
        return super().get_changelist_instance(request)

    def get_search_results(self, request: HttpRequest, queryset: Any, search_term: str) -> tuple[Any, bool]:
        if len(search_term) > SEARCH_CHARS_MAX or len(search_term.split()) > SEARCH_WORDS_MAX:
            message = f"A search is of at most {SEARCH_WORDS_MAX} words and {SEARCH_CHARS_MAX} characters."
            messages.error(request, message)
            return queryset.none(), False
        return super().get_search_results(request, queryset, search_term)

    def response_action(self, request: HttpRequest, queryset: Any, *args: Any, **kwargs: Any) -> Any:
        """Of rows that a page can have chosen."""
        chosen = request.POST.getlist(ACTION_CHECKBOX_NAME)
        if len(chosen) > self.list_max_show_all:
            raise Unreadable(
                f"At most {self.list_max_show_all} rows are chosen at once; all of a list have their own link."
            )
        looks = NUMBER if isinstance(self.opts.pk, models.IntegerField) else TEXT
        if not all(looks.fullmatch(key) for key in chosen):
            raise Unreadable("A row of this form is none of the list.")
        return super().response_action(request, queryset, *args, **kwargs)
