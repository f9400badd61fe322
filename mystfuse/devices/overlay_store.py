"""An unlinked file on untrusted disk for written blocks that memory has no room for: encrypted and authenticated.

The key is random and exists only in memory. A block is sealed with AES-256-GCM: the nonce is a counter that never comes
again, and its place in the file is authenticated with it. Counter and tag of each block stay in memory, so that the
disk can return what was written there last, or be found out.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import stat
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from mystfuse.devices.source import is_in_memory
from mystfuse.errors import ImageReadError, IntegrityError, MystfuseError, UsageError

TAG_SIZE = 16
"""Bytes."""
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""What write(2) says when no more fits: the disk, a quota, RLIMIT_FSIZE."""
_PROBE = 64 << 10
"""Bytes that have to fit before anybody counts on the file."""
_MAX_VECTORS = 1024
"""IOV_MAX of Linux, include/uapi/linux/uio.h."""
_MAX_READ = 1 << 20
"""Bytes of neighbouring blocks that are read together."""
_MANY = 1024
_PUNCH_HOLE = 3
"""FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, include/uapi/linux/falloc.h."""


def open_store_file(directory: str) -> int:
    """Make a file that has no name, and that nobody else can open; returns its descriptor.

    Raises:
        UsageError: there is no such directory.
        MystfuseError: nothing can be written there.
    """
    what = f"--overlay-store {directory}"
    try:
        if not stat.S_ISDIR(os.stat(directory).st_mode):
            raise UsageError(f"{what}: not a directory")
        descriptor = _make_file(directory)
        try:
            _write_all(descriptor, [bytes(_PROBE)], 0)
            os.ftruncate(descriptor, 0)
        except BaseException:
            os.close(descriptor)
            raise
    except FileNotFoundError as error:
        raise UsageError(f"{what}: no such directory") from error
    except OSError as error:
        raise MystfuseError(f"{what}: nothing can be written there: {os.strerror(error.errno or 0)}") from error
    return descriptor


def _make_file(directory: str) -> int:
    try:
        # O_EXCL: it can never be given a name.
        return os.open(directory, os.O_TMPFILE | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        # What file systems and kernels without O_TMPFILE say: open(2).
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL):
            raise
    # Only here: it takes long to import.
    import tempfile

    descriptor, path = tempfile.mkstemp(prefix=".mystfuse-", dir=directory)
    os.unlink(path)
    return descriptor


def _write_all(descriptor: int, parts: Sequence[bytes | memoryview], offset: int) -> None:
    for start in range(0, len(parts), _MAX_VECTORS):
        some = parts[start : start + _MAX_VECTORS]
        length = sum(map(len, some))
        count = os.pwritev(descriptor, some, offset)
        if count < length:
            # Why, the next try says.
            rest = memoryview(b"".join(some))[count:]
            while rest:
                step = os.pwrite(descriptor, rest, offset + length - len(rest))
                if not step:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                rest = rest[step:]
        offset += length


class Sealed(NamedTuple):
    """Where a block is, and what proves that it is the one."""

    slot: int
    counter: int
    tag: bytes


