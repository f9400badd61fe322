"""What damaged blocks belong to, for the log: which structure or file, and where that is known, its path.

Whoever reads blocks knows the inode, not its path: the kernel names files by numbers. So the first line about a file
has its inode; ``DamagedPaths`` then looks for the path in the background, and later lines have it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import trio

from mystfuse.devices.damaged_blocks import DamagedBlocks
from mystfuse.devices.device import Extent
from mystfuse.errors import one_line
from mystfuse.ext2.constants import EXT2_ROOT_INO
from mystfuse.ext2.filesystem import FileSystem
from mystfuse.ext2.fixed_blocks import INODE_TABLE, describe_fixed, find_fixed
from mystfuse.volume.read_plan import ReadPlan

MAX_KNOWN = 1024
"""Inodes whose paths are known, or have been looked for."""
MAX_WAITING = 256
"""Inodes whose paths are to be looked for."""
_MOST_RANGES = 4
"""Ranges of one file in a line."""


class DamageNames:
    """Reports damage with what it belongs to."""

    def __init__(self, filesystem: FileSystem) -> None:
        self._filesystem = filesystem
        self._known: OrderedDict[int, str] = OrderedDict()
        """Paths by inode; empty where it has been looked for in vain."""
        self.waiting: OrderedDict[int, None] = OrderedDict()
        """Inodes whose paths are to be looked for, the latest last."""
        self.has_waiting = trio.Event()

    def report_file(self, damage: DamagedBlocks, ino: int, offset: int, plan: ReadPlan) -> None:
        """Report damage of a file's data.

        Args:
            offset: the byte of the file at which ``plan`` begins.
        """
        ranges = _in_file(plan, offset, damage.extents)
        shown = ", ".join(f"{start}-{end - 1}" for start, end in ranges[:_MOST_RANGES])
        more = ", ..." if len(ranges) > _MOST_RANGES else ""
        damage.report(f"{self._inode(ino)}, bytes {shown}{more}")

    def report_block(self, damage: DamagedBlocks, number: int, owner: tuple[str, int] | None) -> None:
        """Report damage of a metadata block.

        Args:
            owner: see ``BlocksMissing.owner``.
        """
        fixed = find_fixed(self._filesystem.groups, number)
        if fixed is not None:
            where = describe_fixed(self._filesystem.superblock, fixed, number)
            if fixed.what == INODE_TABLE and owner is not None:
                where += f", for {self._inode(owner[1])}"
        elif owner is not None:
            where = self._inode(owner[1], owner[0])
        else:
            where = f"block {number} of the file system"
        damage.report(where)

    def report_image(self, damage: DamagedBlocks) -> None:
        """Report damage that a reader of the merged image has met."""
        superblock = self._filesystem.superblock
        where = "the merged image"
        for extent in damage.extents[:1]:
            number = extent.offset // superblock.block_size
            fixed = find_fixed(self._filesystem.groups, number)
            where += f", bytes {extent.offset}-{extent.end - 1}"
            where += f", {describe_fixed(superblock, fixed, number)}" if fixed else ""
        damage.report(where)

    def _inode(self, ino: int, what: str = "inode") -> str:
        """An inode and, if it is known, its path; else the path will be looked for."""
        if ino == EXT2_ROOT_INO:
            return f"{what} {ino}, /"
        path = self._known.get(ino)
        if path is None and len(self.waiting) < MAX_WAITING:
            self.waiting[ino] = None
            self.has_waiting.set()
        return f"{what} {ino}, {path}" if path else f"{what} {ino}"

    def take_waiting(self) -> set[int]:
        """The inodes whose paths are to be looked for; none waits any more."""
        taken = set(self.waiting)
        self.waiting.clear()
        self.has_waiting = trio.Event()
        return taken

    def know(self, ino: int, path: bytes | None) -> str:
        """Keep a path, or that none was found; returns it in the form of the log, or nothing."""
        shown = "" if path is None else one_line(path.decode("utf-8", "surrogateescape"))
        self._known[ino] = shown
        if len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)
        return shown

    def forget_paths(self) -> None:
        """Names have changed: paths have to be looked for again."""
        if self._known:
            self._known = OrderedDict((ino, path) for ino, path in self._known.items() if not path)


def _in_file(plan: ReadPlan, offset: int, damaged: Sequence[Extent]) -> list[tuple[int, int]]:
    """The bytes of a file that lie in damaged extents of the device, as (start, end); all of the plan if it is a hash
    block that is damaged."""
    if not damaged:
        return [(offset, offset + plan.length)]
    ranges: list[tuple[int, int]] = []
    position = offset
    for piece in plan.pieces:
        length = len(piece) if isinstance(piece, bytes) else piece.length
        if isinstance(piece, Extent):
            for extent in damaged:
                low, high = max(piece.offset, extent.offset), min(piece.end, extent.end)
                if low < high:
                    start, end = position + low - piece.offset, position + high - piece.offset
                    if ranges and ranges[-1][1] == start:
                        ranges[-1] = ranges[-1][0], end
                    else:
                        ranges.append((start, end))
        position += length
    return ranges
