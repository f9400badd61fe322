"""Hash trees built with hashlib, and verity devices over them."""

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

from mystfuse.devices.device import Extent
from mystfuse.devices.verity import VerityDevice
from mystfuse.errors import ImageReadError, IntegrityError
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
        """Whether data block ``block`` contains, or depends on, byte ``position`` of the file."""
        return position // self.block_size == block or any(position in part for part in self.path(block))


def build(
    data_blocks: int,
    data_block_size: int = 4096,
    hash_block_size: int = 4096,
    algorithm: str = "sha256",
    salt: bytes = b"\x5a" * 32,
    hash_type: int = 1,
    seed: int = 0,
    data: bytes | None = None,
) -> Image:
    """An image of ``data``, or of random data, with the tree that dm-verity's documentation describes."""

    def digest(block: bytes) -> bytes:
        return hashlib.new(algorithm, salt + block if hash_type else block + salt).digest()

    if data is None:
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
    """An unverified device in memory that counts the reads. ``pause`` lets other tasks run within a read."""

    def __init__(self, content: bytearray, pause: bool = False) -> None:
        self.content = content
        self.size = len(content)
        self.reads: Counter[Extent] = Counter()
        self.requests = 0
        self.elsewhere: bytes | None = None
        """What is read when it is read again; None: there is no other place."""
        self.reread: Counter[Extent] = Counter()
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

    async def read_again(self, extents: Sequence[Extent], since: float) -> list[memoryview] | None:
        if self.elsewhere is None:
            return None
        await trio.lowlevel.checkpoint()
        self.reread.update(extents)
        return [memoryview(bytes(self.elsewhere[extent.offset : extent.end])) for extent in extents]


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
