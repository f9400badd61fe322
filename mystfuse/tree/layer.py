"""Changes of a tree as an OCI layer: a tar archive (pax) with whiteouts for what is gone, the same bytes for the same
changes.

Holes are written as zeros: image-spec's layer.md says that sparse files should not be used, and containers/storage
refuses them. gzip makes them small.
"""

from __future__ import annotations

import stat
from collections import Counter
from collections.abc import Callable, Hashable

import trio

from mystfuse.errors import CorruptFilesystem, MystfuseError
from mystfuse.tree.diff.view import Node, View
from mystfuse.tree.image_file import CHUNK
from mystfuse.tree.layer_plan import LayerPlan, in_order
from mystfuse.tree.tar_members import OF_OVERLAYFS, Member, TarWriter, Write


async def write_layer(
    plan: LayerPlan,
    new: View,
    write: Write,
    latest_ns: int | None = None,
    most_data: int | None = None,
    advance: Callable[[int], None] = lambda count: None,
) -> dict[str, int]:
    """Write a layer.

    Args:
        plan: what it holds, from ``plan_layer``.
        new: the view that the plan is of.
        write: takes the layer, piece by piece.
        latest_ns: later times of change are written as this one (SOURCE_DATE_EPOCH).
        most_data: the most bytes that all files may have, without holes: those of the file system.
        advance: called with the number of bytes of file data written since the last call.

    Returns:
        What the layer lacks, and how many: ``socket``, ``attribute of overlayfs``.

    Raises:
        OSError, MystfuseError: as the view and ``write``.
        CorruptFilesystem: files have more data than ``most_data``.
    """
    layer = _Layer(new, write, latest_ns, most_data, advance)
    layer.omitted["socket"] += len(plan.sockets)
    for path, node in in_order(plan):
        try:
            await layer.add(path, node)
        except MystfuseError as error:
            raise error.at(f"{new.name}: {path.decode(errors='surrogateescape')}") from error
    await layer.writer.finish()
    return {what: count for what, count in layer.omitted.items() if count}


class _Layer:
    def __init__(
        self,
        view: View,
        write: Write,
        latest_ns: int | None,
        most_data: int | None,
        advance: Callable[[int], None],
    ) -> None:
        self.writer = TarWriter(write)
        self.omitted: Counter[str] = Counter()
        self._view = view
        self._latest_ns = latest_ns
        self._data_left = most_data
        self._advance = advance
        self._names: dict[Hashable, bytes] = {}
        """The first name of each inode that has several."""

    async def add(self, path: bytes, node: Node | None) -> None:
        """Add a name; None is a whiteout."""
        await trio.lowlevel.checkpoint()
        if node is None:
            await self.writer.add(Member(path, stat.S_IFREG | 0o600))
            return
        first_name = None if node.is_directory else self._names.get(node.key)
        if first_name is not None:
            await self.writer.add(self._member(path, node, target=first_name, is_hard_link=True))
            return
        if node.nlink > 1 and not node.is_directory:
            self._names[node.key] = path
        if node.is_regular:
            await self._count_data(node)
        target = await self._view.target(node) if node.is_symlink else b""
        xattrs = dict(await self._view.xattrs(node))
        for name in [name for name in xattrs if name.startswith(OF_OVERLAYFS)]:
            self.omitted["attribute of overlayfs"] += 1
            del xattrs[name]
        name = (path or b".") + b"/" if node.is_directory else path
        await self.writer.add(self._member(name, node, target, xattrs=xattrs))
        if node.is_regular:
            await self._add_data(node)

    def _member(
        self,
        name: bytes,
        node: Node,
        target: bytes,
        xattrs: dict[bytes, bytes] | None = None,
        is_hard_link: bool = False,
    ) -> Member:
        mtime_ns = node.mtime_ns if self._latest_ns is None else min(node.mtime_ns, self._latest_ns)
        size = node.size if node.is_regular and not is_hard_link else 0
        return Member(
            name, node.mode, node.uid, node.gid, size, node.rdev, mtime_ns, target, is_hard_link, xattrs or {}
        )

    async def _add_data(self, node: Node) -> None:
        for offset in range(0, node.size, CHUNK):
            length = min(CHUNK, node.size - offset)
            data = await self._view.read(node, offset, length)
            if len(data) != length:
                raise MystfuseError(f"it is shorter than it was: {node.size} bytes")
            await self.writer.write(data)
            self._advance(length)
        await self.writer.end_data()

    async def _count_data(self, node: Node) -> None:
        """Check that the files do not claim more data than there can be: a few blocks in a circle could claim to be
        terabytes. Holes may have any length."""
        if self._data_left is None:
            return
        async for _, length in self._view.data_ranges(node):
            self._data_left -= length
            if self._data_left < 0:
                raise CorruptFilesystem("the files have more blocks than the file system")
