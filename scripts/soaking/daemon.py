"""The mount under test and its daemon: started under a memory limit, sampled every second, ended, and judged."""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.tools import BenchmarkError, mystfuse_command, run

from mystfuse.container.resource_limits import limited_resources
from mystfuse.mounting.mount_table import find_mount

_PR_SET_CHILD_SUBREAPER = 36
"""prctl(2)"""
_TICKS = os.sysconf("SC_CLK_TCK")


def adopt_orphans() -> None:
    """Make orphaned daemons our children, so that we see how they end, and that none is left. Raises OSError."""
    if ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1):
        raise OSError("prctl(PR_SET_CHILD_SUBREAPER) failed")


@dataclass(frozen=True, slots=True)
class Sample:
    """The daemon's state at one moment."""

    second: float
    """Seconds since the load began."""
    rss: int
    """Bytes in memory."""
    overlay: int
    """Bytes in memory by the overlay's own count."""
    store: int
    """Bytes in the overlay's store."""
    threads: int
    descriptors: int
    cpu: float
    """Seconds of processor time since its start."""
    operations: dict[str, int]
    """Operations so far, by kind."""


class Daemon:
    """A mount in the background; the end of ``with`` leaves nothing of it.

    Args:
        options: of ``mystfuse mount``.
        memory: the daemon's memory limit in bytes; None for none.
    """

    def __init__(self, image: Path, mountpoint: Path, log: Path, options: Sequence[str], memory: int | None) -> None:
        self.mountpoint = mountpoint
        self.samples: list[Sample] = []
        self.peak = 0
        """The maximum of bytes in memory."""
        self.limited_by = ""
        self.status: dict[str, Any] = {}
        """The last contents of ``status.json``."""
        self._image, self._log, self._options, self._memory = image, log, options, memory
        self._pid = 0
        self._stack = ExitStack()
        self._stop = threading.Event()
        self._start = 0.0

    def __enter__(self) -> Daemon:
        limits = self._stack.enter_context(limited_resources(self._memory))
        words = [*mystfuse_command(), "mount", f"--log-file={self._log}", *self._options]
        command = [*words, os.fspath(self._image), os.fspath(self.mountpoint)]
        result = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, preexec_fn=limits.enter
        )
        if result.returncode:
            self._stack.close()
            raise BenchmarkError((result.stderr.strip().splitlines() or ["mystfuse mount failed"])[-1])
        self._pid = self.read_status()["pid"]
        if self._memory:
            in_group = "/mystfuse-" in Path(f"/proc/{self._pid}/cgroup").read_text()
            self.limited_by = "a control group" if in_group else "RLIMIT_DATA"
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        if self._pid:
            # ``end`` was not called, or failed: by force.
            with suppress(BenchmarkError):
                run(*mystfuse_command(), "umount", "--lazy", "--timeout=10", self.mountpoint)
            self._kill()
        self._stack.close()

    def _kill(self) -> None:
        if os.waitpid(self._pid, os.WNOHANG)[0] == 0:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
        self._pid = 0
        if find_mount(str(self.mountpoint)) is not None:
            with suppress(BenchmarkError):
                run(*mystfuse_command(), "umount", "--stale", self.mountpoint)

    def read_status(self) -> dict[str, Any]:
        """The present contents of ``status.json``."""
        self.status = json.loads((self.mountpoint / ".mystfuse/status.json").read_text())
        return self.status

    def watch(self, operations: Callable[[], dict[str, int]]) -> None:
        """Take a sample every second, in a thread, until the end."""
        self._start = time.monotonic()
        threading.Thread(target=self._watch, args=(operations,), daemon=True).start()

    def _watch(self, operations: Callable[[], dict[str, int]]) -> None:
        # Two threads: if the mount hangs, /proc does not.
        threading.Thread(target=self._watch_status, daemon=True).start()
        while not self._stop.wait(1 - (time.monotonic() - self._start) % 1):
            # KeyError: the status of a process that has just ended says nothing of memory.
            with suppress(OSError, ValueError, KeyError):
                self._sample(operations())

    def _watch_status(self) -> None:
        while not self._stop.wait(1):
            with suppress(OSError, ValueError):
                self.read_status()

    def _sample(self, operations: dict[str, int]) -> None:
        proc = Path(f"/proc/{self._pid}")
        status = dict(re.findall(r"^(\w+):\s+(\d+)", (proc / "status").read_text(), re.MULTILINE))
        # The name may contain any character; the fields are counted behind it (proc(5)).
        times = (proc / "stat").read_text().rpartition(")")[2].split()
        self.peak = int(status["VmHWM"]) * 1024
        self.samples.append(
            Sample(
                time.monotonic() - self._start,
                int(status["VmRSS"]) * 1024,
                self.status["overlay_used"],
                self.status.get("overlay_store_used", 0),
                int(status["Threads"]),
                len(os.listdir(proc / "fd")),
                (int(times[11]) + int(times[12])) / _TICKS,
                operations,
            )
        )

    def has_ended(self) -> bool:
        """Whether it is gone although we have not unmounted it."""
        if not self._pid:
            return True
        found, _ = os.waitpid(self._pid, os.WNOHANG)
        if found:
            self._pid = 0
            if find_mount(str(self.mountpoint)) is not None:
                with suppress(BenchmarkError):
                    run(*mystfuse_command(), "umount", "--stale", self.mountpoint)
        return found != 0

    def end(self) -> list[str]:
        """Unmount; returns the faults of that."""
        self._stop.set()
        wrongs = []
        try:
            run(*mystfuse_command(), "umount", self.mountpoint)
        except BenchmarkError as error:
            return [f"unmounting: {error}"]
        pid, self._pid = self._pid, 0
        _, status = os.waitpid(pid, 0)
        if status:
            wrongs.append(f"the daemon ended with {os.waitstatus_to_exitcode(status)}")
        if find_mount(str(self.mountpoint)) is not None:
            wrongs.append(f"{self.mountpoint} is still mounted")
        return wrongs

    def log_lines(self) -> tuple[list[str], dict[str, int]]:
        """(lines that do not belong in a log, counts of warnings with their numbers left out)."""
        wrong, warnings = [], Counter[str]()
        for line in self._log.read_text(errors="replace").splitlines():
            match = re.match(r"\S+ \S+ mystfuse\[\d+\] (\w+): (.*)", line)
            if match is None:
                # A traceback goes on for several lines.
                if re.match(r"\w+(\.\w+)*(Error|Exception|Missing)\b", line):
                    wrong.append(line)
            elif match[1] in ("ERROR", "CRITICAL"):
                wrong.append(match[2])
            elif match[1] == "WARNING":
                warnings[re.sub(r"\d+", "N", match[2])] += 1
        return wrong, dict(warnings)
