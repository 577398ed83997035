"""Tokens have one spelling; the cookies of a browser never lose a count."""

import base64
import re
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adcore.core.frequency import Cap, Caps, History, Seen, campaign_key, capped
from adcore.errors import StartError
from adcore.tokens import (
    COOKIE_AGE_MAX_S,
    COOKIES_READ_MAX,
    SECRET_FILE_BYTES_MAX,
    SKEW_S,
    TOKEN_CHARS_MAX,
    FrequencyCookies,
    KeyRing,
    TokenError,
    Tokens,
)

NOW = 1_800_000_000
DAY = 86_400
KEYS = KeyRing({"k1": bytes(range(32))})
TOKENS = Tokens(KEYS, lifetime_s=DAY)
ID = "0123456789abcdef" * 2


def signed(tokens: Tokens, impression_id: str, placement: str, creative: str, now: float) -> str:
    return tokens.sign(impression_id.encode(), tokens.name(placement, creative), now).decode()


TOKEN = signed(TOKENS, ID, "top", "spring-1", NOW)

ids = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", fullmatch=True)
impression_ids = st.from_regex(r"[0-9a-f]{32}", fullmatch=True)


def refused(tokens: Tokens, token: str, now: float) -> str:
    with pytest.raises(TokenError) as caught:
        tokens.verify(token, now)
    return caught.value.reason


# --- tokens


@given(impression_ids, ids, ids, st.integers(0, 2**33))
def test_what_was_signed_is_read_back(impression_id: str, placement: str, creative: str, now: int) -> None:
    token = signed(TOKENS, impression_id, placement, creative, now + 0.7)
    assert TOKENS.verify(token, now) == (impression_id, placement, creative, now)
    assert re.fullmatch(r"[A-Za-z0-9._~-]+", token), "needs percent-encoding"
    assert len(token) <= TOKEN_CHARS_MAX


def test_every_flipped_bit_is_refused() -> None:
    for at in range(len(TOKEN)):
        for bit in range(8):
            flipped = TOKEN[:at] + chr(ord(TOKEN[at]) ^ 1 << bit) + TOKEN[at + 1 :]
            refused(TOKENS, flipped, NOW)


def test_every_cut_and_every_extension_is_refused() -> None:
    for at in range(len(TOKEN)):
        refused(TOKENS, TOKEN[:at], NOW)
        refused(TOKENS, TOKEN[at + 1 :], NOW)
    for more in ("~", "0", "=", " ", "\n", "\0", "é", "~0", "%00"):
        refused(TOKENS, TOKEN + more, NOW)
        refused(TOKENS, more + TOKEN, NOW)


@settings(max_examples=500)
@given(st.integers(0, len(TOKEN)), st.integers(0, len(TOKEN)), st.text(max_size=6))
def test_no_edited_token_verifies(start: int, end: int, text: str) -> None:
    edited = TOKEN[:start] + text + TOKEN[max(start, end) :]
    if edited != TOKEN:
        refused(TOKENS, edited, NOW)


@settings(max_examples=500)
@given(st.text() | st.text(alphabet="0123456789abcdefk~-_.", max_size=250))
def test_any_other_text_is_refused_without_another_error(text: str) -> None:
    refused(TOKENS, text, NOW)


def test_fields_cannot_be_moved_over_their_borders() -> None:
    """`a` + `bc` and `ab` + `c` are different tokens."""
    first = signed(TOKENS, ID, "a", "bc", NOW).split("~")
    second = signed(TOKENS, ID, "ab", "c", NOW).split("~")
    assert first[-1] != second[-1]


@pytest.mark.parametrize(
    ("token", "now", "reason"),
    [
        (TOKEN, NOW, ""),
        (TOKEN, NOW + DAY, ""),
        (TOKEN, NOW + DAY + 1, "expired"),
        (TOKEN, NOW - SKEW_S, ""),
        (TOKEN, NOW - SKEW_S - 1, "from the future"),
        (TOKEN.replace("k1~", "k2~"), NOW, "unknown key"),
        (TOKEN.replace("~top~", "~side~"), NOW, "bad signature"),
        (TOKEN.upper(), NOW, "malformed"),
        (TOKEN.replace("~top~", f"~{'t' * 65}~"), NOW, "malformed"),
        (signed(Tokens(KeyRing({"k1": b"x" * 32}), DAY), ID, "top", "x", NOW), NOW, "bad signature"),
        ("", NOW, "malformed"),
        ("~" * 1_000_000, NOW, "malformed"),
    ],
)
def test_a_refusal_has_its_reason(token: str, now: float, reason: str) -> None:
    if reason:
        assert refused(TOKENS, token, now) == reason
    else:
        assert TOKENS.verify(token, now).placement == "top"


