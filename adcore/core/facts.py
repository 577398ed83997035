"""What a request says about itself, in the words that targeting uses.

Browsers repeat themselves, so each distinct header is parsed once and remembered in a bounded cache. What a
browser sends is never an error, only unknown; keywords and key-values are sent by the site's own pages, so a
mistake in them is a `FactsError` that names the field.
"""

import re
from collections.abc import Collection, Iterable
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple, TypeVar

from adcore.core.inventory import WORD_CHARS_MAX, normalise_word
from adcore.errors import AdcoreError

# A person who sets more languages than this does not notice; each is stored with every record.
LANGUAGES_MAX = 16
ACCEPT_LANGUAGE_CHARS_MAX = 512
# What fits with room to spare in a request line of 8 KiB and in a record.
KEYWORDS_MAX = 32
KEY_VALUES_MAX = 32
# Of each of the two, as they are written: "News" and " news" are one keyword.
SPELLINGS_MAX = 128


_Spelling = TypeVar("_Spelling", str, tuple[str, str])


class FactsError(AdcoreError, ValueError):
    """A page sent a keyword or key-value that cannot be used; `field` is the parameter's name."""

    def __init__(self, field: str, message: str) -> None:
        self.field = field
        super().__init__(f"{field} {message}")


class Facts(NamedTuple):
    """All that targeting knows of a request. Equal facts are treated alike."""

    device: str
    os: str
    country: str
    """ISO 3166 alpha-2 in upper case, "" when unknown."""
    languages: tuple[str, ...]
    """Most wanted first, each followed by the wider ones that it belongs to: "pt-br", "pt"."""
    keywords: tuple[str, ...]
    """Sorted, each once."""
    key_values: tuple[tuple[str, str], ...]
    """Sorted, each once; a name may come with several values."""
    bot: bool


def parse_accept_language(text: str) -> tuple[str, ...]:
    """The languages of an Accept-Language header (RFC 9110, 12.5.4), best first, in lower case.

    Those with q=0 are left out. Each is followed by its wider ranges (RFC 4647, 3.4), unless refused by q=0.
    """
    if len(text) > ACCEPT_LANGUAGE_CHARS_MAX:
        text = text[:ACCEPT_LANGUAGE_CHARS_MAX].rpartition(",")[0]
    return _parse_accept_language(text)


def parse_country(text: str) -> str:
    """An ISO 3166 alpha-2 code in upper case; "" for anything else, and for the XX and ZZ of proxies."""
    code = text.strip()
    if len(code) != 2 or not code.isascii() or not code.isalpha():
        return ""
    code = code.upper()
    return "" if code in ("XX", "ZZ") else code


def parse_keywords(text: str) -> tuple[str, ...]:
    """Keywords separated by commas, in normal form, sorted. Raises FactsError."""
    if not text:
        return ()
    words = {_word("keywords", word) for word in _distinct("keywords", KEYWORDS_MAX, text.split(","))} - {""}
    if len(words) > KEYWORDS_MAX:
        raise FactsError("keywords", f"must be at most {KEYWORDS_MAX}, and are {len(words)}")
    return tuple(sorted(words))


def parse_key_values(pairs: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Pairs of name and value in normal form, sorted; empty values are left out. Raises FactsError."""
    found = set()
    for name, value in _distinct("key-values", KEY_VALUES_MAX, pairs):
        key = _word("the name of a key-value", name)
        if not key:
            raise FactsError("the name of a key-value", "must not be empty: write kv.NAME=VALUE")
        word = _word(f"kv.{key}", value)
        if word:
            found.add((key, word))
    if len(found) > KEY_VALUES_MAX:
        raise FactsError("key-values", f"must be at most {KEY_VALUES_MAX}, and are {len(found)}")
    return tuple(sorted(found))


def truncate_ip(text: str) -> str:
    """The network of an address: /24 of IPv4 ("192.0.2.0"), /48 of IPv6 ("2001:db8:1::"); "" of no such."""
    # The longest address is 45 characters, and the name of an interface may follow.
    if len(text) > 80:
        return ""
    try:
        address = ip_address(text.strip().partition("%")[0])
    except ValueError:
        return ""
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is None:
            return str(IPv6Address(int(address) >> 80 << 80))
        address = address.ipv4_mapped
    return str(IPv4Address(int(address) >> 8 << 8))


def _distinct(field: str, words_max: int, spellings: Iterable[_Spelling]) -> Collection[_Spelling]:
    """Each once, in order. They are counted here, since to find the normal form of one takes a microsecond."""
    distinct = dict.fromkeys(spellings)
    if len(distinct) > SPELLINGS_MAX:
        raise FactsError(field, f"must be at most {words_max}, and are written in {len(distinct)} ways")
    return distinct


def _word(field: str, text: str) -> str:
    word = normalise_word(text)
    if len(word) > WORD_CHARS_MAX:
        raise FactsError(field, f"must be words of at most {WORD_CHARS_MAX} characters")
    if not word.replace(" ", "").isprintable():
        raise FactsError(field, "must not contain control characters")
    return word


_LANGUAGE_RANGE = re.compile(
    r"\s*([A-Za-z]{1,8}(?:-[A-Za-z0-9]{1,8}){0,4})\s*(?:;\s*[qQ]\s*=\s*([01](?:\.[0-9]{0,3})?)\s*)?"
)


@lru_cache(maxsize=4096)
def _parse_accept_language(text: str) -> tuple[str, ...]:
    ranges: dict[str, float] = {}
    for part in text.split(","):
        match = _LANGUAGE_RANGE.fullmatch(part)
        if match:
            ranges.setdefault(match[1].lower(), float(match[2] or 1))
    refused = {tag for tag, quality in ranges.items() if not quality}
    languages: dict[str, None] = {}
    # Of equal quality the first comes first: sorting is stable.
    for tag in sorted(ranges, key=ranges.__getitem__, reverse=True):
        if tag in refused:
            break
        while tag:
            if tag not in refused:
                languages.setdefault(tag)
            tag = tag.rpartition("-")[0]
    return tuple(languages)[:LANGUAGES_MAX]
