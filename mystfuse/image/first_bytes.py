"""The first bytes of an image: enough to distinguish the kinds; unverified."""

from __future__ import annotations

from mystfuse.ext2.constants import EXT2_SUPER_MAGIC, SUPERBLOCK_OFFSET
from mystfuse.formats.luks_magic import LUKS_MAGIC

FIRST_BYTES = 4096
"""Bytes that are enough."""
_MAGIC_OFFSET = SUPERBLOCK_OFFSET + 56


def is_ext2(first: bytes | bytearray | memoryview) -> bool:
    """Whether these bytes begin like an EXT2 file system."""
    return bytes(first[_MAGIC_OFFSET : _MAGIC_OFFSET + 2]) == EXT2_SUPER_MAGIC.to_bytes(2, "little")


def is_luks(first: bytes | bytearray | memoryview) -> bool:
    """Whether these bytes begin like a LUKS header."""
    return bytes(first[: len(LUKS_MAGIC)]) == LUKS_MAGIC
