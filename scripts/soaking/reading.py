"""Steps that change nothing: reading in every way, stat, listing."""

from __future__ import annotations

import mmap
import os
import zlib

from soaking.contents import Contents
from soaking.image import KEPT_WORKER
from soaking.share import MIB, PAGE, Share, Wrong


class Reading(Share):
    """See the module."""

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
            start, expected = part * MIB, crcs[part]
        else:
            path = self._random.choice(manifest.paths)
            start, expected = 0, manifest.files[path][1]
        with self._opened(f"{self.task.root}/{path}", os.O_RDONLY) as descriptor:
            if self._random.random() < 0.5:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            with self._meter.timed("read-image"):
                data = os.pread(descriptor, MIB, start)
        if zlib.crc32(data) != expected:
            raise Wrong(f"{path}: {len(data)} bytes from offset {start} on are not what the image holds")
        self._meter.compared(len(data))

    def _read_kept(self) -> None:
        """The names that are always in a shared directory."""
        number = self._random.randrange(len(self.shared.others))
        name, size = self.task.manifest.kept_name(number), self.task.manifest.kept_size
        self._compare(f"{self.shared.path}/{name}", Contents(KEPT_WORKER, number, size))

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
                data = mapping[start : start + MIB]
                total = len(mapping)
        if total != file.contents.size:
            raise Wrong(f"{path}: {total} bytes can be mapped, not {file.contents.size}")
        self._judge(path, file.contents, data, start, start + MIB)

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

    def _list(self) -> None:
        self._check_listing(self._random.choice(self._directories()))

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

    def _statfs(self) -> None:
        with self._meter.timed("statfs"):
            found = os.statvfs(self.task.root)
        if not 0 <= found.f_bfree <= found.f_blocks or not 0 <= found.f_ffree <= found.f_files:
            raise Wrong(
                f"statfs: {found.f_bfree} of {found.f_blocks} blocks, {found.f_ffree} of {found.f_files} inodes"
            )
