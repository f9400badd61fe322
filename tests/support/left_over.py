"""What a process holds: to compare before and after."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path


def left_over() -> set[str]:
    """The open files, threads and children of this process, except the threads that trio keeps for a while."""
    found = {thread.name for thread in threading.enumerate() if not thread.name.startswith("Trio thread")}
    named = {thread.native_id for thread in threading.enumerate()}
    found |= {f"task {task}" for task in map(int, os.listdir("/proc/self/task")) if task not in named}
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            found.add(f"{name}: {os.readlink(f'/proc/self/fd/{name}')}")
    for task in os.listdir("/proc/self/task"):
        with suppress(OSError):
            found |= {f"child {pid}" for pid in Path(f"/proc/self/task/{task}/children").read_text().split()}
    return found
