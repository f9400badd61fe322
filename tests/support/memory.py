"""What a process takes of memory."""

from __future__ import annotations

from pathlib import Path


def memory_of(pid: int, name: str) -> int:
    """Bytes, by a name that /proc/PID/status has: ``VmRSS``, ``VmHWM``."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) << 10
