"""The cache of hash blocks: bounded, shared by concurrent readers, and without influence on results."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import trio
import trio.testing

from mystfuse.devices.device import Extent
from mystfuse.devices.verity import VerityDevice
from mystfuse.errors import ImageReadError, IntegrityError
from tests.support.verity_images import Image, MemoryDevice, build, check_flip, device_for, device_over, random_extents


async def test_hash_block_is_fetched_once_while_it_is_cached(image: Image) -> None:
    unverified = MemoryDevice(image.content)
    device = device_over(unverified, image)
    for block in range(0, image.superblock.data_blocks, max(image.superblock.data_blocks // 50, 1)):
        await device.read([Extent(block * image.block_size, 1)])
    hash_reads = [count for extent, count in unverified.reads.items() if extent.offset >= image.data_size]
    assert all(count == 1 for count in hash_reads)
    assert device.hash_blocks_verified == len(hash_reads)


async def test_first_read_needs_one_request_for_data_and_the_whole_path() -> None:
    image = build(4100, data_block_size=512, hash_block_size=512)
    unverified = MemoryDevice(image.content)
    await device_over(unverified, image).read([Extent(512 * 2000, 512)])
    assert unverified.requests == 1
    assert sum(unverified.reads.values()) == 1 + 4


async def test_tiny_cache_stays_bounded_and_results_stay_right() -> None:
    image = build(4100, data_block_size=512, hash_block_size=512)
    unverified = MemoryDevice(image.content)
    device = device_over(unverified, image, cache_bytes=1)
    dice = random.Random(6)
    for _ in range(150):
        extents = random_extents(dice, image.data_size, 5, 20000)
        parts = await device.read(extents)
        assert [bytes(part) for part in parts] == [image.data[extent.offset : extent.end] for extent in extents]
        assert kept(device) <= 16
    again = [count for extent, count in unverified.reads.items() if extent.offset >= image.data_size and count > 1]
    assert again, "blocks that were evicted were fetched, and checked, anew"


async def test_cache_holds_what_it_is_given_and_no_more() -> None:
    image = build(4100, data_block_size=512, hash_block_size=512)
    device = device_for(image, cache_bytes=128 * 512)
    await device.read([Extent(0, image.data_size)])
    assert 100 <= kept(device) <= 128


def kept(device: VerityDevice) -> int:
    """How many hash blocks of level 0 need not be fetched."""
    size, leaves = device.superblock.data_block_size, device.geometry.levels[0].blocks
    firsts = range(0, leaves * device.geometry.digests_per_block, device.geometry.digests_per_block)
    missing = device.tree.paths([Extent(first * size, size) for first in firsts]).missing()
    return leaves - sum(level == 0 for level, _ in missing)


@pytest.mark.logs(r"^mystfuse\.devices\.verity")
async def test_with_a_tiny_cache_damage_is_still_found_exactly() -> None:
    image = build(300, data_block_size=512, hash_block_size=512)
    dice = random.Random(8)
    for _ in range(10):
        await check_flip(image, dice.randrange(image.data_size), 1, cache_bytes=1)
        await check_flip(image, dice.choice(dice.choice(image.hash_blocks)), 1, cache_bytes=1)


@pytest.mark.parametrize("cache_bytes", [1, 16 << 20])
async def test_concurrent_readers_get_their_own_right_bytes(cache_bytes: int) -> None:
    image = build(4100, data_block_size=512, hash_block_size=512)
    device = device_over(MemoryDevice(image.content, pause=True), image, cache_bytes=cache_bytes)
    dice = random.Random(9)
    requests = [random_extents(dice, image.data_size, 3, 5000) for _ in range(100)]
    results: dict[int, list[bytes]] = {}

    async def read_one(index: int) -> None:
        results[index] = [bytes(part) for part in await device.read(requests[index])]

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            for index in range(len(requests)):
                nursery.start_soon(read_one, index)
    for index, extents in enumerate(requests):
        assert results[index] == [image.data[extent.offset : extent.end] for extent in extents]


async def test_concurrent_readers_fetch_each_hash_block_once() -> None:
    image = build(300, data_block_size=512, hash_block_size=512)
    unverified = MemoryDevice(image.content, pause=True)
    device = device_over(unverified, image)
    async with trio.open_nursery() as nursery:
        for block in range(300):
            nursery.start_soon(device.read, [Extent(512 * block, 512)])
    assert {count for extent, count in unverified.reads.items() if extent.offset >= image.data_size} == {1}


@pytest.mark.logs(r"^mystfuse\.devices\.verity")
@pytest.mark.parametrize("cache_bytes", [1, 16 << 20])
async def test_concurrent_readers_of_a_damaged_tree_fail_or_not_each_by_what_it_depends_on(cache_bytes: int) -> None:
    image = build(300, data_block_size=512, hash_block_size=512)
    data = image.data
    position = image.path(100)[0].start + 3
    image.content[position] ^= 1
    device = device_over(MemoryDevice(image.content, pause=True), image, cache_bytes=cache_bytes)
    failed: set[int] = set()

    async def read_one(block: int) -> None:
        try:
            (part,) = await device.read([Extent(512 * block, 512)])
        except IntegrityError:
            failed.add(block)
        else:
            assert bytes(part) == data[512 * block : 512 * (block + 1)]

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            for block in range(300):
                nursery.start_soon(read_one, block)
    assert failed == {block for block in range(300) if image.depends(block, position)} == set(range(96, 112))


async def test_cancelled_reader_does_not_keep_others_from_the_hash_blocks_it_was_loading() -> None:
    image = build(300, data_block_size=512, hash_block_size=512)

    class SlowOnce(MemoryDevice):
        async def read(self, extents: Sequence[Extent], quietly: bool = False) -> list[memoryview]:
            if not self.requests:
                self.requests += 1
                await trio.sleep_forever()
            return await super().read(extents)

    device = device_over(SlowOnce(image.content), image)
    results: list[bytes] = []

    async def give_up() -> None:
        with trio.move_on_after(0.05):
            await device.read([Extent(0, 512)])

    async def wait_for_it() -> None:
        results.append(bytes((await device.read([Extent(512, 512)]))[0]))

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(give_up)
            await trio.testing.wait_all_tasks_blocked(0.01)
            nursery.start_soon(wait_for_it)
    assert results == [image.data[512:1024]]


async def test_failure_of_the_device_below_comes_through_and_is_not_remembered() -> None:
    image = build(300, data_block_size=512, hash_block_size=512)

    class FailsOnce(MemoryDevice):
        async def read(self, extents: Sequence[Extent], quietly: bool = False) -> list[memoryview]:
            if not self.requests:
                self.requests += 1
                raise ImageReadError("memory: Input/output error")
            return await super().read(extents)

    device = device_over(FailsOnce(image.content), image)
    with pytest.raises(ImageReadError, match="Input/output error"):
        await device.read([Extent(0, 512)])
    assert bytes((await device.read([Extent(0, 512)]))[0]) == image.data[:512]
