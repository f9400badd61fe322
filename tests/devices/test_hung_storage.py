"""Storage that does not answer: how long each request then takes, from devices to commands and mounts."""

from __future__ import annotations

import errno
import json
import mmap
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import cast

import pytest
import trio
from trio.testing import MockClock

from mystfuse.devices.cache import BlockCache
from mystfuse.devices.device import Extent
from mystfuse.devices.reader import PATIENCE
from mystfuse.devices.verity import VerityDevice
from mystfuse.errors import ImageReadError, StorageTimeout
from mystfuse.ext2.filesystem import FileSystem
from mystfuse.formats.verity import TreeGeometry
from mystfuse.mounting.kernel_read_ahead import BACKGROUND
from mystfuse.mounting.session import MAX_TASKS
from mystfuse.volume.runner import FEW_PINNED_BYTES, MAX_LARGE, Runner
from tests.support.commands import mystfuse, run
from tests.support.ext2_editor import MemoryDevice
from tests.support.memory_source import MemorySource, running
from tests.support.mounts import caches_kept, daemon_pid, mounted
from tests.support.verity_images import Image, build

pytestmark = pytest.mark.logs(r"^mystfuse\.devices\.reader")

# Devices, with virtual time: the threads of hanging reads hang until the test ends


@asynccontextmanager
async def verified(image: Image, source: MemorySource) -> AsyncIterator[VerityDevice]:
    """A verity device over a reader with a time-out of 30 s."""
    async with running(source, io_timeout=30, patience=1000) as reader:
        geometry = TreeGeometry.of(image.superblock, image.data_size)
        yield VerityDevice(reader, image.superblock, geometry, image.root_hash)


async def read_blocks(device: VerityDevice, blocks: Iterable[int]) -> dict[int, bytes | tuple[str, float]]:
    """For each block, read by a task of its own, all at once: the bytes, or the type of the error and the seconds."""
    results: dict[int, bytes | tuple[str, float]] = {}

    async def read(block: int) -> None:
        started = trio.current_time()
        try:
            results[block] = bytes((await device.read([Extent(512 * block, 512)]))[0])
        except ImageReadError as error:
            results[block] = type(error).__name__, trio.current_time() - started

    async with trio.open_nursery() as nursery:
        for block in blocks:
            nursery.start_soon(read, block)
    return results


@pytest.mark.parametrize("what", ["everything", "the hash block"])
async def test_waiters_share_the_time_out_of_a_hash_block(what: str, autojump_clock: MockClock) -> None:
    autojump_clock.autojump_threshold = 0.05
    image = build(300, data_block_size=512, hash_block_size=512)
    hanging = range(len(image.content)) if what == "everything" else image.path(0)[0]
    source = MemorySource(hanging=(hanging,), content=bytes(image.content))
    async with verified(image, source) as device:
        results = await read_blocks(device, range(16))
        for block in range(16):
            name, seconds = results[block]
            assert name == "StorageTimeout"
            assert seconds <= 30 + PATIENCE
        asked = [call for call in source.calls if call.offset <= image.path(0)[0].start < call.end]
        assert len(asked) == 1, "it was asked for by one of them"
        # The failure is not remembered: a later reader asks storage again.
        source.release.set()
        assert await read_blocks(device, range(16)) == {
            block: image.data[512 * block : 512 * (block + 1)] for block in range(16)
        }


async def test_waiters_get_a_hash_block_that_came_beside_what_did_not(autojump_clock: MockClock) -> None:
    """One reader's data hangs; the other readers need the same hash blocks, and get them at once."""
    autojump_clock.autojump_threshold = 0.05
    image = build(300, data_block_size=512, hash_block_size=512)
    source = MemorySource(hanging=(range(512),), content=bytes(image.content))
    async with verified(image, source) as device, trio.open_nursery() as nursery:

        async def hang() -> None:
            with pytest.raises(StorageTimeout):
                await device.read([Extent(0, 512)])

        nursery.start_soon(hang)
        await trio.sleep(0)
        with trio.fail_after(1):
            assert await read_blocks(device, range(1, 16)) == {
                block: image.data[512 * block : 512 * (block + 1)] for block in range(1, 16)
            }


async def test_waiters_share_an_error_of_the_hash_block_they_need_and_of_no_other() -> None:
    image = build(300, data_block_size=512, hash_block_size=512)
    broken = image.path(0)[0]
    source = MemorySource(broken=(broken,), content=bytes(image.content))
    async with verified(image, source) as device, trio.open_nursery() as nursery:

        async def fail() -> None:
            with pytest.raises(ImageReadError):
                await device.read([Extent(0, 32 * 512)])

        nursery.start_soon(fail)
        await trio.sleep(0)
        results = await read_blocks(device, range(32))
    for block in range(32):
        if block < 16:
            assert results[block][0] == "ImageReadError"
        else:
            assert results[block] == image.data[512 * block : 512 * (block + 1)]
    asked = [call for call in source.calls if call.offset <= broken.start < call.end]
    assert len(asked) <= 2, "together with its neighbours, and alone"


