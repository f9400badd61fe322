"""Contents and entries in inodes, and values of attributes in inodes of their own, changed: e2fsck and the kernel's own
driver are the judges."""

from __future__ import annotations

import os
import stat
from contextlib import closing
from errno import ENOSPC
from pathlib import Path

import pytest

from mystfuse.ext2.setattr import AttributeChanges
from mystfuse.volume import file_space
from mystfuse.volume.volume import Volume
from tests.support.commands import run
from tests.support.ext2_editor import ROOT, MemoryDevice, assert_clean, at, debugfs, kernel_mount, make_image, merged
from tests.support.ext4_pairs import ADMIN, Pair

LIMIT = 64 << 20
STEPS, STEPS_BETWEEN_CHECKS = 150, 10
PLAIN = "^metadata_csum,^metadata_csum_seed,^uninit_bg,^64bit,^flex_bg,^has_journal,^orphan_file,^dir_nlink"
SIZES = (0, 1, 40, 59, 60, 61, 100, 128, 160, 400, 900, 3000, 9000)
VALUES = (0, 3, 20, 60, 300, 900, 1100, 5000, 20_000)
SETS: dict[str, tuple[str, ...]] = {
    "inline_data, 256": ("-O", f"inline_data,^extent,{PLAIN}", "-I", "256", "-b", "1024"),
    "inline_data and ea_inode, 512": ("-O", f"inline_data,ea_inode,^extent,{PLAIN}", "-I", "512", "-b", "4096"),
    "inline_data and ea_inode, 1024": ("-O", f"inline_data,ea_inode,^extent,{PLAIN}", "-I", "1024", "-b", "1024"),
    "inline_data and extents, 256": ("-O", f"inline_data,ea_inode,{PLAIN}", "-I", "256", "-b", "1024"),
    "the defaults besides": ("-O", "inline_data,ea_inode", "-I", "256", "-b", "4096"),
    "all of ext4, 1024": ("-O", "64bit,inline_data,ea_inode,metadata_csum_seed,large_dir", "-I", "1024", "-b", "1024"),
    "ea_inode, 128": ("-O", f"ea_inode,^extent,{PLAIN}", "-I", "128", "-b", "1024"),
}


@pytest.mark.parametrize("options", SETS.values(), ids=SETS.keys())
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 5))])
async def test_random_changes(options: tuple[str, ...], seed: int, tmp_path: Path) -> None:
    image = make_image(tmp_path / "image", "-t", "ext4", *options, size="16M")
    volume = await Volume.open(MemoryDevice(image.read_bytes()), LIMIT)
    with (
        kernel_mount(image, tmp_path / "kernel", "rw,nodelalloc,user_xattr") as root,
        closing(Pair(volume, root, seed, "^extent" not in options[1])) as pair,
    ):
        for number in range(1, STEPS + 1):
            await pair.step(SIZES, VALUES)
            if not number % STEPS_BETWEEN_CHECKS:
                assert_clean(await merged(volume), tmp_path / "ours")
                await pair.assert_same()
    run("e2fsck", "-fn", image)


async def test_many_values_in_many_groups(tmp_path: Path) -> None:
    """Each is an inode with an indirect block, of a group with bitmaps of its own: they are fetched together."""
    image = make_image(
        tmp_path / "image", "-t", "ext4", "-O", f"ea_inode,^extent,{PLAIN}", "-I", "128", "-b", "1024", "-g", "256",
        "-N", "2048", size="64M",
    )  # fmt: skip
    wanted = {b"user.%02d" % number: os.urandom(14_000 + number) for number in range(45)}
    with kernel_mount(image, tmp_path / "kernel", "rw") as root:
        (root / "file").touch()
        for name, value in wanted.items():
            os.setxattr(root / "file", name, value)
    volume = await Volume.open(MemoryDevice(image.read_bytes()), LIMIT)
    assert await volume.xattrs((await at(volume, "file")).ino) == wanted
    cold = await Volume.open(MemoryDevice(image.read_bytes()), LIMIT)
    removed = await cold.remove(ROOT, b"file", is_rmdir=False)
    await cold.release(removed.ino)
    assert not cold.orphans
    assert_clean(await merged(cold), tmp_path / "ours")


