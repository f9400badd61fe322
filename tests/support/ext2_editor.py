"""EXT2 images for tests: made by mke2fs and debugfs, edited byte by byte, read through an in-memory device."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from struct import calcsize, pack_into, unpack_from
from typing import Any

from mystfuse.devices.device import Extent
from mystfuse.errors import ImageReadError, IntegrityError, MystfuseError
from mystfuse.ext2.inode import Inode
from mystfuse.volume.volume import Volume
from tests.support.commands import run

ROOT = 2


class MemoryDevice:
    """A device whose bytes are in memory; reading any byte of a damaged range raises IntegrityError."""

    def __init__(self, data: bytes | bytearray, damaged: Sequence[range] = ()) -> None:
        self.size = len(data)
        self.damaged = damaged
        self._data = bytes(data)

    def begin(self, extents: Sequence[Extent]) -> None:
        return None

    async def read(self, extents: Sequence[Extent], quietly: bool = False) -> list[memoryview]:
        for offset, length in extents:
            if offset < 0 or length < 0 or offset + length > self.size:
                raise ImageReadError(f"{length} bytes at {offset} are outside the device")
            if any(offset < bad.stop and bad.start < offset + length for bad in self.damaged):
                raise IntegrityError(f"the bytes at {offset} are not what they were")
        return [memoryview(self._data)[offset : offset + length] for offset, length in extents]


class FileDevice:
    """A device on a file, for sparse images that are too large for memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = path.stat().st_size

    def begin(self, extents: Sequence[Extent]) -> None:
        return None

    async def read(self, extents: Sequence[Extent], quietly: bool = False) -> list[memoryview]:
        with self.path.open("rb") as file:
            parts: list[memoryview] = []
            for offset, length in extents:
                file.seek(offset)
                parts.append(memoryview(file.read(length)))
            return parts


def make_image(path: Path, *options: str, size: str = "1M", tree: Path | None = None) -> Path:
    """Make a file system with mke2fs, ext2 unless the options say otherwise."""
    path.unlink(missing_ok=True)
    source = ("-d", str(tree)) if tree else ()
    kind = () if "-t" in options else ("-t", "ext2")
    run("mke2fs", "-q", "-F", *kind, "-E", "root_owner=0:0", *source, *options, path, size)
    return path


def debugfs(image: Path, *commands: str) -> str:
    """Run debugfs commands that write to the image."""
    with tempfile.NamedTemporaryFile("w", suffix=".debugfs") as script:
        script.write("\n".join(commands) + "\n")
        script.flush()
        return run("debugfs", "-w", "-f", script.name, image).stdout


@contextmanager
def kernel_mount(image: Path, mountpoint: Path, options: str = "ro") -> Iterator[Path]:
    """Mount the image with the kernel's own driver."""
    mountpoint.mkdir(exist_ok=True)
    run("mount", "-t", "ext4", "-o", f"loop,{options}", image, mountpoint)
    try:
        yield mountpoint
        if options != "ro":
            # Writes all of it to the image. umount alone leaves that for later where another mount namespace, made in
            # the meantime, has the mount too.
            run("mount", "-o", "remount,ro", mountpoint)
    finally:
        subprocess.run(["umount", mountpoint], check=True)


