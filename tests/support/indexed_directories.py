"""Directories with many names, their indices, and the kernel as the judge of both."""

from __future__ import annotations

import os
import random
import stat
from collections import defaultdict
from pathlib import Path

from mystfuse.ext2.name_hash import NameHash
from mystfuse.volume.volume import Volume
from tests.support.commands import run
from tests.support.ext2_editor import ROOT, MemoryDevice, assert_clean, kernel_mount, listing, make_image, merged
from tests.support.gated_volumes import ROOT as CALLER

LIMIT = 256 << 20
SETS: dict[str, tuple[str, ...]] = {
    "ext2, 1 KiB": ("-t", "ext2", "-b", "1024", "-O", "dir_index"),
    "ext2, 4 KiB": ("-t", "ext2", "-b", "4096", "-O", "dir_index"),
    "no types": ("-t", "ext2", "-b", "1024", "-O", "dir_index,^filetype"),
    "checksums": ("-t", "ext4", "-b", "1024", "-O", "^extent,^64bit,^has_journal"),
    "checksums, 4 KiB": ("-t", "ext4", "-b", "4096", "-O", "^extent,^64bit,^has_journal,large_dir"),
    "checksums, linear": ("-t", "ext4", "-b", "1024", "-O", "^extent,^64bit,^has_journal,^dir_index"),
}
"""Kinds of directories, by name: options of mke2fs."""
LINKS = 30_000


class Directory:
    """A directory whose names come and go, with a model of it."""

    def __init__(self, volume: Volume, ino: int, seed: int) -> None:
        self.volume = volume
        self.ino = ino
        self.names: dict[bytes, int] = {}
        self._chance = random.Random(seed)
        self._file = 0
        self._links = LINKS

    @classmethod
    async def make(cls, volume: Volume, name: bytes, seed: int) -> Directory:
        inode = await volume.create(ROOT, name, stat.S_IFDIR | 0o755, CALLER)
        return cls(volume, inode.ino, seed)

    async def add(self, name: bytes) -> None:
        """Add a name of a file: links, so that few inodes are needed."""
        if self._links >= LINKS:
            self._links = 0
            name_of_file = b"file-%d-%d" % (self.ino, len(self.names))
            self._file = (await self.volume.create(ROOT, name_of_file, stat.S_IFREG | 0o644, CALLER)).ino
        await self.volume.link(self._file, self.ino, name, CALLER)
        self._links += 1
        self.names[name] = self._file

    async def remove(self, name: bytes) -> None:
        inode = await self.volume.lookup(self.ino, name)
        assert inode is not None and inode.ino == self.names.pop(name)
        await self.volume.remove(self.ino, name, inode.is_directory)

    async def move(self, name: bytes, other: Directory, to: bytes) -> None:
        await self.volume.rename(self.ino, name, other.ino, to, 0, CALLER)
        other.names[to] = self.names.pop(name)

    async def mkdir(self, name: bytes) -> None:
        self.names[name] = (await self.volume.create(self.ino, name, stat.S_IFDIR | 0o755, CALLER)).ino

    def some_name(self) -> bytes:
        return self._chance.choice(list(self.names))

    async def assert_complete(self) -> None:
        """A listing and look-ups give the model's names."""
        assert sorted(await listing(self.volume, self.ino)) == sorted(self.names)
        for name, ino in self.names.items():
            found = await self.volume.lookup(self.ino, name)
            assert found is not None and found.ino == ino, name


async def change_at_random(one: Directory, other: Directory, steps: int, seed: int) -> None:
    """Add, remove and rename names of all lengths."""
    chance = random.Random(seed)
    for step in range(steps):
        directory = one if chance.random() < 0.8 else other
        what = chance.random()
        stem = b"%x-%x" % (seed, step)
        new = chance.choice((stem, stem.ljust(chance.randrange(10, 256), b"n"), chance.randbytes(9).hex().encode()))
        if what < 0.55 or not directory.names:
            await directory.add(new)
        elif what < 0.6:
            await directory.mkdir(new)
        elif what < 0.75:
            await directory.remove(directory.some_name())
        else:
            await directory.move(directory.some_name(), one if chance.random() < 0.7 else other, new)


async def open_new(path: Path, *options: str, size: str = "24M") -> Volume:
    """A new, empty file system."""
    image = make_image(path, "-N", "4096", *options, size=size)
    return await Volume.open(MemoryDevice(image.read_bytes()), LIMIT)


async def judge(directory: Path, names: dict[bytes, Directory], volume: Volume) -> str:
    """Have e2fsck check the file system, and the kernel look every name up; returns debugfs's ``htree_dump`` of the
    first directory.

    Args:
        names: the directories in the root.
    """
    image = directory / "merged"
    assert_clean(await merged(volume), image)
    with kernel_mount(image, directory / "mountpoint") as mount:
        for name, one in names.items():
            root = os.fsencode(mount) + b"/" + name
            assert sorted(os.listdir(root)) == sorted(one.names)
            for entry, ino in one.names.items():
                assert os.lstat(root + b"/" + entry).st_ino == ino
            assert not os.path.lexists(root + b"/no such name")
    return run("debugfs", "-R", f"htree_dump /{os.fsdecode(next(iter(names)))}", image).stdout


def colliding_names(name_hash: NameHash, version: int, count: int) -> list[bytes]:
    """Long names, of which each has the hash of another one."""
    groups: dict[int, list[bytes]] = defaultdict(list)
    number = found = 0
    while found < count:
        name = b"%08x" % number + b"-" * 150
        group = groups[name_hash.of(version, name)]
        group.append(name)
        found += 0 if len(group) == 1 else 2 if len(group) == 2 else 1
        number += 1
    return [name for group in groups.values() if len(group) > 1 for name in group]
