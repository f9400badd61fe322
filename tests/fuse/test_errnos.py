"""Every errno, compared: the same call on our mount and on the kernel's own mount of the same image.

A case says what the kernel answers, so that no case passes because of a slip in it, and what we answer only where that
is another thing on purpose (docs/differences.md). After every call both sides must show the same names, modes, link
counts and sizes: a call that fails has left nothing behind.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import shutil
import stat
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from errno import (
    E2BIG,
    EACCES,
    EAGAIN,
    EBADF,
    EBUSY,
    EEXIST,
    EFBIG,
    EINVAL,
    EISDIR,
    ELOOP,
    ENAMETOOLONG,
    ENODATA,
    ENOENT,
    ENOSPC,
    ENOTDIR,
    ENOTEMPTY,
    ENOTTY,
    ENXIO,
    EOPNOTSUPP,
    EPERM,
    ERANGE,
    EROFS,
    ETXTBSY,
    EXDEV,
)
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from removal import temporary_directory

from tests.conftest import GROUP, USER, mounted, run

DONE = "done"
"""The answer of a call that works and has nothing to say."""
OTHER = 1234
"""A user who is neither root nor the one that acts."""
SUPPLEMENTARY = 4321
"""A group that the acting user is in as well."""
LONG = "n" * 256
"""A name that is a byte too long."""
AT_FDCWD = -100
RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4
FS_IOC_GETFLAGS, FS_IOC_SETFLAGS = 0x80086601, 0x40086602
F_OFD_SETLK = 37
CAPABILITY = struct.pack("<5I", 0x02000000, 1, 0, 0, 0)
ACCESS_ACL, DEFAULT_ACL = "system.posix_acl_access", "system.posix_acl_default"
MAX_FILE_SIZES = {1024: 17_247_252_480, 4096: 2_196_873_666_560}
"""By block size: what the block map reaches, and for 4 KiB blocks what i_blocks can count, indirect blocks included."""

_libc = ctypes.CDLL(None, use_errno=True)


# Mounts


@dataclass(frozen=True)
class Pair:
    """The two mounts of one image."""

    kernel: Path
    ours: Path
    block_size: int
    unchanged: dict[str, list[str]] = field(default_factory=dict)
    """Directories in which calls have only failed, by what is in them."""

    def sides(self) -> tuple[Path, Path]:
        return self.kernel, self.ours


@contextmanager
def open_directory() -> Iterator[Path]:
    """A directory that other users can get at."""
    with temporary_directory("mystfuse-test-errnos-") as name:
        name.chmod(0o755)
        yield name


@contextmanager
def pair_of(image: Path, block_size: int, read_only: bool = False) -> Iterator[Pair]:
    """Both mounts of an image: the kernel's of a copy, with a loop device that goes with it, and ours."""
    with open_directory() as directory:
        copy, kernel = directory / "copy", directory / "kernel"
        kernel.mkdir()
        run("cp", "--sparse=always", image, copy)
        mode = "ro" if read_only else "rw"
        run("mount", "-t", "ext2", "-o", f"loop,{mode},noatime,acl,user_xattr", copy, kernel)
        try:
            arguments = ("--insecure", "--allow-other", "-o", f"suid,dev,{mode}")
            with mounted(image, directory / "ours", *arguments) as ours:
                yield Pair(kernel, ours, block_size)
        finally:
            if run("umount", kernel, check=False).returncode:
                run("umount", "--lazy", kernel)


def make_image(directory: Path, source: Path, block_size: int, size: str, *options: str) -> Path:
    """An EXT2 image of what is in ``source``."""
    image = directory / "image"
    run("mke2fs", "-q", "-F", "-t", "ext2", "-b", str(block_size), "-d", source, *options, image, size)
    return image


@contextmanager
def small_pair(block_size: int, *options: str) -> Iterator[Pair]:
    """Both mounts of an empty image that is soon full."""
    with open_directory() as directory:
        (directory / "source").mkdir()
        image = make_image(directory, directory / "source", block_size, "2M", *options)
        with pair_of(image, block_size) as pair:
            yield pair


def make_tree(directory: Path) -> None:
    """One of every kind."""
    (directory / "file").write_bytes(b"content\n")
    (directory / "other").touch()
    (directory / "directory").mkdir()
    (directory / "full/sub/deep").mkdir(parents=True)
    (directory / "full/x").touch()
    (directory / "link").symlink_to("file")
    (directory / "dangling").symlink_to("missing")
    (directory / "loop").symlink_to("loop")
    os.mkfifo(directory / "fifo")
    for name in ("file", "full"):
        os.setxattr(directory / name, "user.u", b"value")


def make_tree_of_users(directory: Path) -> None:
    """Files and directories of root, of the acting user and of another, in a directory that is root's."""

    def make(name: str, mode: int, uid: int = 0, gid: int = 0) -> None:
        path = directory / name.removesuffix("/")
        if name.endswith("/"):
            path.mkdir()
        else:
            path.write_bytes(b"content\n")
        os.chown(path, uid, gid)
        path.chmod(mode)

    for arguments in (
        ("root", 0o644),
        ("secret", 0o600),
        ("writable", 0o666),
        ("writable-setgid", 0o2666),
        ("writable-setid", 0o6777),
        ("mine", 0o644, USER, GROUP),
        ("mine-of-roots-group", 0o644, USER, 0),
        ("mine-setid", 0o6777, USER, GROUP),
        ("mine-setgid-of-roots-group", 0o2666, USER, 0),
        ("roots/", 0o755),
        ("roots/directory/", 0o755),
        ("roots/file", 0o644),
        ("closed/", 0o700),
        ("closed/file", 0o666),
        ("open/", 0o777),
        ("setgid/", 0o2777, 0, OTHER),
        ("sticky/", 0o1777),
        ("sticky/mine", 0o644, USER, GROUP),
        ("sticky/others", 0o666, OTHER, OTHER),
        ("sticky/others-directory/", 0o777, OTHER, OTHER),
    ):
        make(*arguments)
    os.setxattr(directory / "root", "trusted.t", b"value")
    os.setxattr(directory / "root", "user.u", b"value")
    os.setxattr(directory / "secret", "user.u", b"value")


CONTENTS = {"tree": make_tree, "users": make_tree_of_users}
COPIES = {"tree": 160, "users": 80}
"""How many there are, each for one call that changes something and for any number of calls that do not."""


def copies(contents: str) -> list[str]:
    return [f"{contents}-{number}" for number in range(COPIES[contents])]


FLAGS = {"immutable": 0x10, "append": 0x20}
LINKS_COUNTS = (31_999, 32_000, 64_999, 65_000)


def make_source(source: Path) -> None:
    """What calls alone cannot make comes with the image: inodes with flags, and with many links."""
    for contents, make in CONTENTS.items():
        for name in (contents, *copies(contents)):
            (source / name).mkdir(parents=True)
            make(source / name)
    for name in FLAGS:
        (source / name).write_bytes(b"content\n")
        (source / name).chmod(0o644)
        os.setxattr(source / name, "user.u", b"value")
        (source / f"{name}-directory/sub").mkdir(parents=True)
        (source / f"{name}-directory/inside").touch()
        (source / f"{name}-directory").chmod(0o777)
    for number in LINKS_COUNTS:
        (source / f"links-{number}").touch()
        (source / f"directory-{number}").mkdir()


@pytest.fixture(scope="module")
def source() -> Iterator[Path]:
    """What is in the image that most tests use."""
    with open_directory() as directory:
        make_source(directory / "source")
        yield directory / "source"


@pytest.fixture(scope="module", params=(1024, 4096))
def image(request: pytest.FixtureRequest, source: Path) -> Iterator[tuple[Path, int]]:
    """The image that most tests use, and its block size."""
    with open_directory() as directory:
        path = make_image(directory, source, request.param, "32M", "-N", "16384")
        commands = [
            *(f"sif /{name}{what} flags {flags:#x}" for name, flags in FLAGS.items() for what in ("", "-directory")),
            *(
                f"sif /{kind}-{number} links_count {number}"
                for number in LINKS_COUNTS
                for kind in ("links", "directory")
            ),
        ]
        (directory / "commands").write_text("\n".join(commands))
        run("debugfs", "-w", "-f", directory / "commands", path)
        yield path, request.param


@pytest.fixture(scope="module")
def pair(image: tuple[Path, int]) -> Iterator[Pair]:
    with pair_of(*image) as pair:
        pair.unchanged.update((contents, copies(contents)) for contents in CONTENTS)
        yield pair


@pytest.fixture(scope="module")
def read_only_pair(image: tuple[Path, int]) -> Iterator[Pair]:
    with pair_of(*image, read_only=True) as pair:
        yield pair


@pytest.fixture(scope="module", autouse=True)
def no_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


# Calls


Acting = Callable[[], AbstractContextManager[None]]


