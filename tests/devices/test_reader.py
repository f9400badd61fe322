"""The untrusted reader over sources that stall, fail, shrink and come in any order; and image files as sources."""

from __future__ import annotations

import logging
import math
import os
import random
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from mystfuse.devices.device import Extent, coalesce
from mystfuse.devices.reader import COLD_READS, MAX_ABANDONED, MAX_READ, PATIENCE, ImageReader
from mystfuse.devices.source import FileSource, Source
from mystfuse.errors import FormatError, ImageReadError, StorageTimeout

CONTENT = random.Random(1).randbytes(1 << 20)


class MemorySource:
    """A source of ``CONTENT`` that notes what is asked of it, and misbehaves where it is told to.

    Args:
        cached: answer without waiting, as if everything were in the page cache.
        broken: byte ranges that cannot be read.
        hanging: byte ranges that are not answered before ``release`` is set.
        delay: seconds that each cold read takes.
    """

    def __init__(
        self,
        *,
        cached: bool = False,
        broken: tuple[range, ...] = (),
        hanging: tuple[range, ...] = (),
        delay: float = 0,
        content: bytes = CONTENT,
    ) -> None:
        self.name = "memory"
        self.size = len(content)
        self.calls: list[Extent] = []
        self.most_at_once = 0
        self.release = threading.Event()
        self.content = content
        self._cached = cached
        self._broken = broken
        self._hanging = hanging
        self._delay = delay
        self._at_once = 0
        self._lock = threading.Lock()

    def read_cached(self, offset: int, buffer: memoryview) -> bool:
        if not self._cached:
            return False
        self.calls.append(Extent(offset, len(buffer)))
        found = self.content[offset : offset + len(buffer)]
        buffer[: len(found)] = found
        return len(found) == len(buffer)

    def read(self, offset: int, length: int) -> bytes:
        with self._lock:
            self.calls.append(Extent(offset, length))
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            if any(offset < place.stop and place.start < offset + length for place in self._hanging):
                self.release.wait(20)
            time.sleep(self._delay)
            if any(offset < place.stop and place.start < offset + length for place in self._broken):
                raise ImageReadError(f"{self.name}: reading {length} bytes at {offset}: Input/output error")
            if offset + length > len(self.content):
                raise ImageReadError(f"{self.name}: truncated")
            return self.content[offset : offset + length]
        finally:
            with self._lock:
                self._at_once -= 1

    def close(self) -> None:
        self.release.set()


@asynccontextmanager
async def running(source: Source, io_timeout: float = math.inf, patience: float = 15) -> AsyncIterator[ImageReader]:
    """A running reader. Everything inside must be done within ``patience`` seconds."""
    reader = ImageReader(source, io_timeout)
    with trio.fail_after(patience):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reader.run)
            try:
                yield reader
            finally:
                source.close()
                nursery.cancel_scope.cancel()


async def read_all(reader: ImageReader, extents: list[Extent]) -> list[bytes | Exception]:
    """Each extent as a request of its own, all sent together: the bytes, or the error."""
    results: list[bytes | Exception | None] = [None] * len(extents)

    async def read_one(index: int) -> None:
        try:
            (part,) = await reader.read([extents[index]])
            results[index] = bytes(part)
        except ImageReadError as error:
            results[index] = error

    async with trio.open_nursery() as nursery:
        for index in range(len(extents)):
            nursery.start_soon(read_one, index)
    return [result for result in results if result is not None]


def slice_of(extent: Extent, content: bytes = CONTENT) -> bytes:
    return content[extent.offset : extent.end]


# Right bytes in the right order


@pytest.mark.parametrize("cached", [True, False])
async def test_parts_come_in_the_order_asked_for_whatever_they_overlap(cached: bool) -> None:
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


# Merging


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


# Failing storage


async def test_error_reaches_who_asked_and_is_logged_and_counted(caplog: pytest.LogCaptureFixture) -> None:
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


# Hanging storage


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


