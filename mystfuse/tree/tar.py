"""A tree of an image as a tar archive, written as it is read, the same bytes for the same image."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise

import trio

from mystfuse.errors import CorruptFilesystem, MystfuseError
from mystfuse.ext2.inode import Inode
from mystfuse.tree.image_file import CHUNK
from mystfuse.tree.image_tree import Child, ImageTree, check_first_visit
from mystfuse.tree.tar_members import OF_OVERLAYFS, Member, TarWriter, Write, has_member


async def write_tar(
    tree: ImageTree,
    path: str | bytes,
    write: Write,
    advance: Callable[[int], None] = lambda count: None,
    keep: Callable[[bytes, Inode], bool] = lambda name, inode: True,
    is_layer: bool = False,
) -> dict[str, int]:
    """Write an archive of a file, or of a directory and all below it; names in it are relative to ``path``.

    Args:
        path: a symbolic link is put into the archive itself.
        write: takes the archive, piece by piece.
        advance: called with the number of bytes of file data written since the last call.
        keep: called with each name in the archive and its inode, before it is written; False leaves it out. Below a
            directory that is left out, all goes in all the same.
        is_layer: leave out attributes that mean something else in a layer.

    Returns:
        What the archive lacks, and how many: ``socket``, ``attribute of overlayfs``.

    Raises:
        OSError: as ``ImageTree.stat``.
        CorruptFilesystem: also when a directory has a name twice or two names itself, or files have more blocks than
            the file system.
        IntegrityError, ImageReadError
    """
    archive = _Archive(tree, write, advance, keep, is_layer)
    inode = await tree.resolve(path, follow_symlinks=False)
    await archive.add_tree(inode, os.path.basename(os.fsencode(path).rstrip(b"/")))
    await archive.writer.finish()
    return dict(archive.omitted)


class _Archive:
    def __init__(
        self,
        tree: ImageTree,
        write: Write,
        advance: Callable[[int], None],
        keep: Callable[[bytes, Inode], bool],
        is_layer: bool,
    ) -> None:
        self.omitted: Counter[str] = Counter()
        self.writer = TarWriter(write)
        self._tree = tree
        self._advance = advance
        self._keep = keep
        self._is_layer = is_layer
        self._names: dict[int, bytes] = {}
        """The first name of each inode that has several."""
        self._blocks_left = tree.volume.superblock.s_blocks_count

    async def add_tree(self, inode: Inode, name: bytes) -> None:
        """Add an inode, and all below it if it is a directory, which is ``./`` then."""
        if not inode.is_directory:
            await self._add(name, inode)
            return
        seen: set[int] = set()
        await self._add(b"./", inode)
        pending = [(b"./", await self._children(inode.ino, seen))]
        while pending:
            directory, children = pending[-1]
            child = next(children, None)
            if child is None:
                pending.pop()
                continue
            path = directory + child.name
            try:
                inode = child.inode
                if inode.is_directory:
                    path += b"/"
                    pending.append((path, await self._children(inode.ino, seen)))
                await self._add(path, inode)
            except MystfuseError as error:
                raise error.at(os.fsdecode(path)) from error

    async def _children(self, ino: int, seen: set[int]) -> Iterator[Child]:
        """The names in a directory, sorted."""
        check_first_visit(ino, seen)
        children = sorted([child async for child in self._tree.children(ino)], key=lambda child: child.name)
        for one, other in pairwise(children):
            if one.name == other.name:
                raise CorruptFilesystem(f"directory inode {ino} has {one.name!r} twice")
        return iter(children)

    async def _add(self, name: bytes, inode: Inode) -> None:
        """Add one inode."""
        await trio.lowlevel.checkpoint()
        if not self._keep(name, inode):
            return
        if not has_member(inode.i_mode):
            self.omitted["socket"] += 1
            return
        first_name = self._names.get(inode.ino)
        if first_name is not None:
            await self.writer.add(_member(name, inode, first_name, {}, is_hard_link=True))
            return
        if inode.i_links_count > 1 and not inode.is_directory:
            self._names[inode.ino] = name
        if inode.is_regular:
            await self._count_blocks(inode)
        target = await self._tree.volume.target(inode.ino) if inode.is_symlink else b""
        xattrs = await self._tree.volume.xattrs(inode.ino)
        if self._is_layer:
            for attribute in [attribute for attribute in xattrs if attribute.startswith(OF_OVERLAYFS)]:
                self.omitted["attribute of overlayfs"] += 1
                del xattrs[attribute]
        await self.writer.add(_member(name, inode, target, xattrs))
        if inode.is_regular:
            for offset in range(0, inode.size, CHUNK):
                data = await self._tree.volume.read(inode.ino, offset, CHUNK)
                await trio.lowlevel.checkpoint()
                await self.writer.write(data)
                self._advance(len(data))
            await self.writer.end_data()

    async def _count_blocks(self, inode: Inode) -> None:
        """Check that the files do not claim more data than the image has: a few blocks in a circle could claim to be
        terabytes. Holes may have any length."""
        block_size = self._tree.volume.superblock.block_size
        async for _, length in self._tree.open_inode(inode, b"").data_ranges():
            self._blocks_left -= -(-length // block_size)
            if self._blocks_left < 0:
                raise CorruptFilesystem(f"inode {inode.ino}: the files have more blocks than the file system")


def _member(name: bytes, inode: Inode, target: bytes, xattrs: dict[bytes, bytes], is_hard_link: bool = False) -> Member:
    return Member(
        name,
        inode.i_mode,
        inode.uid,
        inode.gid,
        inode.size if inode.is_regular and not is_hard_link else 0,
        inode.rdev,
        inode.mtime_ns,
        target,
        is_hard_link,
        xattrs,
    )
