"""Bounding the memory of a program and everything it starts.

A control group (version 2) bounds them together, files in memory included. Where none can be had, each process is
bounded by itself: its private memory (RLIMIT_DATA). Sources: the kernel's cgroup-v2.rst, setrlimit(2).
"""

from __future__ import annotations

import errno
import os
import re
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_CGROUP_ROOTS = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))
"""Where version 2 is mounted: alone, or beside version 1."""
_PREFIX = "mystfuse-"


@contextmanager
def limited_memory(size: int | None) -> Iterator[Callable[[], None] | None]:
    """Bound the memory of a program.

    Args:
        size: bytes; None for no bound.

    Yields:
        What the child process is to call before it executes the program; None if there is nothing to call. The
        program, and all that it has started, must have ended when the block ends.
    """
    if size is None:
        yield None
        return
    group = make_memory_group(size)
    if group is None:
        yield lambda: _limit_private_memory(size)
        return
    processes = group / "cgroup.procs"
    try:
        yield lambda: _write(processes, "0")
    finally:
        _remove(group)


def _limit_private_memory(size: int) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    limit = size if most == resource.RLIM_INFINITY else min(size, most)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def make_memory_group(size: int, proc: Path = Path("/proc"), roots: tuple[Path, ...] = _CGROUP_ROOTS) -> Path | None:
    """A new control group of at most ``size`` bytes, beside our own or in it; None if the system does not let us."""
    try:
        match = re.search(r"^0::/(.*)$", (proc / "self/cgroup").read_text(), re.MULTILINE)
    except OSError:
        return None
    root = next((root for root in roots if (root / "cgroup.controllers").exists()), None)
    if match is None or root is None:
        return None
    own = root / match[1]
    # Only the root can have both processes and groups with controllers in it; elsewhere the parent is where there are.
    for place in (own, own.parent) if own != root else (own,):
        with suppress(OSError):
            if "memory" not in (place / "cgroup.subtree_control").read_text().split():
                continue
            _remove_dead_groups(place)
            group = place / f"{_PREFIX}{os.getpid()}"
            group.mkdir()
            try:
                _write(group / "memory.max", str(size))
                _write(group / "memory.oom.group", "1")
                with suppress(OSError):
                    # Not there without swap.
                    _write(group / "memory.swap.max", "0")
                if not os.access(group / "cgroup.procs", os.W_OK) or not os.access(place / "cgroup.procs", os.W_OK):
                    raise PermissionError
            except OSError:
                group.rmdir()
                raise
            return group
    return None


def _remove_dead_groups(place: Path) -> None:
    """Remove what runs that were killed have left behind, one that had our number too. A group that is in use cannot
    be removed."""
    for group in place.glob(f"{_PREFIX}*"):
        number = group.name.removeprefix(_PREFIX)
        if number == str(os.getpid()) or (number.isdecimal() and not Path(f"/proc/{number}").exists()):
            with suppress(OSError):
                group.rmdir()


def _remove(group: Path) -> None:
    """Remove a group whose processes have ended, or will in a moment. What is left then, the next run removes."""
    for _ in range(50):
        try:
            group.rmdir()
            return
        except OSError as error:
            if error.errno != errno.EBUSY:
                return
            time.sleep(0.02)


def _write(path: Path, text: str) -> None:
    # Unbuffered and not created: these are not ordinary files.
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