async def test_hung_storage_costs_everybody_one_time_out_however_many_wait(autojump_clock: MockClock) -> None:
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
    """Together they meet an error, and alone storage does not answer."""
    # The thread that meets the error must get the time for it.
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


async def test_slow_storage_that_answers_each_read_in_time_fails_nobody_however_many_wait() -> None:
    source = MemorySource(delay=0.05)
    async with running(source, io_timeout=1) as reader:
        # All together take twice as long as one may.
        extents = [Extent(1024 * index, 100) for index in range(40 * COLD_READS)]
        assert await read_all(reader, extents) == [slice_of(extent) for extent in extents]


async def test_hanging_reads_give_their_places_back_until_there_are_too_many() -> None:
    source = MemorySource(hanging=(range(100 * 8192),))
    async with running(source, io_timeout=0.1) as reader:
        hanging = [Extent(8192 * index, 10) for index in range(COLD_READS)]
        assert all(isinstance(result, StorageTimeout) for result in await read_all(reader, hanging))
        # Other places of the image are read as before.
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


# Cancellation and the end


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


# FileSource


def test_file_gives_exact_ranges_cold_and_cached(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(CONTENT)
    source = FileSource(image)
    assert source.size == 1 << 20
    assert source.name == str(image)
    assert source.read(12345, 67890) == CONTENT[12345:80235]
    cached = bytearray(67890)
    assert not source.read_cached(12345, memoryview(cached)) or cached == CONTENT[12345:80235]
    source.close()
    source.close()


def test_directory_is_not_an_image(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="a directory, not an image"):
        FileSource(tmp_path)


def test_fifo_that_nobody_writes_to_is_refused_and_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    started = time.monotonic()
    with pytest.raises(FormatError, match="neither a regular file nor a block device"):
        FileSource(tmp_path / "fifo")
    assert time.monotonic() - started < 1


def test_character_device_is_not_an_image() -> None:
    with pytest.raises(FormatError, match="neither a regular file nor a block device"):
        FileSource("/dev/zero")


@pytest.mark.parametrize(
    ("path", "reason"),
    [("absent", "No such file or directory"), ("file/below", "Not a directory"), ("n" * 300, "File name too long")],
)
def test_what_cannot_be_opened_is_named_with_the_reason(path: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ImageReadError, match=f"{path}: {reason}"):
        FileSource(tmp_path / path)


def test_refused_files_leave_no_descriptor_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        with pytest.raises(FormatError):
            FileSource(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_file_truncated_after_it_was_opened_is_an_error_that_says_where_it_ends(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(CONTENT)
    source = FileSource(image)
    os.truncate(image, 5000)
    assert not source.read_cached(4096, memoryview(bytearray(4096)))
    with pytest.raises(ImageReadError, match="truncated: it ends at byte 5000, before byte 8192"):
        source.read(4096, 4096)
    assert source.read(0, 5000) == CONTENT[:5000]
    source.close()


async def test_file_truncated_under_the_reader_fails_only_what_is_gone(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(CONTENT)
    async with running(FileSource(image)) as reader:
        os.truncate(image, 8192)
        results = await read_all(reader, [Extent(0, 4096), Extent(4096, 4096), Extent(8192, 4096)])
    assert results[:2] == [CONTENT[:4096], CONTENT[4096:8192]]
    assert isinstance(results[2], ImageReadError)


def test_file_deleted_after_it_was_opened_is_read_on(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(CONTENT)
    source = FileSource(image)
    image.unlink()
    assert source.read(100, 1000) == CONTENT[100:1100]
    source.close()


def test_error_of_the_operating_system_is_an_image_read_error(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(CONTENT)
    source = FileSource(image)
    source.close()
    assert not source.read_cached(0, memoryview(bytearray(10)))
    with pytest.raises(ImageReadError, match="Bad file descriptor"):
        source.read(0, 10)


def test_resolved_name_is_the_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "image").touch()
    (tmp_path / "link").symlink_to("image")
    monkeypatch.chdir(tmp_path)
    source = FileSource("link")
    assert source.resolved_name() == str(tmp_path / "image")
    source.close()