async def test_a_waiter_takes_over_from_a_cancelled_reader(autojump_clock: MockClock) -> None:
    autojump_clock.autojump_threshold = 0.05
    image = build(300, data_block_size=512, hash_block_size=512)
    source = MemorySource(hanging=(range(512),), delay=0.02, content=bytes(image.content))
    async with verified(image, source) as device, trio.open_nursery() as nursery:

        async def give_up() -> None:
            with trio.move_on_after(0.01):
                await device.read([Extent(0, 512)])

        nursery.start_soon(give_up)
        await trio.sleep(0)
        assert await read_blocks(device, [1]) == {1: image.data[512:1024]}


async def test_operations_that_need_many_blocks_are_few_at_once_and_wait_no_longer_than_storage_may_take(
    autojump_clock: MockClock,
) -> None:
    reads: list[int] = []

    class Device(MemoryDevice):
        async def read(self, extents: Sequence[Extent], quietly: bool = False) -> list[memoryview]:
            reads.append(sum(extent.length for extent in extents))
            await trio.sleep_forever()

    # Nothing has changed.
    filesystem = cast(FileSystem, None)
    runner = Runner(filesystem, BlockCache(Device(bytes(1)), 65536), None, lambda: 0, io_timeout=30)
    timed_out: list[float] = []

    async def operate(count: int) -> None:
        try:
            await runner.run(lambda blocks: blocks.all(range(count)))
        except StorageTimeout:
            timed_out.append(trio.current_time() - started)

    async with trio.open_nursery() as nursery:
        started = trio.current_time()
        for _ in range(20):
            nursery.start_soon(operate, FEW_PINNED_BYTES // 65536 + 1)
            nursery.start_soon(operate, FEW_PINNED_BYTES // 65536)
        await trio.sleep(31)
        assert reads.count(FEW_PINNED_BYTES) == 20
        assert len(reads) == 20 + MAX_LARGE
        assert timed_out == [30.0] * (20 - MAX_LARGE)
        nursery.cancel_scope.cancel()


# Mounts


@contextmanager
def hanging_mount(directory: Path, source: Path, *options: str) -> Iterator[tuple[Path, Callable[[], None]]]:
    """A mount of a tree whose image lies on a file system of ours, which hangs when the test stops its daemon; by the
    files beside the image."""
    outer_source = directory / "outer-source"
    outer_source.mkdir()
    assert mystfuse("mkext2", source, outer_source / "inner.img").returncode == 0
    assert mystfuse("mkext2", outer_source, directory / "outer.img").returncode == 0
    # The page cache has what was read before.
    with caches_kept(), mounted(directory / "outer.img", directory / "outer") as outer:
        pid = daemon_pid(outer)
        try:
            with mounted(outer / "inner.img", directory / "inner", *options) as inner:
                yield inner, lambda: os.kill(pid, signal.SIGSTOP)
        finally:
            os.kill(pid, signal.SIGCONT)


def read_directly(path: Path, offset: int) -> tuple[int | None, float]:
    """Read 4 KiB past the page cache; returns the errno and the seconds."""
    started = time.monotonic()
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        os.preadv(descriptor, [mmap.mmap(-1, 4096)], offset)
    except OSError as error:
        return error.errno, time.monotonic() - started
    finally:
        os.close(descriptor)
    return None, time.monotonic() - started


def test_readers_of_hung_storage_hold_up_neither_each_other_nor_the_rest(tmp_path: Path) -> None:
    """More readers than we have threads for reading, and than the kernel sends reads by itself at once."""
    count = 60
    assert count < MAX_TASKS
    (tmp_path / "source").mkdir()
    (tmp_path / "source/payload").write_bytes(os.urandom(count << 17))
    (tmp_path / "source/small").write_bytes(b"small")
    with hanging_mount(tmp_path, tmp_path / "source", "--io-timeout=1") as (mountpoint, hang):
        assert (mountpoint / "small").read_bytes() == b"small"
        (mountpoint / "payload").stat()
        hang()
        with ThreadPoolExecutor(count) as pool:
            # Not the blocks that were read ahead when the image was opened.
            offsets = range(1 << 20, count << 17, 114688)
            readers = [pool.submit(read_directly, mountpoint / "payload", offset) for offset in offsets]
            time.sleep(0.5)
            started = time.monotonic()
            assert json.loads((mountpoint / ".mystfuse/status.json").read_text())["read_failures"] == 0
            assert (mountpoint / "small").read_bytes() == b"small"
            assert os.listdir(mountpoint)
            assert time.monotonic() - started < 1
            assert not any(reader.done() for reader in readers)
            results = [reader.result() for reader in readers]
    assert {number for number, _ in results} == {errno.EIO}
    assert max(seconds for _, seconds in results) < 1 + 2


def test_the_kernel_sends_many_reads_at_once_where_it_lets_us_say_so(small_image: Path, mountpoint: Path) -> None:
    script = """mount -t fusectl none /sys/fs/fuse/connections && "$0" -m mystfuse "$1" "$2" >&2 &&
        "$0" -c 'import os, sys; print(os.minor(os.stat(sys.argv[1]).st_dev))' "$2" &&
        head -v /sys/fs/fuse/connections/*/max_background; "$0" -m mystfuse umount "$2" """
    said = run("unshare", "--mount", "sh", "-c", script, sys.executable, small_image, mountpoint).stdout
    number, _, rest = said.partition("\n")
    assert f"/{number}/max_background <==\n{BACKGROUND}\n" in rest
    assert BACKGROUND < MAX_TASKS
