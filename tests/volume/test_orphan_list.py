"""The orphan list is worked off where we write, as the kernel does at mount, and left where we do not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mystfuse.ext2.caller import ROOT
from mystfuse.ext2.orphan_list import first_orphan
from mystfuse.ext2.setattr import AttributeChanges
from mystfuse.volume.volume import Volume
from tests.support.commands import run
from tests.support.ext2_editor import Editor, MemoryDevice, assert_clean, at, debugfs, make_image, merged
from tests.support.journals import loop_device

SIZE = 300_000


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A file system with a journal, some of whose files are to be orphans."""
    tree = tmp_path / "tree"
    (tree / "directory").mkdir(parents=True)
    for name in ("cut", "gone", "stays"):
        (tree / name).write_bytes(os.urandom(SIZE))
    (tree / "long").symlink_to("x" * 200)
    return make_image(tmp_path / "image", "-b", "1024", "-O", "has_journal", size="8M", tree=tree)


def list_orphans(image: Path, *names: str) -> list[int]:
    """Put files of the root directory into the orphan list; returns their numbers."""
    numbers = [int(run("debugfs", "-R", f"stat {name}", image).stdout.split()[1]) for name in names]
    for name, following in zip(names, [*numbers[1:], 0], strict=True):
        debugfs(image, f"set_inode_field {name} dtime {following}")
    debugfs(image, f"set_super_value last_orphan {numbers[0]}")
    return numbers


def lose_names(image: Path, *names: str) -> None:
    for name in names:
        debugfs(image, f"set_inode_field {name} links_count 0")
    for name in names:
        debugfs(image, f"unlink {name}")


async def first_of(volume: Volume) -> int:
    return await volume.run(lambda filesystem, blocks: first_orphan(filesystem.superblock, blocks))


async def test_orphans_are_freed_and_cut_files_end_where_they_should(image: Path, tmp_path: Path) -> None:
    list_orphans(image, "gone", "cut", "long")
    lose_names(image, "gone", "long")
    debugfs(image, "set_inode_field cut size 5000")
    before = (await (await Volume.open(MemoryDevice(image.read_bytes()))).statistics()).free_blocks
    volume = await Volume.open(MemoryDevice(image.read_bytes()), 32 << 20)
    assert await first_of(volume) == 0 and volume.orphans == set()
    assert_clean(await merged(volume), tmp_path / "clean")
    assert (await volume.statistics()).free_blocks > before + 2 * (SIZE - 5000) // 1024
    cut = await at(volume, "cut")
    assert cut.size == 5000 and len(await volume.read(cut.ino, 0, SIZE)) == 5000
    assert (await at(volume, "stays")).size == SIZE


async def test_what_a_cut_file_had_behind_its_end_does_not_come_back(image: Path) -> None:
    list_orphans(image, "cut")
    debugfs(image, "set_inode_field cut size 5000")
    volume = await Volume.open(MemoryDevice(image.read_bytes()), 32 << 20)
    cut = await at(volume, "cut")
    await volume.set_attributes(cut.ino, AttributeChanges(size=9000), ROOT)
    assert bytes(await volume.read(cut.ino, 5000, 4000)) == bytes(4000)


async def test_the_kernel_frees_as_much(image: Path, tmp_path: Path) -> None:
    list_orphans(image, "gone", "cut", "long")
    lose_names(image, "gone", "long")
    debugfs(image, "set_inode_field cut size 5000")
    volume = await Volume.open(MemoryDevice(image.read_bytes()), 32 << 20)
    ours, mountpoint = await volume.statistics(), tmp_path / "mount"
    mountpoint.mkdir()
    with loop_device(image) as device:
        run("mount", "-t", "ext4", device, mountpoint)
        kernel = os.statvfs(mountpoint)
        run("umount", mountpoint)
    assert (ours.free_blocks, ours.free_inodes) == (kernel.f_bfree, kernel.f_ffree)


async def test_a_read_only_volume_leaves_the_list(image: Path) -> None:
    first, *_ = list_orphans(image, "gone", "cut")
    lose_names(image, "gone")
    volume = await Volume.open(MemoryDevice(image.read_bytes()))
    assert await first_of(volume) == first and volume.written is None


async def test_a_file_system_without_a_journal_is_left_as_it_is(tmp_path: Path) -> None:
    image = make_image(tmp_path / "image", "-b", "1024")
    debugfs(image, "set_super_value last_orphan 11")
    volume = await Volume.open(MemoryDevice(image.read_bytes()), 8 << 20)
    assert await first_of(volume) == 11
    assert volume.overlay is not None and not volume.overlay.blocks


@pytest.mark.logs(r"^mystfuse\.volume")
async def test_after_errors_the_list_is_not_trusted(image: Path, caplog: pytest.LogCaptureFixture) -> None:
    list_orphans(image, "gone")
    debugfs(image, "set_super_value state 2")
    volume = await Volume.open(MemoryDevice(image.read_bytes()), 8 << 20)
    assert await first_of(volume) == 0
    assert (await at(volume, "gone")).size == SIZE


@pytest.mark.logs(r"^mystfuse\.volume\.orphan_list")
@pytest.mark.parametrize("following", [1, 0xFFFFFFFF, 2, 7, 0])
async def test_a_broken_list_is_left_where_it_breaks(
    image: Path, caplog: pytest.LogCaptureFixture, following: int
) -> None:
    """0 here stands for the inode itself."""
    (gone,) = list_orphans(image, "gone")
    lose_names(image, "gone")
    debugfs(image, f"set_inode_field <{gone}> dtime {following or gone}")
    volume = await Volume.open(MemoryDevice(image.read_bytes()), 32 << 20)
    assert await first_of(volume) == gone
    assert "orphan list" in caplog.text
    assert volume.orphans == set()
    assert (await at(volume, "stays")).size == SIZE


@pytest.mark.logs(r"^mystfuse\.volume\.orphan_list")
async def test_an_orphan_that_is_damaged_stays(image: Path, caplog: pytest.LogCaptureFixture) -> None:
    (gone,) = list_orphans(image, "gone")
    lose_names(image, "gone")
    editor = Editor(image.read_bytes())
    # Its first block is the superblock.
    editor.put("<I", editor.pointer(gone, 0), 1)
    volume = await Volume.open(MemoryDevice(editor.data), 32 << 20)
    assert await first_of(volume) == gone
    assert "orphan list" in caplog.text
