"""The processes that keep a mount busy, from /proc and the mount table. The mount itself, which might hang, is not
touched."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from mystfuse.mounting.mount_table import Mount, mount_id, mount_ids, mountpoints

_MAX_NAMED = 5


def describe_users(mount: Mount) -> str:
    """One line about a busy mount: which processes use it, or what is mounted below it, and what helps."""
    below = mounts_below(mount)
    if below:
        return f"{below[-1]} is mounted below it: unmount that first"
    users = name_users(mount)
    if not users:
        others = "" if os.geteuid() == 0 else "processes of other users, or "
        users = f"{others}something that no process shows: a loop device, a swap file, an export"
    return f"in use by {users}; --lazy takes it out of the tree now, --force from them too"


def mounts_below(mount: Mount) -> list[str]:
    """What is mounted inside a mount, from the bottom up."""
    return [path for path in mountpoints() if _is_inside(path, mount.mountpoint) and path != mount.mountpoint]


def name_users(mount: Mount) -> str:
    """The processes that use a mount, as far as /proc shows them, and how; the first few by name. Empty: none."""
    users = list(_find_users(mount))
    named = [f"process {pid} ({name}: {what})" for pid, name, what in users[:_MAX_NAMED]]
    if len(users) > _MAX_NAMED:
        named.append(f"{len(users) - _MAX_NAMED} more")
    return ", ".join(named)


def _find_users(mount: Mount) -> Iterator[tuple[int, str, str]]:
    """Processes that use a mount, as far as /proc shows them to us: number, name, and how they use it."""
    ids = mount_ids(mount)
    for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()):
        process = Path("/proc", str(pid))
        with suppress(OSError):
            # A copy of the mount in another namespace does not keep ours busy.
            if os.readlink(process / "ns/mnt") != os.readlink("/proc/self/ns/mnt"):
                continue
            what = _use_of(process, mount, ids)
            if what is not None:
                yield pid, (process / "comm").read_bytes().decode(errors="replace").strip(), what


def _use_of(process: Path, mount: Mount, ids: frozenset[str]) -> str | None:
    """How a process uses a mount, if it does. Reads the links without following them."""
    for name, what in (("cwd", "its current directory"), ("root", "its root directory"), ("exe", "its program")):
        with suppress(OSError):
            if _is_inside(os.readlink(process / name), mount.mountpoint):
                return what
    with suppress(OSError):
        for descriptor in (process / "fd").iterdir():
            with suppress(OSError):
                path = os.readlink(descriptor)
                # The same path may lie in the directory under the mount: our keeper has the mountpoint open.
                if _is_inside(path, mount.mountpoint) and mount_id(descriptor.name, process.name) in ids:
                    return f"{path} is open"
    major, minor = (int(part) for part in mount.device.split(":"))
    with suppress(OSError):
        # proc_pid_maps(5): address, permissions, offset, device, inode, path.
        for line in (process / "maps").read_bytes().splitlines():
            fields = line.split(maxsplit=5)
            if fields[3] == b"%02x:%02x" % (major, minor):
                return f"{os.fsdecode(fields[5]) if len(fields) > 5 else 'a file'} is mapped"
    return None


def _is_inside(path: str, mountpoint: str) -> bool:
    return path == mountpoint or path.startswith(mountpoint.rstrip("/") + "/")
