"""The image reader: right bytes in the right order, merged reads, errors and cancellation."""

from __future__ import annotations

import logging
import random
import time
from pathlib import Path

import pytest
import trio
import trio.testing

from mystfuse.devices.device import Extent, coalesce
from mystfuse.devices.reader import COLD_READS, MAX_READ, ImageReader
from mystfuse.devices.source import FileSource
from mystfuse.errors import ImageReadError, StorageTimeout
from tests.support.memory_source import CONTENT, MemorySource, read_all, running, slice_of

pytestmark = pytest.mark.logs(r"^mystfuse\.devices\.reader")


@pytest.mark.parametrize("cached", [True, False])
async def test_parts_come_in_the_order_asked_for_even_if_they_overlap(cached: bool) -> None:
    extents = [Extent(5000, 10), Extent(0, 4096), Extent(4090, 20), Extent(0, 4096), Extent(1 << 19, 1), Extent(1, 1)]
    async with running(MemorySource(cached=cached)) as reader:
        parts = await reader.read(extents)
    assert [bytes(part) for part in parts] == [slice_of(extent) for extent in extents]


async def test_nothing_asked_for_is_nothing_read() -> None:
    source = MemorySource()
    async with running(source) as reader:
        assert await reader.read([]) == []
    assert source.calls == []


@pytest.mark.parametrize("cached", [True, False])
async def test_200_requests_at_once_each_get_their_own_bytes(cached: bool) -> None:
    dice = random.Random(2)
    extents = [Extent(dice.randrange(1 << 20), dice.randrange(1, 9000)) for _ in range(200)]
    extents = [Extent(offset, min(length, (1 << 20) - offset)) for offset, length in extents]
    async with running(MemorySource(cached=cached, delay=0.001)) as reader:
        assert await read_all(reader, extents) == [slice_of(extent) for extent in extents]


async def test_requests_of_many_scattered_extents_do_not_mix() -> None:
    dice = random.Random(3)
    requests = [[Extent(dice.randrange(1000) * 1024, 1024) for _ in range(30)] for _ in range(20)]
    results: dict[int, list[bytes]] = {}
    async with running(MemorySource(delay=0.001)) as reader:

        async def read_one(index: int) -> None:
            results[index] = [bytes(part) for part in await reader.read(requests[index])]

        async with trio.open_nursery() as nursery:
            for index in range(len(requests)):
                nursery.start_soon(read_one, index)
    for index, extents in enumerate(requests):
        assert results[index] == [slice_of(extent) for extent in extents]


async def test_bytes_read_are_counted() -> None:
    async with running(MemorySource()) as reader:
        await reader.read([Extent(0, 1000), Extent(5000, 500)])
        assert reader.bytes_read == 1500
        assert reader.failures == 0


@pytest.mark.parametrize("cached", [True, False])
async def test_neighbours_of_one_request_and_of_several_are_read_together(cached: bool) -> None:
    source = MemorySource(cached=cached)
    extents = [Extent(index * 4096, 4096) for index in range(32)]
    random.Random(4).shuffle(extents)
    async with running(source) as reader:
        assert await read_all(reader, extents) == [slice_of(extent) for extent in extents]
        assert source.calls == [Extent(0, 32 * 4096)]
        await reader.read(extents)
        assert source.calls[1:] == [Extent(0, 32 * 4096)]


