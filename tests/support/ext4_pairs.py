"""The same operations on a volume in this process and on a file system that the kernel's ext4 driver has mounted."""

from __future__ import annotations

import ctypes
import errno
import os
import random
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from mystfuse.errors import MystfuseError
from mystfuse.ext2.caller import Caller
from mystfuse.ext2.inode import Inode
from mystfuse.ext2.setattr import AttributeChanges
from mystfuse.volume import file_space
from mystfuse.volume.volume import Volume
from tests.support.ext2_editor import at, listing

ADMIN = Caller(0, 0)
KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16
_LIBC = ctypes.CDLL(None, use_errno=True)


def fallocate(handle: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2)."""
    if _LIBC.fallocate(handle, mode, ctypes.c_long(offset), ctypes.c_long(length)):
        raise OSError(ctypes.get_errno(), "fallocate")


class Pair:
    """A volume, and a mount of the kernel's with the same contents.

    Args:
        seed: of the choice of operations by ``step``.
        has_extents: whether files have extents.
    """

    def __init__(self, volume: Volume, root: Path, seed: int, has_extents: bool = False) -> None:
        self.has_extents = has_extents
        self.volume = volume
        self.root = root
        self.random = random.Random(seed)
        self.names = [letter.encode() * length for letter in "abcdef" for length in (1, 2, 9, 31, 60, 120)]
        self._files: list[int] = []
        """Files that the kernel has made: it forgets with an inode that its contents may begin there."""
        self.done: list[str] = []
        """The operations so far, with their results."""

    def close(self) -> None:
        """Let the kernel's mount go."""
        for file in self._files:
            os.close(file)

    async def do(self, what: str, ours: Callable[[], Awaitable[Any]], theirs: Callable[[], Any]) -> None:
        """Run one operation on both sides, and compare the results."""
        results: list[object] = []
        try:
            await ours()
            results.append(0)
        except (OSError, MystfuseError) as error:
            results.append(error.errno)
        try:
            theirs()
            results.append(0)
        except OSError as error:
            results.append(error.errno)
        self.done.append(f"{what}: {results[0]}")
        assert results[0] == results[1], f"{what}: {results}, after {self.done[-30:]}"

    async def resolve(self, path: bytes) -> Inode:
        """The inode of a path."""
        inode = await self.volume.inode(2)
        for name in path.split(b"/"):
            if name:
                child = await self.volume.lookup(inode.ino, name)
                if child is None:
                    raise OSError(errno.ENOENT, "no such name")
                inode = child
        return inode

    async def parent(self, path: bytes) -> tuple[int, bytes]:
        directory, _, name = path.rpartition(b"/")
        return (await self.resolve(directory)).ino, name

    def there(self, path: bytes) -> bytes:
        return os.fsencode(self.root) + b"/" + path

    async def create(self, path: bytes, mode: int = stat.S_IFREG | 0o644, target: bytes = b"") -> None:
        async def ours() -> None:
            parent, name = await self.parent(path)
            await self.volume.create(parent, name, mode, ADMIN, target=target)

        def theirs() -> None:
            if stat.S_ISREG(mode):
                self._files.append(os.open(self.there(path), os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode & 0o7777))
            elif stat.S_ISDIR(mode):
                os.mkdir(self.there(path), mode & 0o7777)
            else:
                os.symlink(target, self.there(path))

        await self.do(f"create {path!r} {mode:o}", ours, theirs)

    async def write(self, path: bytes, offset: int, data: bytes) -> None:
        async def ours() -> None:
            await self.volume.write((await self.resolve(path)).ino, offset, data, ADMIN)

        def theirs() -> None:
            file = os.open(self.there(path), os.O_WRONLY)
            try:
                os.pwrite(file, data, offset)
            finally:
                os.close(file)

        await self.do(f"write {path!r} {offset} {len(data)}", ours, theirs)

    async def truncate(self, path: bytes, size: int) -> None:
        async def ours() -> None:
            await self.volume.set_attributes((await self.resolve(path)).ino, AttributeChanges(size=size), ADMIN)

        await self.do(f"truncate {path!r} {size}", ours, lambda: os.truncate(self.there(path), size))

    async def allocate(self, path: bytes, mode: int, offset: int, length: int) -> None:
        """fallocate(2), which the kernel's driver has for files with extents."""

        async def ours() -> None:
            ino = (await self.resolve(path)).ino
            if mode & PUNCH_HOLE:
                await file_space.punch(self.volume, ino, offset, length, ADMIN)
            else:
                await file_space.allocate(
                    self.volume, ino, offset, length, bool(mode & KEEP_SIZE), bool(mode & ZERO_RANGE), ADMIN
                )

        def theirs() -> None:
            file = os.open(self.there(path), os.O_RDWR)
            try:
                fallocate(file, mode, offset, length)
            finally:
                os.close(file)

        await self.do(f"fallocate {path!r} {mode} {offset} {length}", ours, theirs)

    async def remove(self, path: bytes, is_rmdir: bool) -> None:
        async def ours() -> None:
            inode = await self.volume.remove(*await self.parent(path), is_rmdir)
            if inode.ino in self.volume.orphans:
                await self.volume.release(inode.ino)

        await self.do(f"remove {path!r}", ours, lambda: (os.rmdir if is_rmdir else os.unlink)(self.there(path)))

    async def rename(self, old: bytes, new: bytes) -> None:
        async def ours() -> None:
            replaced = await self.volume.rename(*await self.parent(old), *await self.parent(new), 0, ADMIN)
            if replaced is not None and replaced.ino in self.volume.orphans:
                await self.volume.release(replaced.ino)

        await self.do(f"rename {old!r} {new!r}", ours, lambda: os.rename(self.there(old), self.there(new)))

    async def link(self, old: bytes, new: bytes) -> None:
        async def ours() -> None:
            await self.volume.link((await self.resolve(old)).ino, *await self.parent(new), ADMIN)

        await self.do(
            f"link {old!r} {new!r}", ours, lambda: os.link(self.there(old), self.there(new), follow_symlinks=False)
        )

    async def set_xattr(self, path: bytes, name: str, value: bytes | None) -> None:
        async def ours() -> None:
            ino = (await self.resolve(path)).ino
            if value is None:
                await self.volume.remove_xattr(ino, name.encode(), ADMIN)
            else:
                await self.volume.set_xattr(ino, name.encode(), value, ADMIN)

        def theirs() -> None:
            if value is None:
                os.removexattr(self.there(path), name, follow_symlinks=False)
            else:
                os.setxattr(self.there(path), name, value, follow_symlinks=False)

        size = None if value is None else len(value)
        await self.do(f"xattr {path!r} {name} {size}", ours, theirs)

    def some_path(self) -> bytes:
        """A path in an existing directory; one half of them exist."""
        directories = [found for found, _, _ in os.walk(self.there(b"").rstrip(b"/"))]
        directory = self.random.choice(sorted(found for found in directories if not found.endswith(b"lost+found")))
        present = sorted(name for name in os.listdir(directory) if name != b"lost+found")
        name = self.random.choice(present if present and self.random.random() < 0.5 else self.names)
        return os.path.relpath(os.path.join(directory, name), os.fsencode(self.root))

    async def step(self, sizes: tuple[int, ...], values: tuple[int, ...]) -> None:
        """Any operation.

        Args:
            sizes: of files and symbolic links.
            values: bytes of attributes.
        """
        draw, path = self.random, self.some_path()
        size = draw.choice(sizes)
        match draw.randrange(13 if self.has_extents else 12):
            case 0 | 1:
                await self.create(path)
            case 2 | 3:
                await self.create(path, stat.S_IFDIR | 0o755)
            case 4:
                await self.create(path, stat.S_IFLNK | 0o777, b"t" * max(min(size, 500), 1))
            case 5 | 6:
                await self._if_file(
                    path, lambda: self.write(path, draw.choice((0, 0, 7, 50, size)), draw.randbytes(size))
                )
            case 7:
                await self._if_file(path, lambda: self.truncate(path, size))
            case 8:
                await self.remove(path, draw.random() < 0.5)
            case 9:
                await self.rename(path, self.some_path())
            case 10:
                await self.link(path, self.some_path())
            case 12:
                mode = draw.choice((0, KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE))
                await self._if_file(path, lambda: self.allocate(path, mode, draw.choice((0, 30, 2000)), max(size, 1)))
            case _:
                if os.path.islink(self.there(path)):
                    # e2fsck takes a target for block numbers where an inode of its own has the value of an attribute.
                    values = tuple(value for value in values if value < 100)
                name = f"trusted.{draw.choice(('x', 'yy', 'an attribute'))}"
                await self.set_xattr(path, name, draw.choice((None, *map(draw.randbytes, values))))

    async def _if_file(self, path: bytes, operation: Callable[[], Awaitable[None]]) -> None:
        if os.path.isfile(self.there(path)) and not os.path.islink(self.there(path)):
            await operation()

    async def assert_same(self) -> None:
        """Both sides have the same tree: names, contents, attributes, sizes and blocks."""
        waiting: list[tuple[bytes, Inode]] = [(b"", await self.volume.inode(2))]
        while waiting:
            path, inode = waiting.pop()
            there = self.there(path)
            known = os.lstat(there)
            ours = (inode.i_mode, inode.i_links_count, inode.st_blocks, inode.size)
            theirs = (known.st_mode, known.st_nlink, known.st_blocks, known.st_size)
            assert ours == theirs, f"{path!r}: {ours}, {theirs}, after {self.done[-30:]}"
            values = {os.fsencode(name): os.getxattr(there, name, follow_symlinks=False)
                      for name in os.listxattr(there, follow_symlinks=False)}  # fmt: skip
            assert await self.volume.xattrs(inode.ino) == values, path
            if inode.is_regular:
                assert bytes(await self.volume.read(inode.ino, 0, inode.size)) == Path(os.fsdecode(there)).read_bytes()
            elif inode.is_symlink:
                assert await self.volume.target(inode.ino) == os.readlink(there)
            else:
                names = await listing(self.volume, inode.ino)
                assert sorted(names) == sorted(os.listdir(there)), path
                waiting += [(path + b"/" + name, await self.resolve(path + b"/" + name)) for name in names if
                            name != b"lost+found"]  # fmt: skip


__all__ = ["ADMIN", "Pair", "at"]
