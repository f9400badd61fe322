"""Running a program that may take hours, but ends when the process that it needs, or we, end."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from mystfuse.errors import MystfuseError
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
    server: int | None,
    with_errors: bool = False,
) -> Ended:
    """Run a program; returns its stdout.

    Args:
        descriptor: what it inherits beside the standard ones.
        server: pidfd of a process that it needs: it is killed when that has ended, or when we are
            interrupted.
        with_errors: include its stderr.

    Raises:
        MystfuseError: ``server`` has ended.
    """
    # Not a pipe, which would have to be read meanwhile.
    with os.fdopen(os.memfd_create("mystfuse"), "w+", errors="replace") as said:
        process = subprocess.Popen(
            command,
            env=environment,
            pass_fds=[descriptor],
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said if with_errors else subprocess.DEVNULL,
        )
        try:
            pidfd = os.pidfd_open(process.pid)
            try:
                ended = wait_readable([pidfd] if server is None else [pidfd, server])
            finally:
                os.close(pidfd)
            if pidfd not in ended:
                raise MystfuseError(f"{os.path.basename(command[0])}: the process that encrypts for it has ended")
            status = process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_KILL_PATIENCE)
        said.seek(0)
        return Ended(status, said.read())
