"""The user on whose behalf an operation is done."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from mystfuse.ext2.superblock import Superblock


@dataclass(frozen=True, slots=True)
class Caller:
    """The user on whose behalf an operation runs."""

    uid: int
    gid: int
    groups: Callable[[], Collection[int]] = frozenset
    """Returns the supplementary groups, when they matter."""

    @property
    def is_root(self) -> bool:
        return self.uid == 0

    def is_in_group(self, gid: int) -> bool:
        return gid == self.gid or gid in self.groups()

    def may_use_reserved(self, superblock: Superblock) -> bool:
        """Whether the reserved blocks are for this user too (fs/ext2/balloc.c, ext2_has_free_blocks)."""
        return (
            self.is_root
            or self.uid == superblock.s_def_resuid
            or (superblock.s_def_resgid != 0 and self.is_in_group(superblock.s_def_resgid))
        )


ROOT = Caller(0, 0)
"""For operations that take nothing and need no permission: freeing removed files."""
