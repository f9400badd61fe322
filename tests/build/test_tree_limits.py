"""Directories with something too large for an image: mkext2 names it before mke2fs fails on it, or chooses larger
blocks."""

from __future__ import annotations

import os
import re
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mystfuse.build import tree_limits
from mystfuse.build.source_tree import scan
from mystfuse.build.tree_limits import MAX_TIME, MIN_TIME, choose_block_size, max_file_size
from mystfuse.errors import MystfuseError
from tests.support.commands import assert_one_line, mystfuse, run


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.mkdir()
    return path


def make(source: Path, *options: str) -> tuple[Path, int]:
    """An image that e2fsck calls clean; returns its block size."""
    image = source.parent / "image"
    result = mystfuse("mkext2", "--force", *options, source, image)
    assert result.returncode == 0, result.stderr
    run("e2fsck", "-fn", image)
    found = re.search(r"Block size:\s+(\d+)", run("dumpe2fs", "-h", image).stdout)
    assert found
    return image, int(found[1])


def refused(source: Path, *parts: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """One line names the file that is too large, mke2fs did not run, and nothing is left."""
    result = mystfuse("mkext2", "--trace", *options, source, source.parent / "image")
    assert_one_line(result, 1, *parts)
    assert "mke2fs" not in result.stderr
    assert not (source.parent / "image").exists()
    return result


@pytest.mark.parametrize("length", [60, 1023, 1024, 4095])
def test_a_link_target_of_any_length_fits(source: Path, length: int) -> None:
    target = "x" * length
    (source / "link").symlink_to(target)
    image, block_size = make(source)
    assert block_size == (1024 if length < 1024 else 4096)
    listing = mystfuse("ls", "-l", image, "/link").stdout
    assert listing.endswith(f"-> {target}\n")


def test_a_link_target_that_the_given_blocks_have_no_room_for_is_named(source: Path) -> None:
    (source / "a").symlink_to("x" * 1023)
    (source / "b").symlink_to("x" * 1024)
    refused(
        source, f"{source}/b: ", "link target of 1024 bytes", "--block-size 2048 or none", options=("--block-size=1k",)
    )
    assert make(source, "--block-size=2k")[1] == 2048


@pytest.fixture
def attributes(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, bytes]], None]:
    """Give every file attributes of sizes that only some file systems can store."""

    def give(values: dict[str, bytes]) -> None:
        monkeypatch.setattr(os, "listxattr", lambda path, follow_symlinks: list(values))
        monkeypatch.setattr(os, "getxattr", lambda path, name, follow_symlinks: values[os.fsdecode(name)])

    return give


@pytest.mark.parametrize("size", [960, 990, 1100])
def test_attributes_fit_or_are_named_exactly_where_mke2fs_draws_the_line(source: Path, size: int) -> None:
    for number in range(2):
        (source / str(number)).touch()
        os.setxattr(source / str(number), "user.small", b"v" * 40)
        os.setxattr(source / str(number), "trusted.large", b"v" * size)
    image, block_size = make(source)
    with_given = mystfuse("mkext2", "--force", "--block-size=1024", source, image)
    # A block of 1024 bytes minus header, entry and end.
    fits = 32 + 16 + 8 + size + 4 <= 1024
    assert (with_given.returncode == 0) == fits, with_given.stderr
    assert block_size in ((1024, 4096) if fits else (4096,))
    if not fits:
        assert "extended attributes" in with_given.stderr and with_given.stderr.count("\n") == 1


def test_attributes_larger_than_any_block_of_the_kernels(
    source: Path, attributes: Callable[[dict[str, bytes]], None]
) -> None:
    (source / "file").touch()
    attributes({"user.large": b"v" * 5000})
    tree = scan(source)
    with pytest.raises(
        MystfuseError, match=r"extended attributes of 50\d\d bytes in one block of 4096 \(--block-size 8192"
    ):
        choose_block_size(None, 1024, tree.needed_block, tree.largest_piece, tree.largest_file)
    assert choose_block_size(8192, 1024, tree.needed_block, tree.largest_piece, tree.largest_file) == 8192


def test_acls_are_counted_as_they_are_stored(source: Path, attributes: Callable[[dict[str, bytes]], None]) -> None:
    entries = [
        (0x01, 6, 0xFFFFFFFF),
        *((0x02, 4, uid) for uid in range(100)),
        (0x04, 4, 0xFFFFFFFF),
        (0x10, 6, 0xFFFFFFFF),
        (0x20, 0, 0xFFFFFFFF),
    ]
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    attributes({"system.posix_acl_access": acl})
    assert scan(source).needed_block == 36 + 16 + 4 + 100 * 8 + 4 * 4


@pytest.mark.parametrize("block_size", [1024, 2048, 4096])
def test_a_file_that_no_block_map_reaches_is_named(source: Path, block_size: int) -> None:
    limit = max_file_size(block_size)
    with (source / "huge").open("wb") as file:
        file.truncate(limit)
    tree = scan(source)
    found = (tree.needed_block, tree.largest_piece, tree.largest_file)
    assert choose_block_size(block_size, 4096, *found) == block_size
    with (source / "huge").open("wb") as file:
        file.truncate(limit + 1)
    refused(source, f"{source}/huge: ", f"{limit + 1} bytes; with blocks of {block_size} a file has at most {limit}",
            options=(f"--block-size={block_size}",))  # fmt: skip
    if block_size == 1024:
        assert choose_block_size(None, 1024, 0, tree.largest_piece, (limit + 1, b"huge")) == 4096


