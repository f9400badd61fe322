"""``compare`` tells what differs, which names share inodes, and what was renamed."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest

import mystfuse as api
from mystfuse.errors import CorruptFilesystem
from mystfuse.tree.diff.change import Aspect, Change, Kind
from mystfuse.tree.diff.compare import Rules
from mystfuse.tree.diff.image_view import ImageView
from tests.support.commands import mystfuse
from tests.support.ext2_editor import Editor
from tests.support.extraction import root_entries, save
from tests.support.mounts import mounted
from tests.support.tree_diffs import changes_between, directory_changes, image_view

TIME = (10**18, 10**18)


def shown(changes: list[Change]) -> list[tuple[Kind, bytes | None, bytes, frozenset[Aspect]]]:
    return [
        (change.kind, change.old_path, change.path, change.aspects)
        for change in changes
        if change.kind is not Kind.CHANGED or change.aspects != {Aspect.MTIME}
    ]


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    old, new = tmp_path / "old", tmp_path / "new"
    for tree in (old, new):
        (tree / "d").mkdir(parents=True)
        (tree / "d/file").write_text("text")
        os.utime(tree / "d/file", ns=TIME)
        os.utime(tree / "d", ns=TIME)
        os.utime(tree, ns=TIME)
    return old, new


async def test_equal_trees(pair: tuple[Path, Path]) -> None:
    assert await directory_changes(*pair) == []


@pytest.mark.parametrize(
    ("old", "new", "is_same"),
    [(10**18, 10**18 + 1, True), (10**18 + 1, 10**18 + 2, False), (10**18, 10**18 + 10**9, False)],
)
async def test_times_are_as_exact_as_both_sides(old: int, new: int, is_same: bool, pair: tuple[Path, Path]) -> None:
    for tree, time in zip(pair, (old, new), strict=True):
        os.utime(tree / "d/file", ns=(time, time))
    assert (await directory_changes(*pair) == []) is is_same


async def test_a_directory_in_place_of_a_file(pair: tuple[Path, Path]) -> None:
    old, new = pair
    (new / "d/file").unlink()
    (new / "d/file/below").mkdir(parents=True)
    assert shown(await directory_changes(old, new)) == [
        (Kind.CHANGED, None, b"d/file", {Aspect.TYPE}),
        (Kind.ADDED, None, b"d/file/below", frozenset()),
    ]
    assert shown(await directory_changes(new, old)) == [
        (Kind.CHANGED, None, b"d/file", {Aspect.TYPE}),
        (Kind.REMOVED, None, b"d/file/below", frozenset()),
    ]


async def test_a_link_becomes_a_copy(pair: tuple[Path, Path]) -> None:
    for tree in pair:
        os.link(tree / "d/file", tree / "d/other")
    assert shown(await directory_changes(*pair)) == []
    shutil.copy2(pair[1] / "d/file", pair[1] / "copy")
    (pair[1] / "copy").rename(pair[1] / "d/other")
    assert shown(await directory_changes(*pair)) == [(Kind.CHANGED, None, b"d/other", {Aspect.LINKS})]
    assert shown(await directory_changes(*pair[::-1])) == [(Kind.CHANGED, None, b"d/other", {Aspect.LINKS})]
    assert shown(await directory_changes(*pair, Rules(frozenset({Aspect.LINKS})))) == []


async def test_names_that_stay_together_are_no_change(pair: tuple[Path, Path]) -> None:
    for tree in pair:
        for name in ("b", "c"):
            os.link(tree / "d/file", tree / "d" / name)
    (pair[1] / "d/b").unlink()
    assert shown(await directory_changes(*pair)) == [(Kind.REMOVED, None, b"d/b", frozenset())]


async def test_what_is_ignored(pair: tuple[Path, Path]) -> None:
    os.utime(pair[1] / "d/file", ns=(5, 5))
    (pair[1] / "d/file").write_text("TEXT")
    ignored = frozenset({Aspect.MTIME, Aspect.CONTENT})
    assert await directory_changes(*pair, Rules(ignored)) == []


async def test_attributes_that_nobody_sees(pair: tuple[Path, Path]) -> None:
    os.setxattr(pair[1] / "d/file", b"trusted.x", b"1")
    assert shown(await directory_changes(*pair)) == [(Kind.CHANGED, None, b"d/file", {Aspect.XATTRS})]
    assert await directory_changes(*pair, Rules(unseen_xattrs=(b"trusted.",))) == []


@pytest.fixture(scope="module")
def renamed_images(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An image, and its commit after files and directories were renamed."""
    place = tmp_path_factory.mktemp("renamed")
    tree = place / "tree"
    for name in ("dir/same", "dir/changed", "dir/gone", "dir/deep/er", "file", "linked", "replaced", "reused"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(f"this is {name}")
    os.link(tree / "linked", tree / "linked2")
    old, new = place / "old.img", place / "new.img"
    assert mystfuse("mkext2", tree, old).returncode == 0
    with mounted(old, place / "mount", "--trust-self") as mount:
        (mount / "dir").rename(mount / "moved")
        (mount / "moved/changed").write_text("other text")
        (mount / "moved/gone").unlink()
        (mount / "moved/new").write_text("new")
        (mount / "moved/temporary").write_text("by rename")
        (mount / "moved/temporary").rename(mount / "moved/same")
        (mount / "file").rename(mount / "moved/deep/file")
        (mount / "linked2").rename(mount / "linked3")
        (mount / "reused").unlink()
        (mount / "fresh").write_text("perhaps by the same inode number")
        (mount / "temporary").write_text("by rename")
        (mount / "temporary").rename(mount / "replaced")
        assert mystfuse("commit", mount, new).returncode == 0
    return old, new


async def test_renames(renamed_images: tuple[Path, Path]) -> None:
    old, new = renamed_images
    async with image_view(old) as old_view, image_view(new) as new_view:
        changes = await changes_between(old_view, new_view)
        assert [change[:3] for change in shown(changes)] == [
            (Kind.REMOVED, None, b"dir/gone"),
            (Kind.ADDED, None, b"fresh"),
            (Kind.RENAMED, b"linked2", b"linked3"),
            (Kind.RENAMED, b"dir", b"moved"),
            (Kind.CHANGED, None, b"moved/changed"),
            (Kind.RENAMED, b"file", b"moved/deep/file"),
            (Kind.ADDED, None, b"moved/new"),
            (Kind.CHANGED, None, b"moved/same"),
            (Kind.CHANGED, None, b"replaced"),
            (Kind.REMOVED, None, b"reused"),
        ]
        by_path = {change.path: change for change in changes}
        assert by_path[b"moved/changed"].aspects >= {Aspect.CONTENT, Aspect.SIZE}
        assert by_path[b"moved/deep/file"].aspects == frozenset()
        assert by_path[b"linked3"].aspects == frozenset()


async def test_without_a_common_lineage_nothing_is_renamed(renamed_images: tuple[Path, Path]) -> None:
    old, new = renamed_images
    async with image_view(old) as old_view, image_view(new) as new_view:
        new_view.lineage = None
        changes = await changes_between(old_view, new_view)
    assert {change.kind for change in changes} == {Kind.ADDED, Kind.REMOVED, Kind.CHANGED}


@pytest.mark.logs("loaded without any check")
@pytest.mark.parametrize("cycle", ["itself", "above", "sibling"])
async def test_a_directory_in_two_places_is_refused(cycle: str, hostile: Editor, tmp_path: Path) -> None:
    pristine = save(hostile, tmp_path).rename(tmp_path / "pristine")
    ino = root_entries(hostile)
    position, inner = hostile.find(ino[b"d2"], b"inner")
    if cycle == "itself":
        position, _ = hostile.find(inner, b"passwd")
    hostile.put("<I", position, {"itself": inner, "above": ino[b"d2"], "sibling": ino[b"d1"]}[cycle])
    image = save(hostile, tmp_path)
    async with api.open_image(pristine, insecure=True) as old, api.open_image(image, insecure=True) as new:
        views = ImageView.of_tree(old, "pristine"), ImageView.of_tree(new, "hostile")
        for pair in (views, views[::-1], (views[1], views[1])):
            with pytest.raises(CorruptFilesystem, match=r"^hostile: d2/inner.*: directory .* in more than one"):
                await changes_between(*pair)


@pytest.mark.parametrize("block_size", [1024, 4096])
@pytest.mark.parametrize("has_digests", [True, False])
async def test_digests_and_reading_find_the_same(has_digests: bool, block_size: int, tmp_path: Path) -> None:
    """Files of several sizes, with holes, of which some blocks change, in an image and its commit."""
    tree, old, new = tmp_path / "tree", tmp_path / "old.img", tmp_path / "new.img"
    tree.mkdir()
    chance = random.Random(block_size)
    sizes = (1, block_size, 13 * block_size + 1, 300_000, 5_000_000)
    for size in sizes:
        for kind in ("same", "changed", "hole", "longer"):
            (tree / f"{kind}-{size}").write_bytes(chance.randbytes(size))
    with (tree / "sparse").open("wb") as file:
        file.seek(70_000_000)
        file.write(b"end")
    options = ("--free=32M", f"--block-size={block_size}")
    assert mystfuse("mkext2", *options, tree, old).returncode == 0
    with mounted(old, tmp_path / "mount", "--trust-self") as mount:
        for size in sizes:
            with (mount / f"changed-{size}").open("r+b") as file:
                file.seek(chance.randrange(size))
                byte = file.read(1)
                file.seek(-1, os.SEEK_CUR)
                file.write(bytes([byte[0] ^ 255]))
            data = (mount / f"hole-{size}").read_bytes()
            # The same bytes, in other blocks.
            (mount / f"hole-{size}").unlink()
            (mount / f"hole-{size}").write_bytes(data)
            with (mount / f"longer-{size}").open("ab") as file:
                file.write(b"\0")
        with (mount / "sparse").open("r+b") as file:
            file.seek(40_000_000)
            file.write(bytes(100_000))
        assert mystfuse("commit", mount, new).returncode == 0
    async with image_view(old, has_digests) as old_view, image_view(new, has_digests) as new_view:
        changes = await changes_between(old_view, new_view, Rules(frozenset({Aspect.MTIME})))
    assert {change.path.decode(): change.aspects for change in changes} == {
        **{f"changed-{size}": {Aspect.CONTENT} for size in sizes},
        **{f"longer-{size}": {Aspect.CONTENT, Aspect.SIZE} for size in sizes},
    }
