"""Storage that does not answer: what each request then costs, from the devices to commands and mounts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import pytest
import trio
from test_reader import MemorySource, running
from test_verity_device import Image, build
from trio.testing import MockClock

from mystfuse.devices.device import Extent
from mystfuse.devices.reader import PATIENCE
from mystfuse.devices.verity import VerityDevice
from mystfuse.errors import ImageReadError, StorageTimeout
from mystfuse.formats.verity import TreeGeometry

# Devices, with virtual time: the threads of reads that are not answered hang as long as the test takes


@asynccontextmanager
async def verified(image: Image, source: MemorySource) -> AsyncIterator[VerityDevice]:
    """A verity device over a reader with a time-out of 30 s."""
    async with running(source, io_timeout=30, patience=1000) as reader:
        geometry = TreeGeometry.of(image.superblock, image.data_size)
        yield VerityDevice(reader, image.superblock, geometry, image.root_hash)


async def read_blocks(device: VerityDevice, blocks: Iterable[int]) -> dict[int, bytes | tuple[str, float]]:
    """Of each block, read by a task of its own, all at once: the bytes, or the kind of the error and the seconds."""
    results: dict[int, bytes | tuple[str, float]] = {}

    async def read(block: int) -> None:
        started = trio.current_time()
        try:
            results[block] = bytes((await device.read([Extent(512 * block, 512)]))[0])
        except ImageReadError as error:
            results[block] = type(error).__name__, trio.current_time() - started

    async with trio.open_nursery() as nursery:
        for block in blocks:
            nursery.start_soon(read, block)
    return results


@pytest.mark.parametrize("what", ["everything", "the hash block"])
async def test_waiters_share_the_time_out_of_a_hash_block(what: str, autojump_clock: MockClock) -> None:
    autojump_clock.autojump_threshold = 0.05
    image = build(300, data_block_size=512, hash_block_size=512)
    hanging = range(len(image.content)) if what == "everything" else image.path(0)[0]
    source = MemorySource(hanging=(hanging,), content=bytes(image.content))
    async with verified(image, source) as device:
        results = await read_blocks(device, range(16))
        for block in range(16):
            name, seconds = results[block]
            assert name == "StorageTimeout"
            assert seconds <= 30 + PATIENCE
        asked = [call for call in source.calls if call.offset <= image.path(0)[0].start < call.end]
        assert len(asked) == 1, "it was asked for by one of them"
        # Nothing of it stays: who asks later asks storage again.
        source.release.set()
        assert await read_blocks(device, range(16)) == {
            block: image.data[512 * block : 512 * (block + 1)] for block in range(16)
        }


async def test_waiters_get_a_hash_block_that_came_beside_what_did_not(autojump_clock: MockClock) -> None:
    """One reader's data hangs; the others need the same hash blocks, and have them at once."""
    autojump_clock.autojump_threshold = 0.05
    image = build(300, data_block_size=512, hash_block_size=512)
    source = MemorySource(hanging=(range(512),), content=bytes(image.content))
    async with verified(image, source) as device, trio.open_nursery() as nursery:

        async def hang() -> None:
            with pytest.raises(StorageTimeout):
                await device.read([Extent(0, 512)])

        nursery.start_soon(hang)
        await trio.sleep(0)
        with trio.fail_after(1):
            assert await read_blocks(device, range(1, 16)) == {
                block: image.data[512 * block : 512 * (block + 1)] for block in range(1, 16)
            }


async def test_waiters_share_an_error_of_the_hash_block_they_need_and_of_no_other() -> None:
    image = build(300, data_block_size=512, hash_block_size=512)
    broken = image.path(0)[0]
    source = MemorySource(broken=(broken,), content=bytes(image.content))
    async with verified(image, source) as device, trio.open_nursery() as nursery:

        async def fail() -> None:
            with pytest.raises(ImageReadError):
                await device.read([Extent(0, 32 * 512)])

        nursery.start_soon(fail)
        await trio.sleep(0)
        results = await read_blocks(device, range(32))
    for block in range(32):
        if block < 16:
            assert results[block][0] == "ImageReadError"
        else:
            assert results[block] == image.data[512 * block : 512 * (block + 1)]
    asked = [call for call in source.calls if call.offset <= broken.start < call.end]
    assert len(asked) <= 2, "together with its neighbours, and alone"


async def test_a_waiter_takes_over_from_a_reader_who_was_cancelled(autojump_clock: MockClock) -> None:
    autojump_clock.autojump_threshold = 0.05
    image = build(300, data_block_size=512, hash_block_size=512)
    source = MemorySource(hanging=(range(512),), delay=0.02, content=bytes(image.content))
    async with verified(image, source) as device, trio.open_nursery() as nursery:

        async def give_up() -> None:
            with trio.move_on_after(0.01):
                await device.read([Extent(0, 512)])

        nursery.start_soon(give_up)
        await trio.sleep(0)
        assert await read_blocks(device, [1]) == {1: image.data[512:1024]}
