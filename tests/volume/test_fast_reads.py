"""Fast reads are right reads: cached block maps, reused buffers, work in threads, prefill, read-ahead. Compared with
the written bytes and with the kernel."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio
from removal import mounts_in

from mystfuse.devices.buffers import LONG, Buffers
from mystfuse.devices.device import Extent, PendingRead
from mystfuse.devices.source import FileSource
from mystfuse.errors import CorruptFilesystem
from mystfuse.ext2.caller import Caller
from mystfuse.mounting.kernel_read_ahead import READ_AHEAD
from mystfuse.mounting.mount_table import find_mount
from mystfuse.system.workers import INLINE_BYTES, Workers
from mystfuse.volume.file_maps import WINDOW
from mystfuse.volume.volume import Volume
from tests.support.commands import mystfuse, run, wait_until
from tests.support.ext2_editor import Editor, MemoryDevice, make_image
from tests.support.mounts import mounted

ROOT = Caller(0, 0)


# Buffers


def test_a_buffer_is_used_again_only_when_nothing_refers_to_any_part_of_it() -> None:
    buffers = Buffers()
    first = buffers.take(LONG)
    first[:5] = b"first"
    part = first[2:4]
    address = id(first.obj)
    del first
    for _ in range(40):
        other = buffers.take(LONG)
        assert id(other.obj) != address
        other[:5] = b"other"
    assert bytes(part) == b"rs"
    del part, other
    again = [buffers.take(LONG) for _ in range(3)]
    assert any(id(view.obj) == address for view in again)
    assert len({id(view.obj) for view in again}) == 3


@pytest.mark.parametrize("length", [0, 1, LONG - 1, LONG, 1 << 20, (1 << 20) + 1, 3 << 20])
def test_buffers_of_every_length_are_writable_and_no_longer_than_asked(length: int) -> None:
    view = Buffers().take(length)
    assert len(view) == length and not view.readonly


# Workers


async def test_work_is_done_in_other_threads_and_several_at_once() -> None:
    workers = Workers(2)
    meet = threading.Barrier(2)
    threads: set[int] = set()

    def work() -> None:
        meet.wait(10)
        threads.add(threading.get_native_id())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(workers.run, work)
        nursery.start_soon(workers.run, work)
    assert len(threads) == 2 and threading.get_native_id() not in threads
    workers.close()
    with trio.fail_after(10):
        while any(Path(f"/proc/self/task/{thread}").exists() for thread in threads):
            await trio.sleep(0.01)


async def test_errors_of_work_reach_its_caller() -> None:
    workers = Workers(2)

    def work() -> None:
        raise ZeroDivisionError("work")

    with pytest.raises(ZeroDivisionError, match="work"):
        await workers.run(work)
    await workers.run(lambda: None)
    workers.close()


async def test_cancelled_work_is_waited_for_since_it_uses_our_buffers() -> None:
    workers = Workers(2)
    is_done = threading.Event()

    def work() -> None:
        time.sleep(0.2)
        is_done.set()

    with trio.move_on_after(0.01):
        await workers.run(work)
    assert is_done.is_set()
    workers.close()


# Maps


class FastDevice(MemoryDevice):
    """A device in memory, which never waits."""

    def begin(self, extents: Sequence[Extent]) -> PendingRead:  # type: ignore[override]
        return lambda: [memoryview(self._data)[extent.offset : extent.end] for extent in extents]


def file_with_holes(path: Path, seed: int, block_size: int) -> bytes:
    """A file of over four windows with some holes; returns its contents."""
    dice = random.Random(seed)
    size = 4 * WINDOW * block_size + 12 * block_size + 77
    content = bytearray(size)
    with path.open("wb") as file:
        for _ in range(60):
            start = dice.randrange(size // block_size) * block_size
            piece = dice.randbytes(dice.choice([1, block_size, 40 * block_size, 300 * block_size + 5]))[: size - start]
            content[start : start + len(piece)] = piece
            file.seek(start)
            file.write(piece)
        file.truncate(size)
    return bytes(content)


@pytest.mark.parametrize("block_size", [1024, 4096])
@pytest.mark.parametrize("seed", [1, 2])
async def test_reads_through_remembered_maps_give_what_is_in_the_file(
    block_size: int, seed: int, tmp_path: Path
) -> None:
    (tmp_path / "tree").mkdir()
    content = file_with_holes(tmp_path / "tree/file", seed, block_size)
    image = make_image(tmp_path / "image", "-b", str(block_size), size="64M", tree=tmp_path / "tree")
    data = image.read_bytes()
    for device in (MemoryDevice(data), FastDevice(data)):
        volume = await Volume.open(device)
        inode = await volume.lookup(2, b"file")
        assert inode is not None
        dice = random.Random(seed)
        for _ in range(200):
            offset = dice.choice([dice.randrange(len(content) + 10), dice.randrange(6) * WINDOW * block_size])
            length = dice.choice([1, 4096, block_size, INLINE_BYTES + 1, 1 << 20])
            assert bytes(await volume.read(inode.ino, offset, length)) == content[offset : offset + length]


async def test_what_is_remembered_of_a_file_is_forgotten_when_it_changes(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    content = bytearray(file_with_holes(tmp_path / "tree/file", 3, 1024))
    image = make_image(tmp_path / "image", "-b", "1024", size="64M", tree=tmp_path / "tree")
    volume = await Volume.open(FastDevice(image.read_bytes()), 64 << 20)
    inode = await volume.lookup(2, b"file")
    assert inode is not None
    dice = random.Random(3)
    for _ in range(150):
        offset, length = dice.randrange(len(content)), dice.choice([1, 5000, 300_000])
        assert bytes(await volume.read(inode.ino, offset, length)) == content[offset : offset + length]
        piece = dice.randbytes(dice.choice([1, 1024, 7000]))
        start = dice.randrange(len(content) + 5000)
        if start > len(content):
            content += bytes(start - len(content))
        content[start : start + len(piece)] = piece
        assert await volume.write(inode.ino, start, piece, ROOT) == len(piece)
        assert bytes(await volume.read(inode.ino, offset, length)) == content[offset : offset + length]


async def test_a_broken_pointer_costs_its_own_block_and_not_its_window(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    content = os.urandom(11 * 4096)
    (tmp_path / "tree/file").write_bytes(content)
    editor = Editor(make_image(tmp_path / "image", "-b", "4096", size="8M", tree=tmp_path / "tree").read_bytes())
    ino = 12
    editor.put("<I", editor.pointer(ino, 5), 0xFFFFFFF0)
    volume = await Volume.open(FastDevice(editor.data))
    for block in range(11):
        if block == 5:
            with pytest.raises(CorruptFilesystem):
                await volume.read(ino, block * 4096, 4096)
        else:
            assert bytes(await volume.read(ino, block * 4096, 4096)) == content[block * 4096 :][:4096]


# Reading ahead


def test_an_image_on_tmpfs_is_read_at_once(tmp_path: Path) -> None:
    path = Path(f"/dev/shm/mystfuse-test-{os.getpid()}")  # noqa: S108
    path.write_bytes(bytes(range(256)) * 256)
    try:
        source = FileSource(path)
        part = bytearray(5000)
        assert source.read_cached(1000, memoryview(part)) and part == (bytes(range(256)) * 256)[1000:6000]
        path.write_bytes(b"short")
        assert not source.read_cached(1000, memoryview(part))
        source.close()
    finally:
        path.unlink()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts")
def test_any_name_can_be_mounted_on_by_others(tmp_path: Path) -> None:
    """Some characters end a line for Python, but not in the mount table: with them, one user could keep all others from
    mounting."""
    target = tmp_path / "with\rtwo\rends of lines"
    target.mkdir()
    run("mount", "--bind", tmp_path, target)
    try:
        # Also where we look for another mount's line.
        assert find_mount(str(target)) is None
        assert mounts_in(tmp_path) == [str(target)]
    finally:
        run("umount", target)


# Prefill


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of sizes around the limit of prefill, and an image of them."""
    directory = tmp_path_factory.mktemp("files")
    tree = directory / "tree"
    tree.mkdir()
    for size in (0, 1, 4095, 4096, 4097, 20_000, 65_536, 65_537):
        (tree / f"f{size}").write_bytes(os.urandom(size))
    result = mystfuse("mkext2", "--free=8M", tree, directory / "image")
    assert result.returncode == 0, result.stderr
    return directory


