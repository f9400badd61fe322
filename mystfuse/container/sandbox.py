"""Running a program with an image as its root: name spaces of our own, and what is mounted in them.

All mounts are made in a private mount name space: they are gone with the last process in it, however that ends.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath

from mystfuse.errors import MountError, MystfuseError
from mystfuse.mounting.mount_table import own_mountpoints
from mystfuse.mounting.unmount import unmount
from mystfuse.system.openat2 import RESOLVE_IN_ROOT, openat2
from mystfuse.system.syscall_numbers import syscall_numbers

# <linux/sched.h>, <sys/mount.h>
_CLONE_NEWNS, _CLONE_NEWUSER, _CLONE_NEWPID = 0x20000, 0x10000000, 0x20000000
_MS_NOSUID, _MS_NODEV, _MS_BIND, _MS_REC, _MS_SLAVE = 2, 4, 0x1000, 0x4000, 1 << 19
_MOUNT_ATTR_RDONLY = 1
_AT_EMPTY_PATH, _AT_RECURSIVE = 0x1000, 0x8000
_SYS_MOUNT_SETATTR = 442
# <linux/keyctl.h>
_KEYCTL_JOIN_SESSION_KEYRING = 1
_PLACES = ("/mnt", "/media", "/srv", "/opt", "/tmp")  # noqa: S108
"""Where the image is mounted in the name space: any directory will do, what it hides is not needed there."""
_NOT_TRIED = 2
"""The exit status of a process that did not come to mount a /proc."""
_OWN = ("proc", "dev")
"""Not to be mounted over: bubblewrap makes them."""


def enter_private_namespace() -> None:
    """Give this process (which must have one thread) mounts of its own; as an ordinary user by a user name space, in
    which it keeps its user and group.

    Raises:
        MystfuseError: the system does not allow it.
    """
    uid, gid = os.geteuid(), os.getegid()
    _unshare(_CLONE_NEWNS | (_CLONE_NEWUSER if uid else 0))
    if uid:
        for name, text in ("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1"):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    _mount(None, "/", None, _MS_REC | _MS_SLAVE)


def drop_mounts_of_ours(needed: Sequence[str]) -> None:
    """Take other mounts of ours out of the name space, but for those that the paths ``needed`` are in: they would keep
    their daemons alive where ``/`` is private, so that unmounting does not get through.

    As an ordinary user they are not ours to take away.
    """
    if os.geteuid():
        return
    for mountpoint in own_mountpoints():
        if not any(f"{os.path.realpath(path)}/".startswith(f"{mountpoint}/") for path in needed):
            with suppress(MountError):
                unmount(mountpoint, lazy=True)


def shield_next_child() -> None:
    """Make the next child of this process the first of a process name space, in which no other can follow it. So what a
    terminal sends to all of the foreground (^C, ^Z) does not end bubblewrap, but reaches the program.

    No thread can be started afterwards.
    """
    _unshare(_CLONE_NEWPID)


def show_own_processes() -> None:
    """In the first process of a name space that ``shield_next_child`` made: give it a /proc that shows that name space.

    bubblewrap looks for its child there, by the number that the child has in it; in the caller's /proc that is another
    process, or, in a container that runs little else, none. Where the kernel refuses a /proc, all stays as it is.
    """
    with suppress(MystfuseError):
        _unshare(_CLONE_NEWNS)
        _mount("proc", "/proc", "proc", _MS_NOSUID | _MS_NODEV)


def _unshare(flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(flags):
        raise MystfuseError(
            f"no name spaces of our own: {os.strerror(ctypes.get_errno())} "
            "(are unprivileged user name spaces switched off?)"
        )


def make_user_namespace() -> int:
    """A descriptor of a new user name space, below ours, with the users and groups of ours: each file keeps its owner,
    and capabilities in it are worth nothing outside.

    Raises:
        MystfuseError: the system does not allow it, or no /proc could be mounted in there.
    """
    maps = {name: _identity(Path(f"/proc/self/{name}").read_text()) for name in ("uid_map", "gid_map")}
    (is_there, says), (goes_on, lets) = os.pipe(), os.pipe()
    # The maps are written from outside: in there, nobody may map more than its own user.
    pid = os.fork()
    if pid == 0:
        status = _NOT_TRIED
        try:
            os.close(lets)
            _unshare(_CLONE_NEWUSER)
            os.write(says, b"+")
            os.read(goes_on, 1)
            status = _try_proc()
        finally:
            os._exit(status)
    os.close(says)
    os.close(goes_on)
    fd = -1
    try:
        if os.read(is_there, 1):
            for name, text in maps.items():
                with open(f"/proc/{pid}/{name}", "w") as file:
                    file.write(text)
            fd = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise MystfuseError(
            f"no user name space for the program: {error.strerror} (--privileged does without)"
        ) from error
    finally:
        os.close(is_there)
        os.close(lets)
        _, status = os.waitpid(pid, 0)
    if fd >= 0 and status == 0:
        return fd
    if os.waitstatus_to_exitcode(status) == _NOT_TRIED:
        raise MystfuseError("no user name space for the program: are they switched off? (--privileged does without)")
    raise MystfuseError(
        "no /proc for the program: parts of our own are hidden, as in a container (--privileged shows it all)"
    )


def enter_user_namespace(fd: int) -> None:
    """Go into the user name space ``fd`` for good; this process must have one thread. MystfuseError if that fails."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(fd, _CLONE_NEWUSER):
        raise MystfuseError(f"the program's user name space cannot be entered: {os.strerror(ctypes.get_errno())}")


