"""Which store a fetcher uses, and what that needs while it is used: room, and a sign that it is in use.

The cache's directory if one is given and usable, else, after one warning, a part of memory: also when the directory
fails or is removed in the midst of its use.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import trio

from mystfuse.remote.address import parse_address
from mystfuse.remote.cache_directory import CacheDirectory, CacheUnusable, ImageFiles
from mystfuse.remote.cache_key import cache_key
from mystfuse.remote.chunk_store import ChunkStore, store_in_memory
from mystfuse.remote.eviction import Chunks, evict, evict_chunks, low_water
from mystfuse.remote.fetcher_config import FetcherConfig
from mystfuse.remote.memory_files import Memory
from mystfuse.remote.origin import Failure, FetchError, Opened

_IN_MEMORY = 64 << 20
"""Bytes of memory that take the place of a directory at most."""
_TOUCHED = 60.0
"""Seconds between signs that the image is in use."""
_LOOK = 1.0
"""Seconds between looks at whether the files are still there."""
_MIN_STEP = 1 << 20
_ROOM = 16 << 20
"""Bytes that are freed where the file system is full."""
_FREED_AGAIN = 5.0
"""Seconds until that is tried once more."""
_FREEING = 0.5
"""Seconds for which everything else waits for that."""


class StoreKeeper:
    """Opens stores, and keeps them within their bounds.

    Args:
        warn: called with one line for the log.
    """

    def __init__(self, config: FetcherConfig, memory: Memory, warn: Callable[[str], None]) -> None:
        self._config, self._memory, self._warn = config, memory, warn
        self._directory: CacheDirectory | None = None
        self._files: ImageFiles | None = None
        self._limit = config.cache_limit
        self._full = trio.Event()
        self._freed_at = -_FREED_AGAIN
        self._freeing = threading.Lock()

    @property
    def is_in_directory(self) -> bool:
        """Whether the store is in the cache's directory."""
        return self._files is not None

    @property
    def was_open(self) -> bool:
        """Whether a worker before this one has opened the image."""
        return os.fstat(self._memory.image).st_size > 0

    def open(self, opened: Opened) -> ChunkStore:
        """The store for an image.

        Raises:
            FetchError: an earlier worker has served another image.
            OSError: even memory cannot be used.
        """
        key = cache_key(self._config.addresses[0], opened)
        stays_in_memory = self._check_memory(opened, key)
        if self._config.cache is None:
            return self.open_in_memory(opened, self._config.cache_limit)
        if stays_in_memory:
            return self.open_in_memory(opened)
        name = parse_address(self._config.addresses[0]).name
        if key is None:
            self._warn(f"{name}: neither signature block nor version says what it is: not kept in the cache")
            return self.open_in_memory(opened)
        try:
            return self._open_in_directory(self._config.cache, key, name, opened)
        except CacheUnusable as error:
            self._warn(f"{error}; it goes on with a cache in memory")
        except OSError as error:
            self._warn(f"cache {self._config.cache}: {error.strerror}; it goes on with a cache in memory")
        return self.open_in_memory(opened)

    def open_in_memory(self, opened: Opened, limit: int = _IN_MEMORY) -> ChunkStore:
        """The store that takes the place of the directory. Raises OSError."""
        self._files, self._limit = None, min(limit, self._config.cache_limit)
        store = store_in_memory(opened.size, self._memory.data, self._memory.map, self._warn)
        store.make_room = lambda wanted: self._make_room_in_memory(store, wanted)
        store.notice = lambda: self._trim_memory(store)
        store.noticed_at = self._step
        return store

    async def keep(self, store: ChunkStore) -> None:
        """Look after a store; returns when it cannot be used any more, after a warning. One in memory always can."""
        if self._files is None:
            await trio.sleep_forever()
        touched, looked_at = -_TOUCHED, -1
        while True:
            full = self._full
            with trio.move_on_after(_LOOK):
                await full.wait()
            files = self._files
            assert files is not None
            if store.written != looked_at:
                looked_at = store.written
                self._full = trio.Event()
                await trio.to_thread.run_sync(self._evict, 0, abandon_on_cancel=True)
                store.noticed_at = store.written + self._step
            if trio.current_time() - touched > _TOUCHED:
                touched = trio.current_time()
                files.touch()
            reason = "storing fails" if store.is_broken else None
            with suppress(OSError):
                if files.is_removed:
                    reason = "it has been removed"
            if reason is not None:
                self._warn(f"cache {self._config.cache}: {reason}; it goes on with a cache in memory")
                return

    @property
    def _step(self) -> int:
        """Bytes that are stored between looks at the size of the whole cache; and once a second it is looked at."""
        return max(min(_MIN_STEP, self._limit // 8), self._limit // 64)

    def _check_memory(self, opened: Opened, key: str | None) -> bool:
        """Whether a worker before this one has kept in memory what it fetched. Then so does this one: whoever reads
        there does not expect to wait."""
        memory = self._memory
        image = json.dumps([opened.size, key]).encode()
        before = os.pread(memory.image, len(image) + 100, 0)
        if before and json.loads(before)[0] != opened.size:
            raise FetchError(Failure.REPLACED, f"it has another size now, {opened.size} bytes: it has been replaced")
        was_in_memory = bool(before) and os.fstat(memory.map).st_size > 0
        if before != image or key is None:
            os.ftruncate(memory.map, 0)
            os.ftruncate(memory.data, 0)
        os.ftruncate(memory.image, 0)
        os.pwrite(memory.image, image, 0)
        return was_in_memory

    def _open_in_directory(self, path: str, key: str, name: str, opened: Opened) -> ChunkStore:
        """Raises CacheUnusable and OSError."""
        self._directory = self._directory or CacheDirectory(path)
        files = self._directory.open_image(key)
        store = ChunkStore(
            opened.size, files.data, files.map, files.for_reader, files.locks, f"cache {path}", self._warn
        )
        try:
            is_new = os.fstat(files.data).st_size == 0
            store.prepare()
            if is_new and opened.size > _MIN_STEP and os.fstat(files.data).st_blocks * 512 > opened.size // 2:
                os.ftruncate(files.data, 0)
                raise CacheUnusable(f"cache {path}: its file system has no sparse files")
        except BaseException:
            files.close()
            raise
        files.describe({"name": name, "size": opened.size, "validator": opened.validator})
        files.touch()
        self._files = files
        store.make_room = self._make_room
        store.notice = lambda: self._notice(store)
        store.noticed_at = self._step
        # It may be too large before this fetcher stores anything.
        self._full.set()
        return store

    def _notice(self, store: ChunkStore) -> None:
        store.noticed_at = float("inf")
        self._full.set()

    def _evict(self, wanted: int) -> int:
        assert self._directory is not None
        with suppress(OSError):
            return evict(self._directory, self._limit, wanted)
        return 0

    def _make_room(self, wanted: int) -> bool:
        if time.monotonic() - self._freed_at < _FREED_AGAIN:
            return False
        if self._freeing.locked():
            return False
        self._freed_at = time.monotonic()
        freed: list[int] = []

        def free() -> None:
            with self._freeing:
                freed.append(self._evict(max(wanted, _ROOM)))

        # How long that takes is up to whoever else writes to the directory, and holds its lock.
        thread = threading.Thread(target=free, daemon=True)
        # RuntimeError: no thread can be started.
        with suppress(RuntimeError, MemoryError):
            thread.start()
            thread.join(_FREEING)
        return bool(freed and freed[0])

    def _trim_memory(self, store: ChunkStore) -> None:
        store.noticed_at = store.written + self._step
        used = os.fstat(store.data).st_blocks * 512
        if used > self._limit:
            with suppress(OSError):
                evict_chunks([Chunks(store.data, store.map, None)], used - low_water(self._limit))

    def _make_room_in_memory(self, store: ChunkStore, wanted: int) -> bool:
        with suppress(OSError):
            return evict_chunks([Chunks(store.data, store.map, None)], max(wanted, self._limit // 4)) > 0
        return False
