"""The tree of an image, or of a mount's state, as a view to be compared with others."""

from __future__ import annotations

from collections.abc import AsyncIterator, Hashable, Mapping

import trio

from mystfuse.devices.verity import VerityDevice
from mystfuse.errors import CorruptFilesystem
from mystfuse.ext2.constants import EXT2_ROOT_INO
from mystfuse.ext2.inode import Inode
from mystfuse.tree.diff.view import Node
from mystfuse.tree.image_file import ImageFile
from mystfuse.tree.image_tree import ImageTree
from mystfuse.volume.volume import Volume

_ENTRIES_AT_ONCE = 1000


class ImageView:
    """A volume's tree. The key of a node is its inode number.

    What it costs grows with what is asked for: nothing is read ahead or kept.

    Args:
        volume: is read, and must stay as it is.
        name: as messages call it.
        lineage: names the file system that the volume is a state of, see ``View``; None for a file system of its own.
        verity: the device that the volume is on, if it is a verified image that is not encrypted, and no journal was
            replayed over it, so that the digests are those of the blocks that are read.
    """

    def __init__(self, volume: Volume, name: str, lineage: Hashable = None, verity: VerityDevice | None = None) -> None:
        self.volume = volume
        self.name = name
        self.lineage = lineage
        self.verity = verity

    @classmethod
    def of_tree(cls, tree: ImageTree, name: str) -> ImageView:
        """The view of an open image. Its lineage is the UUID of its file system, if it has one."""
        pipeline = tree.pipeline
        is_plain = pipeline is not None and pipeline.unlocked is None and tree.volume.written is None
        verity = pipeline.verity if pipeline is not None and is_plain else None
        return cls(tree.volume, name, tree.uuid if tree.uuid.int else None, verity)

    async def root(self) -> Node:
        """The root directory."""
        return await self.node(EXT2_ROOT_INO)

    async def node(self, ino: int) -> Node:
        """The node of inode number ``ino``.

        Raises:
            CorruptFilesystem, IntegrityError, ImageReadError
        """
        await trio.lowlevel.checkpoint()
        return node_of(await self.volume.inode(ino))

    async def children(self, node: Node) -> Mapping[bytes, Node]:
        """See ``View``; a name that is there twice, or whose inode cannot be read, is an error.

        Raises:
            NotADirectoryError, CorruptFilesystem, IntegrityError, ImageReadError
        """
        found: dict[bytes, Node] = {}
        for name, inode in (await self.inodes(ino_of(node))).items():
            found[name] = node_of(inode)
        return found

    async def inodes(self, directory: int) -> dict[bytes, Inode]:
        """The names in directory ``directory`` and their inodes; sorted, and raises, as ``children``."""
        await trio.lowlevel.checkpoint()
        found: dict[bytes, Inode] = {}
        size = await self.volume.listing_size(directory)
        offset = 0
        while offset < size:
            if offset:
                await trio.lowlevel.checkpoint()
            entries, offset = await self.volume.entries(directory, offset, _ENTRIES_AT_ONCE)
            for entry, inode in entries:
                if entry.name in found:
                    raise CorruptFilesystem(f"directory inode {directory} has {entry.name!r} twice")
                if inode is None:
                    raise await self.volume.missing_inode(entry.ino)
                found[entry.name] = inode
        return dict(sorted(found.items()))

    async def xattrs(self, node: Node) -> Mapping[bytes, bytes]:
        """See ``View``."""
        await trio.lowlevel.checkpoint()
        return await self.volume.xattrs(ino_of(node))

    async def target(self, node: Node) -> bytes:
        """See ``View``."""
        await trio.lowlevel.checkpoint()
        return await self.volume.target(ino_of(node))

    async def read(self, node: Node, offset: int, length: int) -> bytes | memoryview:
        """See ``View``."""
        await trio.lowlevel.checkpoint()
        return await self.volume.read(ino_of(node), offset, length)

    async def data_ranges(self, node: Node) -> AsyncIterator[tuple[int, int]]:
        """See ``View``; each range is up to 1 MiB long."""
        file = ImageFile(self.volume, await self.volume.inode(ino_of(node)), b"")
        async for data in file.data_ranges():
            yield data


def ino_of(node: Node) -> int:
    """The inode number of a node of an image."""
    assert isinstance(node.key, int)
    return node.key


def node_of(inode: Inode) -> Node:
    """The node of an inode."""
    return Node(
        key=inode.ino,
        mode=inode.i_mode,
        uid=inode.uid,
        gid=inode.gid,
        size=inode.size if inode.is_regular else 0,
        rdev=inode.rdev,
        mtime_ns=inode.mtime_ns,
        nlink=inode.i_links_count,
        generation=inode.i_generation,
    )
