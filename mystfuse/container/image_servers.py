"""The processes that serve the mounts of a container: the image that is its root, and further ones inside it."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from functools import partial

from mystfuse.errors import ExitStatus, error_of
from mystfuse.mounting.daemon import serve_mount
from mystfuse.mounting.daemonize import run_in_background
from mystfuse.mounting.mount_job import MountJob
from mystfuse.system.wait_readable import wait_readable

_STOP_TIMEOUT = 10.0
"""Seconds that a daemon gets to end."""


class ImageServers:
    """The daemons of a container's mounts; they end with this process."""

    def __init__(self) -> None:
        self.pidfds: list[int] = []
        self._names: list[str] = []

    def start(self, job: MountJob) -> None:
        """Mount; raises the error that the daemon reports."""
        started = run_in_background(partial(serve_mount, job), job.descriptors, dies_with_parent=True)
        job.close()
        if started.status is not ExitStatus.DONE:
            raise error_of(started.status, started.message)
        self.pidfds.append(os.pidfd_open(started.pid))
        self._names.append(job.source.name)

    def stop(self) -> None:
        """End them all, the last one first, and wait for it."""
        for pidfd in reversed(self.pidfds):
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGTERM)
            if not wait_readable([pidfd], _STOP_TIMEOUT):
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.close(pidfd)
        self.pidfds.clear()

    def name(self, pidfd: int) -> str:
        return self._names[self.pidfds.index(pidfd)]
