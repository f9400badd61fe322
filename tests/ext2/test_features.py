"""Which file systems we accept, and which we refuse by name: revisions, block and inode sizes, features, bounds."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from mystfuse.errors import CorruptFilesystem, FormatError, UnsupportedFeature
from mystfuse.ext2.caller import Caller
from mystfuse.ext2.features import SUPPORTED, WRITABLE
from mystfuse.ext2.superblock import Superblock
from mystfuse.volume.volume import Volume
from tests.support.commands import run
from tests.support.ext2_editor import (
    ROOT,
    Editor,
    MemoryDevice,
    assert_clean,
    at,
    debugfs,
    listing,
    make_image,
    merged,
    open_image,
    walk,
)

CONTENT = bytes(range(251)) * 600
ONLY_READ = {"bigalloc", "quota", "read-only", "shared_blocks"}
NAMES = [b"empty", b"file", b"lost+found", b"slow", b"sub"]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("features") / "tree"
    (root / "sub").mkdir(parents=True)
    (root / "file").write_bytes(CONTENT)
    (root / "empty").touch()
    (root / "slow").symlink_to("t" * 300)
    (root / "sub/inner").write_text("inner")
    os.chown(root / "file", 70_000, 80_000)
    os.utime(root / "file", ns=(1_600_000_000_123_456_789, 1_600_000_001_987_654_321))
    return root


@pytest.fixture(scope="module")
def plain(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small ordinary file system."""
    return make_image(tmp_path_factory.mktemp("plain") / "image", "-b", "1024", tree=tree).read_bytes()


async def assert_contents(volume: Volume) -> None:
    assert sorted(await listing(volume, ROOT)) == NAMES
    file = await at(volume, "file")
    assert (file.size, file.uid, file.gid) == (len(CONTENT), 70_000, 80_000)
    assert bytes(await volume.read(file.ino, 0, 1 << 20)) == CONTENT
    assert await volume.target((await at(volume, "slow")).ino) == b"t" * 300
    assert bytes(await volume.read((await at(volume, "sub", "inner")).ino, 0, 100)) == b"inner"
    assert (await walk(volume))[1] == 0


async def test_revision_0_is_read(tree: Path, tmp_path: Path) -> None:
    image = make_image(tmp_path / "image", "-r", "0", "-b", "1024", tree=tree)
    editor = Editor(image.read_bytes())
    assert editor.get("<I", 1024 + 76) == 0
    volume = await open_image(image)
    assert (volume.superblock.s_inode_size, volume.superblock.s_first_ino) == (128, 11)
    await assert_contents(volume)


async def test_revision_0_ignores_the_fields_that_it_does_not_have(tree: Path, tmp_path: Path) -> None:
    editor = Editor(make_image(tmp_path / "image", "-r", "0", "-b", "1024", tree=tree).read_bytes())
    editor.put("<IH", 1024 + 84, 0xFFFF, 77)
    await assert_contents(await editor.open())


@pytest.mark.parametrize("block_size", [1024, 2048, 4096, 8192, 16384, 32768, 65536])
async def test_every_block_size_is_read(tree: Path, tmp_path: Path, block_size: int) -> None:
    image = make_image(tmp_path / "image", "-b", str(block_size), "-N", "64", size="8M", tree=tree)
    volume = await open_image(image)
    assert volume.superblock.block_size == (await volume.statistics()).block_size == block_size
    await assert_contents(volume)


@pytest.mark.parametrize("inode_size", [128, 256, 512, 1024])
async def test_every_inode_size_is_read(tree: Path, tmp_path: Path, inode_size: int) -> None:
    image = make_image(tmp_path / "image", "-b", "1024", "-I", str(inode_size), tree=tree)
    volume = await open_image(image)
    assert volume.superblock.s_inode_size == inode_size
    await assert_contents(volume)
    nanoseconds = 987_654_321 if inode_size > 128 else 0
    debugfs(image, "set_inode_field file mtime @1600000001")
    if nanoseconds:
        debugfs(image, f"set_inode_field file mtime_extra {nanoseconds << 2}")
    assert (await at(await open_image(image), "file")).mtime_ns == 1_600_000_001_000_000_000 + nanoseconds


async def test_directories_without_file_types_are_read(tree: Path, tmp_path: Path) -> None:
    image = make_image(tmp_path / "image", "-O", "^filetype", tree=tree)
    volume = await open_image(image)
    assert not volume.superblock.has_filetype
    await assert_contents(volume)


async def test_many_groups_are_read(tree: Path, tmp_path: Path) -> None:
    image = make_image(
        tmp_path / "image", "-b", "1024", "-g", "256", "-O", "^resize_inode", "-N", "4096", size="9M", tree=tree
    )
    volume = await open_image(image)
    assert volume.superblock.groups_count == 36
    await assert_contents(volume)