async def test_merged_reads_are_bounded_and_a_longer_one_stays_whole() -> None:
    content = bytes(3 * MAX_READ)
    source = MemorySource(content=content)
    async with running(source) as reader:
        await reader.read([Extent(index * 4096, 4096) for index in range(len(content) // 4096)])
        assert max(call.length for call in source.calls) == MAX_READ
        await reader.read([Extent(0, len(content))])
        assert source.calls[-1] == Extent(0, len(content))


async def test_no_more_reads_from_storage_at_once_than_there_are_threads_for() -> None:
    source = MemorySource(delay=0.005)
    async with running(source) as reader:
        await read_all(reader, [Extent(index * 8192, 100) for index in range(64)])
    assert 1 < source.most_at_once <= COLD_READS


def test_coalesce_covers_every_extent_by_exactly_one_member() -> None:
    dice = random.Random(5)
    for _ in range(300):
        extents = [Extent(dice.randrange(200), dice.randrange(1, 30)) for _ in range(dice.randrange(1, 20))]
        longest = dice.choice([1, 16, 64, 1000])
        merged = coalesce(extents, longest)
        assert merged == sorted(merged)
        for extent in extents:
            assert sum(run.offset <= extent.offset and extent.end <= run.end for run in merged) >= 1
        covered = {byte for extent in extents for byte in range(extent.offset, extent.end)}
        assert {byte for run in merged for byte in range(run.offset, run.end)} == covered, "nothing else is read"
        assert all(run.length <= max(longest, max(extent.length for extent in extents)) for run in merged)


async def test_error_reaches_its_request_and_is_logged_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    async with running(MemorySource(broken=(range(4096, 4097),))) as reader:
        with pytest.raises(ImageReadError, match="4096 bytes at 4096: Input/output error"):
            await reader.read([Extent(4096, 4096)])
        assert reader.failures == 1
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


async def test_one_bad_extent_fails_the_whole_request_of_several() -> None:
    async with running(MemorySource(broken=(range(500_000, 500_001),))) as reader:
        with pytest.raises(ImageReadError):
            await reader.read([Extent(0, 10), Extent(500_000, 10), Extent(900_000, 10)])


async def test_failing_neighbour_does_not_fail_those_that_were_merged_with_it() -> None:
    source = MemorySource(broken=(range(5 * 4096 + 17, 5 * 4096 + 18),))
    extents = [Extent(index * 4096, 4096) for index in range(16)]
    async with running(source) as reader:
        results = await read_all(reader, extents)
    assert source.calls[0] == Extent(0, 16 * 4096), "they were merged at first"
    assert isinstance(results[5], ImageReadError)
    assert [result for index, result in enumerate(results) if index != 5] == [
        slice_of(extent) for index, extent in enumerate(extents) if index != 5
    ]


async def test_reader_goes_on_after_errors() -> None:
    source = MemorySource(broken=(range(100, 101),))
    async with running(source) as reader:
        for _ in range(20):
            with pytest.raises(ImageReadError):
                await reader.read([Extent(100, 1)])
        assert bytes((await reader.read([Extent(101, 50)]))[0]) == CONTENT[101:151]


async def test_source_that_returns_too_little_is_an_error_not_a_short_part() -> None:
    class ShortSource(MemorySource):
        def read_cached(self, offset: int, buffer: memoryview) -> bool:
            buffer[:-1] = CONTENT[offset : offset + len(buffer) - 1]
            return False

        def read(self, offset: int, length: int) -> bytes:
            return CONTENT[offset : offset + length - 1]

    async with running(ShortSource()) as reader:
        with pytest.raises(ImageReadError):
            await reader.read([Extent(0, 100), Extent(200, 100)])


@pytest.mark.parametrize("extent", [Extent(1 << 20, 1), Extent((1 << 20) - 1, 2), Extent(1 << 40, 4096)])
async def test_range_past_the_end_is_an_error(extent: Extent, tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(CONTENT)
    async with running(FileSource(tmp_path / "image")) as reader:
        with pytest.raises(ImageReadError, match="truncated"):
            await reader.read([extent])
        assert bytes((await reader.read([Extent(0, 10)]))[0]) == CONTENT[:10]


async def test_cancelled_request_leaves_the_reader_and_its_neighbours_well() -> None:
    source = MemorySource(hanging=(range(4096),))
    async with running(source) as reader:
        with trio.move_on_after(0.05) as scope:
            await reader.read([Extent(0, 4096)])
        assert scope.cancelled_caught
        assert bytes((await reader.read([Extent(8192, 10)]))[0]) == CONTENT[8192:8202]
        source.release.set()
        assert bytes((await reader.read([Extent(0, 10)]))[0]) == CONTENT[:10]


async def test_cancelled_neighbour_does_not_take_a_merged_read_away_from_others() -> None:
    source = MemorySource(delay=0.1)
    results: list[bytes] = []
    async with running(source) as reader, trio.open_nursery() as nursery:

        async def keep() -> None:
            results.append(bytes((await reader.read([Extent(4096, 4096)]))[0]))

        async def give_up() -> None:
            with trio.move_on_after(0.03):
                await reader.read([Extent(0, 4096)])

        nursery.start_soon(give_up)
        nursery.start_soon(keep)
    assert results == [CONTENT[4096:8192]]
    assert source.calls == [Extent(0, 8192)]


async def test_request_after_the_reader_has_ended_fails_rather_than_waits() -> None:
    async with running(MemorySource()) as reader:
        pass
    with trio.fail_after(2), pytest.raises(ImageReadError, match="has ended"):
        await reader.read([Extent(0, 1)])


async def test_request_under_way_when_the_reader_ends_fails_rather_than_waits() -> None:
    source = MemorySource(hanging=(range(4096),))
    reader = ImageReader(source)
    scope = trio.CancelScope()

    async def run_reader() -> None:
        with scope:
            await reader.run()

    with trio.move_on_after(2) as patience:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_reader)

            async def read() -> None:
                with pytest.raises(ImageReadError, match="has ended"):
                    await reader.read([Extent(0, 10)])

            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
    source.release.set()
    assert not patience.cancelled_caught, "the request waited for ever"


class _ElsewhereToo(MemorySource):
    """A source whose bytes are elsewhere, too."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def read_again(self, offset: int, length: int) -> bytes:
        time.sleep(self.seconds)
        return slice_of(Extent(offset, length))


async def test_reading_again_takes_the_time_out_for_all_together() -> None:
    extents = [Extent(8192 * index, 10) for index in range(100)]
    async with running(_ElsewhereToo(0.1), io_timeout=0.5) as reader:
        started = trio.current_time()
        with pytest.raises(StorageTimeout):
            await reader.read_again(extents, trio.current_time())
        assert trio.current_time() - started < 3


async def test_reading_again_takes_what_is_left_of_the_requests_time_out() -> None:
    async with running(_ElsewhereToo(3), io_timeout=5) as reader:
        started = trio.current_time()
        with pytest.raises(StorageTimeout):
            await reader.read_again([Extent(0, 10)], started - 4.5)
        assert trio.current_time() - started < 2.5


async def test_many_may_read_again_at_once() -> None:
    extents = [Extent(8192 * index, 10) for index in range(80)]
    found: list[bytes] = []
    async with running(_ElsewhereToo(0.02)) as reader:

        async def read(extent: Extent) -> None:
            found.extend(bytes(part) for part in await reader.read_again([extent], trio.current_time()) or ())

        async with trio.open_nursery() as nursery:
            for extent in extents:
                nursery.start_soon(read, extent)
        assert sorted(found) == sorted(map(slice_of, extents))
        parts = await reader.read_again(extents, trio.current_time())
        assert parts is not None and [*map(bytes, parts)] == [*map(slice_of, extents)]
