"""Random changes to a tree through the kernel."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

NAMES = ["a", "b", "c", "d", "e", "f" * 100, "ü"]


class Scrambler:
    """Changes what is below a directory.

    Args:
        chance: decides.
    """

    def __init__(self, root: Path, chance: random.Random) -> None:
        self._root = root
        self._chance = chance
        self._actions: list[Callable[[], object]] = [
            self._create, self._make_directory, self._symlink, self._write, self._write, self._replace, self._truncate,
            self._rename, self._rename, self._rename, self._link, self._unlink, self._unlink, self._remove_tree,
            self._chmod, self._touch, self._xattr,
        ]  # fmt: skip

    def change(self, count: int) -> None:
        """Try to make so many changes."""
        for _ in range(count):
            with suppress(OSError):
                self._chance.choice(self._actions)()

    def _any(self, kind: Callable[[Path], bool] = lambda path: True) -> Path:
        found = [Path(directory, name) for directory, names, others in os.walk(self._root) for name in names + others]
        found = [path for path in found if "lost+found" not in path.parts and kind(path)]
        if not found:
            raise FileNotFoundError
        return self._chance.choice(sorted(found))

    def _file(self) -> Path:
        return self._any(lambda path: path.is_file() and not path.is_symlink())

    def _new(self) -> Path:
        directories = [self._root, *(path for path in self._root.rglob("*") if path.is_dir() and not path.is_symlink())]
        return self._chance.choice(sorted(directories)) / self._chance.choice(NAMES)

    def _create(self) -> None:
        self._new().write_bytes(self._chance.randbytes(self._chance.choice([0, 10, 5000, 100_000])))

    def _make_directory(self) -> None:
        self._new().mkdir()

    def _symlink(self) -> None:
        self._new().symlink_to("target" * self._chance.choice([1, 30]))

    def _write(self) -> None:
        with self._file().open("r+b") as file:
            file.seek(self._chance.randrange(60_000))
            file.write(self._chance.randbytes(self._chance.choice([1, 3000, 20_000])))

    def _replace(self) -> None:
        """As editors do."""
        path = self._file()
        new = path.with_name("new")
        new.write_bytes(path.read_bytes() + b"more")
        new.rename(path)

    def _truncate(self) -> None:
        os.truncate(self._file(), self._chance.choice([0, 100, 50_000]))

    def _rename(self) -> None:
        self._any().rename(self._new())

    def _link(self) -> None:
        os.link(self._file(), self._new())

    def _unlink(self) -> None:
        self._any(lambda path: not path.is_dir() or path.is_symlink()).unlink()

    def _remove_tree(self) -> None:
        shutil.rmtree(self._any(lambda path: path.is_dir() and not path.is_symlink()))

    def _chmod(self) -> None:
        self._any().chmod(self._chance.choice([0o700, 0o755, 0o1777]))

    def _touch(self) -> None:
        os.utime(self._any(), ns=(10**18, self._chance.randrange(10**18)), follow_symlinks=False)

    def _xattr(self) -> None:
        value = self._chance.randbytes(self._chance.choice([3, 700]))
        os.setxattr(self._any(), "user.note", value, follow_symlinks=False)
