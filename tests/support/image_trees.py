"""Image trees to test."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from mystfuse.tree.image_tree import ImageTree

STAT_FIELDS = (
    "st_mode", "st_ino", "st_nlink", "st_uid", "st_gid", "st_rdev", "st_size", "st_blksize", "st_blocks",
    "st_atime_ns", "st_mtime_ns", "st_ctime_ns",
)  # fmt: skip


async def assert_agrees(tree: ImageTree, mount: Path) -> int:
    """Compare everything with a mount; returns how many paths there were."""
    count = 0
    pending = [b""]
    while pending:
        relative = pending.pop()
        path, theirs = b"/" + relative, os.path.join(os.fsencode(mount), relative)
        ours, expected = await tree.lstat(path), os.lstat(theirs)
        assert {field: getattr(ours, field) for field in STAT_FIELDS} == {
            field: getattr(expected, field) for field in STAT_FIELDS
        }, path
        attributes = {
            name: await tree.getxattr(path, name, follow_symlinks=False)
            for name in await tree.listxattr(path, follow_symlinks=False)
        }
        assert attributes == {
            name: os.getxattr(theirs, name, follow_symlinks=False)
            for name in os.listxattr(theirs, follow_symlinks=False)
        }
        if stat.S_ISREG(expected.st_mode):
            assert await tree.read_file(path) == Path(os.fsdecode(theirs)).read_bytes()
        elif stat.S_ISLNK(expected.st_mode):
            assert await tree.readlink(path) == os.readlink(theirs)
        elif stat.S_ISDIR(expected.st_mode):
            with os.scandir(theirs) as entries:
                wanted = {(entry.name, entry.inode(), entry.is_dir(follow_symlinks=False),
                           entry.is_file(follow_symlinks=False), entry.is_symlink()) for entry in entries}  # fmt: skip
            found = set()
            async for entry in tree.scandir(path):
                assert entry.path == os.path.join(path, entry.name)
                assert entry.stat() == await tree.lstat(entry.path)
                found.add((entry.name, entry.inode, entry.is_dir(), entry.is_file(), entry.is_symlink()))
                pending.append(os.path.join(relative, entry.name))
            assert found == wanted
        count += 1
    return count
