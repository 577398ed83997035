"""What we sign: click and view links, and the frequency cookies.

Every signature is keyed BLAKE2b (RFC 7693), a MAC by design; the state after the key is computed once and copied per
signature. Purposes are told apart by BLAKE2's personalisation, so a view link is never a click link. Keys have ids:
the first in the file signs, all of them verify, so a new key goes in front and the old one leaves after a lifetime.

A token is text that needs no escaping in a URL, and has exactly one spelling:
KEYID~TIME~IMPRESSION~PLACEMENT~CREATIVE~SIGNATURE, with the time in hexadecimal seconds.
"""

import binascii
import os
import re
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from hmac import compare_digest
from pathlib import Path
from struct import Struct
from typing import Literal, NamedTuple

from adcore.core.frequency import Caps, History, Seen, fold
from adcore.errors import AdcoreError, StartError

Purpose = Literal["click", "view"]

SIGNATURE_BYTES = 15  # 120 bits in 20 characters of base64, without padding
KEY_BYTES = 32
# Clocks of hosts that serve one site may differ this much.
SKEW_S = 300
TOKEN_CHARS_MAX = 512

_KEY_LINE = re.compile(r"([0-9A-Za-z]{1,8}):([0-9a-fA-F]{32,128})")
_TOKEN = re.compile(
    r"([0-9A-Za-z]{1,8})~([0-9a-f]{1,12})~([0-9a-f]{32})~([A-Za-z0-9][\w.-]{0,63})~([A-Za-z0-9][\w.-]{0,63})"
    r"~([\w-]{20})",
    re.ASCII,
)


