"""The trust boundary: what comes out of a VerityDevice is what the root hash says, or nothing.

The tree is built here from the format's description with plain hashlib, so that it is an oracle.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from mystfuse.devices.device import Extent
from mystfuse.devices.verity import MAX_STEP, VerityDevice
from mystfuse.errors import FormatError, ImageReadError, IntegrityError
from mystfuse.formats.verity import TreeGeometry, VeritySuperblock


@dataclass
class Image:
    """Data and its tree, as they lie in a file, with the byte ranges that each data block depends on."""

    content: bytearray
    data_size: int
    superblock: VeritySuperblock
    root_hash: bytes
    path: Callable[[int], list[range]]
    """Data block number -> the byte ranges of its hash blocks."""
    hash_blocks: list[range] = field(default_factory=list)

    @property
    def block_size(self) -> int:
        return self.superblock.data_block_size

    @property
    def data(self) -> bytes:
        return bytes(self.content[: self.data_size])

    def depends(self, block: int, position: int) -> bool:
        """Whether data block ``block`` is vouched for by, or is, byte ``position`` of the file."""
        return position // self.block_size == block or any(position in part for part in self.path(block))


def build(
    data_blocks: int,
    data_block_size: int = 4096,
    hash_block_size: int = 4096,
    algorithm: str = "sha256",
    salt: bytes = b"\x5a" * 32,
    hash_type: int = 1,
    seed: int = 0,
) -> Image:
    """An image of random data, with the tree that dm-verity's documentation describes."""

    def digest(block: bytes) -> bytes:
        return hashlib.new(algorithm, salt + block if hash_type else block + salt).digest()

    data = random.Random(seed).randbytes(data_blocks * data_block_size)
    digests = [digest(data[start : start + data_block_size]) for start in range(0, len(data), data_block_size)]
    per_block = hash_block_size // len(digests[0])
    levels: list[list[bytes]] = []
    while len(digests) > 1:
        groups = [digests[start : start + per_block] for start in range(0, len(digests), per_block)]
        levels.append([b"".join(group).ljust(hash_block_size, b"\0") for group in groups])
        digests = [digest(block) for block in levels[-1]]
    superblock = VeritySuperblock(data_blocks, salt, b"\1" * 16, hash_type, algorithm, data_block_size, hash_block_size)
    content = bytearray(data + superblock.pack())
    content += bytes(-len(content) % hash_block_size)
    offsets: list[int] = []
    for level in reversed(levels):
        offsets.insert(0, len(content))
        content += b"".join(level)

    def path(block: int) -> list[range]:
        parts = []
        for offset in offsets:
            block //= per_block
            parts.append(range(offset + block * hash_block_size, offset + (block + 1) * hash_block_size))
        return parts

    tree = range(offsets[-1], len(content), hash_block_size) if offsets else range(0)
    hash_blocks = [range(start, start + hash_block_size) for start in tree]
    return Image(content, len(data), superblock, digests[0], path, hash_blocks)


class MemoryDevice:
    """An unverified device in memory that counts what is read of it. ``pause`` lets other tasks run within a read."""

    def __init__(self, content: bytearray, pause: bool = False) -> None:
        self.content = content
        self.size = len(content)
        self.reads: Counter[Extent] = Counter()
        self.requests = 0
        self._pause = pause

    def begin(self, extents: Sequence[Extent]) -> None:
        return None

    async def read(self, extents: Sequence[Extent], quietly: bool = False) -> list[memoryview]:
        self.requests += 1
        self.reads.update(extents)
        if self._pause:
            await trio.lowlevel.checkpoint()
            await trio.lowlevel.checkpoint()
        assert all(extent.offset >= 0 and extent.end <= self.size for extent in extents)
        return [memoryview(bytes(self.content[extent.offset : extent.end])) for extent in extents]

    async def read_several(
        self,
        requests: Sequence[Sequence[Extent]],
        deliver: Callable[[int, list[memoryview] | ImageReadError], None],
    ) -> None:
        parts = error = None
        try:
            parts = iter(await self.read([extent for extents in requests for extent in extents]))
        except ImageReadError as failure:
            error = failure
        for number, extents in enumerate(requests):
            deliver(number, error or list(islice(parts or (), len(extents))))


def device_over(unverified: MemoryDevice, image: Image, root_hash: bytes | None = None, **options: int) -> VerityDevice:
    geometry = TreeGeometry.of(image.superblock, image.data_size)
    return VerityDevice(unverified, image.superblock, geometry, root_hash or image.root_hash, **options)


def device_for(image: Image, **options: int) -> VerityDevice:
    return device_over(MemoryDevice(image.content), image, **options)


def random_extents(dice: random.Random, size: int, count: int, longest: int) -> list[Extent]:
    extents = []
    for _ in range(count):
        offset = dice.randrange(size)
        extents.append(Extent(offset, dice.randint(1, min(longest, size - offset))))
    return extents


