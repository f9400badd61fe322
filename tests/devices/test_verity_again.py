"""What does not verify is read again from elsewhere, if there is another place, before it counts as damage."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from mystfuse.devices.device import Extent
from mystfuse.devices.verity import VerityDevice
from mystfuse.errors import ImageReadError, IntegrityError
from tests.support.verity_images import Image, MemoryDevice, build, device_over


def pair_of(image: Image, elsewhere: bytes | None = None) -> tuple[MemoryDevice, VerityDevice]:
    """A device over bytes that a test changes, with the right ones elsewhere."""
    unverified = MemoryDevice(bytearray(image.content))
    unverified.elsewhere = bytes(image.content) if elsewhere is None else elsewhere
    device = device_over(unverified, image)
    device.on_damage = lambda error: pytest.fail(str(error))
    return unverified, device


def spoil(content: bytearray, place: range) -> None:
    content[place.start + 9] ^= 1


async def test_damaged_data_is_mended() -> None:
    image = build(300, data_block_size=1024, hash_block_size=1024)
    unverified, device = pair_of(image)
    for block in (3, 4, 200):
        spoil(unverified.content, range(block * 1024, (block + 1) * 1024))
    assert bytes((await device.read([Extent(0, image.data_size)]))[0]) == image.data
    assert set(unverified.reread) == {Extent(3 * 1024, 2048), Extent(200 * 1024, 1024)}, "no more than what is wrong"
    assert (device.blocks_mended, device.blocks_failed) == (3, 0)


async def test_every_damaged_hash_block_is_mended() -> None:
    image = build(300, data_block_size=1024, hash_block_size=1024)
    unverified, device = pair_of(image)
    for place in image.hash_blocks:
        spoil(unverified.content, place)
    assert bytes((await device.read([Extent(0, image.data_size)]))[0]) == image.data
    assert device.blocks_mended == len(image.hash_blocks) and device.blocks_failed == 0
    assert sum(unverified.reread.values()) == len(image.hash_blocks)


async def test_the_hash_blocks_of_a_level_are_read_again_at_once() -> None:
    """Each time may be a whole time-out."""
    image = build(300, data_block_size=1024, hash_block_size=1024)
    calls: list[int] = []

    class Counting(MemoryDevice):
        async def read_again(self, extents: Sequence[Extent], since: float) -> list[memoryview] | None:
            calls.append(len(extents))
            return await super().read_again(extents, since)

    unverified = Counting(bytearray(image.content))
    unverified.elsewhere = bytes(image.content)
    for place in image.hash_blocks:
        spoil(unverified.content, place)
    device = device_over(unverified, image)
    await device.read([Extent(block * 1024, 1) for block in range(0, 300, 32)])
    assert calls == [1, 10]


async def test_where_there_are_mirrors_one_of_them_may_lie() -> None:
    image = build(300, data_block_size=1024, hash_block_size=1024)
    right, wrong = bytes(image.content), bytes(len(image.content))

    class Mirrors(MemoryDevice):
        attempts = 2

        async def read_again(self, extents: Sequence[Extent], since: float) -> list[memoryview] | None:
            # First the one that lies.
            self.elsewhere = right if all(self.reread[extent] for extent in extents) else wrong
            return await super().read_again(extents, since)

    unverified = Mirrors(bytearray(image.content))
    device = device_over(unverified, image)
    for place in (*image.hash_blocks, range(1024), range(4096, 8192)):
        spoil(unverified.content, place)
    assert bytes((await device.read([Extent(0, image.data_size)]))[0]) == image.data
    top = len(device.geometry.levels) - 1
    unverified.reread.clear()
    (block,) = await device.hash_blocks(top, [0], [image.root_hash])
    assert block == right[device.geometry.levels[top].offset :][:1024]


async def test_tasks_that_wait_for_a_hash_block_get_the_mended_one() -> None:
    image = build(300, data_block_size=1024, hash_block_size=1024)
    unverified, device = pair_of(image)
    unverified._pause = True
    for place in image.hash_blocks:
        spoil(unverified.content, place)
    results = []

    async def read(block: int) -> None:
        results.append(bytes((await device.read([Extent(block * 1024, 1024)]))[0]) == image.data[block * 1024 :][:1024])

    async with trio.open_nursery() as nursery:
        for block in range(20):
            nursery.start_soon(read, block)
    assert results == [True] * 20
    assert sum(unverified.reread.values()) == 2, "once for all: a leaf and the root"


async def test_digests_and_hash_blocks_alone_are_mended_as_well() -> None:
    image = build(300, data_block_size=1024, hash_block_size=1024)
    unverified, device = pair_of(image)
    for place in image.hash_blocks:
        spoil(unverified.content, place)
    (joined,) = await device.digests([Extent(0, 2048)])
    assert joined == (await pair_of(image)[1].digests([Extent(0, 2048)]))[0]
    top = len(device.geometry.levels) - 1
    (block,) = await device.hash_blocks(top, [0], [image.root_hash])
    place = device.geometry.levels[top].offset
    assert block == image.content[place : place + 1024]


@pytest.mark.logs(r"^mystfuse\.devices\.verity: verity: ")
@pytest.mark.parametrize("where", ["data", "leaf", "root"])
async def test_what_is_wrong_elsewhere_too_is_damage(where: str) -> None:
    image = build(300, data_block_size=1024, hash_block_size=1024)
    path = image.path(5)
    place = {"data": range(5 * 1024, 6 * 1024), "leaf": path[0], "root": path[-1]}[where]
    wrong = bytearray(image.content)
    spoil(wrong, place)
    unverified, device = pair_of(image, bytes(wrong))
    spoil(unverified.content, place)
    damage = []
    device.on_damage = damage.append
    with pytest.raises(IntegrityError, match="corrupted"):
        await device.read([Extent(5 * 1024, 1024)])
    assert len(damage) == 1 and device.blocks_failed == 1 and device.blocks_mended == 0


async def test_when_the_other_place_cannot_be_reached_nothing_counts_as_damage() -> None:
    image = build(300, data_block_size=1024, hash_block_size=1024)
    unverified, device = pair_of(image)

    async def fail(extents: object, since: float) -> None:
        raise ImageReadError("unreachable")

    unverified.read_again = fail  # type: ignore[method-assign, assignment]
    for place in (range(5 * 1024, 6 * 1024), image.path(200)[0]):
        spoil(unverified.content, place)
    for block in (5, 200):
        with pytest.raises(ImageReadError, match="unreachable"):
            await device.read([Extent(block * 1024, 1024)])
    assert device.blocks_failed == 0
    assert bytes((await device.read([Extent(6 * 1024, 1024)]))[0]) == image.data[6 * 1024 : 7 * 1024]


@given(st.integers(0, 2**32), st.sampled_from([512, 1024]), st.sampled_from([512, 1024]), st.integers(1, 200))
def test_any_damage_on_the_way_is_mended(seed: int, data_size: int, hash_size: int, blocks: int) -> None:
    dice = random.Random(seed)
    image = build(blocks, data_size, hash_size)
    unverified, device = pair_of(image)
    for _ in range(dice.randint(0, 30)):
        start = dice.randrange(len(unverified.content))
        end = min(start + dice.choice((1, 100, 5000)), len(unverified.content))
        unverified.content[start:end] = dice.choice((bytes(end - start), dice.randbytes(end - start)))

    async def check() -> None:
        for _ in range(10):
            length = dice.randint(1, image.data_size)
            extent = Extent(dice.randint(0, image.data_size - length), length)
            assert bytes((await device.read([extent]))[0]) == image.data[extent.offset : extent.end]

    trio.run(check)
    assert device.blocks_failed == 0
