"""Signing an image in place: only its last 4096 bytes, the fssig, are replaced (ADR 27).

The root hash is what is signed, and it stays the same. No key of an encrypted image is needed.
"""

from __future__ import annotations

import fcntl
import os
from dataclasses import replace
from types import TracebackType

from mystfuse.devices.patience import wait_for_storage
from mystfuse.devices.source import FileSource, check_kind
from mystfuse.errors import MystfuseError
from mystfuse.formats.fssig import FSSIG_SIZE, Fssig
from mystfuse.system.output_paths import open_for_changing

_UNSIGNED = bytes(32)


class ImageToSign:
    """An image whose fssig is to be replaced, open and locked until the block ends.

    The lock, flock(2), keeps another ``ImageToSign`` out, but no reader and no mount. Mounts go on: they read the fssig
    only when they begin.

    Args:
        path: as root, no link of another user is followed to it.
        io_timeout: seconds that storage may take for each step; ^C ends the wait for it at once.

    Raises:
        MystfuseError: it cannot be opened for writing, or another process is signing it; StorageTimeout.
        FormatError: it is neither a regular file nor a block device.
    """

    def __init__(self, path: str, io_timeout: float) -> None:
        self.name = path
        self._io_timeout = io_timeout
        self._fd = wait_for_storage(self._open, path, io_timeout)
        self.source = FileSource(path, self._fd)
        """Its bytes, all unverified."""

    def _open(self) -> int:
        try:
            check_kind(os.stat(self.name).st_mode, self.name)
            descriptor = open_for_changing(self.name)
        except OSError as error:
            raise MystfuseError(f"{self.name}: cannot be opened for writing: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise MystfuseError(
                f"{self.name}: another process has locked it (is it being signed?): try again"
            ) from None
        except OSError:
            # Some file systems have no locks. Two that sign write whole blocks: one of them wins.
            pass
        return descriptor

    def write_fssig(self, old: Fssig, signer: bytes = _UNSIGNED, signature: bytes = b"") -> Fssig:
        """Write an fssig with this signer and signature, by default none, where ``old`` is; it is on disk on return.

        It is one write(2) of one page, so a kill of this process leaves the old one or the new one. (Where the tree's
        blocks do not have 4096 bytes, it may be in two pages, and a kill could come between them.)

        Raises:
            MystfuseError: the image has changed since ``old`` was read from it, or has been replaced; or writing it
                failed, and the old one is there.
        """
        new = replace(old, signer=signer, signature=signature)
        wait_for_storage(lambda: self._write(old, new.pack()), self.name, self._io_timeout)
        return new

    def _write(self, old: Fssig, new: bytes) -> None:
        offset = self.source.size - FSSIG_SIZE
        before = self.source.read(offset, FSSIG_SIZE)
        if Fssig.parse(before) != old or os.lseek(self._fd, 0, os.SEEK_END) != self.source.size:
            raise MystfuseError(f"{self.name}: another process has changed it meanwhile: nothing is written")
        self._check_name()
        try:
            if before != new:
                self._overwrite(before, new, offset)
        except OSError as error:
            raise MystfuseError(f"{self.name}: cannot be written: {error.strerror}") from error
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            raise MystfuseError(
                f"{self.name}: written, but may not be on disk: {error.strerror}: check it, and sign again"
            ) from error
        self._check_name()

    def _overwrite(self, before: bytes, new: bytes, offset: int) -> None:
        count = os.pwrite(self._fd, new, offset)
        if count != len(new):
            # A limit on file sizes (ulimit -f), or a full disk, where it is not overwritten in place.
            os.pwrite(self._fd, before[:count], offset)
            raise OSError(0, f"only {count} of {len(new)} bytes could be, so they were taken back")

    def _check_name(self) -> None:
        """Raise MystfuseError if the name stands for another file now: ``mkext2 --force`` or an editor replaced it."""
        try:
            is_same = os.path.samestat(os.stat(self.name), os.fstat(self._fd))
        except OSError:
            is_same = False
        if not is_same:
            raise MystfuseError(f"{self.name}: another file has taken its name meanwhile: sign that one")

    def __enter__(self) -> ImageToSign:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # Closing the descriptor unlocks it.
        self.source.close()
