"""Operations on a file system: on a mount, on another mount, and on a model made of dictionaries.

An operation is a small frozen dataclass whose ``apply`` does the same on anything that is a ``FileSystem``: on
``Mounted`` (a directory, by system calls) and on ``Model`` (in memory). The result is a plain value, so that results
compare with ``agree``. Sizes and offsets are symbolic (``At``), so that the same sequence meets the indirection
boundaries of every block size.

What is wanted to differ between mystfuse and the kernel's ext2 (docs/differences.md) is kept out, all of it, by not
being generated: more than 32000 links, fallocate(2) but for holes, and offsets near the largest file size. What is not
compared is at ``Mounted.status`` and ``Mounted.tree``.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from tests.support.model.contents import At, pattern
from tests.support.model.mounted import CannotTell, FileSystem, NotAFile
from tests.support.model.results import CAPABILITY, CAPABILITY_VALUE, OK, UNKNOWN, Failed

# Operations


@dataclass(frozen=True)
class Operation:
    """An operation. ``run`` does it on any file system and may raise OSError; ``apply`` never raises."""

    def apply(self, system: FileSystem) -> object:
        """Run it; returns a value, or the name of the error."""
        try:
            return self.run(system)
        except OSError as error:
            assert error.errno is not None
            return Failed(errno.errorcode[error.errno])
        except NotAFile:
            return "not a file"
        except CannotTell:
            return UNKNOWN

    def run(self, system: FileSystem) -> object:
        raise NotImplementedError

    def paths(self) -> list[str]:
        """The paths that it touches, and the directories around them."""
        fields: dict[str, Any] = vars(self)
        named = [fields[name] for name in ("path", "source", "target", "directory") if name in fields]
        return list(dict.fromkeys([*named, *(os.path.dirname(path) for path in named)]))


@contextmanager
def opened(system: FileSystem, path: str, flags: int, mode: int = 0) -> Iterator[int]:
    """A file that is open meanwhile."""
    handle = system.open(path, flags, mode)
    try:
        yield handle
    finally:
        system.close(handle)


@dataclass(frozen=True)
class Create(Operation):
    path: str
    mode: int = 0o644

    def run(self, system: FileSystem) -> object:
        with opened(system, self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, self.mode):
            return OK


@dataclass(frozen=True)
class Open(Operation):
    """Open with any flags, and close."""

    path: str
    flags: int
    mode: int = 0o644

    def run(self, system: FileSystem) -> object:
        with opened(system, self.path, self.flags, self.mode) as handle:
            return system.fstat(handle)


@dataclass(frozen=True)
class Mkdir(Operation):
    path: str
    mode: int = 0o755

    def run(self, system: FileSystem) -> object:
        system.mkdir(self.path, self.mode)
        return OK


@dataclass(frozen=True)
class Mknod(Operation):
    path: str
    mode: int
    major: int = 0
    minor: int = 0

    def run(self, system: FileSystem) -> object:
        system.mknod(self.path, self.mode, os.makedev(self.major, self.minor))
        return OK


@dataclass(frozen=True)
class Symlink(Operation):
    """A symbolic link to ``text``, ``times`` over."""

    path: str
    text: str
    times: int = 1

    def run(self, system: FileSystem) -> object:
        system.symlink(self.text * self.times, self.path)
        return system.readlink(self.path)


@dataclass(frozen=True)
class Readlink(Operation):
    path: str

    def run(self, system: FileSystem) -> object:
        return system.readlink(self.path)


@dataclass(frozen=True)
class Link(Operation):
    source: str
    path: str

    def run(self, system: FileSystem) -> object:
        system.link(self.source, self.path)
        return OK


@dataclass(frozen=True)
class Unlink(Operation):
    path: str

    def run(self, system: FileSystem) -> object:
        system.unlink(self.path)
        return OK


@dataclass(frozen=True)
class Rmdir(Operation):
    path: str

    def run(self, system: FileSystem) -> object:
        system.rmdir(self.path)
        return OK


@dataclass(frozen=True)
class Rename(Operation):
    source: str
    target: str
    flags: int = 0

    def run(self, system: FileSystem) -> object:
        system.rename(self.source, self.target, self.flags)
        return OK


@dataclass(frozen=True)
class List(Operation):
    path: str

    def run(self, system: FileSystem) -> object:
        return system.listdir(self.path)


@dataclass(frozen=True)
class Write(Operation):
    path: str
    at: At
    length: At
    fill: int = 0
    flags: int = 0
    """O_CREAT, O_TRUNC and O_APPEND, besides O_WRONLY."""

    def run(self, system: FileSystem) -> object:
        with opened(system, self.path, os.O_WRONLY | self.flags, 0o644) as handle:
            data = pattern(self.fill, self.length.resolve(system.block_size))
            return system.pwrite(handle, data, self.at.resolve(system.block_size))


@dataclass(frozen=True)
class Read(Operation):
    path: str
    at: At
    length: At

    def run(self, system: FileSystem) -> object:
        with opened(system, self.path, os.O_RDONLY) as handle:
            return system.pread(handle, self.length.resolve(system.block_size), self.at.resolve(system.block_size))


@dataclass(frozen=True)
class Seek(Operation):
    """Find the next data or the next hole."""

    path: str
    at: At
    whence: int

    def run(self, system: FileSystem) -> object:
        with opened(system, self.path, os.O_RDONLY) as handle:
            return system.lseek(handle, self.at.resolve(system.block_size), self.whence)


@dataclass(frozen=True)
class Punch(Operation):
    """Make a hole."""

    path: str
    at: At
    length: At

    def run(self, system: FileSystem) -> object:
        with opened(system, self.path, os.O_WRONLY) as handle:
            system.punch(handle, self.at.resolve(system.block_size), self.length.resolve(system.block_size))
        return OK


@dataclass(frozen=True)
class Copy(Operation):
    """Copy from file to file."""

    source: str
    path: str
    at: At
    into: At
    length: At

    def run(self, system: FileSystem) -> object:
        places = (place.resolve(system.block_size) for place in (self.at, self.into, self.length))
        with opened(system, self.source, os.O_RDONLY) as source, opened(system, self.path, os.O_WRONLY) as target:
            return system.copy(source, target, *places)


@dataclass(frozen=True)
class SetFlags(Operation):
    """Set the flags that ``MODELLED_FLAGS`` has; returns those that it has then."""

    path: str
    flags: int

    def run(self, system: FileSystem) -> object:
        with opened(system, self.path, os.O_RDONLY) as handle:
            system.set_flags(handle, self.flags)
            return system.get_flags(handle)


@dataclass(frozen=True)
class GetFlags(Operation):
    path: str

    def run(self, system: FileSystem) -> object:
        with opened(system, self.path, os.O_RDONLY) as handle:
            return system.get_flags(handle)


@dataclass(frozen=True)
class Truncate(Operation):
    path: str
    size: At

    def run(self, system: FileSystem) -> object:
        system.truncate(self.path, self.size.resolve(system.block_size))
        return OK


@dataclass(frozen=True)
class Chmod(Operation):
    path: str
    mode: int

    def run(self, system: FileSystem) -> object:
        system.chmod(self.path, self.mode)
        return OK


@dataclass(frozen=True)
class Chown(Operation):
    path: str
    uid: int
    gid: int
    follow: bool = True

    def run(self, system: FileSystem) -> object:
        system.chown(self.path, self.uid, self.gid, self.follow)
        return OK


@dataclass(frozen=True)
class Utime(Operation):
    path: str
    nanoseconds: int
    follow: bool = True

    def run(self, system: FileSystem) -> object:
        system.utime(self.path, self.nanoseconds, self.follow)
        return OK


@dataclass(frozen=True)
class SetXattr(Operation):
    path: str
    name: str
    size: int = 0
    fill: int = 0
    flags: int = 0
    follow: bool = True

    def run(self, system: FileSystem) -> object:
        value = CAPABILITY_VALUE if self.name == CAPABILITY else pattern(self.fill, self.size)
        system.setxattr(self.path, self.name, value, self.flags, self.follow)
        return OK


@dataclass(frozen=True)
class GetXattr(Operation):
    path: str
    name: str
    follow: bool = True

    def run(self, system: FileSystem) -> object:
        return system.getxattr(self.path, self.name, self.follow)


@dataclass(frozen=True)
class RemoveXattr(Operation):
    path: str
    name: str
    follow: bool = True

    def run(self, system: FileSystem) -> object:
        system.removexattr(self.path, self.name, self.follow)
        return OK


@dataclass(frozen=True)
class ListXattr(Operation):
    path: str
    follow: bool = True

    def run(self, system: FileSystem) -> object:
        return system.listxattr(self.path, self.follow)


def acl(*entries: tuple[int, int, int], version: int = 2) -> bytes:
    """An ACL as its extended attribute: tag, permissions and id of every entry."""
    return struct.pack("<I", version) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


OWNER, USER, GROUP, NAMED_GROUP, MASK, OTHER, NO_ID = 1, 2, 4, 8, 16, 32, 0xFFFFFFFF
ACLS: Final = {
    "mode": acl((OWNER, 6, NO_ID), (GROUP, 4, NO_ID), (OTHER, 0, NO_ID)),
    "user": acl((OWNER, 7, NO_ID), (USER, 5, 1234), (GROUP, 5, NO_ID), (MASK, 5, NO_ID), (OTHER, 0, NO_ID)),
    "both": acl(
        (OWNER, 7, NO_ID), (USER, 7, 0), (USER, 0, 70_000), (GROUP, 2, NO_ID), (NAMED_GROUP, 1, 5), (MASK, 6, NO_ID),
        (OTHER, 4, NO_ID),
    ),
    "many": acl(
        (OWNER, 7, NO_ID), *((USER, 4, number) for number in range(60)), (GROUP, 5, NO_ID), (MASK, 7, NO_ID),
        (OTHER, 5, NO_ID),
    ),
    "too many": acl(
        (OWNER, 7, NO_ID), *((USER, 4, number) for number in range(500)), (GROUP, 5, NO_ID), (MASK, 7, NO_ID),
        (OTHER, 5, NO_ID),
    ),
    "none": acl(),
    "no mask": acl((OWNER, 7, NO_ID), (USER, 5, 1234), (GROUP, 5, NO_ID), (OTHER, 0, NO_ID)),
    "unsorted": acl((OTHER, 0, NO_ID), (OWNER, 7, NO_ID), (GROUP, 5, NO_ID)),
    "cut off": acl((OWNER, 6, NO_ID), (GROUP, 4, NO_ID), (OTHER, 0, NO_ID))[:-1],
    "version 3": acl((OWNER, 6, NO_ID), (GROUP, 4, NO_ID), (OTHER, 0, NO_ID), version=3),
}  # fmt: skip


@dataclass(frozen=True)
class SetAcl(Operation):
    path: str
    name: str
    acl: str
    follow: bool = True

    def run(self, system: FileSystem) -> object:
        system.setxattr(self.path, self.name, ACLS[self.acl], 0, self.follow)
        return OK


def numbered_name(number: int, length: int) -> str:
    """One of the names with which directories are filled."""
    return f"{number:04}~{length - 4}"


def is_numbered(path: str) -> bool:
    """Whether a path ends in such a name."""
    return os.path.basename(path)[:4].isdigit()


@dataclass(frozen=True)
class Fill(Operation):
    """Make many names in a directory, so that it grows and its index splits."""

    directory: str
    count: int
    length: int

    def run(self, system: FileSystem) -> object:
        results = []
        for number in range(self.count):
            path = os.path.join(self.directory, numbered_name(number, self.length))
            results.append(Mknod(path, stat.S_IFREG | 0o600).apply(system))
        return results


@dataclass(frozen=True)
class Drain(Operation):
    """Remove names from a directory that was filled: every ``step``-th."""

    directory: str
    count: int
    length: int
    step: int

    def run(self, system: FileSystem) -> object:
        results = []
        for number in range(0, self.count, self.step):
            results.append(Unlink(os.path.join(self.directory, numbered_name(number, self.length))).apply(system))
        return results


@dataclass(frozen=True)
class LookAt(Operation):
    """The status of a path; it follows every operation for the paths that this names."""

    path: str

    def run(self, system: FileSystem) -> object:
        return system.lstat(self.path)
