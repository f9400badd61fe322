"""Opening an image: find its fssig and its hash tree, and decide whether to trust them.

``[ EXT2 file system | verity superblock + hash tree | fssig, 4096 B ]``
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

from mystfuse.devices.source import Remoteness, Source, attempts_of, remoteness
from mystfuse.errors import FormatError, ImageReadError, NotAnImage, NotTrusted, UnsupportedFeature, UsageError
from mystfuse.formats.fssig import FSSIG_SIZE, Fssig, has_fssig_magic
from mystfuse.formats.verity import VERITY_SUPERBLOCK_SIZE, TreeGeometry, VeritySuperblock
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
    data = source.read(source.size - FSSIG_SIZE, FSSIG_SIZE) if source.size >= FSSIG_SIZE else b""
    if not has_fssig_magic(data):
        raise _not_an_image(source)
    try:
        return Fssig.parse(data)
    except FormatError as error:
        raise error.at(source.name) from error


def _not_an_image(source: Source) -> FormatError:
    """The error about a file without an fssig: what it is, and what to do with it; for people, by unverified bytes."""
    try:
        # Only here: most images need none of it.
        from mystfuse.image.identify import identify
    except ImportError:
        # This daemon was confined before the image became another file.
        return FormatError(f"{source.name}: no signature block (fssig) at its end: not an image, or a truncated one")
    kind = identify(source)
    return NotAnImage.of(kind.title, kind.explain(source.name))


def _or_other_kind(source: Source, error: FormatError) -> FormatError:
    """The error about an image without a hash tree; or one that says what the file is, if it is none, though it ends
    with an fssig as what it packs does."""
    try:
        # Only here: most images need none of it.
        from mystfuse.image.identify import identify

        kind = identify(source)
    except (ImportError, ImageReadError):
        return error
    return error if kind.is_image else NotAnImage.of(kind.title, kind.explain(source.name))


def _where_else(source: Source, hash_offset: int) -> str:
    """Where a hash tree seems to be instead, if anywhere."""
    try:
        # Only here: most images need none of it.
        from mystfuse.image.identify import identify

        found = identify(source).facts.get("hash_offset")
    except (ImportError, ImageReadError):
        return ""
    return f"there is one at byte {found}" if found not in (None, hash_offset) else ""


def open_image(
    source: Source, policy: TrustPolicy, hash_offset: int | None = None, root_hash: bytes | None = None
) -> TrustedImage:
    """Decide whether and how to use an image. Where a cache may have changed the bytes that no digest covers, they are
    read again past it before it is refused.

    Args:
        hash_offset, root_hash: for a verity image without an fssig: where its superblock is, and its root hash
            (32 bytes for sha256, 64 for sha512). Both or none.

    Raises:
        NotTrusted: no trusted key signed it, and its root hash is not trusted.
        FormatError: not an image, or its tree is impossible.
        ImageReadError: reading it failed.
    """
    if remoteness(source) is Remoteness.HERE:
        return _open_image(source, policy, hash_offset, root_hash)
    # Only here: a local image needs none of it.
    from mystfuse.image.unverified_bytes import is_borne_out, reread

    refusal: FormatError | NotTrusted | None = None
    image: TrustedImage | None = None
    try:
        image = _open_image(source, policy, hash_offset, root_hash)
        if image.tree is None or is_borne_out(
            source, image.tree.superblock, image.tree.geometry, image.trust.root_hash
        ):
            return image
    except (FormatError, NotTrusted) as error:
        refusal = error
    for _ in range(attempts_of(source)):
        other = reread(source, hash_offset)
        if other is None:
            continue
        try:
            image = _open_image(other, policy, hash_offset, root_hash)
        except (FormatError, NotTrusted) as error:
            refusal, image = error, None
            continue
        if image.tree is None or is_borne_out(other, image.tree.superblock, image.tree.geometry, image.trust.root_hash):
            break
    if image is None:
        assert refusal is not None
        raise refusal
    return replace(image, source=source)


def _open_image(
    source: Source, policy: TrustPolicy, hash_offset: int | None = None, root_hash: bytes | None = None
) -> TrustedImage:
    """The same, by the bytes that come."""
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
        try:
            trust = decide(fssig, policy)
        except NotTrusted as error:
            raise error.at(source.name) from None
        try:
            tree = _read_tree(source, fssig.hash_offset, source.size - FSSIG_SIZE, exact=True)
        except FormatError as error:
            raise _or_other_kind(source, error) from error
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
        fault = f"{source.name}: {error.title}" if isinstance(error, NotAnImage) else error
        log.warning("%s; loaded without any check because of --insecure", fault)
        return TrustedImage(source, trust_without_tree(), None)
    return TrustedImage(source, trust, tree)


def _read_tree(source: Source, hash_offset: int, limit: int, exact: bool) -> HashTree:
    """Read the verity superblock at ``hash_offset`` of a tree that must end by byte ``limit``."""
    if hash_offset <= 0 or hash_offset + VERITY_SUPERBLOCK_SIZE > limit:
        hint = "" if exact else _where_else(source, hash_offset)
        raise FormatError(
            f"{source.name}: the verity superblock would be at byte {hash_offset}, outside the image (truncated?)"
        ).advised(hint)
    try:
        superblock = VeritySuperblock.parse(source.read(hash_offset, VERITY_SUPERBLOCK_SIZE))
        if superblock.data_size != hash_offset if exact else superblock.data_size > hash_offset:
            raise FormatError(
                f"the hash tree says that it covers {superblock.data_size} bytes, but there are {hash_offset}"
            )
        geometry = TreeGeometry.of(superblock, hash_offset)
        geometry.check_fits(limit)
    except FormatError as error:
        hint = "the image is damaged: get it again" if exact else _where_else(source, hash_offset)
        raise error.at(f"{source.name}, byte {hash_offset}").advised(hint) from error
    return HashTree(superblock, geometry)
