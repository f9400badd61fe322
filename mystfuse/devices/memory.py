"""How much memory this process may still take."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

_CGROUP_ROOT = Path("/sys/fs/cgroup")


def available_memory(proc: Path = Path("/proc"), cgroup_root: Path = _CGROUP_ROOT) -> int:
    """Bytes: what the system has available, or what is left to our control group (and those around it), if less.

    Sources: proc(5), MemAvailable; the kernel's cgroup-v2.rst, memory.max and memory.current; cgroup-v1/memory.rst.
    """
    match = re.search(r"^MemAvailable:\s+(\d+) kB", (proc / "meminfo").read_text(), re.MULTILINE)
    available = int(match[1]) * 1024 if match else 1 << 30
    try:
        groups = (proc / "self/cgroup").read_text()
    except OSError:
        # A kernel without control groups.
        return available
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
            # "max" is no limit; the root group has no such files, and a container may not see those above it.
            with suppress(OSError, ValueError):
                limit, used = (int((place / name).read_text()) for name in names)
                available = min(available, max(limit - used, 0))
            if place == directory:
                break
    return available
