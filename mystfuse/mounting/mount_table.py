"""The kernel's mount table, and which process serves which mount. Never touches a mount itself: it might hang."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mystfuse.system.daemon_users import is_own_user

FSTYPE = "fuse.mystfuse"
_PR_SET_NAME = 15
"""<linux/prctl.h>"""


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of /proc/self/mountinfo that is ours."""

    mountpoint: str
    device: str
    """``major:minor``"""
    source: str
    user_id: int
    """Who mounted it."""

    @property
    def daemon_name(self) -> str:
        """What the process that serves it calls itself (see ``name_this_process``)."""
        return f"mystfuse:{self.device}"[:15]


def find_mount(mountpoint: str) -> Mount | None:
    """The topmost mount on ``mountpoint`` (absolute), if that is one of ours."""
    found: Mount | None = None
    for path, mount in _mounts():
        if path == mountpoint:
            found = mount
    return found


def find_mounts(mountpoint: str) -> list[Mount | None]:
    """All mounts on ``mountpoint`` (absolute), from the bottom up; None for each that is not ours."""
    return [mount for path, mount in _mounts() if path == mountpoint]


def is_covered(mount: Mount) -> bool:
    """Whether a mount is still there, and another on top of it."""
    there = find_mounts(mount.mountpoint)
    return mount in there and there[-1] != mount


def own_mountpoints() -> list[str]:
    """Where mounts of ours are, the latest first."""
    return [path for path, mount in _mounts() if mount is not None][::-1]


def describe_absence(path: str) -> str:
    """What to say of a path (absolute, without links) at which ``find_mount`` has found nothing."""
    said = "nothing of mystfuse's is mounted there"
    for mountpoint, mount in [*_mounts()][::-1]:
        if mount is not None and path.startswith(mountpoint + "/"):
            return f"{said}: it lies in what is mounted on {mountpoint}"
        if mount is not None and path == mount.source:
            return f"{said}: it is the image that is mounted on {mountpoint}"
    return said


def mountpoints() -> list[str]:
    """Where anything is mounted, from the bottom up."""
    return [path for path, _ in _mounts()]


def mount_ids(mount: Mount) -> frozenset[str]:
    """What the kernel calls a mount, as in /proc/PID/fdinfo: one number, or more where it is mounted on itself."""
    lines = Path("/proc/self/mountinfo").read_bytes().decode(errors="surrogateescape").split("\n")[:-1]
    fields = (line.split(" ", 5) for line in lines)
    return frozenset(each[0] for each in fields if (each[2], _unescape(each[4])) == (mount.device, mount.mountpoint))


def find_mount_of(descriptor: int) -> Mount | None:
    """The mount that a descriptor of /dev/fuse serves; None if the kernel does not say (older ones do not)."""
    with suppress(OSError):
        device = _fuse_connection(Path(f"/proc/self/fdinfo/{descriptor}"))
        for _, mount in _mounts():
            if mount is not None and mount.device == device:
                return mount
    return None


def _mounts() -> Iterator[tuple[str, Mount | None]]:
    """Every mount from the bottom up: its mountpoint, and what it is, if it is one of ours."""
    for line in Path("/proc/self/mountinfo").read_bytes().decode(errors="surrogateescape").split("\n")[:-1]:
        # 36 35 98:0 /root /mountpoint options [optional fields] - type source super-options
        before, _, after = line.partition(" - ")
        fields, (fstype, source, super_options) = before.split(" "), after.split(" ", 2)
        mountpoint = _unescape(fields[4])
        user_id = re.search(r"\buser_id=(\d+)", super_options)
        is_ours = fstype == FSTYPE and user_id is not None
        yield (
            mountpoint,
            Mount(mountpoint, fields[2], _unescape(source), int(user_id[1])) if is_ours and user_id else None,
        )


def name_this_process(mount: Mount | None) -> None:
    """Call this process after the mount it serves, so that ``find_daemon`` finds it and ps(1) tells it apart."""
    if mount is not None:
        set_process_name(mount.daemon_name)


def set_process_name(name: str) -> None:
    """Call this process ``name``, of which 15 characters count."""
    # Not through /proc/self/comm, which belongs to root in a process that is not dumpable.
    ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode(), 0, 0, 0)


def find_daemon(mount: Mount) -> int | None:
    """A pidfd of the process that serves a mount; None when there is none (it was killed).

    Only processes of the user who mounted count, and for mounts of root those of the users that daemons of root become:
    nobody else can pass theirs off as a daemon. Nor do those of them that do not serve the mount, where the kernel says
    who does (older ones do not) and we may see it. A device number is used again as soon as its mount is gone, while
    the daemon of that one is still ending: the youngest process counts, and none that has ended and only waits to be
    reaped.
    """
    found: list[tuple[int, int]] = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            # Anybody may call a process anything: bytes, not text.
            if (entry / "comm").read_bytes() != f"{mount.daemon_name}\n".encode():
                continue
            user = entry.stat().st_uid
            if user != mount.user_id and (mount.user_id != 0 or not is_own_user(user)):
                continue
            # proc_pid_stat(5): the fields after the name, which may hold blanks; state is field 3, starttime field 22.
            fields = (entry / "stat").read_bytes().rpartition(b")")[2].split()
            if fields[0] == b"Z" or _serves(entry, mount) is False:
                continue
            found.append((int(fields[19]), int(entry.name)))
        except OSError:
            continue
    with suppress(OSError):
        return os.pidfd_open(max(found)[1]) if found else None
    return None


def find_other_server(mount: Mount) -> str | None:
    """What serves a mount that looks like ours and is no daemon of ours; None if we can see nothing that does."""
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and _serves(entry, mount):
                name = (entry / "comm").read_bytes().decode(errors="replace").strip()
                return f"process {entry.name} ({name})"
    return None


def _serves(process: Path, mount: Mount) -> bool | None:
    """Whether a process has the descriptor of /dev/fuse that serves a mount; None if that cannot be seen."""
    has_seen_any = False
    try:
        for descriptor in (process / "fd").iterdir():
            try:
                if os.readlink(descriptor) == "/dev/fuse":
                    connection = _fuse_connection(process / "fdinfo" / descriptor.name)
                    if connection == mount.device:
                        return True
                    has_seen_any = has_seen_any or connection is None
            except FileNotFoundError:
                continue
            except OSError:
                # Root without CAP_SYS_PTRACE may list them, and no more.
                has_seen_any = True
    except OSError:
        return None
    return None if has_seen_any else False


def _fuse_connection(fdinfo: Path) -> str | None:
    """Which mount a descriptor of /dev/fuse serves, as ``major:minor``; None if the kernel does not say."""
    match = re.search(r"^fuse_connection:\s*(\d+)$", fdinfo.read_text(), re.MULTILINE)
    # The connection's number is the device's: FUSE has major number 0, and a minor of 20 bits.
    return f"0:{match[1]}" if match else None


def _unescape(field: str) -> str:
    """mountinfo writes space, tab, newline and backslash as octal."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)
