"""A file that takes plaintext, and of which only ciphertext reaches the disk: mke2fs makes encrypted images in it.

A child process serves it through FUSE, mounted over an empty temporary file.
"""

from __future__ import annotations

import math
import os
import signal
import tempfile
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType

from mystfuse.crypto.sector_ciphers import XtsCipher
from mystfuse.devices.patience import wait_for_storage
from mystfuse.errors import ExitStatus, MountError, MystfuseError
from mystfuse.fuse.mount_options import MountOptions
from mystfuse.fuse.requirements import require_fuse
from mystfuse.mounting.daemonize import Report, end_child, run_in_background
from mystfuse.mounting.keeper_client import Keeper
from mystfuse.mounting.mount_table import find_mount
from mystfuse.mounting.unmount import unmount
from mystfuse.system.atomic_file import AtomicFile
from mystfuse.system.confinement import confine

_PATIENCE = 3.0
"""Seconds for the child to end; by then it has written everything."""
_ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class EncryptedFile:
    """The plaintext of what is behind byte ``payload_offset`` of ``target``, while the ``with`` block runs.

    Only the user who runs this can open it (and root, if that is root). What has not been written reads as zeros;
    ``encrypt_zeros`` makes that true of the target as well.
    """

    def __init__(self, target: AtomicFile, payload_offset: int, cipher: XtsCipher) -> None:
        self.target = target.target
        self.fd = -1
        self.server: int | None = None
        self._target_fd = target.fd
        self._payload_offset = payload_offset
        self._cipher = cipher
        self._mountpoint = ""
        self._child: int | None = None

    @property
    def path(self) -> str:
        """A path that names the file for a child process that inherits ``fd``."""
        return f"/proc/self/fd/{self.fd}"

    def __enter__(self) -> EncryptedFile:
        """Raises MountError when FUSE is not available."""
        require_fuse()
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING_SIGNALS)
        try:
            self._mountpoint = str(Path(tempfile.mkdtemp(prefix="mystfuse-")).resolve() / "plaintext")
            # Raises an error that has come meanwhile.
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            Path(self._mountpoint).touch(mode=0o600)
            keep = frozenset({self._target_fd})
            started = run_in_background(self._serve, keep, dies_with_parent=True)
            if started.status is not ExitStatus.DONE:
                raise MountError(started.message)
            self._child = started.pid
            self.server = os.pidfd_open(started.pid)
            self.fd = os.open(self._mountpoint, os.O_RDWR | os.O_CLOEXEC)
        except BaseException:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            self._take_down()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Raises MystfuseError when a write failed."""
        try:
            if kind is None:
                # Now the kernel writes its dirty pages, and reports those that failed.
                wait_for_storage(partial(os.fsync, self.fd), str(self.target), math.inf)
        except OSError as failure:
            raise MystfuseError(f"{self.target}: cannot be written: {failure.strerror}") from failure
        finally:
            # In this order: closing waits for the child, and after a failure that may hang.
            self._take_down()
            # It reports nothing beyond fsync: its daemon has ended by now.
            with suppress(OSError):
                os.close(self.fd)

    def _take_down(self) -> None:
        # A second ^C must not interrupt it halfway.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING_SIGNALS)
        try:
            if find_mount(self._mountpoint) is not None:
                unmount(self._mountpoint, lazy=True)
        finally:
            if self._child is not None:
                # It would end by itself after the unmount; but a mount namespace that was made meanwhile has a copy of
                # the mount.
                end_child(self._child, _PATIENCE, signal.SIGTERM)
            if self.server is not None:
                os.close(self.server)
            _remove(self._mountpoint)
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    def _serve(self, report: Report) -> int:
        """Runs in the child."""
        options = MountOptions(self._mountpoint, "mkext2", noexec=True, fastpath=False)
        # By then the process that started us may have been killed, and we have no access to remove anything.
        keeper = Keeper(options, lambda: _remove(self._mountpoint), ("unlink", "unlinkat", "rmdir"))
        try:
            # Needed when the process that started us is killed before a loop listens.
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            from mystfuse.build.plaintext_file import PlaintextFile, serve

            confine()
            file = PlaintextFile(self._target_fd, self._payload_offset, self._cipher, options.owner)
            serve(file, keeper, lambda: report(ExitStatus.DONE, ""))
        except MountError as error:
            report(error.exit_status, str(error))
            return error.exit_status
        finally:
            keeper.close()
        return ExitStatus.DONE


def _remove(mountpoint: str) -> None:
    # Each by itself: the child may have been ended between the two.
    with suppress(OSError):
        os.unlink(mountpoint)
    with suppress(OSError):
        os.rmdir(os.path.dirname(mountpoint))