def test_many_readers_and_writers_of_small_files_never_see_what_was_not_written(files: Path, mountpoint: Path) -> None:
    """Every version of a file repeats one byte; after a reader has seen a newer version, prefill must not bring back an
    older one at any place of the file. Two versions side by side are allowed, in either order: no file system promises
    that a read and a write of several pages exclude each other."""
    with mounted(files / "image", mountpoint):
        stop = threading.Event()
        wrong: list[str] = []

        def reader(number: int) -> None:
            path, seen = mountpoint / f"g{number % 3}", [(0, 0)] * 3
            while not stop.is_set():
                fd = os.open(path, os.O_RDONLY)
                content = os.pread(fd, 9000, 0)
                os.close(fd)
                pages = [content[start : start + 4096] for start in (0, 4096, 8192)]
                now = [(min(page, default=0), max(page, default=0)) for page in pages]
                went_back = any(
                    least < before[0] or most < before[1] for (least, most), before in zip(now, seen, strict=True)
                )
                if went_back or max(content) - min(content) > 1 or len(content) != 9000:
                    wrong.append(f"{path.name}: {now} after {seen}, {len(content)} bytes")
                seen = now

        for number in range(3):
            (mountpoint / f"g{number}").write_bytes(bytes(9000))
        threads = [threading.Thread(target=reader, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for version in range(1, 200):
            for number in range(3):
                fd = os.open(mountpoint / f"g{number}", os.O_WRONLY)
                os.pwrite(fd, bytes([version]) * 9000, 0)
                os.close(fd)
        stop.set()
        for thread in threads:
            thread.join()
        assert not wrong, wrong[:5]


# The kernel's read-ahead


def test_the_kernel_reads_far_ahead_for_root(small_image: Path, mountpoint: Path) -> None:
    with mounted(small_image, mountpoint):
        mount = find_mount(str(mountpoint))
        assert mount is not None
        setting = Path(f"/sys/class/bdi/{mount.device}/read_ahead_kb")
        wait_until(lambda: int(setting.read_text()) << 10 == READ_AHEAD, 5)


# Names that are looked up again


@pytest.mark.parametrize("options", [("-b", "1024"), ("-b", "4096"), ("-b", "1024", "-O", "^filetype")])
async def test_names_are_found_again_after_every_change(options: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    names = [b"name-%d" % number * (1 + number % 5) for number in range(300)]
    for name in names:
        (tmp_path / "tree" / os.fsdecode(name)).write_bytes(name)
    image = make_image(tmp_path / "image", *options, size="16M", tree=tmp_path / "tree")
    volume = await Volume.open(FastDevice(image.read_bytes()), 16 << 20)
    present, dice = dict.fromkeys(names), random.Random(4)
    for _ in range(2000):
        name = dice.choice(names)
        for _ in range(dice.randrange(1, 4)):
            inode = await volume.lookup(2, name)
            assert (inode is not None) == (name in present)
            if inode is not None:
                assert bytes(await volume.read(inode.ino, 0, 100)) == name[:100]
        if dice.random() < 0.2:
            if inode is not None:
                await volume.remove(2, name, False)
                await volume.release(inode.ino)
                del present[name]
            else:
                made = await volume.create(2, name, 0o100644, ROOT)
                await volume.write(made.ino, 0, name, ROOT)
                present[name] = None
