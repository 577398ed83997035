"""The last good rows on local disk, for a start while every other source is away."""

import os
from hashlib import blake2b
from pathlib import Path

from adcore.errors import SourceError
from adcore.files import read_own, replace_own
from adcore.sources import Rows
from adcore.sources.codec import decode_rows, encode_rows

MAGIC = b"adcore rows 2\n"
HASH_BYTES = 16


class LastGood:
    """One file: the magic, a hash, the rows. Replaced by rename, so it is the old or the new one, never half."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.label = str(path)

    def save(self, rows: Rows) -> None:
        """Raises SourceError, with the old file left in place."""
        payload = encode_rows(rows)
        data = MAGIC + _hash(payload) + payload
        try:
            replace_own(self.path, data, mode=0o640, aside=f"{self.path.name}.{os.getpid()}")
        except OSError as error:
            raise SourceError(f"{self.label}: cannot keep the last good rows: {error.strerror}") from error

    def load(self) -> tuple[Rows, float] | None:
        """The rows and when they were kept (epoch seconds); None when there is no file.

        Raises SourceError for a file that is damaged or can't be read.
        """
        try:
            data, status = read_own(self.path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise SourceError(f"{self.label}: {error.strerror}") from error
        start = len(MAGIC) + HASH_BYTES
        payload = data[start:]
        rows = decode_rows(payload) if data[:start] == MAGIC + _hash(payload) else None
        if rows is None:
            raise SourceError(f"{self.label}: the file is damaged; it is replaced by the next good load")
        return rows, status.st_mtime


def _hash(payload: bytes) -> bytes:
    return blake2b(payload, digest_size=HASH_BYTES).digest()
