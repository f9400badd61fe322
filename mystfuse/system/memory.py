"""The amount of memory that this process may still take."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_CGROUP_ROOT = Path("/sys/fs/cgroup")
_noted = 1 << 30


def note_available_memory() -> None:
    """Read the files now, for a process that is about to be confined, and loses access to them."""
    global _noted
    _noted = available_memory()


def available_memory(proc: Path = Path("/proc"), cgroup_root: Path = _CGROUP_ROOT) -> int:
    """Bytes: what the system has available, or what is left to our control group (and those around it), if less.

    Sources: proc(5), MemAvailable; the kernel's cgroup-v2.rst, memory.max and memory.current; cgroup-v1/memory.rst.
    """
    try:
        memory = (proc / "meminfo").read_text()
    except OSError:
        # In a confined daemon.
        return _noted
    match = re.search(r"^MemAvailable:\s+(\d+) kB", memory, re.MULTILINE)
    available = int(match[1]) * 1024 if match else 1 << 30
    for place, limit_name, used_name in _groups(proc, cgroup_root):
        with suppress(OSError, ValueError):
            limit, used = (int((place / name).read_text()) for name in (limit_name, used_name))
            available = min(available, max(limit - used, 0))
    return available


def group_limit(proc: Path = Path("/proc"), cgroup_root: Path = _CGROUP_ROOT) -> int | None:
    """Bytes that our control group and those around it may have at most; None where there is no limit."""
    limits: list[int] = []
    for place, name, _ in _groups(proc, cgroup_root):
        with suppress(OSError, ValueError):
            limits.append(int((place / name).read_text()))
    return min(limits, default=None)


def _groups(proc: Path, cgroup_root: Path) -> Iterator[tuple[Path, str, str]]:
    """Our control group and those around it: its directory, and the names of the files with its limit ("max" is none)
    and with what it uses. The root group has no such files, and a container may not see those above it."""
    try:
        groups = (proc / "self/cgroup").read_text()
    except OSError:
        # A kernel without control groups.
        return
    for line in groups.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            directory, names = cgroup_root, ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            directory, names = cgroup_root / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        group = directory / path.lstrip("/")
        for place in (group, *group.parents):
            yield place, *names
            if place == directory:
                break
