"""One worker: does one thing after another to its part of the mount, and compares what it meets with its model."""

from __future__ import annotations

import errno
import math
import mmap
import os
import random
import stat
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from soaking.contents import Contents
from soaking.image import KEPT_WORKER, Manifest
from soaking.meter import Meter, Phase
from soaking.model import Directory, Entry, File, Link

PAGE = mmap.PAGESIZE
_MOST_FILES, _MOST_DIRECTORIES, _DEEPEST = 60, 12, 5
_MOST_OPEN = 3
_NAMES = 400
"""That a worker chooses from: they come again, so that old ones would be noticed."""
_MOST_XATTRS, _LONGEST_VALUE = 6, 200
_FILL_EVERY = 60.0
"""Seconds between two files that fill the overlay to the brim."""
_MIB = 1 << 20


class Wrong(Exception):
    """Something is not as it should be."""


@dataclass(frozen=True, slots=True)
class Task:
    """What a worker is given.

    Attributes:
        root: the mountpoint.
        budget: bytes that its files may hold.
        fill: bytes that fill the overlay whatever else is in it; 0 for a worker that never does.
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
class _Open:
    descriptor: int
    file: File


@dataclass
class Worker:
    """See the module. All paths that it changes are below ``own/NUMBER`` or begin with its number in a shared one."""

    task: Task
    meter: Meter
    opened: list[_Open] = field(default_factory=list)

    def __post_init__(self) -> None:
        task, number = self.task, self.task.number
        self._meter = self.meter.of(number)
        self._random = random.Random(f"{task.seed} {number}")
        self._prefix = f"w{number:03}-"
        self._next_file = 1
        self.own = Directory(f"{task.root}/own/{number:03}")
        for name, size in task.manifest.own[number].items():
            self.own.children[name] = File(self._contents(size))
        shared = task.manifest.shared_of(number)
        self.shared = Directory(f"{task.root}/{shared}", prefix=self._prefix, others=task.manifest.kept)
        self._steps: dict[Callable[[], None], int] = {
            self._walk_image: 1,
            self._read_image: 10,
            self._list: 6,
            self._look: 6,
            self._look_for_absent: 4,
            self._read: 12,
            self._read_mapped: 4,
            self._read_direct: 4,
            self._read_kept: 2,
            self._create: 12,
            self._overwrite: 12,
            self._append: 8,
            self._write_direct: 4,
            self._write_mapped: 6,
            self._truncate: 6,
            self._rename: 10,
            self._rename_directory: 2,
            self._link: 4,
            self._symlink: 3,
            self._unlink: 8,
            self._mkdir: 4,
            self._rmdir: 3,
            self._xattr: 5,
            self._open: 3,
            self._use_open: 6,
            self._close: 3,
            self._statfs: 2,
        }

    # What the crew calls.

    def step(self) -> None:
        """Do one thing.

        Raises:
            Wrong: something is not as it should be.
        """
        if self.task.fill and time.monotonic() >= self.meter.fill_at > 0:
            step: Callable[[], None] = self._fill
        elif self._held() > self.task.budget or len(self._files()) > _MOST_FILES:
            step = self._unlink
        else:
            (step,) = self._random.choices(list(self._steps), list(self._steps.values()))
        try:
            step()
        except OSError as error:
            # The model is changed when a call has returned, so it is right after one that has not.
            self._meter.failed(error.errno or 0)
            if error.errno != errno.ENOSPC:
                raise Wrong(f"{step.__name__.strip('_')}: {error}") from error

    def check(self) -> None:
        """Compare everything with the model; raises Wrong."""
        try:
            for top in (self.own, self.shared):
                for directory in top.below():
                    self._check_listing(directory)
                    for name, node in directory.children.items():
                        self._check_node(Entry(directory, name, node))
            for held in self.opened:
                self._check_open(held)
        except OSError as error:
            raise Wrong(f"check: {error}") from error

    def remove(self) -> None:
        """Remove everything, and close what is open; raises Wrong."""
        try:
            for held in self.opened:
                self._check_open(held)
                os.close(held.descriptor)
            self.opened.clear()
            for directory in [*self.own.below(), *self.shared.below()][::-1]:
                for name, node in list(directory.children.items()):
                    path = f"{directory.location()}/{name}"
                    with self._meter.timed("rmdir" if isinstance(node, Directory) else "unlink"):
                        (os.rmdir if isinstance(node, Directory) else os.unlink)(path)
                    del directory.children[name]
                self._check_listing(directory)
        except OSError as error:
            raise Wrong(f"remove: {error}") from error

    # Choosing.

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
        """A directory, and a name that is not in it."""
        directory = self._random.choice(self._directories())
        while True:
            number = self._random.randrange(_NAMES)
            # Some are long, so that a directory has several blocks; always the same for a number.
            name = f"{directory.prefix or ''}{number}{'-' * (number * 7 % 180 if number % 4 == 0 else 0)}"
            if name not in directory.children:
                return directory, name

    def _a_size(self) -> int:
        """Small ones rather than large ones."""
        largest = max(self.task.budget // 4, 2 * PAGE)
        return int(math.exp(self._random.uniform(0, math.log(largest))))

    def _an_offset(self, size: int) -> int:
        """Within a file, at its end, a bit behind it; now and then at a block."""
        offset = self._random.randrange(size + self._random.choice((1, 1, 1, 20_000)))
        return offset - offset % PAGE if self._random.random() < 0.3 else offset

    # Reading.

    def _walk_image(self) -> None:
        manifest = self.task.manifest
        top = self._random.choice(manifest.tops)
        found = {}
        with self._meter.timed("walk"):
            for path, names, files in os.walk(self.task.root / top):
                relative = os.path.relpath(path, self.task.root)
                found[relative] = len(names)
                found.update({f"{relative}/{name}": os.lstat(f"{path}/{name}").st_size for name in files})
        if found != manifest.below(top):
            other = sorted(set(found.items()) ^ set(manifest.below(top).items()))[:4]
            raise Wrong(f"{top}: a walk does not find what the image holds: {other}")

    def _read_image(self) -> None:
        manifest = self.task.manifest
        if self._random.random() < 0.3:
            path, crcs = self._random.choice(list(manifest.big.items()))
            part = self._random.randrange(len(crcs))
            start, expected = part * _MIB, crcs[part]
        else:
            path = self._random.choice(manifest.paths)
            start, expected = 0, manifest.files[path][1]
        with self._opened(f"{self.task.root}/{path}", os.O_RDONLY) as descriptor:
            if self._random.random() < 0.5:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            with self._meter.timed("read-image"):
                data = os.pread(descriptor, _MIB, start)
        if zlib.crc32(data) != expected:
            raise Wrong(f"{path}: {len(data)} bytes from offset {start} on are not what the image holds")
        self._meter.compared(len(data))

    def _read_kept(self) -> None:
        """What is in a shared directory all the time."""
        number = self._random.randrange(len(self.shared.others))
        name, size = self.task.manifest.kept_name(number), self.task.manifest.kept_size
        self._compare(f"{self.shared.path}/{name}", Contents(KEPT_WORKER, number, size))

    def _compare(self, path: str, contents: Contents) -> None:
        with self._opened(path, os.O_RDONLY) as descriptor:
            self._compare_open(path, descriptor, contents)

    def _compare_open(self, path: str, descriptor: int, contents: Contents) -> None:
        """Compare all of a file with what it should hold."""
        start = 0
        while True:
            with self._meter.timed("read"):
                data = os.pread(descriptor, _MIB, start)
            self._judge(path, contents, data, start, start + _MIB)
            if not data:
                break
            start += len(data)
        self._meter.file_checked()

    def _judge(self, path: str, contents: Contents, data: bytes, start: int, end: int) -> None:
        if what := contents.difference(data, start, end):
            raise Wrong(f"{path}: {what}")
        self._meter.compared(len(data))

    def _read(self) -> None:
        found = self._a_file()
        if found is None:
            return
        path, file = found
        with self._opened(path, os.O_RDONLY) as descriptor:
            if self._random.random() < 0.3:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            if self._random.random() < 0.5:
                self._compare_open(path, descriptor, file.contents)
            else:
                start = self._an_offset(file.contents.size)
                length = self._random.randrange(1, 100_000)
                with self._meter.timed("read"):
                    data = os.pread(descriptor, length, start)
                self._judge(path, file.contents, data, start, start + length)

    def _read_mapped(self) -> None:
        found = self._a_file()
        if found is None or not found[1].contents.size:
            return
        path, file = found
        with self._opened(path, os.O_RDONLY) as descriptor:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            with self._meter.timed("read-mapped"), mmap.mmap(descriptor, 0, prot=mmap.PROT_READ) as mapping:
                start = self._random.randrange(len(mapping))
                data = mapping[start : start + _MIB]
                total = len(mapping)
        if total != file.contents.size:
            raise Wrong(f"{path}: {total} bytes can be mapped, not {file.contents.size}")
        self._judge(path, file.contents, data, start, start + _MIB)

    def _read_direct(self) -> None:
        found = self._a_file()
        if found is None:
            return
        path, file = found
        start = self._an_offset(file.contents.size) // PAGE * PAGE
        with self._opened(path, os.O_RDONLY | os.O_DIRECT) as descriptor, mmap.mmap(-1, 32 * PAGE) as buffer:
            with self._meter.timed("read-direct"):
                count = os.preadv(descriptor, [buffer], start)
            self._judge(path, file.contents, buffer[:count], start, start + len(buffer))

    # Looking.

    def _list(self) -> None:
        self._check_listing(self._random.choice(self._directories()))

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

    def _look(self) -> None:
        entries = self._entries()
        if entries:
            self._check_status(self._random.choice(entries))

    def _look_for_absent(self) -> None:
        directory, name = self._a_place()
        try:
            with self._meter.timed("stat"):
                os.lstat(f"{directory.location()}/{name}")
        except FileNotFoundError:
            return
        raise Wrong(f"{directory.location()}/{name}: is there, though it should not be")

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

    def _check_open(self, held: _Open) -> None:
        name = f"an open file (worker {self.task.number}'s file {held.file.contents.file})"
        self._check_file_status(name, held.file, os.fstat(held.descriptor))
        self._compare_open(name, held.descriptor, held.file.contents)

    def _check_xattrs(self, path: str, file: File) -> None:
        with self._meter.timed("xattr"):
            found = {name: os.getxattr(path, name) for name in os.listxattr(path)}
        if found != file.xattrs:
            raise Wrong(f"{path}: extended attributes {found}, not {file.xattrs}")

    def _statfs(self) -> None:
        with self._meter.timed("statfs"):
            found = os.statvfs(self.task.root)
        if not 0 <= found.f_bfree <= found.f_blocks or not 0 <= found.f_ffree <= found.f_files:
            raise Wrong(
                f"statfs: {found.f_bfree} of {found.f_blocks} blocks, {found.f_ffree} of {found.f_files} inodes"
            )

    # Writing.

    @contextmanager
    def _opened(self, path: str, flags: int) -> Iterator[int]:
        with self._meter.timed("open"):
            descriptor = os.open(path, flags | os.O_CLOEXEC)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _write(self, descriptor: int, file: File, start: int, length: int, kind: str = "write") -> None:
        """Write a new generation; what has been written of it, the model knows."""
        generation = file.next_generation()
        data = Contents(file.contents.worker, file.contents.file)
        data.put(start, start + length, generation)
        whole = data.expected(start, start + length)
        done = 0
        while done < length:
            with self._meter.timed(kind):
                count = os.pwrite(descriptor, whole[done:], start + done)
            file.contents.put(start + done, start + done + count, generation)
            done += count
        if self._random.random() < 0.2:
            with self._meter.timed("fsync"):
                (os.fsync if self._random.random() < 0.5 else os.fdatasync)(descriptor)

    def _create(self) -> None:
        directory, name = self._a_place()
        path, file = f"{directory.location()}/{name}", File(self._contents())
        with self._meter.timed("create"):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            directory.children[name] = file
            file.ino = os.fstat(descriptor).st_ino
            self._write(descriptor, file, self._random.choice((0, 0, 0, 0, 30_000)), self._a_size())
        finally:
            os.close(descriptor)

    def _overwrite(self) -> None:
        found = self._a_file()
        if found is None:
            return
        path, file = found
        is_emptied = self._random.random() < 0.1
        with self._opened(path, os.O_RDWR | (os.O_TRUNC if is_emptied else 0)) as descriptor:
            if is_emptied:
                file.contents.truncate(0)
            for _ in range(self._random.randrange(1, 4)):
                self._write(descriptor, file, self._an_offset(file.contents.size), self._a_size())

    def _append(self) -> None:
        found = self._a_file()
        if found is None:
            return
        path, file = found
        with self._opened(path, os.O_WRONLY | os.O_APPEND) as descriptor:
            for _ in range(self._random.randrange(1, 5)):
                self._write(descriptor, file, file.contents.size, self._random.randrange(1, 10_000), "append")

    def _write_direct(self) -> None:
        found = self._a_file()
        if found is None:
            return
        path, file = found
        start = self._an_offset(file.contents.size) // PAGE * PAGE
        length = self._random.randrange(1, 17) * PAGE
        generation = file.next_generation()
        data = Contents(file.contents.worker, file.contents.file)
        data.put(start, start + length, generation)
        with self._opened(path, os.O_WRONLY | os.O_DIRECT) as descriptor, mmap.mmap(-1, length) as buffer:
            buffer[:] = data.expected(start, start + length)
            with self._meter.timed("write-direct"):
                count = os.pwritev(descriptor, [buffer], start)
            file.contents.put(start, start + count, generation)

    def _write_mapped(self) -> None:
        """Only over what has been written since the mount: that takes no room, for want of which a page would be lost
        after the program has long gone on."""
        found = self._a_file()
        if found is None:
            return
        path, file = found
        ranges = [
            (-(-start // PAGE) * PAGE, end // PAGE * PAGE)
            for start, end, generation in file.contents.extents
            if generation > 1 and -(-start // PAGE) * PAGE < end // PAGE * PAGE
        ]
        if not ranges:
            return
        first, last = self._random.choice(ranges)
        last = min(last, first + _MIB)
        start = self._random.randrange(first, last)
        end = self._random.randrange(start, last) + 1
        generation = file.next_generation()
        data = Contents(file.contents.worker, file.contents.file)
        data.put(start, end, generation)
        with self._opened(path, os.O_RDWR) as descriptor, mmap.mmap(descriptor, 0) as mapping:
            mapping[start:end] = data.expected(start, end)
            try:
                with self._meter.timed("write-mapped"):
                    mapping.flush()
            except OSError:
                # Nobody knows what of it was written.
                os.truncate(path, start)
                file.contents.truncate(start)
                raise
        file.contents.put(start, end, generation)

    def _truncate(self) -> None:
        found = self._a_file()
        if found is None:
            return
        path, file = found
        size = (
            self._an_offset(file.contents.size) if self._random.random() < 0.7 else file.contents.size + self._a_size()
        )
        with self._meter.timed("truncate"):
            os.truncate(path, size)
        file.contents.truncate(size)

    # Names.

    def _rename(self) -> None:
        entries = [entry for entry in self._entries() if not isinstance(entry.node, Directory)]
        if not entries:
            return
        entry = self._random.choice(entries)
        directory, name = self._a_place()
        if self._random.random() < 0.4:
            over = self._random.choice(entries)
            directory, name = over.directory, over.name
        replaced = directory.children.get(name)
        with self._meter.timed("rename"):
            os.rename(entry.path, f"{directory.location()}/{name}")
        if replaced is entry.node:
            # Two names of one file: nothing happens (rename(2)).
            return
        if isinstance(replaced, File):
            replaced.links -= 1
        del entry.directory.children[entry.name]
        directory.children[name] = entry.node

    def _rename_directory(self) -> None:
        entries = [entry for entry in self._entries() if isinstance(entry.node, Directory)]
        if not entries:
            return
        entry = self._random.choice(entries)
        moved = entry.node
        assert isinstance(moved, Directory)
        directory, name = self._a_place()
        if directory.is_below(moved):
            return
        with self._meter.timed("rename"):
            os.rename(entry.path, f"{directory.location()}/{name}")
        del entry.directory.children[entry.name]
        directory.children[name] = moved
        moved.parent, moved.name = directory, name

    def _link(self) -> None:
        found = self._a_file()
        if found is None:
            return
        path, file = found
        directory, name = self._a_place()
        with self._meter.timed("link"):
            os.link(path, f"{directory.location()}/{name}")
        file.links += 1
        directory.children[name] = file

    def _symlink(self) -> None:
        directory, name = self._a_place()
        target = "target/" + "t" * self._random.randrange(1, 200)
        with self._meter.timed("symlink"):
            os.symlink(target, f"{directory.location()}/{name}")
        directory.children[name] = Link(target)

    def _unlink(self) -> None:
        entries = [entry for entry in self._entries() if not isinstance(entry.node, Directory)]
        if not entries:
            # What takes up room has no name.
            self._close()
            return
        entry = self._random.choice(entries)
        if isinstance(entry.node, File) and len(self.opened) < _MOST_OPEN and self._random.random() < 0.2:
            self._open_file(entry.path, entry.node)
        with self._meter.timed("unlink"):
            os.unlink(entry.path)
        del entry.directory.children[entry.name]
        if isinstance(entry.node, File):
            entry.node.links -= 1
        if self._held() > self.task.budget:
            self._close()

    def _mkdir(self) -> None:
        directory, name = self._a_place()
        if len(self._directories()) >= _MOST_DIRECTORIES or directory.depth >= _DEEPEST:
            return
        with self._meter.timed("mkdir"):
            os.mkdir(f"{directory.location()}/{name}")
        directory.children[name] = Directory("", directory, name)

    def _rmdir(self) -> None:
        entries = [entry for entry in self._entries() if isinstance(entry.node, Directory)]
        if not entries:
            return
        # Full ones now and then, to be refused.
        empty = [entry for entry in entries if not entry.node.children]  # type: ignore[union-attr]
        entry = self._random.choice(empty if empty and self._random.random() < 0.8 else entries)
        assert isinstance(entry.node, Directory)
        try:
            with self._meter.timed("rmdir"):
                os.rmdir(entry.path)
        except OSError as error:
            if error.errno != errno.ENOTEMPTY or not entry.node.children:
                raise
            return
        if entry.node.children:
            raise Wrong(f"{entry.path}: removed, though it had {len(entry.node.children)} names in it")
        del entry.directory.children[entry.name]

    def _xattr(self) -> None:
        found = self._a_file()
        if found is None:
            return
        path, file = found
        self._check_xattrs(path, file)
        if file.xattrs and self._random.random() < 0.3:
            name = self._random.choice(list(file.xattrs))
            with self._meter.timed("xattr"):
                os.removexattr(path, name)
            del file.xattrs[name]
        else:
            name = f"user.name{self._random.randrange(_MOST_XATTRS)}"
            value = self._random.randbytes(self._random.randrange(_LONGEST_VALUE))
            with self._meter.timed("xattr"):
                os.setxattr(path, name, value)
            file.xattrs[name] = value

    # Files that stay open.

    def _open(self) -> None:
        found = self._a_file()
        if found is not None and len(self.opened) < _MOST_OPEN:
            self._open_file(*found)

    def _open_file(self, path: str, file: File) -> None:
        with self._meter.timed("open"):
            self.opened.append(_Open(os.open(path, os.O_RDWR | os.O_CLOEXEC), file))

    def _use_open(self) -> None:
        if not self.opened:
            return
        held = self._random.choice(self.opened)
        if self._random.random() < 0.5:
            self._check_open(held)
        else:
            size = self._a_size()
            self._write(held.descriptor, held.file, self._an_offset(held.file.contents.size), size)

    def _close(self) -> None:
        if self.opened:
            held = self.opened.pop(self._random.randrange(len(self.opened)))
            try:
                self._check_open(held)
            finally:
                os.close(held.descriptor)

    # No room.

    def _fill(self) -> None:
        """Write until there is no room, find all that was written, and remove it."""
        self.meter.fill_at = time.monotonic() + self.task.fill_every
        path, file = f"{self.own.path}/fill", File(self._contents())
        with self._meter.timed("create"):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            while file.contents.size < self.task.fill:
                self._write(descriptor, file, file.contents.size, _MIB)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            self._meter.failed(errno.ENOSPC)
        finally:
            # At once: the others want to go on.
            os.unlink(path)
            try:
                self._compare_open(path, descriptor, file.contents)
            finally:
                os.close(descriptor)


def run_worker(task: Task, meter: Meter, say: Callable[[str], None]) -> int:
    """A worker's whole life; returns its exit status. What goes wrong is said in one line."""
    own = meter.of(task.number)
    try:
        worker = Worker(task, meter)
        while own.state is not Phase.REMOVE:
            phase = meter.phase
            if phase is Phase.RUN:
                own.state = phase
                worker.step()
                continue
            if own.state is not phase:
                if phase is Phase.CHECK:
                    worker.check()
                elif phase is Phase.REMOVE:
                    worker.remove()
                own.state = phase
            time.sleep(0.01)
    except Wrong as error:
        say(f"worker {task.number}: {error}")
        return 1
    return 0