@contextmanager
def acting_as(uid: int, gid: int, *groups: int) -> Iterator[None]:
    """Do what is done inside as another user, as far as files are concerned."""
    before = os.getgroups()
    os.setgroups(groups)
    os.setegid(gid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(before)


as_user = partial(acting_as, USER, GROUP, SUPPLEMENTARY)


@contextmanager
def opened(path: Path, flags: int, mode: int = 0o644) -> Iterator[int]:
    handle = os.open(path, flags, mode)
    try:
        yield handle
    finally:
        os.close(handle)


def touch_open(path: Path | str, flags: int, mode: int = 0o644) -> None:
    """Open and close."""
    with opened(Path(path), flags, mode):
        pass


def open_literally(path: str, flags: int) -> None:
    """As ``touch_open``, with a trailing slash left where it is."""
    os.close(os.open(path, flags, 0o644))


def write_at(path: Path, data: bytes, offset: int = 0, flags: int = os.O_WRONLY) -> int:
    with opened(path, flags) as handle:
        return os.pwrite(handle, data, offset)


def libc(name: str, *arguments: Any) -> int:
    """Call what Python does not offer."""
    result: int = getattr(_libc, name)(*arguments)
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def rename(old: Path | str, new: Path | str, flags: int = 0) -> None:
    libc("renameat2", AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags)


def fallocate(path: Path, mode: int) -> None:
    with opened(path, os.O_RDWR) as handle:
        libc("fallocate", handle, mode, ctypes.c_long(0), ctypes.c_long(100_000))


def acl(*entries: tuple[int, int, int], version: int = 2) -> bytes:
    """The value of an ACL attribute: tags, permissions, ids."""
    return struct.pack("<I", version) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


NO_ID = 0xFFFFFFFF
MINIMAL_ACL = acl((0x01, 6, NO_ID), (0x04, 4, NO_ID), (0x20, 4, NO_ID))
NAMED_ACL = acl((0x01, 6, NO_ID), (0x02, 6, OTHER), (0x04, 4, NO_ID), (0x10, 6, NO_ID), (0x20, 4, NO_ID))


def outcome(call: Callable[[], object]) -> str:
    """What a call answers: an errno by name, or its result."""
    try:
        result = call()
    except OSError as error:
        assert error.errno is not None
        return errno.errorcode[error.errno]
    return DONE if result is None else str(result)


State = list[tuple[str, str, int, int]]


def state(directory: Path) -> State:
    """Every name below a directory with its mode, links and size."""
    found = []
    for parent, directories, files in os.walk(directory):
        for name in (*directories, *files):
            path = os.path.join(parent, name)
            status = os.lstat(path)
            found.append((os.path.relpath(path, directory), oct(status.st_mode), status.st_nlink, status.st_size))
    return sorted(found)


@dataclass(frozen=True)
class Case:
    """A call in a directory, and its answer."""

    name: str
    call: Callable[[Path], object]
    kernel: int | str = DONE
    ours: int | str | None = None
    """Where it is not the kernel's, on purpose."""


class Differs(AssertionError):
    """Our answer is not what it should be."""


def cases(*table: Case) -> list[Any]:
    """The parameters of a test."""
    names = [case.name for case in table]
    assert len(set(names)) == len(names), "two cases have one name"
    parameters = []
    for case in table:
        parameters.append(pytest.param(case, id=case.name.replace(" ", "-")))
    return parameters


def spell(answer: int | str) -> str:
    """As ``outcome`` has it."""
    return errno.errorcode[answer] if isinstance(answer, int) else answer


def check(pair: Pair, case: Case, path: str, acting: Acting = nullcontext) -> None:
    """Make the call on both sides and compare the answers."""
    answers = []
    for root in pair.sides():
        with acting():
            answers.append(outcome(partial(case.call, root / path)))
    kernel, ours = answers
    assert kernel == spell(case.kernel), "the kernel answers another thing: the case is wrong"
    expected = spell(case.kernel if case.ours is None else case.ours)
    if ours != expected:
        raise Differs(f"{ours} instead of {expected}")


def check_in(contents: str, pair: Pair, case: Case, acting: Acting = nullcontext) -> None:
    """``check`` in one of the CONTENTS, and compare what the call leaves: nothing, if it fails."""
    assert pair.unchanged[contents], "all are used: more COPIES are needed"
    name = pair.unchanged[contents].pop()
    before = state(pair.kernel / name)
    check(pair, case, name, acting)
    if case.ours is None:
        kernel, ours = state(pair.kernel / name), state(pair.ours / name)
        assert ours == kernel
        if isinstance(case.kernel, int) and before == kernel:
            pair.unchanged[contents].append(name)


# Names


def in_turn(*calls: Callable[[Path], object]) -> Callable[[Path], object]:
    """Several calls, of which the last one counts."""

    def act(directory: Path) -> object:
        *before, last = calls
        for call in before:
            call(directory)
        return last(directory)

    return act


def mknod(name: str, kind: int) -> Callable[[Path], None]:
    return lambda d: os.mknod(f"{d}/{name}", kind | 0o640, os.makedev(300, 70_000))


SPECIAL_TYPES = {
    "regular file": stat.S_IFREG,
    "fifo": stat.S_IFIFO,
    "socket": stat.S_IFSOCK,
    "character device": stat.S_IFCHR,
    "block device": stat.S_IFBLK,
}
CREATE = os.O_CREAT | os.O_WRONLY


def in_removed_directory(call: Callable[[int], object]) -> Callable[[Path], object]:
    """Call with a handle of a directory that has been removed."""

    def in_removed(directory: Path) -> object:
        with opened(directory / "directory", os.O_RDONLY | os.O_DIRECTORY) as handle:
            (directory / "directory").rmdir()
            return call(handle)

    return in_removed


def in_removed_cwd(call: Callable[[Path], object]) -> Callable[[Path], object]:
    """Call where the current directory has been removed."""

    def in_removed(directory: Path) -> object:
        with opened(Path("."), os.O_RDONLY | os.O_DIRECTORY) as before:
            os.chdir(directory / "directory")
            try:
                os.rmdir(directory / "directory")
                return call(directory)
            finally:
                os.fchdir(before)

    return in_removed


CREATING = cases(
    Case("create exclusively", lambda d: touch_open(d / "new", CREATE | os.O_EXCL)),
    Case("create exclusively over a file", lambda d: touch_open(d / "file", CREATE | os.O_EXCL), EEXIST),
    Case("create exclusively over a directory", lambda d: touch_open(d / "full", CREATE | os.O_EXCL), EEXIST),
    Case("create exclusively over a link", lambda d: touch_open(d / "dangling", CREATE | os.O_EXCL), EEXIST),
    Case("create through a dangling link", lambda d: touch_open(d / "dangling", CREATE)),
    Case("create over a directory", lambda d: touch_open(d / "full", CREATE), EISDIR),
    Case("create in a missing directory", lambda d: touch_open(d / "missing/new", CREATE), ENOENT),
    Case("create in a file", lambda d: touch_open(d / "file/new", CREATE), ENOTDIR),
    Case("create with a slash", lambda d: open_literally(f"{d}/new/", CREATE), EISDIR),
    Case("create and be a directory", lambda d: touch_open(d / "new", CREATE | os.O_DIRECTORY), EINVAL),
    Case("create through a loop", lambda d: touch_open(d / "loop", CREATE), ELOOP),
    Case("mkdir", lambda d: os.mkdir(d / "new")),
    Case("mkdir over a file", lambda d: os.mkdir(d / "file"), EEXIST),
    Case("mkdir over a directory", lambda d: os.mkdir(d / "full"), EEXIST),
    Case("mkdir over a link", lambda d: os.mkdir(d / "dangling"), EEXIST),
    Case("mkdir in a missing directory", lambda d: os.mkdir(d / "missing/new"), ENOENT),
    Case("mkdir in a file", lambda d: os.mkdir(d / "file/new"), ENOTDIR),
    Case("mkdir with a slash", lambda d: os.mkdir(f"{d}/new/")),
    Case("mkdir of dot", lambda d: os.mkdir(f"{d}/."), EEXIST),
    Case("mkdir of dotdot", lambda d: os.mkdir(f"{d}/.."), EEXIST),
    Case("mkdir without a name", lambda d: os.mkdir(""), ENOENT),
    *(
        case
        for name, kind in SPECIAL_TYPES.items()
        for case in (
            Case(f"mknod of a {name}", mknod("new", kind)),
            Case(f"mknod of a {name} over a file", mknod("file", kind), EEXIST),
            Case(f"mknod of a {name} over a directory", mknod("full", kind), EEXIST),
            Case(f"mknod of a {name} in a file", mknod("file/new", kind), ENOTDIR),
            Case(f"mknod of a {name} nowhere", mknod("missing/new", kind), ENOENT),
            Case(f"mknod of a {name} with a slash", mknod("new/", kind), ENOENT),
        )
    ),
    Case("mknod of a directory", lambda d: os.mknod(d / "new", stat.S_IFDIR | 0o755), EPERM),
    Case("mknod of a link", lambda d: os.mknod(d / "new", stat.S_IFLNK | 0o777), EINVAL),
    Case("mknod of no type there is", lambda d: os.mknod(d / "new", 0o070_000), EINVAL),
    Case("symlink", lambda d: os.symlink("target", d / "new")),
    Case("symlink over a file", lambda d: os.symlink("target", d / "file"), EEXIST),
    Case("symlink over a directory", lambda d: os.symlink("target", d / "full"), EEXIST),
    Case("symlink over a link", lambda d: os.symlink("target", d / "dangling"), EEXIST),
    Case("symlink in a missing directory", lambda d: os.symlink("target", d / "missing/new"), ENOENT),
    Case("symlink in a file", lambda d: os.symlink("target", d / "file/new"), ENOTDIR),
    Case("symlink to nothing", lambda d: os.symlink("", d / "new"), ENOENT),
    Case("symlink with a slash", lambda d: os.symlink("target", f"{d}/new/"), ENOENT),
    Case("link", lambda d: os.link(d / "file", d / "new")),
    Case("link to a symlink", lambda d: os.link(d / "link", d / "new", follow_symlinks=False)),
    Case("link to a fifo", lambda d: os.link(d / "fifo", d / "new")),
    Case("link to a directory", lambda d: os.link(d / "full", d / "new"), EPERM),
    Case("link over a file", lambda d: os.link(d / "file", d / "other"), EEXIST),
    Case("link over itself", lambda d: os.link(d / "file", d / "file"), EEXIST),
    Case("link over a directory", lambda d: os.link(d / "file", d / "full"), EEXIST),
    Case("link to what is missing", lambda d: os.link(d / "missing", d / "new"), ENOENT),
    Case("link in a missing directory", lambda d: os.link(d / "file", d / "missing/new"), ENOENT),
    Case("link in a file", lambda d: os.link(d / "file", d / "other/new"), ENOTDIR),
    Case("link to another file system", lambda d: os.link(d / "file", d.parents[1] / "new"), EXDEV),
    Case("link from another file system", lambda d: os.link(d.parents[1] / "copy", d / "new"), EXDEV),
    Case("temporary file", lambda d: touch_open(d, os.O_TMPFILE | os.O_RDWR), DONE, ours=EOPNOTSUPP),
)

REMOVING = cases(
    Case("unlink", lambda d: os.unlink(d / "file")),
    Case("unlink a fifo", lambda d: os.unlink(d / "fifo")),
    Case("unlink a link", lambda d: os.unlink(d / "dangling")),
    Case("unlink a directory", lambda d: os.unlink(d / "full"), EISDIR),
    Case("unlink what is missing", lambda d: os.unlink(d / "missing"), ENOENT),
    Case("unlink in a file", lambda d: os.unlink(d / "file/x"), ENOTDIR),
    Case("unlink with a slash", lambda d: os.unlink(f"{d}/file/"), ENOTDIR),
    Case("unlink dot", lambda d: os.unlink(f"{d}/."), EISDIR),
    Case("rmdir", lambda d: os.rmdir(d / "directory")),
    Case("rmdir a file", lambda d: os.rmdir(d / "file"), ENOTDIR),
    Case(
        "rmdir a link to a directory",
        in_turn(lambda d: os.symlink("full", d / "l"), lambda d: os.rmdir(d / "l")),
        ENOTDIR,
    ),
    Case("rmdir what is not empty", lambda d: os.rmdir(d / "full"), ENOTEMPTY),
    Case("rmdir what is missing", lambda d: os.rmdir(d / "missing"), ENOENT),
    Case("rmdir in a file", lambda d: os.rmdir(d / "file/x"), ENOTDIR),
    Case("rmdir dot", lambda d: os.rmdir(f"{d}/directory/."), EINVAL),
    Case("rmdir dotdot", lambda d: os.rmdir(f"{d}/directory/.."), ENOTEMPTY),
    Case("rmdir the mountpoint", lambda d: os.rmdir(d.parent), EBUSY),
    Case("rmdir a current directory", in_removed_cwd(lambda d: None)),
    Case("rmdir the removed", in_removed_cwd(lambda d: os.rmdir(d / "directory")), ENOENT),
    Case("name of a removed current directory", in_removed_cwd(lambda d: os.getcwd()), ENOENT),
    Case("create in a removed current directory", in_removed_cwd(lambda d: touch_open("new", CREATE)), ENOENT),
    Case("stat of a removed current directory", in_removed_cwd(lambda d: os.stat(".").st_nlink), "0"),
    Case("parent of a removed current directory", in_removed_cwd(lambda d: os.stat("..").st_nlink), "3"),
    Case("list the removed", in_removed_directory(os.listdir), "[]"),
    Case("create in the removed", in_removed_directory(lambda h: os.open("new", CREATE, dir_fd=h)), ENOENT),
    Case("look up in the removed", in_removed_directory(lambda h: os.stat("new", dir_fd=h)), ENOENT),
    Case("mkdir in the removed", in_removed_directory(lambda h: os.mkdir("new", dir_fd=h)), ENOENT),
    Case("mkfifo in the removed", in_removed_directory(lambda h: os.mkfifo("new", dir_fd=h)), ENOENT),
    Case("symlink in the removed", in_removed_directory(lambda h: os.symlink("to", "new", dir_fd=h)), ENOENT),
    Case("chmod of the removed", in_removed_directory(lambda h: os.fchmod(h, 0o700))),
    Case("setxattr of the removed", in_removed_directory(lambda h: os.setxattr(h, "user.a", b"value"))),
    Case(
        "link into the removed",
        lambda d: in_removed_directory(lambda h: os.link(d / "file", "new", dst_dir_fd=h))(d),
        ENOENT,
    ),
    Case(
        "rename into the removed",
        lambda d: in_removed_directory(lambda h: os.rename(d / "file", "new", dst_dir_fd=h))(d),
        ENOENT,
    ),
)

RENAMING = cases(
    Case("rename", lambda d: rename(d / "file", d / "new")),
    Case("rename to itself", lambda d: rename(d / "file", d / "file")),
    Case(
        "rename to another link", in_turn(lambda d: os.link(d / "file", d / "l"), lambda d: rename(d / "file", d / "l"))
    ),
    Case("rename a file over a file", lambda d: rename(d / "file", d / "other")),
    Case("rename a file over a link", lambda d: rename(d / "file", d / "dangling")),
    Case("rename a file over a directory", lambda d: rename(d / "file", d / "directory"), EISDIR),
    Case("rename a directory", lambda d: rename(d / "full", d / "directory/new")),
    Case("rename a directory over an empty one", lambda d: rename(d / "full", d / "directory")),
    Case("rename a directory over a file", lambda d: rename(d / "directory", d / "file"), ENOTDIR),
    Case("rename a directory over a link", lambda d: rename(d / "directory", d / "link"), ENOTDIR),
    Case("rename a directory over a full one", lambda d: rename(d / "directory", d / "full"), ENOTEMPTY),
    Case("rename a directory over its parent", lambda d: rename(d / "full/sub", d / "full"), ENOTEMPTY),
    Case("rename a file over its parent", lambda d: rename(d / "full/x", d / "full"), ENOTEMPTY),
    Case("rename a directory into itself", lambda d: rename(d / "full", d / "full/new"), EINVAL),
    Case("rename a directory deep into itself", lambda d: rename(d / "full", d / "full/sub/deep/new"), EINVAL),
    Case("rename a directory over its child", lambda d: rename(d / "full", d / "full/sub"), EINVAL),
    Case("rename a directory to a slash", lambda d: rename(d / "directory", f"{d}/new/")),
    Case("rename a file to a slash", lambda d: rename(d / "file", f"{d}/new/"), ENOTDIR),
    Case("rename a file with a slash", lambda d: rename(f"{d}/file/", d / "new"), ENOTDIR),
    Case("rename what is missing", lambda d: rename(d / "missing", d / "new"), ENOENT),
    Case("rename what is missing over a file", lambda d: rename(d / "missing", d / "file"), ENOENT),
    Case("rename from a missing directory", lambda d: rename(d / "missing/x", d / "new"), ENOENT),
    Case("rename into a missing directory", lambda d: rename(d / "file", d / "missing/new"), ENOENT),
    Case("rename from a file", lambda d: rename(d / "file/x", d / "new"), ENOTDIR),
    Case("rename into a file", lambda d: rename(d / "other", d / "file/new"), ENOTDIR),
    Case("rename dot", lambda d: rename(f"{d}/directory/.", d / "new"), EBUSY),
    Case("rename dotdot", lambda d: rename(f"{d}/directory/..", d / "new"), EBUSY),
    Case("rename over dot", lambda d: rename(d / "directory", f"{d}/full/."), EBUSY),
    Case("rename the mountpoint", lambda d: rename(d.parent, d.parents[1] / "new"), EBUSY),
    Case("rename over the mountpoint", lambda d: rename(d, d.parent), EXDEV),
    Case("rename to another file system", lambda d: rename(d / "file", d.parents[1] / "new"), EXDEV),
    Case("rename from another file system", lambda d: rename(d.parents[1] / "copy", d / "new"), EXDEV),
    Case("rename and replace nothing", lambda d: rename(d / "file", d / "new", RENAME_NOREPLACE)),
    Case("replace nothing, but a file", lambda d: rename(d / "file", d / "other", RENAME_NOREPLACE), EEXIST),
    Case("replace nothing, but itself", lambda d: rename(d / "file", d / "file", RENAME_NOREPLACE), EEXIST),
    Case("replace nothing, but a directory", lambda d: rename(d / "full", d / "directory", RENAME_NOREPLACE), EEXIST),
    Case("replace nothing, from nothing", lambda d: rename(d / "missing", d / "new", RENAME_NOREPLACE), ENOENT),
    Case("replace nothing into itself", lambda d: rename(d / "full", d / "full/new", RENAME_NOREPLACE), EINVAL),
    Case("exchange files", lambda d: rename(d / "file", d / "other", RENAME_EXCHANGE)),
    Case("exchange a file and a directory", lambda d: rename(d / "file", d / "full", RENAME_EXCHANGE)),
    Case("exchange across directories", lambda d: rename(d / "directory", d / "full/x", RENAME_EXCHANGE)),
    Case("exchange with what is missing", lambda d: rename(d / "file", d / "missing", RENAME_EXCHANGE), ENOENT),
    Case("exchange what is missing", lambda d: rename(d / "missing", d / "file", RENAME_EXCHANGE), ENOENT),
    Case("exchange with its child", lambda d: rename(d / "full", d / "full/sub", RENAME_EXCHANGE), EINVAL),
    Case("exchange with its grandparent", lambda d: rename(d / "full/sub/deep", d / "full", RENAME_EXCHANGE), EINVAL),
    Case("exchange with itself", lambda d: rename(d / "file", d / "file", RENAME_EXCHANGE)),
    Case("both flags", lambda d: rename(d / "file", d / "other", RENAME_EXCHANGE | RENAME_NOREPLACE), EINVAL),
    Case("whiteout", lambda d: rename(d / "file", d / "new", RENAME_WHITEOUT), DONE, ours=EINVAL),
    Case("whiteout over a file", lambda d: rename(d / "file", d / "other", RENAME_WHITEOUT), DONE, ours=EINVAL),
    Case("whiteout and exchange", lambda d: rename(d / "file", d / "other", RENAME_EXCHANGE | RENAME_WHITEOUT), EINVAL),
    Case("unknown flag", lambda d: rename(d / "file", d / "new", 32), EINVAL),
)


@pytest.mark.parametrize("case", CREATING + REMOVING + RENAMING)
def test_names(pair: Pair, case: Case) -> None:
    check_in("tree", pair, case)


LONG_NAMES: dict[str, Callable[[Path], object]] = {
    "stat": lambda d: os.lstat(d / LONG),
    "access": lambda d: os.stat(d / LONG),
    "open": lambda d: touch_open(d / LONG, os.O_RDONLY),
    "create": lambda d: touch_open(d / LONG, CREATE),
    "create exclusively": lambda d: touch_open(d / LONG, CREATE | os.O_EXCL),
    "chdir": lambda d: os.chdir(d / LONG),
    "list": lambda d: os.listdir(d / LONG),
    "mkdir": lambda d: os.mkdir(d / LONG),
    "mkfifo": lambda d: os.mkfifo(d / LONG),
    "mknod": lambda d: os.mknod(d / LONG, stat.S_IFCHR),
    "symlink": lambda d: os.symlink("target", d / LONG),
    "readlink": lambda d: os.readlink(d / LONG),
    "link from": lambda d: os.link(d / LONG, d / "new"),
    "link to": lambda d: os.link(d / "file", d / LONG),
    "unlink": lambda d: os.unlink(d / LONG),
    "rmdir": lambda d: os.rmdir(d / LONG),
    "rename from": lambda d: rename(d / LONG, d / "new"),
    "rename to": lambda d: rename(d / "file", d / LONG),
    "rename a directory to": lambda d: rename(d / "full", d / LONG),
    "exchange from": lambda d: rename(d / LONG, d / "file", RENAME_EXCHANGE),
    "exchange to": lambda d: rename(d / "file", d / LONG, RENAME_EXCHANGE),
    "replace nothing": lambda d: rename(d / "file", d / LONG, RENAME_NOREPLACE),
    "truncate": lambda d: os.truncate(d / LONG, 1),
    "chmod": lambda d: os.chmod(d / LONG, 0o600),
    "chown": lambda d: os.chown(d / LONG, 1, 1),
    "utime": lambda d: os.utime(d / LONG),
    "setxattr": lambda d: os.setxattr(d / LONG, "user.a", b""),
    "getxattr": lambda d: os.getxattr(d / LONG, "user.a"),
    "listxattr": lambda d: os.listxattr(d / LONG),
    "removexattr": lambda d: os.removexattr(d / LONG, "user.a"),
    "through": lambda d: os.mkdir(d / LONG / "new"),
    "path": lambda d: os.mkdir(f"{d}/" + "./" * 2048 + "new"),
}


@pytest.mark.parametrize("case", cases(*(Case(name, call, ENAMETOOLONG) for name, call in LONG_NAMES.items())))
def test_names_too_long(pair: Pair, case: Case) -> None:
    check_in("tree", pair, case)


def test_longest_names(pair: Pair) -> None:
    """A byte less, and every call works."""
    longest, other = "n" * 255, "m" * 255
    for number, call in enumerate(
        (
            lambda d: touch_open(d / longest, CREATE | os.O_EXCL),
            lambda d: os.mkdir(d / longest),
            lambda d: os.mkfifo(d / longest),
            lambda d: os.symlink("target", d / longest),
            lambda d: os.link(d / "file", d / longest),
            in_turn(
                lambda d: rename(d / "file", d / longest),
                lambda d: rename(d / longest, d / other),
                lambda d: os.unlink(d / other),
            ),
        )
    ):
        check_in("tree", pair, Case(str(number), call))


@pytest.mark.parametrize("length", (59, 60, 61, 1022, 1023, 1024, 1025, 4094, 4095, 4096, 5000))
def test_symlink_targets(pair: Pair, length: int) -> None:
    """The terminating NUL must fit the block as well, and the path."""
    expected: int | str = DONE if length < min(pair.block_size, 4096) else ENAMETOOLONG
    check_in("tree", pair, Case("", lambda d: os.symlink("t" * length, d / "new"), expected))


# Handles and contents


def write_mapped(path: Path) -> bytes:
    with opened(path, os.O_RDWR) as handle, mmap.mmap(handle, 0) as mapped:
        mapped[:3] = b"CON"
        mapped.flush()
        return os.pread(handle, 100, 0)


def lock_twice(path: Path, lock: Callable[[int], object]) -> object:
    with opened(path, os.O_RDWR) as first, opened(path, os.O_RDWR) as second:
        lock(first)
        return lock(second)


def flock(kind: int, handle: int) -> None:
    fcntl.flock(handle, kind | fcntl.LOCK_NB)


def ofd_lock(handle: int) -> None:
    fcntl.fcntl(handle, F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))


