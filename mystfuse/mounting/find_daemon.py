"""Finding the daemon of a mount, by its process name. Nothing here touches the mount itself, which might hang.

Why by name, and not by asking the mount or by a file: docs/adr/0002.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from pathlib import Path

from mystfuse.mounting.mount_table import Mount, fuse_connection
from mystfuse.system.daemon_users import is_own_user

_PR_SET_NAME = 15
"""<linux/prctl.h>"""


def name_this_process(mount: Mount | None) -> None:
    """Name this process after the mount it serves, for ``find_daemon`` and ps(1)."""
    if mount is not None:
        set_process_name(mount.daemon_name)


def set_process_name(name: str) -> None:
    """Name this process ``name``, of which the kernel keeps 15 characters."""
    # Not through /proc/self/comm, which root owns where a process is not dumpable.
    ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode(), 0, 0, 0)


def find_daemon(mount: Mount) -> int | None:
    """A pidfd of the process that serves a mount; None when there is none (it was killed).

    Only processes of the user who mounted count, and for mounts of root also those of the users that root's daemons
    become: no other user can fake a daemon. A process is skipped if the kernel shows (newer ones do, where we may look)
    that it does not serve the mount. The kernel uses a device number again as soon as its mount is gone, while the old
    daemon may still be ending: the youngest process counts, and no zombie.
    """
    found: list[tuple[int, int]] = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            # A process may have any name: bytes, not text.
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
    """The process that serves a mount that looks like ours without a daemon of ours; None if we see none."""
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and _serves(entry, mount):
                name = (entry / "comm").read_bytes().decode(errors="replace").strip()
                return f"process {entry.name} ({name})"
    return None


def _serves(process: Path, mount: Mount) -> bool | None:
    """Whether a process has the descriptor of /dev/fuse that serves a mount; None if we may not see that."""
    has_seen_any = False
    try:
        for descriptor in (process / "fd").iterdir():
            try:
                if os.readlink(descriptor) == "/dev/fuse":
                    connection = fuse_connection(process / "fdinfo" / descriptor.name)
                    if connection == mount.device:
                        return True
                    has_seen_any = has_seen_any or connection is None
            except FileNotFoundError:
                continue
            except OSError:
                # Root without CAP_SYS_PTRACE may list them, but not read them.
                has_seen_any = True
    except OSError:
        return None
    return None if has_seen_any else False
