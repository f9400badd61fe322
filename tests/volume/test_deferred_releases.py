"""Removed files whose blocks we fail to free: how often we try again, counted and not timed."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from mystfuse.devices.device import Extent
from mystfuse.ext2.caller import Caller
from mystfuse.ext2.orphans import MAX_TOGETHER
from mystfuse.volume.volume import Volume
from tests.support.commands import run
from tests.support.ext2_editor import ROOT, Editor, MemoryDevice, assert_clean, make_image, merged
from tests.support.gated_volumes import find

FILES = 100


class BitmapDevice(MemoryDevice):
    """Counts the reads of the first group's block bitmap; while ``is_damaged``, they fail."""

    def __init__(self, image: Path) -> None:
        editor = Editor(image.read_bytes())
        start = editor.get("<I", editor.descriptor()) * editor.block_size
        self._bitmap = range(start, start + editor.block_size)
        self.reads = 0
        super().__init__(editor.data, [self._bitmap])

    @property
    def is_damaged(self) -> bool:
        return bool(self.damaged)

    @is_damaged.setter
    def is_damaged(self, value: bool) -> None:
        self.damaged = [self._bitmap] if value else []

    async def read(self, extents: Sequence[Extent], quietly: bool = False) -> list[memoryview]:
        self.reads += any(extent.offset < self._bitmap.stop and self._bitmap.start < extent.end for extent in extents)
        return await super().read(extents)


def make_tree(directory: Path) -> Path:
    """``FILES`` files of one block, as many symbolic links without blocks, and one file more."""
    directory.mkdir()
    for number in range(FILES):
        (directory / f"file-{number}").write_bytes(b"x")
        (directory / f"link-{number}").symlink_to("short")
    (directory / "last").write_bytes(b"x")
    return directory


async def remove(volume: Volume, name: str) -> None:
    inode = await volume.remove(ROOT, name.encode(), is_rmdir=False)
    await volume.release(inode.ino)


@pytest.mark.logs(r"^mystfuse\.volume")
async def test_many_files_removed_below_a_damaged_bitmap_are_each_tried_twice_at_most(tmp_path: Path) -> None:
    image = make_image(tmp_path / "image", "-N", "512", tree=make_tree(tmp_path / "tree"), size="4M")
    assert "Group 1:" not in run("dumpe2fs", image).stdout
    device = BitmapDevice(image)
    volume = await Volume.open(device, 16 << 20)
    for number in range(FILES):
        await remove(volume, f"file-{number}")
    assert len(volume.orphans) == FILES
    # Once or twice each: a failed block is asked for again by itself.
    assert FILES <= device.reads <= 2 * FILES
    # These are freed, and each of them is a reason to try one of the others.
    device.reads = 0
    for number in range(FILES):
        await remove(volume, f"link-{number}")
    assert len(volume.orphans) == FILES
    assert FILES <= device.reads <= 2 * FILES
    # After the next one all are freed.
    device.is_damaged = False
    await remove(volume, "last")
    assert not volume.orphans
    assert_clean(await merged(volume), tmp_path / "merged")


@pytest.mark.logs(r"^mystfuse\.volume")
async def test_a_write_without_space_does_not_wait_for_a_corrupt_orphan(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    (tmp_path / "tree").mkdir()
    for name in ("broken", "last"):
        (tmp_path / "tree" / name).write_bytes(b"x")
    editor = Editor(make_image(tmp_path / "image", tree=tmp_path / "tree").read_bytes())
    volume = await Volume.open(MemoryDevice(editor.data), 64 << 10)
    broken = await volume.lookup(ROOT, b"broken")
    assert broken is not None
    editor.put("<I", editor.pointer(broken.ino, 0), 0xFFFFFFFF)
    volume = await Volume.open(MemoryDevice(editor.data), 64 << 10)
    new = await volume.create(ROOT, b"new", 0o100644, Caller(0, 0, frozenset))
    waits: list[float] = []

    async def fill() -> None:
        for number in range(1024):
            started = trio.current_time()
            try:
                await volume.write(new.ino, 1024 * number, b"y" * 1024, Caller(0, 0, frozenset))
            except OSError as error:
                assert error.errno == errno.ENOSPC
                waits.append(trio.current_time() - started)
                return

    await volume.remove(ROOT, b"broken", is_rmdir=False)
    await fill()
    await volume.release(broken.ino)
    await fill()
    assert volume.orphans == {broken.ino}
    # The first may still succeed later.
    assert waits[0] > 0 and waits[1:] == [0]
    # Nor does it count twice.
    await volume.remove(ROOT, b"last", is_rmdir=False)
    await volume.release(broken.ino)
    await fill()
    assert waits[2] > 0


@pytest.mark.logs(r"^mystfuse\.volume")
async def test_many_small_files_are_freed_in_a_few_transactions(tmp_path: Path) -> None:
    editor = Editor(
        make_image(tmp_path / "image", "-N", "512", tree=make_tree(tmp_path / "tree"), size="4M").read_bytes()
    )
    volume = await Volume.open(MemoryDevice(editor.data), 16 << 20)
    names = [b"file-%d" % number for number in range(FILES)] + [b"link-%d" % number for number in range(FILES)]
    await volume.write((await find(volume, b"file-1")).ino, 40 << 10, b"y" * 5000, Caller(0, 0))
    inos = [(await volume.remove(ROOT, name, is_rmdir=False)).ino for name in names]
    changes = volume.changes
    await volume.release(*inos)
    # That with an indirect block takes one of its own.
    assert volume.changes == changes + -(-2 * FILES // MAX_TOGETHER) + 1
    assert not volume.orphans
    assert_clean(await merged(volume), tmp_path / "merged")


@pytest.mark.logs(r"^mystfuse\.volume")
@pytest.mark.parametrize("pointer", [0xFFFFFFFF, 1, None], ids=["outside", "metadata", "of another file"])
async def test_a_broken_file_keeps_no_others_from_being_freed(tmp_path: Path, pointer: int | None) -> None:
    editor = Editor(
        make_image(tmp_path / "image", "-N", "512", tree=make_tree(tmp_path / "tree"), size="4M").read_bytes()
    )
    volume = await Volume.open(MemoryDevice(editor.data), 16 << 20)
    broken, other = (await find(volume, b"file-7")).ino, (await find(volume, b"file-8")).ino
    wrong = editor.get("<I", editor.pointer(other, 0)) if pointer is None else pointer
    editor.put("<I", editor.pointer(broken, 0), wrong)
    volume = await Volume.open(MemoryDevice(editor.data), 16 << 20)
    inos = [(await volume.remove(ROOT, b"file-%d" % number, is_rmdir=False)).ino for number in range(FILES)]
    await volume.release(*inos)
    # Of two that share a block the first is freed.
    assert volume.orphans == {other if pointer is None else broken}
