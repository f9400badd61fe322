"""Running a program with an image as its root: name spaces of our own, what is mounted in them, and bubblewrap.

All mounts are made in a private mount name space: they are gone with the last process in it, however that ends.
"""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import PurePosixPath

from mystfuse.errors import MountError, MystfuseError
from mystfuse.fuse.mount_table import own_mountpoints
from mystfuse.fuse.unmount import unmount
from mystfuse.openat2 import RESOLVE_IN_ROOT, openat2

# <linux/sched.h>, <sys/mount.h>
_CLONE_NEWNS, _CLONE_NEWUSER, _CLONE_NEWPID = 0x20000, 0x10000000, 0x20000000
_MS_NOSUID, _MS_NODEV, _MS_BIND, _MS_REC, _MS_SLAVE = 2, 4, 0x1000, 0x4000, 1 << 19
_MOUNT_ATTR_RDONLY = 1
_AT_EMPTY_PATH, _AT_RECURSIVE = 0x1000, 0x8000
_SYS_MOUNT_SETATTR = 442
_PLACES = ("/mnt", "/media", "/srv", "/opt", "/tmp")  # noqa: S108
"""Where the image is mounted in the name space: any directory will do, what it hides is not needed there."""
_CAPABILITIES = (
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID", "CAP_SETUID", "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_SETFCAP",
)  # fmt: skip
"""What root keeps: what containers usually leave it, without making devices."""
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


def _unshare(flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(flags):
        raise MystfuseError(
            f"no name spaces of our own: {os.strerror(ctypes.get_errno())} "
            "(are unprivileged user name spaces switched off?)"
        )


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
        pure = PurePosixPath("/", *(part for part in PurePosixPath(path).parts if part not in ("/", "..")))
        if len(pure.parts) == 1 or pure.parts[1] in _OWN:
            raise MountError(f"{path}: nothing can be mounted there")
        try:
            for part in (*reversed(pure.parents), pure):
                try:
                    fd = self.open(str(part), os.O_PATH | os.O_DIRECTORY)
                except FileNotFoundError:
                    parent = self.open(str(part.parent), os.O_PATH | os.O_DIRECTORY)
                    os.mkdir(part.name, 0o755, dir_fd=parent)
                    os.close(parent)
                    fd = self.open(str(part), os.O_PATH | os.O_DIRECTORY)
                name = os.readlink(f"/proc/self/fd/{fd}")
                os.close(fd)
        except OSError as error:
            raise MountError(f"{path}: cannot be mounted on in the image: {error.strerror}") from error
        return name

    def bind(self, source_fd: int, path: str, read_only: bool = False) -> None:
        """Show a directory of the host, and what is mounted in it, at ``path``."""
        target = self.make_directory(path)
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


def find_bubblewrap() -> str:
    """The path of bwrap(1); MystfuseError if it is not installed."""
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise MystfuseError("bubblewrap is not installed (apt install bubblewrap)")
    return bwrap


def bubblewrap_options(
    root: Root, environment: Mapping[str, str], directory: str, has_network: bool, hostname: str | None
) -> list[str]:
    """The options of bwrap(1) for a program that sees ``root``, in name spaces of its own."""
    options = ["--bind", root.path, "/", "--proc", "/proc", "--dev", "/dev", "--die-with-parent"]
    options += ["--unshare-pid", "--unshare-ipc", "--unshare-uts"]
    if hostname is not None:
        options += ["--hostname", hostname]
    if not has_network:
        options.append("--unshare-net")
    if os.geteuid() == 0:
        # As root, bubblewrap leaves a program everything unless told otherwise.
        options += ["--cap-drop", "ALL"]
        options += [word for name in _CAPABILITIES for word in ("--cap-add", name)]
    options += ["--chdir", directory, "--clearenv"]
    for name, value in environment.items():
        options += ["--setenv", name, value]
    return options


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
    fd = os.open(target, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
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