def posix_lock(path: Path) -> str:
    """What a child answers that wants what its parent has locked."""
    with opened(path, os.O_RDWR) as handle:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        child = os.fork()
        if not child:
            os._exit(0 if outcome(lambda: fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)) == "EAGAIN" else 1)
        return str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def while_running(directory: Path, call: Callable[[Path], object]) -> object:
    """Call with the path of a program that is running."""
    program = directory / "program"
    shutil.copy(Path("/bin/sleep").resolve(), program)
    # What was written must not be open for writing when it is run.
    with subprocess.Popen([program, "60"]) as process:
        try:
            return call(program)
        finally:
            process.kill()


def run_while_writing(directory: Path) -> None:
    program = directory / "program"
    shutil.copy(Path("/bin/true").resolve(), program)
    with opened(program, os.O_WRONLY):
        subprocess.run([program], check=True)


def seek(path: Path, offset: int, whence: int) -> int:
    with opened(path, os.O_RDONLY) as handle:
        return os.lseek(handle, offset, whence)


def seek_in_sparse(path: Path, whence: int) -> int:
    """Seek from the beginning of a file that is a hole up to its last byte."""
    os.truncate(path, 0)
    write_at(path, b"x", 200_000)
    with opened(path, os.O_RDONLY) as handle:
        os.fsync(handle)
        return os.lseek(handle, 0, whence)


def handle_of(name: str, flags: int, call: Callable[[int], object]) -> Callable[[Path], object]:
    """A call with a handle of a file."""

    def act(directory: Path) -> object:
        with opened(directory / name, flags) as handle:
            return call(handle)

    return act


def copy_range(source: Path, target: Path) -> int:
    with opened(source, os.O_RDONLY) as reader, opened(target, os.O_WRONLY) as writer:
        return os.copy_file_range(reader, writer, 100)


def name_to_handle(path: Path) -> int:
    handle = ctypes.create_string_buffer(struct.pack("I", 128), 136)
    return libc("name_to_handle_at", AT_FDCWD, os.fsencode(path), handle, ctypes.byref(ctypes.c_int()), 0)


def ioctl(path: Path, number: int) -> None:
    with opened(path, os.O_RDONLY) as handle:
        fcntl.ioctl(handle, number, bytes(8))