def test_the_first_key_signs_and_all_verify() -> None:
    old, new = {"old": b"o" * 32}, {"new": b"n" * 32}
    before, during, after = (Tokens(KeyRing(keys), DAY) for keys in (old, new | old, new))
    token = signed(before, ID, "top", "c", NOW)
    assert during.verify(token, NOW)
    assert refused(after, token, NOW) == "unknown key"
    assert after.verify(signed(during, ID, "top", "c", NOW), NOW)
    # A key's id is part of what is signed: the same key under another id is another key.
    renamed = Tokens(KeyRing({"dlo": b"o" * 32}), DAY)
    assert refused(renamed, token.replace("old~", "dlo~"), NOW) == "bad signature"


# --- the secret file


def test_a_new_key_is_made_once_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    made = KeyRing.load_or_create(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert KeyRing.load_or_create(path).keys == made.keys
    assert [len(key) for key in made.keys.values()] == [32]
    assert list(tmp_path.iterdir()) == [path]


def test_processes_that_start_at_once_end_with_one_key(tmp_path: Path) -> None:
    for n in range(20):
        path = tmp_path / f"secret-{n}"
        with ThreadPoolExecutor(8) as pool:
            rings = list(pool.map(KeyRing.load_or_create, [path] * 8))
        assert len({str(ring.keys) for ring in rings}) == 1


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "has no key"),
        ("# only a comment\n\n", "has no key"),
        ("k1:" + "ab" * 15, "line 1"),
        ("k1:" + "ab" * 65, "line 1"),
        ("k1:" + "a" * 33, "line 1"),
        ("k1:" + "xy" * 32, "line 1"),
        ("a-b:" + "ab" * 32, "line 1"),
        ("toolongid:" + "ab" * 32, "line 1"),
        ("ab" * 32, "line 1"),
        (f"k1:{'ab' * 32}\nk1:{'cd' * 32}\n", "line 2"),
        ("kï:" + "ab" * 32, "line 1"),
        ("#" * (SECRET_FILE_BYTES_MAX + 1), "too long"),
    ],
)
def test_a_bad_secret_file_is_refused_by_line(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "secret"
    path.touch(0o600)
    path.write_text(text, "utf-8")
    with pytest.raises(StartError, match=problem) as caught:
        KeyRing.load_or_create(path)
    assert str(path) in str(caught.value)
    assert "abab" not in str(caught.value), "a key in a message ends up in a log"


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o644, 0o666])
def test_a_secret_file_open_to_everybody_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "secret"
    KeyRing.load_or_create(path)
    path.chmod(mode)
    with pytest.raises(StartError, match=r"open to everybody.*chmod 640"):
        KeyRing.load_or_create(path)
    path.chmod(0o640)
    assert KeyRing.load_or_create(path)


def test_a_secret_file_may_hold_comments_and_several_keys(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.touch(0o600)
    path.write_text(f"# ours\n new:{'ab' * 32}  # since monday\n\nold:{'CD' * 16}\n")
    assert KeyRing.load(path).keys == {"new": b"\xab" * 32, "old": b"\xcd" * 16}


@pytest.mark.parametrize(
    "make", [lambda path: path.mkdir(), lambda path: path.symlink_to("nowhere")], ids=["folder", "dangling"]
)
def test_what_is_no_file_is_refused(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "secret")
    with pytest.raises(StartError, match="secret"):
        KeyRing.load_or_create(tmp_path / "secret")


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"cannot create.*No such file.*--secret-file"):
        KeyRing.load_or_create(tmp_path / "none" / "secret")


# --- frequency cookies

COOKIES = FrequencyCookies(KEYS)
A = campaign_key("a")
CAPS: Caps = {A: Cap(3, DAY, "a"), campaign_key("b"): Cap(5, 400, "b")}


