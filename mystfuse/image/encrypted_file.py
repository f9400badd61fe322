"""A file to write plaintext into, of which ciphertext alone reaches the disk: what mke2fs makes an encrypted image in.

A child process serves it through FUSE, mounted over an empty temporary file.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from mystfuse.crypto.sectors import SECTOR_SIZE, XtsCipher, find_zero_sectors
from mystfuse.errors import ExitStatus, MountError, MystfuseError
from mystfuse.fuse.daemon import Report, run_in_background
from mystfuse.fuse.mount_table import find_mount
from mystfuse.fuse.unmount import unmount_and_wait
from mystfuse.image.atomic_file import AtomicFile
from mystfuse.image.hash_tree import write_all

_CHUNK = 1 << 20
_UNMOUNT_TIMEOUT = 60.0


class EncryptedFile:
    """The plaintext of what is behind byte ``payload_offset`` of ``target``, while the ``with`` block runs.

    Nobody but the user who runs this can open it (and root, if that is root). What has not been written reads as zeros;
    ``encrypt_zeros`` makes that true of the target as well.

    Raises:
        MountError: from the beginning of the block: FUSE cannot be used.
        MystfuseError: from its end: something could not be written.
    """

    def __init__(self, target: AtomicFile, payload_offset: int, cipher: XtsCipher) -> None:
        self.target = target.target
        self.fd = -1
        self._target_fd = target.fd
        self._payload_offset = payload_offset
        self._cipher = cipher
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        self._mountpoint = ""

    @property
    def path(self) -> str:
        """A path that names the file for a child process that inherits ``fd``."""
        return f"/proc/self/fd/{self.fd}"

    def __enter__(self) -> EncryptedFile:
        if not os.path.exists("/dev/fuse"):
            raise MountError("/dev/fuse is missing: mke2fs cannot write encrypted without FUSE (modprobe fuse?)")
        self._directory = tempfile.TemporaryDirectory(prefix="mystfuse-")
        path = Path(self._directory.name).resolve() / "plaintext"
        path.touch(mode=0o600)
        self._mountpoint = str(path)
        try:
            status, message = run_in_background(self._serve, frozenset({self._target_fd}))
            if status is not ExitStatus.DONE:
                raise MountError(message)
            self.fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except BaseException:
            self._take_down()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                # What the kernel still holds back is written now, and what could not be, told.
                os.fsync(self.fd)
        except OSError as failure:
            raise MystfuseError(f"{self.target}: cannot be written: {failure.strerror}") from failure
        finally:
            os.close(self.fd)
            self._take_down()

    def _take_down(self) -> None:
        if find_mount(self._mountpoint) is not None:
            unmount_and_wait(self._mountpoint, lazy=True, timeout=_UNMOUNT_TIMEOUT)
        assert self._directory is not None
        self._directory.cleanup()

    def _serve(self, report: Report) -> int:
        """Runs in the child."""
        from mystfuse.fuse.plaintext_file import PlaintextFile, serve

        try:
            file = PlaintextFile(self._target_fd, self._payload_offset, self._cipher)
            serve(file, self._mountpoint, lambda: report(ExitStatus.DONE, ""))
        except MountError as error:
            report(error.exit_status, str(error))
            return error.exit_status
        return ExitStatus.DONE


def encrypt_zeros(
    target: AtomicFile, payload_offset: int, size: int, cipher: XtsCipher, advance: Callable[[int], None]
) -> None:
    """Encrypt zeros into what has not been written of a payload of ``size`` bytes, so that nobody sees which that is.

    Raises:
        MystfuseError: it cannot be read or written.
    """
    for start in range(0, size, _CHUNK):
        length = min(_CHUNK, size - start)
        encrypted = os.pread(target.fd, length, payload_offset + start).ljust(length, b"\0")
        for first, last in find_zero_sectors(encrypted):
            zeros = cipher.encrypt(bytes(last - first), (start + first) // SECTOR_SIZE)
            write_all(target.fd, zeros, payload_offset + start + first)
        advance(length)