HANDLES = cases(
    Case("open what is missing", lambda d: touch_open(d / "missing", os.O_RDONLY), ENOENT),
    Case("open a dangling link", lambda d: touch_open(d / "dangling", os.O_RDONLY), ENOENT),
    Case("open a loop", lambda d: touch_open(d / "loop", os.O_RDONLY), ELOOP),
    Case("open below a loop", lambda d: touch_open(d / "loop/x", os.O_RDONLY), ELOOP),
    Case("open below a file", lambda d: touch_open(d / "file/x", os.O_RDONLY), ENOTDIR),
    Case("open a link without following", lambda d: touch_open(d / "link", os.O_RDONLY | os.O_NOFOLLOW), ELOOP),
    Case("create a link without following", lambda d: touch_open(d / "link", CREATE | os.O_NOFOLLOW), ELOOP),
    Case("open a file as a directory", lambda d: touch_open(d / "file", os.O_RDONLY | os.O_DIRECTORY), ENOTDIR),
    Case("open a file with a slash", lambda d: open_literally(f"{d}/file/", os.O_RDONLY), ENOTDIR),
    Case("open a directory to write", lambda d: touch_open(d / "full", os.O_WRONLY), EISDIR),
    Case("open a directory to read and write", lambda d: touch_open(d / "full", os.O_RDWR), EISDIR),
    Case("open a directory to truncate", lambda d: touch_open(d / "full", os.O_RDONLY | os.O_TRUNC), EISDIR),
    Case("open a fifo to write", lambda d: touch_open(d / "fifo", os.O_WRONLY | os.O_NONBLOCK), ENXIO),
    Case("open a fifo to read", lambda d: touch_open(d / "fifo", os.O_RDONLY | os.O_NONBLOCK)),
    Case(
        "open a socket",
        in_turn(mknod("socket", stat.S_IFSOCK), lambda d: touch_open(d / "socket", os.O_RDONLY)),
        ENXIO,
    ),
    Case(
        "open a device without a driver",
        in_turn(mknod("device", stat.S_IFCHR), lambda d: touch_open(d / "device", os.O_RDONLY)),
        ENXIO,
    ),
    Case("write to a handle for reading", lambda d: write_at(d / "file", b"x", flags=os.O_RDONLY), EBADF),
    Case("write nothing", lambda d: write_at(d / "file", b""), "0"),
    Case("write behind the end", lambda d: write_at(d / "file", b"xy", 5000), "2"),
    Case("read from a handle for writing", handle_of("file", os.O_WRONLY, lambda h: os.read(h, 1)), EBADF),
    Case("read a directory", handle_of("full", os.O_RDONLY, lambda h: os.read(h, 1)), EISDIR),
    Case("write to a directory", handle_of("full", os.O_RDONLY, lambda h: os.write(h, b"x")), EBADF),
    Case("write at a negative offset", lambda d: write_at(d / "file", b"x", -1), EINVAL),
    Case("write at the last offset", lambda d: write_at(d / "file", b"x", 2**63 - 2), EFBIG),
    Case("write past the last offset", lambda d: write_at(d / "file", b"xy", 2**63 - 1), EINVAL),
    Case("truncate", lambda d: os.truncate(d / "file", 3)),
    Case("truncate to a negative size", lambda d: os.truncate(d / "file", -1), EINVAL),
    Case("truncate to the last size", lambda d: os.truncate(d / "file", 2**63 - 1), EFBIG),
    Case("truncate a directory", lambda d: os.truncate(d / "full", 0), EISDIR),
    Case("truncate a fifo", lambda d: os.truncate(d / "fifo", 0), EINVAL),
    Case("truncate what is missing", lambda d: os.truncate(d / "missing", 0), ENOENT),
    Case("truncate a handle", handle_of("file", os.O_WRONLY, lambda h: os.ftruncate(h, 3))),
    Case("truncate a handle for reading", handle_of("file", os.O_RDONLY, lambda h: os.ftruncate(h, 3)), EINVAL),
    Case("truncate on opening for reading", lambda d: touch_open(d / "file", os.O_RDONLY | os.O_TRUNC)),
    Case("sync a handle for reading", handle_of("file", os.O_RDONLY, os.fsync)),
    Case("sync a directory", handle_of("full", os.O_RDONLY, os.fsync)),
    Case("sync a fifo", handle_of("fifo", os.O_RDWR, os.fsync), EINVAL),
    Case("readlink of a file", lambda d: os.readlink(d / "file"), EINVAL),
    Case("readlink of a directory", lambda d: os.readlink(d / "full"), EINVAL),
    Case("list a file", lambda d: os.listdir(d / "file"), ENOTDIR),
    Case("list what is missing", lambda d: os.listdir(d / "missing"), ENOENT),
    Case("chmod what is missing", lambda d: os.chmod(d / "missing", 0o600), ENOENT),
    Case("chmod a dangling link", lambda d: os.chmod(d / "dangling", 0o600), ENOENT),
    Case("chown what is missing", lambda d: os.chown(d / "missing", 1, 1), ENOENT),
    Case("chown a link", lambda d: os.chown(d / "dangling", 1, 1, follow_symlinks=False)),
    Case("utime of what is missing", lambda d: os.utime(d / "missing"), ENOENT),
    Case("utime of a link", lambda d: os.utime(d / "dangling", (1, 1), follow_symlinks=False)),
    Case("write a running program", lambda d: while_running(d, lambda p: touch_open(p, os.O_WRONLY)), ETXTBSY),
    Case("truncate a running program", lambda d: while_running(d, lambda p: os.truncate(p, 0)), ETXTBSY),
    Case("unlink a running program", lambda d: while_running(d, os.unlink)),
    Case("run what is being written", run_while_writing, ETXTBSY),
    Case("run what is not executable", lambda d: subprocess.run([d / "file"], check=False), EACCES),
    Case("run a directory", lambda d: subprocess.run([d / "full"], check=False), EACCES),
    Case("allocate", lambda d: fallocate(d / "file", 0), EOPNOTSUPP),
    Case("allocate behind the end", lambda d: fallocate(d / "file", 1), EOPNOTSUPP),
    Case("punch a hole", lambda d: fallocate(d / "file", 3), DONE, ours=EOPNOTSUPP),
    Case("zero a range", lambda d: fallocate(d / "file", 16), EOPNOTSUPP),
    Case("get flags", lambda d: ioctl(d / "file", FS_IOC_GETFLAGS), DONE, ours=ENOTTY),
    Case("set flags", lambda d: ioctl(d / "file", FS_IOC_SETFLAGS), DONE, ours=ENOTTY),
    Case("unknown ioctl", lambda d: ioctl(d / "file", 0x12345678), ENOTTY),
    Case("unknown ioctl of a directory", lambda d: ioctl(d / "full", 0x12345678), ENOTTY),
    Case("seek data", lambda d: seek(d / "file", 0, os.SEEK_DATA), "0"),
    Case("seek a hole", lambda d: seek(d / "file", 0, os.SEEK_HOLE), "8"),
    Case("seek data at the end", lambda d: seek(d / "file", 8, os.SEEK_DATA), ENXIO),
    Case("seek a hole at the end", lambda d: seek(d / "file", 8, os.SEEK_HOLE), ENXIO),
    Case("seek data behind the end", lambda d: seek(d / "file", 100, os.SEEK_DATA), ENXIO),
    Case("seek a hole in a sparse file", lambda d: seek_in_sparse(d / "file", os.SEEK_HOLE), "0", ours="200001"),
    Case("seek before the beginning", lambda d: seek(d / "file", -1, os.SEEK_SET), EINVAL),
    Case("lock the locked", lambda d: lock_twice(d / "file", partial(flock, fcntl.LOCK_EX)), EAGAIN),
    Case("lock for sharing", lambda d: lock_twice(d / "file", partial(flock, fcntl.LOCK_SH))),
    Case("lock the locked range", lambda d: lock_twice(d / "file", ofd_lock), EAGAIN),
    Case("lock another process's range", lambda d: posix_lock(d / "file"), "0"),
    Case("write a mapping", lambda d: write_mapped(d / "file"), "b'CONtent\\n'"),
    Case(
        "write directly, unaligned",
        lambda d: write_at(d / "file", b"x", 1, os.O_WRONLY | os.O_DIRECT),
        EINVAL,
        ours="1",
    ),
    Case("lease", handle_of("other", os.O_RDONLY, lambda h: fcntl.fcntl(h, fcntl.F_SETLEASE, fcntl.F_RDLCK)), "0"),
    Case("copy a range", lambda d: copy_range(d / "file", d / "other"), "8"),
    Case("name to handle", lambda d: name_to_handle(d / "file"), "0"),
    Case(
        "map what cannot be mapped",
        handle_of("full", os.O_RDONLY, lambda h: mmap.mmap(h, 1, mmap.MAP_SHARED, 1)),
        "ENODEV",
    ),
)


@pytest.mark.parametrize("case", HANDLES)
def test_handles(pair: Pair, case: Case) -> None:
    check_in("tree", pair, case)


def append_at(path: Path, size: int) -> int:
    """Append to a file of such a size."""
    os.truncate(path, size)
    return write_at(path, b"x", 0, os.O_WRONLY | os.O_APPEND)


AT_THE_LIMIT: dict[str, tuple[Callable[[Path, int], object], int | str]] = {
    "truncate": (lambda path, limit: os.truncate(path, limit), DONE),
    "truncate past it": (lambda path, limit: os.truncate(path, limit + 1), EFBIG),
    "truncate far past it": (lambda path, limit: os.truncate(path, 2 * limit), EFBIG),
    "write the last byte": (lambda path, limit: write_at(path, b"x", limit - 1), "1"),
    "write two of three bytes": (lambda path, limit: write_at(path, b"xyz", limit - 2), "2"),
    "write half of it": (lambda path, limit: write_at(path, bytes(100_000), limit - 50_000), "50000"),
    "write behind it": (lambda path, limit: write_at(path, b"x", limit), EFBIG),
    "write nothing behind it": (lambda path, limit: write_at(path, b"", limit), "0"),
    "write far behind it": (lambda path, limit: write_at(path, b"x", limit + 5000), EFBIG),
    "append": (lambda path, limit: append_at(path, limit), EFBIG),
}


@pytest.mark.parametrize("name", AT_THE_LIMIT)
def test_largest_file(pair: Pair, name: str) -> None:
    call, expected = AT_THE_LIMIT[name]
    limit = MAX_FILE_SIZES[pair.block_size]
    for root in pair.sides():
        path = root / f"largest-{name}"
        path.touch()
        assert outcome(partial(call, path, limit)) == spell(expected)
        path.unlink()


# Extended attributes


def get_into(path: Path, name: str, size: int) -> int:
    return libc("getxattr", os.fsencode(path), name.encode(), ctypes.create_string_buffer(size), ctypes.c_size_t(size))


def list_into(path: Path, size: int) -> int:
    return libc("listxattr", os.fsencode(path), ctypes.create_string_buffer(size), ctypes.c_size_t(size))


def set_on_link(name: str) -> Callable[[Path], object]:
    return lambda d: os.setxattr(d / "link", name, b"", follow_symlinks=False)


def set_on_file(name: str, value: bytes = b"", flags: int = 0) -> Callable[[Path], object]:
    return lambda d: os.setxattr(d / "file", name, value, flags)


def set_by_default(value: bytes) -> Callable[[Path], object]:
    return lambda d: os.setxattr(d / "full", DEFAULT_ACL, value)


def get_of_file(name: str) -> Callable[[Path], object]:
    return lambda d: os.getxattr(d / "file", name)


def remove_of_file(name: str) -> Callable[[Path], object]:
    return lambda d: os.removexattr(d / "file", name)


UNSUPPORTED = (
    "foo.bar",
    "user",
    "system.foo",
    "system.",
    "nodot",
    "User.a",
    "system.posix_acl_other",
    "btrfs.compression",
)
XATTRS = cases(
    Case("set", set_on_file("user.new", b"value")),
    Case("set nothing", set_on_file("user.new")),
    Case("set trusted", set_on_file("trusted.new", b"value")),
    Case("set security", set_on_file("security.new", b"value")),
    Case("create", set_on_file("user.new", b"value", os.XATTR_CREATE)),
    Case("create what is there", set_on_file("user.u", b"new", os.XATTR_CREATE), EEXIST),
    Case("replace", set_on_file("user.u", b"new", os.XATTR_REPLACE)),
    Case("replace what is missing", set_on_file("user.new", b"value", os.XATTR_REPLACE), ENODATA),
    Case("create and replace", set_on_file("user.u", b"new", os.XATTR_CREATE | os.XATTR_REPLACE), EEXIST),
    Case("create and replace what is missing", set_on_file("user.new", b"", 3), ENODATA, ours=DONE),
    Case("unknown flag", set_on_file("user.u", b"new", 4), EINVAL),
    Case("get what is missing", lambda d: os.getxattr(d / "file", "user.new"), ENODATA),
    Case("get of what is missing", lambda d: os.getxattr(d / "missing", "user.new"), ENOENT),
    Case("get of a link", lambda d: os.getxattr(d / "link", "user.u", follow_symlinks=False), ENODATA),
    Case("get trusted of a link", lambda d: os.getxattr(d / "link", "trusted.t", follow_symlinks=False), ENODATA),
    Case("get of a fifo", lambda d: os.getxattr(d / "fifo", "user.u"), ENODATA),
    Case("get a missing ACL", lambda d: os.getxattr(d / "file", ACCESS_ACL), ENODATA),
    Case("get a missing default ACL", lambda d: os.getxattr(d / "full", DEFAULT_ACL), ENODATA),
    Case("get a default ACL of a file", lambda d: os.getxattr(d / "file", DEFAULT_ACL), ENODATA),
    Case("get an ACL of a link", lambda d: os.getxattr(d / "link", ACCESS_ACL, follow_symlinks=False), EOPNOTSUPP),
    Case("remove", lambda d: os.removexattr(d / "file", "user.u")),
    Case("remove what is missing", lambda d: os.removexattr(d / "file", "user.new"), ENODATA),
    Case("remove of what is missing", lambda d: os.removexattr(d / "missing", "user.new"), ENOENT),
    Case("remove of a fifo", lambda d: os.removexattr(d / "fifo", "user.u"), EPERM),
    Case("remove a missing ACL", lambda d: os.removexattr(d / "file", ACCESS_ACL)),
    Case("remove a missing default ACL", lambda d: os.removexattr(d / "full", DEFAULT_ACL)),
    Case("remove a default ACL of a file", lambda d: os.removexattr(d / "file", DEFAULT_ACL)),
    Case("list of what is missing", lambda d: os.listxattr(d / "missing"), ENOENT),
    Case("list of a fifo", lambda d: os.listxattr(d / "fifo"), "[]"),
    Case("set of a link", set_on_link("user.u"), EPERM),
    Case("set trusted of a link", set_on_link("trusted.t")),
    Case("set of a fifo", lambda d: os.setxattr(d / "fifo", "user.u", b""), EPERM),
    Case("set trusted of a fifo", lambda d: os.setxattr(d / "fifo", "trusted.t", b"")),
    Case("get into too little", lambda d: get_into(d / "file", "user.u", 4), ERANGE),
    Case("get into enough", lambda d: get_into(d / "file", "user.u", 5), "5"),
    Case("get into nothing", lambda d: get_into(d / "file", "user.u", 0), "5"),
    Case("list into too little", lambda d: list_into(d / "file", 6), ERANGE),
    Case("list into enough", lambda d: list_into(d / "file", 7), "7"),
    Case("set the longest name", set_on_file("user." + "n" * 250)),
    Case("set too long a name", set_on_file("user." + "n" * 251), ERANGE),
    Case("get too long a name", lambda d: os.getxattr(d / "file", "user." + "n" * 251), ERANGE),
    Case("remove too long a name", lambda d: os.removexattr(d / "file", "user." + "n" * 251), ERANGE),
    Case("set no name", set_on_file(""), ERANGE),
    *(
        Case(f"set only {prefix}", set_on_file(prefix, b"value"), EINVAL)
        for prefix in ("user.", "trusted.", "security.")
    ),
    Case("get only the prefix", lambda d: os.getxattr(d / "file", "user."), EINVAL),
    Case("set what fits no block", set_on_file("user.new", bytes(5000)), ENOSPC),
    Case("replace by what fits no block", set_on_file("user.u", bytes(5000)), ENOSPC),
    Case("set the largest value", set_on_file("user.new", bytes(65_536)), ENOSPC),
    Case("set too large a value", set_on_file("user.new", bytes(65_537)), E2BIG),
    *(Case(f"set {name}", set_on_file(name), EOPNOTSUPP) for name in UNSUPPORTED),
    *(Case(f"get {name}", get_of_file(name), EOPNOTSUPP) for name in UNSUPPORTED),
    *(Case(f"remove {name}", remove_of_file(name), EOPNOTSUPP) for name in UNSUPPORTED),
)


