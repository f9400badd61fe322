"""A mount for mke2fs alone: over an empty temporary file or directory, served by a child process."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from mystfuse.errors import ExitStatus, MountError
from mystfuse.fuse.mount_options import MountOptions
from mystfuse.mounting.daemonize import Report, end_child, run_in_background
from mystfuse.mounting.keeper_client import Keeper
from mystfuse.mounting.mount_table import find_mount
from mystfuse.mounting.unmount import unmount

_PATIENCE = 3.0
"""Seconds for the child to end; by then it has written everything."""
_ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Serve = Callable[[Keeper, MountOptions, Callable[[], None]], None]
"""Mounts and serves in the child, and calls the last argument when the mount answers; raises MountError."""


class PrivateMount:
    """Only the user who runs this can open it (and root, if that is root). However the process ends, the child and its
    keeper unmount and remove it.

    Args:
        name: of what is mounted over.
        is_directory: whether that is a directory.
        checks: whether the kernel checks permissions; without, its user may read everything.
        keep: descriptors that the child needs.
        serve: what the child does.
    """

    def __init__(self, name: str, is_directory: bool, checks: bool, keep: frozenset[int], serve: Serve) -> None:
        self.path = ""
        self.server: int | None = None
        """pidfd of the child."""
        self._name = name
        self._is_directory = is_directory
        self._checks = checks
        self._keep = keep
        self._serve = serve
        self._child: int | None = None

    def begin(self) -> None:
        """Mount; after any error, call ``end`` as well.

        Raises:
            MountError: mounting failed.
        """
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING_SIGNALS)
        try:
            self.path = str(Path(tempfile.mkdtemp(prefix="mystfuse-")).resolve() / self._name)
        finally:
            # Raises an error that has come meanwhile.
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        if self._is_directory:
            os.mkdir(self.path, 0o700)
        else:
            Path(self.path).touch(mode=0o600)
        started = run_in_background(self._run, self._keep, dies_with_parent=True)
        if started.status is not ExitStatus.DONE:
            raise MountError(started.message)
        self._child = started.pid
        self.server = os.pidfd_open(started.pid)

    def end(self) -> None:
        """Unmount, and remove what was mounted over."""
        # A second ^C must not interrupt it halfway.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING_SIGNALS)
        try:
            if self.path and find_mount(self.path) is not None:
                unmount(self.path, lazy=True)
        finally:
            if self._child is not None:
                # It would end by itself after the unmount; but a mount namespace that was made meanwhile has a copy of
                # the mount.
                end_child(self._child, _PATIENCE, signal.SIGTERM)
            if self.server is not None:
                os.close(self.server)
                self.server = None
            self._remove()
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    def _run(self, report: Report) -> int:
        """Runs in the child."""
        options = MountOptions(
            self.path,
            "mkext2",
            read_only=self._is_directory,
            noexec=True,
            fastpath=False,
            default_permissions=self._checks,
        )
        # By then the process that started us may have been killed, and we have no access to remove anything.
        keeper = Keeper(options, self._remove, ("unlink", "unlinkat", "rmdir"))
        try:
            # Needed when the process that started us is killed before a loop listens.
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            self._serve(keeper, options, lambda: report(ExitStatus.DONE, ""))
        except MountError as error:
            report(error.exit_status, str(error))
            return error.exit_status
        finally:
            keeper.close()
        return ExitStatus.DONE

    def _remove(self) -> None:
        # Each by itself: the child may have been ended between the two.
        with suppress(OSError):
            (os.rmdir if self._is_directory else os.unlink)(self.path)
        with suppress(OSError):
            os.rmdir(os.path.dirname(self.path))
