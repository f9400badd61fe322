"""The verity device gives the data that the root hash stands for, or an error for exactly the damaged blocks."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from mystfuse.devices.device import Extent
from mystfuse.devices.verity import MAX_STEP, VerityDevice
from mystfuse.errors import FormatError, ImageReadError, IntegrityError
from mystfuse.formats.verity import TreeGeometry, VeritySuperblock
from tests.support.verity_images import Image, MemoryDevice, build, check_flip, device_for, device_over, random_extents

pytestmark = pytest.mark.logs(r"^mystfuse\.devices\.verity")


async def test_reads_equal_the_data(image: Image) -> None:
    device = device_for(image)
    assert device.size == image.data_size
    assert bytes((await device.read([Extent(0, image.data_size)]))[0]) == image.data
    dice = random.Random(1)
    for _ in range(30):
        extents = random_extents(dice, image.data_size, dice.randint(1, 8), 3 * image.block_size)
        parts = await device.read(extents)
        assert [bytes(part) for part in parts] == [image.data[extent.offset : extent.end] for extent in extents]
    assert device.blocks_failed == 0


async def test_every_block_by_itself_with_a_cold_cache(image: Image) -> None:
    blocks = range(image.superblock.data_blocks)
    for block in sorted({0, blocks[-1], *random.Random(2).sample(blocks, min(len(blocks), 20))}):
        start = block * image.block_size
        (part,) = await device_for(image).read([Extent(start + 7, 100)])
        assert bytes(part) == image.data[start + 7 : start + 107]


async def test_last_byte_can_be_read_and_nothing_past_it(image: Image) -> None:
    device = device_for(image)
    assert bytes((await device.read([Extent(device.size - 1, 1)]))[0]) == image.data[-1:]
    for extent in (Extent(device.size, 1), Extent(device.size - 1, 2), Extent(-1, 2), Extent(0, 0), Extent(1 << 70, 1)):
        with pytest.raises(ImageReadError, match="outside the device"):
            await device.read([Extent(0, 1), extent])


async def test_nothing_asked_for_is_nothing_read() -> None:
    image = build(20)
    unverified = MemoryDevice(image.content)
    assert await device_over(unverified, image).read([]) == []
    assert unverified.requests == 0


async def test_request_of_more_than_one_step_is_right() -> None:
    image = build(600, data_block_size=65536, hash_block_size=512)
    device = device_for(image)
    extents = [Extent(0, image.data_size), Extent(5, 10), *(Extent(start << 16, 1) for start in range(0, 600, 2))]
    assert sum(extent.length for extent in extents) > 2 * MAX_STEP
    data = image.data
    assert [bytes(part) for part in await device.read(extents)] == [
        data[extent.offset : extent.end] for extent in extents
    ]


async def test_flipped_byte_of_the_data_fails_exactly_its_block(image: Image) -> None:
    dice = random.Random(3)
    for position in [0, image.data_size - 1, *(dice.randrange(image.data_size) for _ in range(10))]:
        await check_flip(image, position, 1 << dice.randrange(8))


async def test_flipped_byte_of_the_tree_fails_exactly_the_blocks_below_it(image: Image) -> None:
    if not image.hash_blocks:
        assert image.superblock.data_blocks == 1
        return
    dice = random.Random(4)
    chosen = {
        image.hash_blocks[0],
        image.hash_blocks[-1],
        *dice.sample(image.hash_blocks, min(6, len(image.hash_blocks))),
    }
    for block in chosen:
        for position in (block.start, block.stop - 1, dice.choice(block)):
            await check_flip(image, position, 1 << dice.randrange(8))


async def test_flipped_byte_between_superblock_and_tree_changes_nothing() -> None:
    image = build(129)
    data = image.data
    for position in (image.data_size, image.data_size + 511, image.data_size + 512, image.data_size + 4095):
        image.content[position] ^= 0xFF
        assert bytes((await device_for(image).read([Extent(0, image.data_size)]))[0]) == data


async def test_wrong_root_hash_fails_every_block(image: Image) -> None:
    root = bytearray(image.root_hash)
    root[-1] ^= 1
    device = device_over(MemoryDevice(image.content), image, bytes(root))
    for block in {0, image.superblock.data_blocks - 1}:
        with pytest.raises(IntegrityError):
            await device.read([Extent(block * image.block_size, 1)])
    assert device.blocks_verified == device.hash_blocks_verified == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"salt": b"\x5a" * 31},
        {"salt": b"\x5a" * 31 + b"\x5b"},
        {"hash_type": 0},
        {"algorithm": "sha512"},
        {"hash_block_size": 1024},
        {"data_block_size": 1024},
        {"data_blocks": 128},
    ],
)
async def test_parameters_that_are_not_those_of_the_tree_give_nothing(changes: dict[str, object]) -> None:
    image = build(129)
    fields = {name: getattr(image.superblock, name) for name in VeritySuperblock.__slots__} | changes
    superblock = VeritySuperblock(**fields)
    geometry = TreeGeometry.of(superblock, image.data_size)
    unverified = MemoryDevice(image.content + bytes(1 << 20))
    if "algorithm" in changes:
        with pytest.raises(FormatError, match="the root hash has 32 bytes"):
            VerityDevice(unverified, superblock, geometry, image.root_hash)
        return
    device = VerityDevice(unverified, superblock, geometry, image.root_hash)
    with pytest.raises(IntegrityError):
        await device.read([Extent(0, 1)])


async def test_swapped_data_blocks_and_swapped_hash_blocks_fail() -> None:
    image = build(300, data_block_size=512, hash_block_size=512)
    original = bytes(image.content)
    image.content[0:512], image.content[512:1024] = image.content[512:1024], image.content[0:512]
    for block in (0, 1):
        with pytest.raises(IntegrityError):
            await device_for(image).read([Extent(512 * block, 512)])
    image.content[:] = original
    first, second = image.path(0)[0], image.path(16)[0]
    assert first.stop == second.start, "neighbours of level 0"
    image.content[first.start : second.stop] = original[second.start : second.stop] + original[first.start : first.stop]
    for block in (0, 15, 16, 31):
        with pytest.raises(IntegrityError):
            await device_for(image).read([Extent(512 * block, 512)])
    assert bytes((await device_for(image).read([Extent(512 * 32, 512)]))[0]) == original[512 * 32 : 512 * 33]


async def test_damage_in_one_extent_fails_the_whole_request_and_is_reported_once() -> None:
    image = build(20)
    image.content[4096 * 7] ^= 1
    device = device_for(image)
    told: list[IntegrityError] = []
    device.on_damage = told.append
    with pytest.raises(IntegrityError, match="data block 7 is corrupted") as caught:
        await device.read([Extent(0, 10), Extent(4096 * 7 + 100, 10), Extent(4096 * 19, 10)])
    assert told == [caught.value]
    assert device.blocks_failed == 1


async def test_all_damaged_blocks_of_a_run_are_named() -> None:
    image = build(20)
    for block in (3, 5, 19):
        image.content[4096 * block + 5] ^= 0x80
    device = device_for(image)
    with pytest.raises(IntegrityError, match="data blocks 3, 5, 19 are corrupted"):
        await device.read([Extent(0, image.data_size)])
    assert (device.blocks_failed, device.blocks_verified) == (3, 17)


@pytest.mark.parametrize("missing_blocks", [1, 2, 19])
async def test_device_below_that_returns_too_little_gives_an_error_not_short_data(missing_blocks: int) -> None:
    image = build(20)

    class ShortDevice(MemoryDevice):
        async def read(self, extents: Sequence[Extent], quietly: bool = False) -> list[memoryview]:
            parts = await super().read(extents)
            return [
                part[: len(part) - missing_blocks * 4096] if extent.offset == 0 else part
                for extent, part in zip(extents, parts, strict=True)
            ]

    device = device_over(ShortDevice(image.content), image)
    with pytest.raises((IntegrityError, ImageReadError)):
        await device.read([Extent(0, image.data_size)])


async def test_data_that_changes_between_reads_fails_then_and_is_right_before_and_after() -> None:
    image = build(300, data_block_size=512, hash_block_size=512)
    device, data = device_for(image), image.data
    extent = Extent(1000, 300)
    for flips in (0, 1, 0, 0xFF, 0):
        image.content[1100] ^= flips
        if flips:
            with pytest.raises(IntegrityError):
                await device.read([extent])
            image.content[1100] ^= flips
        else:
            assert bytes((await device.read([extent]))[0]) == data[1000:1300]


async def test_hash_block_that_was_verified_is_not_read_again_when_storage_changes_it() -> None:
    image = build(300, data_block_size=512, hash_block_size=512)
    device, data = device_for(image), image.data
    await device.read([Extent(0, 1)])
    for part in image.path(0):
        image.content[part.start : part.stop] = bytes(512)
    assert bytes((await device.read([Extent(0, 16 * 512)]))[0]) == data[: 16 * 512]
    with pytest.raises(IntegrityError):
        await device_for(image).read([Extent(0, 1)])


async def test_forged_data_with_a_forged_hash_block_is_refused_with_the_upper_levels_cached() -> None:
    image = build(300, data_block_size=512, hash_block_size=512)
    device = device_for(image)
    await device.read([Extent(0, 1)])
    forged = b"\xee" * 512
    block, leaf = 20, image.path(20)[0]
    image.content[block * 512 : (block + 1) * 512] = forged
    slot = leaf.start + 32 * (block % 16)
    image.content[slot : slot + 32] = hashlib.sha256(image.superblock.salt + forged).digest()
    # A second time too: a refused block is not cached.
    for _ in range(2):
        with pytest.raises(IntegrityError, match="hash block 1 of level 0 "):
            await device.read([Extent(block * 512, 512)])


async def test_result_does_not_change_when_storage_does_afterwards() -> None:
    image = build(20)
    data = image.data
    (part,) = await device_for(image).read([Extent(0, 8192)])
    image.content[:8192] = bytes(8192)
    assert bytes(part) == data[:8192]


async def test_damage_that_was_transient_is_read_anew() -> None:
    image = build(300, data_block_size=512, hash_block_size=512)
    device = device_for(image)
    leaf = image.path(40)[0]
    image.content[leaf.start] ^= 1
    with pytest.raises(IntegrityError):
        await device.read([Extent(40 * 512, 10)])
    image.content[leaf.start] ^= 1
    # 32 is the block whose digest was damaged: a cached hash block would fail that block alone.
    for block in (40, 32):
        assert bytes((await device.read([Extent(block * 512, 10)]))[0]) == image.data[block * 512 : block * 512 + 10]


@given(st.data())
def test_any_tree_and_any_reads(data: st.DataObject) -> None:
    image = build(
        data.draw(st.integers(1, 300), "data_blocks"),
        data.draw(st.sampled_from([512, 1024, 4096]), "data_block_size"),
        data.draw(st.sampled_from([512, 1024, 4096]), "hash_block_size"),
        data.draw(st.sampled_from(["sha256", "sha512"]), "algorithm"),
        data.draw(st.binary(max_size=256), "salt"),
        data.draw(st.sampled_from([0, 1]), "hash_type"),
    )
    offsets = st.integers(0, image.data_size - 1)
    extents = [
        Extent(offset, min(length, image.data_size - offset))
        for offset, length in data.draw(st.lists(st.tuples(offsets, st.integers(1, 20000)), min_size=1, max_size=10))
    ]
    flip = data.draw(st.none() | st.integers(0, len(image.content) - 1), "flipped byte")
    right = image.data
    if flip is not None:
        image.content[flip] ^= 0x10
    touched = {
        block
        for extent in extents
        for block in range(extent.offset // image.block_size, (extent.end - 1) // image.block_size + 1)
    }
    fails = flip is not None and any(image.depends(block, flip) for block in touched)

    async def read() -> list[bytes]:
        return [bytes(part) for part in await device_for(image).read(extents)]

    if fails:
        with pytest.raises(IntegrityError):
            trio.run(read)
    else:
        assert trio.run(read) == [right[extent.offset : extent.end] for extent in extents]