class TokenError(AdcoreError):
    """A token that is not ours, not good any more, or meant for something else; `reason` is one word or two."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class Token(NamedTuple):
    impression_id: str
    placement: str
    creative: str
    time: int


class KeyRing:
    """The keys of `--secret-file`, by id; the first signs."""

    def __init__(self, keys: dict[str, bytes]) -> None:
        assert keys
        self.keys = keys

    @classmethod
    def load_or_create(cls, path: Path) -> "KeyRing":
        """Read the file, or write a new one with one random key if there is none. Raises StartError."""
        try:
            return cls.load(path)
        except FileNotFoundError:
            pass
        line = f"{secrets.token_hex(2)}:{secrets.token_hex(KEY_BYTES)}\n"
        aside = path.with_name(f"{path.name}.{os.getpid()}")
        try:
            fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "w") as file:
                file.write(line)
                file.flush()
                os.fsync(fd)
            try:
                # A link, not a rename: of two processes that start at once the first one's key stays.
                os.link(aside, path)
            except FileExistsError:
                pass
            finally:
                aside.unlink()
            return cls.load(path)
        except OSError as error:
            raise StartError(
                f"cannot create the secret file {path}: {os.strerror(error.errno or 0)}; see --secret-file"
            ) from error

    @classmethod
    def load(cls, path: Path) -> "KeyRing":
        """Raises FileNotFoundError when there is no file, StartError when it cannot be used."""
        try:
            if path.stat().st_mode & 0o007:
                raise StartError(f"{path} can be read by everybody: chmod 640 {path}, and put a new key in it")
            lines = path.read_text("ascii").splitlines()
        except FileNotFoundError:
            raise
        except (OSError, UnicodeDecodeError) as error:
            raise StartError(f"cannot read the secret file {path}: {error}") from error
        keys = {}
        for number, line in enumerate(lines, 1):
            text = line.partition("#")[0].strip()
            if not text:
                continue
            found = _KEY_LINE.fullmatch(text)
            if found is None or found[1] in keys:
                raise StartError(
                    f"{path}, line {number}: must be KEYID:HEX with an id of its own, 1 to 8 letters or digits, "
                    "and 32 to 128 hexadecimal digits"
                )
            keys[found[1]] = bytes.fromhex(found[2])
        if not keys:
            raise StartError(f"{path} has no key; remove the file to have one made")
        return cls(keys)

    def derive(self, purpose: bytes) -> bytes:
        """A key for a purpose of its own, from the one that signs."""
        return blake2b(key=next(iter(self.keys.values())), person=purpose, digest_size=KEY_BYTES).digest()

    def signers(self, purpose: bytes) -> "dict[str, Signer]":
        return {key_id: Signer(key, purpose) for key_id, key in self.keys.items()}


class Signer:
    """One key for one purpose."""

    __slots__ = ("_state",)

    def __init__(self, key: bytes, purpose: bytes) -> None:
        self._state = blake2b(key=key, person=purpose, digest_size=SIGNATURE_BYTES)

    def sign(self, data: bytes) -> str:
        state = self._state.copy()
        state.update(data)
        # b2a_base64 is what urlsafe_b64encode calls; 15 bytes need no padding.
        return binascii.b2a_base64(state.digest(), newline=False).decode().translate(_URL_SAFE)


_URL_SAFE = str.maketrans("+/", "-_")


class Tokens:
    """Signs and verifies click and view tokens that are good for `lifetime_s` seconds."""

    def __init__(self, keyring: KeyRing, lifetime_s: float) -> None:
        self.lifetime_s = lifetime_s
        self._signers = {
            "click": keyring.signers(b"adcore click"),
            "view": keyring.signers(b"adcore view"),
        }
        self._key_id = next(iter(keyring.keys))
        self._sign = {purpose: signers[self._key_id].sign for purpose, signers in self._signers.items()}

    def sign(self, purpose: Purpose, impression_id: str, placement: str, creative: str, now: float) -> str:
        text = f"{self._key_id}~{int(now):x}~{impression_id}~{placement}~{creative}"
        return f"{text}~{self._sign[purpose](text.encode())}"

    def verify(self, purpose: Purpose, token: str, now: float) -> Token:
        """What the token says. Raises TokenError."""
        found = _TOKEN.fullmatch(token) if len(token) <= TOKEN_CHARS_MAX else None
        if found is None:
            raise TokenError("malformed")
        key_id, time_hex, impression_id, placement, creative, signature = found.groups()
        signer = self._signers[purpose].get(key_id)
        if signer is None:
            raise TokenError("unknown key")
        # The whole text is signed and the signature compared as text, so a token has one spelling only.
        if not compare_digest(signer.sign(token[: -len(signature) - 1].encode()), signature):
            raise TokenError("bad signature")
        time = int(time_hex, 16)
        if time > now + SKEW_S:
            raise TokenError("from the future")
        if now > time + self.lifetime_s:
            raise TokenError("expired")
        return Token(impression_id, placement, creative, time)


# Frequency cookies

COOKIE_PREFIX = "adcore_fc_"
# Past this many cookies the next answer folds them into one: browsers keep some 180 per domain, nginx takes 8 KiB.
COOKIES_MAX = 8
# What is read of them at all.
COOKIES_READ_MAX = 64
# RFC 6265bis lets a browser forget a cookie after 400 days.
COOKIE_AGE_MAX_S = 400 * 86_400

_ENTRY = Struct(">6sIH")
_COOKIE = re.compile(
    rb"(?:^|;[ \t]*)"
    + COOKIE_PREFIX.encode()
    + rb"([\w-]{1,40})=([0-9A-Za-z]{1,8})\.([\w-]{4,4000})\.([\w-]{20})(?=;|\Z)"
)


class FrequencyCookies:
    """What a browser has seen of capped campaigns, kept in the browser, signed, naming campaigns and never a person.

    Every answer sets a cookie of its own name for just the impressions in it, so that answers to several tags of one
    page never overwrite each other, on a first visit too (Revive Adserver #578, #619). A reader adds up all of them.
    When there are many, an answer also folds those it saw into one and lets the old ones expire; the name of the folded
    cookie follows from the names in it, so two answers that fold the same set at once write the same cookie.

    `Secure` because browsers drop others where the page is https; `SameSite=Lax` because the ad host belongs to the
    page's own site: requests from its pages, and its frames in them, are same-site.
    """

    def __init__(self, keyring: KeyRing, *, secure: bool = True) -> None:
        self._signers = keyring.signers(b"adcore cookie")
        self._key_id = next(iter(keyring.keys))
        self._attributes = "; Path=/; HttpOnly; SameSite=Lax" + ("; Secure" if secure else "")

    def read(self, cookie_header: bytes) -> tuple[History, Sequence[str]]:
        """All that our cookies in a Cookie header tell, and the names of those that are good."""
        history: list[Seen] = []
        names: list[str] = []
        for found in _COOKIE.finditer(cookie_header):
            suffix, key_id, payload, signature = (part.decode() for part in found.groups())
            signer = self._signers.get(key_id)
            if signer is None or len(names) >= COOKIES_READ_MAX:
                continue
            if not compare_digest(signer.sign(f"{suffix}={payload}".encode()), signature):
                continue
            data = urlsafe_b64decode(payload)
            names.append(suffix)
            history += (Seen(int.from_bytes(key), time, count) for key, time, count in _ENTRY.iter_unpack(data))
        return tuple(history), names

    def write(
        self,
        seen: Iterable[Seen],
        history: History,
        names: Sequence[str],
        caps: Caps,
        now: float,
        unique: str,
    ) -> list[str]:
        """The Set-Cookie values that add `seen`; `unique` is a random name of this answer's own."""
        lines = [self._line(unique[:12], seen, caps, now)]
        if len(names) >= COOKIES_MAX:
            folded = fold(history, caps, now)
            name = blake2b("~".join(sorted(names)).encode(), digest_size=6).hexdigest()
            if folded:
                lines.append(self._line(name, folded, caps, now))
            lines += [f"{COOKIE_PREFIX}{old}=; Max-Age=0{self._attributes}" for old in names if old != name]
        return lines

    def _line(self, name: str, entries: Iterable[Seen], caps: Caps, now: float) -> str:
        data = b""
        until = now
        for key, time, count in entries:
            data += _ENTRY.pack(key.to_bytes(6), time, min(count, 0xFFFF))
            until = max(until, time + caps[key].seconds)
        payload = urlsafe_b64encode(data).decode()
        signature = self._signers[self._key_id].sign(f"{name}={payload}".encode())
        age = min(int(until - now) + 1, COOKIE_AGE_MAX_S)
        value = f"{self._key_id}.{payload}.{signature}"
        return f"{COOKIE_PREFIX}{name}={value}; Max-Age={age}{self._attributes}"
