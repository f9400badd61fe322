"""``mkext2 --size min``: e2fsck calls it clean, it holds everything, and mke2fs cannot make it a step smaller."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from mystfuse.build import tree_source
from mystfuse.build.filled_blocks import count_blocks
from tests.support.cli_in_process import in_process
from tests.support.commands import mystfuse, run
from tests.support.json_documents import check_document
from tests.support.made_images import (
    MIB,
    assert_clean,
    assert_refused,
    assert_told,
    contents,
    fssig,
    loop_mounted,
    superblock_of,
)
from tests.support.mounts import mounted


def make_smallest(tree: Path, image: Path, *options: str) -> list[str]:
    """Make the smallest image; returns the runs of mke2fs that have filled it."""
    result = in_process("mkext2", "--trace", "--size=min", *options, tree, image)
    assert result.returncode == 0, result.stderr
    assert_told(result.stdout, image)
    assert_clean(image)
    return [line.removeprefix("+ ") for line in result.stderr.splitlines()]


def fill_again(command: str, size: int, target: Path) -> subprocess.CompletedProcess[str]:
    """Run mke2fs as mkext2 did, but into another file and with another size."""
    words = command.split()[:-2]
    target.unlink(missing_ok=True)
    with target.open("wb") as file:
        file.truncate(size)
    return run(*words, target, f"{size >> 10}k", check=False, env={"LC_ALL": "C"})


def assert_smallest(image: Path, runs: list[str]) -> None:
    """Assert that mke2fs fails with one step less, and not with the same size."""
    size = int(fssig(image)["hash_offset"])
    step = max(superblock_of(image).block_size, 4096)
    again = image.with_suffix(".again")
    assert fill_again(runs[-1], size, again).returncode == 0
    failed = fill_again(runs[-1], size - step, again)
    again.unlink()
    # A file system of a group alone that has hardly room for its own metadata is not made at all.
    assert failed.returncode != 0
    assert re.search("Could not allocate|too small|Not enough space to build", failed.stderr), failed.stderr


def assert_nothing_spare(image: Path) -> None:
    """Assert that blocks are free only as far as a whole step is needed."""
    superblock = superblock_of(image)
    assert superblock.s_free_blocks_count * superblock.block_size < max(superblock.block_size, 4096)
    assert superblock.s_r_blocks_count == superblock.s_reserved_gdt_blocks == 0
    in_table_block = superblock.block_size // superblock.s_inode_size
    assert superblock.s_free_inodes_count < max(in_table_block, 8) * superblock.groups_count


def empty(root: Path) -> None:
    """Nothing."""


def links(root: Path) -> None:
    for length in (1, 59, 60, 1000):
        (root / f"symbolic-{length}").symlink_to("x" * length)
    os.link(root / "symbolic-60", root / "again", follow_symlinks=False)
    (root / "file").write_bytes(b"x" * 5000)
    for number in range(20):
        os.link(root / "file", root / f"hard-{number}")


def holes(root: Path) -> None:
    """Data where each kind of indirect block begins, zeros that are written, and zeros across blocks."""
    (root / "zeros").write_bytes(bytes(3 * MIB + 100))
    (root / "one byte at the end").write_bytes(bytes(200_000) + b"x")
    (root / "unaligned").write_bytes(b"x" * 700 + bytes(3000) + b"y" * 400 + bytes(9000) + b"z" * 70_000)
    for name, places in {
        "single": (11, 12, 267, 268),
        "double": (268, 523, 524, 65_803),
        "triple": (65_804, 66_060, 200_000, 131_340),
        "everywhere": tuple(range(0, 140_000, 777)),
    }.items():
        with (root / name).open("wb") as file:
            for place in sorted(places):
                file.seek(place * 1024)
                file.write(b"data")


def names(root: Path) -> None:
    """Directories of many blocks, with entries of every length."""
    generator = random.Random(17)
    for directory, count in (("short", 2000), ("long", 900), ("mixed", 1500)):
        (root / directory).mkdir()
        for number in range(count):
            length = {"short": 0, "long": 240, "mixed": generator.randrange(240)}[directory]
            (root / directory / f"{number:05}{'n' * length}").touch()
    (root / "lost+found").mkdir()
    for number in range(200):
        (root / "lost+found" / f"#{number}{'f' * 100}").touch()
    for number in range(100):
        (root / f"{'root' * 20}{number}").mkdir()


def attributes(root: Path) -> None:
    for number, size in enumerate((1, 40, 60, 64, 68, 72, 90, 500)):
        (root / str(number)).touch()
        os.setxattr(root / str(number), "user.a", b"v" * size)
    for number in range(30):
        (root / f"two-{number}").write_bytes(b"x")
        os.setxattr(root / f"two-{number}", "user.one", b"v" * 40)
        os.setxattr(root / f"two-{number}", "trusted.two", b"v" * number)
    run("setfacl", "-m", "u:1234:rwx,g:4321:r,m:rwx", root / "0")
    os.setxattr(root, "user.of-the-root", b"v" * 200)


SHAPES: list[Callable[[Path], None]] = [empty, links, holes, names, attributes]


@pytest.mark.parametrize("block_size", [1024, 2048, 4096, 8192, 16384, 32768, 65536])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.__name__)
def test_every_shape_in_every_block_size(shape: Callable[[Path], None], block_size: int, tmp_path: Path) -> None:
    tree, image = tmp_path / "tree", tmp_path / "image"
    tree.mkdir()
    shape(tree)
    runs = make_smallest(tree, image, f"--block-size={block_size}")
    assert len(runs) == 1, "the blocks were counted wrong"
    assert_smallest(image, runs)
    if shape not in (empty, links, attributes):
        assert_nothing_spare(image)
    with mounted(image, tmp_path / "mount") as mountpoint:
        assert without_link_names(mountpoint) == without_link_names(tree)


def without_link_names(tree: Path) -> dict[str, dict[str, object]]:
    """The contents; of symbolic links mke2fs does not notice that two are the same."""
    found = contents(tree)
    for entry in found.values():
        if "target" in entry:
            del entry["nlink"], entry["same file as"]
    return found


@pytest.mark.parametrize("files", range(8))
def test_a_few_files_take_what_mke2fs_wants_at_least(files: int, tmp_path: Path) -> None:
    """A regression: fewer than 16 inodes, or no multiple of 8, made mke2fs fail in one group, and two were taken."""
    tree, image = tmp_path / "tree", tmp_path / "image"
    tree.mkdir()
    for number in range(files):
        (tree / str(number)).write_text("x")
    make_smallest(tree, image)
    superblock = superblock_of(image)
    assert superblock.groups_count == 1 and superblock.s_blocks_count <= 68
    assert superblock.s_inodes_count == (16 if files <= 5 else 24)


@pytest.mark.parametrize("options", [("--free=30T",), ("--inodes=4294967295", "--block-size=1024")])
def test_more_than_ext2_has_is_one_line(options: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    result = in_process("mkext2", "--size=min", *options, tmp_path / "tree", tmp_path / "image")
    assert_refused(result, 1, "more than 4294967295 blocks", "the most that ext2 has")
    assert not (tmp_path / "image").exists()


def test_all_kinds_of_files(rich_tree: Path, tmp_path: Path) -> None:
    image = tmp_path / "image"
    assert_smallest(image, make_smallest(rich_tree, image))
    assert_nothing_spare(image)
    with loop_mounted(image, tmp_path / "kernel") as kernel:
        assert contents(kernel) == contents(rich_tree)


@pytest.mark.parametrize("kilobytes", [*range(7800, 8300, 60), 16_200, 16_300, 25_000])
def test_at_the_beginning_of_a_block_group(kilobytes: int, tmp_path: Path) -> None:
    """There, mke2fs leaves out a group that has no room for its metadata and 50 blocks."""
    tree, image = tmp_path / "tree", tmp_path / "image"
    tree.mkdir()
    (tree / "file").write_bytes(os.urandom(1024) * kilobytes)
    assert_smallest(image, make_smallest(tree, image))
    minimum = re.search(r"filesystem: (\d+)", run("resize2fs", "-P", image).stdout)
    assert minimum and superblock_of(image).s_blocks_count <= int(minimum[1]) + 4


def test_more_inodes_than_a_group_has_by_default(tmp_path: Path) -> None:
    """Empty files: almost all of the file system is inode tables, and mke2fs makes smaller groups."""
    tree, image = tmp_path / "tree", tmp_path / "image"
    for directory in range(30):
        (tree / str(directory)).mkdir(parents=True)
        for number in range(400):
            (tree / str(directory) / str(number)).touch()
    assert_smallest(image, make_smallest(tree, image))
    assert superblock_of(image).s_free_inodes_count < 100


def test_many_files(tiny_files: Path, tmp_path: Path) -> None:
    image = tmp_path / "image"
    runs = make_smallest(tiny_files, image)
    assert len(runs) == 1
    assert_smallest(image, runs)
    superblock = superblock_of(image)
    # Three block groups are too few, and a fourth one has at least its own metadata and 50 blocks.
    assert superblock.s_free_blocks_count < superblock.table_blocks


def test_a_small_file_of_zeros_is_found_by_the_result(tmp_path: Path) -> None:
    """It is not read beforehand: a second run takes it into account."""
    tree, image = tmp_path / "tree", tmp_path / "image"
    tree.mkdir()
    for number in range(40):
        (tree / str(number)).write_bytes(bytes(900) if number % 2 else b"x" * 900)
    (tree / "rest").write_bytes(os.urandom(200_000))
    runs = make_smallest(tree, image)
    assert len(runs) == 2
    assert_smallest(image, runs)
    assert_nothing_spare(image)


def test_a_wrong_count_is_put_right(small_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with another mke2fs, that fills directories in another way."""
    sizes = set()
    for name, wrong in (("right", 0), ("few", -70), ("many", 900)):
        monkeypatch.setattr("mystfuse.build.mkext2.count_blocks", lambda *given, by=wrong: count_blocks(*given) + by)
        runs = make_smallest(small_tree, tmp_path / name)
        assert (len(runs) == 1) == (not wrong)
        sizes.add(fssig(tmp_path / name)["hash_offset"])
    assert len(sizes) == 1


