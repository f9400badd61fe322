"""The running devices of an image, one on the other: what a mount, the API and ``verify --key-file`` read through."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from mystfuse.devices.device import Device, Extent
from mystfuse.devices.reader import ImageReader
from mystfuse.devices.verity import VerityDevice
from mystfuse.devices.workers import Workers
from mystfuse.errors import WrongKey
from mystfuse.ext2.constants import EXT2_SUPER_MAGIC, SUPERBLOCK_OFFSET
from mystfuse.formats.luks_magic import LUKS_MAGIC
from mystfuse.image.keys import Keys
from mystfuse.image.open import TrustedImage
from mystfuse.image.progress import Progress

if TYPE_CHECKING:
    from mystfuse.image.unlock import Unlocked


_EXT2_MAGIC_OFFSET = SUPERBLOCK_OFFSET + 56
_FIRST_BYTES = 4096
"""What tells an EXT2 file system from a LUKS header."""


@dataclass(frozen=True, slots=True)
class Pipeline:
    """The running devices of an image: the reader below the trust boundary, and what stands on top of it."""

    reader: ImageReader
    verity: VerityDevice | None
    unlocked: Unlocked | None
    """None for an image that is not encrypted."""
    workers: Workers
    device: Device
    """The topmost layer: verified, where there is a tree, and decrypted."""


@asynccontextmanager
async def run_pipeline(
    image: TrustedImage, keys: Keys, io_timeout: float, progress: Progress
) -> AsyncIterator[Pipeline]:
    """Run the reader task and stack the devices of ``image`` on it, until the block ends.

    Args:
        keys: for an encrypted image; wiped when the block begins.
        progress: shown while a passphrase is tried.

    Raises:
        WrongKey: the image is encrypted and ``keys`` do not open it, or the other way round.
        FormatError, IntegrityError, ImageReadError: its LUKS header cannot be read.
    """
    reader = ImageReader(image.source, io_timeout)
    verity = None
    if image.tree is not None:
        assert image.trust.root_hash is not None
        verity = VerityDevice(reader, image.tree.superblock, image.tree.geometry, image.trust.root_hash)
    workers = Workers()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reader.run)
        try:
            unlocked = await _open_encrypted(verity or reader, keys, progress)
            if unlocked is None and keys:
                # Somebody who counts on encryption must not get another image in its place.
                raise WrongKey(f"a key is given{keys.origin and f' ({keys.origin})'}, but the image is not encrypted")
            yield Pipeline(reader, verity, unlocked, workers, unlocked.device if unlocked else verity or reader)
        finally:
            keys.wipe()
            # Nobody may read from the source when it is closed.
            workers.close()
            nursery.cancel_scope.cancel()


async def _open_encrypted(verified: Device, keys: Keys, progress: Progress) -> Unlocked | None:
    """Open a device if it is encrypted; None if it is not."""
    (first,) = await verified.read([Extent(0, min(_FIRST_BYTES, verified.size))])
    magic = EXT2_SUPER_MAGIC.to_bytes(2, "little")
    if bytes(first[:6]) != LUKS_MAGIC and bytes(first[_EXT2_MAGIC_OFFSET : _EXT2_MAGIC_OFFSET + 2]) == magic:
        return None
    # Only here: what reads LUKS headers takes 15 ms to import.
    from mystfuse.image.unlock import read_luks_header, unlock

    header = await read_luks_header(verified)
    return None if header is None else await unlock(verified, header, keys, progress)