class Browser:
    """Keeps cookies as RFC 6265 has it: overwritten by name, gone at their age, sent oldest first."""

    def __init__(self, seed: int = 1) -> None:
        self.jar: dict[str, tuple[str, float]] = {}
        self.now = float(NOW)
        self.random = Random(seed)

    def unique(self) -> str:
        return f"{self.random.getrandbits(128):032x}"

    def header(self) -> bytes:
        self.jar = {name: (value, until) for name, (value, until) in self.jar.items() if until > self.now}
        ours = [f"{name}={value}" for name, (value, _) in self.jar.items()]
        return "; ".join(["theme=dark", *ours, "session=1"]).encode()

    def take(self, set_cookies: list[str]) -> None:
        for line in set_cookies:
            pair, *attributes = line.split("; ")
            name, _, value = pair.partition("=")
            age = int(next(a for a in attributes if a.startswith("Max-Age=")).partition("=")[2])
            if age > 0:
                self.jar[name] = (value, self.now + age)
            else:
                self.jar.pop(name, None)

    def answer(self, header: bytes, *campaigns: str, caps: Caps = CAPS) -> list[str]:
        """What an answer that shows these campaigns sets, when the browser asked with this header."""
        history, cookies = COOKIES.read(header)
        seen = [Seen(campaign_key(campaign), int(self.now), 1) for campaign in campaigns]
        return COOKIES.write(seen, history, cookies, caps, self.now, self.unique())

    def history(self) -> History:
        return COOKIES.read(self.header())[0]

    def count(self, campaign: str) -> int:
        return sum(seen.impressions for seen in self.history() if seen.campaign_key == campaign_key(campaign))


def test_a_first_answer_without_any_cookie_sets_one() -> None:
    """Revive Adserver #578."""
    browser = Browser()
    (line,) = browser.answer(b"", "a", "b")
    value, *attributes = line.split("; ")
    assert re.fullmatch(r"adcore_fc_[\w-]{8}=k1\.[\w-]{32}\.[0-9a-f]{32}", value)
    assert attributes == [f"Max-Age={DAY}", "Path=/", "HttpOnly", "SameSite=Lax", "Secure"]
    browser.take([line])
    assert set(browser.history()) == {Seen(A, NOW, 1), Seen(campaign_key("b"), NOW, 1)}


def test_secure_can_be_left_out_for_plain_http() -> None:
    browser = Browser()
    plain = FrequencyCookies(KEYS, secure=False)
    for _ in range(9):
        browser.take(browser.answer(b"", "a"))
    lines = plain.write((Seen(A, NOW, 1),), *plain.read(browser.header()), CAPS, NOW, browser.unique())
    assert len(lines) == 10
    assert not any("Secure" in line for line in lines)


@pytest.mark.parametrize(
    ("seconds", "age"), [(1, 1), (DAY, DAY), (366 * DAY, 366 * DAY), (500 * DAY, COOKIE_AGE_MAX_S)]
)
def test_a_cookie_lives_as_long_as_its_longest_window(seconds: int, age: int) -> None:
    (line,) = COOKIES.write((Seen(A, NOW, 1),), (), (), {A: Cap(1, seconds, "a")}, NOW + 0.9, Browser().unique())
    assert f"; Max-Age={age};" in line


def test_a_cookie_says_what_was_seen_and_when_and_nothing_else() -> None:
    """No visitor can be told from another who saw the same ads at the same time, but for a name drawn
    once."""
    one, other = Browser(seed=1), Browser(seed=2)
    payloads = {base64.urlsafe_b64decode(browser.answer(b"", "a")[0].split(".")[1]) for browser in (one, other)}
    assert payloads == {A.to_bytes(6, "big") + NOW.to_bytes(4, "big") + b"\0\1"}


@given(st.integers(2, 40), st.integers(0, 30), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_answers_at_once_lose_nothing(tags: int, before: int, seed: int) -> None:
    """Revive Adserver #619: every tag of a page is answered to the same Cookie header, in any order."""
    browser = Browser(seed)
    for _ in range(before):
        browser.take(browser.answer(browser.header(), "a"))
    header = browser.header()
    answers = [browser.answer(header, "a") for _ in range(tags)]
    for answer in browser.random.sample(answers, tags):
        browser.take(answer)
    assert browser.count("a") == before + tags


def test_two_folds_of_the_same_cookies_write_the_same_cookie() -> None:
    browser = Browser()
    for _ in range(9):
        browser.take(browser.answer(b"", "a"))
    header = browser.header()
    first, second = browser.answer(header, "a"), browser.answer(header, "b")
    assert first[1:] == second[1:]
    assert first[0] != second[0]
    assert [line.split("; ")[1] for line in first] == [f"Max-Age={DAY}"] * 2 + ["Max-Age=0"] * 8


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 90)), max_size=80), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_a_browser_never_gets_over_a_cap(visits: list[tuple[str, int]], seed: int) -> None:
    browser = Browser(seed)
    shown: list[tuple[str, float]] = []
    for campaign, pause in visits:
        browser.now += pause
        header = browser.header()
        if campaign in capped(COOKIES.read(header)[0], CAPS, browser.now):
            continue
        browser.take(browser.answer(header, campaign))
        shown.append((campaign, browser.now))
        cap = CAPS[campaign_key(campaign)]
        assert sum(one == campaign and at > browser.now - cap.seconds for one, at in shown) <= cap.impressions


