"""Opens, makes and replaces files of this process's own: with a stated mode, whatever others have put there.

The programs set the umask themselves (`settle_umask`), for what libraries make; what adcore makes has its mode said
where it is made: 0640 for what the service's group may read, 0600 for what it may not.

A directory that only its owner may write to holds what the owner put there, and is trusted. In one where every user of
the host may write, such as /tmp or /dev/shm, a file is used only if this user (or root) made it, under that one name
and without a symbolic link. Otherwise another user could have the server read forged records, append to a file of the
attacker's choice, or die of a mapped file that is cut short (SIGBUS). No directory can make an open hang: a pipe or a
device is refused where a file is wanted. The kernel has the same rules (fs.protected_symlinks, protected_regular and
others in proc_sys_fs(5)), which not every host switches on.
"""

import contextlib
import errno
import os
import stat
from pathlib import Path

FILE_MODE = 0o640
FOLDER_MODE = 0o750


def settle_umask() -> None:
    """Make files 0640 and folders 0750 where nothing else is said, whatever was inherited."""
    os.umask(0o777 & ~FOLDER_MODE)


def open_file(path: str | Path, flags: int, mode: int, *, dir_fd: int | None = None) -> int:
    """`os.open`; a file that this makes has exactly `mode`, and one that was there keeps its own. Raises OSError."""
    flags |= os.O_CLOEXEC
    if not flags & os.O_CREAT:
        return os.open(path, flags, dir_fd=dir_fd)
    if not flags & os.O_EXCL:
        try:
            return os.open(path, flags & ~os.O_CREAT, dir_fd=dir_fd)
        except FileNotFoundError:
            pass
        try:
            return open_file(path, flags | os.O_EXCL, mode, dir_fd=dir_fd)
        except FileExistsError:  # made in between, or a link to where nothing is
            return os.open(path, flags, mode, dir_fd=dir_fd)
    # Without any rights for others in between.
    fd = os.open(path, flags, mode & 0o700, dir_fd=dir_fd)
    os.fchmod(fd, mode)
    return fd


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


def open_own(path: Path, flags: int, mode: int = 0o600, *, regular: bool = True) -> int:
    """A descriptor of the file. Raises OSError, whose strerror says what is wrong with a file that is not ours.

    `regular` refuses pipes and devices; without it, opening a pipe to write raises ENXIO while there is no reader.
    """
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        shared = is_shared(os.fstat(directory))
        flags |= os.O_NONBLOCK | (os.O_NOFOLLOW if shared else 0)
        try:
            fd = open_file(path.name, flags, mode, dir_fd=directory)
        except OSError as error:
            if shared and error.errno == errno.ELOOP:
                raise OSError(errno.ELOOP, f"it is a symbolic link where every user may write: {path.parent}") from None
            raise
    finally:
        os.close(directory)
    try:
        _check(os.fstat(fd), shared, regular, path)
        os.set_blocking(fd, True)
    except BaseException:
        os.close(fd)
        raise
    return fd


def is_shared(directory: os.stat_result) -> bool:
    """Whether every user of the host may put files there."""
    return bool(directory.st_mode & stat.S_IWOTH)


def _check(status: os.stat_result, shared: bool, regular: bool, path: Path) -> None:
    if regular and not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file; remove it")
    if not shared:
        return
    if status.st_uid not in (os.geteuid(), 0):
        owner = f"it belongs to another user (uid {status.st_uid})"
        raise OSError(errno.EPERM, f"{owner}, where every user may write: {path.parent}")
    if stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
        raise OSError(errno.EPERM, f"it has a second name, where every user may write: {path.parent}")


def read_own(path: Path) -> tuple[bytes, os.stat_result]:
    """What the file holds, and its status. Raises OSError, FileNotFoundError when there is none."""
    with os.fdopen(open_own(path, os.O_RDONLY), "rb") as file:
        return file.read(), os.fstat(file.fileno())


def replace_own(
    path: Path, data: bytes, *, mode: int, aside: str, modified_ns: int | None = None, durable: bool = True
) -> None:
    """Put `data` in place of what the file holds, by way of a new file with the name `aside`.

    A crash leaves the old or the new one. One process at a time may use the name. `modified_ns` is the new file's time.
    Raises OSError, with the old file left in place.
    """
    beside = path.with_name(aside)
    with contextlib.suppress(FileNotFoundError):
        beside.unlink()  # of a process that was killed, or a trap: O_EXCL opens nothing that is there
    fd = open_file(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(fd)
            if modified_ns is not None:
                os.utime(fd, ns=(modified_ns, modified_ns))
        beside.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
