"""Making a new image from the present state of a mount, as ``.mystfuse/image`` shows it."""

from __future__ import annotations

import errno
import math
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from uuid import UUID

from mystfuse.build.filesystem_uuid import with_uuid
from mystfuse.build.hash_tree import write_all
from mystfuse.build.kept_identity import KeptIdentity
from mystfuse.build.luks_format import make_luks_header
from mystfuse.build.made_image import MadeImage
from mystfuse.build.seal import VERITY_BLOCK_SIZE, seal, truncate
from mystfuse.crypto.sector_ciphers import SECTOR_SIZE, XtsCipher
from mystfuse.devices.patience import wait_for_storage
from mystfuse.errors import MystfuseError
from mystfuse.ext2.constants import SUPERBLOCK_OFFSET, SUPERBLOCK_SIZE
from mystfuse.ext2.superblock import Superblock
from mystfuse.image.keys import Encryption
from mystfuse.image.progress import Progress
from mystfuse.system.atomic_file import AtomicFile
from mystfuse.trust.signature import SigningKey

_CHUNK = 1 << 20
_HOLE = 64 << 10
"""Bytes: runs of zeros that are this long and aligned become holes."""


@dataclass(frozen=True, slots=True)
class CommitOptions:
    """How to make an image of a mount's present state."""

    signing_key: SigningKey | None = None
    encryption: Encryption | None = None
    kept: KeptIdentity = KeptIdentity()  # noqa: RUF009  # it is frozen
    uuid: UUID | None = None
    """The file system's new UUID; None: the one that it has."""
    io_timeout: float = math.inf
    """Seconds that the mount gets for each of its answers; ^C ends the wait for one at once."""
    is_secret: bool = False
    """Only its owner may open the new image, as with ``encryption``; not if it replaces another."""


def commit(merged: Path, target: Path, options: CommitOptions, force: bool, progress: Progress) -> MadeImage:
    """Make image ``target`` of the file system that ``merged`` shows; it appears only when it is complete.

    It does not contain later writes to the mount.

    Raises:
        MystfuseError: reading the mount's state or writing the image failed; nothing is left behind.
    """
    with new_image_file(target, force, options.is_secret or options.encryption is not None) as file:
        return commit_to(merged, file, options, progress)


def new_image_file(target: Path, force: bool, is_secret: bool) -> AtomicFile:
    """The file for a new image; raises MystfuseError as ``AtomicFile``.

    Args:
        is_secret: only its owner may open it, unless it replaces another.
    """
    return AtomicFile(target, force, mode=0o600 if is_secret else 0o666)


def commit_to(merged: Path, file: AtomicFile, options: CommitOptions, progress: Progress) -> MadeImage:
    """As ``commit``, into a file that is open already."""
    patiently = partial(wait_for_storage, name=str(merged), io_timeout=options.io_timeout)
    encryption = options.encryption
    try:
        source = patiently(partial(os.open, merged, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        raise MystfuseError(f"{merged}: {_explain(error)}") from error
    try:
        header, cipher = _start_encryption(encryption, progress) if encryption is not None else (b"", None)
        write_all(file.fd, header, 0)
        size = patiently(partial(os.fstat, source)).st_size
        with progress("copying the file system", size) as advance:

            def read(position: int, length: int) -> bytes:
                return patiently(partial(_read, source, merged, position, length))

            superblock = Superblock.parse(read(SUPERBLOCK_OFFSET, SUPERBLOCK_SIZE))
            pieces = read if options.uuid is None else with_uuid(read, superblock, options.uuid)
            if options.uuid is not None:
                superblock = replace(superblock, s_uuid=options.uuid)
            _copy(pieces, file, len(header), cipher, size, advance)
    finally:
        # Without a request to the mount, which has no ``flush``.
        os.close(source)
    kept = options.kept
    hash_offset = len(header) + _whole_blocks(size)
    if 0 < kept.data_size - hash_offset < superblock.s_blocks_per_group * superblock.block_size:
        # mke2fs has left out a last group that was too small.
        hash_offset = _whole_blocks(kept.data_size)
    truncate(file, hash_offset)
    sealed = seal(file, hash_offset, options.signing_key, progress, kept.salt, kept.uuid)
    file.commit()
    version = encryption.luks_version if encryption is not None else None
    return MadeImage(file.target, sealed.size, sealed.fssig, sealed.tree, superblock, version)


def _start_encryption(encryption: Encryption, progress: Progress) -> tuple[bytes, XtsCipher]:
    """The LUKS header, and the cipher for the rest; the keys are wiped."""
    try:
        return make_luks_header(encryption, secrets.token_bytes, progress), XtsCipher(encryption.master_key.view)
    finally:
        encryption.wipe()


def _copy(
    read: Callable[[int, int], bytes],
    file: AtomicFile,
    offset: int,
    cipher: XtsCipher | None,
    size: int,
    advance: Callable[[int], None],
) -> None:
    """Copy ``size`` bytes to byte ``offset`` on: zeros as holes, or everything encrypted, filled up to whole blocks.

    Args:
        read: gives bytes by position and length, exactly as many.
    """
    zeros = bytes(_HOLE)
    position = 0
    while position < size:
        data = read(position, min(_CHUNK, size - position))
        if cipher is not None:
            whole = data.ljust(_whole_blocks(len(data)), b"\0")
            write_all(file.fd, cipher.encrypt(whole, position // SECTOR_SIZE), offset + position)
        else:
            for start in range(0, len(data), _HOLE):
                piece = data[start : start + _HOLE]
                if piece != zeros[: len(piece)]:
                    write_all(file.fd, piece, offset + position + start)
        position += len(data)
        advance(len(data))


def _read(source: int, name: Path, position: int, length: int) -> bytes:
    """Exactly ``length`` bytes: after a short part, later bytes would be in other sectors."""
    data = b""
    while len(data) < length:
        try:
            part = os.pread(source, length - len(data), position + len(data))
        except OSError as error:
            raise MystfuseError(
                f"{name}: byte {position}: {error.strerror} (damaged? the mount's log names the block)"
            ) from error
        if not part:
            raise MystfuseError(f"{name}: ends at byte {position + len(data)}")
        data += part
    return data


def _whole_blocks(size: int) -> int:
    return -(-size // VERITY_BLOCK_SIZE) * VERITY_BLOCK_SIZE


def _explain(error: OSError) -> str:
    if error.errno == errno.EBUSY:
        return "too many copies of it are being read: try again later"
    if error.errno == errno.ENOSPC:
        return "no room left in the overlay to keep the present state: delete something, or mount with a larger limit"
    return error.strerror or str(error)
