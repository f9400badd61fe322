"""What ``mystfuse diff`` prints for people: a line a path, contents, counts."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from mystfuse.cli.text import file_type
from mystfuse.errors import one_line
from mystfuse.system.units import describe_bytes
from mystfuse.tree.diff.change import Aspect, Change, Kind
from mystfuse.tree.diff.content_changes import ContentChange
from mystfuse.tree.diff.statistics import Statistics
from mystfuse.tree.diff.view import Node, View

LETTERS = {Kind.ADDED: "A", Kind.REMOVED: "D", Kind.RENAMED: "R", Kind.CHANGED: "M"}
_PLAIN = frozenset(range(32, 127)) - set(b'"\\')
"""Bytes of a name that need no quotes in a unified diff."""
Targets = tuple[bytes, bytes]
"""Where a symbolic link led, and where it leads."""


async def read_targets(old: View, new: View, change: Change) -> Targets | None:
    """For ``describe``; None unless that is what differs. Raises as the views do."""
    if Aspect.TARGET not in change.aspects or change.old is None or change.new is None:
        return None
    return await old.target(change.old), await new.target(change.new)


def describe(change: Change, targets: Targets | None) -> str:
    """The line of one change.

    Args:
        targets: if that is what differs.
    """
    node = change.old if change.new is None else change.new
    assert node is not None
    text = f"{LETTERS[change.kind]}  "
    if change.old_path is not None:
        assert change.old is not None
        text += f"{_shown(change.old_path, change.old)} -> "
    text += _shown(change.path, node)
    details = ", ".join(_details(change, targets))
    return f"{text}  ({details})" if details else text


def _shown(path: bytes, node: Node) -> str:
    """A path, a directory's with a slash; the root is ``./``."""
    return one_line(os.fsdecode(path) or ".") + ("/" if node.is_directory else "")


def _details(change: Change, targets: Targets | None) -> Iterator[str]:
    old, new = change.old, change.new
    if old is None or new is None:
        return
    for aspect in Aspect:
        if aspect not in change.aspects:
            continue
        if aspect is Aspect.TYPE:
            yield f"{file_type(old.mode)} -> {file_type(new.mode)}"
        elif aspect is Aspect.TARGET and targets is not None:
            yield "target " + " -> ".join(one_line(os.fsdecode(target)) for target in targets)
        elif aspect is Aspect.DEVICE:
            yield f"device {_device(old)} -> {_device(new)}"
        elif aspect is Aspect.SIZE:
            yield f"size {old.size} -> {new.size}"
        elif aspect is Aspect.MODE:
            yield f"mode {stat.S_IMODE(old.mode):04o} -> {stat.S_IMODE(new.mode):04o}"
        elif aspect is Aspect.OWNER:
            yield f"owner {old.uid} -> {new.uid}"
        elif aspect is Aspect.GROUP:
            yield f"group {old.gid} -> {new.gid}"
        else:
            yield "time" if aspect is Aspect.MTIME else aspect.value


def _device(node: Node) -> str:
    return f"{os.major(node.rdev)}:{os.minor(node.rdev)}"


def content_lines(change: Change, content: ContentChange, escapes: bool) -> Iterator[bytes]:
    """How contents differ: a unified diff with its header, or a line.

    Args:
        escapes: whether what could drive a terminal is escaped.
    """
    if content.lines is None:
        blocks = "block" if content.blocks == 1 else "blocks"
        differ = "differs" if content.differing == 1 else "differ"
        yield f"binary, {content.differing} of {content.blocks} {blocks} {differ}\n".encode()
        return
    for mark, side, path, node in (
        (b"---", b"a/", change.path if change.old_path is None else change.old_path, change.old),
        (b"+++", b"b/", change.path, change.new),
    ):
        name = b"/dev/null" if node is None or not node.is_regular else _header_name(side + path)
        yield mark + b" " + name + b"\n"
    for line in content.lines:
        yield _escaped(line) if escapes else line


def _header_name(name: bytes) -> bytes:
    """A name as patch(1) reads it: one with blanks ends at a tab, an odd one is quoted as a string in C."""
    if all(byte in _PLAIN for byte in name):
        return name + (b"\t" if b" " in name else b"")
    return b'"' + b"".join(bytes([byte]) if byte in _PLAIN else b"\\%03o" % byte for byte in name) + b'"'


def _escaped(line: bytes) -> bytes:
    text = line.rstrip(b"\n").decode(errors="surrogateescape")
    # Tabs are harmless, and many.
    return "\t".join(map(one_line, text.split("\t"))).encode() + b"\n"


def statistics_lines(statistics: Statistics) -> Iterator[str]:
    """Counts and bytes, a line for each kind of change that there is."""
    rows = [(kind, statistics.paths[kind], statistics.size[kind]) for kind in Kind if statistics.paths[kind]]
    width = max((len(str(count)) for _, count, _ in rows), default=0)
    for kind, count, size in rows:
        text = f"{kind.value:<7}  {count:>{width}} {'path ' if count == 1 else 'paths'}"
        if kind in (Kind.ADDED, Kind.REMOVED) or size:
            text += f"  {describe_bytes(size)}"
        yield text
    aspects = [f"{_word(aspect)} {statistics.aspects[aspect]}" for aspect in Aspect if statistics.aspects[aspect]]
    if aspects:
        yield f"of the paths in both: {', '.join(aspects)}"
    if not rows:
        yield "no differences"


def _word(aspect: Aspect) -> str:
    return "time" if aspect is Aspect.MTIME else aspect.value
