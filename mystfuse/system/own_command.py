"""Our command line, run as a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock, Timer

from mystfuse.errors import ExitStatus, MystfuseError, error_of

_PATIENCE = 10.0
"""Seconds that a process gets to end when it is asked to."""


class OwnCommand:
    """One run of ``mystfuse``, which another thread can stop."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._process: subprocess.Popen[str] | None = None
        self._killer: Timer | None = None
        self._is_stopped = False

    @property
    def was_stopped(self) -> bool:
        """Whether ``stop`` was called after it had begun: it may have left something behind."""
        with self._lock:
            return self._is_stopped and self._process is not None

    def run(self, arguments: Sequence[str | os.PathLike[str]], descriptors: Sequence[int] = ()) -> str:
        """Run it to its end; returns its stdout.

        Args:
            descriptors: above 2; it inherits them.

        Raises:
            MystfuseError: its message; or it was stopped.
        """
        with self._lock:
            if self._is_stopped:
                raise MystfuseError("interrupted")
            # -P: the interpreter and its path are the caller's own, but the current directory is not among them, as it
            # would be for -m.
            process = self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "mystfuse", *(os.fspath(argument) for argument in arguments)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                errors="surrogateescape",
                pass_fds=descriptors,
            )
        try:
            output, errors = process.communicate()
        finally:
            with self._lock:
                if self._killer is not None:
                    self._killer.cancel()
        if process.returncode == 0:
            return output
        message = (errors.splitlines() or [f"mystfuse exited {process.returncode}"])[-1].removeprefix("mystfuse: ")
        try:
            status = ExitStatus(process.returncode)
        except ValueError:
            raise MystfuseError(message) from None
        raise error_of(status, message)

    def stop(self) -> None:
        """Have it end in order, and if it does not within 10 s, by force, with the daemon that it is starting and what
        is below that; from any thread, before it begins (it does not, then), or after its end."""
        with self._lock:
            if self._is_stopped:
                return
            self._is_stopped = True
            if self._process is not None:
                self._process.terminate()
                self._killer = Timer(_PATIENCE, self._kill)
                self._killer.daemon = True
                self._killer.start()

    def _kill(self) -> None:
        assert self._process is not None
        for pid in _descendants(self._process.pid):
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        self._process.kill()


def _descendants(pid: int) -> list[int]:
    """The processes below a process: the daemon that it starts, and what that has started."""
    found: list[int] = []
    with suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            found += [int(child), *_descendants(int(child))]
    return found
