"""What headers and parameters say, in the words of targeting."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adcore.core.facts import (
    ACCEPT_LANGUAGE_CHARS_MAX,
    KEY_VALUES_MAX,
    KEYWORDS_MAX,
    LANGUAGES_MAX,
    FactsError,
    parse_accept_language,
    parse_country,
    parse_key_values,
    parse_keywords,
    truncate_ip,
)
from adcore.errors import AdcoreError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ()),
        ("ja", ("ja",)),
        ("ja-JP", ("ja-jp", "ja")),
        ("en-US,en;q=0.9,ja;q=0.8", ("en-us", "en", "ja")),
        ("de;q=0.3, fr;q=0.8, it", ("it", "fr", "de")),
        ("de, fr, it", ("de", "fr", "it")),
        ("zh-Hant-TW", ("zh-hant-tw", "zh-hant", "zh")),
        ("pt-BR;q=0.5, pt;q=0.9, en;q=0.7", ("pt", "en", "pt-br")),
        ("fr;q=0, de", ("de",)),
        ("en-GB, en;q=0", ("en-gb",)),
        ("*", ()),
        ("ja, *;q=0.1", ("ja",)),
        ("ja ; q = 0.5 , en", ("en", "ja")),
        ("ja;q=0.1234, en;q=2, fr;q=, de", ("de",)),
        ("<script>, ja_JP, \x00, é, de", ("de",)),
        (",,,", ()),
    ],
)
def test_accept_language_in_order_of_preference(text: str, expected: tuple[str, ...]) -> None:
    assert parse_accept_language(text) == expected


def test_a_long_list_of_languages_is_cut_at_a_whole_entry() -> None:
    many = ",".join(f"{chr(97 + a)}{chr(97 + b)}" for a in range(26) for b in range(26))
    assert len(parse_accept_language(many)) == LANGUAGES_MAX
    padded = "ja;" + " " * ACCEPT_LANGUAGE_CHARS_MAX + "q=0, en"
    assert parse_accept_language(padded) == ()
    assert parse_accept_language("ja," + "x" * 600) == ("ja",)
    # Cut in the middle, "en-US" would be read as another language than was sent.
    assert parse_accept_language("ja," * 170 + "en-US") == ("ja",)


@given(st.text())
def test_no_accept_language_makes_the_parser_fail(text: str) -> None:
    languages = parse_accept_language(text)
    assert len(set(languages)) == len(languages) <= LANGUAGES_MAX
    assert all(tag == tag.lower() and tag.isascii() for tag in languages)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("JP", "JP"),
        (" jp ", "JP"),
        ("", ""),
        ("XX", ""),
        ("zz", ""),
        ("T1", ""),
        ("--", ""),
        ("JPN", ""),
        ("ÄÖ", ""),
        ("ß", ""),
        ("J\n", ""),
    ],
)
def test_countries(text: str, expected: str) -> None:
    assert parse_country(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ()),
        ("manga", ("manga",)),
        (" News ,manga,,NEWS", ("manga", "news")),
        ("two words", ("two words",)),
        ("か\u3099,が", ("が",)),
        ("STRASSE,straße", ("strasse",)),
    ],
)
def test_keywords_in_normal_form(text: str, expected: tuple[str, ...]) -> None:
    assert parse_keywords(text) == expected


def test_key_values_in_normal_form() -> None:
    pairs = [("Section", "Manga"), ("section", "manga "), ("tier", "Gold"), ("tier", "all"), ("empty", "")]
    assert parse_key_values(pairs) == (("section", "manga"), ("tier", "all"), ("tier", "gold"))


@pytest.mark.parametrize(
    ("keywords", "key_values", "field"),
    [
        ("x" * 129, [], "keywords"),
        ("ß" * 65, [], "keywords"),
        ("a,b\x00", [], "keywords"),
        ("a\u2028b", [], "keywords"),
        ("\ud800", [], "keywords"),
        (",".join(map(str, range(KEYWORDS_MAX + 1))), [], "keywords"),
        ("", [("", "x")], "the name of a key-value"),
        ("", [("n" * 129, "x")], "the name of a key-value"),
        ("", [("section", "x" * 129)], "kv.section"),
        ("", [("section", "a\nb")], "kv.section"),
        ("", [("n", str(number)) for number in range(KEY_VALUES_MAX + 1)], "key-values"),
    ],
)
def test_a_bad_parameter_is_refused_by_name(keywords: str, key_values: list[tuple[str, str]], field: str) -> None:
    with pytest.raises(FactsError) as caught:
        _ = parse_keywords(keywords), parse_key_values(key_values)
    assert caught.value.field == field
    assert str(caught.value).startswith(field)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, AdcoreError)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("192.0.2.77", "192.0.2.0"),
        (" 192.0.2.0 ", "192.0.2.0"),
        ("2001:db8:1:2::3", "2001:db8:1::"),
        ("2001:DB8:1:FFFF:FFFF:FFFF:FFFF:FFFF", "2001:db8:1::"),
        ("::1", "::"),
        ("::ffff:192.0.2.77", "192.0.2.0"),
        ("fe80::1%eth0", "fe80::"),
        ("", ""),
        ("192.0.2", ""),
        ("192.0.2.77:80", ""),
        ("unknown", ""),
        ("1" * 1000, ""),
    ],
)
def test_addresses_are_truncated(text: str, expected: str) -> None:
    assert truncate_ip(text) == expected


def test_the_order_of_what_was_sent_does_not_matter() -> None:
    pairs = [("a", "1"), ("b", "2"), ("a", "3")]
    assert parse_keywords("x,y,z") == parse_keywords("z,x,y,x")
    assert parse_key_values(pairs) == parse_key_values(pairs[::-1])
