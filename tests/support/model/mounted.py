"""What operations run on (``FileSystem``), and a mounted directory as one."""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import stat
import struct
from dataclasses import dataclass, field
from typing import Protocol

from tests.support.model.contents import windows
from tests.support.model.results import (
    COMPARE_BLOCKS,
    MODELLED_FLAGS,
    NODE,
    UNKNOWN,
    Status,
    Tree,
    failure,
    libc,
    spell,
)

_PUNCH_HOLE, _KEEP_SIZE = 2, 1
_GETFLAGS, _SETFLAGS = 0x80086601, 0x40086602
_AT_SYMLINK_FOLLOW = 0x400

# File systems that operations run on


class FileSystem(Protocol):
    """The system calls that operations are made of, on paths below one directory."""

    block_size: int
    slots: dict[int, int]
    """Open files that operations know by number."""

    def open(self, path: str, flags: int, mode: int = 0) -> int: ...
    def close(self, handle: int) -> None: ...
    def pread(self, handle: int, length: int, offset: int) -> bytes: ...
    def pwrite(self, handle: int, data: bytes, offset: int) -> int: ...
    def ftruncate(self, handle: int, size: int) -> None: ...
    def fstat(self, handle: int) -> Status: ...
    def fchmod(self, handle: int, mode: int) -> None: ...
    def fsync(self, handle: int) -> None: ...
    def lseek(self, handle: int, offset: int, whence: int) -> int: ...
    def punch(self, handle: int, offset: int, length: int) -> None: ...
    def copy(self, source: int, target: int, offset: int, into: int, length: int) -> int: ...
    def get_flags(self, handle: int) -> int: ...
    def set_flags(self, handle: int, flags: int) -> None: ...
    def open_nameless(self, directory: str, mode: int) -> int: ...
    def link_handle(self, handle: int, path: str) -> None: ...
    def lstat(self, path: str) -> Status: ...
    def listdir(self, path: str) -> list[str]: ...
    def readlink(self, path: str) -> str: ...
    def mkdir(self, path: str, mode: int) -> None: ...
    def mknod(self, path: str, mode: int, device: int) -> None: ...
    def symlink(self, target: str, path: str) -> None: ...
    def link(self, source: str, path: str) -> None: ...
    def unlink(self, path: str) -> None: ...
    def rmdir(self, path: str) -> None: ...
    def rename(self, source: str, target: str, flags: int) -> None: ...
    def truncate(self, path: str, size: int) -> None: ...
    def chmod(self, path: str, mode: int) -> None: ...
    def chown(self, path: str, uid: int, gid: int, follow: bool) -> None: ...
    def utime(self, path: str, nanoseconds: int, follow: bool) -> None: ...
    def setxattr(self, path: str, name: str, value: bytes, flags: int, follow: bool) -> None: ...
    def getxattr(self, path: str, name: str, follow: bool) -> object: ...
    def removexattr(self, path: str, name: str, follow: bool) -> None: ...
    def listxattr(self, path: str, follow: bool) -> object: ...


class NotAFile(Exception):
    """The opened file is neither a regular file nor a directory: the kernel alone handles it."""


class CannotTell(Exception):
    """The model does not know the result, but knows that nothing changes."""


