"""Opening an image's tree: the pipeline of a mount, with paths on top of it in place of FUSE."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from mystfuse.devices.source import Source
from mystfuse.errors import innermost
from mystfuse.image.keys import Keys
from mystfuse.image.open import TrustedImage
from mystfuse.image.pipeline import open_trusted, run_pipeline
from mystfuse.image.progress import Progress, no_progress
from mystfuse.tree.image_tree import ImageTree
from mystfuse.trust.policy import trust_without_tree
from mystfuse.trust.sources import TrustOptions
from mystfuse.volume.volume import Volume


@asynccontextmanager
async def open_tree(
    source: Source, trust: TrustOptions, keys: Keys, io_timeout: float, progress: Progress = no_progress
) -> AsyncIterator[ImageTree]:
    """Open an image and read its superblock; raises as ``open_image``, and what the block raises, as it is.

    Args:
        keys: wiped when the block begins.
        progress: shown while a passphrase is tried.
    """
    image = await open_trusted(source, trust, io_timeout)
    async with _open_trusted_tree(image, keys, io_timeout, progress) as tree:
        yield tree


@asynccontextmanager
async def open_present_tree(source: Source, io_timeout: float) -> AsyncIterator[ImageTree]:
    """Open the file system of a mount as it is now: ``.mystfuse/image``, which the mount's daemon has verified.

    Raises:
        StorageTimeout: it does not answer.
        FormatError, ImageReadError: it is no such file, or cannot be read.
    """
    image = TrustedImage(source, trust_without_tree(), None)
    async with _open_trusted_tree(image, Keys(), io_timeout, no_progress) as tree:
        yield tree


@asynccontextmanager
async def _open_trusted_tree(
    image: TrustedImage, keys: Keys, io_timeout: float, progress: Progress
) -> AsyncIterator[ImageTree]:
    of_block: BaseException | None = None
    of_pipeline: BaseException | None = None
    try:
        async with run_pipeline(image, keys, io_timeout, progress) as pipeline:
            volume = await Volume.open(pipeline.device, workers=pipeline.workers, io_timeout=io_timeout)
            tree = ImageTree(volume, image.trust, pipeline)
            try:
                yield tree
            except BaseException as error:
                # Kept out of the pipeline's nursery, which would put it into a group, or take its own one apart.
                of_block = error
    except BaseExceptionGroup as group:
        of_pipeline = innermost(group)
    if of_block is not None and not _is_cancellation(of_block):
        raise of_block
    # That the block was cancelled may be for what happened to the pipeline.
    cause = of_pipeline or of_block
    if cause is not None:
        raise cause


def _is_cancellation(error: BaseException) -> bool:
    """Whether it is trio's Cancelled, or a nursery's group of nothing else."""
    if isinstance(error, BaseExceptionGroup):
        return error.split(trio.Cancelled)[1] is None
    return isinstance(error, trio.Cancelled)