def acl_of(users: int) -> bytes:
    """An ACL that names so many users."""
    named = ((0x02, 6, uid) for uid in range(users))
    return acl((0x01, 6, NO_ID), *named, (0x04, 4, NO_ID), (0x10, 6, NO_ID), (0x20, 4, NO_ID))


ACL_VALUES: dict[str, tuple[bytes, int | str]] = {
    "minimal": (MINIMAL_ACL, DONE),
    "named": (NAMED_ACL, DONE),
    "nothing": (b"", DONE),
    "no entries": (acl(), DONE),
    "a short one": (b"abc", EINVAL),
    "a torn one": (MINIMAL_ACL[:-1], EINVAL),
    "an unknown version": (acl((0x01, 6, NO_ID), (0x04, 4, NO_ID), (0x20, 4, NO_ID), version=1), EOPNOTSUPP),
    "no others": (acl((0x01, 6, NO_ID), (0x04, 4, NO_ID)), EINVAL),
    "no mask": (acl((0x01, 6, NO_ID), (0x02, 6, OTHER), (0x04, 4, NO_ID), (0x20, 4, NO_ID)), EINVAL),
    "unsorted": (acl((0x20, 4, NO_ID), (0x04, 4, NO_ID), (0x01, 6, NO_ID)), EINVAL),
    "two owners": (acl((0x01, 6, NO_ID), (0x01, 6, NO_ID), (0x04, 4, NO_ID), (0x20, 4, NO_ID)), EINVAL),
    "an unknown tag": (acl((0x01, 6, NO_ID), (0x04, 4, NO_ID), (0x20, 4, NO_ID), (0x40, 4, NO_ID)), EINVAL),
    "unknown permissions": (acl((0x01, 8, NO_ID), (0x04, 4, NO_ID), (0x20, 4, NO_ID)), EINVAL),
    "no id": (acl((1, 6, NO_ID), (2, 6, NO_ID), (4, 4, NO_ID), (0x10, 6, NO_ID), (0x20, 4, NO_ID)), EINVAL),
    "too many": (acl_of(505), ENOSPC),
}  # fmt: skip
ACLS = cases(
    *(
        case
        for name, (value, expected) in ACL_VALUES.items()
        for case in (
            Case(f"set {name}", set_on_file(ACCESS_ACL, value), expected),
            Case(f"set by default {name}", set_by_default(value), expected),
        )
    ),
    Case("set by default on a file", set_on_file(DEFAULT_ACL, NAMED_ACL), EACCES),
    Case("set nothing by default on a file", set_on_file(DEFAULT_ACL, acl())),
    Case("set by default on a fifo", lambda d: os.setxattr(d / "fifo", DEFAULT_ACL, NAMED_ACL), EACCES),
    Case("set on a fifo", lambda d: os.setxattr(d / "fifo", ACCESS_ACL, NAMED_ACL)),
    Case("set on a link", lambda d: os.setxattr(d / "link", ACCESS_ACL, NAMED_ACL, follow_symlinks=False), EOPNOTSUPP),
    Case("set more than a page", set_on_file(ACCESS_ACL, acl_of(600)), ENOSPC, ours=E2BIG),
    Case("create anew", set_on_file(ACCESS_ACL, NAMED_ACL, os.XATTR_CREATE)),
    Case("replace what is missing", set_on_file(ACCESS_ACL, NAMED_ACL, os.XATTR_REPLACE)),
)


@pytest.mark.parametrize("case", XATTRS)
def test_xattrs(pair: Pair, case: Case) -> None:
    check_in("tree", pair, case)


@pytest.mark.parametrize("case", ACLS)
def test_acls(pair: Pair, case: Case) -> None:
    check_in("tree", pair, case)


# Immutable and append-only


def flagged(name: str) -> list[Case]:
    """What both an immutable and an append-only inode refuse; the directory given is the root."""
    inside = f"{name}-directory"
    chown_to_same = EPERM if name == "immutable" else DONE
    return [
        Case(f"{name}: read", lambda d: (d / name).read_bytes(), "b'content\\n'"),
        Case(f"{name}: open to write", lambda d: touch_open(d / name, os.O_WRONLY), EPERM),
        Case(f"{name}: open to read and write", lambda d: touch_open(d / name, os.O_RDWR), EPERM),
        Case(f"{name}: open to create", lambda d: touch_open(d / name, CREATE), EPERM),
        Case(f"{name}: create exclusively", lambda d: touch_open(d / name, CREATE | os.O_EXCL), EEXIST),
        Case(f"{name}: truncate on opening", lambda d: touch_open(d / name, os.O_WRONLY | os.O_TRUNC), EPERM),
        Case(f"{name}: truncate on opening to read", lambda d: touch_open(d / name, os.O_TRUNC), EPERM),
        Case(
            f"{name}: truncate on opening to append",
            lambda d: touch_open(d / name, os.O_WRONLY | os.O_TRUNC | os.O_APPEND),
            EPERM,
        ),
        Case(f"{name}: truncate", lambda d: os.truncate(d / name, 0), EPERM),
        Case(f"{name}: extend", lambda d: os.truncate(d / name, 100), EPERM),
        Case(f"{name}: unlink", lambda d: os.unlink(d / name), EPERM),
        Case(f"{name}: rename", lambda d: rename(d / name, d / "new"), EPERM),
        Case(f"{name}: rename over it", lambda d: rename(d / "tree/other", d / name), EPERM),
        Case(f"{name}: exchange", lambda d: rename(d / name, d / "tree/other", RENAME_EXCHANGE), EPERM),
        Case(f"{name}: exchange with it", lambda d: rename(d / "tree/other", d / name, RENAME_EXCHANGE), EPERM),
        Case(f"{name}: link", lambda d: os.link(d / name, d / "new"), EPERM),
        Case(f"{name}: chmod", lambda d: os.chmod(d / name, 0o600), EPERM),
        Case(f"{name}: chown", lambda d: os.chown(d / name, 1, 1), EPERM),
        Case(f"{name}: chown to the same", lambda d: os.chown(d / name, -1, -1), chown_to_same),
        Case(f"{name}: utime", lambda d: os.utime(d / name, (1, 1)), EPERM),
        Case(f"{name}: setxattr", lambda d: os.setxattr(d / name, "user.u", b""), EPERM),
        Case(f"{name}: set trusted", lambda d: os.setxattr(d / name, "trusted.u", b""), EPERM),
        Case(f"{name}: removexattr", lambda d: os.removexattr(d / name, "user.u"), EPERM),
        Case(f"{name}: set an ACL", lambda d: os.setxattr(d / name, ACCESS_ACL, NAMED_ACL), EPERM),
        Case(f"{name}: remove an ACL", lambda d: os.removexattr(d / name, ACCESS_ACL), EPERM),
        Case(f"{name} directory: list", lambda d: sorted(os.listdir(d / inside))[:2], "['inside', 'sub']"),
        Case(f"{name} directory: unlink in it", lambda d: os.unlink(d / inside / "inside"), EPERM),
        Case(f"{name} directory: rmdir in it", lambda d: os.rmdir(d / inside / "sub"), EPERM),
        Case(f"{name} directory: unlink what is missing", lambda d: os.unlink(d / inside / "missing"), ENOENT),
        Case(f"{name} directory: rename in it", lambda d: rename(d / inside / "inside", d / inside / "new"), EPERM),
        Case(f"{name} directory: rename out of it", lambda d: rename(d / inside / "inside", d / "new"), EPERM),
        Case(f"{name} directory: rename within", lambda d: rename(d / "tree/other", d / inside / "inside"), EPERM),
        Case(
            f"{name} directory: exchange with what is in it",
            lambda d: rename(d / "tree/other", d / inside / "inside", RENAME_EXCHANGE),
            EPERM,
        ),
        Case(f"{name} directory: write what is in it", lambda d: write_at(d / inside / "inside", b"x"), "1"),
        Case(f"{name} directory: rmdir", lambda d: os.rmdir(d / inside), EPERM),
        Case(f"{name} directory: rename", lambda d: rename(d / inside, d / "new"), EPERM),
        Case(f"{name} directory: rename over it", lambda d: rename(d / "tree/directory", d / inside), EPERM),
        Case(f"{name} directory: chmod", lambda d: os.chmod(d / inside, 0o700), EPERM),
        Case(f"{name} directory: chown", lambda d: os.chown(d / inside, 1, 1), EPERM),
        Case(f"{name} directory: utime", lambda d: os.utime(d / inside, (1, 1)), EPERM),
        Case(f"{name} directory: setxattr", lambda d: os.setxattr(d / inside, "user.u", b""), EPERM),
        Case(f"{name} directory: set an ACL", lambda d: os.setxattr(d / inside, ACCESS_ACL, NAMED_ACL), EPERM),
        Case(f"{name} directory: set a default ACL", lambda d: os.setxattr(d / inside, DEFAULT_ACL, NAMED_ACL), EPERM),
        Case(f"{name} directory: temporary file in it", lambda d: touch_open(d / inside, os.O_TMPFILE | os.O_RDWR), *(
            (EPERM, EOPNOTSUPP) if name == "immutable" else (DONE, EOPNOTSUPP)
        )),
    ]  # fmt: skip


FLAGGED = cases(
    *flagged("immutable"),
    Case("immutable: append", lambda d: touch_open(d / "immutable", os.O_WRONLY | os.O_APPEND), EPERM),
    Case("immutable: touch", lambda d: os.utime(d / "immutable"), EPERM),
    Case("immutable: access", lambda d: os.access(d / "immutable", os.W_OK), "False", ours="True"),
    Case("immutable directory: touch", lambda d: os.utime(d / "immutable-directory"), EPERM),
    Case("immutable directory: access", lambda d: os.access(d / "immutable-directory", os.W_OK), "False", ours="True"),
    Case("immutable directory: create", lambda d: touch_open(d / "immutable-directory/new", CREATE), EPERM),
    Case("immutable directory: create over a file", lambda d: touch_open(d / "immutable-directory/inside", CREATE)),
    Case("immutable directory: mkdir", lambda d: os.mkdir(d / "immutable-directory/new"), EPERM),
    Case("immutable directory: mkdir over a file", lambda d: os.mkdir(d / "immutable-directory/inside"), EEXIST),
    Case("immutable directory: mkfifo", lambda d: os.mkfifo(d / "immutable-directory/new"), EPERM),
    Case("immutable directory: symlink", lambda d: os.symlink("target", d / "immutable-directory/new"), EPERM),
    Case("immutable directory: link", lambda d: os.link(d / "tree/file", d / "immutable-directory/new"), EPERM),
    Case("immutable directory: rename to", lambda d: rename(d / "tree/file", d / "immutable-directory/new"), EPERM),
    *flagged("append"),
    Case("append: append", lambda d: write_at(d / "append", b"x", 0, os.O_WRONLY | os.O_APPEND), "1"),
    Case("append: touch", lambda d: os.utime(d / "append"), DONE, ours=EPERM),
    Case("append: access", lambda d: os.access(d / "append", os.W_OK), "True"),
    Case("append directory: touch", lambda d: os.utime(d / "append-directory"), DONE, ours=EPERM),
    Case("append directory: create", lambda d: touch_open(d / "append-directory/new", CREATE)),
    Case("append directory: mkdir", lambda d: os.mkdir(d / "append-directory/new-directory")),
    Case("append directory: mkfifo", lambda d: os.mkfifo(d / "append-directory/new-fifo")),
    Case("append directory: symlink", lambda d: os.symlink("target", d / "append-directory/new-symlink")),
    Case("append directory: link", lambda d: os.link(d / "tree/file", d / "append-directory/new-link")),
    Case("append directory: rename into it", lambda d: rename(d / "tree/fifo", d / "append-directory/new-name")),
)  # fmt: skip


