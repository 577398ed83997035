import os
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adcore.core.frequency import Cap, Seen, campaign_key, capped
from adcore.errors import StartError
from adcore.tokens import COOKIES_MAX, SKEW_S, FrequencyCookies, KeyRing, Token, TokenError, Tokens

KEYS = KeyRing({"k1": b"1" * 32, "k0": b"0" * 32})
OLD = KeyRing({"k0": b"0" * 32})
OTHER = KeyRing({"k1": b"2" * 32})
NOW = 1_800_000_000.0
ID = "0123456789abcdef" * 2
TOKENS = Tokens(KEYS, 3600)
CLICK = TOKENS.sign("click", ID, "top", "spring-1", NOW)


def refusal(token: str, now: float = NOW, tokens: Tokens = TOKENS) -> str:
    with pytest.raises(TokenError) as caught:
        tokens.verify("click", token, now)
    return caught.value.reason


def test_a_token_says_what_was_signed_and_needs_no_escaping() -> None:
    assert TOKENS.verify("click", CLICK, NOW) == Token(ID, "top", "spring-1", int(NOW))
    assert set(CLICK) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~")


def test_every_bit_of_a_token_matters() -> None:
    for at in range(len(CLICK)):
        for bit in range(8):
            flipped = CLICK[:at] + chr(ord(CLICK[at]) ^ (1 << bit)) + CLICK[at + 1 :]
            assert refusal(flipped) in ("malformed", "unknown key", "bad signature", "from the future"), flipped
        assert refusal(CLICK[:at])
        assert refusal(CLICK[:at] + CLICK[at + 1 :])


@settings(max_examples=300)
@given(st.text(max_size=600))
def test_no_text_is_a_token(text: str) -> None:
    assert refusal(text)


def test_what_is_added_to_a_token_breaks_it() -> None:
    for token in (CLICK + "A", "A" + CLICK, CLICK + "=", CLICK + "\n", CLICK.replace("~", "~~", 1), CLICK * 100):
        assert refusal(token) in ("malformed", "unknown key", "bad signature")


def test_a_token_is_good_for_its_purpose_and_lifetime_only() -> None:
    view = TOKENS.sign("view", ID, "top", "spring-1", NOW)
    assert refusal(view) == "bad signature"
    assert TOKENS.verify("click", CLICK, NOW + 3600)
    assert refusal(CLICK, NOW + 3601) == "expired"
    assert TOKENS.verify("click", CLICK, NOW - SKEW_S)
    assert refusal(CLICK, NOW - SKEW_S - 1) == "from the future"


def test_keys_are_rotated() -> None:
    old = Tokens(OLD, 3600).sign("click", ID, "top", "spring-1", NOW)
    assert TOKENS.verify("click", old, NOW)
    assert refusal(CLICK, tokens=Tokens(OLD, 3600)) == "unknown key"
    assert refusal(CLICK, tokens=Tokens(OTHER, 3600)) == "bad signature"


def test_a_secret_file_is_made_private_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    first = KeyRing.load_or_create(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert KeyRing.load_or_create(path).keys == first.keys
    assert os.listdir(tmp_path) == ["secret"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no key"),
        ("# nothing\n", "has no key"),
        ("k1:zz\n", "line 1"),
        ("k1:" + "0" * 31, "line 1"),
        ("k1:" + "0" * 64 + "\nk1:" + "1" * 64, "line 2"),
        ("key-id:" + "0" * 64, "line 1"),
        ("k1:\u00e9", "cannot read"),
    ],
)
def test_a_bad_secret_file_is_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "secret"
    path.write_text(content, "utf-8")
    path.chmod(0o600)
    with pytest.raises(StartError, match=message):
        KeyRing.load_or_create(path)


def test_a_secret_that_everybody_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("k1:" + "0" * 64)
    path.chmod(0o644)
    with pytest.raises(StartError, match="chmod"):
        KeyRing.load_or_create(path)
    with pytest.raises(StartError, match="cannot create"):
        KeyRing.load_or_create(tmp_path / "nowhere" / "secret")


