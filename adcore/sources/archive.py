"""Every table that was served, so that what was decided on it can be decided again.

A folder with a file for each: the document in msgpack and zstd, whole or as what differs from a whole one (a change of
two campaigns among 5,000 takes 3 KB instead of 2.8 MB). Names tell all there is to know:

    GENERATION.NUMBER.DIGEST.zst          whole
    GENERATION.NUMBER.DIGEST.BASE.zst     against the whole document whose digest is BASE

The digest is the document's own. So a file that was changed is found out, folders of several hosts can be copied into
one, and a store that was restored from a backup, whose numbers come a second time, gives a second file.

A file's time is when its table was last served, to the hour; that of a base is never older than that of what needs it.
Whoever writes holds a lock; readers need none, since files come and go whole.
"""

import contextlib
import fcntl
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

import msgspec

from adcore.errors import SourceError
from adcore.files import make_folder, open_found, open_own, replace_own
from adcore.sources import Revision, Rows

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

DIGEST_BYTES = 16
SUFFIX = ".zst"
# How stale a file's time may be: pruning counts in days.
TOUCH_S = 3600.0
# How soon after a failure it is tried again.
RETRY_S = 60.0
# Others write for a tenth of a second; one that was stopped there must not stop the tables of all.
LOCK_WAIT_S = 2.0
LOCK_POLL_S = 0.02
# Past this part of its base a difference is no gain any more, and the document becomes a base of its own.
DIFFERENCE_MAX = 0.25
# A document that claims to be larger is not one of ours: a small file must not take all memory.
DOCUMENT_BYTES_MAX = 1 << 30
# zstd looks this far back, 128 MiB, so that two documents of 64 MiB are compared in full.
WINDOW_LOG = 27
LEVEL = 1
"""Higher ones take ten times as long, and the documents come out larger."""

Key = tuple[str, int]
"""Generation and number of a revision."""


class Entry(NamedTuple):
    """One file, as its name tells."""

    path: Path
    key: Key
    digest: str
    base: str
    """"" for a whole one."""


