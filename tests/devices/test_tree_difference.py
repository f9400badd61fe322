"""``differing_blocks`` finds the data blocks that differ, from two hash trees, and reads little of these."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from mystfuse.devices.device import Extent
from mystfuse.devices.tree_difference import differing_blocks
from mystfuse.devices.verity import VerityDevice
from mystfuse.errors import IntegrityError
from tests.support.verity_images import Image, build, device_for

pytestmark = pytest.mark.logs(r"^mystfuse\.devices\.verity")


def changed(image: Image, blocks: Sequence[int], size: int, data_blocks: int) -> Image:
    """The image with other contents in some blocks, and the tree for that."""
    data = bytearray(image.data)
    for block in blocks:
        data[block * size] ^= 1
    return build(data_blocks, size, 512, data=bytes(data))


@pytest.mark.parametrize("data_blocks", [1, 2, 16, 17, 300, 5000])
@pytest.mark.parametrize("count", [0, 1, 7, 100])
async def test_exactly_those_that_differ(data_blocks: int, count: int) -> None:
    image = build(data_blocks, 512, 512)
    blocks = sorted(random.Random(count).sample(range(data_blocks), min(count, data_blocks)))
    other = changed(image, blocks, 512, data_blocks)
    assert await differing_blocks(device_for(image), device_for(other), data_blocks) == blocks


async def test_too_many_are_not_listed() -> None:
    image = build(300, 512, 512)
    other = changed(image, range(300), 512, 300)
    assert await differing_blocks(device_for(image), device_for(other), 299) is None


async def test_other_trees_cannot_be_compared() -> None:
    device = device_for(build(300, 512, 512))
    for other in (build(300, 512, 512, salt=b"other"), build(299, 512, 512), build(300, 512, 1024)):
        assert await differing_blocks(device, device_for(other), 300) is None


async def test_a_forged_hash_block_is_no_difference() -> None:
    """Where the trees differ they are verified; where they do not, nothing is read."""
    image = build(5000, 512, 512)
    other = changed(image, [2500], 512, 5000)
    devices = [device_for(image), device_for(other)]
    forged = devices[1].geometry.levels[0].offset
    below = 2500 // devices[1].geometry.digests_per_block
    other.content[forged + (below + 1) * 512] ^= 1
    assert await differing_blocks(device_for(image), device_for(other), 5000) == [2500]
    other.content[forged + below * 512] ^= 1
    with pytest.raises(IntegrityError, match=f"hash block {below} of level 0"):
        await differing_blocks(device_for(image), device_for(other), 5000)


async def test_digests_of_data_that_is_not_read() -> None:
    image = build(300, 512, 512)
    device: VerityDevice = device_for(image)
    whole = await device.digests([Extent(0, 300 * 512)])
    image.content[: image.data_size] = bytes(image.data_size)
    again = await device_for(image).digests([Extent(0, 512), Extent(1024, 299 * 512 - 1024)])
    size = device.superblock.digest_size
    assert again == [whole[0][:size], whole[0][2 * size : 299 * size]]
    image.content[device.geometry.levels[0].offset] ^= 1
    with pytest.raises(IntegrityError, match="hash block 0 of level 0"):
        await device_for(image).digests([Extent(0, 512)])
