"""The attributes that an operation returns are those on disk: the kernel caches them for a day, and reads the rest
later."""

from __future__ import annotations

import ctypes
import os
import stat
import struct
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from mystfuse.ext2.caller import Caller
from mystfuse.ext2.inode import Inode
from mystfuse.ext2.setattr import AttributeChanges
from mystfuse.volume.volume import Volume
from tests.support.ext2_editor import ROOT, Editor, MemoryDevice, at, kernel_mount, make_image
from tests.support.mounts import mounted

CALLER = Caller(70_000, 80_000)
NOW = 1_800_000_000_123_456_789
CLOCKS = {
    "now": NOW,
    "before 1901": -(1 << 31) * 10**9 - 5,
    "after 2038": (1 << 31) * 10**9 + 999_999_999,
    "after 2446": (1 << 34) * 10**9 + 1,
}
LARGE = 40 << 20

Operation = Callable[[Volume], Awaitable[Inode | None]]


def make(kind: int, name: bytes = b"new", target: bytes = b"", rdev: int = 0) -> Operation:
    return lambda volume: volume.create(ROOT, name, kind | 0o644, CALLER, rdev, target)


async def link(volume: Volume) -> Inode:
    return await volume.link((await at(volume, "file")).ino, ROOT, b"new", CALLER)


async def replace(volume: Volume) -> Inode | None:
    return await volume.rename(ROOT, b"other", ROOT, b"file", 0, CALLER)


def changing(**changes: int) -> Operation:
    async def change(volume: Volume) -> Inode:
        return await volume.set_attributes((await at(volume, "file")).ino, AttributeChanges(**changes), CALLER)

    return change


OPERATIONS: dict[str, Operation] = {
    "create": make(stat.S_IFREG),
    "mkdir": make(stat.S_IFDIR),
    "mknod": make(stat.S_IFCHR, rdev=os.makedev(300, 70_000)),
    "symlink": make(stat.S_IFLNK, target=b"short"),
    "long symlink": make(stat.S_IFLNK, target=b"long" * 100),
    "in a directory with a default ACL": lambda volume: _in_directory_with_acl(volume),
    "link": link,
    "unlink of one name": lambda volume: volume.remove(ROOT, b"hard", is_rmdir=False),
    "unlink of the last name": lambda volume: volume.remove(ROOT, b"other", is_rmdir=False),
    "rmdir": lambda volume: volume.remove(ROOT, b"directory", is_rmdir=True),
    "rename over a file": replace,
    "chmod": changing(mode=0o4711),
    "chown": changing(uid=65_536, gid=4_000_000_000),
    "longer": changing(size=LARGE),
    "shorter, in several steps": changing(size=1),
    "times": changing(atime_ns=NOW + 7, mtime_ns=-NOW),
    "times that no inode holds": changing(atime_ns=1 << 63, mtime_ns=-(1 << 62)),
}


