"""One difference between two trees, for programs, and how all of them are found."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import aclosing
from dataclasses import dataclass

from mystfuse.errors import UsageError
from mystfuse.tree.diff.change import Aspect, Change, Kind
from mystfuse.tree.diff.compare import Rules, compare
from mystfuse.tree.diff.directory_view import DirectoryView
from mystfuse.tree.diff.view import Node, View


@dataclass(frozen=True, slots=True)
class Difference:
    """A path that differs. Paths lead from the root on, without a slash in front; the root itself is empty."""

    kind: Kind
    """``added``, ``removed``, ``renamed`` or ``changed``, which compare with strings."""
    path: str
    """As ``os.fsdecode`` has it; of what was removed, where it was."""
    old_path: str | None
    """Where it was, if it was renamed."""
    differs: frozenset[Aspect]
    """What differs, of what was renamed or changed: ``type``, ``content``, ``target``, ``device``, ``size``, ``mode``,
    ``owner``, ``group``, ``mtime``, ``xattrs``, ``acl``, ``links``."""
    old: Node | None
    """Its ``mode``, ``uid``, ``gid``, ``size``, ``rdev``, ``mtime_ns`` and ``nlink`` as they were; None if it was
    added."""
    new: Node | None
    """The same as they are; None if it was removed."""

    @classmethod
    def of(cls, change: Change) -> Difference:
        old_path = None if change.old_path is None else os.fsdecode(change.old_path)
        return cls(change.kind, os.fsdecode(change.path), old_path, change.aspects, change.old, change.new)


def rules_of(ignore: Iterable[str]) -> Rules:
    """The rules that leave out the named aspects; UsageError if there is no such one."""
    if isinstance(ignore, str):
        raise UsageError(f"ignore must be a list of words, not {ignore!r} alone")
    words = set(ignore)
    if unknown := words - set(Aspect):
        raise UsageError(f"ignore={sorted(unknown)[0]!r}: only {', '.join(Aspect)} are possible")
    return Rules(frozenset(map(Aspect, words)))


async def differences(old: View, new: View, rules: Rules) -> list[Difference]:
    """What makes one tree of another; raises as ``compare``."""
    is_directory = isinstance(old, DirectoryView) or isinstance(new, DirectoryView)
    if is_directory and os.geteuid() != 0:
        # Of files on disk only root sees these.
        rules = Rules(rules.ignored, (b"trusted.",))
    async with aclosing(compare(old, new, rules)) as changes:
        return [Difference.of(change) async for change in changes]
