"""How large images by ``mystfuse mkext2`` are, and how many inodes they have."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from tests.support.cli_in_process import in_process
from tests.support.commands import mystfuse, run
from tests.support.made_images import MIB, assert_clean, assert_refused, loop_mounted, make, superblock_of
from tests.support.mounts import mounted


def rule(directory: Path) -> int:
    """The original's rule: du -b rounded up to 1 MiB, times 1.5, at least 8 MiB."""
    # As du counted until coreutils 9.2: without directories.
    used = sum(path.lstat().st_size for path in (directory, *directory.rglob("*")))
    return max(-(-used // MIB) * MIB * 3 // 2, 8 * MIB)


@pytest.mark.parametrize("size", [0, 10_000_000, 7 * MIB - 4096, 7 * MIB - 4095])
def test_size_is_by_the_originals_rule(size: int, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    if size:
        (source / "file").write_bytes(os.urandom(1000) * (size // 1000) + bytes(size % 1000))
    fields = make(source, tmp_path / "image")
    assert int(fields["hash_offset"]) == rule(source)
    assert_clean(tmp_path / "image")


def test_size_option_raises_but_never_lowers(tmp_path: Path) -> None:
    source, image = tmp_path / "source", tmp_path / "image"
    source.mkdir()
    (source / "file").write_bytes(os.urandom(9 * MIB))
    least = rule(source)
    assert least > 8 * MIB
    for given, expected in (("8M", least), ("8388608", least), ("20971520", 20 * MIB), ("100m", 100 * MIB)):
        assert int(make(source, image, f"--size={given}", "--force")["hash_offset"]) == expected, given
    odd = int(make(source, image, "--size=50000001", "--force")["hash_offset"])
    assert odd % 4096 == 0
    assert 50_000_001 <= odd < 50_000_001 + MIB
    assert_clean(image)


@pytest.mark.parametrize("given", ["8388607", "1", "4k", "7M", "-1", "8X", "", "1e9", "9999999999999999999"])
def test_impossible_sizes_are_refused(given: str, small_tree: Path, tmp_path: Path) -> None:
    assert_refused(in_process("mkext2", f"--size={given}", small_tree, tmp_path / "image"), 2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("given", ["512", "3000", "128K", "0", "x"])
def test_impossible_block_sizes_are_refused(given: str, small_tree: Path, tmp_path: Path) -> None:
    assert_refused(in_process("mkext2", f"--block-size={given}", small_tree, tmp_path / "image"), 2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "options", [("--free=30M",), ("--free=30M", "--block-size=4096"), ("--free=30M", "--size=20M")]
)
def test_free_leaves_that_room(options: tuple[str, ...], small_tree: Path, tmp_path: Path) -> None:
    image = tmp_path / "image"
    make(small_tree, image, *options)
    with loop_mounted(image, tmp_path / "kernel") as kernel:
        status = os.statvfs(kernel)
        assert 30 * MIB <= status.f_bavail * status.f_frsize < 40 * MIB


def inodes_of(image: Path) -> int:
    return superblock_of(image).s_inodes_count


def inodes_by_default(size: int, environment: dict[str, str]) -> int:
    """The number of inodes that mke2fs chooses by itself."""
    with tempfile.NamedTemporaryFile() as file:
        file.truncate(size)
        run("mke2fs", "-q", "-F", "-t", "ext2", file.name, f"{size >> 10}k", env=environment)
        return inodes_of(Path(file.name))


@pytest.mark.parametrize("free", ["0", "300M", "400M", "480M", "1G"])
def test_there_are_as_many_inodes_as_mke2fs_gives(free: str, small_tree: Path, tmp_path: Path) -> None:
    """Also where the first size was too small: files can use all of the free space."""
    image = tmp_path / "image"
    size = int(make(small_tree, image, f"--free={free}")["hash_offset"])
    assert inodes_of(image) >= inodes_by_default(size, dict(os.environ)) > size // 20000
    assert_clean(image)


@pytest.mark.parametrize("ratio", [1024, 1 << 20])
def test_another_mke2fs_conf_counts_and_everything_fits(ratio: int, tiny_files: Path, tmp_path: Path) -> None:
    """One mke2fs.conf makes more inodes than our default, one fewer than the directory needs."""
    image, configuration = tmp_path / "image", tmp_path / "mke2fs.conf"
    configuration.write_text(
        f"[defaults]\nbase_features = filetype\nblocksize = 1024\ninode_size = 256\ninode_ratio = {ratio}\n"
    )
    environment = {**os.environ, "MKE2FS_CONFIG": str(configuration)}
    size = int(make(tiny_files, image, "--free=60M", env=environment)["hash_offset"])
    assert inodes_of(image) >= max(inodes_by_default(size, environment), 20_000)
    assert_clean(image)


@pytest.mark.parametrize("options", [(), ("--block-size=4096", "--free=5M")])
def test_many_tiny_files_are_made_to_fit(options: tuple[str, ...], tiny_files: Path, tmp_path: Path) -> None:
    image = tmp_path / "image"
    fields = make(tiny_files, image, *options)
    assert rule(tiny_files) == 8 * MIB < int(fields["hash_offset"]) < 140 * MIB
    assert_clean(image)
    with loop_mounted(image, tmp_path / "kernel") as kernel:
        found = {path.relative_to(kernel): path.read_bytes() for path in kernel.glob("*/*")}
        assert found == {path.relative_to(tiny_files): path.read_bytes() for path in tiny_files.glob("*/*")}
        if "--free=5M" in options:
            status = os.statvfs(kernel)
            assert status.f_bavail * status.f_frsize >= 5 * MIB


def test_a_full_directory_of_small_blocks_is_grown_not_failed(tmp_path: Path) -> None:
    source, image = tmp_path / "source", tmp_path / "image"
    source.mkdir()
    for number in range(1500):
        (source / f"{number}").write_bytes(b"x" * 200)
    fields = make(source, image, "--block-size=65536")
    assert int(fields["hash_offset"]) > 1500 * 65536
    assert_clean(image)


def test_a_large_sparse_size_stays_sparse(small_tree: Path, tmp_path: Path) -> None:
    image = tmp_path / "image"
    fields = make(small_tree, image, "--size=2G")
    assert int(fields["hash_offset"]) == 2 << 30
    assert image.stat().st_blocks * 512 < 60 * MIB
    assert_clean(image)


def test_large_extended_attributes_get_larger_blocks(tmp_path: Path) -> None:
    source, image = tmp_path / "source", tmp_path / "image"
    source.mkdir()
    (source / "file").touch()
    try:
        os.setxattr(source / "file", "user.large", b"v" * 3000)
    except OSError as error:
        pytest.skip(f"this file system has no room for such an attribute: {error}")
    make(source, image)
    assert_clean(image)
    with mounted(image, tmp_path / "mount") as mountpoint:
        assert os.getxattr(mountpoint / "file", "user.large") == b"v" * 3000
    result = mystfuse("mkext2", "--block-size=1024", "--force", source, image)
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert "extended attributes" in result.stderr


@pytest.mark.parametrize("options", [(), ("--free=10M",), ("--block-size=4096",)])
def test_inodes_makes_at_least_so_many(options: tuple[str, ...], small_tree: Path, tmp_path: Path) -> None:
    image = tmp_path / "image"
    make(small_tree, image, "--inodes=50000", *options)
    assert 50_000 <= inodes_of(image) < 51_000
    assert_clean(image)
    # Fewer than mke2fs makes by itself are at least so many, too.
    make(small_tree, tmp_path / "few", "--inodes=100")
    assert inodes_of(tmp_path / "few") >= 2048


def test_fewer_inodes_than_needed_are_refused(small_tree: Path, tmp_path: Path) -> None:
    needed = 11 + len({path.lstat().st_ino for path in small_tree.rglob("*")})
    image = tmp_path / "image"
    result = in_process("mkext2", f"--inodes={needed - 1}", small_tree, image)
    assert_refused(result, 1, f"--inodes {needed - 1} is too few: it needs {needed}")
    assert not list(tmp_path.iterdir())
    make(small_tree, image, f"--inodes={needed}", "--size=min")
    for impossible in ("0", "-1", "x", str(2**32)):
        assert_refused(in_process("mkext2", f"--inodes={impossible}", small_tree, tmp_path / "x"), 2)
