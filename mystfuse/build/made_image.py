"""The facts about a new image: what ``mkext2`` and ``commit`` say that they have made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from mystfuse.ext2.features import filesystem_type
from mystfuse.ext2.superblock import Superblock
from mystfuse.formats.fssig import Fssig
from mystfuse.formats.verity import VeritySuperblock


@dataclass(frozen=True, slots=True)
class MadeImage:
    """A complete image."""

    path: Path
    size: int
    """Bytes of the whole file: file system, hash tree, fssig, and the LUKS header if it has one."""
    fssig: Fssig
    tree: VeritySuperblock
    filesystem: Superblock
    luks_version: int | None
    """None: it is not encrypted."""

    @property
    def files(self) -> int:
        """Files, directories and all else that has an inode of its own, but for the root directory and lost+found."""
        used = self.filesystem.s_inodes_count - self.filesystem.s_free_inodes_count
        return max(used - self.filesystem.s_first_ino - len(self.filesystem.hidden_inodes), 0)

    @property
    def free_bytes(self) -> int:
        """What there is room for besides, for ordinary users: without the blocks that are reserved for root."""
        blocks = self.filesystem.s_free_blocks_count - self.filesystem.s_r_blocks_count
        return max(blocks, 0) * self.filesystem.block_size

    def document(self) -> dict[str, Any]:
        """The document that ``--json`` prints, but for the command to mount it: docs/schemas/mkext2.json."""
        filesystem = self.filesystem
        return {
            "image": str(self.path),
            "size": self.size,
            "hash_offset": self.fssig.hash_offset,
            "root_hash": self.fssig.root_hash.hex(),
            "signer": self.fssig.signer.hex() if self.fssig.is_signed else None,
            "salt": self.tree.salt.hex(),
            "tree_uuid": str(UUID(bytes=self.tree.uuid)),
            "luks_version": self.luks_version,
            "filesystem": {
                "type": filesystem_type(filesystem.features),
                "uuid": str(filesystem.s_uuid),
                "size": filesystem.size,
                "block_size": filesystem.block_size,
                "files": self.files,
                "inodes": filesystem.s_inodes_count,
                "free_inodes": filesystem.s_free_inodes_count,
                "free_bytes": self.free_bytes,
                "reserved_bytes": filesystem.s_r_blocks_count * filesystem.block_size,
            },
        }