class Editor:
    """The bytes of an image, with just enough knowledge of the format to find fields to damage."""

    def __init__(self, data: bytes) -> None:
        self.data = bytearray(data)
        self.inodes_count = self.get("<I", 1024)
        self.block_size = 1024 << self.get("<I", 1024 + 24)
        self.first_data_block, self.blocks_count = self.get("<I", 1024 + 20), self.get("<I", 1024 + 4)
        self.inodes_per_group = self.get("<I", 1024 + 40)
        self.inode_size = self.get("<H", 1024 + 88) if self.get("<I", 1024 + 76) else 128

    def get(self, layout: str, offset: int) -> int:
        return int(unpack_from(layout, self.data, offset)[0])

    def put(self, layout: str, offset: int, *values: Any) -> None:
        assert offset + calcsize(layout) <= len(self.data)
        pack_into(layout, self.data, offset, *values)

    def descriptor(self, group: int = 0) -> int:
        """The byte offset of a group descriptor."""
        return (self.first_data_block + 1) * self.block_size + group * 32

    def inode(self, ino: int) -> int:
        """The byte offset of an inode."""
        group, index = divmod(ino - 1, self.inodes_per_group)
        return self.get("<I", self.descriptor(group) + 8) * self.block_size + index * self.inode_size

    def pointer(self, ino: int, index: int) -> int:
        """The byte offset of one of the 15 block pointers of an inode."""
        return self.inode(ino) + 40 + 4 * index

    def block(self, ino: int, index: int = 0) -> int:
        """The byte offset of the block that one of the 15 pointers of an inode refers to."""
        number = self.get("<I", self.pointer(ino, index))
        assert 0 < number < self.blocks_count
        return number * self.block_size

    def find(self, ino: int, name: bytes, blocks: int = 12) -> tuple[int, int]:
        """The byte offset of a directory entry and the inode number in it."""
        for index in range(blocks):
            start = position = self.block(ino, index)
            while position < start + self.block_size:
                child, rec_len, name_len = unpack_from("<IHB", self.data, position)
                if child and self.data[position + 8 : position + 8 + name_len] == name:
                    return position, child
                assert rec_len, "an entry of no length"
                position += rec_len
        raise AssertionError(f"no {name!r} in inode {ino}")

    def write_entries(self, position: int, entries: Sequence[tuple[int, bytes]]) -> list[int]:
        """Fill a directory block with entries of (inode number, name); returns the byte offset of each."""
        end = position + self.block_size
        offsets: list[int] = []
        for number, (ino, name) in enumerate(entries):
            rec_len = max(8 + len(name) + 3 & ~3, 12)
            if number == len(entries) - 1:
                rec_len = end - position
            self.data[position : position + rec_len] = bytes(rec_len)
            self.put(f"<IHBB{len(name)}s", position, ino, rec_len, len(name), 1, name)
            offsets.append(position)
            position += rec_len
        return offsets

    async def open(self, damaged: Sequence[range] = ()) -> Volume:
        return await Volume.open(MemoryDevice(self.data, damaged))


async def open_image(path: Path) -> Volume:
    """The volume of an image file, read into memory."""
    return await Volume.open(MemoryDevice(path.read_bytes()))


async def at(volume: Volume, *names: str | bytes) -> Inode:
    """The inode at an existing path below the root."""
    inode = await volume.inode(ROOT)
    for name in names:
        child = await volume.lookup(inode.ino, name.encode() if isinstance(name, str) else name)
        assert child is not None, name
        inode = child
    return inode


async def listing(volume: Volume, ino: int, step: int = 1000) -> list[bytes]:
    """All names of a directory, in steps of ``step`` entries."""
    return [name for name, _ in await listed(volume, ino, step)]


async def listed(volume: Volume, ino: int, step: int = 1000) -> list[tuple[bytes, Inode | None]]:
    """All names of a directory with their inodes, None for unreadable ones."""
    size = await volume.listing_size(ino)
    names: list[tuple[bytes, Inode | None]] = []
    offset = 0
    while offset < size:
        entries, following = await volume.entries(ino, offset, step)
        assert following > offset, "a listing that does not go on"
        assert len(entries) <= step
        names += [(entry.name, inode) for entry, inode in entries]
        offset = following
    return names


async def walk(volume: Volume, max_inodes: int = 300, max_bytes: int = 200_000) -> tuple[int, int]:
    """Read everything; returns the numbers of inodes, and of operations that failed with an allowed error."""
    seen: set[int] = set()
    failures = 0
    waiting = [ROOT]
    while waiting and len(seen) < max_inodes:
        ino = waiting.pop()
        if ino in seen:
            continue
        seen.add(ino)
        try:
            inode = await volume.inode(ino)
        except (MystfuseError, OSError):
            failures += 1
            continue
        try:
            await volume.xattrs(ino)
        except (MystfuseError, OSError):
            failures += 1
        try:
            if inode.is_symlink:
                await volume.target(ino)
            elif inode.is_regular:
                await volume.read(ino, 0, max_bytes)
                await volume.read(ino, max(inode.size - max_bytes, 0), max_bytes)
            elif inode.is_directory:
                await volume.lookup(ino, b"..")
                await volume.lookup(ino, b"no such name")
                offset = 0
                for _ in range(200):
                    if offset >= await volume.listing_size(ino):
                        break
                    entries, following = await volume.entries(ino, offset, 50)
                    assert following > offset
                    offset = following
                    waiting += [child.ino for _, child in entries if child is not None]
                    for entry, _ in entries[:5]:
                        try:
                            await volume.lookup(ino, entry.name)
                        except (MystfuseError, OSError):
                            failures += 1
        except (MystfuseError, OSError):
            failures += 1
    return len(seen), failures


async def merged(volume: Volume) -> bytes:
    """The whole file system in its present state."""
    snapshot = await volume.open_image()
    try:
        return await snapshot.read(0, snapshot.size)
    finally:
        snapshot.close()


def assert_clean(image: bytes, path: Path) -> None:
    """Check a file system with e2fsck, in a file at ``path``."""
    path.write_bytes(image)
    result = run("e2fsck", "-fn", path, check=False)
    assert result.returncode == 0, result.stdout
