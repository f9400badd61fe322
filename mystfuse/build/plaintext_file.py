"""A mount that is one file: reading it decrypts, writing it encrypts. For mke2fs, see ``encrypted_file``."""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from errno import EINVAL, EIO
from functools import partial

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileHandleT, FileInfo, FUSEError, InodeT, RequestContext, SetattrFields

from mystfuse.crypto.sector_ciphers import SECTOR_SIZE, XtsCipher, find_zero_sectors
from mystfuse.errors import MountError
from mystfuse.fuse.libfuse_session import open_session
from mystfuse.mounting.find_daemon import name_this_process
from mystfuse.mounting.keeper_client import Keeper
from mystfuse.system.threads import call_in_thread

_MAX_TASKS = 2


class PlaintextFile(pyfuse3.Operations):
    """The plaintext of what is behind byte ``payload_offset`` of file ``fd``.

    A sector of the target that is all zeros has not been written, and reads as zeros: an encrypted one is never all
    zeros (one in 2^4096 is). It can be cut between sectors only.
    """

    # mke2fs writes single blocks; the kernel joins them to long writes.
    enable_writeback_cache = True

    def __init__(self, fd: int, payload_offset: int, cipher: XtsCipher, owner: tuple[int, int]) -> None:
        super().__init__()
        self._owner = owner
        self._fd = fd
        self._payload_offset = payload_offset
        self._cipher = cipher

    async def getattr(self, inode: InodeT, ctx: RequestContext | None = None) -> EntryAttributes:
        attributes = EntryAttributes()
        attributes.st_ino = pyfuse3.ROOT_INODE
        attributes.st_mode = stat.S_IFREG | 0o600
        attributes.st_uid, attributes.st_gid = self._owner
        attributes.st_size = max(os.fstat(self._fd).st_size - self._payload_offset, 0)
        attributes.attr_timeout = 3600
        return attributes

    async def setattr(
        self,
        inode: InodeT,
        attr: EntryAttributes,
        fields: SetattrFields,
        fh: FileHandleT | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        if fields.update_size:
            if attr.st_size % SECTOR_SIZE:
                # The rest of the last sector would be lost.
                raise FUSEError(EINVAL)
            try:
                os.ftruncate(self._fd, self._payload_offset + attr.st_size)
            except OSError as error:
                raise FUSEError(error.errno or EIO) from error
        return await self.getattr(inode)

    async def open(self, inode: InodeT, flags: int, ctx: RequestContext) -> FileInfo:
        return FileInfo(fh=FileHandleT(1), keep_cache=True)

    async def read(self, fh: FileHandleT, offset: int, size: int) -> bytes:
        start, end = _whole_sectors(offset, size)
        return self._read(start, end - start)[offset - start :][:size]

    async def write(self, fh: FileHandleT, offset: int, data: bytes) -> int:
        start, end = _whole_sectors(offset, len(data))
        if (start, end) == (offset, offset + len(data)):
            whole: bytes | bytearray = data
        else:
            whole = bytearray(self._read(start, end - start))
            whole[offset - start : offset - start + len(data)] = data
        encrypted = memoryview(self._cipher.encrypt(whole, start // SECTOR_SIZE))
        position = self._payload_offset + start
        try:
            while encrypted:
                count = os.pwrite(self._fd, encrypted, position)
                encrypted, position = encrypted[count:], position + count
        except OSError as error:
            raise FUSEError(error.errno or EIO) from error
        return len(data)

    def _read(self, start: int, length: int) -> bytes:
        """Whole sectors, decrypted; zeros behind the end."""
        try:
            encrypted = os.pread(self._fd, length, self._payload_offset + start).ljust(length, b"\0")
        except OSError as error:
            raise FUSEError(error.errno or EIO) from error
        if encrypted.count(0) == length:
            return encrypted
        plain = bytearray(encrypted)
        self._cipher.decrypt_into(plain, start // SECTOR_SIZE, plain)
        for first, last in find_zero_sectors(encrypted):
            plain[first:last] = bytes(last - first)
        return bytes(plain)


def serve(file: PlaintextFile, keeper: Keeper, report: Callable[[], None]) -> None:
    """Serve the file until it is unmounted.

    Args:
        keeper: mounts and unmounts for us.
        report: called when it is mounted.

    Raises:
        MountError: mounting failed.
    """
    trio.run(_serve, file, keeper, report)


async def _serve(file: PlaintextFile, keeper: Keeper, report: Callable[[], None]) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        descriptor, found = keeper.mount()
        try:
            open_session(file, f"/dev/fd/{descriptor}", set())
            name_this_process(found)
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_unmount_on_signal, signals, keeper)
                    report()
                    await pyfuse3.main(max_tasks=_MAX_TASKS)
                    nursery.cancel_scope.cancel()
            finally:
                pyfuse3.close(unmount=False)
        except BaseException:
            # After any error (memory, descriptors) the keeper's mount would have no server.
            with suppress(MountError):
                keeper.unmount(lazy=True)
            raise


async def _unmount_on_signal(signals: AsyncIterator[int], keeper: Keeper) -> None:
    async for _ in signals:
        with suppress(MountError), trio.CancelScope(shield=True):
            await call_in_thread(partial(keeper.unmount, True))
        pyfuse3.terminate()


def _whole_sectors(offset: int, length: int) -> tuple[int, int]:
    """The byte range of the sectors in which a range lies."""
    return offset // SECTOR_SIZE * SECTOR_SIZE, -(-(offset + length) // SECTOR_SIZE) * SECTOR_SIZE
