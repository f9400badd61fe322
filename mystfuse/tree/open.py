"""Opening an image's tree: the pipeline of a mount, with paths on top of it in place of FUSE."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import trio

from mystfuse.devices.source import Source
from mystfuse.errors import innermost
from mystfuse.image.keys import Keys
from mystfuse.image.pipeline import open_trusted, run_pipeline
from mystfuse.image.progress import Progress
from mystfuse.tree.image_tree import ImageTree
from mystfuse.trust.sources import TrustOptions
from mystfuse.volume.volume import Volume


@contextmanager
def _no_progress(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    yield lambda count: None


@asynccontextmanager
async def open_tree(
    source: Source, trust: TrustOptions, keys: Keys, io_timeout: float, progress: Progress = _no_progress
) -> AsyncIterator[ImageTree]:
    """Open an image and read its superblock; raises as ``open_image``, and what the block raises, as it is.

    Args:
        keys: wiped when the block begins.
        progress: shown while a passphrase is tried.
    """
    image = await open_trusted(source, trust, io_timeout)
    of_block: BaseException | None = None
    of_pipeline: BaseException | None = None
    try:
        async with run_pipeline(image, keys, io_timeout, progress) as pipeline:
            volume = await Volume.open(pipeline.device, workers=pipeline.workers, io_timeout=io_timeout)
            tree = ImageTree(volume, image.trust)
            try:
                yield tree
            except BaseException as error:
                # Kept out of the pipeline's nursery, which would put it into a group, or take its own one apart.
                of_block = error
    except BaseExceptionGroup as group:
        of_pipeline = innermost(group)
    if of_block is not None and not isinstance(of_block, trio.Cancelled):
        raise of_block
    # That the block was cancelled may be for what happened to the pipeline.
    cause = of_pipeline or of_block
    if cause is not None:
        raise cause
