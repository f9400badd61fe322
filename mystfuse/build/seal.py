"""Making a file system into an image: the hash tree behind it, then the fssig."""

from __future__ import annotations

import os
from typing import NamedTuple
from uuid import UUID, uuid4

from mystfuse.build.hash_tree import write_all, write_tree
from mystfuse.errors import MystfuseError
from mystfuse.formats.fssig import FSSIG_SIZE, Fssig
from mystfuse.formats.verity import TreeGeometry, VeritySuperblock
from mystfuse.image.progress import Progress
from mystfuse.system.atomic_file import AtomicFile, WritableFile
from mystfuse.trust.signature import SigningKey

VERITY_BLOCK_SIZE = 4096


class Sealed(NamedTuple):
    """A file system that has become an image."""

    fssig: Fssig
    tree: VeritySuperblock
    size: int
    """Bytes of the whole file."""


def seal(
    file: AtomicFile,
    hash_offset: int,
    signing_key: SigningKey | None,
    progress: Progress,
    salt: bytes | None = None,
    tree_uuid: UUID | None = None,
) -> Sealed:
    """Write hash tree and fssig behind the first ``hash_offset`` bytes (a multiple of 4096) of the file.

    Args:
        salt: of the tree; if None, one that covers the superblock.
        tree_uuid: random if None.

    Raises:
        MystfuseError: reading back or writing failed.
    """
    superblock = VeritySuperblock(
        hash_offset // VERITY_BLOCK_SIZE,
        salt or b"",
        (tree_uuid or uuid4()).bytes,
        data_block_size=VERITY_BLOCK_SIZE,
        hash_block_size=VERITY_BLOCK_SIZE,
    )
    if salt is None:
        superblock = superblock.with_vouching_salt()
    with progress("hashing", hash_offset) as advance:
        root_hash = write_tree(file.fd, superblock, hash_offset, advance)
    fssig = Fssig(hash_offset, root_hash)
    if signing_key is not None:
        fssig = Fssig(hash_offset, root_hash, signing_key.signer, signing_key.sign(root_hash))
    end = TreeGeometry.of(superblock, hash_offset).end
    write_all(file.fd, fssig.pack(), end)
    truncate(file, end + FSSIG_SIZE)
    return Sealed(fssig, superblock, end + FSSIG_SIZE)


def truncate(file: WritableFile, size: int) -> None:
    """Set the file's size; MystfuseError if that fails."""
    try:
        os.ftruncate(file.fd, size)
    except OSError as error:
        raise MystfuseError(f"{file.target}: {size} bytes: {error.strerror}") from error
