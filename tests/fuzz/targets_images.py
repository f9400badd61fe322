"""Targets: whole damaged file systems, read and written as a mount would, without FUSE."""

from __future__ import annotations

import stat
import struct
from collections.abc import Awaitable
from contextlib import suppress
from typing import TypeVar

import trio

from mystfuse.errors import CorruptFilesystem, FormatError, UnsupportedFeature
from mystfuse.ext2.caller import Caller
from mystfuse.ext2.inode_flags import set_flags
from mystfuse.ext2.setattr import AttributeChanges
from mystfuse.volume import file_space
from mystfuse.volume.volume import Volume
from tests.fuzz.harness import Choices, Target, bounded, ensure
from tests.fuzz.images import SparseDevice, SparseImage, load
from tests.fuzz.mutator import layout, mutate

ROOT = 2
ADMIN, SOMEBODY = Caller(0, 0), Caller(1234, 100, lambda: frozenset({7}))
NAMES = ("small", "small", "groups", "old", "large")
OVERLAY_LIMIT = 4 << 20
OPERATION_SECONDS = 4.0
"""Seconds of processor time for one operation, instrumentation included."""
OPERATION_BYTES = 96 << 20
"""Bytes that one operation may read of the image: those that it may pin, and those fetched along with them."""

T = TypeVar("T")


