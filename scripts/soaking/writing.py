"""Steps that change contents: writing in every way, truncating, extended attributes, filling the file system."""

from __future__ import annotations

import errno
import mmap
import os
import time

from soaking.contents import Contents
from soaking.model import File
from soaking.share import MIB, PAGE, Share

_MOST_XATTRS, _LONGEST_VALUE = 6, 200


class Writing(Share):
    """See the module."""

    def _write(self, descriptor: int, file: File, start: int, length: int, kind: str = "write") -> None:
        """Write a new generation; the model gets the written part."""
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
        """Only over blocks written since the mount: those need no space, for want of which a page would be lost long
        after the program has gone on."""
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
        last = min(last, first + MIB)
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
                # We do not know how much of it was written.
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

    def _fill(self) -> None:
        """Write until there is no space, check all written data, and remove it."""
        self.meter.fill_at = time.monotonic() + self.task.fill_every
        path, file = f"{self.own.path}/fill", File(self._contents())
        with self._meter.timed("create"):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            while file.contents.size < self.task.fill:
                self._write(descriptor, file, file.contents.size, MIB)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            self._meter.failed(errno.ENOSPC)
        finally:
            # At once: other workers need the space.
            os.unlink(path)
            try:
                self._compare_open(path, descriptor, file.contents)
            finally:
                os.close(descriptor)