@pytest.mark.parametrize("case", FLAGGED)
def test_immutable_and_append_only(pair: Pair, case: Case) -> None:
    check(pair, case, "")
    compare_flagged(pair)


def flagged_for_users(name: str) -> list[Case]:
    """An immutable inode is refused as such by the kernel's ext2, by FUSE for its mode, which is looked at first."""
    refused = partial(Case, kernel=EPERM, ours=EACCES) if name == "immutable" else partial(Case, kernel=EACCES)
    return [
        Case(f"{name}: chmod", lambda d: os.chmod(d / name, 0o600), EPERM),
        Case(f"{name}: unlink", lambda d: os.unlink(d / name), EACCES),
        Case(f"{name}: link", lambda d: os.link(d / name, d / "tree/new"), EPERM),
        Case(f"{name}: unlink in it", lambda d: os.unlink(d / f"{name}-directory/inside"), EPERM),
        Case(f"{name}: setxattr", lambda d: os.setxattr(d / name, "user.a", b""), EPERM, ours=EACCES),
        refused(f"{name}: touch", lambda d: os.utime(d / name)),
        refused(f"{name}: truncate", lambda d: os.truncate(d / name, 0)),
        refused(f"{name}: open to write", lambda d: touch_open(d / name, os.O_WRONLY)),
    ]


FLAGGED_FOR_USERS = cases(*flagged_for_users("immutable"), *flagged_for_users("append"))


@pytest.mark.parametrize("case", FLAGGED_FOR_USERS)
def test_immutable_and_append_only_for_users(pair: Pair, case: Case) -> None:
    check(pair, case, "", as_user)
    compare_flagged(pair)


def compare_flagged(pair: Pair) -> None:
    for name in FLAGS:
        for path in (name, f"{name}-directory"):
            kernel, ours = (pair.kernel / path).stat(), (pair.ours / path).stat()
            assert (ours.st_mode, ours.st_nlink) == (kernel.st_mode, kernel.st_nlink)
        assert state(pair.ours / f"{name}-directory") == state(pair.kernel / f"{name}-directory")


def test_links_of_a_file(pair: Pair) -> None:
    """32000 of them here, as ext2 has always had it; the ext4 driver allows 65000."""
    answers = {
        f"links-{number}": [
            [outcome(partial(os.link, root / f"links-{number}", root / f"new-{number}-{nth}")) for nth in (1, 2)]
            for root in pair.sides()
        ]
        for number in LINKS_COUNTS
    }
    assert answers == {
        "links-31999": [[DONE, DONE], [DONE, "EMLINK"]],
        "links-32000": [[DONE, DONE], ["EMLINK", "EMLINK"]],
        "links-64999": [[DONE, "EMLINK"], ["EMLINK", "EMLINK"]],
        "links-65000": [["EMLINK", "EMLINK"], ["EMLINK", "EMLINK"]],
    }
    os.unlink(pair.ours / "new-31999-1")
    assert outcome(partial(os.link, pair.ours / "links-31999", pair.ours / "new-31999-3")) == DONE


def test_subdirectories(pair: Pair) -> None:
    """Each is a link to its directory: 31998 of them here. Other names are not counted, and a rename can fail too."""

    def try_all(root: Path, number: int) -> list[str]:
        directory = root / f"directory-{number}"
        moved = root / f"moved-{number}"
        (moved / "sub").mkdir(parents=True)
        (moved / "file").touch()
        (directory / "file").touch()
        calls: tuple[Callable[[], object], ...] = (
            lambda: os.mkdir(directory / "1"),
            lambda: os.mkdir(directory / "2"),
            lambda: rename(moved / "sub", directory / "3"),
            lambda: rename(moved, directory / "file", RENAME_EXCHANGE),
            lambda: rename(moved / "file", directory / "4"),
            lambda: os.symlink("target", directory / "5"),
        )
        return [outcome(call) for call in calls]

    full = ["EMLINK"] * 4 + [DONE] * 2
    almost = [DONE, *full[1:]]
    answers = {number: [try_all(root, number) for root in pair.sides()] for number in LINKS_COUNTS}
    assert answers == {
        31_999: [[DONE] * 4 + ["ENOTDIR", DONE], almost],
        32_000: [[DONE] * 4 + ["ENOTDIR", DONE], full],
        64_999: [almost, full],
        65_000: [full, full],
    }


# Ordinary users


def mode_after(call: Callable[[Path], object], name: str) -> Callable[[Path], str]:
    """The mode of a file after a call."""

    def act(directory: Path) -> str:
        call(directory / name)
        return oct(stat.S_IMODE((directory / name).lstat().st_mode))

    return act


def group_of_new(directory: Path, mode: int) -> str:
    """The mode and whether the group is that of the directory, for a file made in a set-group-ID directory."""
    touch_open(directory / "setgid/new", CREATE, mode)
    status = (directory / "setgid/new").lstat()
    return f"{oct(status.st_mode)} {status.st_gid}"


def truncate_on_opening(path: Path) -> None:
    touch_open(path, os.O_WRONLY | os.O_TRUNC)


def write_byte(path: Path) -> None:
    write_at(path, b"x")


def write_as_user(path: Path) -> None:
    """Write as an ordinary user to a handle that root opened."""
    with opened(path, os.O_WRONLY) as handle, as_user():
        os.write(handle, b"x")


USERS = cases(
    Case("read", lambda d: (d / "root").read_bytes(), "b'content\\n'"),
    Case("open to write", lambda d: touch_open(d / "root", os.O_WRONLY), EACCES),
    Case("open to create", lambda d: touch_open(d / "root", CREATE), EACCES),
    Case("create exclusively", lambda d: touch_open(d / "root", CREATE | os.O_EXCL), EEXIST),
    Case("truncate on opening", lambda d: touch_open(d / "root", os.O_RDONLY | os.O_TRUNC), EACCES),
    Case("truncate", lambda d: os.truncate(d / "root", 0), EACCES),
    Case("write what all may write", lambda d: write_at(d / "writable", b"x"), "1"),
    Case("truncate what all may write", lambda d: os.truncate(d / "writable", 0)),
    Case("open a secret", lambda d: touch_open(d / "secret", os.O_RDONLY), EACCES),
    Case("list a closed directory", lambda d: os.listdir(d / "closed"), EACCES),
    Case("stat in a closed directory", lambda d: os.stat(d / "closed/file"), EACCES),
    Case("stat nothing in a closed directory", lambda d: os.stat(d / "closed/missing"), EACCES),
    Case("open in a closed directory", lambda d: touch_open(d / "closed/file", os.O_RDWR), EACCES),
    Case("chdir into a closed directory", lambda d: os.chdir(d / "closed"), EACCES),
    Case("create in a closed directory", lambda d: touch_open(d / "closed/new", CREATE), EACCES),
    Case("create", lambda d: touch_open(d / "roots/new", CREATE), EACCES),
    Case("mkdir", lambda d: os.mkdir(d / "roots/new"), EACCES),
    Case("mkdir over a file", lambda d: os.mkdir(d / "roots/file"), EEXIST),
    Case("mkfifo", lambda d: os.mkfifo(d / "roots/new"), EACCES),
    Case("symlink", lambda d: os.symlink("target", d / "roots/new"), EACCES),
    Case("link", lambda d: os.link(d / "mine", d / "roots/new"), EACCES),
    Case("unlink", lambda d: os.unlink(d / "roots/file"), EACCES),
    Case("unlink what is missing", lambda d: os.unlink(d / "roots/missing"), ENOENT),
    Case("rmdir", lambda d: os.rmdir(d / "roots/directory"), EACCES),
    Case("rename in", lambda d: rename(d / "roots/file", d / "roots/new"), EACCES),
    Case("rename out", lambda d: rename(d / "roots/file", d / "open/new"), EACCES),
    Case("rename into", lambda d: rename(d / "sticky/mine", d / "roots/new"), EACCES),
    Case("rename a directory out", lambda d: rename(d / "roots/directory", d / "open/new"), EACCES),
    Case("rename a directory of root", lambda d: rename(d / "sticky/others-directory", d / "open/new"), EPERM),
    Case("exchange", lambda d: rename(d / "sticky/mine", d / "roots/file", RENAME_EXCHANGE), EACCES),
    Case("create where all may", lambda d: touch_open(d / "open/new", CREATE)),
    Case("mkdir where all may", lambda d: os.mkdir(d / "open/new")),
    Case("mkfifo where all may", lambda d: os.mkfifo(d / "open/new")),
    Case("mknod of a socket", lambda d: os.mknod(d / "open/new", stat.S_IFSOCK | 0o644)),
    Case("mknod of a character device", lambda d: os.mknod(d / "open/new", stat.S_IFCHR | 0o644, 259), EPERM),
    Case("mknod of a block device", lambda d: os.mknod(d / "open/new", stat.S_IFBLK | 0o644, 259), EPERM),
    Case("link to what is another's", lambda d: os.link(d / "root", d / "open/new"), EPERM),
    Case("link to what is mine", lambda d: os.link(d / "mine", d / "open/new")),
    Case("chmod", lambda d: os.chmod(d / "root", 0o666), EPERM),
    Case("chmod what all may write", lambda d: os.chmod(d / "writable", 0o600), EPERM),
    Case("chmod in a closed directory", lambda d: os.chmod(d / "closed/file", 0o600), EACCES),
    Case("chmod mine", lambda d: os.chmod(d / "mine", 0o600)),
    Case("chown", lambda d: os.chown(d / "root", USER, -1), EPERM),
    Case("chown to the same", lambda d: os.chown(d / "root", 0, 0), EPERM),
    Case("chown mine to another", lambda d: os.chown(d / "mine", OTHER, -1), EPERM),
    Case("chown mine to me", lambda d: os.chown(d / "mine", USER, GROUP)),
    Case("chgrp mine to another group", lambda d: os.chown(d / "mine", -1, OTHER), EPERM),
    Case("chgrp mine to a group of mine", lambda d: os.chown(d / "mine", -1, SUPPLEMENTARY)),
    Case("chgrp to a group of mine", lambda d: os.chown(d / "root", -1, SUPPLEMENTARY), EPERM),
    Case("utime", lambda d: os.utime(d / "root", (1, 1)), EPERM),
    Case("utime of what all may write", lambda d: os.utime(d / "writable", (1, 1)), EPERM),
    Case("touch", lambda d: os.utime(d / "root"), EACCES),
    Case("touch what all may write", lambda d: os.utime(d / "writable")),
    Case("setxattr", lambda d: os.setxattr(d / "root", "user.a", b""), EACCES),
    Case("setxattr of what all may write", lambda d: os.setxattr(d / "writable", "user.a", b"")),
    Case("removexattr", lambda d: os.removexattr(d / "root", "user.u"), EACCES),
    Case("getxattr", lambda d: os.getxattr(d / "root", "user.u"), "b'value'"),
    Case("getxattr of a secret", lambda d: os.getxattr(d / "secret", "user.u"), EACCES),
    Case("listxattr of a secret", lambda d: os.listxattr(d / "secret"), "['user.u']"),
    Case("set trusted", lambda d: os.setxattr(d / "mine", "trusted.t", b""), EPERM),
    Case("get trusted", lambda d: os.getxattr(d / "root", "trusted.t"), ENODATA),
    Case("remove trusted", lambda d: os.removexattr(d / "root", "trusted.t"), EPERM),
    Case("list trusted", lambda d: os.listxattr(d / "root"), "['user.u']"),
    Case("set security", lambda d: os.setxattr(d / "mine", "security.s", b""), EPERM),
    Case("set a capability", lambda d: os.setxattr(d / "mine", "security.capability", CAPABILITY), EPERM),
    Case("setxattr of a sticky directory", lambda d: os.setxattr(d / "sticky", "user.a", b""), EPERM),
    Case("setxattr of an open directory", lambda d: os.setxattr(d / "open", "user.a", b"")),
    Case("set an ACL", lambda d: os.setxattr(d / "root", ACCESS_ACL, NAMED_ACL), EPERM),
    Case("set an ACL of what all may write", lambda d: os.setxattr(d / "writable", ACCESS_ACL, NAMED_ACL), EPERM),
    Case("set an ACL of mine", lambda d: os.setxattr(d / "mine", ACCESS_ACL, NAMED_ACL)),
    Case("set a default ACL", lambda d: os.setxattr(d / "open", DEFAULT_ACL, NAMED_ACL), EPERM),
    Case("remove an ACL", lambda d: os.removexattr(d / "root", ACCESS_ACL), EPERM),
    Case("sticky: create", lambda d: touch_open(d / "sticky/new", CREATE)),
    Case("sticky: unlink mine", lambda d: os.unlink(d / "sticky/mine")),
    Case("sticky: unlink another's", lambda d: os.unlink(d / "sticky/others"), EPERM),
    Case("sticky: rmdir another's", lambda d: os.rmdir(d / "sticky/others-directory"), EPERM),
    Case("sticky: rename mine", lambda d: rename(d / "sticky/mine", d / "sticky/new")),
    Case("sticky: rename another's", lambda d: rename(d / "sticky/others", d / "sticky/new"), EPERM),
    Case("sticky: rename over another's", lambda d: rename(d / "sticky/mine", d / "sticky/others"), EPERM),
    Case("sticky: exchange", lambda d: rename(d / "sticky/mine", d / "sticky/others", RENAME_EXCHANGE), EPERM),
    Case("sticky: write another's", lambda d: write_at(d / "sticky/others", b"x"), "1"),
    Case("chmod sets the group ID", mode_after(lambda p: p.chmod(0o2755), "mine"), "0o2755"),
    Case("chmod cannot set a foreign group ID", mode_after(lambda p: p.chmod(0o2755), "mine-of-roots-group"), "0o755"),
    Case("chmod cannot keep it", mode_after(lambda p: p.chmod(0o2600), "mine-setgid-of-roots-group"), "0o600"),
    Case("chmod sets the user ID", mode_after(lambda p: p.chmod(0o4755), "mine-of-roots-group"), "0o4755"),
    Case("chmod sets the sticky bit", mode_after(lambda p: p.chmod(0o1755), "mine"), "0o1755"),
    Case("chown takes the user ID", mode_after(lambda p: os.chown(p, -1, SUPPLEMENTARY), "mine-setid"), "0o777"),
    Case("chown to the same takes it", mode_after(lambda p: os.chown(p, USER, GROUP), "mine-setid"), "0o777"),
    Case("chown to nobody keeps it", mode_after(lambda p: os.chown(p, -1, -1), "mine-setid"), "0o777"),
    Case("write takes the user ID", mode_after(write_byte, "mine-setid"), "0o777"),
    Case("write takes root's user ID", mode_after(write_byte, "writable-setid"), "0o777"),
    Case("write takes a foreign group ID", mode_after(write_byte, "writable-setgid"), "0o666"),
    Case(
        "write takes a foreign group ID of mine",
        mode_after(write_byte, "mine-setgid-of-roots-group"),
        "0o666",
    ),
    Case("truncate takes the user ID", mode_after(lambda p: os.truncate(p, 0), "mine-setid"), "0o777"),
    Case("truncate takes root's user ID", mode_after(lambda p: os.truncate(p, 3), "writable-setid"), "0o777"),
    Case(
        "truncate takes a foreign group ID",
        mode_after(lambda p: os.truncate(p, 3), "writable-setgid"),
        "0o666",
    ),
    Case("opening takes the user ID", mode_after(truncate_on_opening, "mine-setid"), "0o777"),
    Case("opening takes a foreign group ID", mode_after(truncate_on_opening, "writable-setgid"), "0o666"),
    Case("opening keeps the user ID", mode_after(lambda p: touch_open(p, os.O_RDWR), "mine-setid"), "0o6777"),
    Case("setxattr keeps the user ID", mode_after(lambda p: os.setxattr(p, "user.a", b""), "mine-setid"), "0o6777"),
    Case(
        "an ACL takes a foreign group ID",
        mode_after(lambda p: os.setxattr(p, ACCESS_ACL, NAMED_ACL), "mine-setgid-of-roots-group"),
        "0o664",
    ),
    Case("create inherits the group", lambda d: group_of_new(d, 0o644), f"0o100644 {OTHER}"),
    Case("create loses the group ID", lambda d: group_of_new(d, 0o2755), f"0o100755 {OTHER}"),
    Case("create keeps the user ID", lambda d: group_of_new(d, 0o4755), f"0o104755 {OTHER}"),
    Case("create keeps the group ID without x", lambda d: group_of_new(d, 0o2644), f"0o102644 {OTHER}"),
    Case("mkdir inherits the group ID", mode_after(os.mkdir, "setgid/new"), "0o2777"),
)