def _try_proc() -> int:
    """Mount a /proc as bubblewrap will, in a process of its own; returns its status. The kernel refuses it if something
    would come to light that is hidden here."""
    _unshare(_CLONE_NEWNS | _CLONE_NEWPID)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            _mount("proc", "/proc", "proc", _MS_NOSUID | _MS_NODEV)
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _identity(text: str) -> str:
    """The map, as of user_namespaces(7), that leaves each number what it is that ``text``, our own map, has."""
    lines = (line.split() for line in text.splitlines())
    return "".join(f"{inside} {inside} {count}\n" for inside, _, count in lines)


def leave_session_keyring() -> None:
    """Give this process, and what it starts, a session keyring of its own, with nothing in it.

    Raises:
        MystfuseError: the system has keyrings, but not one more for us.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(syscall_numbers(platform.machine()).get("keyctl", -1), _KEYCTL_JOIN_SESSION_KEYRING, None) < 0:
        code = ctypes.get_errno()
        # A kernel without keyrings, or a container's filter: then there is nothing to be seen either.
        if code not in (errno.ENOSYS, errno.EPERM):
            raise MystfuseError(f"no session keyring for the program: {os.strerror(code)}")


def show_read_only(path: str) -> None:
    """Make the file or directory ``path`` of this mount name space, which must be private, read-only."""
    _mount(path, path, None, _MS_BIND)
    _make_read_only(path)


def find_place() -> str:
    """A directory to mount the image on."""
    for place in _PLACES:
        if os.path.isdir(place):
            return place
    raise MystfuseError(f"none of {', '.join(_PLACES)} is there to mount the image on")


class Root:
    """The tree that a program is to see, while it is put together under ``path``. Paths in it are resolved as if it
    were the root already: nothing in it leads out."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def open(self, path: str, flags: int) -> int:
        """Open what is at ``path``; OSError as open(2)."""
        return openat2(path, flags, RESOLVE_IN_ROOT, self._fd)

    def make_directory(self, path: str) -> str:
        """The host's name of directory ``path``, which is made, with those above it, if it is not there.

        Raises:
            MountError: it is not a directory, cannot be made, or is not to be mounted over.
        """
        try:
            return _name_of(self._make_directories(_inside(path)))
        except FileExistsError as error:
            # openat2(2) has found nothing there, mkdir(2) something.
            raise MountError(f"{path}: a link in the image that leads to nothing: mount at what it names") from error
        except OSError as error:
            raise MountError(f"{path}: cannot be mounted on in the image: {error.strerror}") from error

    def _make_directories(self, path: PurePosixPath) -> int:
        """A descriptor of a directory, which is made, with those above it, if it is not there."""
        fd = self.open("/", os.O_PATH | os.O_DIRECTORY)
        for part in (*reversed(path.parents), path)[1:]:
            parent = fd
            try:
                try:
                    fd = self.open(str(part), os.O_PATH | os.O_DIRECTORY)
                except FileNotFoundError:
                    os.mkdir(part.name, 0o755, dir_fd=parent)
                    fd = self.open(str(part), os.O_PATH | os.O_DIRECTORY)
            finally:
                os.close(parent)
        return fd

    def make_file(self, path: str) -> str:
        """The host's name of file ``path``, which is made, empty, with the directories above it, if it is not there.

        Raises:
            MountError: it is a directory, cannot be made, or is not to be mounted over.
        """
        pure = _inside(path)
        try:
            try:
                fd = self.open(str(pure), os.O_PATH)
            except FileNotFoundError:
                parent = self._make_directories(pure.parent)
                try:
                    # A link that leads to nothing is not followed: what it names may be anywhere.
                    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                    fd = os.open(pure.name, flags, 0o644, dir_fd=parent)
                finally:
                    os.close(parent)
            is_directory = stat.S_ISDIR(os.fstat(fd).st_mode)
            name = _name_of(fd)
        except FileExistsError:
            raise MountError(f"{path}: a link in the image that leads to nothing: mount at what it names") from None
        except OSError as error:
            raise MountError(f"{path}: cannot be mounted on in the image: {error.strerror}") from error
        if is_directory:
            raise MountError(f"{path}: a directory in the image, where a file is to be mounted")
        return name

    def is_empty_or_absent(self, path: str) -> bool:
        """Whether there is an empty file at ``path``, or nothing: neither a link that leads somewhere."""
        try:
            fd = self.open(path, os.O_PATH)
        except FileNotFoundError:
            return True
        try:
            status = os.fstat(fd)
        finally:
            os.close(fd)
        return stat.S_ISREG(status.st_mode) and status.st_size == 0

    def remove_link(self, path: str) -> None:
        """Remove what is at ``path`` if it is a link, wherever that leads."""
        pure = _inside(path)
        try:
            parent = self.open(str(pure.parent), os.O_PATH | os.O_DIRECTORY)
        except FileNotFoundError:
            return
        try:
            if stat.S_ISLNK(os.lstat(pure.name, dir_fd=parent).st_mode):
                os.unlink(pure.name, dir_fd=parent)
        except FileNotFoundError:
            return
        finally:
            os.close(parent)

    def bind(self, source_fd: int, path: str, read_only: bool = False) -> None:
        """Show a file of the host, or a directory and what is mounted in it, at ``path``."""
        is_directory = stat.S_ISDIR(os.fstat(source_fd).st_mode)
        target = self.make_directory(path) if is_directory else self.make_file(path)
        _mount(f"/proc/self/fd/{source_fd}", target, None, _MS_BIND | _MS_REC)
        if read_only:
            _make_read_only(target)

    def mount_tmpfs(self, path: str, size: int | None, read_only: bool = False) -> None:
        """An empty directory for everybody at ``path``, in memory: up to ``size`` bytes (None: half of it)."""
        limit = "" if size is None else f",size={size}"
        target = self.make_directory(path)
        _mount("tmpfs", target, "tmpfs", _MS_NOSUID | _MS_NODEV, f"mode=1777{limit}")
        if read_only:
            _make_read_only(target)


