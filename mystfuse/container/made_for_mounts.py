"""What ``exec`` changes in an image so that it has something to mount on: directories, empty files, a link removed.

None of it is the program's doing, so it is undone before anybody looks at what the program has changed.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from mystfuse.container.mounts import unmount


@dataclass(frozen=True, slots=True)
class _Made:
    """A name in a directory that has changed."""

    directory: int
    """A descriptor."""
    name: str
    before: os.stat_result | None
    """Of a link that was there; None if nothing was."""
    target: str
    """Of that link."""
    directory_before: os.stat_result
    directory_after: os.stat_result


class MadeForMounts:
    """The changes, in their order."""

    def __init__(self) -> None:
        self._made: list[_Made] = []
        self._mounts: list[int] = []
        """Descriptors: the program may have renamed what is above."""

    @contextmanager
    def recording(self, directory: int, name: str) -> Iterator[None]:
        """Record what the block does: it makes ``name`` in a directory, or removes it if it is a link."""
        own = os.dup(directory)
        directory_before = os.fstat(own)
        before, target = None, ""
        with suppress(FileNotFoundError):
            before = os.lstat(name, dir_fd=own)
            if stat.S_ISLNK(before.st_mode):
                target = os.readlink(name, dir_fd=own)
        yield
        self._made.append(_Made(own, name, before, target, directory_before, os.fstat(own)))

    def mounted(self, path: str) -> None:
        """Record that something was mounted at ``path``."""
        self._mounts.append(os.open(path, os.O_PATH | os.O_CLOEXEC))

    def undo(self) -> None:
        """Unmount what has been mounted, and take the changes back, but for directories that have been filled."""
        while self._mounts:
            descriptor = self._mounts.pop()
            with suppress(OSError):
                unmount(f"/proc/self/fd/{descriptor}")
            os.close(descriptor)
        while self._made:
            made = self._made.pop()
            # What the program has removed or replaced, it has changed itself.
            with suppress(OSError):
                _undo(made)
            os.close(made.directory)


def _undo(made: _Made) -> None:
    was_changed = os.fstat(made.directory).st_mtime_ns != made.directory_after.st_mtime_ns
    if made.before is None:
        found = os.lstat(made.name, dir_fd=made.directory)
        if stat.S_ISDIR(found.st_mode):
            os.rmdir(made.name, dir_fd=made.directory)
        elif not found.st_size:
            os.unlink(made.name, dir_fd=made.directory)
    else:
        os.symlink(made.target, made.name, dir_fd=made.directory)
        os.chown(made.name, made.before.st_uid, made.before.st_gid, dir_fd=made.directory, follow_symlinks=False)
        os.utime(
            made.name, ns=(made.before.st_atime_ns, made.before.st_mtime_ns), dir_fd=made.directory,
            follow_symlinks=False,
        )  # fmt: skip
    if not was_changed:
        times = (made.directory_before.st_atime_ns, made.directory_before.st_mtime_ns)
        # By the name in /proc: the descriptor is one of a path alone.
        os.utime(f"/proc/self/fd/{made.directory}", ns=times)
