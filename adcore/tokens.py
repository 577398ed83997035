"""What we sign: the links of impressions, and the frequency cookies.

Every signature is keyed BLAKE2b (RFC 7693), a MAC by design; the state after the key is computed once and copied per
signature. Purposes are told apart by BLAKE2's personalisation, so a token is never a cookie. Keys have ids: the first
in the file signs, all of them verify, so a new key goes in front and the old one leaves after a lifetime.

A token is text that needs no escaping in a URL, and has exactly one spelling:
KEYID~TIME~IMPRESSION~PLACEMENT~CREATIVE~SIGNATURE, with the time in hexadecimal seconds.
"""

import contextlib
import os
import re
import secrets
import stat
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import hexlify
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from hmac import compare_digest
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from adcore.core.frequency import ENTRIES_MAX, Caps, History, Seen, fold, needed_until, pack, unpack
from adcore.errors import AdcoreError, StartError
from adcore.files import create_own, open_own

# 128 bits cannot be guessed; 32 characters of hexadecimal.
SIGNATURE_BYTES = 16
KEY_BYTES = 32
# Clocks of hosts that serve one site may differ, and one that was an hour fast may be set right while its links are on
# pages. Only who has the key can sign a later time, so this costs nothing.
SKEW_S = 7200
# The longest key id, time and ids, with their separators.
TOKEN_CHARS_MAX = 8 + 1 + 12 + 1 + 32 + 1 + 64 + 1 + 64 + 1 + 2 * SIGNATURE_BYTES
# A key is 70 characters or so, and nobody rotates a thousand of them.
SECRET_FILE_BYTES_MAX = 64 * 1024

_KEY_LINE = re.compile(r"([0-9A-Za-z]{1,8}):((?:[0-9a-fA-F]{2}){16,64})")
_TOKEN = re.compile(
    r"([0-9A-Za-z]{1,8})~([0-9a-f]{1,12})~([0-9a-f]{32})~([A-Za-z0-9][\w.-]{0,63})~([A-Za-z0-9][\w.-]{0,63})"
    r"~([0-9a-f]{32})",
    re.ASCII,
)