def _name_of(fd: int) -> str:
    """Where ``fd``, which is closed, is."""
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def _inside(path: str) -> PurePosixPath:
    """``path`` in a root, without what leads up; MountError where nothing can be mounted."""
    pure = PurePosixPath("/", *(part for part in PurePosixPath(path).parts if part not in ("/", "..")))
    if len(pure.parts) == 1 or pure.parts[1] in _OWN:
        raise MountError(f"{path}: nothing can be mounted there")
    return pure


def _mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    encoded = [None if text is None else os.fsencode(text) for text in (source, target, kind, data)]
    if libc.mount(encoded[0], encoded[1], encoded[2], ctypes.c_ulong(flags), encoded[3]):
        raise MountError(f"{target}: cannot be mounted on: {os.strerror(ctypes.get_errno())}")


class _MountAttributes(ctypes.Structure):
    _fields_ = (
        ("set", ctypes.c_uint64),
        ("clear", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def _make_read_only(target: str) -> None:
    """mount_setattr(2) of what is mounted at ``target`` and everything in it; not in the C library yet."""
    attributes = _MountAttributes(set=_MOUNT_ATTR_RDONLY)
    libc = ctypes.CDLL(None, use_errno=True)
    fd = os.open(target, os.O_PATH | os.O_CLOEXEC)
    try:
        if libc.syscall(
            _SYS_MOUNT_SETATTR,
            fd,
            b"",
            _AT_EMPTY_PATH | _AT_RECURSIVE,
            ctypes.byref(attributes),
            ctypes.sizeof(attributes),
        ):
            raise MountError(f"{target}: cannot be made read-only: {os.strerror(ctypes.get_errno())}")
    finally:
        os.close(fd)
