"""Random changes of a tree, and two programs that apply layers."""

from __future__ import annotations

import os
import random
import shutil
import stat
import struct
import tarfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tests.support.commands import run

NAMES = [b"a", b"b", b"c", b"d-e", b"d", b"d.f", b"sp ace", b"new\nline", b"\xff\xfe", "\u00e9".encode(), b"n" * 255,
         b"-x", b"w.wh.x", b"p%=q"]  # fmt: skip
_CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")


def _acl(user: int) -> bytes:
    """An ACL that lets a user read, in the kernel's form."""
    none = 0xFFFFFFFF
    entries = [(1, 6, none), (2, 4, user), (4, 4, none), (0x10, 6, none), (0x20, 0, none)]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


class Changer:
    """Changes what is below a directory, at random but the same way for the same seed."""

    def __init__(self, root: Path, seed: int) -> None:
        self._root = os.fsencode(root)
        self._random = random.Random(seed)

    def change(self, count: int) -> None:
        for _ in range(count):
            # What is impossible (a directory moved into itself, a name that is taken) is left out.
            with suppress(OSError):
                self._random.choice(self._actions())()

    def _actions(self) -> list[Callable[[], None]]:
        make = [self._file] * 4 + [self._directory] * 5 + [self._symlink, self._node, self._holes] * 2
        change = [self._write, self._chmod, self._chown, self._utime, self._attribute, self._access, self._truncate]
        move = [self._link, self._link, self._rename, self._rename, self._rename_directory, self._replace_directory]
        remove = [self._unlink, self._remove_tree, self._other_type]
        return make + change + move + remove

    def _paths(self, kind: Callable[[int], bool] = lambda mode: True) -> list[bytes]:
        found = []
        for directory, names, others in os.walk(self._root):
            for name in names + others:
                path = os.path.join(directory, name)
                if b"lost+found" not in path and kind(os.lstat(path).st_mode):
                    found.append(path)
        return sorted(found)

    def _some(self, kind: Callable[[int], bool] = lambda mode: True) -> bytes:
        paths = self._paths(kind)
        if not paths:
            raise FileNotFoundError
        return self._random.choice(paths)

    def _place(self) -> bytes:
        directory = self._random.choice([self._root, *self._paths(stat.S_ISDIR)])
        return os.path.join(directory, self._random.choice(NAMES))

    def _data(self) -> bytes:
        return self._random.randbytes(self._random.choice([0, 1, 511, 512, 513, 5000, 70_000]))

    def _file(self) -> None:
        with open(self._place(), "xb") as file:
            file.write(self._data())

    def _holes(self) -> None:
        with open(self._place(), "xb") as file:
            file.seek(self._random.choice([4096, 300_000]))
            file.write(b"data")
            file.truncate(self._random.choice([400_000, 2_000_000]))

    def _directory(self) -> None:
        os.mkdir(self._place(), self._random.choice([0o700, 0o2755, 0o1777]))

    def _symlink(self) -> None:
        os.symlink(self._random.choice([b"a", b"../b", b"/nowhere", b"t" * 300, b"\xff"]), self._place())

    def _node(self) -> None:
        kind = self._random.choice([stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK])
        os.mknod(self._place(), kind | 0o640, os.makedev(self._random.choice([1, 259]), 3))

    def _write(self) -> None:
        with open(self._some(stat.S_ISREG), "r+b") as file:
            file.seek(self._random.choice([0, 100, 10_000]))
            file.write(self._data())

    def _truncate(self) -> None:
        os.truncate(self._some(stat.S_ISREG), self._random.choice([0, 10, 100_000]))

    def _chmod(self) -> None:
        os.chmod(self._some(lambda mode: not stat.S_ISLNK(mode)), self._random.choice([0o644, 0o4755, 0o2751, 0o1777]))

    def _chown(self) -> None:
        os.lchown(self._some(), self._random.choice([0, 1000, 3_000_000]), self._random.choice([0, 8, 70_000]))

    def _utime(self) -> None:
        times = self._random.choice([0, -5_000_000_000, 1_700_000_000_123_456_789, 1_600_000_000_000_000_000])
        os.utime(self._some(), ns=(times, times), follow_symlinks=False)

    def _attribute(self) -> None:
        path = self._some(lambda mode: stat.S_ISREG(mode) or stat.S_ISDIR(mode))
        name = self._random.choice(["user.one", "user.two", "trusted.x", "security.capability"])
        if self._random.random() < 0.3:
            os.removexattr(path, name)
        else:
            value = _CAPABILITY if name.startswith("security") else self._random.randbytes(self._random.choice([1, 90]))
            os.setxattr(path, name, value)

    def _access(self) -> None:
        path = self._some(lambda mode: stat.S_ISREG(mode) or stat.S_ISDIR(mode))
        kind = "default" if stat.S_ISDIR(os.lstat(path).st_mode) and self._random.random() < 0.5 else "access"
        os.setxattr(path, f"system.posix_acl_{kind}", _acl(self._random.choice([1, 1000])))

    def _link(self) -> None:
        os.link(self._some(lambda mode: not stat.S_ISDIR(mode)), self._place(), follow_symlinks=False)

    def _rename(self) -> None:
        os.rename(self._some(), self._place())

    def _rename_directory(self) -> None:
        os.rename(self._some(stat.S_ISDIR), self._place())

    def _replace_directory(self) -> None:
        """Another directory of the same name, with some of what was in it."""
        path = self._some(stat.S_ISDIR)
        os.rename(path, self._root + b"/moved")
        os.mkdir(path)
        for name in os.listdir(self._root + b"/moved"):
            if self._random.random() < 0.4:
                os.rename(os.path.join(self._root, b"moved", name), os.path.join(path, name))
        if self._random.random() < 0.7:
            shutil.rmtree(self._root + b"/moved")

    def _unlink(self) -> None:
        os.unlink(self._some(lambda mode: not stat.S_ISDIR(mode)))

    def _remove_tree(self) -> None:
        shutil.rmtree(self._some(stat.S_ISDIR))

    def _other_type(self) -> None:
        path = self._some()
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
            os.symlink(b"a", path)
        else:
            os.unlink(path)
            os.mkdir(path)
            os.mkdir(path + b"/within")


