"""What a mount can be told."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum


class OnCorruption(Enum):
    """What a block that is not what its digest says does, besides failing the request that needed it."""

    EIO = "eio"
    UNMOUNT = "unmount"


@dataclass(frozen=True, slots=True)
class MountOptions:
    """How to mount. Times are seconds."""

    mountpoint: str
    """Absolute."""
    fsname: str
    """What the mount table shows as the source."""
    descriptor: int | None = None
    """A /dev/fuse that somebody else has mounted there already."""
    read_only: bool = False
    overlay_limit: int = 0
    """Bytes that what is written may take up in memory."""
    overlay_store: int | None = None
    """Descriptor of a file for what memory has no room for."""
    allow_other: bool = False
    suid: bool = False
    dev: bool = False
    noexec: bool = False
    uid: int | None = None
    """Show everything as owned by this user."""
    gid: int | None = None
    map_root: bool = False
    """Show what user and group 0 of the image own as owned by whoever mounts."""
    xattr: bool = True
    acl: bool = True
    """Let the kernel enforce POSIX ACLs."""
    control: bool = True
    """Show the control directory ``.mystfuse``."""
    io_timeout: float = 30.0
    idle_timeout: float = math.inf
    on_corruption: OnCorruption = OnCorruption.EIO

    @property
    def fuse_mountpoint(self) -> str:
        """The mountpoint for libfuse: where to mount, or which descriptor is mounted already."""
        return self.mountpoint if self.descriptor is None else f"/dev/fd/{self.descriptor}"

    def fuse_options(self) -> set[str]:
        """The options for libfuse, in the ASCII it takes."""
        options = {
            "ro" if self.read_only else "rw",
            "noatime",
            "default_permissions",
            "subtype=mystfuse",
            f"fsname={_escape(self.fsname)}",
            "suid" if self.suid else "nosuid",
            "dev" if self.dev else "nodev",
        }
        if self.allow_other:
            options.add("allow_other")
        if self.noexec:
            options.add("noexec")
        return options


def _escape(fsname: str) -> str:
    """An option's value for libfuse: commas and backslashes escaped, bytes that are not printable ASCII as ``?``."""
    text = "".join(char if char.isascii() and char.isprintable() else "?" for char in fsname)
    return text.replace("\\", "\\\\").replace(",", "\\,")
