"""A worker's share of the mount: its model, choosing files in it, and comparing it with the model."""

from __future__ import annotations

import math
import mmap
import os
import random
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from soaking.contents import Contents
from soaking.image import Manifest
from soaking.meter import Meter
from soaking.model import Directory, Entry, File, Link

_NAMES = 400
"""The number of names from which a worker chooses: names come again, so that stale ones would show."""
_FILL_EVERY = 60.0
"""Seconds between two files that fill the overlay up."""
PAGE = mmap.PAGESIZE
MIB = 1 << 20


class Wrong(Exception):
    """The mount differs from the model."""


@dataclass(frozen=True, slots=True)
class Task:
    """A worker's parameters.

    Attributes:
        root: the mountpoint.
        budget: the maximum of bytes in its files.
        fill: a size that always fills the overlay; 0 for a worker that never fills it.
        fill_every: seconds between that.
    """

    root: Path
    number: int
    seed: int
    budget: int
    manifest: Manifest
    fill: int = 0
    fill_every: float = _FILL_EVERY


@dataclass(eq=False, slots=True)
class OpenFile:
    """A file that stays open, perhaps after it has lost its last name."""

    descriptor: int
    file: File


class Share:
    """A worker changes only files below ``own/NUMBER``, and names that begin with its number in a shared directory."""

    def __init__(self, task: Task, meter: Meter) -> None:
        self.task = task
        self.meter = meter
        self.opened: list[OpenFile] = []
        self._is_growing = True
        """Until the budget is reached for the first time: the load is steady from then on."""
        number = task.number
        self._meter = self.meter.of(number)
        self._random = random.Random(f"{task.seed} {number}")  # nosec B311  # the same load every time
        self._prefix = f"w{number:03}-"
        self._next_file = 1
        self.own = Directory(f"{task.root}/own/{number:03}")
        for name, size in task.manifest.own[number].items():
            self.own.children[name] = File(self._contents(size))
        shared = task.manifest.shared_of(number)
        self.shared = Directory(f"{task.root}/{shared}", prefix=self._prefix, others=task.manifest.kept)

    def _contents(self, size: int = 0) -> Contents:
        number, self._next_file = self._next_file, self._next_file + 1
        return Contents(self.task.number, number, size)

    def _directories(self) -> list[Directory]:
        return [*self.own.below(), *self.shared.below()]

    def _entries(self) -> list[Entry]:
        return [
            Entry(directory, name, node)
            for directory in self._directories()
            for name, node in directory.children.items()
        ]

    def _files(self) -> list[Entry]:
        return [entry for entry in self._entries() if isinstance(entry.node, File)]

    def _held(self) -> int:
        files = {id(entry.node): entry.node for entry in self._files()} | {
            id(held.file): held.file for held in self.opened
        }
        return sum(file.contents.held for file in files.values() if isinstance(file, File))

    def _a_file(self) -> tuple[str, File] | None:
        files = self._files()
        if not files:
            return None
        entry = self._random.choice(files)
        assert isinstance(entry.node, File)
        return entry.path, entry.node

    def _a_place(self) -> tuple[Directory, str]:
        """A directory, and a name that does not exist in it."""
        directory = self._random.choice(self._directories())
        while True:
            number = self._random.randrange(_NAMES)
            # Some are long, so that a directory has several blocks; always the same for a number.
            name = f"{directory.prefix or ''}{number}{'-' * (number * 7 % 180 if number % 4 == 0 else 0)}"
            if name not in directory.children:
                return directory, name

    def _a_size(self) -> int:
        """Small numbers are more likely than large ones."""
        largest = max(self.task.budget // 4, 2 * PAGE)
        if self._is_growing:
            return self._random.randrange(largest // 2)
        return int(math.exp(self._random.uniform(0, math.log(largest))))

    def _an_offset(self, size: int) -> int:
        """A position within a file, at its end, or a bit behind it; now and then at a block's start."""
        offset = self._random.randrange(size + self._random.choice((1, 1, 1, 20_000)))
        return offset - offset % PAGE if self._random.random() < 0.3 else offset

    @contextmanager
    def _opened(self, path: str, flags: int) -> Iterator[int]:
        with self._meter.timed("open"):
            descriptor = os.open(path, flags | os.O_CLOEXEC)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _compare(self, path: str, contents: Contents) -> None:
        with self._opened(path, os.O_RDONLY) as descriptor:
            self._compare_open(path, descriptor, contents)

    def _compare_open(self, path: str, descriptor: int, contents: Contents) -> None:
        """Compare a whole file with its expected contents."""
        start = 0
        while True:
            with self._meter.timed("read"):
                data = os.pread(descriptor, MIB, start)
            self._judge(path, contents, data, start, start + MIB)
            if not data:
                break
            start += len(data)
        self._meter.file_checked()

    def _judge(self, path: str, contents: Contents, data: bytes, start: int, end: int) -> None:
        if what := contents.difference(data, start, end):
            raise Wrong(f"{path}: {what}")
        self._meter.compared(len(data))

    def _check_listing(self, directory: Directory) -> None:
        path = directory.location()
        with self._meter.timed("list"):
            names = os.listdir(path)
        if directory.prefix is not None:
            kept = [name for name in names if name in directory.others]
            if sorted(kept) != sorted(directory.others):
                other = sorted(directory.others.symmetric_difference(kept))[:4]
                raise Wrong(f"{path}: of names that are always there, a listing has {len(kept)}: {other}")
            names = [name for name in names if name.startswith(directory.prefix)]
        if sorted(names) != sorted(directory.children):
            other = sorted(directory.children.keys() ^ set(names))[:4]
            raise Wrong(f"{path}: a listing has {len(names)} names, not {len(directory.children)}: {other}")
        self._meter.moved()

    def _check_status(self, entry: Entry) -> None:
        path, node = entry.path, entry.node
        with self._meter.timed("stat"):
            status = os.lstat(path)
        match node:
            case File():
                self._check_file_status(path, node, status)
            case Link():
                target = os.readlink(path)
                if not stat.S_ISLNK(status.st_mode) or target != node.target:
                    raise Wrong(f"{path}: points to {target}, not to {node.target}")
            case Directory():
                links = 2 + sum(isinstance(child, Directory) for child in node.children.values())
                if not stat.S_ISDIR(status.st_mode) or status.st_nlink != links:
                    raise Wrong(f"{path}: a directory with {status.st_nlink} links, not {links}")

    def _check_file_status(self, path: str, file: File, status: os.stat_result) -> None:
        file.ino = file.ino or status.st_ino
        found = stat.S_ISREG(status.st_mode), status.st_size, status.st_nlink, status.st_ino
        if found != (True, file.contents.size, file.links, file.ino):
            raise Wrong(
                f"{path}: size {status.st_size}, {status.st_nlink} links, inode {status.st_ino}, "
                f"not {file.contents.size}, {file.links} and {file.ino}"
            )

    def _check_node(self, entry: Entry) -> None:
        self._check_status(entry)
        if isinstance(entry.node, File):
            self._check_xattrs(entry.path, entry.node)
            self._compare(entry.path, entry.node.contents)

    def _check_open(self, held: OpenFile) -> None:
        name = f"an open file (worker {self.task.number}'s file {held.file.contents.file})"
        self._check_file_status(name, held.file, os.fstat(held.descriptor))
        self._compare_open(name, held.descriptor, held.file.contents)

    def _check_xattrs(self, path: str, file: File) -> None:
        with self._meter.timed("xattr"):
            found = {name: os.getxattr(path, name) for name in os.listxattr(path)}
        if found != file.xattrs:
            raise Wrong(f"{path}: extended attributes {found}, not {file.xattrs}")
