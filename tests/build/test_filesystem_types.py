"""``mkext2 --type`` and ``-O``: e2fsck and the kernel take what is made, and it has what plain mke2fs would give it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from mystfuse.build.filesystem_kind import Kind
from mystfuse.build.filled_blocks import extent_blocks
from mystfuse.build.tree_limits import NO_PIECE, choose_block_size
from mystfuse.errors import MystfuseError
from mystfuse.ext2 import features
from tests.build.test_smallest_images import assert_smallest, empty, holes, names, without_link_names
from tests.support.cli_in_process import in_process
from tests.support.commands import mystfuse, run
from tests.support.json_documents import check_document
from tests.support.made_images import assert_clean, assert_refused, contents, fssig, loop_mounted, superblock_of
from tests.support.mounts import mounted

EPOCH = {"SOURCE_DATE_EPOCH": "1600000000"}
NONE: dict[str, str] = {}
KINDS: dict[str, tuple[str, ...]] = {
    "ext3": ("--type=ext3",),
    "ext4": ("--type=ext4",),
    "ext4, 4 KiB": ("--type=ext4", "--block-size=4096"),
    "inline data": ("--type=ext4", "-O", "inline_data,ea_inode,large_dir,metadata_csum_seed,orphan_file"),
    "bigalloc": ("--type=ext4", "-O", "bigalloc,^resize_inode"),
    "uninit_bg": ("--type=ext4", "-O", "^metadata_csum,uninit_bg,^64bit,^has_journal"),
    "ext2 with extents": ("-O", "extent,metadata_csum,^dir_index"),
    "none": ("--type=ext4", "-O", "none,ext_attr,extent,sparse_super2,meta_bg"),
}
OF_MKE2FS = {"--type": "-t", "-O": "-O", "--block-size": "-b"}


def make(*arguments: str | Path, env: dict[str, str] = NONE) -> None:
    """Run mkext2, which may warn."""
    result = mystfuse("mkext2", *arguments, env=env)
    assert result.returncode == 0, result.stderr


def features_of(image: Path) -> str:
    found = re.search("Filesystem features: +(.*)", run("dumpe2fs", "-h", image).stdout)
    assert found
    return found[1]


@pytest.mark.parametrize("name", KINDS)
def test_the_kernel_finds_the_tree_and_the_same_tree_gives_the_same_bytes(
    name: str, rich_tree: Path, tmp_path: Path
) -> None:
    first, again, plain = tmp_path / "first", tmp_path / "again", tmp_path / "plain"
    make(rich_tree, first, *KINDS[name], env=EPOCH)
    make(rich_tree, again, *KINDS[name], env=EPOCH)
    assert first.read_bytes() == again.read_bytes()
    assert_clean(first)
    words = [word for option in KINDS[name] for word in option.split("=")]
    run(
        "mke2fs",
        "-q",
        "-F",
        *(OF_MKE2FS.get(word, word) for word in words),
        plain,
        f"{superblock_of(first).size >> 10}k",
    )
    assert features_of(first) == features_of(plain)
    make(rich_tree, again, *KINDS[name], "--force", "--owner=7:70000")
    assert_clean(again)
    make(rich_tree, again, *KINDS[name], "--force")
    assert_clean(again)
    with loop_mounted(again, tmp_path / "kernel") as kernel, mounted(again, tmp_path / "mount") as mountpoint:
        assert contents(kernel) == contents(mountpoint) == contents(rich_tree)


@pytest.mark.parametrize("options", [("--size=min",), ("--size=min", "--free=5M"), ("--free=5M",)], ids=" ".join)
@pytest.mark.parametrize("name", ["ext3", "ext4", "inline data", "bigalloc"])
def test_sizes(name: str, options: tuple[str, ...], small_tree: Path, tmp_path: Path) -> None:
    image = tmp_path / "image"
    make(small_tree, image, *options, *KINDS[name])
    assert_clean(image)
    if "--free=5M" in options:
        assert "has_journal" in superblock_of(image).features
        superblock = superblock_of(image)
        free = superblock.s_free_blocks_count - superblock.s_r_blocks_count
        assert free * superblock.block_size >= 5 << 20


@pytest.mark.parametrize("name", ["ext3", "ext4", "ext4, 4 KiB", "none"])
@pytest.mark.parametrize(
    "shape", [empty, holes, pytest.param(names, marks=pytest.mark.slow)], ids=lambda shape: shape.__name__
)
def test_the_smallest(shape: Callable[[Path], None], name: str, tmp_path: Path) -> None:
    tree, image = tmp_path / "tree", tmp_path / "image"
    tree.mkdir()
    shape(tree)
    result = in_process("mkext2", "--trace", "--size=min", *KINDS[name], tree, image)
    assert result.returncode == 0, result.stderr
    assert_clean(image)
    runs = [line.removeprefix("+ ") for line in result.stderr.splitlines() if line.startswith("+ ")]
    assert len(runs) <= 3
    assert_smallest(image, runs)
    with loop_mounted(image, tmp_path / "kernel") as kernel:
        assert without_link_names(kernel) == without_link_names(tree)


def test_extent_trees_are_counted() -> None:
    apart = [(2 * number, 2 * number + 1) for number in range(100_000)]
    for block_size, per_block in ((1024, 84), (4096, 340)):
        assert [extent_blocks(apart[:count], block_size) for count in (4, 5, per_block, per_block + 1)] == [0, 1, 1, 2]
        assert extent_blocks([(0, 4 * 32768)], block_size) == 0
        assert extent_blocks([(0, 4 * 32768 + 1)], block_size) == 1
    assert extent_blocks(apart[: 5 * 84], 1024) == 5 + 1


def test_an_ext2_is_what_it_was(small_tree: Path, tmp_path: Path) -> None:
    without, given = tmp_path / "without", tmp_path / "given"
    make(small_tree, without, env=EPOCH)
    make(small_tree, given, "--type=ext2", env=EPOCH)
    assert without.read_bytes() == given.read_bytes()
    (line,) = in_process("mkext2", "--trace", "--force", small_tree, given).stderr.splitlines()
    assert re.fullmatch(r"\+ \S+ -q -F -t ext2 -U \S+ -E hash_seed=[0-9a-f-]+ -d \S+ \S+ \S+", line)


def test_from_an_archive(tmp_path: Path) -> None:
    tree, archive = tmp_path / "tree", tmp_path / "tree.tar"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub/file").write_bytes(os.urandom(70_000))
    for path in (tree / "sub/file", tree / "sub", tree):
        os.utime(path, (1_500_000_000, 1_500_000_000))
    run("tar", "-C", tree, "-cf", archive, ".")
    make(tree, tmp_path / "one", "--type=ext4", env=EPOCH)
    make("--tar", archive, tmp_path / "two", "--type=ext4", env=EPOCH)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_times_after_2038_are_kept(tmp_path: Path) -> None:
    tree, image = tmp_path / "tree", tmp_path / "image"
    tree.mkdir()
    (tree / "late").touch()
    os.utime(tree / "late", (2**33, 2**33))
    make(tree, image, "--type=ext4")
    assert_clean(image)
    with loop_mounted(image, tmp_path / "kernel") as kernel:
        assert (kernel / "late").stat().st_mtime == 2**33


def test_extents_reach_farther_than_block_maps() -> None:
    largest = (1 << 40, b"sparse")
    with pytest.raises(MystfuseError, match="sparse: does not fit"):
        choose_block_size(1024, 1024, 0, NO_PIECE, largest)
    assert choose_block_size(1024, 1024, 0, NO_PIECE, largest, Kind(has_extents=True)) == 1024
    assert choose_block_size(None, 1024, 0, NO_PIECE, largest, Kind(has_extents=True)) is None
    with pytest.raises(MystfuseError, match="at most 4398046510080"):
        choose_block_size(1024, 1024, 0, NO_PIECE, (1 << 42, b"sparse"), Kind(has_extents=True))


def test_encrypted_and_signed(small_tree: Path, tmp_path: Path, make_keys: Callable[..., tuple[Path, Path]]) -> None:
    public, private = make_keys("types", 2048, 65537)
    key, image = tmp_path / "key", tmp_path / "image"
    key.write_bytes(os.urandom(64))
    key.chmod(0o600)
    make(small_tree, image, "--type=ext4", f"--encrypt={key}", f"--sign={public}:{private}")
    with mounted(image, tmp_path / "mount", "--key-file", str(key), "--pubkey", str(public)) as mountpoint:
        assert contents(mountpoint) == contents(small_tree)
    assert fssig(image)["signer"] != ""


@pytest.mark.parametrize(
    ("options", "words", "environment"),
    [
        (("-O", "foo"), ("-O foo", "Invalid filesystem option set"), {}),
        (("--type=ext4", "-O", "meta_bg"), ("not compatible",), {}),
        (("-O", "journal_dev"), ("journal_dev", "which mystfuse does not have"), {}),
        (("-O", "quota"), ("does not count",), {}),
        (("-O", "mmp"), ("mmp", "SOURCE_DATE_EPOCH"), EPOCH),
        (("--type=ext5",), ("ext5",), {}),
    ],
)
def test_what_cannot_be_is_refused(
    options: tuple[str, ...], words: tuple[str, ...], environment: dict[str, str], small_tree: Path, tmp_path: Path
) -> None:
    result = mystfuse("mkext2", *options, small_tree, tmp_path / "image", env=environment)
    assert_refused(result, 2, *words)
    assert not list(tmp_path.iterdir())


def test_a_feature_that_is_only_read_is_said_before(
    small_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "WRITABLE", features.WRITABLE - {"verity"})
    result = in_process("mkext2", "-O", "verity", small_tree, tmp_path / "image")
    assert result.returncode == 0
    assert result.stderr == "mystfuse: warning: a mount of it will be read-only because of: verity\n"


@pytest.mark.parametrize("name", ["ext3", "ext4", "inline data"])
def test_what_is_said_of_it(name: str, small_tree: Path, tmp_path: Path) -> None:
    result = in_process("mkext2", "--json", *KINDS[name], small_tree, tmp_path / "image")
    document = json.loads(result.stdout)
    check_document("mkext2", document)
    assert document["filesystem"]["type"] == KINDS[name][0].removeprefix("--type=")
    plain = json.loads(in_process("mkext2", "--json", small_tree, tmp_path / "plain").stdout)["filesystem"]
    assert plain["type"] == "ext2" and document["filesystem"]["files"] == plain["files"]
