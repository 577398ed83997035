"""Signatures on what goes through memcached, which asks for no password: what has none of ours is nobody's word.

A seal is the signing key's fingerprint and a keyed BLAKE2b over the name that the value is stored under and the value
itself, in front of the value. So a value can't be made, changed or moved to another name without the secret; it can be
deleted, or replaced by an earlier one of its own name. Readers have to take that for less news, never for other news.
"""

from collections.abc import Sequence
from hashlib import blake2b
from hmac import compare_digest

from adcore.errors import AdcoreError

SNAPSHOT_PURPOSE = b"adcore snapshot"
FINGERPRINT_BYTES = 4
MAC_BYTES = 16
SEAL_BYTES = FINGERPRINT_BYTES + MAC_BYTES


class SealError(AdcoreError):
    """A value is not signed by any of our keys."""


class OtherSecretError(SealError):
    """A value names a key that we do not have: that of a host with another secret file, or made up."""

    def __init__(self, fingerprint: bytes) -> None:
        super().__init__(
            f"signed with another secret ({fingerprint.hex()}); processes that share a memcached need the same "
            "--secret-file"
        )


class Seals:
    """Keys for one purpose; the first signs, all of them verify. Without any, nothing can be signed or believed."""

    def __init__(self, keys: Sequence[bytes] = ()) -> None:
        self._keys = {
            blake2b(key=key, person=b"fingerprint", digest_size=FINGERPRINT_BYTES).digest(): key for key in keys
        }
        self._first = next(iter(self._keys), None)

    def __bool__(self) -> bool:
        return self._first is not None

    @property
    def fingerprint(self) -> bytes:
        """Of the key that signs."""
        assert self._first is not None
        return self._first

    @property
    def fingerprints(self) -> frozenset[bytes]:
        """Of all that verify."""
        return frozenset(self._keys)

    def knows(self, fingerprint: bytes) -> bool:
        return fingerprint in self._keys

    def seal(self, name: str, value: bytes) -> bytes:
        assert self._first is not None
        return self._first + self._mac(self._first, name, value) + value

    def unseal(self, name: str, sealed: bytes) -> bytes:
        """The value. Raises SealError."""
        fingerprint, mac = sealed[:FINGERPRINT_BYTES], sealed[FINGERPRINT_BYTES:SEAL_BYTES]
        value = sealed[SEAL_BYTES:]
        if len(mac) < MAC_BYTES:
            raise SealError("not signed")
        if fingerprint not in self._keys:
            raise OtherSecretError(fingerprint)
        if not compare_digest(mac, self._mac(fingerprint, name, value)):
            raise SealError("its signature is wrong: something without the secret has written it")
        return value

    def _mac(self, fingerprint: bytes, name: str, value: bytes) -> bytes:
        encoded = name.encode()
        mac = blake2b(len(encoded).to_bytes(2, "big"), key=self._keys[fingerprint], digest_size=MAC_BYTES)
        mac.update(encoded)
        mac.update(value)
        return mac.digest()
