"""The kind of file system that is wanted, ext2, ext3 or ext4 with features more or less: what mke2fs makes of it."""

from __future__ import annotations

from dataclasses import dataclass

from mystfuse.build.mke2fs import Format, try_empty_or_say
from mystfuse.errors import UnsupportedFeature, UsageError
from mystfuse.ext2.superblock import Superblock

TYPES = ("ext2", "ext3", "ext4")
_PROBE_BLOCKS = 16384
"""Of the empty file system that is made in memory to see which features it has: mke2fs adds a journal from 2048 on."""
_PROBE_INODES = 64


@dataclass(frozen=True, slots=True)
class Kind:
    """What decides about a tree's place in a file system. The defaults are those of ext2."""

    used_inodes: int = 11
    """Of an empty file system: ten reserved ones, and lost+found."""
    inode_size: int = 256
    blocks_per_cluster: int = 1
    has_extents: bool = False
    has_journal: bool = False
    has_block_checksums: bool = False
    """With metadata_csum, a block of a directory ends with 12 bytes for a checksum."""
    only_for_reading: tuple[str, ...] = ()
    """Features because of which a mount of it is read-only."""

    @classmethod
    def of(cls, empty: Superblock) -> Kind:
        """The kind of an empty file system."""
        features = empty.features
        return cls(
            empty.s_inodes_count - empty.s_free_inodes_count,
            empty.s_inode_size,
            empty.blocks_per_cluster,
            "extent" in features,
            "has_journal" in features,
            "metadata_csum" in features,
            tuple(empty.only_for_reading),
        )


EXT2 = Kind()


def find_kind(form: Format) -> Kind:
    """What mke2fs makes for this type and these features, by mke2fs.conf too: from an empty file system, in memory.

    Raises:
        UsageError: mke2fs does not know the features, or does not make them together, or mystfuse cannot use them.
        MystfuseError: mke2fs is missing.
    """
    if form.type == "ext2" and form.features is None:
        return EXT2
    given = f"-O {form.features}" if form.features is not None else f"--type {form.type}"
    try:
        empty, said = try_empty_or_say(_PROBE_BLOCKS * (form.block_size or 4096), _PROBE_INODES, form)
    except UnsupportedFeature as error:
        raise UsageError(f"{given}: {error}") from error
    if empty is None:
        raise UsageError(f"{given}: mke2fs makes no such file system: {said}")
    if "quota" in empty.features:
        raise UsageError(f"{given}: mke2fs does not count for quota the files that it copies")
    if "mmp" in empty.features and form.epoch is not None:
        raise UsageError(f"{given}: mmp records the time and the machine's name, whatever SOURCE_DATE_EPOCH says")
    return Kind.of(empty)