# Frequency cookies

A, B = campaign_key("a"), campaign_key("b")
CAPS = {A: Cap(3, 3600, "a"), B: Cap(20, 86400, "b")}
COOKIES = FrequencyCookies(KEYS)


def keep(jar: dict[str, str], lines: list[str]) -> None:
    """What a browser does with Set-Cookie lines."""
    for line in lines:
        pair, *attributes = line.split("; ")
        name, _, value = pair.partition("=")
        if "Max-Age=0" in attributes:
            jar.pop(name, None)
        else:
            jar[name] = value


def cookie_header(jar: dict[str, str]) -> bytes:
    return "; ".join(f"{name}={value}" for name, value in jar.items()).encode()


def show(jar: dict[str, str], key: int, now: float, unique: str) -> list[str]:
    history, names = COOKIES.read(cookie_header(jar))
    return COOKIES.write([Seen(key, int(now), 1)], history, names, CAPS, now, unique)


def test_a_cookie_is_secure_and_lives_as_long_as_its_cap() -> None:
    (line,) = show({}, A, NOW, "abcdefghijkl")
    assert line.split("; ")[1:] == ["Max-Age=3601", "Path=/", "HttpOnly", "SameSite=Lax", "Secure"]
    (line,) = FrequencyCookies(KEYS, secure=False).write([Seen(A, int(NOW), 1)], (), (), CAPS, NOW, "abc")
    assert "Secure" not in line


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([A, B]), st.integers(1, 4)), min_size=1, max_size=30))
def test_no_impression_is_lost_however_many_tags_ask_at_once(pages: list[tuple[int, int]]) -> None:
    """Revive Adserver #619: all tags of a page are answered from the same cookies, then all answers are kept."""
    jar: dict[str, str] = {}
    shown = {A: 0, B: 0}
    for number, (key, tags) in enumerate(pages):
        answers = [show(jar, key, NOW + number, f"{number:06d}{tag:06d}") for tag in range(tags)]
        for lines in answers:
            keep(jar, lines)
        shown[key] += tags
        history, _ = COOKIES.read(cookie_header(jar))
        counted = {k: sum(seen.impressions for seen in history if seen.campaign_key == k) for k in shown}
        assert counted == shown
        assert len(jar) <= COOKIES_MAX + 2 * tags + 1
        assert len(cookie_header(jar)) < 4096


def test_cookies_that_are_not_ours_count_nothing() -> None:
    jar: dict[str, str] = {}
    keep(jar, show(jar, A, NOW, "abcdefghijkl"))
    ((name, value),) = jar.items()
    assert COOKIES.read(f"x=1; {name}={value}; y=2".encode())[0] == (Seen(A, int(NOW), 1),)
    key_id, payload, signature = value.split(".")
    for bad in (
        f"{name}x={value}",
        f"{name}=k0.{payload}.{signature}",
        f"{name}=k9.{payload}.{signature}",
        f"{name}={key_id}.B{payload[1:]}.{signature}",
        f"{name}={key_id}.{payload}.{signature[:-1]}_",
        f"{name}=",
        f"x{name}={value}",
    ):
        assert COOKIES.read(bad.encode()) == ((), []), bad
    assert FrequencyCookies(OTHER).read(cookie_header(jar)) == ((), [])


@settings(max_examples=300)
@given(st.binary(max_size=300))
def test_no_bytes_are_a_cookie(raw: bytes) -> None:
    assert COOKIES.read(raw) == ((), [])
    assert COOKIES.read(b"adcore_fc_a=" + raw) == ((), [])


def test_a_folded_history_caps_like_the_whole() -> None:
    jar: dict[str, str] = {}
    for number in range(20):
        keep(jar, show(jar, B, NOW + number, f"{number:012d}"))
        history, _ = COOKIES.read(cookie_header(jar))
        assert ("b" in capped(history, CAPS, NOW + number)) == (number + 1 >= 20)
