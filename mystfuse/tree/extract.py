"""Copying a tree out of an image that may be hostile, as ``cp -a`` would.

Nothing from the image is used as a path. Every name is a single component, made anew (O_EXCL and its like) under the
descriptor of a directory that we made, and nothing is opened through a symbolic link; so nothing gets out of the
destination. A name twice, a directory in two places, or a block in two files fails the extraction: no sound file system
has them.
"""

from __future__ import annotations

import errno
import os
import resource
import secrets
import stat
import sys
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio

from mystfuse.errors import CorruptFilesystem, MystfuseError
from mystfuse.ext2.inode import Inode
from mystfuse.ext2.xattr import POSIX_ACL_ACCESS, POSIX_ACL_DEFAULT
from mystfuse.system.output_paths import (
    open_directory,
    rename_without_replacing,
    sync_directory,
    sync_file_system,
)
from mystfuse.system.threads import call_in_thread
from mystfuse.tree.image_tree import Child, ImageTree, check_first_visit

_IN_THREAD = 64 << 10
"""Longer writes are worth a thread: storage may take its time, and other tasks go on meanwhile."""
_SPARE_DESCRIPTORS = 16
"""Descriptors kept for other uses, and for removing a failed copy."""
_FOR_ROOT = (b"trusted.", b"security.")
_NEW = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_ITSELF = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_OUT_OF_ORDER = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EMFILE, errno.ENFILE})
"""Errors that do not mean a lack of permission."""


async def extract(
    tree: ImageTree,
    path: str | bytes,
    destination: str | os.PathLike[str],
    advance: Callable[[int], None] = lambda count: None,
) -> dict[str, int]:
    """Copy a file, or a directory and all below it, to ``destination``.

    It is made under a hidden name beside ``destination``, written to disk, and then renamed; when it fails or is
    cancelled, everything is removed again. The limit of open files is raised as far as it goes: each level of
    directories takes one.

    Args:
        advance: called with the number of bytes of file data written since the last call.
    """
    target = Path(destination)
    _check_absent(target)
    inode = await tree.resolve(path, follow_symlinks=False)
    max_descriptors = _raise_descriptor_limit()
    with ExitStack() as stack:
        try:
            parent = open_directory(target.parent)
        except FileNotFoundError as error:
            raise OSError(error.errno, f"there is no directory {target.parent}", os.fspath(destination)) from error
        except OSError as error:
            raise OSError(error.errno, error.strerror, os.fspath(destination)) from error
        stack.callback(os.close, parent)
        hidden = f".{target.name[:60]}.{secrets.token_hex(6)}"
        name, links = os.fsencode(f"{hidden}.tmp"), os.fsencode(f"{hidden}.links")
        stack.callback(_remove, parent, links)
        stack.callback(_remove, parent, name)
        extraction = _Extraction(tree, parent, links, max_descriptors, advance)
        try:
            await extraction.run(name, inode)
        except OSError as error:
            raise OSError(error.errno, extraction.explain(error), os.fspath(destination)) from error
        finally:
            await extraction.aclose()
        _remove(parent, links)
        try:
            # Everything is on disk before it gets its final name.
            await _in_thread(sync_file_system, parent)
            rename_without_replacing(parent, name, os.fsencode(target.name))
            await _in_thread(sync_directory, parent)
        except OSError as error:
            raise OSError(error.errno, error.strerror, os.fspath(destination)) from error
    return dict(extraction.omitted)


@dataclass(slots=True)
class _Level:
    """A directory that is being filled."""

    inode: Inode
    name: bytes
    fd: int
    children: AsyncGenerator[Child, None]