SHAPES = {
    "one block": {"data_blocks": 1},
    "one block, unsalted": {"data_blocks": 1, "salt": b""},
    "one block, sha512": {"data_blocks": 1, "algorithm": "sha512", "hash_block_size": 512},
    "two blocks": {"data_blocks": 2},
    "per_block": {"data_blocks": 128, "data_block_size": 512},
    "per_block + 1": {"data_blocks": 129, "data_block_size": 512},
    "unsalted": {"data_blocks": 20, "salt": b""},
    "salt of 256": {"data_blocks": 20, "salt": bytes(range(256))},
    "salt of 1": {"data_blocks": 20, "salt": b"\0"},
    "type 0": {"data_blocks": 20, "hash_type": 0},
    "type 0, unsalted": {"data_blocks": 20, "hash_type": 0, "salt": b""},
    "type 0, salt of 256": {"data_blocks": 129, "data_block_size": 512, "hash_type": 0, "salt": bytes(range(256))},
    "type 0, one block": {"data_blocks": 1, "hash_type": 0},
    "sha512": {"data_blocks": 70, "data_block_size": 1024, "algorithm": "sha512"},
    "sha512, type 0": {"data_blocks": 65, "data_block_size": 512, "algorithm": "sha512", "hash_type": 0},
    "hash 512, 3 levels": {"data_blocks": 300, "data_block_size": 512, "hash_block_size": 512},
    "hash 512, sha512, 3 levels": {
        "data_blocks": 100,
        "data_block_size": 1024,
        "hash_block_size": 512,
        "algorithm": "sha512",
    },
    "hash 512, 4 levels": {"data_blocks": 4100, "data_block_size": 512, "hash_block_size": 512},
    "hash 1024, 3 levels": {"data_blocks": 1030, "data_block_size": 512, "hash_block_size": 1024},
    "hash 64K": {"data_blocks": 33, "hash_block_size": 65536},
    "hash 64K, 2 levels": {"data_blocks": 2049, "data_block_size": 512, "hash_block_size": 65536},
    "data 64K": {"data_blocks": 18, "data_block_size": 65536, "hash_block_size": 512},
    "data 64K, hash 64K": {"data_blocks": 5, "data_block_size": 65536, "hash_block_size": 65536},
    "data 1024, hash 1024": {"data_blocks": 33, "data_block_size": 1024, "hash_block_size": 1024},
    "data 512 K": {"data_blocks": 3, "data_block_size": 1 << 19, "hash_block_size": 1 << 19},
}


@pytest.fixture(params=SHAPES)
def image(request: pytest.FixtureRequest) -> Image:
    """An image of each shape, which the test may damage."""
    return build(**SHAPES[request.param])


# What is right comes through


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


async def test_request_larger_than_a_batch_is_right() -> None:
    image = build(600, data_block_size=65536, hash_block_size=512)
    device = device_for(image)
    extents = [Extent(0, image.data_size), Extent(5, 10), *(Extent(start << 16, 1) for start in range(0, 600, 2))]
    assert sum(extent.length for extent in extents) > 2 * MAX_STEP
    data = image.data
    assert [bytes(part) for part in await device.read(extents)] == [
        data[extent.offset : extent.end] for extent in extents
    ]


# What is wrong does not


async def check_flip(image: Image, position: int, mask: int, cache_bytes: int = 16 << 20) -> None:
    """With one byte changed, exactly the blocks that depend on it fail, cold and with everything else cached."""
    data = image.data
    blocks = range(image.superblock.data_blocks)
    dice = random.Random(position)
    chosen = set(dice.sample(blocks, min(len(blocks), 12)))
    chosen |= {min(position // image.block_size, blocks[-1]), 0, blocks[-1]}
    chosen |= {block for block in chosen for block in (block - 1, block + 1) if block in blocks}
    image.content[position] ^= mask
    device = device_for(image, cache_bytes=cache_bytes)
    try:
        for block in sorted(chosen, key=lambda _: dice.random()):
            start = block * image.block_size
            extent = Extent(start + dice.randrange(image.block_size // 2), dice.randint(1, image.block_size // 2))
            if image.depends(block, position):
                with pytest.raises(IntegrityError):
                    await device.read([extent])
            else:
                (part,) = await device.read([extent])
                assert bytes(part) == data[extent.offset : extent.end], f"block {block} with byte {position} flipped"
    finally:
        image.content[position] ^= mask


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


async def test_damage_in_one_extent_fails_the_whole_request_and_is_told_once() -> None:
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


# Storage that lies the second time


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
    # A second time too: what was refused is not kept.
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
    # 32 is the one whose digest was damaged: kept, it would be wrong for that block alone.
    for block in (40, 32):
        assert bytes((await device.read([Extent(block * 512, 10)]))[0]) == image.data[block * 512 : block * 512 + 10]


# The cache of hash blocks


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
        assert len(device._verified_hash_blocks) <= 2 * 4 + 4
    again = [count for extent, count in unverified.reads.items() if extent.offset >= image.data_size and count > 1]
    assert again, "blocks that were evicted were fetched, and checked, anew"


async def test_cache_holds_what_it_is_given_and_no_more() -> None:
    image = build(4100, data_block_size=512, hash_block_size=512)
    device = device_for(image, cache_bytes=100 * 512)
    await device.read([Extent(0, image.data_size)])
    assert len(device._verified_hash_blocks) == 100


async def test_with_a_tiny_cache_damage_is_still_found_exactly() -> None:
    image = build(300, data_block_size=512, hash_block_size=512)
    dice = random.Random(8)
    for _ in range(10):
        await check_flip(image, dice.randrange(image.data_size), 1, cache_bytes=1)
        await check_flip(image, dice.choice(dice.choice(image.hash_blocks)), 1, cache_bytes=1)


# Many at once


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


# Anything at all


@settings(max_examples=150, deadline=None)
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
