"""Opens, makes and replaces files of this process's own: with a stated mode, whatever others have put there.

The programs set the umask themselves (`settle_umask`), for what libraries make; what adcore makes has its mode said
where it is made: 0640 for what the service's group may read, 0600 for what it may not.

A folder is judged by its owner, as by sshd (StrictModes) and systemd (an "unsafe path transition"): it belongs to this
user or to root, or nothing of adcore's own is opened there. Its owner could put links there, files of any content, or
one that is mapped and then cut short (SIGBUS). Where others may write as well (a mode like that of /tmp and /dev/shm, a
group, an ACL), a file is used only if this user, the folder's owner or root made it, under that one name and without a
symbolic link. Root, who runs `adctl` on the service's files, works in the folder of another user by these rules.
No directory can make an open hang: a pipe or a device is refused where a file is wanted. The kernel has similar rules
(fs.protected_symlinks, protected_regular and others in proc_sys_fs(5)), which not every host switches on.
"""

import contextlib
import errno
import grp
import os
import pwd
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

FILE_MODE = 0o640
FOLDER_MODE = 0o750
# How long the second name of a file that is being made is waited for, where the file system needs one (create_own).
SETTLE_S = 0.5
SETTLE_POLL_S = 0.001


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


def folder_problem(path: Path, what: str, *, sticky: bool = False) -> str | None:
    """How another user could put files into the folder `what` of this process, and the remedy; None when none could.

    With `sticky` others may have files of theirs there, as in /dev/shm, and none may remove this user's. Root has no
    exception here: this is for the folders in which a server keeps and maps its files. Raises OSError.
    """
    status = path.stat()
    if status.st_uid not in (os.geteuid(), 0):
        owner = _user(status.st_uid)
        return f"the {what} {path} belongs to {owner}: `chown {_user(os.geteuid())}` it, or run this as {owner}"
    writers = _other_writers(path, status)
    if writers is None:
        return None
    if not sticky:
        return f"{writers[0]} may write to the {what} {path}: chmod {writers[1]}-w it"
    if not status.st_mode & stat.S_ISVTX:
        return f"{writers[0]} may remove files from the {what} {path}: chmod +t or {writers[1]}-w it"
    return None


def _other_writers(path: Path, status: os.stat_result) -> tuple[str, str] | None:
    """Which users besides the folder's owner, this one and root may write there, and their letter for chmod."""
    if status.st_mode & stat.S_IWOTH:
        return "every user of this host", "o"
    if not status.st_mode & stat.S_IWGRP:  # with an ACL, this bit is its mask: without it no entry lets anyone write
        return None
    with contextlib.suppress(OSError):  # of a file system that has no ACLs
        if "system.posix_acl_access" in os.listxattr(path):
            return "a user of its ACL", "g"
    # A group that has no other user, as each user's own on many hosts, adds none.
    names = set()
    with contextlib.suppress(KeyError):
        names = set(grp.getgrgid(status.st_gid).gr_mem)
    names |= {user.pw_name for user in pwd.getpwall() if user.pw_gid == status.st_gid}
    for uid in (status.st_uid, os.geteuid(), 0):
        names.discard(_user(uid))
    return (f"{min(names)}, of its group,", "g") if names else None


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


class _Folder(NamedTuple):
    """An open folder, and by which rules the files in it are judged."""

    fd: int
    owners: frozenset[int] | None
    """Whose files are used; None where all are."""
    where: str
    """Why that is so, for a message."""


@contextlib.contextmanager
def _opened(path: Path, *, found: bool = False) -> Iterator[_Folder]:
    """Raises OSError for another user's folder, unless the files are `found` ones."""
    fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        uid, owner = os.geteuid(), status.st_uid
        if owner in (uid, 0):
            if not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                yield _Folder(fd, None, "")
                return
            who = "every user" if status.st_mode & stat.S_IWOTH else "its group"
        elif found or uid == 0:
            who = f"the user {_user(owner)}"
        else:
            raise OSError(
                errno.EPERM,
                f"the folder {path} belongs to {_user(owner)} (uid {owner}), who could put anything there; `chown "
                f"{_user(uid)}` it, run this as {_user(owner)}, or choose another folder",
            )
        yield _Folder(fd, frozenset((uid, owner, 0)), f"where {who} may write: {path}")
    finally:
        os.close(fd)


