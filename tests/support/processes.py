"""Facts about processes from /proc."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from tests.support.commands import run

KEEPER = "mystfuse:keeper"
NO_CAPABILITIES = "0" * 16


def has_landlock() -> bool:
    """Whether the kernel has the mount, by its own list, not by the code under test."""
    code = "import ctypes; print(ctypes.CDLL(None).syscall(444, None, 0, 1))"
    return int(run(sys.executable, "-c", code).stdout) > 0


needs_landlock = pytest.mark.skipif(not has_landlock(), reason="the kernel has no Landlock")


def is_running(pid: int) -> bool:
    """Whether the process exists and is no zombie that waits for init to reap it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def keeper_of(pid: int) -> int:
    (keeper,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    assert Path(f"/proc/{keeper}/comm").read_text() == f"{KEEPER}\n"
    return int(keeper)


def proc_status(task: Path) -> dict[str, str]:
    """The fields of /proc/PID/status or /proc/PID/task/TID/status."""
    return dict(line.split(":\t", 1) for line in (task / "status").read_text().splitlines())


def descriptors_of(pid: int) -> set[str]:
    """The descriptors of a process above 2; sockets and the like by their kind alone."""
    found = (Path(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd") if int(name) > 2)
    return {re.sub(r":\[\d+\]$", "", os.readlink(path)) for path in found}
