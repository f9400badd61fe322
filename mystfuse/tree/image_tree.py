"""An image's tree, read by paths and without a mount: the base of ``open_image`` in Python and of the commands ``ls``,
``cat``, ``extract`` and ``tar``.

Paths are resolved as by a process whose root the image is (chroot(2)); permissions are not checked.

Blocks in memory are read without waiting, so each operation, and each piece of a long one, reaches a checkpoint of
trio's by itself: other tasks get their turn, and it can be cancelled.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from errno import EISDIR, ELOOP, ENAMETOOLONG, ENODATA, ENOENT, ENOTDIR
from typing import TYPE_CHECKING, AnyStr, Generic, NamedTuple
from uuid import UUID

import trio

from mystfuse.errors import CorruptFilesystem, MystfuseError
from mystfuse.ext2.constants import EXT2_NAME_LEN, EXT2_ROOT_INO, PATH_MAX
from mystfuse.ext2.inode import Inode
from mystfuse.ext2.xattr import split_name
from mystfuse.tree.image_file import ImageFile
from mystfuse.trust.policy import Trust
from mystfuse.volume.volume import Volume

if TYPE_CHECKING:
    from mystfuse.image.pipeline import Pipeline

MAX_SYMLINKS = 40
"""Symbolic links that one path may lead through (kernel, include/linux/namei.h, MAXSYMLINKS)."""
_ENTRIES_AT_ONCE = 1000


@dataclass(frozen=True, slots=True)
class Stat:
    """The fields of stat(2), under the names of ``os.stat_result``. Times are nanoseconds since the epoch."""

    st_mode: int
    st_ino: int
    st_nlink: int
    st_uid: int
    st_gid: int
    st_rdev: int
    st_size: int
    st_blksize: int
    st_blocks: int
    """512-byte units."""
    st_atime_ns: int
    st_mtime_ns: int
    st_ctime_ns: int

    @classmethod
    def of(cls, inode: Inode, block_size: int) -> Stat:
        return cls(
            inode.i_mode,
            inode.ino,
            inode.i_links_count,
            inode.uid,
            inode.gid,
            inode.rdev,
            inode.st_size,
            block_size,
            inode.st_blocks,
            inode.atime_ns,
            inode.mtime_ns,
            inode.ctime_ns,
        )

    @property
    def st_atime(self) -> float:
        """Seconds since the epoch."""
        return self.st_atime_ns / 1e9

    @property
    def st_mtime(self) -> float:
        """Seconds since the epoch."""
        return self.st_mtime_ns / 1e9

    @property
    def st_ctime(self) -> float:
        """Seconds since the epoch."""
        return self.st_ctime_ns / 1e9


class Child(NamedTuple):
    """A name in a directory, and its inode, or the error that reading it gave."""

    name: bytes
    ino: int
    found: Inode | MystfuseError

    @property
    def inode(self) -> Inode:
        """The inode; raises the error if there is none."""
        if isinstance(self.found, MystfuseError):
            raise self.found
        return self.found


class DirEntry(Generic[AnyStr]):
    """A name in a directory, as ``os.scandir`` gives it.

    If reading the inode fails, the name is listed all the same, and its other methods raise the error.
    """

    def __init__(self, tree: ImageTree, path: AnyStr, name: AnyStr, child: Child) -> None:
        self.name: AnyStr = name
        self.path: AnyStr = path
        """The directory's path as it was given, and the name."""
        self.inode = child.ino
        self._child = child
        self._tree = tree

    def is_dir(self) -> bool:
        """Whether it is a directory itself, not a symbolic link to one."""
        return self._child.inode.is_directory

    def is_file(self) -> bool:
        """Whether it is a regular file itself."""
        return self._child.inode.is_regular

    def is_symlink(self) -> bool:
        return self._child.inode.is_symlink

    def stat(self) -> Stat:
        """The result of lstat(2)."""
        return self._tree.stat_of(self._child.inode)

    def __repr__(self) -> str:
        return f"<DirEntry {self.name!r}>"