@pytest.mark.parametrize("options", [(), ("--block-size=4096",), ("--inodes=9000",)])
def test_free_comes_on_top_of_the_smallest(options: tuple[str, ...], small_tree: Path, tmp_path: Path) -> None:
    image = tmp_path / "image"
    make_smallest(small_tree, image, "--free=5M", *options)
    with loop_mounted(image, tmp_path / "kernel") as kernel:
        status = os.statvfs(kernel)
        assert 5 * MIB <= status.f_bavail * status.f_frsize < 5 * MIB + 8192
        assert status.f_favail >= (5 * MIB // 4096)
    if "--inodes=9000" in options:
        assert 9000 <= superblock_of(image).s_inodes_count < 9100


def test_encrypted(small_tree: Path, tmp_path: Path) -> None:
    key, plain, secret = tmp_path / "key", tmp_path / "plain", tmp_path / "secret"
    key.write_bytes(os.urandom(64))
    key.chmod(0o600)
    make_smallest(small_tree, plain)
    result = mystfuse("mkext2", "--json", "--size=min", f"--encrypt={key}", small_tree, secret)
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    check_document("mkext2", document)
    assert document["filesystem"]["size"] == superblock_of(plain).size
    with mounted(secret, tmp_path / "mount", "--key-file", str(key)) as mountpoint:
        assert contents(mountpoint) == contents(small_tree)


def test_the_same_bytes_with_source_date_epoch(small_tree: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        result = mystfuse("mkext2", "--size=min", small_tree, tmp_path / name, env={"SOURCE_DATE_EPOCH": "1600000000"})
        assert result.returncode == 0, result.stderr
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_a_file_that_vanishes_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree, image = tmp_path / "tree", tmp_path / "image"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub/file").write_bytes(b"x" * 5000)
    scan = tree_source.scan

    def scan_and_lose(*given: object) -> object:
        found = scan(*given)  # type: ignore[arg-type]
        (tree / "sub/file").unlink()
        return found

    monkeypatch.setattr(tree_source, "scan", scan_and_lose)
    assert_refused(in_process("mkext2", "--size=min", tree, image), 1, "sub/file: cannot be read: No such file")
    assert not image.exists()