async def test_links_of_mke2fs_in_inodes(tmp_path: Path) -> None:
    """mke2fs puts targets into inodes that the kernel gives a block."""
    tree = tmp_path / "tree"
    tree.mkdir()
    for length in (59, 60, 61, 120):
        (tree / f"{length}").symlink_to("t" * length)
    image = make_image(tmp_path / "image", "-t", "ext4", "-O", "inline_data", "-I", "512", size="16M", tree=tree)
    volume = await Volume.open(MemoryDevice(image.read_bytes()), LIMIT)
    assert (await at(volume, "120")).is_inline
    for length in (59, 60, 61, 120):
        ino = (await at(volume, str(length))).ino
        # e2fsck does not look for the attribute block of such a link.
        await volume.set_xattr(ino, b"trusted.x", b"v" * 100, ADMIN)
        await volume.rename(ROOT, b"%d" % length, ROOT, b"new %d" % length, 0, ADMIN)
        assert await volume.target(ino) == b"t" * length
    assert_clean(await merged(volume), tmp_path / "ours")
    for length in (59, 60, 61, 120):
        removed = await volume.remove(ROOT, b"new %d" % length, is_rmdir=False)
        await volume.release(removed.ino)
    assert not volume.orphans
    assert_clean(await merged(volume), tmp_path / "ours")


@pytest.mark.parametrize("wanted", [32, 64])
async def test_new_inodes_are_as_long_as_the_superblock_wants(wanted: int, tmp_path: Path) -> None:
    image = make_image(tmp_path / "image", "-t", "ext4", "-I", "512", size="16M")
    debugfs(image, f"set_super_value want_extra_isize {wanted}")
    volume = await Volume.open(MemoryDevice(image.read_bytes()), LIMIT)
    created = await volume.create(ROOT, b"new", stat.S_IFREG | 0o644, ADMIN)
    assert created.i_extra_isize == wanted
    assert_clean(await merged(volume), tmp_path / "ours")
    with kernel_mount(image, tmp_path / "kernel", "rw") as root:
        (root / "new").touch()
    shown = run("debugfs", "-R", "stat /new", image).stdout
    assert f"Size of extra inode fields: {wanted}\n" in shown


async def test_a_file_with_verity_does_not_change(tmp_path: Path) -> None:
    """fs/verity/open.c: EPERM; its name, owner and attributes may change."""
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_bytes(b"content" * 1000)
    image = make_image(tmp_path / "image", "-t", "ext4", "-O", "verity", size="16M", tree=tree)
    debugfs(image, "set_inode_field /file flags 0x180000")
    volume = await Volume.open(MemoryDevice(image.read_bytes()), LIMIT)
    ino = (await at(volume, "file")).ino
    for operation in (
        volume.open_for_writing(ino, os.O_WRONLY, ADMIN),
        volume.open_for_writing(ino, os.O_RDONLY | os.O_TRUNC, ADMIN),
        volume.write(ino, 0, b"x", ADMIN),
        volume.set_attributes(ino, AttributeChanges(size=0), ADMIN),
        file_space.punch(volume, ino, 0, 4096, ADMIN),
        file_space.allocate(volume, ino, 0, 1 << 20, False, False, ADMIN),
    ):
        with pytest.raises(PermissionError):
            await operation
    assert volume.changes == 0
    await volume.set_attributes(ino, AttributeChanges(mode=0o600, uid=7), ADMIN)
    await volume.set_xattr(ino, b"user.x", b"v", ADMIN)
    await volume.rename(ROOT, b"file", ROOT, b"new", 0, ADMIN)
    removed = await volume.remove(ROOT, b"new", is_rmdir=False)
    await volume.release(removed.ino)
    assert_clean(await merged(volume), tmp_path / "ours")


async def test_as_many_values_are_written_as_are_read(tmp_path: Path) -> None:
    """ENOSPC beyond that: a file whose attributes cannot be read must not come about."""
    image = make_image(tmp_path / "image", "-t", "ext4", "-O", "ea_inode", "-b", "4096", size="32M")
    volume = await Volume.open(MemoryDevice(image.read_bytes()), LIMIT)
    ino = (await volume.create(ROOT, b"file", stat.S_IFREG | 0o644, ADMIN)).ino
    wanted: dict[bytes, bytes] = {}
    with pytest.raises(OSError, match="too many") as caught:
        for number in range(200):
            name, value = b"user.%d" % number, bytes([number]) * 65536
            await volume.set_xattr(ino, name, value, ADMIN)
            wanted[name] = value
    assert caught.value.errno == ENOSPC and len(wanted) == 128
    assert await volume.xattrs(ino) == wanted
    removed = await volume.remove(ROOT, b"file", is_rmdir=False)
    await volume.release(removed.ino)
    assert_clean(await merged(volume), tmp_path / "ours")
