"""The running devices of an image, stacked: for a mount, the API and ``verify --key-file``."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import trio

from mystfuse.devices.device import Device
from mystfuse.devices.patient_threads import call_patiently
from mystfuse.devices.reader import ImageReader
from mystfuse.devices.source import Source, bypass_cache
from mystfuse.devices.verity import VerityDevice
from mystfuse.errors import MystfuseError, WrongKey, innermost
from mystfuse.image.contents import check_decrypted, read_contents
from mystfuse.image.keys import Keys
from mystfuse.image.open import TrustedImage, open_image
from mystfuse.image.progress import Progress
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
    return await call_patiently(work, source.name, io_timeout)


@asynccontextmanager
async def run_verity(image: TrustedImage, io_timeout: float) -> AsyncIterator[tuple[ImageReader, VerityDevice | None]]:
    """Run the reader task of ``image``, with the hash tree on it if there is one, until the block ends. What it and the
    block raise comes in a group."""
    if image.tree is None:
        bypass_cache(image.source)
    reader = ImageReader(image.source, io_timeout)
    verity = None
    if image.tree is not None:
        assert image.trust.root_hash is not None
        verity = VerityDevice(reader, image.tree.superblock, image.tree.geometry, image.trust.root_hash)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reader.run)
        try:
            yield reader, verity
        finally:
            nursery.cancel_scope.cancel()


async def open_contents(
    device: Device, is_whole: bool, keys: Keys, progress: Progress, may_stay_locked: bool = False
) -> Unlocked | None:
    """Check what an image contains, and unlock it if it is encrypted.

    Args:
        device: its data, behind the hash tree if there is one.
        is_whole: whether there is one.
        keys, progress: as for ``run_pipeline``.
        may_stay_locked: whether an encrypted image may stay locked, for callers that only report it.

    Returns:
        None for an image that is not encrypted, or that stays locked.

    Raises:
        WrongKey, FormatError, IntegrityError, ImageReadError: as ``run_pipeline``.
    """
    header = await read_contents(device, is_whole)
    if header is None and keys:
        # A user who relies on encryption must not get another image in its place.
        raise WrongKey(
            f"a key is given{keys.origin and f' ({keys.origin})'}, but the image is not encrypted: leave it out"
        )
    if header is None or (may_stay_locked and not keys):
        return None
    # Only here: it takes 15 ms to import.
    from mystfuse.image.unlock import unlock

    unlocked = await unlock(device, header, keys, progress)
    await check_decrypted(unlocked.device, is_whole)
    return unlocked


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
        FormatError: the data are not an EXT2 file system or a LUKS header of the size that the tree has.
        IntegrityError, ImageReadError: reading them failed.
    """
    async with run_verity(image, io_timeout) as (reader, verity):
        device = verity or reader
        try:
            unlocked = await open_contents(device, verity is not None, keys, progress)
            # After unlocking, which may fork. They end with the block: none may read from a closed source.
            with closing(Workers()) as workers:
                yield Pipeline(reader, verity, unlocked, workers, unlocked.device if unlocked else device)
        finally:
            keys.wipe()
            await keys.end_deriver()


def check_contents(image: TrustedImage, keys: Keys, io_timeout: float, progress: Progress) -> None:
    """Read what a mount would read first: the hash tree down to the first block, and what that begins.

    Args:
        keys: none, or those that must open it; wiped.
        progress: shown while a passphrase is tried.

    Raises:
        FormatError: the data are not what a mount accepts.
        WrongKey: the keys do not open it.
        IntegrityError, ImageReadError: reading them failed.
    """

    async def check() -> None:
        async with run_verity(image, io_timeout) as (reader, verity):
            try:
                await open_contents(verity or reader, verity is not None, keys, progress, may_stay_locked=True)
            finally:
                keys.wipe()
                await keys.end_deriver()

    try:
        trio.run(check)
    except BaseExceptionGroup as group:
        cause = innermost(group)
        raise cause.about(image.source.name) if isinstance(cause, MystfuseError) else cause from None
