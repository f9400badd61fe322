"""An unlinked file on an untrusted disk for written blocks beyond the memory limit: encrypted and authenticated.

The key is random and exists only in memory. A block is sealed with AES-256-GCM: the nonce is a counter that never comes
again, and its place in the file is authenticated with it. Counter and tag of each block stay in memory, so that we
detect any other answer of the disk than the bytes last written there.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Sequence
from typing import NamedTuple

from mystfuse.devices.source import is_in_memory
from mystfuse.errors import ImageReadError, IntegrityError, MystfuseError, UsageError
from mystfuse.overlay.slots import runs_of
from mystfuse.system.output_paths import open_directory

TAG_SIZE = 16
"""Bytes."""
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""The errnos of write(2) when no more fits: the disk, a quota, RLIMIT_FSIZE."""
_PROBE = 64 << 10
"""Bytes of free disk space before we rely on the file."""
_MAX_PARTS = 1024
"""IOV_MAX of Linux, include/uapi/linux/uio.h."""
_MAX_READ = 1 << 20
"""Bytes of neighbouring blocks that are read together."""
_PUNCH_HOLE = 3
"""FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, include/uapi/linux/falloc.h."""


def open_store_file(directory: str) -> int:
    """Make a file that has no name, and that no other process can open; returns its descriptor.

    Raises:
        UsageError: there is no such directory.
        MystfuseError: writing there failed.
    """
    what = f"--overlay-store {directory}"
    try:
        place = open_directory(directory)
    except (FileNotFoundError, NotADirectoryError) as error:
        reason = "no such directory" if error.errno == errno.ENOENT else "not a directory"
        raise UsageError(f"{what}: {reason}") from error
    except OSError as error:
        raise UsageError(f"{what}: {error.strerror}") from error
    try:
        descriptor = _make_file(place)
        try:
            _write_all(descriptor, [bytes(_PROBE)], 0)
            os.ftruncate(descriptor, 0)
        except BaseException:
            os.close(descriptor)
            raise
    except OSError as error:
        raise MystfuseError(f"{what}: nothing can be written there: {os.strerror(error.errno or 0)}") from error
    finally:
        os.close(place)
    return descriptor


def prepare_store() -> None:
    """Import the modules of ``OverlayStore``, before the daemon gives up the file system."""
    # Only with a store: most mounts do not need it.
    import cryptography.exceptions
    import cryptography.hazmat.primitives.ciphers.aead  # noqa: F401


def _make_file(directory: int) -> int:
    try:
        # O_EXCL: it can never be given a name.
        return os.open(".", os.O_TMPFILE | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=directory)
    except OSError as error:
        # The errors of file systems and kernels without O_TMPFILE: open(2).
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL):
            raise
    # Only here: it takes long to import.
    import tempfile

    descriptor, path = tempfile.mkstemp(prefix=".mystfuse-", dir=f"/proc/self/fd/{directory}")
    os.unlink(path)
    return descriptor


def _write_all(descriptor: int, parts: Sequence[bytes | memoryview], offset: int) -> None:
    """Write up to _MAX_PARTS parts. Joining them would cost a tenth of all."""
    count = os.pwritev(descriptor, parts, offset)
    if count < sum(map(len, parts)):
        rest = memoryview(b"".join(parts))[count:]
        if not count:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        # The next attempt reports why it was not all.
        _write_all(descriptor, [rest], offset + count)


class Sealed(NamedTuple):
    """The place of a block, and the proof of its identity."""

    slot: int
    counter: int
    tag: bytes


