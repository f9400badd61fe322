"""Running a program that may take hours, but ends when the process that it needs, or we, end."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import NamedTuple

from mystfuse.errors import MystfuseError
from mystfuse.system.interrupts import interrupts_wait
from mystfuse.system.wait_readable import wait_readable

_KILL_PATIENCE = 5.0
"""Seconds from SIGKILL to the end: in the kernel, where storage hangs, no signal reaches a process."""


class Ended(NamedTuple):
    """How a program ended."""

    status: int
    """Its exit status, or minus the number of the signal that ended it."""
    said: str


def run_program(
    command: Sequence[str],
    environment: Mapping[str, str],
    descriptor: int,
    servers: Sequence[int] = (),
    with_errors: bool = False,
    name: str = "",
) -> Ended:
    """Run a program; returns its stdout.

    Args:
        descriptor: what it inherits beside the standard ones.
        servers: pidfds of processes that it needs: it is killed when one of them has ended, or when we are
            interrupted.
        with_errors: include its stderr.
        name: the program's name in messages, if it is not the first word's.

    Raises:
        MystfuseError: one of ``servers`` has ended.
    """
    # Not a pipe, which would have to be read meanwhile.
    with os.fdopen(os.memfd_create("mystfuse"), "w+", errors="replace") as said, ExitStack() as stack:
        with interrupts_wait():
            process = subprocess.Popen(
                command,
                env=environment,
                pass_fds=[descriptor],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said if with_errors else subprocess.DEVNULL,
            )
            stack.callback(_end, process)
        pidfd = os.pidfd_open(process.pid)
        try:
            ended = wait_readable([pidfd, *servers])
        finally:
            os.close(pidfd)
        if pidfd not in ended:
            raise MystfuseError(f"{name or os.path.basename(command[0])}: a process that it needs has ended")
        status = process.wait()
        said.seek(0)
        return Ended(status, said.read())


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process that has not ended."""
    if process.returncode is None:
        process.kill()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_KILL_PATIENCE)