ROOT = cases(
    Case("a user's write takes the user ID", mode_after(write_as_user, "writable-setid"), "0o777"),
    Case(
        "a user's write takes a foreign group ID", mode_after(write_as_user, "writable-setgid"), "0o666", ours="0o2666"
    ),
    Case("write keeps the user ID", mode_after(write_byte, "mine-setid"), "0o6777"),
    Case("truncate keeps the user ID", mode_after(lambda p: os.truncate(p, 0), "mine-setid"), "0o6777"),
    Case("opening keeps the user ID", mode_after(truncate_on_opening, "mine-setid"), "0o6777"),
    Case("chown takes the user ID", mode_after(lambda p: os.chown(p, 1, 1), "mine-setid"), "0o777"),
    Case("chown keeps the group ID", mode_after(lambda p: os.chown(p, 1, 1), "writable-setgid"), "0o2666"),
    Case("chown of a directory keeps it", mode_after(lambda p: os.chown(p, 1, 1), "setgid"), "0o2777"),
    Case("chmod sets any group ID", mode_after(lambda p: p.chmod(0o2755), "mine-of-roots-group"), "0o2755"),
    Case("create keeps the group ID", lambda d: group_of_new(d, 0o2755), f"0o102755 {OTHER}"),
    Case("open a secret", lambda d: touch_open(d / "secret", os.O_RDWR)),
    Case("unlink in a sticky directory", lambda d: os.unlink(d / "sticky/others")),
    Case("list trusted", lambda d: sorted(os.listxattr(d / "root")), "['trusted.t', 'user.u']"),
)


@pytest.mark.parametrize("case", USERS)
def test_users(pair: Pair, case: Case) -> None:
    check_in("users", pair, case, as_user)


@pytest.mark.parametrize("case", ROOT)
def test_root(pair: Pair, case: Case) -> None:
    check_in("users", pair, case)


# Read-only


READ_ONLY = cases(
    Case("read", lambda d: (d / "file").read_bytes(), "b'content\\n'"),
    Case("open to write", lambda d: touch_open(d / "file", os.O_WRONLY), EROFS),
    Case("open to read and write", lambda d: touch_open(d / "file", os.O_RDWR), EROFS),
    Case("open to append", lambda d: touch_open(d / "file", os.O_WRONLY | os.O_APPEND), EROFS),
    Case("open to create", lambda d: touch_open(d / "file", CREATE), EROFS),
    Case("open a directory to write", lambda d: touch_open(d / "full", os.O_WRONLY), EISDIR),
    Case("open a fifo to read and write", lambda d: touch_open(d / "fifo", os.O_RDWR)),
    Case("truncate on opening", lambda d: touch_open(d / "file", os.O_RDONLY | os.O_TRUNC), EROFS),
    Case("create", lambda d: touch_open(d / "new", CREATE), EROFS),
    Case("create exclusively", lambda d: touch_open(d / "new", CREATE | os.O_EXCL), EROFS),
    Case("create exclusively over a file", lambda d: touch_open(d / "file", CREATE | os.O_EXCL), EEXIST),
    Case("create nowhere", lambda d: touch_open(d / "missing/new", CREATE), ENOENT),
    Case("temporary file", lambda d: touch_open(d, os.O_TMPFILE | os.O_RDWR), EROFS),
    Case("mkdir", lambda d: os.mkdir(d / "new"), EROFS),
    Case("mkdir over a directory", lambda d: os.mkdir(d / "full"), EEXIST),
    *(Case(f"mknod of a {name}", mknod("new", kind), EROFS) for name, kind in SPECIAL_TYPES.items()),
    Case("symlink", lambda d: os.symlink("target", d / "new"), EROFS),
    Case("symlink over a file", lambda d: os.symlink("target", d / "file"), EEXIST),
    Case("link", lambda d: os.link(d / "file", d / "new"), EROFS),
    Case("link over a file", lambda d: os.link(d / "file", d / "other"), EEXIST),
    Case("unlink", lambda d: os.unlink(d / "file"), EROFS),
    Case("unlink what is missing", lambda d: os.unlink(d / "missing"), EROFS),
    Case("unlink a directory", lambda d: os.unlink(d / "full"), EROFS),
    Case("rmdir", lambda d: os.rmdir(d / "directory"), EROFS),
    Case("rmdir what is not empty", lambda d: os.rmdir(d / "full"), EROFS),
    Case("rename", lambda d: rename(d / "file", d / "new"), EROFS),
    Case("rename what is missing", lambda d: rename(d / "missing", d / "new"), EROFS),
    Case("exchange", lambda d: rename(d / "file", d / "other", RENAME_EXCHANGE), EROFS),
    Case("truncate", lambda d: os.truncate(d / "file", 0), EROFS),
    Case("truncate a directory", lambda d: os.truncate(d / "full", 0), EISDIR),
    Case("chmod", lambda d: os.chmod(d / "file", 0o600), EROFS),
    Case("chmod a handle", handle_of("file", os.O_RDONLY, lambda h: os.fchmod(h, 0o600)), EROFS),
    Case("chown", lambda d: os.chown(d / "file", 1, 1), EROFS),
    Case("utime", lambda d: os.utime(d / "file", (1, 1)), EROFS),
    Case("touch", lambda d: os.utime(d / "file"), EROFS),
    Case("setxattr", lambda d: os.setxattr(d / "file", "user.a", b""), EROFS),
    Case("removexattr", lambda d: os.removexattr(d / "file", "user.u"), EROFS),
    Case("removexattr of what is missing", lambda d: os.removexattr(d / "file", "user.a"), EROFS),
    Case("getxattr", lambda d: os.getxattr(d / "file", "user.u"), "b'value'"),
    Case("set an ACL", lambda d: os.setxattr(d / "file", ACCESS_ACL, NAMED_ACL), EROFS),
    Case("access", lambda d: os.access(d / "file", os.W_OK), "False"),
    Case("access to read", lambda d: os.access(d / "file", os.R_OK), "True"),
    Case("sync", handle_of("file", os.O_RDONLY, os.fsync)),
    Case("set flags", lambda d: ioctl(d / "file", FS_IOC_SETFLAGS), EROFS),
)


@pytest.mark.parametrize("case", READ_ONLY)
def test_read_only(read_only_pair: Pair, case: Case) -> None:
    check(read_only_pair, case, "tree")


# Space


def fill(path: Path, step: int) -> tuple[int, bool]:
    """Write to the end of a new file until nothing more can be written.

    Returns:
        Its size, and whether a write was cut short before one failed.
    """
    is_short = False
    with opened(path, CREATE | os.O_APPEND) as handle:
        for length in (200 * step, step):
            while True:
                try:
                    is_short |= os.write(handle, bytes(length)) < length
                except OSError as error:
                    assert error.errno == ENOSPC, error
                    break
        return os.fstat(handle).st_size, is_short


def fill_up(root: Path, step: int) -> tuple[int, bool]:
    """Fill one file, then others with what is too little for the first one's next block and its indirect blocks.

    Returns:
        As ``fill`` of the first, which is called ``filler``.
    """
    result = fill(root / "filler", step)
    rests = 0
    while fill(root / f"rest-{rests}", step)[0]:
        rests += 1
    return result


def free(root: Path) -> tuple[int, int]:
    found = os.statvfs(root)
    return found.f_bfree, found.f_ffree


