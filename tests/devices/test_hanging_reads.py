"""Reads that hang: each request has its time-out, and other requests go on."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from mystfuse.devices.device import Extent
from mystfuse.devices.reader import COLD_READS, MAX_ABANDONED, PATIENCE
from mystfuse.errors import ImageReadError, StorageTimeout
from tests.support.memory_source import CONTENT, MemorySource, read_all, running, slice_of

pytestmark = pytest.mark.logs(r"^mystfuse\.devices\.reader")


async def test_hanging_read_times_out_quickly_while_others_are_served() -> None:
    source = MemorySource(hanging=(range(4096),))
    async with running(source, io_timeout=0.2) as reader:
        started = trio.current_time()
        results = await read_all(reader, [Extent(0, 10), *(Extent(8192 * index, 100) for index in range(1, 50))])
        assert trio.current_time() - started < 2
        assert isinstance(results[0], StorageTimeout)
        assert results[1:] == [CONTENT[8192 * index : 8192 * index + 100] for index in range(1, 50)]
        with pytest.raises(StorageTimeout, match=r"no answer from storage within 0\.2 s"):
            await reader.read([Extent(0, 10)])


async def test_others_do_not_wait_for_a_hanging_read() -> None:
    source = MemorySource(hanging=(range(4096),))
    async with running(source) as reader, trio.open_nursery() as nursery:
        nursery.start_soon(read_all, reader, [Extent(0, 10)] * (COLD_READS - 1))
        await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(2):
            assert bytes((await reader.read([Extent(10_000, 10)]))[0]) == CONTENT[10_000:10_010]
        nursery.cancel_scope.cancel()


async def test_timed_out_request_is_not_tried_again() -> None:
    source = MemorySource(hanging=(range(4096),))
    async with running(source, io_timeout=0.1) as reader:
        results = await read_all(reader, [Extent(0, 10), Extent(10, 10)])
        assert [type(result) for result in results] == [StorageTimeout] * 2
        assert source.calls == [Extent(0, 20)]


async def test_hung_storage_costs_every_reader_one_time_out_however_many_wait(autojump_clock: MockClock) -> None:
    source = MemorySource(hanging=(range(1 << 20),))
    async with running(source, io_timeout=30, patience=1000) as reader:

        async def ask(index: int, later: float) -> None:
            await trio.sleep(later)
            started = trio.current_time()
            with pytest.raises(StorageTimeout):
                await reader.read([Extent(8192 * (index + step), 100) for step in (0, 20, 60)])
            assert trio.current_time() - started <= 30 + PATIENCE

        async with trio.open_nursery() as nursery:
            for index in range(40):
                nursery.start_soon(ask, index, 0.7 * index)


async def test_retries_of_merged_reads_do_not_wait_for_each_other(autojump_clock: MockClock) -> None:
    """A merged read meets an error, and then storage does not answer the single reads."""
    # Give the thread that meets the error time for it.
    autojump_clock.autojump_threshold = 0.05

    class Source(MemorySource):
        def read(self, offset: int, length: int) -> bytes:
            if length > 100:
                raise ImageReadError("memory: Input/output error")
            return super().read(offset, length)

    async with running(Source(hanging=(range(1 << 20),)), io_timeout=30, patience=1000) as reader:
        started = trio.current_time()
        results = await read_all(reader, [Extent(100 * index, 100) for index in range(40)])
        assert all(isinstance(result, StorageTimeout) for result in results)
        assert trio.current_time() - started <= 30 + PATIENCE


async def test_what_is_left_of_a_failed_request_is_not_read_but_its_neighbours_are() -> None:
    source = MemorySource(broken=(range(10),), delay=0.01)
    neighbour = Extent(50 * 8192 + 10, 10)

    async def fail() -> None:
        with pytest.raises(ImageReadError):
            await reader.read([Extent(8192 * index, 10) for index in range(100)])

    async with running(source) as reader, trio.open_nursery() as nursery:
        nursery.start_soon(fail)
        assert bytes((await reader.read([neighbour]))[0]) == slice_of(neighbour)
    assert len(source.calls) <= 2 * COLD_READS and neighbour in source.calls


async def test_slow_storage_that_answers_each_read_in_time_fails_no_read_however_many_wait() -> None:
    source = MemorySource(delay=0.05)
    async with running(source, io_timeout=1) as reader:
        # All of them together take twice as long as a single read may.
        extents = [Extent(1024 * index, 100) for index in range(40 * COLD_READS)]
        assert await read_all(reader, extents) == [slice_of(extent) for extent in extents]


async def test_hanging_reads_give_their_places_back_until_there_are_too_many() -> None:
    source = MemorySource(hanging=(range(100 * 8192),))
    async with running(source, io_timeout=0.1) as reader:
        hanging = [Extent(8192 * index, 10) for index in range(COLD_READS)]
        assert all(isinstance(result, StorageTimeout) for result in await read_all(reader, hanging))
        # Reads elsewhere in the image work as before.
        beyond = Extent(100 * 8192, 10)
        assert bytes((await reader.read([beyond]))[0]) == slice_of(beyond)
        many = [Extent(8192 * index, 10) for index in range(60)]
        started = trio.current_time()
        for _ in range(MAX_ABANDONED // COLD_READS):
            assert all(isinstance(result, StorageTimeout) for result in await read_all(reader, many))
        assert trio.current_time() - started < 5
        # On a busy machine a round may begin fewer reads than there is room for.
        for _ in range(20):
            try:
                await reader.read([beyond])
            except StorageTimeout:
                break
            assert all(isinstance(result, StorageTimeout) for result in await read_all(reader, many))
        else:
            pytest.fail("there are never too many")
        assert source.most_at_once <= COLD_READS + MAX_ABANDONED
        source.release.set()
        await trio.sleep(0.1)
        assert bytes((await reader.read([beyond]))[0]) == slice_of(beyond)


async def test_answer_after_the_time_out_is_dropped() -> None:
    source = MemorySource(hanging=(range(4096),))
    async with running(source, io_timeout=0.1) as reader:
        with pytest.raises(StorageTimeout):
            await reader.read([Extent(0, 10)])
        source.release.set()
        await trio.sleep(0.05)
        assert bytes((await reader.read([Extent(0, 10)]))[0]) == CONTENT[:10]