class Tester:
    """A volume that checks each operation."""

    def __init__(self, volume: Volume, device: SparseDevice) -> None:
        self.volume = volume
        self.device = device
        self.failures = 0

    async def ask(self, operation: Awaitable[T], is_whole: bool = True) -> T | None:
        """The result of an operation; None if it fails with an allowed error.

        Args:
            is_whole: a failure changes nothing.
        """
        volume, changes, read = self.volume, self.volume.changes, self.device.bytes_read
        result: T | None = None
        with bounded(OPERATION_SECONDS, "one operation"):
            try:
                result = await operation
            except (CorruptFilesystem, UnsupportedFeature, OSError) as error:
                self.failures += 1
                ensure(bool(error.errno if isinstance(error, OSError) else str(error)), "an error that says nothing")
                ensure(not is_whole or volume.changes == changes, "an operation has failed and changed something")
        ensure(self.device.bytes_read - read <= OPERATION_BYTES, "one operation reads everything")
        if volume.overlay is not None:
            ensure(volume.overlay.used <= OVERLAY_LIMIT, "the overlay is larger than its limit")
        return result

    async def walk(self, most: int = 60) -> None:
        """Read everything."""
        volume = self.volume
        statistics = await self.ask(trio_awaitable(volume.statistics()))
        ensure(statistics is None or statistics.free_blocks >= 0, "less than nothing is free")
        seen: set[int] = set()
        waiting = [ROOT]
        while waiting and len(seen) < most:
            ino = waiting.pop(0)
            if ino in seen:
                continue
            seen.add(ino)
            inode = await self.ask(volume.inode(ino))
            if inode is None:
                continue
            await self.ask(volume.xattrs(ino))
            if inode.is_symlink:
                target = await self.ask(volume.target(ino))
                ensure(target is None or 0 < len(target) < 4096, "a target that is no path")
            elif inode.is_regular:
                await self.read(ino, inode.size)
            elif inode.is_directory:
                await self.ask(volume.dots(ino))
                await self.ask(volume.lookup(ino, b".."))
                await self.ask(volume.lookup(ino, b"no such name"))
                size = await self.ask(volume.listing_size(ino))
                waiting += await self.list(ino, size or 0)

    async def read(self, ino: int, size: int) -> None:
        for offset in {0, max(size // 2 - 10_000, 0), max(size - 50_000, 0), 12 * 1024 - 3, size, size + 5}:
            data = await self.ask(self.volume.read(ino, offset, 60_000))
            ensure(data is None or len(data) == max(min(size - offset, 60_000), 0), "more or less than the file has")
        offset = 0
        for _ in range(8):
            stretch = await self.ask(self.volume.stretch(ino, offset))
            if stretch is None or not stretch.length:
                break
            offset += stretch.length
            ensure(offset <= size, "a stretch behind the end")

    async def list(self, ino: int, size: int) -> list[int]:
        """The inode numbers in a directory; looks up some of its names."""
        offset = 0
        children: list[int] = []
        for _ in range(40):
            found = await self.ask(self.volume.entries(ino, offset, 50))
            if found is None:
                break
            entries, following = found
            ensure(following > offset and len(entries) <= 50, "a listing that does not go on")
            children += [child.ino for _, child in entries if child is not None]
            for entry, child in entries[:3]:
                ensure(b"/" not in entry.name and b"\0" not in entry.name and 0 < len(entry.name) <= 255, "a name")
                looked_up = await self.ask(self.volume.lookup(ino, entry.name))
                ensure(looked_up is None or child is None or looked_up.is_directory or bool(looked_up.ino), "nothing")
            offset = following
            if offset >= size:
                break
        return children

    async def operate(self, choices: Choices, inodes: list[int], directories: list[int]) -> None:
        """Change something."""
        volume = self.volume
        caller = choices.pick((ADMIN, SOMEBODY))
        ino, parent, other = choices.pick(inodes), choices.pick(directories), choices.pick(directories)
        names = (b"file", b"large", b"dir", b"many", b"slow", b"sparse", b"sub", b"hard", b"new", b"new2", b"n" * 255,
                 b"a-name-of-some-length-0007", b"lost+found", b"..", b"")  # fmt: skip
        name, second = choices.pick(names), choices.pick(names)
        places = (0, 1000, 12 * 1024 - 5, 300_000, (12 + 256 + 65536) * 1024 - 3, choices.number(4))
        lengths = (1, 1023, 4096, 70_000, 300_000, 1 << 33)
        match choices.below(19):
            case 0 | 1:
                mode = choices.pick(
                    (stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755, stat.S_IFCHR | 0o600, stat.S_IFDIR | 0o2777)
                )
                made = await self.ask(volume.create(parent, name, mode, caller, rdev=choices.number(2)))
                if made is not None:
                    (directories if made.is_directory else inodes).append(made.ino)
            case 2:
                target = b"t" * choices.pick((5, 59, 60, 300, 1023, 1024, 4095))
                await self.ask(volume.create(parent, name, stat.S_IFLNK | 0o777, caller, target=target))
            case 3 | 4:
                await self.ask(volume.remove(parent, name, bool(choices.below(2))))
            case 5 | 6:
                await self.ask(volume.rename(parent, name, other, second, choices.pick((0, 0, 1, 2, 3, 4, 5)), caller))
            case 7:
                await self.ask(volume.link(ino, parent, name, caller))
            case 8 | 9:
                await self.ask(volume.write(ino, choices.pick(places), b"w" * choices.pick((1, 1500, 70_000)), caller))
            case 10:
                size = choices.pick((0, 1, 100, 13 * 1024, 280 * 1024, 1 << 30, 1 << 33))
                await self.ask(volume.set_attributes(ino, AttributeChanges(size=size), caller), is_whole=False)
            case 11:
                changes = AttributeChanges(
                    mode=choices.number(2), uid=choices.pick((None, choices.number(4))), mtime_ns=-choices.number(8)
                )
                await self.ask(volume.set_attributes(choices.pick((ino, parent)), changes, caller))
            case 12:
                attribute = choices.pick((b"user.x", b"user.big", b"user.small", b"system.posix_acl_access"))
                where = choices.pick((ino, parent))
                if choices.below(3):
                    await self.ask(volume.set_xattr(where, attribute, b"v" * choices.pick((1, 50, 500, 4000)), caller))
                else:
                    await self.ask(volume.remove_xattr(where, attribute, caller))
            case 13:
                await self.ask(file_space.seek(volume, ino, choices.pick(places), bool(choices.below(2))))
            case 14 | 15:
                where, length = choices.pick(places), choices.pick(lengths)
                await self.ask(file_space.punch(volume, ino, where, length, caller), is_whole=False)
            case 16:
                where, length = choices.pick(places), choices.pick(lengths)
                keeps_size, zeroes = bool(choices.below(2)), bool(choices.below(2))
                allocation = file_space.allocate(volume, ino, where, length, keeps_size, zeroes, caller)
                await self.ask(allocation, is_whole=False)
            case 17:
                nameless = await self.ask(volume.create_nameless(parent, 0o644, 0, caller))
                if nameless is not None:
                    inodes.append(nameless.ino)
                    if choices.below(2):
                        await self.ask(volume.link(nameless.ino, other, name, caller))
            case 18:
                await self.ask(volume.change(ino, caller, set_flags, ino, choices.pick((0, 0x10, 0x20, 0x40, 0xC8))))
        for orphan in list(volume.orphans):
            if choices.below(2):
                with bounded(OPERATION_SECONDS, "a release"):
                    await volume.release(orphan)


async def trio_awaitable(value: T | Awaitable[T]) -> T:
    return await value if isinstance(value, Awaitable) else value


async def serve(image: SparseImage, choices: Choices | None, inodes: list[int], directories: list[int]) -> None:
    """Mount and walk; with ``choices``, write as they say, walk again, and take a snapshot."""
    device = SparseDevice(image)
    try:
        with bounded(OPERATION_SECONDS, "mounting"):
            volume = await Volume.open(device, OVERLAY_LIMIT)
    except FormatError as error:
        ensure(str(error).isprintable(), "not one line")
        return
    tester = Tester(volume, device)
    if choices is None:
        await tester.walk()
        return
    inodes, directories = list(inodes), list(directories)
    steps = 0
    while choices and steps < 40:
        steps += 1
        await tester.operate(choices, inodes, directories)
    await tester.walk(20)
    with bounded(2 * OPERATION_SECONDS, "a snapshot"), suppress(CorruptFilesystem, UnsupportedFeature):
        merged = await volume.open_image()
        await merged.read(0, min(merged.size, 1 << 20))
        merged.close()


def damaged(choices: Choices) -> tuple[str, SparseImage]:
    """An image with as many damages as the choices say."""
    name = choices.pick(NAMES)
    image = load(name).copy()
    for _ in range(choices.below(5)):
        mutate(image, name, choices)
    return name, image


def image(data: bytes) -> None:
    """Reading a broken file system gives its data or a documented error, in bounded time and memory."""
    _, broken = damaged(Choices(data))
    trio.run(serve, broken, None, [], [])


def image_writes(data: bytes) -> None:
    """Writing to a broken file system makes the right change or none; the rest as for reading."""
    choices = Choices(data)
    name, broken = damaged(choices)
    place = layout(name)
    inodes = [ino for ino in place.inodes if ino not in place.directories]
    trio.run(serve, broken, choices, inodes, list(place.directories))


def geometry(data: bytes) -> None:
    """A file system and a device that state a huge size are no more work than small ones."""
    choices = Choices(data)
    name = choices.pick(("small", "groups", "large"))
    broken = load(name).copy()
    broken.size = 1 << choices.pick((24, 30, 36, 42, 48))
    superblock = layout(name).superblock
    blocks_count = choices.pick((superblock.s_blocks_count, choices.number(4), (1 << 32) - 1, 1 << choices.below(32)))
    blocks_count = min(blocks_count, broken.size // superblock.block_size)
    per_group = choices.pick((superblock.s_blocks_per_group, choices.number(2), choices.below(64) + 1))
    inodes_per_group = choices.pick((superblock.s_inodes_per_group, choices.number(2), 8, 1))
    count = -(-(blocks_count - superblock.s_first_data_block) // max(per_group, 1))
    broken.put(1024, struct.pack("<II", count * inodes_per_group & 0xFFFFFFFF, blocks_count))
    broken.put(1024 + 12, struct.pack("<II", choices.number(4), choices.number(4)))
    broken.put(1024 + 32, struct.pack("<III", per_group, per_group, inodes_per_group))
    if choices.below(2):
        # Groups with their metadata in the right places: one behind the other, as the first block states.
        first, size = superblock.s_first_data_block, superblock.block_size
        free = choices.pick((0, 1, 0xFFFF))
        for group in range(min(count, choices.pick((8, 300, 3000)))):
            start = first + group * per_group + choices.pick((0, 1, 2))
            broken.put(
                (first + 1) * size + 32 * group, struct.pack("<IIIHHH", start, start + 1, start + 2, free, free, 0)
            )
    for _ in range(choices.below(3)):
        mutate(broken, name, choices)
    place = layout(name)
    inodes = [ino for ino in place.inodes if ino not in place.directories]
    trio.run(serve, broken, choices, inodes, list(place.directories))


def seeds() -> list[bytes]:
    """Each image, sound and with each kind of damage."""
    return [bytes([name]) for name in range(len(NAMES))] + [
        bytes([name, 1, 0, kind]) + bytes(range(kind, kind + 8)) for name in (1, 2, 3, 4) for kind in range(14)
    ]


def write_seeds() -> list[bytes]:
    operations = b"".join(bytes([0, 0, 0, 0, 8, 9, kind, 1, 0, 1]) for kind in range(13))
    return [bytes([name, 0]) + operations for name in range(len(NAMES))] + [seed + operations for seed in seeds()[5::3]]


TARGETS = [
    Target("image", image, seeds, 200),
    Target("image-writes", image_writes, write_seeds, 600),
    Target("geometry", geometry, lambda: [bytes([name, size, 2]) for name in range(3) for size in range(5)], 400),
]
