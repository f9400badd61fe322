"""The same call on our mount and on the kernel's own mount of the same image, compared.

A case states the kernel's answer, so that no case passes because of a mistake in it, and our answer only where it
differs on purpose (docs/differences.md). After every call both sides must show the same names, modes, link counts and
sizes: a failed call leaves nothing behind.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from removal import temporary_directory

from tests.support.commands import GROUP, USER, run
from tests.support.mounts import HAS_FAST_PATH, mounted

DONE = "done"
"""The answer of a call that succeeds without a result."""
OTHER = 1234
"""A user other than root and the acting user."""
SUPPLEMENTARY = 4321
"""A further group of the acting user."""
AT_FDCWD = -100
RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4
FS_IOC_GETFLAGS, FS_IOC_SETFLAGS = 0x80086601, 0x40086602
ACCESS_ACL, DEFAULT_ACL = "system.posix_acl_access", "system.posix_acl_default"

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Pair:
    """The two mounts of one image."""

    kernel: Path
    ours: Path
    block_size: int
    kind: str = "ext2"
    """What mke2fs and the kernel call the file system."""
    unchanged: dict[str, list[str]] = field(default_factory=dict)
    """Directories, by contents, in which all calls so far have failed."""

    def sides(self) -> tuple[Path, Path]:
        return self.kernel, self.ours


@contextmanager
def open_directory() -> Iterator[Path]:
    """A directory to which other users have access."""
    with temporary_directory("mystfuse-test-errnos-") as name:
        name.chmod(0o755)
        yield name


@contextmanager
def pair_of(
    image: Path, block_size: int, read_only: bool = False, options: str = "", kind: str = "ext2"
) -> Iterator[Pair]:
    """Both mounts of an image: the kernel's of a copy, whose loop device goes away with it, and ours, with further
    ``options``. ``kind`` is the type of file system that the kernel mounts."""
    with open_directory() as directory:
        copy, kernel = directory / "copy", directory / "kernel"
        kernel.mkdir()
        run("cp", "--sparse=always", image, copy)
        mode = "ro" if read_only else "rw"
        run("mount", "-t", kind, "-o", f"loop,{mode},noatime,acl,user_xattr", copy, kernel)
        try:
            arguments = ("--insecure", "--allow-other", "-o", f"suid,dev,{mode}{options}")
            with mounted(image, directory / "ours", *arguments) as ours:
                yield Pair(kernel, ours, block_size, kind)
        finally:
            if run("umount", kernel, check=False).returncode:
                run("umount", "--lazy", kernel)


def make_image(
    directory: Path, source: Path, block_size: int, size: str, *options: str, kind: str = "ext2"
) -> Path:
    """An EXT2 image of the files in ``source``."""
    image = directory / "image"
    run("mke2fs", "-q", "-F", "-t", kind, "-b", str(block_size), "-d", source, *options, image, size)
    return image


def make_tree(directory: Path) -> None:
    """One file of every kind."""
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
    """Files and directories of root, of the acting user and of another user, in a directory of root."""

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
"""The number of directories, each for one call that changes something, or for any number of calls that do not."""


def copies(contents: str) -> list[str]:
    return [f"{contents}-{number}" for number in range(COPIES[contents])]


FLAGS = {"immutable": 0x10, "append": 0x20}
LINKS_COUNTS = (31_999, 32_000, 64_999, 65_000)


def make_source(source: Path) -> None:
    """Calls cannot make these, so the image has them: inodes with flags, and with many links."""
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


Acting = Callable[[], AbstractContextManager[None]]


@contextmanager
def acting_as(uid: int, gid: int, *groups: int) -> Iterator[None]:
    """In the block, act as another user as far as files are concerned."""
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
    """As ``touch_open``, keeping a trailing slash."""
    os.close(os.open(path, flags, 0o644))


def write_at(path: Path, data: bytes, offset: int = 0, flags: int = os.O_WRONLY) -> int:
    with opened(path, flags) as handle:
        return os.pwrite(handle, data, offset)


def libc(name: str, *arguments: Any) -> int:
    """Call a function that Python lacks."""
    result: int = getattr(_libc, name)(*arguments)
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def rename(old: Path | str, new: Path | str, flags: int = 0) -> None:
    libc("renameat2", AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags)


def acl(*entries: tuple[int, int, int], version: int = 2) -> bytes:
    """The value of an ACL attribute: tags, permissions, ids."""
    return struct.pack("<I", version) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


NO_ID = 0xFFFFFFFF
MINIMAL_ACL = acl((0x01, 6, NO_ID), (0x04, 4, NO_ID), (0x20, 4, NO_ID))
NAMED_ACL = acl((0x01, 6, NO_ID), (0x02, 6, OTHER), (0x04, 4, NO_ID), (0x10, 6, NO_ID), (0x20, 4, NO_ID))


def outcome(call: Callable[[], object]) -> str:
    """The answer of a call: an errno by name, or its result."""
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
    """Our answer where it differs from the kernel's on purpose."""
    on_ext4: tuple[int | str, int | str] | None = None
    """The kernel's answer on ext4, and ours there, if they are others."""

    def answers(self, kind: str) -> tuple[str, str]:
        """The kernel's answer, and ours."""
        if self.on_ext4 is not None and kind == "ext4":
            return spell(self.on_ext4[0]), spell(self.on_ext4[1])
        return spell(self.kernel), spell(self.kernel if self.ours is None else self.ours)


def without_fast_path(answer: int | str) -> int | str | None:
    """Our answer, for a case, where pyfuse3 alone serves: it has no such request."""
    return None if HAS_FAST_PATH else answer


class Differs(AssertionError):
    """Our answer is wrong."""


def cases(*table: Case) -> list[Any]:
    """The parameters of a test."""
    names = [case.name for case in table]
    assert len(set(names)) == len(names), "two cases have one name"
    parameters = []
    for case in table:
        parameters.append(pytest.param(case, id=case.name.replace(" ", "-")))
    return parameters


def spell(answer: int | str) -> str:
    """As by ``outcome``."""
    return errno.errorcode[answer] if isinstance(answer, int) else answer


def check(pair: Pair, case: Case, path: str, acting: Acting = nullcontext) -> None:
    """Make the call on both sides and compare the answers."""
    answers = []
    for root in pair.sides():
        with acting():
            answers.append(outcome(partial(case.call, root / path)))
    kernel, ours = answers
    stated, expected = case.answers(pair.kind)
    assert kernel == stated, "the kernel answers another thing: the case is wrong"
    if ours != expected:
        raise Differs(f"{ours} instead of {expected}")


def check_in(contents: str, pair: Pair, case: Case, acting: Acting = nullcontext) -> None:
    """``check`` in one of the CONTENTS, and compare its effects: none, if it fails."""
    assert pair.unchanged[contents], "all are used: more COPIES are needed"
    name = pair.unchanged[contents].pop()
    before = state(pair.kernel / name)
    check(pair, case, name, acting)
    stated, expected = case.answers(pair.kind)
    if stated == expected:
        kernel, ours = state(pair.kernel / name), state(pair.ours / name)
        assert ours == kernel
        if stated != DONE and stated.startswith("E") and before == kernel:
            pair.unchanged[contents].append(name)


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


def handle_of(name: str, flags: int, call: Callable[[int], object]) -> Callable[[Path], object]:
    """A call with a handle of a file."""

    def act(directory: Path) -> object:
        with opened(directory / name, flags) as handle:
            return call(handle)

    return act


def ioctl(path: Path, number: int) -> None:
    with opened(path, os.O_RDONLY) as handle:
        fcntl.ioctl(handle, number, bytes(8))
