"""The running devices of an image, stacked: for a mount, the API and ``verify --key-file``."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import trio

from mystfuse.devices.device import Device
from mystfuse.devices.patience import timed_out
from mystfuse.devices.reader import ImageReader
from mystfuse.devices.source import Source
from mystfuse.devices.verity import VerityDevice
from mystfuse.errors import WrongKey
from mystfuse.image.contents import check_decrypted, read_contents
from mystfuse.image.keys import Keys
from mystfuse.image.open import TrustedImage, open_image
from mystfuse.image.progress import Progress
from mystfuse.system.threads import call_in_thread
from mystfuse.system.workers import Workers
from mystfuse.trust.sources import TrustOptions

if TYPE_CHECKING:
    from mystfuse.image.unlock import Unlocked


@dataclass(frozen=True, slots=True)
class Pipeline:
    """The running devices of an image: the reader below the trust boundary, and what stands on top of it."""

    reader: ImageReader
    verity: VerityDevice | None
    unlocked: Unlocked | None
    """None for an image that is not encrypted."""
    workers: Workers
    device: Device
    """The topmost layer: verified, where there is a tree, and decrypted, where it is unlocked."""


async def open_trusted(source: Source, trust: TrustOptions, io_timeout: float) -> TrustedImage:
    """Decide whether and how to use an image: ``open.open_image`` in a thread, which a cancellation leaves behind.

    Raises:
        StorageTimeout: storage has not answered within ``io_timeout`` seconds.
        NotTrusted, FormatError, ImageReadError: as ``open_image``.
    """
    work = partial(open_image, source, trust.policy, trust.hash_offset, trust.root_hash)
    try:
        with trio.fail_after(io_timeout):
            return await call_in_thread(work)
    except trio.TooSlowError:
        raise timed_out(source.name, io_timeout) from None


@asynccontextmanager
async def run_pipeline(
    image: TrustedImage, keys: Keys, io_timeout: float, progress: Progress, may_stay_locked: bool = False
) -> AsyncIterator[Pipeline]:
    """Run the reader task and stack the devices of ``image`` on it, until the block ends.

    Args:
        keys: for an encrypted image; wiped when the block begins.
        progress: shown while a passphrase is tried.
        may_stay_locked: whether an encrypted image may stay locked, for callers that only report it.

    Raises:
        WrongKey: the image is encrypted and ``keys`` do not open it, or the other way round.
        FormatError: the data are not an EXT2 file system or a LUKS header of the size that the tree has.
        IntegrityError, ImageReadError: reading them failed.
    """
    reader = ImageReader(image.source, io_timeout)
    verity = None
    if image.tree is not None:
        assert image.trust.root_hash is not None
        verity = VerityDevice(reader, image.tree.superblock, image.tree.geometry, image.trust.root_hash)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reader.run)
        try:
            header = await read_contents(verity or reader, is_whole=verity is not None)
            unlocked = None
            if header is not None and (keys or not may_stay_locked):
                # Only here: it takes 15 ms to import.
                from mystfuse.image.unlock import unlock

                unlocked = await unlock(verity or reader, header, keys, progress)
                await check_decrypted(unlocked.device, is_whole=verity is not None)
            if header is None and keys:
                # A user who relies on encryption must not get another image in its place.
                raise WrongKey(f"a key is given{keys.origin and f' ({keys.origin})'}, but the image is not encrypted")
            # After unlocking, which may fork. They end with the block: none may read from a closed source.
            with closing(Workers()) as workers:
                yield Pipeline(reader, verity, unlocked, workers, unlocked.device if unlocked else verity or reader)
        finally:
            keys.wipe()
            await keys.end_deriver()
            nursery.cancel_scope.cancel()
