"""Removed files that cannot be freed yet: how often that is tried again, counted and not timed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from conftest import run
from ext2_editor import ROOT, Editor, MemoryDevice, assert_clean, make_image, merged

from mystfuse.devices.device import Extent
from mystfuse.volume import Volume

FILES = 100


class BitmapDevice(MemoryDevice):
    """Counts how often the block bitmap of the first group is read; ``is_damaged`` says whether it can be."""

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
    """``FILES`` files of one block, as many symbolic links, which have none, and one file more."""
    directory.mkdir()
    for number in range(FILES):
        (directory / f"file-{number}").write_bytes(b"x")
        (directory / f"link-{number}").symlink_to("short")
    (directory / "last").write_bytes(b"x")
    return directory


async def remove(volume: Volume, name: str) -> None:
    inode = await volume.remove(ROOT, name.encode(), is_rmdir=False)
    await volume.release(inode.ino)


async def test_many_files_removed_below_a_damaged_bitmap_are_each_tried_twice_at_most(tmp_path: Path) -> None:
    image = make_image(tmp_path / "image", "-N", "512", tree=make_tree(tmp_path / "tree"), size="4M")
    assert "Group 1:" not in run("dumpe2fs", image).stdout
    device = BitmapDevice(image)
    volume = await Volume.open(device, 16 << 20)
    for number in range(FILES):
        await remove(volume, f"file-{number}")
    assert len(volume.orphans) == FILES
    # Once or twice each: a block that cannot be had is asked for again by itself.
    assert FILES <= device.reads <= 2 * FILES
    # These can be freed, and each is a reason to try one of the others.
    device.reads = 0
    for number in range(FILES):
        await remove(volume, f"link-{number}")
    assert len(volume.orphans) == FILES
    assert FILES <= device.reads <= 2 * FILES
    # With the next that is freed, all are.
    device.is_damaged = False
    await remove(volume, "last")
    assert not volume.orphans
    assert_clean(await merged(volume), tmp_path / "merged")
