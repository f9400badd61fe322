"""Opening an image: find its fssig and its hash tree, and decide whether to trust them.

``[ EXT2 file system | verity superblock + hash tree | fssig, 4096 B ]``
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from mystfuse.devices.source import Source
from mystfuse.errors import FormatError, UnsupportedFeature, UsageError
from mystfuse.formats.fssig import FSSIG_SIZE, Fssig, has_fssig_magic
from mystfuse.formats.verity import VERITY_SUPERBLOCK_SIZE, TreeGeometry, VeritySuperblock
from mystfuse.image.first_bytes import FIRST_BYTES, is_ext2, is_luks
from mystfuse.trust.policy import Trust, TrustPolicy, decide, trust_root_hash, trust_without_tree

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class HashTree:
    """The place of an image's tree, by its (untrusted) superblock."""

    superblock: VeritySuperblock
    geometry: TreeGeometry


@dataclass(frozen=True, slots=True)
class TrustedImage:
    """A trusted image, the reason of its trust, and its hash tree."""

    source: Source
    trust: Trust
    tree: HashTree | None
    """None for a bare file system under ``insecure``: nothing is checked."""


def read_fssig(source: Source) -> Fssig:
    """The fssig at the end of an image; not trusted.

    Raises:
        FormatError: there is none, or a broken one.
        ImageReadError: reading it failed.
    """
    if source.size < FSSIG_SIZE:
        raise FormatError(f"{source.name}: {source.size} bytes are too few for an image")
    data = source.read(source.size - FSSIG_SIZE, FSSIG_SIZE)
    if not has_fssig_magic(data):
        raise FormatError(
            f"{source.name}: no fssig at its end, so not a mystikos image, or a truncated one{_describe_start(source)}"
        )
    try:
        return Fssig.parse(data)
    except FormatError as error:
        raise error.at(source.name) from error


def _describe_start(source: Source) -> str:
    """The explanation for a file without an fssig that begins like an image. No signer covers it."""
    first = source.read(0, min(source.size, FIRST_BYTES))
    if not (is_luks(first) or is_ext2(first)):
        return ""
    kind = "a LUKS header" if is_luks(first) else "an EXT2 file system"
    return (
        f"; it begins with {kind}: --hash-offset and --roothash check it by a hash tree, --insecure loads it unchecked"
    )


def open_image(
    source: Source, policy: TrustPolicy, hash_offset: int | None = None, root_hash: bytes | None = None
) -> TrustedImage:
    """Decide whether and how to use an image.

    Args:
        hash_offset, root_hash: for a verity image without an fssig: where its superblock is, and its root hash
            (32 bytes for sha256, 64 for sha512). Both or none.

    Raises:
        NotTrusted: no trusted key signed it, and its root hash is not trusted.
        FormatError: not an image, or its tree is impossible.
        ImageReadError: reading it failed.
    """
    if hash_offset is not None:
        if root_hash is None:
            raise UsageError("--hash-offset needs the root hash of that tree: give one --roothash")
        tree = _read_tree(source, hash_offset, source.size, exact=False)
        if len(root_hash) != tree.superblock.digest_size:
            raise UsageError(
                f"the root hash has {len(root_hash)} bytes, but the tree is {tree.superblock.algorithm}, "
                f"which has {tree.superblock.digest_size}"
            )
        return TrustedImage(source, trust_root_hash(root_hash), tree)
    trust = None
    try:
        fssig = read_fssig(source)
        trust = decide(fssig, policy)
        tree = _read_tree(source, fssig.hash_offset, source.size - FSSIG_SIZE, exact=True)
        if tree.superblock.hash_type != 1:
            # Where the digests of both agree, a carrier could choose.
            raise UnsupportedFeature(
                f"{source.name}: verity hash type {tree.superblock.hash_type}; an image with an fssig has hash type 1"
            )
        if tree.superblock.digest_size != len(fssig.root_hash):
            raise FormatError(
                f"{source.name}: a {tree.superblock.algorithm} tree does not fit the root hash of an fssig"
            )
    except FormatError as error:
        if not policy.insecure or (trust and trust.is_vouched_for):
            raise
        log.warning("%s; loaded without any check because of --insecure", error)
        return TrustedImage(source, trust_without_tree(), None)
    return TrustedImage(source, trust, tree)


def _read_tree(source: Source, hash_offset: int, limit: int, exact: bool) -> HashTree:
    """Read the verity superblock at ``hash_offset`` of a tree that must end by byte ``limit``."""
    if hash_offset <= 0 or hash_offset + VERITY_SUPERBLOCK_SIZE > limit:
        raise FormatError(
            f"{source.name}: the verity superblock would be at byte {hash_offset}, outside the image (truncated?)"
        )
    try:
        superblock = VeritySuperblock.parse(source.read(hash_offset, VERITY_SUPERBLOCK_SIZE))
        if superblock.data_size != hash_offset if exact else superblock.data_size > hash_offset:
            raise FormatError(
                f"the hash tree says that it covers {superblock.data_size} bytes, but there are {hash_offset}"
            )
        geometry = TreeGeometry.of(superblock, hash_offset)
        geometry.check_fits(limit)
    except FormatError as error:
        raise error.at(f"{source.name}, byte {hash_offset}") from error
    return HashTree(superblock, geometry)
