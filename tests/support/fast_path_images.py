"""A tree with everything that the fast path answers about, images of it, and all questions about one."""

from __future__ import annotations

import os
import random
import stat
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

from mystfuse.ext2.caller import Caller
from mystfuse.ext2.constants import EXT2_ROOT_INO
from mystfuse.ext2.inode import Inode
from mystfuse.ext2.setattr import AttributeChanges
from mystfuse.volume.volume import Volume
from tests.support.commands import run
from tests.support.fuse_answers import questions_about

ADMIN = Caller(0, 0)


def make_tree(directory: Path, seed: int = 1) -> Path:
    """Files with blocks of all levels, long directories, links of both kinds, devices, attributes."""
    noise = random.Random(seed)
    for name in ("a/b/c", "many", "full"):
        (directory / name).mkdir(parents=True)
    for index, size in enumerate((0, 1, 1023, 4096, 12 * 1024, 12 * 4096 + 1, 700_001)):
        (directory / f"a/file{index}").write_bytes(noise.randbytes(size))
    for index in range(700):
        (directory / f"many/{index:04} {'n' * noise.randrange(100)}").touch()
    for index in range(12):
        (directory / f"full/{'l' * 250}{index:02}").touch()
    # Data at the edges of single, double and triple indirect blocks of 1 KiB, and holes between.
    with (directory / "sparse").open("wb") as file:
        for position in (0, 11_000, 270_000, 12 * 4096 + 5, 67_383_000, 80_000_000):
            file.seek(position)
            file.write(noise.randbytes(5000))
    (directory / "fast").symlink_to("a/b")
    (directory / "longest fast").symlink_to("f" * 59)
    (directory / "slow").symlink_to("s" * 60)
    (directory / "longest slow").symlink_to("/".join(["d" * 200] * 4))
    os.mkfifo(directory / "fifo")
    os.mknod(directory / "old device", 0o020644, os.makedev(4, 7))
    os.mknod(directory / "new device", 0o060644, os.makedev(300, 70_000))
    (directory / "suid").write_bytes(b"#!")
    (directory / "suid").chmod(0o4755)
    os.link(directory / "a/file3", directory / "a/b/hard")
    os.setxattr(directory / "a/file1", "user.small", b"v")
    os.setxattr(directory / "a/file2", "user.big", noise.randbytes(600))
    for index, path in enumerate([directory, *directory.rglob("*")]):
        # Before 1970, and past 2038.
        os.utime(path, ns=((index - 5) * 123_456_789_012, 5_000_000_000 * 10**9 + index), follow_symlinks=False)
    os.chown(directory / "a/file4", 1234, 70_000)
    return directory


def make_file_system(path: Path, tree: Path, block_size: int, inode_size: int, *options: str) -> Path:
    """Make it with mke2fs; its blocks do not lie one behind the other everywhere."""
    size = 24 << 20 if block_size < 32768 else 96 << 20
    kind = () if "-t" in options else ("-t", "ext2")
    run("mke2fs", "-q", "-F", *kind, "-b", str(block_size), "-I", str(inode_size), "-N", "2048",
        *options, "-E", "root_owner=0:0", "-d", tree, path, f"{size >> 10}k")  # fmt: skip
    return path


async def inodes_of(volume: Volume, most: int = 100) -> AsyncIterator[tuple[Inode, list[bytes]]]:
    """Each inode once, with some of its names if it is a directory."""
    waiting, seen = [EXT2_ROOT_INO], {EXT2_ROOT_INO}
    while waiting and len(seen) < 5000:
        inode = await volume.inode(waiting.pop(0))
        names: list[bytes] = []
        offset = 0
        while inode.is_directory and offset < inode.size:
            entries, offset = await volume.entries(inode.ino, offset, 200)
            names += [entry.name for entry, _ in entries]
            new = [entry.ino for entry, child in entries if child is not None and entry.ino not in seen]
            # Of a long directory, those at both ends.
            waiting += new[: most // 2] + new[most // 2 :][-most // 2 :]
            seen.update(new)
        yield inode, names


async def all_questions(volume: Volume, noise: random.Random) -> list[bytes]:
    """Requests about all inodes of a volume."""
    questions: list[bytes] = []
    async for inode, names in inodes_of(volume):
        some = names if len(names) < 60 else noise.sample(names, 60)
        about = questions_about(inode, some, volume.superblock.block_size)
        if inode.is_regular and not inode.size:
            about = about[:8]
        questions += about
    noise.shuffle(questions)
    return questions


async def change_something(volume: Volume, noise: random.Random) -> None:
    """One operation that commits; it may fail for good reasons."""
    directories, others = await _some(volume, noise)
    parent, name = noise.choice(directories), b"new %d%b" % (noise.randrange(40), b"n" * noise.choice((0, 0, 90, 240)))
    ino = noise.choice(others)
    with suppress(OSError):
        match noise.randrange(12):
            case 0 | 1:
                await volume.create(parent, name, stat.S_IFREG | noise.choice((0o644, 0o4711)), ADMIN)
            case 2:
                await volume.create(parent, name, stat.S_IFDIR | 0o755, ADMIN)
            case 3:
                target = b"t" * noise.choice((1, 59, 60, 900))
                await volume.create(parent, name, stat.S_IFLNK | 0o777, ADMIN, target=target)
            case 4 | 5 | 6:
                offset = noise.choice((0, 5000, 12 * 1024, noise.randrange(300_000), 270_000, 67_383_000))
                await volume.write(ino, offset, noise.randbytes(noise.choice((1, 1024, 4096, 50_000))), ADMIN)
            case 7:
                changes = AttributeChanges(size=noise.choice((0, 1, 5000, 12 * 1024, 400_000)))
                await volume.set_attributes(ino, changes, ADMIN)
            case 8:
                changes = AttributeChanges(
                    mode=noise.randrange(0o10000), mtime_ns=noise.randrange(1 << 62), uid=noise.randrange(1 << 31)
                )
                await volume.set_attributes(ino, changes, ADMIN)
            case 9:
                value = noise.randbytes(noise.choice((1, 50, 700)))
                await volume.set_xattr(ino, b"user.%d" % noise.randrange(3), value, ADMIN)
            case 10:
                names = [entry.name for entry, _ in (await volume.entries(parent, 0, 50))[0]]
                removed = await volume.remove(parent, noise.choice(names or [b"none"]), noise.random() < 0.3)
                if removed.ino in volume.orphans and noise.random() < 0.7:
                    await volume.release(removed.ino)
            case 11:
                names = [entry.name for entry, _ in (await volume.entries(parent, 0, 50))[0]]
                replaced = await volume.rename(
                    parent, noise.choice(names or [b"none"]), noise.choice(directories), name, 0, ADMIN
                )
                if replaced is not None and replaced.ino in volume.orphans:
                    await volume.release(replaced.ino)


async def _some(volume: Volume, noise: random.Random) -> tuple[list[int], list[int]]:
    """Numbers of some directories and of some other inodes."""
    directories, others = [EXT2_ROOT_INO], [EXT2_ROOT_INO]
    for _ in range(4):
        entries, _ = await volume.entries(noise.choice(directories), 0, 60)
        for _, child in entries:
            if child is not None:
                (directories if child.is_directory else others).append(child.ino)
    return directories, others
