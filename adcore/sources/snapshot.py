"""The memcached snapshot: one process reads MySQL and puts the rows here, the others take them from here.

The payload is msgpack, never pickle, in chunks below memcached's item limit. Chunk keys carry the payload's hash, and
the head is written last, so that a reader never mixes two snapshots; it checks the hash besides. The head is sealed
(seal.py), and with the hash in it the payload is. Anything that does not fit together is no snapshot.
"""

from hashlib import blake2b

import msgspec

from adcore.errors import SourceError
from adcore.sources import Revision, Rows
from adcore.sources.codec import decode_rows, encode_rows
from adcore.sources.memcached import Memcached
from adcore.sources.seal import SealError, Seals

# A memcached that is there answers in a millisecond. One that hangs must not keep a change from being served: after
# this the store is read.
TIMEOUT_S = 0.5
# A chunk that trickles in is given up after this, and all that one look asks for after that: loading 100,000 creatives
# (60 MB), or publishing them, takes a second.
CHUNK_S = 2.0
LOOK_S = 10.0
# memcached's default limit for an item is 1 MiB with its key and header.
CHUNK_BYTES = 1_000_000
# An answer with one in it.
CHUNK_ANSWER_BYTES_MAX = CHUNK_BYTES + 1024
# 512 MiB of rows; a head that claims more is not ours.
CHUNKS_MAX = 512
LOOK_BYTES_MAX = (CHUNKS_MAX + 8) * CHUNK_ANSWER_BYTES_MAX
# Longer than one silence of the store may be. While a holder's load takes longer, another process may load, too.
LOCK_S = 30


class Head(msgspec.Struct, frozen=True):
    """What the snapshot is of, and what its chunks are called."""

    revision: Revision
    hash: str
    chunks: int


class Snapshot:
    """The snapshot in the memcached at `address` ("unix:PATH" or "HOST:PORT"). Calls block; raises SourceError."""

    def __init__(self, address: str, prefix: str, owner: str, seals: Seals) -> None:
        # Rows of another form than this one's are another version's: the ones of rows1 are not sealed.
        self._prefix = f"{prefix}rows2:"
        self._head_key = self._prefix + "head"
        self._owner = owner.encode()
        self._cache = Memcached(address, TIMEOUT_S)
        self._client = self._cache.client
        self.seals = seals
        self.label = self._cache.label
        self.problem: str | None = None
        """Why the head that was looked at last is nobody's word, although there is one."""

    def begin(self) -> None:
        """Begin another look: what it asks for has LOOK_S in all."""
        self._cache.begin(LOOK_S, LOOK_BYTES_MAX)

    def head(self) -> Head | None:
        """What is there; None when there is nothing that makes sense."""
        self.problem = None
        with self._cache.asking():
            raw = self._client.get(self._head_key)
        if raw is None:
            return None
        try:
            head = msgspec.msgpack.decode(self.seals.unseal(self._head_key, raw), type=Head)
        except SealError as error:
            self.problem = f"{self.label}: the snapshot there is ignored: {error}"
            return None
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
        chunks = []
        for key in self._chunk_keys(head):
            with self._cache.asking(CHUNK_ANSWER_BYTES_MAX, CHUNK_S):
                chunk = self._client.get(key)
            if not isinstance(chunk, bytes):
                return None
            chunks.append(chunk)
        payload = b"".join(chunks)
        if _hash(payload) != head.hash:
            return None
        rows = decode_rows(payload)
        return rows if rows is not None and rows.revision == head.revision else None

    def publish(self, rows: Rows) -> None:
        payload = encode_rows(rows)
        chunks = [payload[at : at + CHUNK_BYTES] for at in range(0, len(payload), CHUNK_BYTES)]
        head = Head(rows.revision, _hash(payload), len(chunks))
        before = self.head()
        for key, chunk in zip(self._chunk_keys(head), chunks, strict=True):
            with self._cache.asking(seconds=CHUNK_S):
                stored = self._client.set(key, chunk)
            if not stored:
                raise SourceError(f"{self.label}: it took no chunk of {len(chunk)} bytes; see its -m and -I")
        with self._cache.asking():
            self._client.set(self._head_key, self.seals.seal(self._head_key, msgspec.msgpack.encode(head)))
        if before is not None and before.hash != head.hash:
            # A reader in the middle of them finds them gone, and starts again with the new head.
            with self._cache.asking():
                self._client.delete_many(self._chunk_keys(before))

    def lock(self) -> bool:
        """Whether this process may rebuild now; it may for LOCK_S seconds, or until `unlock`."""
        key = self._prefix + "lock"
        with self._cache.asking():
            if self._client.add(key, self._owner, expire=LOCK_S):
                return True
            # Ours all the same: a memcached that hung has taken it when nobody waited for its answer any more, or the
            # process before this one was killed.
            return bool(self._client.get(key) == self._owner)

    def unlock(self) -> None:
        with self._cache.asking():
            if self._client.get(self._prefix + "lock") == self._owner:
                self._client.delete(self._prefix + "lock")

    def close(self) -> None:
        self._client.close()

    def _chunk_keys(self, head: Head) -> list[str]:
        return [f"{self._prefix}{head.hash}:{number}" for number in range(head.chunks)]


def _hash(payload: bytes) -> str:
    return blake2b(payload, digest_size=16).hexdigest()
