"""What can happen to a cache while fetchers use it: seeded faults, each of them something that a disk, another user, or
somebody with a shell does."""

from __future__ import annotations

import fcntl
import os
import random
import resource
import shutil
import signal
import stat
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from mystfuse.remote.chunk_map import CHUNK, ENTRY
from mystfuse.remote.eviction import punch
from tests.support.fetcher_daemon import worker_of


class CacheFaults:
    """Does one thing after the other to the cache in a directory.

    Args:
        supervisors: gives the process IDs of the fetchers that use it.
    """

    def __init__(self, chance: random.Random, cache: Path, supervisors: Callable[[], list[int]]) -> None:
        self._chance, self._cache, self._supervisors = chance, cache, supervisors
        self._locks: list[int] = []
        self.kinds: list[Callable[[], None]] = [
            self.flip, self.flip, self.garbage, self.lie, self.forget, self.future, self.cut_data, self.cut_map,
            self.grow, self.punch_holes, self.swap, self.remove_file, self.remove_entry, self.remove_all,
            self.replace_by_link, self.replace_by_fifo, self.replace_by_directory, self.other_layout, self.fill_disk,
            self.empty_disk, self.lock, self.unlock, self.kill_worker, self.kill_fetcher, self.forbid, self.rename,
        ]  # fmt: skip

    def do(self) -> str:
        """One fault that has happened; returns its name."""
        while True:
            kind = self._chance.choice(self.kinds)
            # The cache may be in any state, in which not all of them can happen.
            with suppress(OSError, IndexError, ValueError):
                kind()
                return kind.__name__

    def close(self) -> None:
        """Undo what would outlast the cache."""
        self.unlock()

    def _entry(self) -> Path:
        entries = [path for path in self._cache.iterdir() if len(path.name) == 64]
        return self._chance.choice(entries)

    def _name(self) -> Path:
        return self._entry() / self._chance.choice(("data", "data", "map", "map", "about"))

    def _write(self, name: str, change: Callable[[int, int], None]) -> None:
        """Call with a descriptor and a size."""
        path = self._entry() / name
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                change(descriptor, os.fstat(descriptor).st_size)
        finally:
            os.close(descriptor)

    def flip(self) -> None:
        def change(file: int, size: int) -> None:
            for _ in range(self._chance.randint(1, 50)):
                place = self._chance.randrange(size)
                byte = os.pread(file, 1, place)
                os.pwrite(file, bytes([byte[0] ^ 1 << self._chance.randrange(8)]), place)

        self._write(self._chance.choice(("data", "data", "map")), change)

    def garbage(self) -> None:
        def change(file: int, size: int) -> None:
            os.pwrite(file, self._chance.randbytes(100_000), self._chance.randrange(size))

        self._write("data", change)

    def lie(self) -> None:
        """The map says that all is there."""
        self._write("map", lambda file, size: _pwrite(file, b"\1\0\0\0" * (size // ENTRY)))

    def forget(self) -> None:
        self._write("map", lambda file, size: _pwrite(file, bytes(size)))

    def future(self) -> None:
        entries = [self._chance.choice((0, 1, 0xFFFFFFFF)) for _ in range(64)]
        self._write("map", lambda file, size: _pwrite(file, struct.pack("<64I", *entries)))

    def cut_data(self) -> None:
        self._write("data", lambda file, size: os.ftruncate(file, self._chance.randrange(size)))

    def cut_map(self) -> None:
        self._write("map", lambda file, size: os.ftruncate(file, self._chance.randrange(size)))

    def grow(self) -> None:
        name = self._chance.choice(("data", "map"))
        self._write(name, lambda file, size: os.ftruncate(file, size + self._chance.randrange(1, 1 << 20)))

    def punch_holes(self) -> None:
        def change(file: int, size: int) -> None:
            punch(file, self._chance.randrange(size), self._chance.randrange(1, size))

        self._write("data", change)

    def swap(self) -> None:
        def change(file: int, size: int) -> None:
            places = [self._chance.randrange(size // CHUNK) * CHUNK for _ in range(2)]
            for data, place in zip([os.pread(file, CHUNK, place) for place in places], reversed(places), strict=True):
                os.pwrite(file, data, place)

        self._write("data", change)

    def remove_file(self) -> None:
        self._name().unlink()

    def remove_entry(self) -> None:
        shutil.rmtree(self._entry())

    def remove_all(self) -> None:
        shutil.rmtree(self._cache)

    def replace_by_link(self) -> None:
        name = self._name()
        name.unlink()
        name.symlink_to(self._cache.parent / "precious")

    def replace_by_fifo(self) -> None:
        name = self._name()
        name.unlink()
        os.mkfifo(name)

    def replace_by_directory(self) -> None:
        name = self._name()
        name.unlink()
        name.mkdir()

    def other_layout(self) -> None:
        (self._cache / "layout").write_text(self._chance.choice(("", "mystfuse-cache 9\n", "mystfuse-cache 1\n")))

    def fill_disk(self) -> None:
        """Writing behind some place fails, with EFBIG."""
        limit = self._chance.randrange(1 << 20)
        self._limit_files(limit)

    def empty_disk(self) -> None:
        self._limit_files(resource.RLIM_INFINITY)

    def _limit_files(self, limit: int) -> None:
        for supervisor in self._supervisors():
            worker = worker_of(supervisor)
            if worker is not None:
                resource.prlimit(worker, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    def lock(self) -> None:
        """Somebody else locks everything, for long."""
        descriptor = os.open(self._entry() / "map", os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
        self._locks.append(descriptor)
        request = struct.pack("hh4xqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, request)

    def unlock(self) -> None:
        while self._locks:
            os.close(self._locks.pop())

    def kill_worker(self) -> None:
        worker = worker_of(self._chance.choice(self._supervisors()))
        if worker is not None:
            os.kill(worker, signal.SIGKILL)

    def kill_fetcher(self) -> None:
        os.kill(self._chance.choice(self._supervisors()), signal.SIGKILL)

    def forbid(self) -> None:
        self._cache.chmod(self._chance.choice((0o000, 0o555, 0o755)))

    def rename(self) -> None:
        entry = self._entry()
        entry.rename(entry.with_name("e" * 64))


def _pwrite(file: int, data: bytes) -> None:
    os.pwrite(file, data, 0)
