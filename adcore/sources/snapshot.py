"""The memcached snapshot: one process reads MySQL and puts the rows here, the others take them from here.

The payload is msgpack, never pickle, in chunks below memcached's item limit. Chunk keys carry the payload's hash, and
the head is written last, so that a reader never mixes two snapshots; it checks the hash besides. Anything that does not
fit together is no snapshot.
"""

from hashlib import blake2b

import msgspec

from adcore.errors import SourceError
from adcore.sources import Revision, Rows
from adcore.sources.codec import decode_rows, encode_rows
from adcore.sources.memcached import Memcached

# A memcached that is there answers in a millisecond. One that hangs must not keep a change from being served: after
# this the store is read. (pymemcache waits so long for each piece of an answer.)
TIMEOUT_S = 0.5
# memcached's default limit for an item is 1 MiB with its key and header.
CHUNK_BYTES = 1_000_000
# 512 MiB of rows; a head that claims more is not ours.
CHUNKS_MAX = 512
# Longer than one silence of the store may be. While a holder's load takes longer, another process may load, too.
LOCK_S = 30


class Head(msgspec.Struct, frozen=True):
    """What the snapshot is of, and what its chunks are called."""

    revision: Revision
    hash: str
    chunks: int


class Snapshot:
    """The snapshot in the memcached at `address` ("unix:PATH" or "HOST:PORT"). Calls block; raises SourceError."""

    def __init__(self, address: str, prefix: str, owner: str) -> None:
        # Rows of another form than this one's are another version's.
        self._prefix = f"{prefix}rows1:"
        self._head_key = self._prefix + "head"
        self._owner = owner.encode()
        self._cache = Memcached(address, TIMEOUT_S)
        self._client = self._cache.client
        self.label = self._cache.label

    def head(self) -> Head | None:
        """What is there; None when there is nothing that makes sense."""
        with self._cache.naming_errors():
            raw = self._client.get(self._head_key)
        try:
            head = msgspec.msgpack.decode(raw or b"", type=Head)
        except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError):
            return None
        return head if 0 < head.chunks <= CHUNKS_MAX and head.hash.isalnum() else None

    def revision(self) -> Revision | None:
        head = self.head()
        return None if head is None else head.revision

    def load(self) -> Rows | None:
        """The rows; None when there are none, or not all of them, or not what the head says."""
        head = self.head()
        if head is None:
            return None
        keys = self._chunk_keys(head)
        with self._cache.naming_errors():
            chunks = [self._client.get(key) for key in keys]
        if not all(isinstance(chunk, bytes) for chunk in chunks):
            return None
        payload = b"".join(chunks)
        return decode_rows(payload) if _hash(payload) == head.hash else None

    def publish(self, rows: Rows) -> None:
        payload = encode_rows(rows)
        chunks = [payload[at : at + CHUNK_BYTES] for at in range(0, len(payload), CHUNK_BYTES)]
        head = Head(rows.revision, _hash(payload), len(chunks))
        before = self.head()
        with self._cache.naming_errors():
            for key, chunk in zip(self._chunk_keys(head), chunks, strict=True):
                if not self._client.set(key, chunk):
                    raise SourceError(f"{self.label}: it took no chunk of {len(chunk)} bytes; see its -m and -I")
            self._client.set(self._head_key, msgspec.msgpack.encode(head))
            if before is not None and before.hash != head.hash:
                # A reader in the middle of them finds them gone, and starts again with the new head.
                self._client.delete_many(self._chunk_keys(before))

    def lock(self) -> bool:
        """Whether this process may rebuild now; it may for LOCK_S seconds, or until `unlock`."""
        key = self._prefix + "lock"
        with self._cache.naming_errors():
            if self._client.add(key, self._owner, expire=LOCK_S):
                return True
            # Ours all the same: a memcached that hung has taken it when nobody waited for its answer any more, or the
            # process before this one was killed.
            return bool(self._client.get(key) == self._owner)

    def unlock(self) -> None:
        with self._cache.naming_errors():
            if self._client.get(self._prefix + "lock") == self._owner:
                self._client.delete(self._prefix + "lock")

    def close(self) -> None:
        self._client.close()

    def _chunk_keys(self, head: Head) -> list[str]:
        return [f"{self._prefix}{head.hash}:{number}" for number in range(head.chunks)]


def _hash(payload: bytes) -> str:
    return blake2b(payload, digest_size=16).hexdigest()
