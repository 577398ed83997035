"""The last look at the sources by any process of a state directory, for the others: one of them asks, all know.

Every process of a host wants to know the same: is there a revision newer than the one served? The one that holds the
lock of this file asks the sources and notes what it has found; the others read that, a system call instead of a helper
process and a query each. Who finds the note too old asks for itself, so a process that hangs, or whose store is away,
holds up nobody; when it ends, the kernel frees the lock for the next one.

The file, of this machine's byte order:

    offset  size
    0       4     CRC-32 of the note
    4       16    the boot that the clock is of (a state directory may outlive it, or be on a disk that hosts share)
    20      16    a digest of the source's URL and of the newest revision in it
    36      8     CLOCK_MONOTONIC when the look began that found it so, a double
    4096    8     CLOCK_MONOTONIC when another process last read the note, a double

Each part is written by one call. Nothing depends on the file: without it every process looks for itself.
"""

import fcntl
import os
from hashlib import blake2b
from pathlib import Path
from struct import Struct, error
from zlib import crc32

from adcore.files import open_own
from adcore.sources import Revision

_NOTE = Struct("=16s16sd")
_CRC = Struct("=I")
_TIME = Struct("=d")
READ_AT = 4096


class LookBoard:
    """The file, seen from one process. `identity` tells sources apart, as a URL does. Raises OSError when made."""

    def __init__(self, path: Path, identity: str, boot: bytes | None = None) -> None:
        self._fd = open_own(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW)
        self._identity = identity
        self._boot = read_boot() if boot is None else boot
        self._leads = False

    def close(self) -> None:
        os.close(self._fd)

    def lead(self) -> bool:
        """Whether this is the process that looks; it becomes it if there is no other."""
        if not self._leads:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._leads = True
            except OSError:  # another has it, or the file system has no locks: then everybody looks
                pass
        return self._leads

    def note(self, newest: Revision, asked_monotonic: float) -> None:
        """Tell the others: a look that began then found nothing newer than this."""
        note = _NOTE.pack(self._boot, self._digest(newest), asked_monotonic)
        try:
            os.pwrite(self._fd, _CRC.pack(crc32(note)) + note, 0)
        except OSError:  # a full disk: they will look for themselves
            pass

    def asked(self, served: Revision, now_monotonic: float) -> float | None:
        """When the last look began, if that found nothing newer than `served`; None otherwise."""
        try:
            os.pwrite(self._fd, _TIME.pack(now_monotonic), READ_AT)
            data = os.pread(self._fd, _CRC.size + _NOTE.size, 0)
            (checksum,), note = _CRC.unpack_from(data), data[_CRC.size :]
            boot, digest, asked_monotonic = _NOTE.unpack(note)
        except (OSError, error):
            return None
        is_whole = checksum == crc32(note) and boot == self._boot and asked_monotonic <= now_monotonic
        return float(asked_monotonic) if is_whole and digest == self._digest(served) else None

    def read_monotonic(self) -> float:
        """When another process last read the note; the distant past if none ever did."""
        try:
            (read_monotonic,) = _TIME.unpack(os.pread(self._fd, _TIME.size, READ_AT))
        except (OSError, error):
            return float("-inf")
        return float(read_monotonic)

    def _digest(self, revision: Revision) -> bytes:
        text = f"{self._identity}\0{revision.generation}\0{revision.number}"
        return blake2b(text.encode(), digest_size=16).digest()


def read_boot(path: Path = Path("/proc/sys/kernel/random/boot_id")) -> bytes:
    """16 bytes that another boot, or another host, has otherwise."""
    return blake2b(path.read_bytes(), digest_size=16).digest()