async def _in_directory_with_acl(volume: Volume) -> Inode:
    default = struct.pack("<IHHIHHIHHIHHIHHI", 2, 1, 7, 0, 2, 5, 4, 4, 5, 0, 16, 5, 0, 32, 1, 0)
    directory = await at(volume, "directory")
    await volume.set_xattr(directory.ino, b"system.posix_acl_default", default, Caller(0, 0))
    return await volume.create(directory.ino, b"new", stat.S_IFDIR | 0o777, CALLER)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree = tmp_path_factory.mktemp("stored") / "tree"
    (tree / "directory").mkdir(parents=True)
    (tree / "other").write_bytes(b"other")
    (tree / "file").write_bytes(b"")
    # More blocks than one step frees.
    os.truncate(tree / "file", LARGE // 2)
    with (tree / "file").open("r+b") as file:
        file.write(b"x" * (6 << 20))
    os.link(tree / "file", tree / "hard")
    return tree


class Size(NamedTuple):
    inode: int
    extra: int | None = None
    """The i_extra_isize of all inodes, where the test needs another than mke2fs's."""


@pytest.fixture(scope="module", params=[Size(128), Size(256), Size(256, 0), Size(256, 8)], ids=str)
def image(request: pytest.FixtureRequest, tree: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    size: Size = request.param
    path = tmp_path_factory.mktemp("image") / "image"
    editor = Editor(
        make_image(path, "-b", "1024", "-I", str(size.inode), "-N", "64", size="16M", tree=tree).read_bytes()
    )
    for ino in range(1, 65) if size.extra is not None else ():
        editor.put("<H", editor.inode(ino) + 128, size.extra)
    return bytes(editor.data)


@pytest.mark.parametrize("clock", CLOCKS)
async def test_the_inode_that_an_operation_returns_is_the_one_that_is_read_afterwards(
    clock: str, image: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: CLOCKS[clock])
    for name, operation in OPERATIONS.items():
        volume = await Volume.open(MemoryDevice(image), 64 << 20)
        answered = await operation(volume)
        assert answered is not None, name
        assert answered == await volume.inode(answered.ino), name


# Through the kernel

LIBC = ctypes.CDLL(None, use_errno=True)
AT_FDCWD, AT_SYMLINK_NOFOLLOW, AT_STATX_FORCE_SYNC = -100, 0x100, 0x2000
STATX_BASIC_STATS = 0x7FF

Answer = tuple[int, ...]


def stored(path: Path) -> Answer:
    """What the file system stores, past the kernel's caches: mode, links, owner, size, blocks, times."""
    buffer = ctypes.create_string_buffer(256)
    flags = AT_SYMLINK_NOFOLLOW | AT_STATX_FORCE_SYNC
    assert LIBC.statx(AT_FDCWD, os.fsencode(path), flags, STATX_BASIC_STATS, buffer) == 0, ctypes.get_errno()
    links, uid, gid, mode = struct.unpack_from("<IIIH", buffer.raw, 16)
    size, blocks = struct.unpack_from("<QQ", buffer.raw, 40)
    times = [seconds * 10**9 + nanoseconds for seconds, nanoseconds in (
        struct.unpack_from("<qI", buffer.raw, offset) for offset in (64, 112, 96))]  # fmt: skip
    return mode, links, uid, gid, size, blocks, *times


def kept(path: Path) -> Answer:
    """The same attributes through the kernel's caches."""
    found = path.lstat()
    times = found.st_atime_ns, found.st_mtime_ns, found.st_ctime_ns
    return found.st_mode, found.st_nlink, found.st_uid, found.st_gid, found.st_size, found.st_blocks, *times


def _write(path: Path, data: bytes = b"data") -> None:
    with path.open("r+b", buffering=0) as file:
        file.write(data)


STEPS: dict[str, Callable[[Path], object]] = {
    "create": lambda d: (d / "created").touch(),
    "create and write": lambda d: (d / "filled").write_bytes(b"data"),
    "mkdir": lambda d: (d / "new-directory").mkdir(),
    "mknod": lambda d: os.mkfifo(d / "fifo"),
    "symlink": lambda d: (d / "symlink").symlink_to("target"),
    "link": lambda d: os.link(d / "other", d / "linked"),
    "write": lambda d: _write(d / "other"),
    "open to truncate": lambda d: (d / "filled").open("wb").close(),
    "truncate": lambda d: os.truncate(d / "other", 2),
    "chmod": lambda d: (d / "other").chmod(0o600),
    "chown": lambda d: os.chown(d / "other", 5, 6),
    "set times": lambda d: os.utime(d / "other", ns=(NOW + 7, NOW - 7)),
    "set times before 1970": lambda d: os.utime(d / "other", ns=(-5, -NOW)),
    "set times to now": lambda d: os.utime(d / "other"),
    "set times of a link": lambda d: os.utime(d / "symlink", ns=(NOW, NOW), follow_symlinks=False),
    "set an attribute": lambda d: os.setxattr(d / "other", "user.name", b"value"),
    "remove an attribute": lambda d: os.removexattr(d / "other", "user.name"),
    "rename": lambda d: (d / "created").rename(d / "renamed"),
    "rename across directories": lambda d: (d / "renamed").rename(d / "directory/renamed"),
    "rename over": lambda d: (d / "directory/renamed").rename(d / "linked"),
    "unlink": lambda d: (d / "hard").unlink(),
    "rmdir": lambda d: (d / "new-directory").rmdir(),
}
NAMES = (".", "created", "directory", "directory/renamed", "fifo", "file", "filled", "hard", "linked", "new-directory",
         "other", "renamed", "symlink")  # fmt: skip


@pytest.mark.parametrize("inode_size", [128, 256])
def test_what_the_kernel_keeps_is_what_is_stored_and_as_fine_as_its_own_ext2(
    inode_size: int, tree: Path, tmp_path: Path
) -> None:
    path = make_image(tmp_path / "image", "-b", "4096", "-I", str(inode_size), size="16M", tree=tree)
    ours = tmp_path / "ours"
    with ExitStack() as stack:
        copy = tmp_path / "copy"
        copy.write_bytes(path.read_bytes())
        stack.enter_context(mounted(path, ours, "--insecure"))
        kernels = stack.enter_context(kernel_mount(copy, tmp_path / "kernels", "rw"))
        for step, operation in STEPS.items():
            for directory in (ours, kernels):
                operation(directory)
            # No listing: it would give the kernel fresh attributes.
            for name in NAMES:
                found, expected = ours / name, kernels / name
                assert os.path.lexists(found) == os.path.lexists(expected)
                if not os.path.lexists(found):
                    continue
                assert kept(found) == stored(found), (step, found)
                assert stored(expected)[:4] == stored(found)[:4], (step, found)
                for mine, theirs in zip(stored(found)[6:], stored(expected)[6:], strict=True):
                    # Nanoseconds where the kernel's ext2 has them; not every file has a whole second by chance.
                    assert bool(mine % 10**9) <= (inode_size > 128), (step, found)
                    assert bool(theirs % 10**9) <= (inode_size > 128), (step, found)
        assert any(time_ns % 10**9 for time_ns in stored(ours / "filled")[6:]) == (inode_size > 128)