@pytest.mark.parametrize("mtime", [MIN_TIME, MAX_TIME])
def test_times_that_an_inode_holds_are_kept(source: Path, mtime: int) -> None:
    (source / "file").touch()
    os.utime(source / "file", (0, mtime))
    if int((source / "file").stat().st_mtime) != mtime:
        pytest.skip("this file system does not hold it either")
    image, _ = make(source)
    found = run("debugfs", "-R", "stat /file", image).stdout
    seconds, extra = re.findall(r"mtime: 0x([0-9a-f]+):([0-9a-f]+)", found)[0]
    signed = int(seconds, 16) - (int(seconds, 16) >> 31 << 32)
    assert signed + ((int(extra, 16) & 3) << 32) == mtime


@pytest.mark.parametrize("mtime", [MIN_TIME - 1, MAX_TIME + 1])
def test_times_that_no_inode_holds_are_named(source: Path, shared_memory: Path, mtime: int) -> None:
    directory = shared_memory / "source"
    directory.mkdir()
    (directory / "file").touch()
    os.utime(directory / "file", (0, mtime))
    refused(directory, f"{directory}/file: ", f"its time, {mtime} seconds", "touch it")


def test_a_time_past_the_epoch_is_set_back_however_late_it_is(shared_memory: Path) -> None:
    directory = shared_memory / "source"
    directory.mkdir()
    (directory / "file").touch()
    os.utime(directory / "file", (0, MAX_TIME + 1))
    result = mystfuse("mkext2", directory, shared_memory / "image", env={"SOURCE_DATE_EPOCH": "1700000000"})
    assert result.returncode == 0, result.stderr
    assert "2023-11-14T22:13:20Z" in mystfuse("ls", "-l", shared_memory / "image", "/file").stdout


@pytest.fixture
def shared_memory() -> Iterator[Path]:
    """A directory on tmpfs, which stores any time and any number of links."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="mystfuse-test-", dir="/dev/shm") as name:  # noqa: S108
        yield Path(name)


def test_too_many_names_of_a_file_are_named(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At 65536 mke2fs starts again from 0 and makes an image that e2fsck calls broken. The test uses a smaller
    limit."""
    assert tree_limits.MAX_LINKS == 65_000
    monkeypatch.setattr(tree_limits, "MAX_LINKS", 4)
    monkeypatch.setattr("mystfuse.build.source_tree.MAX_LINKS", 4)
    (source / "0").touch()
    for number in range(1, 4):
        os.link(source / "0", source / str(number))
    scan(source)
    os.link(source / "0", source.parent / "elsewhere")
    scan(source)
    os.link(source / "0", source / "4")
    with pytest.raises(MystfuseError, match=f"{source}/4: .*too many names; ext2 counts at most 4 links"):
        scan(source)


def test_too_many_subdirectories_are_named(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree_limits, "MAX_LINKS", 4)
    for name in "a", "b", "a/c", "a/d":
        (source / name).mkdir()
    scan(source)
    (source / "a/e").mkdir()
    with pytest.raises(MystfuseError, match=f"{source}/a: .*too many subdirectories"):
        scan(source)


def test_a_name_that_is_too_long_is_named(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ntfs3 has such names: 255 characters of up to three bytes."""
    monkeypatch.setattr(tree_limits, "MAX_NAME", 10)
    (source / ("x" * 10)).touch()
    scan(source)
    (source / ("y" * 11)).touch()
    with pytest.raises(MystfuseError, match=r"yyy: .*its name has 11 bytes"):
        scan(source)


def test_more_data_than_an_inode_can_count_is_named() -> None:
    tree_limits.check_fields(b"file", 0, 1 << 41, None)
    with pytest.raises(MystfuseError, match=r"file: .*\(2 TiB\)"):
        tree_limits.check_fields(b"file", 0, (1 << 41) + 512, None)


@pytest.mark.parametrize("kind", ["file", "link", "directory"])
def test_lost_and_found_is_a_directory_or_named(source: Path, kind: str) -> None:
    if kind == "directory":
        (source / "lost+found/in").mkdir(parents=True)
        make(source)
        return
    (source / "sub").mkdir()
    for path in source / "sub/lost+found", source / "lost+found":
        if kind == "file":
            path.touch()
        else:
            path.symlink_to("elsewhere")
    refused(source, f"{source}/lost+found: every ext2 file system has a directory of that name")


def test_a_file_that_may_not_be_read_is_named(open_tmp_path: Path, ordinary_user: list[str]) -> None:
    (open_tmp_path / "source").mkdir()
    (open_tmp_path / "source/secret").touch(mode=0o600)
    (open_tmp_path / "out").mkdir(mode=0o777)
    (open_tmp_path / "out").chmod(0o777)
    result = run(*ordinary_user, "mkext2", open_tmp_path / "source", open_tmp_path / "out/image", check=False)
    assert_one_line(result, 1, f"{open_tmp_path}/source/secret: cannot be read: Permission denied")
    assert "mke2fs" not in result.stderr
