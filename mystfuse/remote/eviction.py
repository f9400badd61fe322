"""Keeping a cache below its size: the least recently used goes first.

An image was last used when its file ``about`` was last touched, which a fetcher does each minute while it serves the
image. A chunk is as old as the map says: hits are not seen, so this is when it was fetched. Images that nobody uses go
first, the longest unused of them first, and in an image the oldest chunks. The map's entry goes before the bytes.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import NamedTuple

from mystfuse.remote.cache_directory import CachedImage, CacheDirectory
from mystfuse.remote.chunk_locks import ChunkLocks
from mystfuse.remote.chunk_map import CHUNK, ENTRY
from mystfuse.remote.chunk_store import minutes_now, runs
from mystfuse.system import libc

_PUNCH_HOLE_KEEP_SIZE = 3
"""FALLOC_FL_PUNCH_HOLE and FALLOC_FL_KEEP_SIZE of fallocate(2)."""
_PIECE = 1 << 16
"""Bytes of a map that are read at once."""
_MAX_RUN = 1024
"""Chunks that are evicted at once."""
_PASSES = 3
"""Looks at the maps before locks, and the maps themselves, do not count any more."""
_DAY = 24 * 60
_BY_MINUTES = 64 * _DAY
"""Minutes that are told apart: what is older, by days."""
_IN_USE = 150.0
"""Seconds: an image that was used more recently is one that somebody may be using."""


class Chunks(NamedTuple):
    """Files from which chunks are evicted."""

    data: int
    map: int
    locks: ChunkLocks | None


def low_water(limit: int) -> int:
    """Bytes that eviction leaves."""
    return limit - limit // 8


def evict(directory: CacheDirectory, limit: int, wanted: int = 0) -> int:
    """Bring a cache below ``limit`` bytes.

    Args:
        wanted: bytes to free whatever the limit says.

    Returns:
        Bytes that were freed.

    Raises:
        OSError: the directory cannot be read.
    """
    with directory.lock():
        images = sorted(directory.images(), key=lambda image: image.last_use)
        total = sum(image.used for image in images)
        excess = max(total - low_water(limit) if total > limit else 0, min(wanted, total))
        freed = 0
        recent = time.time() - _IN_USE
        in_use: list[CachedImage] = []
        for image in images:
            if freed >= excess:
                return freed
            if image.last_use > recent:
                in_use.append(image)
            elif image.used <= excess - freed:
                freed += _remove(directory, image)
            else:
                freed += _evict_from(directory, [image], excess - freed)
        if freed < excess:
            freed += _evict_from(directory, in_use, excess - freed)
        return freed


def clear(directory: CacheDirectory, image: CachedImage) -> bool:
    """Forget an image; where somebody uses it, it is emptied.

    Returns:
        Whether its entry is gone, too.

    Raises:
        OSError: it cannot be changed.
    """
    if directory.remove(image.key):
        return True
    files = directory.open_image(image.key, create=False)
    try:
        reset(Chunks(files.data, files.map, None))
    finally:
        files.close()
    return False


def evict_chunks(stores: list[Chunks], excess: int) -> int:
    """Evict the oldest chunks; returns the bytes that were freed. What cannot be read or changed stays."""
    if excess <= 0:
        return 0
    before = sum(map(_used, stores))

    def left() -> int:
        return excess - (before - sum(map(_used, stores)))

    for ignore_locks in [False] * _PASSES + [True] * _PASSES:
        cutoff, now = _cutoff(stores, left())
        if not cutoff or left() <= 0:
            break
        for store in stores:
            with _going_on(store):
                _evict_up_to(store, cutoff, now, left(), ignore_locks)
    # Bytes that no map has: of a fetcher that was killed, or of somebody else.
    for store in stores if left() > 0 else ():
        with _going_on(store):
            _evict_unmapped(store)
    # Somebody keeps writing into the maps what is not so.
    for store in sorted(stores, key=_used, reverse=True):
        if left() > 0:
            with suppress(OSError):
                reset(store)
    return before - sum(map(_used, stores))


@contextmanager
def _going_on(store: Chunks) -> Iterator[None]:
    """An error of one store is none of the others. Where holes cannot be made, it is emptied."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.ENOSYS):
            with suppress(OSError):
                reset(store)


def _cutoff(stores: list[Chunks], excess: int) -> tuple[int, int]:
    """Up to which minute chunks are to go, the oldest first, and which is the present one; 0: no map has any."""
    now = minutes_now()
    ages: Counter[int] = Counter()
    for store in stores:
        for _, entries in _pieces(store):
            for minute, count in Counter(entries).items():
                ages[_rounded(minute, now)] += count
    del ages[0]
    cutoff = 0
    # An entry of the future is somebody's invention.
    for minute in sorted(ages, key=lambda minute: 0 if minute > now else minute):
        excess -= ages[minute] * CHUNK
        cutoff = minute
        if excess <= 0:
            break
    return cutoff, now


