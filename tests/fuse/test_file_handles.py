"""File handles, as NFS servers, CRIU and backup programs use them: name_to_handle_at(2), open_by_handle_at(2)."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mystfuse.fuse import control_directory_names
from tests.support.commands import mystfuse, wait_until
from tests.support.mounts import drop_caches, logged, mounted

_FILEID_INO64_GEN = 0x81
"""include/linux/exportfs.h: inode number, high half first, and generation."""
_BEHIND = 1 + max(number for name, number in vars(control_directory_names).items() if name.endswith("_INO"))
"""Behind those of the control directory."""
NUMBERS = [0, 1 << 16, (1 << 31) + 12, _BEHIND, (1 << 32) + 12, (1 << 63) + 12]
"""Inode numbers that no file has: 0, numbers past the last, and numbers that equal another one's low 32 bits."""
RESERVED = range(2, 11)
"""The root is inode 2 in the image; the kernel calls it 1."""


class Handle:
    """A file handle: the kernel's struct file_handle."""

    def __init__(self, kind: int, data: bytes) -> None:
        self.kind = kind
        self.data = data

    @classmethod
    def of(cls, path: Path) -> Handle:
        buffer = ctypes.create_string_buffer(struct.pack("Ii", 128, 0), 136)
        _call("name_to_handle_at", -100, os.fsencode(path), buffer, ctypes.byref(ctypes.c_int()), 0)
        length, kind = struct.unpack_from("Ii", buffer)
        return cls(kind, buffer.raw[8 : 8 + length])

    @classmethod
    def made(cls, ino: int, generation: int) -> Handle:
        return cls(_FILEID_INO64_GEN, struct.pack("III", ino >> 32, ino & 0xFFFFFFFF, generation))

    @property
    def generation(self) -> int:
        return int(struct.unpack_from("I", self.data, 8)[0])

    @property
    def ino(self) -> int:
        high, low = struct.unpack_from("II", self.data)
        return int(high << 32 | low)

    def open(self, mountpoint: Path, flags: int) -> int:
        mount = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY)
        try:
            return _call("open_by_handle_at", mount, struct.pack("Ii", len(self.data), self.kind) + self.data, flags)
        finally:
            os.close(mount)

    def stat(self, mountpoint: Path) -> os.stat_result:
        descriptor = self.open(mountpoint, os.O_PATH)
        try:
            return os.fstat(descriptor)
        finally:
            os.close(descriptor)


def _call(name: str, *arguments: object) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    result: int = getattr(libc, name)(*arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def is_stale(handle: Handle, mountpoint: Path) -> bool:
    try:
        handle.stat(mountpoint)
    except OSError as error:
        return error.errno == errno.ESTALE
    return False


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("handles")
    tree = directory / "tree"
    (tree / "one/two").mkdir(parents=True)
    (tree / "one/two/file").write_text("content")
    (tree / "link").symlink_to("one")
    os.mkfifo(tree / "fifo")
    os.mknod(tree / "device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    assert mystfuse("mkext2", "--free=1M", tree, directory / "image").returncode == 0
    return directory / "image"


@pytest.fixture
def mount(image: Path, tmp_path: Path) -> Iterator[tuple[Path, Callable[[], str]]]:
    """The mountpoint, and a function that returns the daemon's log."""
    log = tmp_path / "log"
    with mounted(image, tmp_path / "mount", "-o", "trust_self", f"--log-file={log}") as mountpoint:
        yield mountpoint, lambda: logged(mountpoint, log)


def test_handles_outlive_the_kernels_memory(mount: tuple[Path, Callable[[], str]]) -> None:
    mountpoint, _ = mount
    (mountpoint / "one/two/new").write_text("written")
    names = ["one", "one/two", "one/two/file", "one/two/new", "link", "fifo", "device", ".mystfuse/status.json"]
    known = {name: (os.lstat(mountpoint / name), Handle.of(mountpoint / name)) for name in names}
    drop_caches()
    for name, (was, handle) in known.items():
        found = handle.stat(mountpoint)
        assert (found.st_ino, found.st_mode, found.st_size) == (was.st_ino, was.st_mode, was.st_size), name
    drop_caches()
    for name, content in (("one/two/file", b"content"), ("one/two/new", b"written")):
        descriptor = known[name][1].open(mountpoint, os.O_RDWR)
        try:
            assert os.read(descriptor, 100) == content
            assert os.write(descriptor, b" and more") == 9
        finally:
            os.close(descriptor)
        assert (mountpoint / name).read_bytes() == content + b" and more"
    # From a directory's handle the kernel finds the parents.
    drop_caches()
    descriptor = known["one/two"][1].open(mountpoint, os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert os.readlink(f"/proc/self/fd/{descriptor}") == f"{mountpoint}/one/two"
        assert os.listdir(descriptor) == ["file", "new"]
    finally:
        os.close(descriptor)


def test_the_handle_of_a_removed_file_is_stale_and_no_fault_of_the_image(
    mount: tuple[Path, Callable[[], str]],
) -> None:
    mountpoint, logged = mount
    quiet, before = logged(), os.statvfs(mountpoint)
    (mountpoint / "dir").mkdir()
    (mountpoint / "file").write_text("old")
    handles = [Handle.of(mountpoint / "dir"), Handle.of(mountpoint / "file")]
    drop_caches()
    assert handles[1].stat(mountpoint).st_size == 3
    (mountpoint / "file").unlink()
    (mountpoint / "dir").rmdir()
    # The kernel forgets an inode that it knew by its handle like any other, and we free it.
    wait_until(lambda: os.statvfs(mountpoint).f_ffree == before.f_ffree)
    assert all(is_stale(handle, mountpoint) for handle in handles)
    (mountpoint / "another").write_text("new")
    (mountpoint / "other").mkdir()
    drop_caches()
    numbers = {os.stat(mountpoint / name).st_ino for name in ("another", "other")}
    assert {handle.ino for handle in handles} & numbers, "not reused"
    drop_caches()
    assert all(is_stale(handle, mountpoint) for handle in handles)
    assert logged() == quiet


def test_invented_handles_are_stale(mount: tuple[Path, Callable[[], str]]) -> None:
    mountpoint, logged = mount
    (mountpoint / "file").touch()
    handle = Handle.of(mountpoint / "file")
    ino = os.stat(mountpoint / "file").st_ino
    assert Handle.made(ino, handle.generation).stat(mountpoint).st_ino == ino
    quiet = logged()
    for number in (*NUMBERS, *RESERVED):
        assert is_stale(Handle.made(number, 0), mountpoint), number
    for generation in (handle.generation + 1 & 0xFFFFFFFF, handle.generation ^ 1 << 31):
        assert is_stale(Handle.made(ino, generation), mountpoint)
        drop_caches()
        assert is_stale(Handle.made(ino, generation), mountpoint)
    assert logged() == quiet
