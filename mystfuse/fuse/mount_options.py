"""What a mount can be told."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
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
    directory: int | None = None
    """A descriptor (O_PATH) of the directory to mount on: nothing can take its place. None: go by the name."""
    descriptor: int | None = None
    """A /dev/fuse that somebody else has mounted there already."""
    nonempty: bool = False
    """Mount over whatever is there, a mount of ours as well."""
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
    owner: tuple[int, int] = field(default_factory=lambda: (os.getuid(), os.getgid()))
    """The user and the group who mount; the daemon may become others."""

    @property
    def shown_name(self) -> str:
        """The source in the mount table: what is not printable ASCII as ``?``."""
        return "".join(char if char.isascii() and char.isprintable() else "?" for char in self.fsname)

    def fuse_options(self) -> set[str]:
        """The options for libfuse and fusermount3, in the ASCII they take."""
        options = {
            "ro" if self.read_only else "rw",
            "noatime",
            "default_permissions",
            "subtype=mystfuse",
            f"fsname={_escape(self.shown_name)}",
            "suid" if self.suid else "nosuid",
            "dev" if self.dev else "nodev",
        }
        if self.allow_other:
            options.add("allow_other")
        if self.noexec:
            options.add("noexec")
        return options


def _escape(value: str) -> str:
    """An option's value for libfuse: commas and backslashes escaped."""
    return value.replace("\\", "\\\\").replace(",", "\\,")
