"""Files of ext4 whose contents are in their inodes: no digest of a block tells whether these are the same."""

from __future__ import annotations

import os
from pathlib import Path
from uuid import UUID

from mystfuse.build.hash_tree import write_all
from mystfuse.build.seal import seal
from mystfuse.image.progress import no_progress
from mystfuse.system.atomic_file import AtomicFile
from mystfuse.tree.diff.change import Aspect
from tests.support.ext2_editor import make_image
from tests.support.tree_diffs import changes_between, image_view

TIME = (10**18, 10**18)
OPTIONS = ("-t", "ext4", "-O", "inline_data", "-I", "256", "-U", str(UUID(int=2)), "-E", f"hash_seed={UUID(int=3)}")


def make(directory: Path, contents: dict[str, bytes]) -> Path:
    """An image of files of one time."""
    (tree := directory / "tree").mkdir(parents=True)
    for name, data in contents.items():
        (tree / name).write_bytes(data)
        os.utime(tree / name, ns=TIME)
    os.utime(tree, ns=TIME)
    data = make_image(directory / "ext4", *OPTIONS, size="16M", tree=tree).read_bytes()
    with AtomicFile(directory / "image", False) as file:
        write_all(file.fd, data, 0)
        seal(file, len(data), None, no_progress, b"salt" * 8, UUID(int=1))
        file.commit()
    return directory / "image"


async def test_they_are_compared(tmp_path: Path) -> None:
    same = {"same": b"one\n", "large": os.urandom(9000), "other": b"1" * 100, "grown": b"2" * 20}
    old = make(tmp_path / "old", same)
    new = make(tmp_path / "new", same | {"other": b"1" * 99 + b"2", "grown": b"2" * 20 + b"3" * 4000})
    async with image_view(old) as one, image_view(new) as other:
        changes = await changes_between(one, other)
    contents = {change.path for change in changes if Aspect.CONTENT in change.aspects}
    assert contents == {b"other", b"grown"}
