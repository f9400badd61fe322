"""A file that takes plaintext, and of which only ciphertext reaches the disk: mke2fs makes encrypted images in it.

A child process serves it through FUSE, mounted over an empty temporary file.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import TracebackType

from mystfuse.build.private_mount import PrivateMount
from mystfuse.crypto.sector_ciphers import XtsCipher
from mystfuse.devices.patience import wait_for_storage
from mystfuse.errors import MystfuseError
from mystfuse.fuse.mount_options import MountOptions
from mystfuse.fuse.requirements import require_fuse
from mystfuse.mounting.keeper_client import Keeper
from mystfuse.system.atomic_file import AtomicFile
from mystfuse.system.confinement import confine


class EncryptedFile:
    """The plaintext of what is behind byte ``payload_offset`` of ``target``, while the ``with`` block runs.

    Only the user who runs this can open it (and root, if that is root). What has not been written reads as zeros;
    ``encrypt_zeros`` makes that true of the target as well.
    """

    def __init__(self, target: AtomicFile, payload_offset: int, cipher: XtsCipher) -> None:
        self.target = target.target
        self.fd = -1
        self._target_fd = target.fd
        self._payload_offset = payload_offset
        self._cipher = cipher
        self._mount = PrivateMount("plaintext", False, True, frozenset({target.fd}), self._serve)

    @property
    def server(self) -> int | None:
        """pidfd of the process that serves it."""
        return self._mount.server

    @property
    def path(self) -> str:
        """A path that names the file for a child process that inherits ``fd``."""
        return f"/proc/self/fd/{self.fd}"

    def __enter__(self) -> EncryptedFile:
        """Raises MountError when FUSE is not available."""
        require_fuse()
        try:
            self._mount.begin()
            self.fd = os.open(self._mount.path, os.O_RDWR | os.O_CLOEXEC)
        except BaseException:
            self._mount.end()
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
            self._mount.end()
            # It reports nothing beyond fsync: its daemon has ended by now.
            with suppress(OSError):
                os.close(self.fd)

    def _serve(self, keeper: Keeper, options: MountOptions, report: Callable[[], None]) -> None:
        """Runs in the child."""
        from mystfuse.build.plaintext_file import PlaintextFile, serve

        confine()
        serve(PlaintextFile(self._target_fd, self._payload_offset, self._cipher, options.owner), keeper, report)