class OverlayStore:
    """Slots of ``block_size`` bytes in a file. The caller chooses the slots.

    ``write``, ``read``, ``give_back`` and ``free_blocks`` wait for the disk, and may be called in any thread.

    Args:
        descriptor: of the file, from ``open_store_file``; ours from now on.
    """

    def __init__(self, descriptor: int, block_size: int) -> None:
        self._descriptor = descriptor
        # Only here: most mounts have no need of it.
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        self.block_size = block_size
        self._cipher = AESGCM(AESGCM.generate_key(256))
        self._nowait = 0 if is_in_memory(descriptor) else os.RWF_NOWAIT
        self._can_read_now = True

    def __del__(self) -> None:
        # Not before: a thread that hangs in a read or write must not find another file under this number.
        os.close(self._descriptor)

    def write(self, slots: Sequence[int], first_counter: int, blocks: Sequence[bytes]) -> list[bytes]:
        """Seal blocks into slots, with counters from ``first_counter`` on, none of which was ever used before; returns
        their tags.

        Raises:
            OSError: writing failed, or was incomplete.
        """
        size, seal = self.block_size, self._cipher.encrypt
        sealed = [
            seal(_nonce(counter), block, _place(slot))
            for counter, (slot, block) in enumerate(zip(slots, blocks, strict=True), first_counter)
        ]
        position = 0
        for run in runs_of(slots, _MAX_PARTS):
            parts = [memoryview(part)[:size] for part in sealed[position : position + len(run)]]
            _write_all(self._descriptor, parts, run.start * size)
            position += len(run)
        return [part[size:] for part in sealed]

    def read(self, wanted: Sequence[Sealed], can_wait: bool = True) -> list[bytes | MystfuseError] | None:
        """The blocks in the given order, or for each its error. None if they are not in the page cache and we must not
        wait for the disk."""
        size = self.block_size
        found: dict[int, bytes | MystfuseError] = {}
        by_slot = sorted({sealed.slot: sealed for sealed in wanted}.values())
        position = 0
        for run in runs_of([sealed.slot for sealed in by_slot], _MAX_READ // size):
            data = self._read_run(run, can_wait)
            if data is None:
                return None
            for index, sealed in enumerate(by_slot[position : position + len(run)]):
                found[sealed.slot] = data if isinstance(data, MystfuseError) else self._open(sealed, data, index * size)
            position += len(run)
        return [found[sealed.slot] for sealed in wanted]

    def _read_run(self, run: range, can_wait: bool) -> memoryview | MystfuseError | None:
        """The readable part of a run of slots."""
        size = self.block_size
        buffer, have = memoryview(bytearray(len(run) * size)), 0
        flags = 0 if can_wait else self._nowait
        if not can_wait and not self._can_read_now:
            return None
        try:
            while have < len(buffer):
                count = os.preadv(self._descriptor, [buffer[have:]], run.start * size + have, flags)
                if not count:
                    break
                have += count
        except BlockingIOError:
            return None
        except OSError as error:
            if not can_wait:
                self._can_read_now = error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)
                return None
            return ImageReadError(
                f"overlay store: reading {len(buffer)} bytes at {run.start * size}: {os.strerror(error.errno or 0)}"
            )
        return buffer[:have]

    def _open(self, sealed: Sealed, data: memoryview, start: int) -> bytes | MystfuseError:
        from cryptography.exceptions import InvalidTag

        block = data[start : start + self.block_size]
        if len(block) < self.block_size:
            return IntegrityError(f"overlay store: the file ends before block {sealed.slot}: it has been truncated")
        try:
            return self._cipher.decrypt(_nonce(sealed.counter), b"".join((block, sealed.tag)), _place(sealed.slot))
        except InvalidTag:
            return IntegrityError(f"overlay store: block {sealed.slot} is corrupted")

    def give_back(self, end: int, unused: Sequence[range]) -> int:
        """Give disk space back: of all slots from ``end`` on, and of unused ones where the file system can do that.
        Returns what ``free_blocks`` does then.

        Raises:
            OSError: truncating the file failed.
        """
        size = self.block_size
        if end * size < os.fstat(self._descriptor).st_size:
            os.ftruncate(self._descriptor, end * size)
        libc = ctypes.CDLL(None, use_errno=True)
        for run in unused:
            offset, length = ctypes.c_int64(run.start * size), ctypes.c_int64(len(run) * size)
            if libc.fallocate64(self._descriptor, _PUNCH_HOLE, offset, length):
                break
        return self.free_blocks()

    def free_blocks(self) -> int:
        """How many more blocks the disk may take, as far as it says.

        Raises:
            OSError: it does not say.
        """
        disk = os.fstatvfs(self._descriptor)
        return disk.f_bavail * disk.f_frsize // self.block_size


def _nonce(counter: int) -> bytes:
    return counter.to_bytes(12, "big")


def _place(slot: int) -> bytes:
    return slot.to_bytes(8, "big")