def make_crowded(directory: Path, block_size: int) -> None:
    """A directory whose only block has no room for another long name."""
    directory.mkdir()
    for number in range((block_size - 24) // 264):
        (directory / f"{number:0255}").touch()


@pytest.fixture(scope="module", params=(1024, 4096))
def full_pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """Mounts on which no block is free, but inodes are."""
    block_size = request.param
    with small_pair(block_size, "-m", "0", "-I", "128", "-N", "256") as pair:
        for root in pair.sides():
            make_crowded(root / "crowded", block_size)
            (root / "room").mkdir()
            for name in ("file", "empty", "attributed", "directory"):
                (root / "room" / name).mkdir() if name == "directory" else (root / "room" / name).touch()
            write_at(root / "room/file", b"content\n", 100 * block_size)
            os.setxattr(root / "room/attributed", "user.u", b"value" * 30)
            fill_up(root, block_size)
            assert free(root)[0] == 0
        yield pair


NEW = "n" * 255
FULL = cases(
    Case("write", lambda d: write_at(d / "room/empty", b"x"), ENOSPC),
    Case("write into a hole", lambda d: write_at(d / "room/file", b"x"), ENOSPC),
    Case("write where there is a block", lambda d: write_at(d / "filler", b"x"), "1"),
    Case("append", lambda d: write_at(d / "filler", b"x", 0, os.O_WRONLY | os.O_APPEND), ENOSPC),
    Case("extend", lambda d: os.truncate(d / "room/empty", 1_000_000)),
    Case("create", lambda d: touch_open(d / "room/created", CREATE)),
    Case("create and write", lambda d: write_at(d / "room/written", b"x", 0, CREATE), ENOSPC),
    Case("mkfifo", lambda d: os.mkfifo(d / "room/fifo")),
    Case("link", lambda d: os.link(d / "room/file", d / "room/link")),
    Case("short symlink", lambda d: os.symlink("t" * 59, d / "room/short")),
    Case("long symlink", lambda d: os.symlink("t" * 60, d / "room/long"), ENOSPC),
    Case("mkdir", lambda d: os.mkdir(d / "room/new"), ENOSPC),
    Case("mkdir over a file", lambda d: os.mkdir(d / "room/file"), EEXIST),
    Case("rename", lambda d: rename(d / "room/empty", d / "room/renamed")),
    Case("chmod", lambda d: os.chmod(d / "room/file", 0o600)),
    Case("setxattr", lambda d: os.setxattr(d / "room/file", "user.a", b"value"), ENOSPC),
    Case("another attribute", lambda d: os.setxattr(d / "room/attributed", "user.a", b"value")),
    Case("set an ACL", lambda d: os.setxattr(d / "room/file", ACCESS_ACL, NAMED_ACL), ENOSPC),
    Case("set a minimal ACL", lambda d: os.setxattr(d / "room/file", ACCESS_ACL, MINIMAL_ACL)),
    Case("crowded: create", lambda d: touch_open(d / "crowded" / NEW, CREATE), ENOSPC),
    Case("crowded: mkdir", lambda d: os.mkdir(d / "crowded" / NEW), ENOSPC),
    Case("crowded: mkfifo", lambda d: os.mkfifo(d / "crowded" / NEW), ENOSPC),
    Case("crowded: mknod", lambda d: os.mknod(d / "crowded" / NEW, stat.S_IFCHR), ENOSPC),
    Case("crowded: symlink", lambda d: os.symlink("target", d / "crowded" / NEW), ENOSPC),
    Case("crowded: link", lambda d: os.link(d / "room/file", d / "crowded" / NEW), ENOSPC),
    Case("crowded: rename", lambda d: rename(d / "room/file", d / "crowded" / NEW), ENOSPC),
    Case("crowded: rename a directory", lambda d: rename(d / "room/directory", d / "crowded" / NEW), ENOSPC),
    Case("crowded: rename over a file", lambda d: rename(d / "room/attributed", d / "crowded" / f"{0:0255}")),
    Case("crowded: exchange", lambda d: rename(d / "room/file", d / "crowded" / f"{1:0255}", RENAME_EXCHANGE)),
    Case(
        "crowded: unlink and create",
        in_turn(
            lambda d: os.unlink(d / "crowded" / f"{2:0255}"),
            lambda d: touch_open(d / "crowded" / NEW, CREATE),
        ),
    ),
)  # fmt: skip


@pytest.mark.parametrize("case", FULL)
def test_full(full_pair: Pair, case: Case) -> None:
    check(full_pair, case, "")
    assert state(full_pair.ours) == state(full_pair.kernel)
    assert free(full_pair.ours) == free(full_pair.kernel)


def test_write_that_fits_in_part(full_pair: Pair) -> None:
    """It is cut short; the kernel takes a page or nothing, we take every block."""
    kernel = "1000" if full_pair.block_size == 4096 else "ENOSPC"
    for root, expected in ((full_pair.kernel, kernel), (full_pair.ours, "1000")):
        path = root / "filler"
        assert outcome(partial(write_at, path, bytes(5000), path.stat().st_size - 1000)) == expected
    assert state(full_pair.ours) == state(full_pair.kernel)


@pytest.mark.parametrize("block_size", (1024, 4096))
def test_writing_until_it_is_full(block_size: int) -> None:
    """A write that fits in part is cut short, the next one fails; when something is removed there is room again."""
    with small_pair(block_size, "-m", "0") as pair:
        kernel, ours = (fill_up(root, block_size) for root in pair.sides())
        assert ours == kernel
        assert kernel[1]
        for root in pair.sides():
            assert outcome(partial(os.mkdir, root / "directory")) == "ENOSPC"
            os.truncate(root / "filler", kernel[0] - 3 * block_size)
            assert outcome(partial(os.mkdir, root / "directory")) == DONE
            os.unlink(root / "filler")
            assert fill(root / "filler", block_size)[0] > kernel[0] - 5 * block_size
        assert free(pair.ours) == free(pair.kernel)


def test_full_inode_table() -> None:
    """Names of what there is already can still be made."""

    def make_all(root: Path) -> list[str]:
        made: list[str] = []
        while (answer := outcome(partial(os.mknod, root / f"{len(made)}"))) == DONE:
            made.append(answer)
        calls: tuple[Callable[[], object], ...] = (
            lambda: touch_open(root / "new", CREATE),
            lambda: os.mkdir(root / "new"),
            lambda: os.mkfifo(root / "new"),
            lambda: os.symlink("target", root / "new"),
            lambda: os.link(root / "0", root / "link"),
            lambda: write_at(root / "0", b"x"),
            lambda: rename(root / "0", root / "renamed"),
            lambda: os.unlink(root / "1"),
            lambda: os.mkdir(root / "new"),
            lambda: touch_open(root / "another", CREATE),
        )
        return [str(len(made)), answer, *(outcome(call) for call in calls)]

    with small_pair(1024, "-N", "32") as pair:
        kernel, ours = (make_all(root) for root in pair.sides())
        assert ours == kernel
        assert kernel[1:] == ["ENOSPC"] * 5 + [DONE, "1", DONE, DONE, DONE, "ENOSPC"]
        assert free(pair.ours) == free(pair.kernel)
        assert state(pair.ours) == state(pair.kernel)


def test_reserved_blocks() -> None:
    """They are for root. On a handle it counts here who opened it, as a write does not say who writes."""
    with small_pair(1024, "-m", "20") as pair:
        for root in pair.sides():
            (root / "users").mkdir()
            (root / "users").chmod(0o777)
            with as_user():
                touch_open(root / "users/root-writes", CREATE)
            (root / "user-writes").touch()
        answers = []
        for root in pair.sides():
            with as_user():
                sizes = fill_up(root / "users", 1024)
                as_a_user = [
                    outcome(partial(touch_open, root / "users/empty", CREATE)),
                    outcome(partial(os.mkdir, root / "users/directory")),
                    outcome(partial(os.symlink, "t" * 100, root / "users/symlink")),
                    outcome(partial(os.setxattr, root / "users/empty", "user.a", bytes(500))),
                ]
            available = os.statvfs(root).f_bavail
            as_root = [
                outcome(partial(os.mkdir, root / "directory")),
                outcome(partial(write_at, root / "new", b"x", 0, CREATE)),
                outcome(partial(os.setxattr, root / "users/empty", "user.a", bytes(500))),
            ]
            answers.append((sizes, as_a_user, available, as_root, free(root)))
        kernel, ours = answers
        assert ours == kernel
        assert kernel[1] == [DONE, "ENOSPC", "ENOSPC", "ENOSPC"]
        assert kernel[2] == 0
        assert kernel[3] == [DONE, "1", DONE]
        for root, user_writes, root_writes in ((pair.kernel, "ENOSPC", "1"), (pair.ours, "1", "ENOSPC")):
            with opened(root / "user-writes", os.O_WRONLY) as handle, as_user():
                assert outcome(partial(os.write, handle, b"x")) == user_writes
            with as_user():
                handle = os.open(root / "users/root-writes", os.O_WRONLY)
            try:
                assert outcome(partial(os.write, handle, b"x")) == root_writes
            finally:
                os.close(handle)


# Ours alone


def test_full_overlay() -> None:
    """What is written fills the memory that it may take up; removing something makes room."""
    with open_directory() as directory:
        (directory / "source").mkdir()
        image = make_image(directory, directory / "source", 1024, "16M", "-N", "4096")
        arguments = ("--insecure", "--overlay-limit", "2M")
        with mounted(image, directory / "ours", *arguments) as root:
            (root / "directory").mkdir()
            size, is_short = fill(root / "filler", 1024)
            assert 1 << 20 < size < 2 << 20
            assert is_short
            # What a block of a file and its indirect blocks find no room for still is room for a directory.
            directories = 0
            while outcome(partial(os.mkdir, root / f"{directories}")) == DONE:
                directories += 1
            assert directories < 100
            assert free(root)[0] > 8192
            answers = [
                outcome(partial(os.symlink, "t" * 100, root / "symlink")),
                outcome(partial(os.mkdir, root / "new")),
                outcome(partial(os.setxattr, root / "filler", "user.a", bytes(900))),
                outcome(partial(write_at, root / "filler", b"x", 10 << 20)),
                outcome(partial(write_at, root / "filler", b"x")),
                outcome(partial(os.chmod, root / "filler", 0o600)),
                outcome(partial(os.truncate, root / "filler", 500_000)),
                outcome(partial(os.mkdir, root / "new")),
                outcome(partial(os.unlink, root / "filler")),
            ]
            assert answers == ["ENOSPC"] * 4 + ["1", DONE, DONE, DONE, DONE]
            assert fill(root / "filler", 1024)[0] >= size - 8192


CONTROL = ".mystfuse"
IN_CONTROL: dict[str, Callable[[Path, Path], object]] = {
    "create": lambda d, root: touch_open(d / "new", CREATE),
    "create exclusively": lambda d, root: touch_open(d / "new", CREATE | os.O_EXCL),
    "mkdir": lambda d, root: os.mkdir(d / "new"),
    "mkfifo": lambda d, root: os.mkfifo(d / "new"),
    "mknod": lambda d, root: os.mknod(d / "new", stat.S_IFCHR | 0o600),
    "symlink": lambda d, root: os.symlink("target", d / "new"),
    "link into": lambda d, root: os.link(root / "tree/file", d / "new"),
    "link out of": lambda d, root: os.link(d / "status.json", root / "new"),
    "unlink": lambda d, root: os.unlink(d / "status.json"),
    "unlink the image": lambda d, root: os.unlink(d / "image"),
    "rmdir": lambda d, root: os.rmdir(d),
    "rename in": lambda d, root: rename(d / "status.json", d / "new"),
    "rename over": lambda d, root: rename(d / "status.json", d / "image"),
    "rename into": lambda d, root: rename(root / "tree/file", d / "new"),
    "rename out of": lambda d, root: rename(d / "status.json", root / "new"),
    "rename it": lambda d, root: rename(d, root / "new"),
    "rename over it": lambda d, root: rename(root / "tree/directory", d),
    "exchange it": lambda d, root: rename(root / "tree/directory", d, RENAME_EXCHANGE),
    "exchange in it": lambda d, root: rename(root / "tree/file", d / "image", RENAME_EXCHANGE),
    "open to write": lambda d, root: touch_open(d / "status.json", os.O_WRONLY),
    "open to append": lambda d, root: touch_open(d / "image", os.O_RDWR | os.O_APPEND),
    "truncate on opening": lambda d, root: touch_open(d / "image", os.O_RDONLY | os.O_TRUNC),
    "truncate": lambda d, root: os.truncate(d / "image", 0),
    "chmod": lambda d, root: os.chmod(d / "status.json", 0o666),
    "chmod it": lambda d, root: os.chmod(d, 0o777),
    "chown": lambda d, root: os.chown(d / "image", 1, 1),
    "utime": lambda d, root: os.utime(d / "image", (1, 1)),
    "touch": lambda d, root: os.utime(d),
    "setxattr": lambda d, root: os.setxattr(d / "image", "user.a", b""),
    "setxattr of it": lambda d, root: os.setxattr(d, "trusted.a", b""),
    "removexattr": lambda d, root: os.removexattr(d / "image", "user.a"),
    "set an ACL": lambda d, root: os.setxattr(d, DEFAULT_ACL, NAMED_ACL),
}


@pytest.mark.parametrize("name", IN_CONTROL)
def test_control_directory(pair: Pair, name: str) -> None:
    """Nothing in it can be changed, nor can it itself."""
    root = pair.ours
    assert outcome(partial(IN_CONTROL[name], root / CONTROL, root)) == "EPERM"
    assert sorted(os.listdir(root / CONTROL)) == ["image", "status.json"]


def test_control_directory_read_only(read_only_pair: Pair) -> None:
    """The kernel is asked first whether the mount is writable; what it leaves to us is as ever."""
    root = read_only_pair.ours
    answers = {name: outcome(partial(call, root / CONTROL, root)) for name, call in IN_CONTROL.items()}
    assert set(answers.values()) == {"EROFS"}


def test_control_directory_is_there_already(pair: Pair) -> None:
    for call in (os.mkdir, os.mkfifo, partial(os.symlink, "target")):
        assert outcome(partial(call, pair.ours / CONTROL)) == "EEXIST"