class ImageTree:
    """The tree of an opened image. Use ``mystfuse.open_image``.

    Paths are str or bytes, absolute or relative to the image's root, which is the same. Symbolic links and ``..`` do
    not lead out of it. A path that is not found is an OSError with the path as its filename, as from the functions of
    ``os``; broken or damaged parts of the image raise a MystfuseError.

    Args:
        trust: why the image is trusted.
        pipeline: the devices below ``volume``; None if they are no image's.
    """

    def __init__(self, volume: Volume, trust: Trust, pipeline: Pipeline | None = None) -> None:
        self.volume = volume
        self.trust = trust
        self.pipeline = pipeline

    @property
    def trust_explanation(self) -> str:
        """One clause for people: why the image is trusted."""
        return self.trust.explanation

    @property
    def root_hash(self) -> bytes | None:
        """The root hash that verifies every block; None without a hash tree (``insecure`` alone)."""
        return self.trust.root_hash

    @property
    def signer(self) -> bytes | None:
        """SHA-256 of the modulus of the key whose signature is why it is trusted; None for another reason."""
        return self.trust.signer

    @property
    def uuid(self) -> UUID:
        """Of the file system, from its verified superblock."""
        return self.volume.superblock.s_uuid

    async def stat(self, path: str | bytes, *, follow_symlinks: bool = True) -> Stat:
        """The result of stat(2) for ``path``.

        Raises:
            OSError: ENOENT, ENOTDIR, ELOOP, ENAMETOOLONG.
            CorruptFilesystem, IntegrityError, ImageReadError
        """
        return self.stat_of(await self.resolve(path, follow_symlinks))

    async def lstat(self, path: str | bytes) -> Stat:
        """The result of lstat(2) for ``path``; raises as ``stat``."""
        return await self.stat(path, follow_symlinks=False)

    async def exists(self, path: str | bytes) -> bool:
        """Whether ``path`` leads anywhere, symbolic links followed.

        Raises:
            CorruptFilesystem, IntegrityError, ImageReadError: resolving the path failed.
        """
        try:
            await self.resolve(path)
        except OSError:
            return False
        return True

    async def scandir(self, path: AnyStr) -> AsyncIterator[DirEntry[AnyStr]]:
        """The names in a directory, in its own order, without ``.`` and ``..``.

        Raises:
            OSError: as ``stat``; ENOTDIR if it is something else.
            CorruptFilesystem, IntegrityError, ImageReadError: reading the directory failed.
        """
        directory = await self._directory(path)
        async with aclosing(self.children(directory.ino)) as children:
            async for child in children:
                name = _like(path, child.name)
                yield DirEntry(self, _join(path, name), name, child)

    async def walk(self, top: AnyStr) -> AsyncIterator[tuple[AnyStr, list[AnyStr], list[AnyStr]]]:
        """A directory and all below it, each before its contents: (path, names of directories, other names).

        Symbolic links are not followed, but for ``top`` itself. The walk skips names that the caller removes from the
        list of directories. A name with an unreadable inode is among the others.

        Raises:
            OSError: as ``stat``; ENOTDIR.
            CorruptFilesystem: also when a directory has two names, so that a walk might never end.
            IntegrityError, ImageReadError
        """
        pending = [(top, (await self._directory(top)).ino)]
        seen: set[int] = set()
        while pending:
            path, ino = pending.pop()
            check_first_visit(ino, seen)
            directories: dict[AnyStr, int] = {}
            others: list[AnyStr] = []
            async for child in self.children(ino):
                name = _like(path, child.name)
                if isinstance(child.found, Inode) and child.found.is_directory:
                    directories[name] = child.ino
                else:
                    others.append(name)
            names = list(directories)
            yield path, names, others
            pending += [(_join(path, name), directories[name]) for name in reversed(names) if name in directories]

    async def open(self, path: str | bytes) -> ImageFile:
        """Open a regular file for reading; symbolic links are followed.

        Raises:
            OSError: as ``stat``; EISDIR if it is not a regular file.
            CorruptFilesystem, IntegrityError, ImageReadError
        """
        inode = await self.resolve(path)
        if not inode.is_regular:
            what = os.strerror(EISDIR) if inode.is_directory else "Not a regular file"
            raise OSError(EISDIR, what, path)
        return self.open_inode(inode, path)

    async def read_file(self, path: str | bytes) -> bytes:
        """The whole contents of a regular file; raises as ``open``."""
        async with await self.open(path) as file:
            return await file.read()

    async def readlink(self, path: AnyStr) -> AnyStr:
        """The target of a symbolic link.

        Raises:
            OSError: as ``stat``; EINVAL if it is something else.
            CorruptFilesystem, IntegrityError, ImageReadError
        """
        inode = await self.resolve(path, follow_symlinks=False)
        try:
            return _like(path, await self.volume.target(inode.ino))
        except OSError as error:
            raise OSError(error.errno, os.strerror(error.errno or 0), path) from error

    async def listxattr(self, path: str | bytes, *, follow_symlinks: bool = True) -> list[str]:
        """The full names of the extended attributes, ACLs and ``trusted.*`` included; raises as ``stat``."""
        inode = await self.resolve(path, follow_symlinks)
        return [os.fsdecode(name) for name in await self.volume.xattrs(inode.ino)]

    async def getxattr(self, path: str | bytes, attribute: str | bytes, *, follow_symlinks: bool = True) -> bytes:
        """The value of an extended attribute, ACLs in the form that getxattr(2) gives them.

        Raises:
            OSError: as ``stat``; ENODATA if it does not exist, EOPNOTSUPP for an impossible name.
            CorruptFilesystem, IntegrityError, ImageReadError
        """
        inode = await self.resolve(path, follow_symlinks)
        name = os.fsencode(attribute)
        try:
            split_name(name)
        except OSError as error:
            raise OSError(error.errno, os.strerror(error.errno or 0), path) from error
        value = (await self.volume.xattrs(inode.ino)).get(name)
        if value is None:
            raise OSError(ENODATA, os.strerror(ENODATA), path)
        return value

    async def resolve(self, path: str | bytes, follow_symlinks: bool = True) -> Inode:
        """The inode that a path leads to (path_resolution(7)); raises as ``stat``."""
        encoded = os.fsencode(path)
        if b"\0" in encoded:
            raise ValueError("embedded null byte")
        if not encoded or len(encoded) >= PATH_MAX:
            number = ENAMETOOLONG if encoded else ENOENT
            raise OSError(number, os.strerror(number), path)
        await trio.lowlevel.checkpoint()
        try:
            return await self._resolve(encoded, follow_symlinks)
        except OSError as error:
            raise OSError(error.errno, os.strerror(error.errno or 0), path) from error

    async def _resolve(self, path: bytes, follow_symlinks: bool) -> Inode:
        root = await self.volume.inode(EXT2_ROOT_INO)
        # The directories from the root down to here. On the way back, ".." in the image does not count: it may lie.
        way = [root]
        pending = _components(path)
        symlinks = 0
        while pending:
            name = pending.pop()
            if not way[-1].is_directory:
                raise OSError(ENOTDIR, "not a directory")
            if len(name) > EXT2_NAME_LEN:
                raise OSError(ENAMETOOLONG, "a name is too long")
            if name == b".":
                continue
            if name == b"..":
                del way[max(len(way) - 1, 1) :]
                continue
            inode = await self.volume.lookup(way[-1].ino, name)
            if inode is None:
                raise OSError(ENOENT, "no such name")
            if not inode.is_symlink or not (pending or follow_symlinks):
                way.append(inode)
                continue
            symlinks += 1
            if symlinks > MAX_SYMLINKS:
                raise OSError(ELOOP, "too many symbolic links")
            # Each component may be another link with two thousand names.
            await trio.lowlevel.checkpoint()
            target = await self.volume.target(inode.ino)
            if target.startswith(b"/"):
                way = [root]
            pending += _components(target)
        return way[-1]

    async def _directory(self, path: str | bytes) -> Inode:
        inode = await self.resolve(path)
        if not inode.is_directory:
            raise OSError(ENOTDIR, os.strerror(ENOTDIR), path)
        return inode

    async def children(self, ino: int) -> AsyncGenerator[Child, None]:
        """The names in directory ``ino``, in its own order, each with its inode.

        Raises:
            NotADirectoryError, CorruptFilesystem, IntegrityError, ImageReadError
        """
        await trio.lowlevel.checkpoint()
        size = await self.volume.listing_size(ino)
        offset = 0
        while offset < size:
            if offset:
                await trio.lowlevel.checkpoint()
            entries, offset = await self.volume.entries(ino, offset, _ENTRIES_AT_ONCE)
            for entry, inode in entries:
                yield Child(entry.name, entry.ino, inode or await self.volume.missing_inode(entry.ino))

    def stat_of(self, inode: Inode) -> Stat:
        """The result of stat(2) for an inode."""
        return Stat.of(inode, self.volume.superblock.block_size)

    def open_inode(self, inode: Inode, name: str | bytes) -> ImageFile:
        """Open a regular file by its inode."""
        return ImageFile(self.volume, inode, name)


def check_first_visit(ino: int, seen: set[int]) -> None:
    """Record that a walk enters directory ``ino``.

    Raises:
        CorruptFilesystem: the walk was there before, so the directory has two names.
    """
    if ino in seen:
        raise CorruptFilesystem(f"directory inode {ino} is in more than one place of the tree")
    seen.add(ino)


def _components(path: bytes) -> list[bytes]:
    """The names in a path, the first one last. A slash at the end asks for a directory, as ``.`` does."""
    names = [name for name in path.split(b"/") if name]
    if path.endswith(b"/"):
        names.append(b".")
    return names[::-1]


def _like(path: AnyStr, name: bytes) -> AnyStr:
    """A name in the type of ``path``."""
    return name if isinstance(path, bytes) else os.fsdecode(name)


def _join(path: AnyStr, name: AnyStr) -> AnyStr:
    return os.path.join(path, name)
