"""A machine that only records mounts, for blocks that are cancelled at every point."""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from pathlib import Path

from mystfuse.errors import MountError, MystfuseError
from mystfuse.mounting.mount_table import Mount

MOUNT = Mount("/m", "0:99", "image", 0)


class Machine:
    """A machine with at most one mount, made by a process that the test can stop before and after mounting."""

    def __init__(self) -> None:
        self.mount: Mount | None = None
        self.commands = 0
        self.lazily = 0
        self.failure: type[MountError] | None = None
        self.hangs_when_mounted = False

    def find_mount(self, path: str) -> Mount | None:
        return self.mount

    def unmount_and_wait(self, path: str, lazy: bool, timeout: float) -> None:
        assert 0 < timeout <= 30
        if self.failure is not None and not lazy:
            raise self.failure("as ordered")
        self.mount = None
        self.lazily += lazy

    def command(self) -> Command:
        return Command(self)


class Command:
    """Replaces OwnCommand."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._stopped = threading.Event()

    def run(self, arguments: object, descriptors: object = ()) -> str:
        if self._stopped.is_set():
            raise MystfuseError("interrupted")
        self._machine.commands += 1
        try:
            self._wait_a_moment("ended before it had mounted")
            self._machine.mount = MOUNT
            while self._machine.hangs_when_mounted and not self._stopped.is_set():
                time.sleep(0.001)
            self._wait_a_moment("ended when it had mounted")
            return ""
        finally:
            self._machine.commands -= 1

    def _wait_a_moment(self, message: str) -> None:
        if self._stopped.wait(0.001):
            # Ending takes a while: a caller that does not wait for it finishes before.
            time.sleep(0.02)
            raise MystfuseError(message)

    def stop(self) -> None:
        self._stopped.set()

    @property
    def was_stopped(self) -> bool:
        return self._stopped.is_set()


def processes_naming(path: Path) -> list[int]:
    """Processes with a path in their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and os.fsencode(path) in (entry / "cmdline").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found
