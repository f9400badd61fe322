"""Names come and go in large directories as in a dictionary."""

from __future__ import annotations

import random
import stat
from pathlib import Path

import pytest

from mystfuse.ext2.constants import EXT2_INDEX_FL
from tests.support.ext2_editor import assert_clean, merged
from tests.support.gated_volumes import ROOT, find, open_volume


async def test_a_directory_stays_indexed_when_names_are_added(image: bytes, tmp_path: Path) -> None:
    volume, _ = await open_volume(image)
    many = await find(volume, b"many")
    if not many.i_flags & EXT2_INDEX_FL:
        pytest.skip("one block is never indexed")
    for number in range(300):
        await volume.create(many.ino, b"added-%d" % number, stat.S_IFREG | 0o644, ROOT)
    grown = await volume.inode(many.ino)
    assert grown.i_flags & EXT2_INDEX_FL and grown.size > many.size
    assert_clean(await merged(volume), tmp_path / "merged")


async def test_names_come_and_go_in_a_large_directory_as_in_a_dictionary(image: bytes, tmp_path: Path) -> None:
    """The index in memory and the free space that it knows of, through growth, removal and reuse."""
    chance = random.Random(1)
    volume, _ = await open_volume(image)
    many = await find(volume, b"many")
    small = await find(volume, b"small")
    names: set[bytes] = {b"a-name-of-some-length-%04d" % number for number in range(400)}
    added: list[bytes] = []
    for step in range(6000):
        if added and chance.random() < 0.45:
            name = added.pop(chance.randrange(len(added)))
            await volume.remove(many.ino, name, False)
            names.discard(name)
        else:
            name = b"%0*d" % (chance.choice((4, 30, 200)), step)
            await volume.link(small.ino, many.ino, name, ROOT)
            names.add(name)
            added.append(name)
    for name in chance.sample(sorted(names), 200):
        assert await volume.lookup(many.ino, name)
    assert not await volume.lookup(many.ino, b"never")
    listed: set[bytes] = set()
    offset = 0
    while offset < (await volume.inode(many.ino)).size:
        entries, offset = await volume.entries(many.ino, offset, 100)
        assert not listed & {entry.name for entry, _ in entries}
        listed |= {entry.name for entry, _ in entries}
    assert listed == names
    full = sum(12 + len(name) for name in names)
    # Leaves of an index are between half full and full, and room in one is not used for names of others.
    assert (await volume.inode(many.ino)).size < 3.5 * full
    assert_clean(await merged(volume), tmp_path / "merged")


async def test_renaming_makes_a_directory_longer_and_leaves_it_usable(image: bytes, tmp_path: Path) -> None:
    """A regression: the new block was entered into the name index twice, before the commit and after it."""
    volume, _ = await open_volume(image)
    many = await find(volume, b"many")
    size = many.size
    for number in range(400):
        old = b"a-name-of-some-length-%04d" % number
        await volume.rename(many.ino, old, many.ino, b"%0200d" % number, 0, ROOT)
        await volume.create(many.ino, b"%0100d" % number, stat.S_IFREG | 0o644, ROOT)
    assert (await volume.inode(many.ino)).size > 2 * size
    for number in range(400):
        assert await volume.lookup(many.ino, b"%0200d" % number)
        assert not await volume.lookup(many.ino, b"a-name-of-some-length-%04d" % number)
    assert_clean(await merged(volume), tmp_path / "merged")


@pytest.mark.parametrize("step", [1, 2, 7])
async def test_a_listing_shows_each_name_once_while_names_are_removed(image: bytes, step: int) -> None:
    volume, _ = await open_volume(image)
    many = await find(volume, b"many")
    chance = random.Random(step)
    names = {b"a-name-of-some-length-%04d" % number for number in range(400)}
    seen: list[bytes] = []
    removed: set[bytes] = set()
    offset = 0
    while offset < many.size:
        entries, offset = await volume.entries(many.ino, offset, step)
        seen += [entry.name for entry, _ in entries]
        # The entry just listed, and another one.
        left = sorted(names - removed)
        for name in {*(entry.name for entry, _ in entries), *chance.sample(left, min(len(left), 1))} - removed:
            await volume.remove(many.ino, name, False)
            removed.add(name)
    assert len(seen) == len(set(seen)) and removed == names
