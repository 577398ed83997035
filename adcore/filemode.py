"""Files and folders whose mode is written here, and not left to the umask that a process was started with.

The programs set the umask themselves (`settle_umask`), for what libraries make. What adcore makes has its mode said
where it is made: 0640 for what the service's group may read, 0600 for what it may not.
"""

import os
from pathlib import Path
from typing import BinaryIO

FILE_MODE = 0o640
FOLDER_MODE = 0o750


def settle_umask() -> None:
    """Make files 0640 and folders 0750 where nothing else is said, whatever was inherited."""
    os.umask(0o777 & ~FOLDER_MODE)


def open_file(path: str | Path, flags: int, mode: int) -> int:
    """`os.open`; a file that this makes has exactly `mode`, and one that was there keeps its own. Raises OSError."""
    flags |= os.O_CLOEXEC
    if not flags & os.O_CREAT:
        return os.open(path, flags)
    if not flags & os.O_EXCL:
        try:
            return os.open(path, flags & ~os.O_CREAT)
        except FileNotFoundError:
            pass
        try:
            return open_file(path, flags | os.O_EXCL, mode)
        except FileExistsError:  # made in between, or a link to where nothing is
            return os.open(path, flags, mode)
    # Without any rights for others in between.
    fd = os.open(path, flags, mode & 0o700)
    os.fchmod(fd, mode)
    return fd


def rewrite(path: str | Path, mode: int = FILE_MODE) -> BinaryIO:
    """A file to write from its start, to be renamed to where it is read; it has this mode. Raises OSError."""
    fd = open_file(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode)
    # What a killed process left at this name may have another.
    os.fchmod(fd, mode)
    return os.fdopen(fd, "wb")


def make_folder(path: Path, mode: int = FOLDER_MODE) -> None:
    """The folder and those above it, as far as they are missing, each with exactly this mode. Raises OSError."""
    if path.is_dir():
        return
    if path.parent != path:
        make_folder(path.parent, mode)
    try:
        path.mkdir(mode & 0o700)
    except FileExistsError:
        if not path.is_dir():
            raise
        return
    path.chmod(mode)
