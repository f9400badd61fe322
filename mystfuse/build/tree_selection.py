"""Taking a part of a directory: what no pattern leaves out, and of that only listed paths if there is a list."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence

from mystfuse.build.exclude_patterns import Pattern, is_excluded
from mystfuse.errors import UsageError


class TreeSelection:
    """Which files are taken.

    Args:
        patterns: what they match is left out.
        listed: the only paths that are taken, with the directories above them; None: all.
        source: the list's name in messages.
    """

    def __init__(self, patterns: Sequence[Pattern], listed: Sequence[bytes] | None = None, source: str = "") -> None:
        self._patterns = patterns
        self._source = source
        self._wanted: set[bytes] | None = None
        self._missing: dict[bytes, None] = {}
        if listed is not None:
            self._missing = dict.fromkeys(listed)
            self._wanted = {above for path in listed for above in _with_parents(path)}

    def takes(self, path: bytes, is_directory: bool) -> bool:
        """See ``source_tree.Selection``."""
        if self._wanted is not None:
            if path not in self._wanted:
                return False
            self._missing.pop(path, None)
        return not is_excluded(self._patterns, path, is_directory)

    def check_found(self, name: str, mode_of: Callable[[bytes], int]) -> None:
        """See ``source_tree.Selection``; what a pattern leaves out may be missing."""
        for path in self._missing:
            for above in _with_parents(path):
                shown = f"{self._source}: {os.fsdecode(path)}"
                try:
                    mode = mode_of(above)
                except OSError as error:
                    raise UsageError(f"{shown}: cannot be taken from {name}: {error.strerror}") from error
                if is_excluded(self._patterns, above, stat.S_ISDIR(mode)):
                    break
                if above != path and not stat.S_ISDIR(mode):
                    what = "a symbolic link" if stat.S_ISLNK(mode) else "no directory"
                    raise UsageError(f"{shown}: {os.fsdecode(above)} is {what}: a path goes through directories alone")


def parse_list(data: bytes, separator: bytes, source: str) -> list[bytes]:
    """The paths of a list, as they lead from the directory on.

    Args:
        separator: a newline, or a zero byte.
        source: its name in messages.

    Raises:
        UsageError: a path leads out of the directory, or there is none.
    """
    paths: list[bytes] = []
    for given in data.split(separator):
        parts = [part for part in given.split(b"/") if part not in (b"", b".")]
        shown = f"{source}: {os.fsdecode(given)}"
        if given.startswith(b"/"):
            raise UsageError(f"{shown}: is absolute; listed paths lead from DIRECTORY on")
        if b".." in parts:
            raise UsageError(f"{shown}: listed paths must not lead out of DIRECTORY, nor through ..")
        if b"\0" in given:
            raise UsageError(f"{source}: has zero bytes: give --null")
        if given:
            paths.append(b"/".join(parts))
    if not paths:
        raise UsageError(f"{source}: lists no paths")
    return [path for path in paths if path]


def _with_parents(path: bytes) -> list[bytes]:
    """The path and the directories above it, the topmost first; not the root."""
    parts = path.split(b"/")
    return [b"/".join(parts[: count + 1]) for count in range(len(parts))]
