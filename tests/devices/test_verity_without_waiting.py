"""What a verity device gives without waiting for storage (``begin``): verified bytes, or nothing.

Only the ``read`` that follows reports damage.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from mystfuse.devices.device import Extent, PendingRead, read_now
from mystfuse.devices.verity import MAX_STEP
from mystfuse.errors import ImageReadError, IntegrityError
from tests.support.verity_images import Image, MemoryDevice, build, device_over


class CachedDevice(MemoryDevice):
    """Has the bytes in the page cache, but for those of ``absent``."""

    absent: range = range(0)

    def begin(self, extents: Sequence[Extent]) -> PendingRead | None:  # type: ignore[override]
        self.requests += 1
        if any(extent.offset < self.absent.stop and self.absent.start < extent.end for extent in extents):
            return None
        return lambda: [memoryview(bytes(self.content[extent.offset : extent.end])) for extent in extents]


@pytest.fixture
def image() -> Image:
    return build(300)


def test_cached_bytes_are_verified_and_cut_to_what_was_asked_for(image: Image) -> None:
    device = device_over(CachedDevice(image.content), image)
    extents = [Extent(7, 100), Extent(200 * 4096 - 1, 2), Extent(299 * 4096, 4096)]
    parts = read_now(device, extents)
    assert parts is not None
    assert [bytes(part) for part in parts] == [image.data[extent.offset : extent.end] for extent in extents]
    assert read_now(device, []) == []


def test_a_hash_block_is_fetched_once(image: Image) -> None:
    storage = CachedDevice(image.content)
    device = device_over(storage, image)
    assert read_now(device, [Extent(0, 1)]) is not None
    assert storage.requests == 2
    assert read_now(device, [Extent(4096, 1)]) is not None
    assert storage.requests == 3


@pytest.mark.logs(r"^mystfuse\.devices\.verity: .* is corrupted")
@pytest.mark.parametrize("what", ["data", "hash block"])
async def test_damage_gives_nothing_and_is_not_counted(image: Image, what: str) -> None:
    position = 5 * 4096 if what == "data" else image.path(5)[0].start
    image.content[position] ^= 1
    device = device_over(CachedDevice(image.content), image)
    assert read_now(device, [Extent(5 * 4096, 10)]) is None
    assert device.blocks_failed == 0
    with pytest.raises(IntegrityError):
        await device.read([Extent(5 * 4096, 10)])
    assert device.blocks_failed == 1


@pytest.mark.parametrize("what", ["data", "hash block"])
def test_bytes_that_are_not_in_the_page_cache_give_nothing(image: Image, what: str) -> None:
    storage = CachedDevice(image.content)
    start = 5 * 4096 if what == "data" else image.path(5)[0].start
    storage.absent = range(start, start + 1)
    device = device_over(storage, image)
    assert device.begin([Extent(5 * 4096, 10)]) is None
    storage.absent = range(0)
    assert read_now(device, [Extent(5 * 4096, 10)]) is not None


def test_data_that_is_evicted_after_the_beginning_gives_nothing(image: Image) -> None:
    class Evicted(CachedDevice):
        def begin(self, extents: Sequence[Extent]) -> PendingRead | None:  # type: ignore[override]
            found = super().begin(extents)
            return (lambda: None) if extents[0].offset < image.data_size else found

    assert read_now(device_over(Evicted(image.content), image), [Extent(0, 4096)]) is None


def test_a_request_of_more_than_a_step_must_wait() -> None:
    image = build(MAX_STEP // 4096 + 1)
    device = device_over(CachedDevice(image.content), image)
    half = Extent(0, MAX_STEP // 2)
    assert device.begin([half, half]) is None
    assert device.begin([half, Extent(0, MAX_STEP // 2 - 4 * 4096)]) is not None


def test_bytes_outside_the_device_are_refused(image: Image) -> None:
    device = device_over(CachedDevice(image.content), image)
    with pytest.raises(ImageReadError, match="outside the device"):
        device.begin([Extent(image.data_size, 1)])