@given(st.integers(0, 2**32))
@settings(max_examples=80, deadline=None)
def test_answers_that_overtake_each_other_may_count_twice_and_never_lose(seed: int) -> None:
    browser = Browser(seed)
    random = Random(seed)
    under_way: list[list[str]] = []
    shown = 0
    for _ in range(120):
        if under_way and random.random() < 0.5:
            browser.take(under_way.pop(random.randrange(len(under_way))))
        else:
            under_way.append(browser.answer(browser.header(), "a"))
            shown += 1
    for answer in under_way:
        browser.take(answer)
    assert browser.count("a") >= shown


@pytest.mark.parametrize(("tags", "header_bytes"), [(1, 2500), (5, 3500), (12, 4096), (40, 8192)])
def test_cookies_stay_few_and_headers_small_however_many_tags_a_page_has(tags: int, header_bytes: int) -> None:
    """Room for others in nginx's 8 KiB of a request's header, and in its 4 KiB of an answer's."""
    caps = {campaign_key(str(n)): Cap(10_000, 30 * DAY, str(n)) for n in range(200)}
    browser = Browser()
    for _ in range(60):
        browser.now += 3600
        header = browser.header()
        assert len(header) < header_bytes
        answers = [
            browser.answer(header, *(str(browser.random.randrange(200)) for _ in range(2)), caps=caps)
            for _ in range(tags)
        ]
        assert max(sum(len(f"Set-Cookie: {line}\r\n") for line in answer) for answer in answers) < 3400
        for answer in answers:
            browser.take(answer)
        assert len(browser.jar) < 16 + tags


def test_a_cookie_that_is_not_ours_is_ignored_counted_and_expired() -> None:
    cookies = FrequencyCookies(KEYS)
    browser = Browser()
    browser.take(browser.answer(b"", "a"))
    ((name, (value, _)),) = browser.jar.items()
    bad = [
        "adcore_fc_x=",
        "adcore_fc_y=k1.AAAA.00",
        f"adcore_fc_another={value}",  # signed for its own name, so a copy adds nothing
        f"{name}={value.replace('k1.', 'k2.')}",
        f"{name}={value[:-1]}",
        f"{name}={value[::-1]}",
    ]
    header = "; ".join([f"{name}={value}", *bad, "adcore_fc_é=1", "adcore_fc_", "not_adcore_fc_x=1"])
    history, read = cookies.read(header.encode())
    assert history == (Seen(A, NOW, 1),)
    assert cookies.refused == len(bad) + 2
    assert len(read) == len(bad) + 3
    lines = cookies.write((Seen(A, NOW, 1),), history, read, CAPS, NOW, browser.unique())
    assert "adcore_fc_x=; Max-Age=0; Path=/; Secure" in lines


def test_every_flipped_bit_of_a_cookie_is_refused() -> None:
    browser = Browser()
    browser.take(browser.answer(b"", "a"))
    ((name, (value, _)),) = browser.jar.items()
    for at in range(len(value)):
        for bit in range(8):
            flipped = value[:at] + chr(ord(value[at]) ^ 1 << bit) + value[at + 1 :]
            assert COOKIES.read(f"{name}={flipped}".encode("latin-1"))[0] == ()


@given(st.binary(max_size=300).map(lambda tail: b"adcore_fc_a=" + tail) | st.binary(max_size=300))
def test_any_header_is_read_without_an_error(header: bytes) -> None:
    assert COOKIES.read(header)[0] == ()


def test_the_work_for_one_header_is_bounded() -> None:
    assert len(COOKIES.read(b";".join([b"adcore_fc_a=b"] * 1000))[1]) == COOKIES_READ_MAX


def test_cookies_outlive_a_new_key() -> None:
    browser = Browser()
    browser.take(browser.answer(b"", "a"))
    rotated = FrequencyCookies(KeyRing({"k2": b"n" * 32} | KEYS.keys))
    assert rotated.read(browser.header())[0] == (Seen(A, NOW, 1),)


def test_a_token_is_never_a_cookie() -> None:
    """The purposes have keys of their own."""
    assert len({KEYS.signers(purpose)["k1"].sign(b"x") for purpose in (b"adcore token", b"adcore cookie")}) == 2