class _Extraction:
    """One copy of one tree.

    Args:
        parent: descriptor of the directory that it is made in.
        links: name in ``parent`` for a directory that holds every inode with several names, until all is made.
        max_descriptors: the limit of open files.
    """

    def __init__(
        self, tree: ImageTree, parent: int, links: bytes, max_descriptors: int, advance: Callable[[int], None]
    ) -> None:
        self.omitted: Counter[str] = Counter()
        self._tree = tree
        self._volume = tree.volume
        self._parent = parent
        self._links = links
        self._links_fd = -1
        self._linked: set[int] = set()
        self._max_fd = max_descriptors - _SPARE_DESCRIPTORS
        self._levels: list[_Level] = []
        self._seen: set[int] = set()
        self._blocks_left = tree.volume.superblock.s_blocks_count
        self._advance = advance
        self._is_root = os.geteuid() == 0

    async def run(self, name: bytes, inode: Inode) -> None:
        """Make the copy under ``name`` in the parent directory; attributes of its root come last of all."""
        await self._make(self._parent, name, inode)
        while self._levels:
            level = self._levels[-1]
            name = b""
            # Blocks in memory need no waiting.
            await trio.lowlevel.checkpoint()
            try:
                child = await anext(level.children, None)
                if child is None:
                    await self._set_attributes(level.inode, level.fd)
                    os.close(self._levels.pop().fd)
                else:
                    name = child.name
                    await self._make(level.fd, name, child.inode)
            except MystfuseError as error:
                path = os.path.join(b"", *[level.name for level in self._levels[1:]], name).rstrip(b"/")
                raise error.at(os.fsdecode(path) or ".") from error

    def explain(self, error: OSError) -> str:
        """The message for an error of the system."""
        if error.errno in (errno.EMFILE, errno.ENFILE):
            return f"{len(self._levels)} directories lie in each other, and no more files may be open (ulimit -n)"
        return error.strerror or str(error)

    async def aclose(self) -> None:
        """Close what is open."""
        for level in self._levels:
            await level.children.aclose()
            os.close(level.fd)
        if self._links_fd >= 0:
            os.close(self._links_fd)

    async def _make(self, parent: int, name: bytes, inode: Inode) -> None:
        """Make one name, and what it refers to; a directory is filled by ``run``."""
        try:
            if inode.is_directory:
                check_first_visit(inode.ino, self._seen)
                fd = self._make_directory(parent, name)
                self._levels.append(_Level(inode, name, fd, self._tree.children(inode.ino)))
                if fd > self._max_fd:
                    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            elif inode.ino in self._linked:
                os.link(b"%d" % inode.ino, name, src_dir_fd=self._links_fd, dst_dir_fd=parent, follow_symlinks=False)
            else:
                is_made = await self._make_file(parent, name, inode)
                if is_made and inode.i_links_count > 1 and parent != self._parent:
                    self._keep_for_links(parent, name, inode.ino)
        except FileExistsError as error:
            if parent == self._parent:
                raise
            raise CorruptFilesystem(f"directory inode {self._levels[-1].inode.ino} has {name!r} twice") from error

    def _make_directory(self, parent: int, name: bytes) -> int:
        """Make a directory that only we may open so far; returns its descriptor."""
        os.mkdir(name, 0o700, dir_fd=parent)
        fd = os.open(name, _DIRECTORY, dir_fd=parent)
        if parent == self._parent:
            _remove_acls(fd)
        return fd

    def _keep_for_links(self, parent: int, name: bytes, ino: int) -> None:
        if self._links_fd < 0:
            self._links_fd = self._make_directory(self._parent, self._links)
        try:
            os.link(name, b"%d" % ino, src_dir_fd=parent, dst_dir_fd=self._links_fd, follow_symlinks=False)
        except PermissionError:
            # No hard links here (vfat).
            self.omitted["hard link"] += 1
        else:
            self._linked.add(ino)

    async def _make_file(self, parent: int, name: bytes, inode: Inode) -> bool:
        """Make anything but a directory; False for something that needs privileges."""
        mode = inode.i_mode
        if inode.is_regular:
            fd = os.open(name, _NEW, 0o600, dir_fd=parent)
        else:
            if inode.is_symlink:
                target = await self._volume.target(inode.ino)
                if b"\0" in target:
                    raise CorruptFilesystem(f"symlink inode {inode.ino}: its target has a NUL")
                os.symlink(target, name, dir_fd=parent)
            else:
                try:
                    os.mknod(name, stat.S_IFMT(mode) | 0o600, inode.rdev, dir_fd=parent)
                except PermissionError:
                    if parent == self._parent:
                        raise
                    self.omitted["device" if inode.rdev else stat.filemode(mode)[0] + " special file"] += 1
                    return False
            fd = os.open(name, _ITSELF, dir_fd=parent)
        try:
            if parent == self._parent:
                _remove_acls(_reference(inode, fd))
            if inode.is_regular:
                await self._copy_data(inode, fd)
            await self._set_attributes(inode, fd)
        finally:
            os.close(fd)
        return True

    async def _copy_data(self, inode: Inode, fd: int) -> None:
        """Write a file's data; the rest stays holes."""
        block_size = self._volume.superblock.block_size
        file = self._tree.open_inode(inode, b"")
        async for offset, length in file.data_ranges():
            self._blocks_left -= -(-length // block_size)
            if self._blocks_left < 0:
                raise CorruptFilesystem(f"inode {inode.ino}: the files have more blocks than the file system")
            data = await self._volume.read(inode.ino, offset, length)
            if length < _IN_THREAD:
                _write(fd, data, offset)
            else:
                with trio.CancelScope(shield=True):
                    await call_in_thread(partial(_write, fd, data, offset))
            self._advance(length)
        os.ftruncate(fd, inode.size)

    async def _set_attributes(self, inode: Inode, fd: int) -> None:
        """Owner, extended attributes, mode and times, in an order in which none spoils another."""
        itself = _reference(inode, fd)
        mode = stat.S_IMODE(inode.i_mode)
        if not self._is_root or not self._attempt("owner", partial(os.chown, itself, inode.uid, inode.gid)):
            mode &= ~(stat.S_ISUID | stat.S_ISGID)
        for name, value in (await self._volume.xattrs(inode.ino)).items():
            shown = os.fsdecode(name)
            if name.startswith(_FOR_ROOT) and not self._is_root:
                self.omitted[shown] += 1
            else:
                self._attempt(shown, partial(os.setxattr, itself, name, value))
        if not inode.is_symlink:
            os.chmod(itself, mode)
        os.utime(itself, ns=(inode.atime_ns, inode.mtime_ns))

    def _attempt(self, what: str, action: Callable[[], None]) -> bool:
        """Set something that needs privileges, or support by the file system; returns whether that worked."""
        try:
            action()
        except OSError as error:
            if error.errno in _OUT_OF_ORDER:
                raise
            self.omitted[what] += 1
            return False
        return True


def _reference(inode: Inode, fd: int) -> int | str:
    """A path for the inode of ``fd``: an O_PATH descriptor is good for nothing else."""
    return fd if inode.is_regular or inode.is_directory else f"/proc/self/fd/{fd}"


def _remove_acls(itself: int | str) -> None:
    """Remove the attributes inherited from the destination's directory: the image does not have them."""
    for name in (POSIX_ACL_ACCESS, POSIX_ACL_DEFAULT):
        with suppress(OSError):
            os.removexattr(itself, name)


def _write(fd: int, data: bytes | memoryview, offset: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(fd, view, offset)
        view, offset = view[count:], offset + count


def _raise_descriptor_limit() -> int:
    """Raise the process's limit of open files as far as possible; returns it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard if hard != resource.RLIM_INFINITY else sys.maxsize


async def _in_thread(action: Callable[[int], None], descriptor: int) -> None:
    """Call ``action``, which may take long, with a copy of a descriptor: a cancellation leaves it behind."""
    own = os.dup(descriptor)
    # Closed also when no thread begins.
    await call_in_thread(partial(action, own), partial(os.close, own))


def _check_absent(target: Path) -> None:
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, "already exists: name one that does not", os.fspath(target))


def _remove(parent: int, name: bytes) -> None:
    """Remove everything under ``name`` that we made, if it exists; a failure leaves the rest."""
    levels: list[tuple[int, bytes, list[bytes]]] = [(parent, b"", [name])]
    while levels:
        fd, own_name, names = levels[-1]
        if names:
            child = names.pop()
            try:
                os.unlink(child, dir_fd=fd)
            except (IsADirectoryError, PermissionError):
                with suppress(OSError):
                    levels.append(_open_for_removal(fd, child))
            except OSError:
                continue
            continue
        levels.pop()
        if levels:
            os.close(fd)
            with suppress(OSError):
                os.rmdir(own_name, dir_fd=levels[-1][0])


def _open_for_removal(parent: int, name: bytes) -> tuple[int, bytes, list[bytes]]:
    """A directory's descriptor, its name, and the names in it to be removed, after making it accessible."""
    itself = os.open(name, _ITSELF | os.O_DIRECTORY, dir_fd=parent)
    try:
        os.chmod(f"/proc/self/fd/{itself}", 0o700)
        fd = os.open(b".", _DIRECTORY, dir_fd=itself)
    finally:
        os.close(itself)
    try:
        return fd, name, [os.fsencode(child) for child in os.listdir(fd)]
    except OSError:
        os.close(fd)
        raise