def open_own(
    path: Path, flags: int, mode: int = 0o600, *, regular: bool = True, settles: bool = False, found: bool = False
) -> int:
    """A descriptor of the file. Raises OSError, whose strerror says what is wrong with a file that is not ours.

    `regular` refuses pipes and devices; without it, opening a pipe to write raises ENXIO while there is no reader.
    `settles` waits for a file that another process makes at this moment (create_own). `found` is for a file to read
    that another user's program may have written, which is for that user to answer for.
    """
    with _opened(path.parent, found=found) as folder:
        flags |= os.O_NONBLOCK | (os.O_NOFOLLOW if folder.owners is not None else 0)
        try:
            fd = open_file(path.name, flags, mode, dir_fd=folder.fd)
        except OSError as error:
            if folder.owners is not None and error.errno == errno.ELOOP:
                raise OSError(errno.ELOOP, f"it is a symbolic link {folder.where}; remove it") from None
            raise
    try:
        if settles and folder.owners is not None:
            _wait_for_one_name(fd)
        _check(os.fstat(fd), folder, regular, path)
        os.set_blocking(fd, True)
    except BaseException:
        os.close(fd)
        raise
    return fd


def open_found(path: Path) -> int:
    """A descriptor to read what another user's program may have written, such as a log of the service."""
    return open_own(path, os.O_RDONLY, found=True)


def _wait_for_one_name(fd: int) -> None:
    deadline_monotonic = time.monotonic() + SETTLE_S
    while os.fstat(fd).st_nlink > 1 and time.monotonic() < deadline_monotonic:
        time.sleep(SETTLE_POLL_S)


def _check(status: os.stat_result, folder: _Folder, regular: bool, path: Path) -> None:
    if regular and not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file; remove it")
    if folder.owners is None:
        return
    if status.st_uid not in folder.owners:
        owner = f"it belongs to another user (uid {status.st_uid})"
        raise OSError(errno.EPERM, f"{owner}, {folder.where}; remove it")
    if stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
        remedy = f"`find / -xdev -samefile {path}` shows both: remove this one, and the other if it was made beside it"
        raise OSError(errno.EPERM, f"it has a second name, {folder.where}; {remedy}")


def read_own(path: Path) -> tuple[bytes, os.stat_result]:
    """What the file holds, and its status. Raises OSError, FileNotFoundError when there is none."""
    with os.fdopen(open_own(path, os.O_RDONLY), "rb") as file:
        return file.read(), os.fstat(file.fileno())


def create_own(path: Path, fill: Callable[[int], object], *, mode: int = 0o600, durable: bool = False) -> int:
    """A descriptor (read and write) of a new file, which is whole, by `fill`, before it has its name.

    It replaces no other one: raises FileExistsError. Raises OSError; nothing is left then. The file has no name at all
    until it has its own, so no reader sees a second one, and a crash leaves none. A file system that can't do that
    (NFS, an old overlay) has it under another name first, and for a moment under both: see `settles` of open_own.
    """
    with _opened(path.parent) as folder:
        aside = None
        try:
            fd = os.open(".", os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, mode & 0o700, dir_fd=folder.fd)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
                raise
            aside = f".{secrets.token_hex(16)}.new"
            fd = open_file(aside, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode, dir_fd=folder.fd)
        try:
            os.fchmod(fd, mode)
            fill(fd)
            if durable:
                os.fsync(fd)
            # A link, not a rename: it never replaces.
            if aside is None:
                os.link(f"/proc/self/fd/{fd}", path.name, dst_dir_fd=folder.fd, follow_symlinks=True)
            else:
                os.link(aside, path.name, src_dir_fd=folder.fd, dst_dir_fd=folder.fd, follow_symlinks=False)
        except BaseException:
            os.close(fd)
            raise
        finally:
            if aside is not None:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(aside, dir_fd=folder.fd)
        if durable:
            _sync(folder)
    return fd


def _sync(folder: _Folder) -> None:
    """Keep the names in it over a crash."""
    fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder.fd)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def replace_own(
    path: Path, data: bytes, *, mode: int, aside: str, modified_ns: int | None = None, durable: bool = True
) -> None:
    """Put `data` in place of what the file holds, by way of a new file with the name `aside`.

    A crash leaves the old or the new one. One process at a time may use the name. `modified_ns` is the new file's time.
    Raises OSError, with the old file left in place.
    """
    with _opened(path.parent) as folder:
        with contextlib.suppress(FileNotFoundError):
            # Of a process that was killed, or a trap: O_EXCL opens nothing that is there.
            os.unlink(aside, dir_fd=folder.fd)
        fd = open_file(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode, dir_fd=folder.fd)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(data)
                file.flush()
                if durable:
                    os.fsync(fd)
                if modified_ns is not None:
                    os.utime(fd, ns=(modified_ns, modified_ns))
            os.replace(aside, path.name, src_dir_fd=folder.fd, dst_dir_fd=folder.fd)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(aside, dir_fd=folder.fd)
            raise