def apply_by_tar(layer: Path, root: Path) -> None:
    """Apply a layer to the tree below it: whiteouts by their rules, the rest by GNU tar."""
    top = os.fsencode(root)
    with tarfile.open(layer) as archive:
        members = [(os.fsencode(member.name), member.isdir(), member.mode) for member in archive]
    for path, _, _ in members:
        directory, name = os.path.split(os.path.join(top, path))
        if name == b".wh..wh..opq":
            for below in os.listdir(directory) if os.path.isdir(directory) else ():
                _remove(os.path.join(directory, below))
        elif name.startswith(b".wh."):
            _remove(os.path.join(directory, name[4:]))
    for path, is_directory, _ in members:
        place = os.path.join(top, path)
        if os.path.basename(path).startswith(b".wh.") or not os.path.lexists(place):
            continue
        if not is_directory or os.path.islink(place) or not os.path.isdir(place):
            _remove(place)
        else:
            for attribute in os.listxattr(place):
                os.removexattr(place, attribute)
    run("tar", "-x", "--xattrs", "--xattrs-include=*", "--acls", "-p", "--numeric-owner", "--warning=no-timestamp",
        "--exclude=.wh.*", "-f", layer, "-C", root)  # fmt: skip
    for path, is_directory, mode in members:
        # tar leaves a directory the set-group-ID bit that it inherits.
        if is_directory:
            os.chmod(os.path.join(top, path), mode)


def _remove(path: bytes) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        with suppress(FileNotFoundError):
            os.unlink(path)


def apply_by_umoci(layers: list[Path], directory: Path) -> Path:
    """Unpack an image of these layers, the lowest first; returns where its tree is."""
    layout, root = directory / "layout", directory / "by-umoci"
    shutil.rmtree(layout, ignore_errors=True)
    shutil.rmtree(root, ignore_errors=True)
    run("umoci", "init", "--layout", layout)
    run("umoci", "new", "--image", f"{layout}:latest")
    for layer in layers:
        run("umoci", "raw", "add-layer", "--image", f"{layout}:latest", layer)
    run("umoci", "raw", "unpack", "--image", f"{layout}:latest", root)
    return root
