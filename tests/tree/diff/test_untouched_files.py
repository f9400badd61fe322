"""Files that need not be compared because no block of theirs differs: all of them, and no other."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import pytest

from mystfuse.build.hash_tree import write_all
from mystfuse.build.seal import seal
from mystfuse.image.progress import no_progress
from mystfuse.system.atomic_file import AtomicFile
from mystfuse.tree.diff.change import Aspect
from mystfuse.tree.diff.untouched_files import UntouchedFiles
from tests.support.commands import run
from tests.support.ext2_editor import ROOT, Editor, make_image
from tests.support.tree_diffs import changes_between, image_view

SIZES = {"empty": 0, "small": 100, "direct": 40_000, "indirect": 200_000, "double": 600_000}


@pytest.fixture(scope="module", params=["1024", "4096"])
def editor(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Editor:
    directory = tmp_path_factory.mktemp("untouched")
    (tree := directory / "tree").mkdir()
    for name, size in SIZES.items():
        (tree / name).write_bytes(os.urandom(size))
        (tree / f"other-{name}").write_bytes(os.urandom(size))
    os.symlink("t" * 200, tree / "link")
    os.setxattr(tree / "direct", "user.note", b"v" * 500)
    os.setxattr(tree / "other-direct", "user.note", b"w" * 500)
    options = ("-b", request.param, "-I", "128", "-N", "256", "-E", "root_owner=0:0")
    return Editor(make_image(directory / "image", *options, size="16M", tree=tree).read_bytes())


def sealed(editor: Editor, path: Path) -> Path:
    """An image with a hash tree, whose salt is that of all of them."""
    with AtomicFile(path, False) as file:
        write_all(file.fd, bytes(editor.data), 0)
        seal(file, len(editor.data), None, no_progress, b"salt" * 8, UUID(int=1))
        file.commit()
    return path


def copy(editor: Editor) -> Editor:
    return Editor(bytes(editor.data))


def ino_of(editor: Editor, name: str) -> int:
    return editor.find(ROOT, name.encode())[1]


def flip(editor: Editor, offset: int) -> None:
    editor.data[offset] ^= 0xFF


async def compare(old: Editor, new: Editor, tmp_path: Path) -> tuple[dict[str, frozenset[Aspect]], set[str]]:
    """What differs, and the names of the files that need no comparison."""
    paths = sealed(old, tmp_path / "old"), sealed(new, tmp_path / "new")
    async with image_view(paths[0]) as one, image_view(paths[1]) as other:
        found = await UntouchedFiles.between(one, other)
        assert found is not None
        names = {os.fsdecode(name): node for name, node in (await other.children(await other.root())).items()}
        untouched = {name for name, node in names.items() if found.has(int(str(node.key)))}
        changes = await changes_between(one, other)
    return {os.fsdecode(change.path): change.aspects for change in changes}, untouched


async def test_of_equal_images_all_are(editor: Editor, tmp_path: Path) -> None:
    changes, untouched = await compare(editor, editor, tmp_path)
    assert changes == {}
    assert untouched >= SIZES.keys()


@pytest.mark.parametrize("name", ["small", "direct", "indirect", "double"])
async def test_a_changed_block_touches_its_file_alone(name: str, editor: Editor, tmp_path: Path) -> None:
    new, ino = copy(editor), ino_of(editor, name)
    flip(new, editor.block(ino))
    changes, untouched = await compare(editor, new, tmp_path)
    assert changes == {name: {Aspect.CONTENT}}
    # With blocks of 1024 bytes, a digest is that of four, which may be of other files.
    assert name not in untouched and len(untouched) >= len(SIZES)


def deepest(editor: Editor, name: str) -> int:
    """The offset of a block at the end of a file's map."""
    block = editor.block(ino_of(editor, name), 13 if name == "double" and editor.block_size == 1024 else 12)
    levels = 2 if name == "double" and editor.block_size == 1024 else 1
    for _ in range(levels):
        block = editor.get("<I", block) * editor.block_size
    return block


@pytest.mark.parametrize("name", ["indirect", "double"])
async def test_a_block_behind_indirect_blocks_is_seen(name: str, editor: Editor, tmp_path: Path) -> None:
    new = copy(editor)
    flip(new, deepest(editor, name))
    changes, untouched = await compare(editor, new, tmp_path)
    assert changes == {name: {Aspect.CONTENT}}
    assert name not in untouched


def share_data(editor: Editor) -> None:
    """Let ``other-direct`` have a block of ``direct``."""
    pointer = editor.get("<I", editor.pointer(ino_of(editor, "direct"), 3))
    editor.put("<I", editor.pointer(ino_of(editor, "other-direct"), 5), pointer)


