"""The options of a mount."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from enum import Enum


class OnCorruption(Enum):
    """The effect of a damaged block, besides failing the request that needs it."""

    EIO = "eio"
    UNMOUNT = "unmount"


@dataclass(frozen=True, slots=True)
class MountOptions:
    """How to mount. Times are seconds."""

    mountpoint: str
    """Absolute."""
    fsname: str
    """The source in the mount table."""
    directory: int | None = None
    """A descriptor (O_PATH) of the directory to mount on, which no other can replace. None: mount by the path."""
    descriptor: int | None = None
    """A descriptor of /dev/fuse that the caller has mounted there already."""
    nonempty: bool = False
    """Mount over a directory that is not empty, or over another mount of ours."""
    read_only: bool = False
    overlay_limit: int = 0
    """Bytes of memory for written data."""
    overlay_store: int | None = None
    """Descriptor of a file for written data beyond that."""
    allow_other: bool = False
    suid: bool = False
    dev: bool = False
    noexec: bool = False
    default_permissions: bool = True
    """Have the kernel check permissions by owner and mode; without, whoever may use the mount may do everything."""
    uid: int | None = None
    """Show everything as owned by this user."""
    gid: int | None = None
    map_root: bool = False
    """Show files of user and group 0 of the image as the mounting user's."""
    xattr: bool = True
    acl: bool = True
    """Let the kernel enforce POSIX ACLs."""
    control: bool = True
    """Show the control directory ``.mystfuse``."""
    fastpath: bool = True
    """Have C threads answer what they can, if the native kernels are there."""
    handles: bool = True
    """Give file handles, as NFS servers and open_by_handle_at(2) want them."""
    io_timeout: float = 30.0
    idle_timeout: float = math.inf
    on_corruption: OnCorruption = OnCorruption.EIO
    owner: tuple[int, int] = field(default_factory=lambda: (os.getuid(), os.getgid()))
    """The mounting user and group; the daemon may become others."""

    @property
    def enforces_acl(self) -> bool:
        """Whether the kernel enforces POSIX ACLs, which are extended attributes."""
        return self.acl and self.xattr

    @property
    def shown_name(self) -> str:
        """The source in the mount table, with ``?`` for characters that are not printable ASCII."""
        return "".join(char if char.isascii() and char.isprintable() else "?" for char in self.fsname)

    def fuse_options(self) -> set[str]:
        """The options for libfuse and fusermount3, in the ASCII that they accept."""
        options = {
            "ro" if self.read_only else "rw",
            "noatime",
            "subtype=mystfuse",
            f"fsname={_escape(self.shown_name)}",
            "suid" if self.suid else "nosuid",
            "dev" if self.dev else "nodev",
        }
        if self.default_permissions:
            options.add("default_permissions")
        if self.allow_other:
            options.add("allow_other")
        if self.noexec:
            options.add("noexec")
        return options


def _escape(value: str) -> str:
    """An option's value for libfuse: commas and backslashes escaped."""
    return value.replace("\\", "\\\\").replace(",", "\\,")
