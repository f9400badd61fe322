"""How the contents of a file differ: as a unified diff of texts, or by how many blocks."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Literal

from mystfuse.system.threads import call_in_thread
from mystfuse.tree.diff.change import Aspect, Change, Kind
from mystfuse.tree.diff.same_content import ContentComparison
from mystfuse.tree.diff.view import Node, View

BLOCK = 4096
"""Bytes; what "N of M blocks" counts."""
MAX_TEXT = 1 << 20
"""Bytes of a file that is shown as text; a longer one is like a binary one."""
MAX_DIFFERING_LINES = 2000
"""Lines of each text between what they have in common at the beginning and at the end: comparing more takes too long.
"""
_CONTEXT = 3
_BINARY_SAMPLE = 8000
"""A file with a NUL among so many bytes is binary, as git has it."""
_NO_END = b"\\ No newline at end of file\n"


_Operation = tuple[Literal["replace", "delete", "insert", "equal"], int, int, int, int]


@dataclass(frozen=True, slots=True)
class ContentChange:
    """How contents differ."""

    lines: list[bytes] | None
    """Hunks of a unified diff, with the ends of lines; None for a binary file, or a text that is too long."""
    differing: int = 0
    """Blocks of a binary file that differ."""
    blocks: int = 0
    """The number of blocks of the longer one."""


async def content_change(old_view: View, new_view: View, change: Change) -> ContentChange | None:
    """How the contents of a regular file differ, that was changed, added or removed.

    Returns:
        None if they do not, or if it is no regular file, or a binary one that was added or removed.

    Raises:
        OSError, MystfuseError: as the views do.
    """
    old, new = (node if node is not None and node.is_regular else None for node in (change.old, change.new))
    if change.kind in (Kind.CHANGED, Kind.RENAMED) and not change.aspects & {Aspect.CONTENT, Aspect.TYPE}:
        return None
    old_text, new_text = await _text(old_view, old), await _text(new_view, new)
    if old_text is not None and new_text is not None:
        lines = await call_in_thread(partial(unified_diff, old_text, new_text))
        if lines is not None:
            return ContentChange(lines) if lines else None
    if old is None or new is None:
        return None
    differing = await _count_differing(ContentComparison(old_view, new_view), old, new)
    return ContentChange(None, differing, -(-max(old.size, new.size) // BLOCK))


async def _text(view: View, node: Node | None) -> bytes | None:
    """The contents if they are text; empty without a file."""
    if node is None:
        return b""
    if node.size > MAX_TEXT:
        return None
    data = bytes(await view.read(node, 0, node.size))
    return None if b"\0" in data[:_BINARY_SAMPLE] else data


def unified_diff(old: bytes, new: bytes) -> list[bytes] | None:
    """The hunks of a unified diff; None if the texts differ in too many lines."""
    old_lines, new_lines = _lines(old), _lines(new)
    head, tail = _common(old_lines, new_lines)
    if old and new and max(len(old_lines), len(new_lines)) - head - tail > MAX_DIFFERING_LINES:
        return None
    result: list[bytes] = []
    for group in _groups(old_lines, new_lines, head, tail):
        old_range, new_range = _range(group[0][1], group[-1][2]), _range(group[0][3], group[-1][4])
        result.append(f"@@ -{old_range} +{new_range} @@\n".encode())
        for tag, old_start, old_end, new_start, new_end in group:
            if tag == "equal":
                result += _marked(b" ", old_lines[old_start:old_end])
            else:
                result += _marked(b"-", old_lines[old_start:old_end])
                result += _marked(b"+", new_lines[new_start:new_end])
    return result


def _groups(
    old: Sequence[bytes], new: Sequence[bytes], head: int, tail: int
) -> Iterable[Sequence[tuple[str, int, int, int, int]]]:
    """The operations of each hunk, as difflib has them. What is the same at both ends is not compared again."""
    old_end, new_end = len(old) - tail, len(new) - tail
    matcher = difflib.SequenceMatcher(None, old[head:old_end], new[head:new_end])
    operations: list[_Operation] = [
        (tag, head + old_start, head + old_stop, head + new_start, head + new_stop)
        for tag, old_start, old_stop, new_start, new_stop in matcher.get_opcodes()
    ]
    if head:
        operations.insert(0, ("equal", 0, head, 0, head))
    if tail:
        operations.append(("equal", old_end, len(old), new_end, len(new)))
    return _Known(operations).get_grouped_opcodes(_CONTEXT)


class _Known(difflib.SequenceMatcher[bytes]):
    """The operations that make one sequence of another, which are known already."""

    def __init__(self, operations: list[_Operation]) -> None:
        super().__init__(None, (), ())
        self._operations = operations

    def get_opcodes(self) -> list[_Operation]:
        return self._operations


def _range(start: int, end: int) -> str:
    """A range of lines, as unified diffs have it (POSIX.1-2017, diff, "Diff -u or -U Output Format")."""
    count = end - start
    first = start + 1 if count else start
    return str(first) if count == 1 else f"{first},{count}"


def _marked(mark: bytes, lines: Sequence[bytes]) -> Iterator[bytes]:
    for line in lines:
        yield mark + line if line.endswith(b"\n") else mark + line + b"\n" + _NO_END


def _lines(text: bytes) -> list[bytes]:
    # Not by splitlines, which ends lines at carriage returns, too.
    lines = [line + b"\n" for line in text.split(b"\n")]
    last = lines.pop()[:-1]
    return [*lines, last] if last else lines


def _common(old: Sequence[bytes], new: Sequence[bytes]) -> tuple[int, int]:
    """How many lines are the same at the beginning, and at the end."""
    shorter = min(len(old), len(new))
    head = 0
    while head < shorter and old[head] == new[head]:
        head += 1
    tail = 0
    while tail < shorter - head and old[-1 - tail] == new[-1 - tail]:
        tail += 1
    return head, tail


async def _count_differing(comparison: ContentComparison, old: Node, new: Node) -> int:
    """How many blocks differ; those that one file alone has do."""
    shorter, longer = sorted((old.size, new.size))
    # The first block of which one file has less than the other.
    end = shorter // BLOCK if shorter != longer else -(-longer // BLOCK)
    differing = -(-longer // BLOCK) - end
    async with aclosing(comparison.different_pieces(old, new)) as pieces:
        async for offset, one, other in pieces:
            differing += sum(
                one[start : start + BLOCK] != other[start : start + BLOCK]
                for start in range(0, len(one), BLOCK)
                if offset + start < end * BLOCK
            )
    return differing