def share_indirect_block(editor: Editor) -> None:
    pointer = editor.get("<I", editor.pointer(ino_of(editor, "indirect"), 12))
    editor.put("<I", editor.pointer(ino_of(editor, "other-indirect"), 12), pointer)


def share_behind_indirect(editor: Editor) -> None:
    """Let a direct block of one file be a block behind the indirect block of another."""
    pointer = editor.get("<I", editor.block(ino_of(editor, "indirect"), 12))
    editor.put("<I", editor.pointer(ino_of(editor, "other-indirect"), 2), pointer)


@pytest.mark.parametrize(
    ("share", "change", "names"),
    [
        (share_data, lambda editor: editor.block(ino_of(editor, "direct"), 3), {"direct", "other-direct"}),
        (
            share_indirect_block,
            lambda editor: editor.get("<I", editor.block(ino_of(editor, "indirect"), 12)) * editor.block_size,
            {"indirect", "other-indirect"},
        ),
        (share_behind_indirect, lambda editor: deepest(editor, "indirect"), {"indirect", "other-indirect"}),
    ],
)
async def test_a_block_of_two_files_touches_both(
    share: Callable[[Editor], None], change: Callable[[Editor], int], names: set[str], editor: Editor, tmp_path: Path
) -> None:
    """As no sound file system has it: a diff must not say that one of them is the same."""
    old = copy(editor)
    share(old)
    new = copy(old)
    flip(new, change(old))
    changes, untouched = await compare(old, new, tmp_path)
    assert changes == {name: {Aspect.CONTENT} for name in names}
    assert not names & untouched


async def test_attributes_in_their_block_and_in_the_inode_are_seen(editor: Editor, tmp_path: Path) -> None:
    new = copy(editor)
    acl = editor.get("<I", editor.inode(ino_of(editor, "direct")) + 104)
    position = editor.data.index(b"v" * 500, acl * editor.block_size)
    new.data[position + 300] = 7
    # The mode of another file.
    new.put("<H", new.inode(ino_of(new, "small")), 0o100600)
    changes, untouched = await compare(editor, new, tmp_path)
    assert changes["direct"] == {Aspect.XATTRS}
    assert changes["small"] == {Aspect.MODE}
    assert "small" not in untouched and "direct" not in untouched


async def test_inode_tables_in_other_places_are_not_compared(editor: Editor, tmp_path: Path) -> None:
    """The same numbers would be of other inodes."""
    new = copy(editor)
    table = editor.descriptor() + 8
    number = editor.get("<I", table)
    # At the end of the first group.
    free = min(editor.blocks_count, 8 * editor.block_size) - 300
    length = -(-editor.inodes_per_group * editor.inode_size // editor.block_size) * editor.block_size
    start, end = number * editor.block_size, free * editor.block_size
    assert not any(editor.data[end : end + length])
    new.data[end : end + length] = editor.data[start : start + length]
    new.put("<I", table, free)
    paths = sealed(editor, tmp_path / "old"), sealed(new, tmp_path / "new")
    async with image_view(paths[0]) as one, image_view(paths[1]) as other:
        assert await UntouchedFiles.between(one, other) is None
        assert await changes_between(one, other) == []


async def test_block_0_stands_for_none(editor: Editor, tmp_path: Path) -> None:
    """With 1 KiB blocks, the superblock shares its digest with block 0; with 4 KiB it is block 0."""
    new = copy(editor)
    # A count of free inodes, as whatever adds a file changes it.
    new.put("<I", 1024 + 16, new.get("<I", 1024 + 16) - 1)
    changes, untouched = await compare(editor, new, tmp_path)
    assert changes == {}
    assert untouched >= SIZES.keys()


async def test_extents(tmp_path: Path) -> None:
    """A file with a tree of blocks of its own, and a link with an extent."""
    (tree := tmp_path / "tree").mkdir()
    for name in ("pieces", "other"):
        with (tree / name).open("wb") as file:
            for number in range(200):
                file.seek(8192 * number)
                file.write(os.urandom(4096))
    os.symlink("t" * 200, tree / "link")
    path = make_image(tmp_path / "image", "-t", "ext4", "-b", "4096", "-O", "^metadata_csum", size="16M", tree=tree)
    editor = Editor(path.read_bytes())
    for name, block in (("pieces", 0), ("pieces", 398), ("link", 0)):
        number = int(run("debugfs", "-R", f"bmap {name} {block}", path).stdout)
        new = copy(editor)
        flip(new, number * 4096 + 100)
        (place := tmp_path / f"{name}{block}").mkdir()
        changes, untouched = await compare(editor, new, place)
        assert changes == {name: {Aspect.TARGET if name == "link" else Aspect.CONTENT}}
        assert untouched >= {"pieces", "other", "link"} - {name} and name not in untouched