async def test_an_inode_in_the_last_group_is_read(tmp_path: Path) -> None:
    image = make_image(tmp_path / "image", "-b", "1024", "-g", "256", "-O", "^resize_inode", "-N", "512", size="8M")
    editor = Editor(image.read_bytes())
    last = editor.inodes_count
    position, _ = editor.find(ROOT, b"lost+found")
    source = editor.inode(11)
    target = editor.inode(last)
    assert (last - 1) // editor.inodes_per_group == 31
    editor.data[target : target + editor.inode_size] = editor.data[source : source + editor.inode_size]
    editor.put("<I", position, last)
    volume = await editor.open()
    assert (await at(volume, "lost+found")).ino == last
    assert await listing(volume, last) == []


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (("-t", "ext4"), ("extent", "64bit", "flex_bg", "metadata_csum", "huge_file", "dir_nlink", "extra_isize")),
        (("-O", "extent"), ("extent",)),
        (("-O", "extent,64bit"), ("64bit",)),
        (("-O", "flex_bg"), ("flex_bg",)),
        (("-O", "metadata_csum"), ("metadata_csum",)),
        (("-O", "metadata_csum,metadata_csum_seed"), ("metadata_csum_seed",)),
        (("-O", "uninit_bg"), ("uninit_bg",)),
        (("-O", "huge_file"), ("huge_file",)),
        (("-O", "dir_nlink"), ("dir_nlink",)),
        (("-O", "extra_isize"), ("extra_isize",)),
        (("-O", "inline_data"), ("inline_data",)),
        (("-O", "encrypt"), ("encrypt",)),
        (("-O", "casefold"), ("casefold",)),
        (("-O", "extent,bigalloc"), ("bigalloc",)),
        (("-O", "^resize_inode,sparse_super2"), ("sparse_super2",)),
        (("-O", "^resize_inode,meta_bg"), ("meta_bg",)),
        (("-O", "mmp"), ("mmp",)),
        (("-O", "ea_inode"), ("ea_inode",)),
        (("-O", "large_dir"), ("large_dir",)),
        (("-O", "quota"), ("quota",)),
        (("-O", "quota,project"), ("project",)),
        (("-O", "verity,extent"), ("verity",)),
        (("-O", "stable_inodes"), ("stable_inodes",)),
        (("-O", "has_journal,orphan_file"), ("orphan_file",)),
        (("-O", "has_journal,fast_commit"), ("fast_commit",)),
    ],
    ids=lambda value: "-".join(value) if isinstance(value[0], str) and value[0].startswith("-") else "",
)
@pytest.mark.logs("the mount is read-only: .*")
async def test_a_feature_is_written_or_refuses_writing_by_name(
    tree: Path,
    tmp_path: Path,
    options: tuple[str, ...],
    names: tuple[str, ...],
    caplog: pytest.LogCaptureFixture,
) -> None:
    image = make_image(tmp_path / "image", *options, size="16M", tree=tree)
    volume = await Volume.open(MemoryDevice(image.read_bytes()), 1 << 20)
    assert volume.superblock.features.issuperset(names)
    await assert_contents(volume)
    if unwritable := volume.superblock.features & ONLY_READ:
        assert volume.overlay is None
        (record,) = caplog.records
        assert unwritable.issubset(record.getMessage().replace(",", "").split())
        with pytest.raises(OSError) as caught:
            await volume.create(ROOT, b"new", 0o100644, Caller(0, 0))
        assert caught.value.errno == errno.EROFS
        return
    await volume.create(ROOT, b"new", 0o100644, Caller(0, 0))
    assert_clean(await merged(volume), tmp_path / "merged")


def test_few_features_are_only_read() -> None:
    assert SUPPORTED - WRITABLE == ONLY_READ


@pytest.mark.parametrize(
    ("word", "bit", "name"),
    [
        (92, 0, "dir_prealloc"),
        (92, 17, "FEATURE_C17"),
        (96, 0, "compression"),
        (96, 3, "journal_dev"),
        (96, 12, "dirdata"),
        (96, 31, "FEATURE_I31"),
        (96, 30, "FEATURE_I30"),
        (100, 7, "has_snapshot"),
        (100, 30, "FEATURE_R30"),
    ],
)
async def test_a_feature_bit_is_refused_by_name(plain: bytes, word: int, bit: int, name: str) -> None:
    editor = Editor(plain)
    editor.put("<I", 1024 + word, editor.get("<I", 1024 + word) | 1 << bit)
    with pytest.raises(UnsupportedFeature, match=rf"\b{name}\b"):
        await editor.open()


async def test_a_file_system_with_a_clean_journal_is_read(tree: Path, tmp_path: Path) -> None:
    image = make_image(tmp_path / "image", "-O", "has_journal", "-b", "1024", size="8M", tree=tree)
    volume = await open_image(image)
    assert "has_journal" in volume.superblock.features
    await assert_contents(volume)


