"""What the C threads see of the overlay and of look-up counts: the same memory, under one lock."""

from __future__ import annotations

import mmap
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

from mystfuse.fastpath.fast_path import FastPath


class WrittenBlocks:
    """Tells the C threads where the overlay's blocks are; an ``overlay.mirror.Mirror``. For trio's thread alone."""

    def __init__(self, fast_path: FastPath) -> None:
        from mystfuse.kernels.native import ffi, lib

        self._ffi, self._lib = ffi, lib
        self._fast_path, self._handle = fast_path, fast_path.handle
        self._is_locked = False

    def begin(self, numbers: Sequence[int], arenas: int) -> Any:
        """See ``Mirror.begin``. From here on the C threads answer nothing from the file system."""
        if self._fast_path.is_freed:
            # The overlay outlives it: blocks may be on their way to the store.
            return None
        changed = array("Q", numbers)
        self._lib.fastpath_lock(self._handle)
        self._is_locked = True
        if not self._lib.fastpath_reserve(self._handle, len(changed), arenas):
            self._is_locked = False
            self._lib.fastpath_unlock(self._handle)
            raise MemoryError("no memory for the table of written blocks")
        return changed

    def end(self, token: Any, slots: Mapping[int, int]) -> None:
        """See ``Mirror.end``."""
        if token is None:
            return
        try:
            if token:
                ffi = self._ffi
                image, store = self._lib.FASTPATH_OF_THE_IMAGE, self._lib.FASTPATH_IN_STORE
                get = slots.get
                # Negative slots are places in the store.
                places = array("q", [image if (slot := get(number)) is None else max(slot, store) for number in token])
                self._lib.fastpath_written(
                    self._handle,
                    ffi.from_buffer("uint64_t[]", token),
                    ffi.from_buffer("int64_t[]", places),
                    len(places),
                )
        except MemoryError:
            self._lib.fastpath_give_up(self._handle)
        finally:
            self._is_locked = False
            self._lib.fastpath_unlock(self._handle)

    def arena(self, number: int, memory: mmap.mmap | None) -> None:
        """See ``Mirror.arena``."""
        if self._fast_path.is_freed:
            return
        # Only the address is kept: an exported buffer could not be closed.
        address = self._ffi.NULL if memory is None else self._ffi.cast("void *", self._ffi.from_buffer(memory))
        if self._is_locked:
            self._lib.fastpath_arena(self._handle, number, address)
            return
        self._lib.fastpath_lock(self._handle)
        self._lib.fastpath_arena(self._handle, number, address)
        self._lib.fastpath_unlock(self._handle)


class SharedLookupCounts:
    """Look-up counts that the C threads add to; a ``fuse.lookup_counts.LookupCounts``."""

    def __init__(self, fast_path: FastPath) -> None:
        from mystfuse.kernels.native import lib

        self._lib, self._handle = lib, fast_path.handle

    def known(self, ino: int) -> None:
        """See ``LookupCounts.known``."""
        self._lib.fastpath_known(self._handle, ino)

    def forgotten(self, ino: int, count: int) -> bool:
        """See ``LookupCounts.forgotten``."""
        return not self._lib.fastpath_forgotten(self._handle, ino, count)

    def has(self, ino: int) -> bool:
        """See ``LookupCounts.has``."""
        return bool(self._lib.fastpath_count(self._handle, ino))