@dataclass
class Mounted:
    """A directory in a mounted file system. Files are opened with O_NONBLOCK, because of FIFOs."""

    root: str
    block_size: int
    has_modelled_blocks: bool = True
    """Whether what a file takes says nothing of where its blocks are."""
    slots: dict[int, int] = field(default_factory=dict)
    punched: set[int] = field(default_factory=set)
    """Inodes in which holes were made: the kernel leaves some of their indirect blocks without pointers."""

    def _at(self, path: str) -> str:
        return os.path.join(self.root, spell(path))

    def open(self, path: str, flags: int, mode: int = 0) -> int:
        handle = os.open(self._at(path), flags | os.O_NONBLOCK | os.O_NOCTTY, mode)
        if NODE(os.fstat(handle).st_mode) not in (stat.S_IFREG, stat.S_IFDIR):
            os.close(handle)
            raise NotAFile
        return handle

    def close(self, handle: int) -> None:
        os.close(handle)

    def pread(self, handle: int, length: int, offset: int) -> bytes:
        return os.pread(handle, length, offset)

    def pwrite(self, handle: int, data: bytes, offset: int) -> int:
        return os.pwrite(handle, data, offset)

    def ftruncate(self, handle: int, size: int) -> None:
        os.ftruncate(handle, size)

    def status(self, found: os.stat_result) -> Status:
        """The compared fields of a status: type and mode, owner, group, links, size, blocks, device. Not the inode
        number, nor any time (see ``differences``), nor size and blocks of a directory, which depend on how it is
        indexed."""
        directory = stat.S_ISDIR(found.st_mode)
        device = stat.S_ISCHR(found.st_mode) or stat.S_ISBLK(found.st_mode)
        has_blocks = COMPARE_BLOCKS and self.has_modelled_blocks and not directory and found.st_ino not in self.punched
        return (
            found.st_mode,
            found.st_uid,
            found.st_gid,
            found.st_nlink,
            0 if directory else found.st_size,
            found.st_blocks if has_blocks else UNKNOWN,
            found.st_rdev if device else 0,
        )

    def fstat(self, handle: int) -> Status:
        return self.status(os.fstat(handle))

    def fchmod(self, handle: int, mode: int) -> None:
        os.fchmod(handle, mode)

    def fsync(self, handle: int) -> None:
        os.fsync(handle)

    def lseek(self, handle: int, offset: int, whence: int) -> int:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            # What positions in a directory mean is the file system's own business.
            raise NotAFile
        return os.lseek(handle, offset, whence)

    def punch(self, handle: int, offset: int, length: int) -> None:
        self.punched.add(os.fstat(handle).st_ino)
        if libc.fallocate(handle, _PUNCH_HOLE | _KEEP_SIZE, ctypes.c_long(offset), ctypes.c_long(length)):
            raise failure(ctypes.get_errno())

    def copy(self, source: int, target: int, offset: int, into: int, length: int) -> int:
        copied = os.copy_file_range(source, target, length, offset, into)
        while 0 < copied < length:
            count = os.copy_file_range(source, target, length - copied, offset + copied, into + copied)
            if not count:
                break
            copied += count
        return copied

    def get_flags(self, handle: int) -> int:
        number: int = struct.unpack_from("<I", fcntl.ioctl(handle, _GETFLAGS, bytes(8)))[0]
        return number & MODELLED_FLAGS

    def set_flags(self, handle: int, flags: int) -> None:
        # As chattr does: flags that say what an inode is stay.
        (present,) = struct.unpack("<Q", fcntl.ioctl(handle, _GETFLAGS, bytes(8)))
        fcntl.ioctl(handle, _SETFLAGS, struct.pack("<Q", present & ~MODELLED_FLAGS | flags))

    def open_nameless(self, directory: str, mode: int) -> int:
        return os.open(self._at(directory), os.O_TMPFILE | os.O_RDWR, mode)

    def link_handle(self, handle: int, path: str) -> None:
        here, names = -100, (f"/proc/self/fd/{handle}".encode(), os.fsencode(self._at(path)))
        if libc.linkat(here, names[0], here, names[1], _AT_SYMLINK_FOLLOW):
            raise failure(ctypes.get_errno())

    def lstat(self, path: str) -> Status:
        return self.status(os.lstat(self._at(path)))

    def listdir(self, path: str) -> list[str]:
        return sorted(os.listdir(self._at(path)))

    def readlink(self, path: str) -> str:
        return os.readlink(self._at(path))

    def mkdir(self, path: str, mode: int) -> None:
        os.mkdir(self._at(path), mode)

    def mknod(self, path: str, mode: int, device: int) -> None:
        os.mknod(self._at(path), mode, device)

    def symlink(self, target: str, path: str) -> None:
        os.symlink(target, self._at(path))

    def link(self, source: str, path: str) -> None:
        os.link(self._at(source), self._at(path), follow_symlinks=False)

    def unlink(self, path: str) -> None:
        os.unlink(self._at(path))

    def rmdir(self, path: str) -> None:
        os.rmdir(self._at(path))

    def rename(self, source: str, target: str, flags: int) -> None:
        here, names = -100, (os.fsencode(self._at(source)), os.fsencode(self._at(target)))
        if libc.renameat2(here, names[0], here, names[1], flags):
            raise failure(ctypes.get_errno())

    def truncate(self, path: str, size: int) -> None:
        os.truncate(self._at(path), size)

    def chmod(self, path: str, mode: int) -> None:
        os.chmod(self._at(path), mode)

    def chown(self, path: str, uid: int, gid: int, follow: bool) -> None:
        os.chown(self._at(path), uid, gid, follow_symlinks=follow)

    def utime(self, path: str, nanoseconds: int, follow: bool) -> None:
        os.utime(self._at(path), ns=(nanoseconds, nanoseconds), follow_symlinks=follow)

    def setxattr(self, path: str, name: str, value: bytes, flags: int, follow: bool) -> None:
        os.setxattr(self._at(path), spell(name), value, flags, follow_symlinks=follow)

    def getxattr(self, path: str, name: str, follow: bool) -> object:
        return os.getxattr(self._at(path), spell(name), follow_symlinks=follow)

    def removexattr(self, path: str, name: str, follow: bool) -> None:
        os.removexattr(self._at(path), spell(name), follow_symlinks=follow)

    def listxattr(self, path: str, follow: bool) -> object:
        return sorted(os.listxattr(self._at(path), follow_symlinks=follow))

    def tree(self) -> Tree:
        """Everything below the root, and the root: path -> field -> value."""
        found: Tree = {}
        by_inode: dict[int, str] = {}
        pending = [""]
        while pending:
            path = pending.pop()
            entry = self._describe(path, by_inode)
            found[path] = entry
            status_of = entry["status"]
            assert isinstance(status_of, tuple)
            if stat.S_ISDIR(status_of[0]):
                with os.scandir(self._at(path)) as listing:
                    entries = sorted(listing, key=lambda one: one.name)
                entry["names"] = [(one.name, self._listed_type(one)) for one in entries]
                pending += reversed([os.path.join(path, one.name) for one in entries])
        return found

    @staticmethod
    def _listed_type(entry: os.DirEntry[str]) -> tuple[bool, bool, bool]:
        """The type that the listing itself states, as far as Python shows it."""
        return (
            entry.is_dir(follow_symlinks=False),
            entry.is_file(follow_symlinks=False),
            entry.is_symlink(),
        )

    def _describe(self, path: str, by_inode: dict[int, str]) -> dict[str, object]:
        full = self._at(path)
        found = os.lstat(full)
        entry: dict[str, object] = {
            "status": self.status(found),
            "mtime": found.st_mtime_ns,
            # Not the inode number, but which names share it.
            "same as": by_inode.setdefault(found.st_ino, path),
            "xattrs": {
                name: os.getxattr(full, name, follow_symlinks=False)
                for name in sorted(os.listxattr(full, follow_symlinks=False))
            },
        }
        if stat.S_ISLNK(found.st_mode):
            entry["target"] = os.readlink(full)
        elif stat.S_ISREG(found.st_mode):
            digest = hashlib.sha256()
            with open(full, "rb", buffering=0) as file:
                for offset, length in windows(found.st_size, self.block_size):
                    data = os.pread(file.fileno(), length, offset)
                    assert len(data) == length, f"{path!r}: {len(data)} bytes at {offset} instead of {length}"
                    digest.update(data)
            entry["sha256"] = digest.hexdigest()
        return entry