async def test_an_empty_journal_needs_no_recovery_whatever_the_superblock_says(tree: Path, tmp_path: Path) -> None:
    image = make_image(tmp_path / "image", "-O", "has_journal", "-b", "1024", size="8M", tree=tree)
    before = image.read_bytes()
    run("debugfs", "-w", "-R", "feature needs_recovery", image)
    volume = await open_image(image)
    assert not volume.superblock.needs_recovery
    await assert_contents(volume)
    after = await merged(volume)
    assert after[1024 + 96 : 1024 + 100] == before[1024 + 96 : 1024 + 100]


async def test_recovery_without_a_journal_is_refused(plain: bytes) -> None:
    editor = Editor(plain)
    editor.put("<I", 1024 + 96, editor.get("<I", 1024 + 96) | 4)
    with pytest.raises(CorruptFilesystem, match="needs_recovery"):
        await editor.open()


@pytest.mark.parametrize(
    ("offset", "layout", "value", "error", "name"),
    [
        (0, "<I", 0, CorruptFilesystem, "s_inodes_count"),
        (0, "<I", 10, CorruptFilesystem, "s_inodes_count"),
        (0, "<I", 0xFFFFFFFF, CorruptFilesystem, "s_inodes_count"),
        (4, "<I", 0, CorruptFilesystem, "s_blocks_count"),
        (4, "<I", 2, CorruptFilesystem, "s_blocks_count"),
        (20, "<I", 0, CorruptFilesystem, "s_first_data_block"),
        (20, "<I", 2, CorruptFilesystem, "s_first_data_block"),
        (24, "<I", 7, CorruptFilesystem, "s_log_block_size"),
        (24, "<I", 0xFFFFFFFF, CorruptFilesystem, "s_log_block_size"),
        (24, "<I", 1, CorruptFilesystem, "s_first_data_block"),
        (32, "<I", 0, CorruptFilesystem, "s_blocks_per_group"),
        (32, "<I", 8193, CorruptFilesystem, "s_blocks_per_group"),
        (32, "<I", 1, CorruptFilesystem, "s_inodes_count"),
        (40, "<I", 0, CorruptFilesystem, "s_inodes_per_group"),
        (40, "<I", 8193, CorruptFilesystem, "s_inodes_per_group"),
        (56, "<H", 0xEF54, FormatError, "s_magic"),
        (76, "<I", 2, UnsupportedFeature, "revision 2"),
        (84, "<I", 10, CorruptFilesystem, "s_first_ino"),
        (84, "<I", 0xFFFFFFFF, CorruptFilesystem, "s_inodes_count"),
        (88, "<H", 0, CorruptFilesystem, "s_inode_size"),
        (88, "<H", 64, CorruptFilesystem, "s_inode_size"),
        (88, "<H", 192, CorruptFilesystem, "s_inode_size"),
        (88, "<H", 2048, CorruptFilesystem, "s_inode_size"),
    ],
)
async def test_a_superblock_field_out_of_bounds_is_reported_by_name(
    plain: bytes, offset: int, layout: str, value: int, error: type[FormatError], name: str
) -> None:
    editor = Editor(plain)
    editor.put(layout, 1024 + offset, value)
    with pytest.raises(error, match=name) as caught:
        await editor.open()
    assert type(caught.value) is error


async def test_a_truncated_file_system_is_reported(plain: bytes) -> None:
    for size in (len(plain) - 1, len(plain) // 2, 2048):
        with pytest.raises(FormatError, match="truncated"):
            await Volume.open(MemoryDevice(plain[:size]))
    for size in (0, 1024, 2047):
        with pytest.raises(FormatError, match="too few"):
            await Volume.open(MemoryDevice(plain[:size]))


async def test_more_bytes_than_the_file_system_has_do_no_harm(plain: bytes) -> None:
    await assert_contents(await Volume.open(MemoryDevice(plain + b"\xff" * 10_000)))


async def test_what_is_no_file_system_is_reported() -> None:
    for data in (bytes(4096), b"\xff" * 4096, b"text\n" * 1000):
        with pytest.raises(FormatError, match="s_magic"):
            await Volume.open(MemoryDevice(data))


def test_a_superblock_cut_short_is_reported(plain: bytes) -> None:
    with pytest.raises(FormatError, match="cut short"):
        Superblock.parse(plain[1024:2047])


@pytest.mark.logs(r"^mystfuse\.volume")
async def test_a_file_system_marked_as_having_errors_is_read_with_a_warning(
    plain: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    editor = Editor(plain)
    editor.put("<H", 1024 + 58, 2)
    volume = await editor.open()
    assert "e2fsck" in caplog.text
    await assert_contents(volume)


async def test_the_name_and_the_uuid_of_the_file_system_are_known(tmp_path: Path) -> None:
    uuid = "01234567-89ab-cdef-0123-456789abcdef"
    volume = await open_image(make_image(tmp_path / "image", "-L", "label", "-U", uuid))
    assert str(volume.superblock.s_uuid) == uuid
    assert volume.superblock.s_volume_name == b"label"