class OverlayStore:
    """Slots of ``block_size`` bytes in a file. What happens in which slot is for the caller to say.

    ``write``, ``read``, ``punch`` and ``free_blocks`` wait for the disk, and may be called in any thread.

    Args:
        descriptor: of the file, from ``open_store_file``; ours from now on.
    """

    def __init__(self, descriptor: int, block_size: int) -> None:
        # Only here: most mounts have no need of it.
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        self.block_size = block_size
        self._descriptor = descriptor
        self._cipher = AESGCM(AESGCM.generate_key(256))
        self._nowait = 0 if is_in_memory(os.fstat(descriptor).st_dev) else os.RWF_NOWAIT
        self._can_read_now = self._can_punch = True

    def __del__(self) -> None:
        # Not before: a thread that hangs in a read or write must not find another file under this number.
        os.close(self._descriptor)

    def write(self, slots: Sequence[int], first_counter: int, blocks: Sequence[bytes]) -> list[bytes]:
        """Seal blocks into slots, with counters from ``first_counter`` on, none of which was ever used before; returns
        their tags.

        Raises:
            OSError: they cannot be written, or not all of them.
        """
        size, seal = self.block_size, self._cipher.encrypt
        sealed = [
            seal(_nonce(counter), block, _place(slot))
            for counter, (slot, block) in enumerate(zip(slots, blocks, strict=True), first_counter)
        ]
        position = 0
        for run in runs_of(slots):
            parts = [memoryview(part)[:size] for part in sealed[position : position + len(run)]]
            _write_all(self._descriptor, parts, run.start * size)
            position += len(run)
        return [part[size:] for part in sealed]

    def read(self, wanted: Sequence[Sealed], can_wait: bool = True) -> list[bytes | MystfuseError] | None:
        """The blocks, in the order given, or for each what is wrong with it. None if they are not in the page cache
        and the disk must not be waited for."""
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
        """As much as there is of a run of slots."""
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
            return IntegrityError(f"overlay store: it ends before block {sealed.slot}: truncated by somebody")
        try:
            return self._cipher.decrypt(_nonce(sealed.counter), b"".join((block, sealed.tag)), _place(sealed.slot))
        except InvalidTag:
            return IntegrityError(f"overlay store: block {sealed.slot} is not what was written there")

    def punch(self, slots: Sequence[int]) -> None:
        """Give the disk space of slots back, where the file system can do that."""
        size = self.block_size
        libc = ctypes.CDLL(None, use_errno=True)
        for run in runs_of(slots):
            if not self._can_punch:
                return
            offset, length = ctypes.c_int64(run.start * size), ctypes.c_int64(len(run) * size)
            if libc.fallocate64(self._descriptor, _PUNCH_HOLE, offset, length):
                self._can_punch = ctypes.get_errno() == errno.EINTR

    def free_blocks(self) -> int:
        """How many more blocks the disk may take, as far as it says."""
        disk = os.fstatvfs(self._descriptor)
        blocks = disk.f_bavail * disk.f_frsize // self.block_size
        largest = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        if largest != resource.RLIM_INFINITY:
            blocks = min(blocks, max(largest - os.fstat(self._descriptor).st_size, 0) // self.block_size)
        return blocks


def _nonce(counter: int) -> bytes:
    return counter.to_bytes(12, "big")


def _place(slot: int) -> bytes:
    return slot.to_bytes(8, "big")


def runs_of(slots: Sequence[int], longest: int | None = None) -> Iterator[range]:
    """Consecutive slots, together."""
    if not slots:
        return
    ends = [position for position in range(1, len(slots)) if slots[position] != slots[position - 1] + 1]
    for begin, end in pairwise([0, *ends, len(slots)]):
        step = longest or end - begin
        for start in range(begin, end, step):
            yield range(slots[start], slots[min(start + step, end) - 1] + 1)


class Slots:
    """Which slots of the store are in use. The file never has more than twice as many as were in use at once, and one
    batch."""

    def __init__(self) -> None:
        self.used = 0
        self.may_grow = True
        """False while the disk is full."""
        self._taken = bytearray()
        """1 for a slot in use."""
        self._lowest = 0
        """No slot below this is free."""
        self._dirty: list[int] = []
        """Slots that have been given back, and their disk space has not; some may be in use again."""

    @property
    def size(self) -> int:
        """Slots, free ones included."""
        return len(self._taken)

    @property
    def dirty(self) -> int:
        """How many slots, at most, hold disk space and nothing else."""
        return min(len(self._dirty), len(self._taken) - self.used)

    def take(self, count: int) -> list[int]:
        """Up to ``count`` slots, neighbours if that can be; fewer only if the file may not grow."""
        if len(self._taken) - self.used >= count:
            start = self._taken.find(bytes(count), self._lowest)
            if start >= 0:
                return self._mark([range(start, start + count)])
            if self.used < len(self._taken) // 2 or not self.may_grow:
                return self._mark(self._pieces(count))
        if self.may_grow:
            start = len(self._taken)
            self._taken += bytes(count)
            return self._mark([range(start, start + count)])
        return self._mark(self._pieces(count))

    def _pieces(self, count: int) -> list[range]:
        pieces: list[range] = []
        position = self._lowest
        while count and (start := self._taken.find(0, position)) >= 0:
            end = self._taken.find(1, start, start + count)
            position = end if end >= 0 else min(start + count, len(self._taken))
            pieces.append(range(start, position))
            count -= position - start
        return pieces

    def _mark(self, pieces: list[range]) -> list[int]:
        for piece in pieces:
            self._taken[piece.start : piece.stop] = b"\1" * len(piece)
            self.used += len(piece)
            if piece.start <= self._lowest < piece.stop:
                self._lowest = piece.stop
        return [slot for piece in pieces for slot in piece]

    def give_back(self, slots: Iterable[int], is_clean: bool = False) -> None:
        """They are free again.

        Args:
            is_clean: whether they hold no disk space.
        """
        for slot in slots:
            self._taken[slot] = 0
            self.used -= 1
            self._lowest = min(self._lowest, slot)
            if not is_clean:
                self._dirty.append(slot)
        if len(self._dirty) > 2 * len(self._taken) + _MANY:
            self._dirty = sorted({slot for slot in self._dirty if not self._taken[slot]})

    def take_dirty(self, most: int) -> list[int]:
        """Take up to ``most`` slots whose disk space is to be given back, in order."""
        some = self._dirty[-most:]
        del self._dirty[-most:]
        slots = sorted({slot for slot in some if not self._taken[slot]})
        for slot in slots:
            self._taken[slot] = 1
        self.used += len(slots)
        return slots
