"""Patterns of names in an image, as ``pathlib``'s ``glob`` takes them."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterator
from errno import ELOOP, ENAMETOOLONG, ENOENT, ENOTDIR
from typing import Protocol

_LEADS_NOWHERE = frozenset({ENOENT, ENOTDIR, ELOOP, ENAMETOOLONG})


class Tree(Protocol):
    """What patterns are matched with: an image."""

    def listdir(self, path: str, /) -> list[str]: ...

    def walk(self, top: str, /) -> Iterator[tuple[str, list[str], list[str]]]: ...

    def is_dir(self, path: str, /) -> bool: ...

    def lstat(self, path: str, /) -> object: ...


class Selection:
    """The paths that a pattern matches.

    Raises:
        ValueError: it is empty. NotImplementedError: it is absolute.
    """

    def __init__(self, image: Tree, pattern: str) -> None:
        if pattern.startswith("/"):
            raise NotImplementedError("Non-relative patterns are unsupported")
        self._image = image
        self._parts = [part for part in pattern.split("/") if part not in ("", ".")]
        if not self._parts:
            raise ValueError(f"Unacceptable pattern: {pattern!r}")
        self._wants_directories = pattern.endswith("/")

    def below(self, top: str) -> Iterator[str]:
        """Each matching path once."""
        # Iterators of paths, each with the number of parts that they have matched.
        pending: list[Iterator[tuple[str, int]]] = [iter([(top, 0)])]
        # Two ``**`` lead to a path in several ways.
        may_repeat = self._parts.count("**") > 1
        seen: set[tuple[str, int]] = set()
        while pending:
            step = next(pending[-1], None)
            if step is None:
                pending.pop()
                continue
            if may_repeat:
                if step in seen:
                    continue
                seen.add(step)
            path, number = step
            if number < len(self._parts):
                pending.append(self._matches(path, number))
            elif self._is_wanted(path):
                yield path

    def _matches(self, path: str, number: int) -> Iterator[tuple[str, int]]:
        """What part ``number`` matches at or below a path, each with the number of the next part."""
        part = self._parts[number]
        try:
            if part == "**":
                for directory, _, others in self._image.walk(path):
                    yield directory, number + 1
                    if number + 1 == len(self._parts) and not self._wants_directories:
                        yield from ((os.path.join(directory, name), number + 1) for name in others)
            elif re.search(r"[*?[]", part):
                matches = re.compile(fnmatch.translate(part)).match
                for name in self._image.listdir(path):
                    if matches(name):
                        yield os.path.join(path, name), number + 1
            else:
                yield os.path.join(path, part), number + 1
        except OSError as error:
            if error.errno not in _LEADS_NOWHERE:
                raise

    def _is_wanted(self, path: str) -> bool:
        try:
            return self._image.is_dir(path) if self._wants_directories else bool(self._image.lstat(path))
        except OSError as error:
            if error.errno not in _LEADS_NOWHERE:
                raise
            return False
