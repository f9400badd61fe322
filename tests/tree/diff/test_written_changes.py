"""What has been written to a volume, against walks over both of its states: random changes in every kind of file
system."""

from __future__ import annotations

import random
import stat
from collections.abc import Callable

import pytest

from mystfuse.errors import MystfuseError
from mystfuse.ext2.constants import EXT2_ROOT_INO
from mystfuse.ext2.inode import Inode
from mystfuse.ext2.setattr import AttributeChanges
from mystfuse.tree.diff.change import Change
from mystfuse.volume.volume import Volume
from tests.support.ext2_editor import MemoryDevice, make_image
from tests.support.gated_volumes import ROOT
from tests.support.state_comparisons import assert_states_compare_right, states_of

KINDS = {
    "1024": ("-b", "1024", "-I", "256"),
    "4096": ("-b", "4096", "-I", "256"),
    "small inodes": ("-b", "1024", "-I", "128"),
    "no file types": ("-b", "1024", "-O", "^filetype"),
    "revision 0": ("-b", "1024", "-r", "0", "-O", "none"),
    "several groups": ("-b", "1024", "-g", "512", "-N", "512"),
    "ext4": ("-t", "ext4", "-b", "1024", "-g", "1024", "-N", "512", "-O", "^has_journal"),
    "inline": ("-t", "ext4", "-b", "1024", "-g", "1024", "-N", "512", "-O", "^has_journal,inline_data,ea_inode"),
}
ACL = bytes.fromhex("0200000001000600ffffffff02000600e803000004000400ffffffff10000600ffffffff20000400ffffffff")
NAMES = [b"a", b"b", b"c", b"d", b"e", b"f" * 100]


