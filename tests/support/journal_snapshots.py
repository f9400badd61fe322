"""Snapshots of file systems that the kernel has mounted and writes to: images whose journals need recovery."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from random import Random

from mystfuse.ext2.journal import replay
from mystfuse.ext2.journal_format import JournalSuperblock, unescaped
from mystfuse.kernels.checksums import crc32c
from tests.support.commands import run
from tests.support.journals import MAGIC, journal_blocks, loop_device

KINDS: dict[str, tuple[tuple[str, ...], str]] = {
    "ext3, 1 KiB": (("-t", "ext3", "-b", "1024", "-J", "size=1"), "data=ordered"),
    "ext3, 4 KiB": (("-t", "ext3", "-b", "4096", "-J", "size=4"), "data=ordered"),
    "ext3, data in the journal": (("-t", "ext3", "-b", "1024", "-J", "size=1"), "data=journal"),
    "ext3, checksums": (("-t", "ext3", "-b", "1024", "-J", "size=1"), "journal_checksum"),
    "ext3, checksums, asynchronous": (
        ("-t", "ext3", "-b", "1024", "-J", "size=1"),
        "journal_async_commit,data=writeback",
    ),
    "ext4": (("-t", "ext4", "-b", "4096", "-J", "size=4"), "data=ordered"),
    "ext4, data in the journal": (("-t", "ext4", "-b", "1024", "-J", "size=1"), "data=journal"),
    "ext4, asynchronous": (("-t", "ext4", "-b", "1024", "-J", "size=1"), "journal_async_commit,data=writeback"),
}
"""Options of mke2fs, and of mount."""


class _Load(threading.Thread):
    """Writes to a directory until it is told to stop."""

    def __init__(self, directory: Path, random: Random) -> None:
        super().__init__()
        self._directory = directory
        self._random = random
        self.must_end = threading.Event()
        self.done = 0

    def run(self) -> None:
        held: list[int] = []
        while not self.must_end.is_set():
            with suppress(OSError):
                self._do(held)
            self.done += 1
            if not self._random.randrange(6):
                with suppress(OSError):
                    self._sync()
            if not self._random.randrange(4):
                time.sleep(self._random.random() / 30)
        for descriptor in held:
            os.close(descriptor)

    def _do(self, held: list[int]) -> None:
        random = self._random
        path = self._directory / f"d{random.randrange(4)}" / f"f{random.randrange(30)}"
        kind = random.randrange(8)
        if kind < 3:
            path.parent.mkdir(exist_ok=True)
            head = MAGIC.to_bytes(4, "big") if random.randrange(2) else b""
            with path.open("ab" if random.randrange(2) else "wb") as file:
                file.write((head + random.randbytes(60)) * random.randrange(1, 2000))
        elif kind == 3:
            path.rename(path.with_name(f"f{random.randrange(30)}"))
        elif kind == 4:
            path.unlink()
        elif kind == 5:
            for child in path.parent.iterdir():
                child.unlink()
            path.parent.rmdir()
        elif kind == 6:
            os.truncate(path, random.randrange(100_000))
        else:
            # An orphan, as long as it is open.
            held.append(os.open(path, os.O_RDWR))
            path.unlink()
            if len(held) > 5:
                os.close(held.pop(0))

    def _sync(self) -> None:
        descriptor = os.open(self._directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def snapshots(directory: Path, kind: str, count: int, random: Random) -> Iterator[bytes]:
    """Images as they are at random moments while the kernel writes to them: as after a power failure.

    The kernel now and then writes a superblock whose checksum is of another moment, and would not mount that itself:
    such images are left out.
    """
    image, mountpoint = directory / "loaded.img", directory / "loaded"
    made, options = KINDS[kind]
    run("mke2fs", "-q", "-F", "-E", "root_owner=0:0", *made, image, "12M")
    mountpoint.mkdir(exist_ok=True)
    with loop_device(image) as device:
        run("mount", "-t", "ext4", "-o", f"commit=1,{options}", device, mountpoint)
        load = _Load(mountpoint, random)
        try:
            load.start()
            taken = 0
            while taken < count:
                time.sleep(0.1 + random.random() / 3)
                data = _at_one_moment(image)
                if _has_right_superblock(data):
                    taken += 1
                    yield data
        finally:
            load.must_end.set()
            load.join()
            run("umount", mountpoint)
    assert load.done > 10 * count


def _has_right_superblock(data: bytes) -> bool:
    superblock = data[1024:2048]
    if not superblock[101] & 4:
        # It has no metadata_csum.
        return True
    return crc32c(superblock[:1020], 0xFFFFFFFF) == int.from_bytes(superblock[1020:], "little")


def _at_one_moment(image: Path) -> bytes:
    """The bytes of an image that is written to, as they were all at once."""
    before = b""
    for _ in range(1000):
        data = image.read_bytes()
        if data == before:
            return data
        before = data
    raise AssertionError("the image is written to all the time")


def replayed_by_hand(path: Path) -> tuple[bytes, set[int], int]:
    """An image with its journal's blocks where they belong, found by debugfs in place of our driver.

    Returns:
        The image; the numbers of the blocks that the journal has; how many transactions it has.
    """
    data = bytearray(path.read_bytes())
    size = 1024 << data[1024 + 24]
    journal = journal_blocks(path)

    def read(blocks: range) -> bytes:
        return b"".join(bytes(data[journal[block] * size : (journal[block] + 1) * size]) for block in blocks)

    steps = replay(JournalSuperblock.parse(read(range(1)), size, len(journal)), len(data) // size, 10_000)
    try:
        wanted = next(steps)
        while True:
            wanted = steps.send(read(wanted))
    except StopIteration as end:
        places, transactions, _ = end.value
    contents = {number: read(range(place.block, place.block + 1)) for number, place in places.items()}
    for number, content in contents.items():
        data[number * size : (number + 1) * size] = unescaped(content) if places[number].is_escaped else content
    return bytes(data), set(places), transactions
