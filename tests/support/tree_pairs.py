"""Pairs of random trees that differ in all ways."""

from __future__ import annotations

import os
import random
import stat
import struct
from collections.abc import Callable
from pathlib import Path

from tests.support.commands import run

NAMES = ("a", "b", "c.txt", "sp ace", "ü", "-dash", "new\nline", "tail ", "Z", "a.b", "d1", "d2")
_SECOND = 10**9


class PairMaker:
    """Makes ``old`` and ``new`` below a directory."""

    def __init__(self, place: Path, seed: int) -> None:
        self.old, self.new = place / "old", place / "new"
        self._random = random.Random(seed)
        self.old.mkdir()
        self._fill(self.old, 3)
        run("cp", "-a", self.old, self.new)
        for _ in range(self._random.randrange(25)):
            self._mutate()

    def _time(self) -> tuple[int, int]:
        """Never whole seconds: those are equal to any within."""
        time = self._random.randrange(10**9, 2 * 10**9) * _SECOND + self._random.randrange(1, _SECOND)
        return time, time

    def _fill(self, directory: Path, depth: int) -> None:
        for name in self._random.sample(NAMES, self._random.randrange(2, 6)):
            self._make(directory / name, depth)
        os.utime(directory, ns=self._time())

    def _make(self, path: Path, depth: int) -> None:
        kind = self._random.choices(("file", "directory", "symlink", "fifo", "device", "sparse"), (8, 4, 2, 1, 1, 1))[0]
        if kind == "directory" and depth:
            path.mkdir(self._random.choice((0o755, 0o700, 0o2775)))
            self._fill(path, depth - 1)
            return
        if kind == "symlink":
            path.symlink_to(self._random.choice(("a", "../b", "/nowhere", "x" * 70)))
        elif kind == "fifo":
            os.mkfifo(path)
        elif kind == "device":
            os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, self._random.randrange(3, 6)))
        elif kind == "sparse":
            with path.open("wb") as file:
                file.seek(self._random.randrange(3 << 20))
                file.write(self._random.randbytes(5000))
                file.truncate(4 << 20)
        else:
            path.write_bytes(self._random.randbytes(self._random.choice((0, 1, 100, 4096, 5000, 1_200_000))))
        self._touch(path)

    def _touch(self, path: Path) -> None:
        os.utime(path, ns=self._time(), follow_symlinks=False)

    def _paths(self, accepts: Callable[[Path], bool]) -> list[Path]:
        return [path for path in sorted(self.new.rglob("*")) if accepts(path)]

    def _mutate(self) -> None:
        """Change something in ``new``."""
        pick = self._random.choice
        files = self._paths(lambda path: path.is_file() and not path.is_symlink())
        all_paths = self._paths(lambda path: True)
        directories = [self.new, *self._paths(lambda path: path.is_dir() and not path.is_symlink())]
        mutation = pick(
            (
                self._change_byte,
                self._append,
                self._change_mode,
                self._change_owner,
                self._change_time,
                self._change_xattr,
                self._change_acl,
                self._remove,
                self._add,
                self._link,
                self._replace,
                self._retarget,
            )
        )
        if mutation in (self._change_byte, self._append, self._change_acl, self._link) and not files:
            return
        if mutation == self._add:
            mutation(pick(directories))
        elif mutation in (self._change_byte, self._append, self._change_acl, self._link):
            mutation(pick(files))
        elif all_paths:
            mutation(pick(all_paths))

    def _change_byte(self, path: Path) -> None:
        """With the size and time that it had."""
        status = path.stat()
        if not status.st_size:
            return
        with path.open("r+b") as file:
            file.seek(self._random.randrange(status.st_size))
            byte = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte[0] ^ 1]))
        os.utime(path, ns=(status.st_mtime_ns, status.st_mtime_ns))

    def _append(self, path: Path) -> None:
        with path.open("ab") as file:
            file.write(self._random.randbytes(self._random.randrange(1, 5000)))
        self._touch(path)

    def _change_mode(self, path: Path) -> None:
        if not path.is_symlink():
            path.chmod(self._random.choice((0o600, 0o755, 0o4755, 0o444)))

    def _change_owner(self, path: Path) -> None:
        os.chown(path, self._random.choice((-1, 0, 1000)), self._random.choice((-1, 0, 2000)), follow_symlinks=False)

    def _change_time(self, path: Path) -> None:
        self._touch(path)

    def _change_xattr(self, path: Path) -> None:
        name = b"trusted.t" if path.is_symlink() or not (path.is_file() or path.is_dir()) else b"user.u"
        os.setxattr(path, name, self._random.randbytes(4), follow_symlinks=False)

    def _change_acl(self, path: Path) -> None:
        # <linux/posix_acl_xattr.h>: version 2; tag, permissions, id.
        entries = ((1, 6, -1), (2, self._random.randrange(8), 1000), (4, 4, -1), (16, 7, -1), (32, 4, -1))
        acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
        os.setxattr(path, "system.posix_acl_access", acl)

    def _remove(self, path: Path) -> None:
        run("rm", "-rf", "--", path)

    def _add(self, directory: Path) -> None:
        path = directory / f"added-{self._random.randrange(10**6)}"
        if not path.exists():
            self._make(path, 1)

    def _link(self, path: Path) -> None:
        other = path.with_name(f"linked-{self._random.randrange(10**6)}")
        if not other.exists():
            os.link(path, other)

    def _replace(self, path: Path) -> None:
        self._remove(path)
        self._make(path, 1)

    def _retarget(self, path: Path) -> None:
        if path.is_symlink():
            path.unlink()
            path.symlink_to("retargeted")