class TokenError(AdcoreError):
    """A token that is not ours, not good any more, or meant for something else; `reason` is one of a few."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class Token(NamedTuple):
    impression_id: str
    placement: str
    creative: str
    time: int
    """When it was signed, epoch seconds."""


class KeyRing:
    """The keys of `--secret-file`, by id; the first signs."""

    __slots__ = ("keys",)

    def __init__(self, keys: dict[str, bytes]) -> None:
        assert keys
        self.keys = keys

    @classmethod
    def load_or_create(cls, path: Path) -> "KeyRing":
        """Read the file, or write a new one with one random key if there is none. Raises StartError."""
        with contextlib.suppress(FileNotFoundError):
            return cls.load(path)
        try:
            # Of two processes that start at once the first one's key stays.
            with contextlib.suppress(FileExistsError):
                os.close(create_own(path, _fill_secret, durable=True))
            return cls.load(path)
        except OSError as error:
            raise StartError(f"cannot create the secret file {path}: {error.strerror}; see --secret-file") from error

    @classmethod
    def load(cls, path: Path) -> "KeyRing":
        """Raises FileNotFoundError when there is no file, StartError when it cannot be used."""
        try:
            text = read_private_file(path, "--secret-file", "remove it to have a new one made, or put a new key in it")
        except FileNotFoundError:
            raise
        except OSError as error:
            raise StartError(f"cannot read the secret file {path}: {error.strerror}") from error
        keys: dict[str, bytes] = {}
        for number, line in enumerate(text.splitlines(), 1):
            entry = line.partition("#")[0].strip()
            if not entry:
                continue
            found = _KEY_LINE.fullmatch(entry)
            if found is None or found[1] in keys:
                raise StartError(
                    f"{path}, line {number}: must be KEYID:HEX, an id of its own of 1 to 8 letters or "
                    "digits and then 16 to 64 bytes in hexadecimal"
                )
            keys[found[1]] = bytes.fromhex(found[2])
        if not keys:
            raise StartError(f"{path} has no key; remove the file to have one made")
        return cls(keys)

    def derive(self, purpose: bytes) -> bytes:
        """A key for a purpose of its own (at most 16 bytes of name), from the one that signs."""
        return blake2b(key=next(iter(self.keys.values())), person=purpose, digest_size=KEY_BYTES).digest()

    def derive_each(self, purpose: bytes) -> tuple[bytes, ...]:
        """The same from every key, the one that signs first."""
        return tuple(blake2b(key=key, person=purpose, digest_size=KEY_BYTES).digest() for key in self.keys.values())

    def signers(self, purpose: bytes) -> "dict[str, Signer]":
        """By key id, for a purpose of at most 16 bytes."""
        return {key_id: Signer(key, purpose) for key_id, key in self.keys.items()}


def read_private_file(path: Path, setting: str, remedy: str) -> str:
    """The text of the file of secrets that a setting names. Raises OSError, and StartError for one that every user may
    read, with the remedy for that."""
    fd = open_own(path, os.O_RDONLY, regular=False, settles=True)
    with os.fdopen(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise StartError(f"{path} is not a file; {setting} wants one")
        if status.st_mode & stat.S_IRWXO:
            raise StartError(f"{path} is open to everybody on this machine: {remedy} and chmod 640 {path}")
        data = file.read(SECRET_FILE_BYTES_MAX + 1)
    if len(data) > SECRET_FILE_BYTES_MAX:
        raise StartError(f"{path} is too long for {setting}: {SECRET_FILE_BYTES_MAX} bytes at most")
    # Latin-1 takes any byte, and no line with a byte past ASCII in its key is a good one.
    return data.decode("latin-1")


def _fill_secret(fd: int) -> None:
    os.write(fd, f"{secrets.token_hex(2)}:{secrets.token_hex(KEY_BYTES)}\n".encode())


class Signer:
    """One key for one purpose."""

    __slots__ = ("state",)

    def __init__(self, key: bytes, purpose: bytes) -> None:
        self.state = blake2b(key=key, person=purpose, digest_size=SIGNATURE_BYTES)

    def sign(self, text: bytes) -> bytes:
        state = self.state.copy()
        state.update(text)
        # Hexadecimal has one spelling; base64 is 12 characters shorter and takes longer.
        return hexlify(state.digest())


class Tokens:
    """Signs and verifies the tokens of impressions, which are good for `lifetime_s` seconds.

    The click and the view link of an impression carry the same token: whoever is shown one of them is shown the other,
    so that a second signature would keep nobody from anything.
    """

    __slots__ = ("_key_id", "_second", "_signers", "_start", "_state", "lifetime_s")

    def __init__(self, keyring: KeyRing, lifetime_s: float) -> None:
        self.lifetime_s = lifetime_s
        self._signers = keyring.signers(b"adcore token")
        self._key_id = next(iter(keyring.keys))
        self._state = self._signers[self._key_id].state
        self._second = -1
        self._start = b""

    def sign(self, impression_id: bytes, shown: bytes, now: float) -> bytes:
        """A token for an impression id of 32 lower-case hexadecimal digits; `shown` is what `name` gives."""
        second = int(now)
        if second != self._second:
            self._second = second
            self._start = f"{self._key_id}~{second:x}~".encode()
        text = self._start + impression_id + shown
        state = self._state.copy()
        state.update(text)
        return text + b"~" + hexlify(state.digest())

    @staticmethod
    def name(placement: str, creative: str) -> bytes:
        """What is signed of an ad: ids as the inventory has them."""
        return f"~{placement}~{creative}".encode()

    def verify(self, token: str, now: float) -> Token:
        """What the token says. Raises TokenError."""
        found = _TOKEN.fullmatch(token) if len(token) <= TOKEN_CHARS_MAX else None
        if found is None:
            raise TokenError("malformed")
        key_id, time_hex, impression_id, placement, creative, signature = found.groups()
        signer = self._signers.get(key_id)
        if signer is None:
            raise TokenError("unknown key")
        # Everything before the signature is signed as it is written, so no other spelling verifies.
        signed = token[: -len(signature) - 1].encode()
        if not compare_digest(signer.sign(signed), signature.encode()):
            raise TokenError("bad signature")
        time = int(time_hex, 16)
        if time > now + SKEW_S:
            raise TokenError("from the future")
        if now > time + self.lifetime_s:
            raise TokenError("expired")
        return Token(impression_id, placement, creative, time)


# --- frequency cookies

COOKIE_PREFIX = "adcore_fc_"
# Past this many cookies an answer folds some of them. Browsers keep some 180 per domain, all of a site's
# together.
COOKIES_MAX = 8
# And past this many entries in them: 3 KiB of the 8 KiB that nginx takes as the Cookie header.
COOKIE_ENTRIES_MAX = 192
# What is verified at all of one request.
COOKIES_READ_MAX = 64
# RFC 6265bis lets a browser forget a cookie after 400 days.
COOKIE_AGE_MAX_S = 400 * 86_400

_PREFIX_BYTES = COOKIE_PREFIX.encode()
_COOKIE_NAME = re.compile(r"[\w-]{1,40}", re.ASCII)
_COOKIE = re.compile(
    rf"({_COOKIE_NAME.pattern}=([0-9A-Za-z]{{1,8}})\.((?:[\w-]{{16}}){{1,{ENTRIES_MAX}}}))\.([0-9a-f]{{32}})", re.ASCII
)


def _is_small(cookie: str) -> bool:
    return len(cookie) < 320  # some 16 entries


class FrequencyCookies:
    """What a browser has seen of capped campaigns, kept in the browser, signed, naming campaigns and never a
    person.

    Every answer sets a cookie of its own name for just the impressions in it, so that answers to several tags
    of one page never overwrite each other, on a first visit too (Revive Adserver #578, #619). A reader adds
    up all of them.

    When there are many, an answer also folds up to eight of them into one and lets these expire. The name of the
    folded cookie follows from their names, so answers that fold the same eight at once write the same cookie.
    Browsers send the oldest first, so answers see the same eights; where they do not, a count is doubled for
    the rest of its window, and never lost. An answer folds no more than eight: what it sets stays within the
    4 KiB that nginx takes as the headers of an answer.

    `Secure`: browsers drop some cookies without it, which quietly ended Revive's capping (#1148).
    `SameSite=Lax`: an ad host that is a sibling of the page (ads.example.net for www.example.net, both https)
    is of the same site, so its cookies go with the requests of the page's tags and frames; another site's
    pages neither send nor set them, and browsers that block third-party cookies have nothing to block.
    `HttpOnly`: no script needs them.
    """

    __slots__ = ("_attributes", "_expire", "_key_id", "_signers", "refused")

    def __init__(self, keyring: KeyRing, *, secure: bool = True) -> None:
        self._signers = keyring.signers(b"adcore cookie")
        self._key_id = next(iter(keyring.keys))
        suffix = "; Secure" if secure else ""
        self._attributes = f"; Path=/; HttpOnly; SameSite=Lax{suffix}"
        self._expire = f"; Max-Age=0; Path=/{suffix}"
        self.refused = 0
        """Cookies of our name that did not verify, since the process started."""

    def read(self, cookie_header: bytes) -> tuple[History, Sequence[str]]:
        """All that our cookies in a Cookie header tell, and these cookies as they came, for `write`.

        A cookie of our name that does not verify tells nothing, and is counted in `refused`.
        """
        if _PREFIX_BYTES not in cookie_header:
            return (), ()
        cookies: list[str] = []
        history: list[Seen] = []
        for part in cookie_header.split(b";"):
            pair = part.strip(b" \t")
            if not pair.startswith(_PREFIX_BYTES):
                continue
            cookie = pair[len(_PREFIX_BYTES) :].decode("latin-1")
            entries = self._verify(cookie)
            if not entries:
                self.refused += 1
            history += entries
            cookies.append(cookie)
            if len(cookies) == COOKIES_READ_MAX:
                break
        return tuple(history), cookies

    def write(
        self,
        seen: Iterable[Seen],
        history: History,
        cookies: Sequence[str],
        caps: Caps,
        now: float,
        unique: str,
    ) -> list[str]:
        """The Set-Cookie values that add `seen` to what `read` gave.

        `unique` is a text drawn for this answer alone, such as another impression id.
        """
        drawn = blake2b(unique.encode(), digest_size=8).digest()
        values = []
        own = fold(seen, caps, now)
        if own:
            values.append(self._value(drawn[:6], own, caps, now))
        if len(cookies) > COOKIES_MAX or len(history) > COOKIE_ENTRIES_MAX:
            # Large ones first, so that what was folded apart comes together. Each answer takes some eight: those to a
            # page of many tags, asked for at once, take care of all of them.
            eights = max(1, len(cookies) // COOKIES_MAX)
            start = drawn[6] % eights * COOKIES_MAX
            some = sorted(cookies, key=_is_small)[start : start + COOKIES_MAX]
            folded = fold(chain.from_iterable(map(self._verify, some)), caps, now)
            names = sorted({cookie.partition("=")[0] for cookie in some})
            if folded:
                values.append(self._value(blake2b("~".join(names).encode(), digest_size=6).digest(), folded, caps, now))
            values += [f"{COOKIE_PREFIX}{name}={self._expire}" for name in names if _COOKIE_NAME.fullmatch(name)]
        return values

    def _verify(self, cookie: str) -> History:
        """What it tells, nothing when it is not good."""
        found = _COOKIE.fullmatch(cookie)
        if found is None:
            return ()
        signed, key_id, payload, signature = found.groups()
        signer = self._signers.get(key_id)
        if signer is None or not compare_digest(signer.sign(signed.encode()), signature.encode()):
            return ()
        return unpack(urlsafe_b64decode(payload))

    def _value(self, name: bytes, history: History, caps: Caps, now: float) -> str:
        payload = urlsafe_b64encode(pack(history)).decode()
        signed = f"{urlsafe_b64encode(name).decode()}={self._key_id}.{payload}"
        signature = self._signers[self._key_id].sign(signed.encode()).decode()
        age = min(needed_until(history, caps) - int(now), COOKIE_AGE_MAX_S)
        return f"{COOKIE_PREFIX}{signed}.{signature}; Max-Age={age}{self._attributes}"
