"""Operations happen as a whole or not at all: on damage, when cancelled, without space."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from mystfuse.errors import MystfuseError
from mystfuse.ext2.caller import Caller
from mystfuse.ext2.constants import EXT2_ROOT_INO
from mystfuse.ext2.rename import RENAME_EXCHANGE
from mystfuse.ext2.setattr import AttributeChanges
from mystfuse.volume.volume import Volume
from tests.support.ext2_editor import assert_clean, merged
from tests.support.gated_volumes import ROOT, find, open_volume

LONG_TARGET = b"t" * 200

Operation = Callable[[Volume], Awaitable[object]]


async def _write_over_the_end(volume: Volume) -> None:
    inode = await find(volume, b"large")
    await volume.write(inode.ino, inode.size - 100, b"w" * 30_000, ROOT)


async def _write_far_out(volume: Volume) -> None:
    inode = await find(volume, b"small")
    block_size = volume.superblock.block_size
    await volume.write(inode.ino, (12 + block_size // 4 + 5) * block_size - 10, b"f" * 20, ROOT)


async def _cut(volume: Volume) -> None:
    await volume.set_attributes((await find(volume, b"large")).ino, AttributeChanges(size=5000), ROOT)


async def _change_attributes(volume: Volume) -> None:
    changes = AttributeChanges(mode=0o640, uid=70_000, gid=80_000, atime_ns=1, mtime_ns=2)
    await volume.set_attributes((await find(volume, b"small")).ino, changes, ROOT)


async def _set_large_xattr(volume: Volume) -> None:
    await volume.set_xattr((await find(volume, b"large")).ino, b"user.x", b"x" * 500, ROOT)


async def _remove_xattr(volume: Volume) -> None:
    await volume.remove_xattr((await find(volume, b"small")).ino, b"user.big", ROOT)


async def _link(volume: Volume) -> None:
    await volume.link((await find(volume, b"large")).ino, (await find(volume, b"many")).ino, b"other", ROOT)


async def _rename_across(volume: Volume) -> None:
    many, full = await find(volume, b"many"), await find(volume, b"full")
    await volume.rename(full.ino, b"inner", many.ino, b"inner", 0, ROOT)


async def _exchange(volume: Volume) -> None:
    full = await find(volume, b"full")
    await volume.rename(full.ino, b"inner", EXT2_ROOT_INO, b"small", RENAME_EXCHANGE, ROOT)


async def _remove_and_release(volume: Volume) -> None:
    inode = await volume.remove(EXT2_ROOT_INO, b"large", False)
    if inode.ino in volume.orphans:
        await volume.release(inode.ino)


async def _create_in_indexed(volume: Volume) -> None:
    await volume.create((await find(volume, b"many")).ino, b"n" * 250, stat.S_IFREG | 0o644, ROOT)


OPERATIONS: dict[str, Operation] = {
    "create": lambda volume: volume.create(EXT2_ROOT_INO, b"new", stat.S_IFREG | 0o644, ROOT),
    "create in an indexed directory": _create_in_indexed,
    "mkdir": lambda volume: volume.create(EXT2_ROOT_INO, b"new", stat.S_IFDIR | 0o755, ROOT),
    "long symlink": lambda volume: volume.create(EXT2_ROOT_INO, b"new", stat.S_IFLNK | 0o777, ROOT, target=LONG_TARGET),
    "link": _link,
    "unlink": lambda volume: volume.remove(EXT2_ROOT_INO, b"hard", False),
    "unlink and release": _remove_and_release,
    "rmdir": lambda volume: volume.remove(EXT2_ROOT_INO, b"empty", True),
    "rename over a file": lambda volume: volume.rename(EXT2_ROOT_INO, b"small", EXT2_ROOT_INO, b"large", 0, ROOT),
    "rename a directory elsewhere": _rename_across,
    "exchange": _exchange,
    "write over the end": _write_over_the_end,
    "write far out": _write_far_out,
    "truncate": _cut,
    "set attributes": _change_attributes,
    "set xattr": _set_large_xattr,
    "remove xattr": _remove_xattr,
}


@pytest.mark.logs(r"^mystfuse\.volume")
@pytest.mark.parametrize("name", OPERATIONS)
async def test_an_operation_that_meets_damage_anywhere_leaves_nothing_behind(
    name: str, image: bytes, tmp_path: Path
) -> None:
    failures = 0
    for failing in range(40):
        volume, device = await open_volume(image)
        device.failing = device.reads + failing
        try:
            await OPERATIONS[name](volume)
        except (MystfuseError, OSError) as error:
            # Without a readable bitmap the only group has nothing to give.
            assert isinstance(error, MystfuseError) or error.errno == errno.ENOSPC
            failures += 1
            device.failing = None
            # A lookup may also have removed nothing; whatever was committed before the failing step is whole.
            after = await merged(volume)
            if not volume.changes:
                assert after == image
            assert_clean(after, tmp_path / "merged")
            continue
        device.failing = None
        # Removed, with a pending release that met the damage; or all is done.
        assert volume.orphans or not device.has_failed
        assert_clean(await merged(volume), tmp_path / "merged")
        if not device.has_failed:
            break
    else:
        pytest.fail("it never came to its end")
    assert failures
    assert volume.changes


@pytest.mark.parametrize("name", OPERATIONS)
async def test_an_operation_that_is_cancelled_anywhere_happened_or_did_not(
    name: str, image: bytes, tmp_path: Path
) -> None:
    volume, device = await open_volume(image)
    await OPERATIONS[name](volume)
    steps = device.reads
    for step in range(steps):
        volume, device = await open_volume(image)
        device.gate, seen = trio.Event(), 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(OPERATIONS[name], volume)
            while seen < step:
                with trio.move_on_after(0.2) as late:
                    await device.waiting.wait()
                if late.cancelled_caught:
                    break
                seen += 1
                device.waiting = trio.Event()
                device.gate.set()
                device.gate = trio.Event()
                await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        device.gate = None
        after = await merged(volume)
        if not volume.changes:
            assert after == image
        assert_clean(after, tmp_path / "merged")


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("free", range(5))
async def test_an_operation_without_space_leaves_nothing_behind(
    name: str, free: int, image: bytes, tmp_path: Path
) -> None:
    """With 0 to 4 blocks free, and no inode when none is."""
    volume, _ = await open_volume(image)
    filler = await volume.create(EXT2_ROOT_INO, b"filler", stat.S_IFREG | 0o644, ROOT)
    block_size = volume.superblock.block_size
    position = 0
    while (left := (await volume.statistics()).free_blocks - free) > 0:
        try:
            position += await volume.write(filler.ino, position, bytes(min(left, 64) * block_size), ROOT)
        except OSError:
            break
    # Less is left than an indirect block and a data block, or exactly the requested amount.
    while (left := (await volume.statistics()).free_blocks) > free:
        await volume.create(EXT2_ROOT_INO, b"f%d" % left, stat.S_IFDIR | 0o755, ROOT)
    if not free:
        count = 0
        while (await volume.statistics()).free_inodes:
            # In a directory with room for the name, since no block is free any more.
            directory = (await find(volume, b"many")).ino if count % 2 else EXT2_ROOT_INO
            try:
                await volume.create(directory, b"s%d" % count, stat.S_IFLNK | 0o777, ROOT, target=b"t")
            except OSError:
                break
            count += 1
    before, changes = await merged(volume), volume.changes
    try:
        await OPERATIONS[name](volume)
    except OSError as error:
        assert error.errno == errno.ENOSPC
        if volume.changes == changes:
            assert await merged(volume) == before
    assert_clean(await merged(volume), tmp_path / "merged")


@pytest.mark.logs(r"^mystfuse\.volume")
@pytest.mark.parametrize("name", OPERATIONS)
async def test_an_operation_for_which_the_overlay_is_too_small_leaves_nothing_behind(
    name: str, image: bytes, tmp_path: Path
) -> None:
    refused = 0
    block_size = (await open_volume(image))[0].superblock.block_size
    for blocks in range(50):
        volume, _ = await open_volume(image, blocks * (block_size + 128))
        try:
            await OPERATIONS[name](volume)
        except OSError as error:
            assert error.errno == errno.ENOSPC
            refused += 1
            if not volume.changes:
                assert volume.overlay is not None and volume.overlay.used == 0
        assert volume.overlay is not None and volume.overlay.used <= volume.overlay.limit
    assert refused


async def test_reserved_blocks_are_for_root_alone(image: bytes) -> None:
    volume, _ = await open_volume(image)
    user = Caller(1000, 1000)
    files = {}
    for name, caller in ((b"users", user), (b"roots", ROOT)):
        files[name] = await volume.create(EXT2_ROOT_INO, name, stat.S_IFREG | 0o644, caller)
        position = 0
        with pytest.raises(OSError, match="free block") as caught:
            while True:
                position += await volume.write(files[name].ino, position, bytes(1 << 20), caller)
        assert caught.value.errno == errno.ENOSPC
        left = (await volume.statistics()).free_blocks
        reserved = volume.superblock.s_r_blocks_count
        assert reserved > 100
        assert reserved <= left <= reserved + 2 if caller is user else left <= 2
    assert (await volume.statistics()).available_blocks == 0


async def test_a_write_that_fits_in_part_is_written_in_part(image: bytes) -> None:
    volume, _ = await open_volume(image, 2 << 20)
    inode = await volume.create(EXT2_ROOT_INO, b"new", stat.S_IFREG | 0o644, ROOT)
    data = os.urandom(1 << 20)
    written = [await volume.write(inode.ino, index << 20, data, ROOT) for index in range(2)]
    assert written[0] == 1 << 20 and 0 < written[1] < 1 << 20
    with pytest.raises(OSError, match="overlay is full") as caught:
        while True:
            written.append(await volume.write(inode.ino, sum(written), data, ROOT))
    assert caught.value.errno == errno.ENOSPC
    total = sum(written)
    assert bytes(await volume.read(inode.ino, 0, 3 << 20)) == (data * 3)[:total]
    # Existing blocks can be overwritten, read and removed.
    assert await volume.write(inode.ino, 0, data[::-1], ROOT) == len(data)
    await volume.remove(EXT2_ROOT_INO, b"new", False)
    await volume.release(inode.ino)
    assert volume.overlay is not None and volume.overlay.used < 100_000
