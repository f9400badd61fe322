"""The kernel's mount table, /proc/self/mountinfo. Nothing here touches a mount of ours, which might hang."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

FSTYPE = "fuse.mystfuse"
_PATIENCE = 5.0
"""Seconds that storage may take to say what a file is, when it is only for a message."""


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of /proc/self/mountinfo that is ours."""

    mountpoint: str
    device: str
    """``major:minor``"""
    source: str
    user_id: int
    """The user who mounted it."""

    @property
    def daemon_name(self) -> str:
        """The process name of its daemon (see ``find_daemon``)."""
        return f"mystfuse:{self.device}"[:15]


def find_mount(mountpoint: str) -> Mount | None:
    """The topmost mount on ``mountpoint`` (absolute), if that is one of ours."""
    return next(reversed(find_mounts(mountpoint)), None)


def find_mounts(mountpoint: str) -> list[Mount | None]:
    """All mounts on ``mountpoint`` (absolute), from the bottom up; None for each that is not ours."""
    return [line.mount for line in _read_mountinfo() if line.mountpoint == mountpoint]


def is_covered(mount: Mount) -> bool:
    """Whether a mount that still exists has another mount on top."""
    there = find_mounts(mount.mountpoint)
    return mount in there and there[-1] != mount


def own_mounts() -> list[Mount]:
    """Our mounts, from the bottom up; of one that is in several places (bind mounts, shared ones) the first."""
    found: dict[str, Mount] = {}
    for line in _read_mountinfo():
        if line.mount is not None:
            found.setdefault(line.mount.device, line.mount)
    return list(found.values())


def own_mountpoints() -> list[str]:
    """The mountpoints of our mounts, the latest first."""
    return [line.mountpoint for line in _read_mountinfo() if line.mount is not None][::-1]


def describe_absence(path: str) -> str:
    """One line about a path (absolute, without links) at which ``find_mount`` has found no mount. It looks at a file
    that is there, but not for long."""
    said = "nothing of mystfuse's is mounted there"
    for mount in [line.mount for line in _read_mountinfo() if line.mount is not None][::-1]:
        if path.startswith(mount.mountpoint + "/"):
            return f"{said}: it lies in what is mounted on {mount.mountpoint}"
        if path == mount.source:
            return f"{said}: it is the image that is mounted on {mount.mountpoint}"
    # Only here: when something is wrong already.
    from mystfuse.image.identify import identify_path

    kind = identify_path(path, _PATIENCE)
    if kind is None or kind.name == "directory":
        return f"{said} (mystfuse status lists what is)"
    return f"{said}: it is {kind.title}, not a mountpoint"


def mountpoints() -> list[str]:
    """The places of all mounts, from the bottom up."""
    return [line.mountpoint for line in _read_mountinfo()]


def mount_ids(mount: Mount) -> frozenset[str]:
    """The kernel's mount IDs of a mount, as in /proc/PID/fdinfo: one, or more where it is mounted on itself."""
    return frozenset(line.mount_id for line in _read_mountinfo() if line.mount == mount)


def mount_id(descriptor: int | str, process: str = "self") -> str | None:
    """The ID of the mount in which a process has a file open; None if the kernel does not say. Asks no daemon."""
    found = re.search(r"^mnt_id:\s*(\d+)$", Path(f"/proc/{process}/fdinfo/{descriptor}").read_text(), re.MULTILINE)
    return found[1] if found else None


def find_mount_of(descriptor: int) -> Mount | None:
    """The mount that a descriptor of /dev/fuse serves; None if the kernel does not say (older ones do not)."""
    with suppress(OSError):
        device = fuse_connection(Path(f"/proc/self/fdinfo/{descriptor}"))
        for line in _read_mountinfo():
            if line.mount is not None and line.mount.device == device:
                return line.mount
    return None


class _Line(NamedTuple):
    mount_id: str
    mountpoint: str
    mount: Mount | None
    """The mount, if it is one of ours."""


def _read_mountinfo() -> Iterator[_Line]:
    """Every mount, from the bottom up. Source: proc_pid_mountinfo(5)."""
    for line in Path("/proc/self/mountinfo").read_bytes().decode(errors="surrogateescape").split("\n")[:-1]:
        # 36 35 98:0 /root /mountpoint options [optional fields] - type source super-options
        before, _, after = line.partition(" - ")
        fields, (fstype, source, super_options) = before.split(" "), after.split(" ", 2)
        mountpoint, mount = _unescape(fields[4]), None
        user_id = re.search(r"\buser_id=(\d+)", super_options)
        if fstype == FSTYPE and user_id is not None:
            mount = Mount(mountpoint, fields[2], _unescape(source), int(user_id[1]))
        yield _Line(fields[0], mountpoint, mount)


def fuse_connection(fdinfo: Path) -> str | None:
    """Which mount a descriptor of /dev/fuse serves, as ``major:minor``; None if the kernel does not say."""
    match = re.search(r"^fuse_connection:\s*(\d+)$", fdinfo.read_text(), re.MULTILINE)
    # The connection's number is the device's: FUSE has major number 0, and a minor of 20 bits.
    return f"0:{match[1]}" if match else None


def _unescape(field: str) -> str:
    """mountinfo writes space, tab, newline and backslash as octal."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)