class TableArchive:
    """The tables in a folder. Calls block; `days` and `bytes_max` bound what is kept (0 days: nothing)."""

    def __init__(
        self, folder: Path, *, days: float = 0, bytes_max: int = 0, clock_wall: Callable[[], float] = time.time
    ) -> None:
        self.folder = folder
        self.label = str(folder)
        self._days = days
        self._bytes_max = bytes_max
        self._clock = clock_wall
        self._noted: Key | None = None
        self._note_again_wall = 0.0

    def note_served(self, revision: Revision) -> bool | None:
        """Remember that this one is still in use; False when it is not there, None when it is too soon to look.

        Raises SourceError.
        """
        key, now = (revision.generation, revision.number), self._clock()
        if not self._days or (self._noted == key and now < self._note_again_wall):
            return None
        self._noted, self._note_again_wall = key, now + RETRY_S
        with self._writing() as now_ns:
            found = [entry for entry in self.entries() if entry.key == key]
            for entry in found:
                self._touch(entry, now_ns)
            if found:
                self._note_again_wall = now + TOUCH_S
                self._prune(now_ns)
        return bool(found)

    def keep(self, rows: Rows) -> None:
        """Add what is about to be served. Raises SourceError, with nothing half done."""
        if not self._days:
            return
        payload = msgspec.msgpack.encode(rows.document)
        key, digest = (rows.revision.generation, rows.revision.number), _digest(payload)
        with self._writing() as now_ns:
            entries = list(self.entries())
            known = [entry for entry in entries if (entry.key, entry.digest) == (key, digest)]
            if known:
                self._touch(known[0], now_ns)
            else:
                self._write(key, digest, payload, entries, now_ns)
            self._prune(now_ns)

    def load(self, key: Key) -> list[dict[str, Any]]:
        """The documents at this revision: one, or none, or several when a store was set back.

        An empty generation stands for any. Raises SourceError for a file that is damaged or has no base.
        """
        generation, number = key
        return [
            _document(self._payload(entry), entry)
            for entry in sorted(self.entries())
            if entry.key[1] == number and generation in ("", entry.key[0])
        ]

    def entries(self) -> Iterator[Entry]:
        """What is there, in no order. Raises SourceError; a folder that does not exist is empty."""
        try:
            names = os.listdir(self.folder)
        except FileNotFoundError:
            return
        except OSError as error:
            raise SourceError(f"{self.label}: {error.strerror}") from error
        for name in names:
            entry = _parse(self.folder, name)
            if entry is not None:
                yield entry

    def _write(self, key: Key, digest: str, payload: bytes, entries: list[Entry], now_ns: int) -> None:
        base, before = self._base_for(key, entries)
        data = _compress(payload, before)
        if base is not None and len(data) > base.path.stat().st_size * DIFFERENCE_MAX:
            base, data = None, _compress(payload, None)
        parts = [quote(key[0], safe="").replace(".", "%2E"), str(key[1]), digest]
        if base is not None:
            parts.append(base.digest)
            self._touch(base, now_ns)
        # The lock is held, so that what bears this name was left by somebody who was killed.
        path = self.folder / (".".join(parts) + SUFFIX)
        replace_own(path, data, mode=0o640, aside="new", modified_ns=now_ns)

    def _base_for(self, key: Key, entries: list[Entry]) -> tuple[Entry | None, bytes | None]:
        """The whole document of the store that came last, with its bytes; one that is damaged is passed over."""
        whole = [entry for entry in entries if not entry.base and entry.key[0] == key[0]]
        for entry in sorted(whole, key=lambda entry: entry.key[1], reverse=True):
            with contextlib.suppress(SourceError):
                return entry, self._payload(entry)
        return None, None

    def _payload(self, entry: Entry) -> bytes:
        before = None
        if entry.base:
            base = self._base_of(entry)
            if base is None:
                raise SourceError(f"{entry.path}: the table that it differs from is gone")
            before = self._payload(base)
        try:
            with os.fdopen(open_found(entry.path), "rb") as file:
                payload = _decompress(file.read(), before)
        except OSError as error:
            raise SourceError(f"{entry.path}: {error.strerror}") from error
        except zstd.ZstdError as error:
            raise SourceError(f"{entry.path}: the file is damaged: {error}") from error
        if _digest(payload) != entry.digest:
            raise SourceError(f"{entry.path}: the file was changed: it is not what its name says")
        return payload

    def _base_of(self, entry: Entry) -> Entry | None:
        return next((base for base in self.entries() if base.digest == entry.base and not base.base), None)

    def _touch(self, entry: Entry, now_ns: int) -> None:
        base = self._base_of(entry)
        for touched in (base, entry):
            if touched is not None:
                os.utime(touched.path, ns=(now_ns, now_ns), follow_symlinks=False)

    def _prune(self, now_ns: int) -> None:
        """Remove what was not served for `days`, then the longest unused until the rest fits; not what is from now."""
        oldest_ns = now_ns - int(self._days * 86_400e9)
        files = []
        for entry in self.entries():
            status = entry.path.lstat()
            # Of one time, differences go before what they differ from.
            files.append((status.st_mtime_ns, not entry.base, entry, status.st_size))
        total = sum(size for *_, size in files)
        for served_ns, _, entry, size in sorted(files):
            if served_ns >= now_ns or (served_ns >= oldest_ns and total <= self._bytes_max):
                break
            entry.path.unlink()
            total -= size

    @contextmanager
    def _writing(self) -> Iterator[int]:
        """Alone, at one time (in ns since the epoch), with what fails told as SourceError."""
        deadline_monotonic = time.monotonic() + LOCK_WAIT_S
        try:
            make_folder(self.folder)
            lock_fd = open_own(self.folder / "lock", os.O_WRONLY | os.O_CREAT, 0o640)
            with os.fdopen(lock_fd, "wb") as lock:
                while True:
                    try:
                        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        break
                    except BlockingIOError:
                        if time.monotonic() > deadline_monotonic:
                            raise
                        time.sleep(LOCK_POLL_S)
                yield int(self._clock() * 1e9)
        except BlockingIOError as error:
            raise SourceError(f"{self.label}: another process has been writing for {LOCK_WAIT_S:g} s") from error
        except OSError as error:
            raise SourceError(f"{self.label}: the table cannot be kept for replay: {error.strerror}") from error


def _parse(folder: Path, name: str) -> Entry | None:
    parts = name.removesuffix(SUFFIX).split(".")
    if not name.endswith(SUFFIX) or len(parts) not in (3, 4) or not parts[1].isdecimal():
        return None
    return Entry(folder / name, (unquote(parts[0]), int(parts[1])), parts[2], parts[3] if len(parts) == 4 else "")


def _document(payload: bytes, entry: Entry) -> dict[str, Any]:
    try:
        return msgspec.msgpack.decode(payload, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise SourceError(f"{entry.path}: the file is damaged: {error}") from error


def _digest(payload: bytes) -> str:
    return blake2b(payload, digest_size=DIGEST_BYTES).hexdigest()


def _compress(payload: bytes, before: bytes | None) -> bytes:
    if before is None:
        return zstd.compress(payload, LEVEL)
    parameter = zstd.CompressionParameter
    options: dict[int, int] = {
        parameter.compression_level: LEVEL,
        parameter.window_log: WINDOW_LOG,
        parameter.enable_long_distance_matching: 1,
    }
    return zstd.compress(payload, options=options, zstd_dict=zstd.ZstdDict(before, is_raw=True).as_prefix)


def _decompress(data: bytes, before: bytes | None) -> bytes:
    # Which zstd holds a frame to.
    size = zstd.get_frame_info(data).decompressed_size
    if size is None or size > DOCUMENT_BYTES_MAX:
        raise zstd.ZstdError(f"it claims to have {'no' if size is None else size >> 20} MiB")
    if before is None:
        return zstd.decompress(data)
    options: dict[int, int] = {zstd.DecompressionParameter.window_log_max: WINDOW_LOG}
    return zstd.decompress(data, zstd.ZstdDict(before, is_raw=True).as_prefix, options)
