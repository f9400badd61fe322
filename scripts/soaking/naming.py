"""Steps that change names, and files that stay open, with or without one."""

from __future__ import annotations

import errno
import os

from soaking.model import Directory, File, Link
from soaking.share import OpenFile, Wrong
from soaking.writing import Writing

_MOST_DIRECTORIES, _DEEPEST = 12, 5
_MOST_OPEN = 3


class Naming(Writing):
    """See the module."""

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
            # Some of the space in use has no name.
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
        # Full directories now and then, so that a removal is refused.
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

    def _open(self) -> None:
        found = self._a_file()
        if found is not None and len(self.opened) < _MOST_OPEN:
            self._open_file(*found)

    def _open_file(self, path: str, file: File) -> None:
        with self._meter.timed("open"):
            self.opened.append(OpenFile(os.open(path, os.O_RDWR | os.O_CLOEXEC), file))

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