@pytest.fixture(scope="module", params=KINDS)
def image(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A file system with directories, files of all sizes, links and attributes."""
    directory = tmp_path_factory.mktemp("written")
    tree = directory / "tree"
    chance = random.Random(5)
    for name in ("a/b/c", "a/d", "d/e", "b"):
        (tree / name).mkdir(parents=True)
        for number in range(4):
            (tree / name / f"file{number}").write_bytes(chance.randbytes(chance.choice([0, 10, 1000, 30_000, 300_000])))
    (tree / "a/link").hardlink_to(tree / "a/b/c/file0")
    (tree / "d/link").hardlink_to(tree / "a/b/c/file0")
    (tree / "d/symlink").symlink_to("nowhere" * 3)
    (tree / "d/long").symlink_to("nowhere" * 30)
    (tree / "many").mkdir()
    for number in range(150):
        (tree / "many" / f"{number:0100}").touch()
    return make_image(directory / "image", *KINDS[request.param], size="6M", tree=tree).read_bytes()


class Changer:
    """Changes a volume at random.

    Args:
        chance: decides.
    """

    def __init__(self, volume: Volume, chance: random.Random) -> None:
        self._volume = volume
        self._chance = chance
        self._actions: list[Callable[[], object]] = [
            self._create, self._create, self._write, self._write, self._write_again, self._truncate, self._rename,
            self._rename, self._rename, self._exchange, self._link, self._remove, self._remove, self._remove,
            self._remove_tree, self._mode, self._touch, self._xattr, self._xattr, self._drop_xattr,
        ]  # fmt: skip

    async def change(self) -> None:
        """Try to change something."""
        try:
            await self._chance.choice(self._actions)()  # type: ignore[misc]  # they are coroutines
        except (OSError, MystfuseError) as error:
            assert not isinstance(error, MystfuseError), error
        await self._volume.release(*self._volume.orphans)

    async def _walk(self) -> list[tuple[Inode, bytes, Inode]]:
        """(directory, name, inode)"""
        found: list[tuple[Inode, bytes, Inode]] = []
        pending = [await self._volume.inode(EXT2_ROOT_INO)]
        while pending:
            directory = pending.pop()
            offset = 0
            while offset < directory.size:
                entries, offset = await self._volume.entries(directory.ino, offset, 1000)
                for entry, inode in entries:
                    assert inode is not None
                    found.append((directory, entry.name, inode))
                    if inode.is_directory:
                        pending.append(inode)
        return found

    async def _any(self, kind: Callable[[Inode], bool] = lambda inode: True) -> tuple[Inode, bytes, Inode]:
        found = [entry for entry in await self._walk() if kind(entry[2]) and not entry[1].startswith(b"0000")]
        if not found or self._chance.random() < 0.05:
            found = [entry for entry in await self._walk() if kind(entry[2])]
        if not found:
            raise FileNotFoundError
        return self._chance.choice(found)

    async def _directory(self) -> int:
        directories = [inode.ino for _, _, inode in await self._walk() if inode.is_directory]
        return self._chance.choice([EXT2_ROOT_INO, *directories])

    def _name(self) -> bytes:
        return self._chance.choice([*NAMES, b"file%d" % self._chance.randrange(4)])

    async def _create(self) -> None:
        kind = self._chance.choice([stat.S_IFREG, stat.S_IFDIR, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
        target = b"target" * self._chance.choice([1, 20]) if kind == stat.S_IFLNK else b""
        rdev = self._chance.randrange(1, 500) if kind == stat.S_IFCHR else 0
        await self._volume.create(await self._directory(), self._name(), kind | 0o755, ROOT, rdev, target)

    async def _write(self) -> None:
        _, _, inode = await self._any(lambda inode: inode.is_regular)
        data = self._chance.randbytes(self._chance.choice([1, 100, 5000, 40_000]))
        position = self._chance.choice([0, inode.size, self._chance.randrange(inode.size + 1), inode.size + 50_000])
        await self._volume.write(inode.ino, position, data, ROOT)

    async def _write_again(self) -> None:
        """The same bytes."""
        _, _, inode = await self._any(lambda inode: inode.is_regular and inode.size > 0)
        position = self._chance.randrange(inode.size)
        await self._volume.write(inode.ino, position, bytes(await self._volume.read(inode.ino, position, 5000)), ROOT)

    async def _truncate(self) -> None:
        _, _, inode = await self._any(lambda inode: inode.is_regular)
        size = self._chance.choice([0, inode.size // 2, inode.size + 10, inode.size + 100_000])
        await self._volume.set_attributes(inode.ino, AttributeChanges(size=size), ROOT)

    async def _rename(self) -> None:
        directory, name, _ = await self._any()
        await self._volume.rename(directory.ino, name, await self._directory(), self._name(), 0, ROOT)

    async def _exchange(self) -> None:
        (one, name, _), (other, other_name, _) = await self._any(), await self._any()
        await self._volume.rename(one.ino, name, other.ino, other_name, 2, ROOT)

    async def _link(self) -> None:
        _, _, inode = await self._any(lambda inode: not inode.is_directory)
        await self._volume.link(inode.ino, await self._directory(), self._name(), ROOT)

    async def _remove(self) -> None:
        directory, name, inode = await self._any()
        await self._volume.remove(directory.ino, name, inode.is_directory)

    async def _remove_tree(self) -> None:
        _, _, top = await self._any(lambda inode: inode.is_directory)
        below = {top.ino}
        found = await self._walk()
        for directory, _, inode in found:
            if directory.ino in below and inode.is_directory:
                below.add(inode.ino)
        for directory, name, inode in reversed(found):
            if directory.ino in below:
                await self._volume.remove(directory.ino, name, inode.is_directory)

    async def _mode(self) -> None:
        _, _, inode = await self._any()
        changes = AttributeChanges(mode=self._chance.choice([0o600, 0o755]), uid=self._chance.choice([None, 7]))
        await self._volume.set_attributes(inode.ino, changes, ROOT)

    async def _touch(self) -> None:
        _, _, inode = await self._any()
        await self._volume.set_attributes(inode.ino, AttributeChanges(mtime_ns=self._chance.choice([10**18, 7])), ROOT)

    async def _xattr(self) -> None:
        _, _, inode = await self._any()
        size = self._chance.choice([1, 10, 500])
        name = self._chance.choice([b"user.a", b"trusted.b", b"system.posix_acl_access"])
        value = ACL if name.startswith(b"system") else b"x" * size
        await self._volume.set_xattr(inode.ino, name, value, ROOT)

    async def _drop_xattr(self) -> None:
        found = [inode.ino for _, _, inode in await self._walk()]
        for ino in self._chance.sample(found, min(20, len(found))):
            for name in await self._volume.xattrs(ino):
                await self._volume.remove_xattr(ino, name, ROOT)
                return


# In the last two, directories have changed places with some that are in them.
@pytest.mark.parametrize("seed", [*range(20), 44, 99])
async def test_random_changes(image: bytes, seed: int) -> None:
    chance = random.Random(seed)
    volume = await Volume.open(MemoryDevice(image), 64 << 20)
    changer = Changer(volume, chance)
    for _ in range(chance.choice([1, 3, 10, 40])):
        await changer.change()
        if chance.random() < 0.1:
            await assert_states_compare_right(await states_of(volume, image))
    changes: list[Change] = await assert_states_compare_right(await states_of(volume, image))
    assert changes or not volume.changes_made
