"""Changes that no time of an inode tells; and what is no change."""

from __future__ import annotations

import os
import random

import pytest

from mystfuse.ext2.setattr import AttributeChanges
from mystfuse.tree.diff.change import Aspect, Change, Kind
from mystfuse.tree.diff.image_view import ImageView
from mystfuse.tree.diff.written_changes import MountStates
from mystfuse.volume.volume import Volume
from tests.support.ext2_editor import ROOT as ROOT_INO
from tests.support.ext2_editor import Editor, MemoryDevice, at, make_image, merged
from tests.support.gated_volumes import ROOT
from tests.support.state_comparisons import assert_states_compare_right, states_of

LIMIT = 32 << 20


@pytest.fixture(scope="module", params=["ext2 128", "ext2 256", "ext4 256"])
def image(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    directory = tmp_path_factory.mktemp("unnoticed")
    (directory / "tree/a/b").mkdir(parents=True)
    (directory / "tree/a/b/file").write_bytes(random.Random(1).randbytes(500_000))
    (directory / "tree/a/small").write_text("small")
    (directory / "tree/c").mkdir()
    kind, inode_size = request.param.split()
    options = ["-b", "1024", "-I", inode_size]
    if kind == "ext4":
        # Places of groups are where the editor looks for them.
        options += ["-t", "ext4", "-O", "^64bit,^metadata_csum,^has_journal"]
    with pytest.MonkeyPatch.context() as patch:
        # Small inodes have whole seconds: a test takes less than one.
        patch.setenv("E2FSPROGS_FAKE_TIME", "1700000000")
        for path in (directory / "tree").rglob("*"):
            os.utime(path, (1_700_000_000, 1_700_000_000))
        os.utime(directory / "tree", (1_700_000_000, 1_700_000_000))
        return make_image(directory / "image", *options, size="4M", tree=directory / "tree").read_bytes()


async def with_old_inodes(volume: Volume, image: bytes, *inos: int) -> MountStates:
    """The states of a volume; in the new one these inodes are as they were, as if no time had gone by."""
    old, new = Editor(image), Editor(await merged(volume))
    for ino in inos:
        start = old.inode(ino)
        new.data[start : start + old.inode_size] = old.data[start : start + old.inode_size]
    states = await states_of(volume, image)
    view = ImageView(await Volume.open(MemoryDevice(new.data)), "new")
    return MountStates(states.old, view, states.written)


async def kinds(states: MountStates) -> dict[bytes, tuple[Kind, frozenset[Aspect]]]:
    changes: list[Change] = await assert_states_compare_right(states)
    return {change.path: (change.kind, change.aspects) for change in changes}


@pytest.mark.parametrize("position", [0, 20_000, 400_000], ids=["direct", "indirect", "double indirect"])
async def test_data(image: bytes, position: int) -> None:
    volume = await Volume.open(MemoryDevice(image), LIMIT)
    ino = (await at(volume, "a", "b", "file")).ino
    await volume.write(ino, position, b"changed", ROOT)
    found = await kinds(await with_old_inodes(volume, image, ino))
    assert found == {b"a/b/file": (Kind.CHANGED, {Aspect.CONTENT})}


async def test_names(image: bytes) -> None:
    volume = await Volume.open(MemoryDevice(image), LIMIT)
    directory = (await at(volume, "a")).ino
    await volume.rename(directory, b"small", directory, b"large", 0, ROOT)
    ino = (await at(volume, "a", "large")).ino
    found = await kinds(await with_old_inodes(volume, image, directory, ino))
    assert found == {b"a/large": (Kind.RENAMED, frozenset())}


async def test_a_moved_directory(image: bytes) -> None:
    volume = await Volume.open(MemoryDevice(image), LIMIT)
    above, below = (await at(volume, "a")).ino, (await at(volume, "a", "b")).ino
    other = (await at(volume, "c")).ino
    await volume.rename(above, b"b", other, b"moved", 0, ROOT)
    found = await kinds(await with_old_inodes(volume, image, below))
    assert found[b"c/moved"] == (Kind.RENAMED, frozenset())
    assert set(found) == {b"a", b"c", b"c/moved"}


async def test_the_same_bytes_again_are_no_change(image: bytes) -> None:
    volume = await Volume.open(MemoryDevice(image), LIMIT)
    inode = await at(volume, "a", "b", "file")
    await volume.write(inode.ino, 0, bytes(await volume.read(inode.ino, 0, inode.size)), ROOT)
    assert await kinds(await with_old_inodes(volume, image, inode.ino)) == {}
    await volume.set_attributes(inode.ino, AttributeChanges(mtime_ns=inode.mtime_ns), ROOT)
    assert await kinds(await states_of(volume, image)) == {}


async def test_what_comes_and_goes_leaves_times_alone(image: bytes) -> None:
    volume = await Volume.open(MemoryDevice(image), LIMIT)
    for name in (b"one", b"two"):
        await volume.create(ROOT_INO, name, 0o100644, ROOT)
    for name in (b"one", b"two"):
        await volume.remove(ROOT_INO, name, False)
    await volume.release(*volume.orphans)
    assert await kinds(await states_of(volume, image)) == {b"": (Kind.CHANGED, {Aspect.MTIME})}


async def test_times_of_access_and_change_do_not_count(image: bytes) -> None:
    volume = await Volume.open(MemoryDevice(image), LIMIT)
    inode = await at(volume, "a", "small")
    await volume.set_attributes(inode.ino, AttributeChanges(atime_ns=10**18), ROOT)
    await volume.set_attributes(inode.ino, AttributeChanges(mode=inode.i_mode), ROOT)
    assert await kinds(await states_of(volume, image)) == {}


async def test_a_hole_at_the_end_is_other_content(image: bytes) -> None:
    volume = await Volume.open(MemoryDevice(image), LIMIT)
    inode = await at(volume, "a", "small")
    await volume.set_attributes(inode.ino, AttributeChanges(size=1 << 33), ROOT)
    found = await (await states_of(volume, image)).changes()
    expected = {Aspect.SIZE, Aspect.CONTENT, Aspect.MTIME}
    assert [(change.path, change.aspects) for change in found] == [(b"a/small", expected)]
    await volume.write(inode.ino, 1 << 32, b"data", ROOT)
    found = await (await states_of(volume, image)).changes()
    assert Aspect.CONTENT in found[0].aspects


async def test_a_number_used_anew_is_another_file(image: bytes) -> None:
    volume = await Volume.open(MemoryDevice(image), LIMIT)
    directory, ino = (await at(volume, "a")).ino, (await at(volume, "a", "small")).ino
    await volume.remove(directory, b"small", False)
    await volume.release(*volume.orphans)
    made = await volume.create(directory, b"other", 0o100644, ROOT)
    assert made.ino == ino
    found = await kinds(await states_of(volume, image))
    assert (found[b"a/small"][0], found[b"a/other"][0]) == (Kind.REMOVED, Kind.ADDED)