def _rounded(minute: int, now: int) -> int:
    """A minute, or of the far past the last one of its day, and of the future one for all: so there are not many."""
    if minute > now:
        return now + 1
    return minute if not minute or minute > now - _BY_MINUTES else minute - minute % _DAY + _DAY - 1


def reset(store: Chunks) -> None:
    """Empty a store, with or without hole punching. Raises OSError."""
    size, map_size = os.fstat(store.data).st_size, os.fstat(store.map).st_size
    os.ftruncate(store.map, 0)
    os.ftruncate(store.data, 0)
    os.ftruncate(store.data, size)
    os.ftruncate(store.map, map_size)


def _remove(directory: CacheDirectory, image: CachedImage) -> int:
    with suppress(OSError):
        if directory.remove(image.key):
            return image.used
    return 0


def _evict_from(directory: CacheDirectory, images: list[CachedImage], excess: int) -> int:
    with ExitStack() as stack:
        stores = []
        for image in images:
            with suppress(OSError):
                files = directory.open_image(image.key, create=False)
                stack.callback(files.close)
                stores.append(Chunks(files.data, files.map, files.locks))
        with suppress(OSError):
            return evict_chunks(stores, excess)
    return 0


def _evict_up_to(store: Chunks, cutoff: int, now: int, excess: int, ignore_locks: bool) -> None:
    """Evict chunks that are as old as ``cutoff`` or older, as many as needed."""
    freed = 0
    for first, entries in _pieces(store):
        old = (first + index for index, minute in enumerate(entries) if minute and (minute <= cutoff or minute > now))
        for run in runs(old):
            for start in range(run.start, run.stop, _MAX_RUN):
                if freed >= excess:
                    return
                freed += _evict_run(store, range(start, min(start + _MAX_RUN, run.stop)), ignore_locks)


def _evict_unmapped(store: Chunks) -> None:
    size = os.fstat(store.data).st_size
    for part in _data_in(store.data, range(-(-size // CHUNK))):
        for start in range(part.start, part.stop, _MAX_RUN):
            chunks = range(start, min(start + _MAX_RUN, part.stop))
            entries = os.pread(store.map, len(chunks) * ENTRY, start * ENTRY).ljust(len(chunks) * ENTRY, b"\0")
            minutes = zip(chunks, struct.unpack(f"<{len(chunks)}I", entries), strict=True)
            for run in runs(chunk for chunk, minute in minutes if not minute):
                _evict_run(store, run, False)


def _data_in(data: int, chunks: range) -> Iterator[range]:
    """The runs of chunks for which a sparse file has something."""
    position, end = chunks.start * CHUNK, chunks.stop * CHUNK
    while position < end:
        try:
            start = os.lseek(data, position, os.SEEK_DATA)
            stop = os.lseek(data, start, os.SEEK_HOLE)
        except OSError:
            return
        if start >= end:
            return
        stop = min(stop, end)
        yield range(start // CHUNK, -(-stop // CHUNK))
        position = max(stop, position + CHUNK)


def _evict_run(store: Chunks, chunks: range, ignore_locks: bool) -> int:
    # What somebody is fetching is not old.
    claimed = [chunks] if store.locks is None or ignore_locks else store.locks.claim(chunks)
    try:
        for run in claimed:
            os.pwrite(store.map, bytes(len(run) * ENTRY), run.start * ENTRY)
            punch(store.data, run.start * CHUNK, len(run) * CHUNK)
    finally:
        if store.locks is not None and not ignore_locks:
            for run in claimed:
                store.locks.release(run)
    return sum(map(len, claimed)) * CHUNK


def punch(descriptor: int, offset: int, length: int) -> None:
    """Make a range of a file a hole, without changing its size. Raises OSError."""
    arguments = (ctypes.c_int(_PUNCH_HOLE_KEEP_SIZE), ctypes.c_long(offset), ctypes.c_long(length))
    libc.call("fallocate", ctypes.c_int(descriptor), *arguments)


def _pieces(store: Chunks) -> Iterator[tuple[int, tuple[int, ...]]]:
    """The entries of a map where it has no hole, piece by piece, each with the number of its first chunk. A hole costs
    nothing, however long it is: anybody may have made the file longer."""
    position, end = 0, -(-os.fstat(store.data).st_size // CHUNK) * ENTRY
    while position < end:
        try:
            position = max(position, os.lseek(store.map, position, os.SEEK_DATA) // ENTRY * ENTRY)
            stop = min(os.lseek(store.map, position, os.SEEK_HOLE), end)
            piece = os.pread(store.map, min(_PIECE, max(stop - position, ENTRY)), position)
        except OSError:
            return
        count = len(piece) // ENTRY
        if not count:
            return
        yield position // ENTRY, struct.unpack_from(f"<{count}I", piece)
        position += count * ENTRY


def _used(store: Chunks) -> int:
    return os.fstat(store.data).st_blocks * 512
