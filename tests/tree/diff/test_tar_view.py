"""``TarView`` shows a tree in memory as the directory that it is of."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

from mystfuse.archives.file_tree import Entry
from mystfuse.build.directory_contents import DirectoryContents
from mystfuse.build.source_tree import scan
from mystfuse.tree.diff.change import Aspect
from mystfuse.tree.diff.directory_view import DirectoryView
from mystfuse.tree.diff.tar_view import TarView
from tests.support.tree_diffs import changes_between
from tests.support.tree_pairs import PairMaker


def tree_of(directory: Path) -> Entry:
    root = scan(directory, keep=True).root
    assert root is not None
    return root


async def test_a_tree_in_memory_differs_as_its_directory_does(tmp_path: Path) -> None:
    pair = PairMaker(tmp_path, 7)
    old, new = DirectoryContents(pair.old), DirectoryContents(pair.new)
    with (
        closing(old),
        closing(new),
        closing(TarView(tree_of(pair.old), old, "old.tar")) as old_tar,
        closing(TarView(tree_of(pair.new), new, "new.tar")) as new_tar,
        closing(DirectoryView(pair.old)) as old_directory,
        closing(DirectoryView(pair.new)) as new_directory,
    ):
        found = await changes_between(old_directory, new_directory)
        assert len(found) > 5
        wanted = [(change.kind, change.path, change.aspects) for change in found]
        for views in ((old_tar, new_tar), (old_directory, new_tar), (old_tar, new_directory)):
            changes = await changes_between(*views)
            assert [(change.kind, change.path, change.aspects) for change in changes] == wanted
        assert await changes_between(new_directory, new_tar) == []


async def test_holes(tmp_path: Path) -> None:
    for name, byte in (("old", b"1"), ("new", b"2")):
        (tmp_path / name).mkdir()
        with (tmp_path / name / "file").open("wb") as file:
            file.truncate(1 << 40)
            file.seek(1 << 39)
            file.write(byte)
        os.utime(tmp_path / name / "file", ns=(1, 1))
        os.utime(tmp_path / name, ns=(1, 1))
    contents = DirectoryContents(tmp_path / "old")
    with (
        closing(contents),
        closing(TarView(tree_of(tmp_path / "old"), contents, "old.tar")) as old,
        closing(DirectoryView(tmp_path / "old")) as same,
        closing(DirectoryView(tmp_path / "new")) as new,
    ):
        assert await changes_between(old, same) == []
        (change,) = await changes_between(old, new)
        assert change.aspects == {Aspect.CONTENT}
