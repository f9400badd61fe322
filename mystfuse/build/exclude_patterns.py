"""Patterns of files to leave out, by the rules of gitignore(5), matched against paths from the directory on.

The last pattern that matches a path decides; what is below a directory that is left out is left out as well.
"""

from __future__ import annotations

import os
import re
import string
from collections.abc import Sequence
from dataclasses import dataclass

from mystfuse.errors import UsageError

_CLASSES = {
    b"alnum": string.ascii_letters + string.digits, b"alpha": string.ascii_letters, b"blank": " \t",
    b"cntrl": "".join(map(chr, [*range(32), 127])), b"digit": string.digits,
    b"graph": "".join(map(chr, range(33, 127))), b"lower": string.ascii_lowercase,
    b"print": "".join(map(chr, range(32, 127))), b"punct": string.punctuation, b"space": string.whitespace,
    b"upper": string.ascii_uppercase, b"xdigit": string.hexdigits,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Pattern:
    """One pattern."""

    matches: re.Pattern[bytes]
    """Of a whole path, or of its last part."""
    is_of_paths: bool
    takes_in: bool
    """It began with ``!``: what matches is not left out after all."""
    is_of_directories: bool

    @classmethod
    def parse(cls, text: bytes) -> Pattern:
        """Raises UsageError: it is empty, or has a ``[`` or a backslash with nothing behind it."""
        rest = text
        takes_in = rest.startswith(b"!")
        if takes_in:
            rest = rest[1:]
        is_of_directories = rest.endswith(b"/")
        if is_of_directories:
            rest = rest[:-1]
        is_of_paths = b"/" in rest
        rest = rest.removeprefix(b"/")
        if not rest:
            raise UsageError("a pattern is empty")
        return cls(re.compile(_translate(rest, text), re.DOTALL), is_of_paths, takes_in, is_of_directories)


def parse_lines(data: bytes) -> list[Pattern]:
    """The patterns of a file: one a line, but for empty lines and those that begin with ``#``. Spaces at the end do not
    count, unless a backslash is in front. Raises UsageError as ``Pattern.parse``."""
    lines = (re.sub(rb"(?<!\\) +$", b"", line) for line in data.split(b"\n"))
    return [Pattern.parse(line) for line in lines if line and not line.startswith(b"#")]


def is_excluded(patterns: Sequence[Pattern], path: bytes, is_directory: bool) -> bool:
    """Whether a path is left out by itself; the directories above it are the caller's matter."""
    name = path.rpartition(b"/")[2]
    for pattern in reversed(patterns):
        if pattern.is_of_directories and not is_directory:
            continue
        if pattern.matches.fullmatch(path if pattern.is_of_paths else name):
            return not pattern.takes_in
    return False


def _translate(glob: bytes, text: bytes) -> bytes:
    """A regular expression; ``text`` is the whole pattern, for messages."""
    parts: list[bytes] = []
    position = 0
    while position < len(glob):
        char = glob[position : position + 1]
        position += 1
        if char == b"*":
            end = position
            while glob[end : end + 1] == b"*":
                end += 1
            is_part = glob[position - 2 : position - 1] in (b"", b"/") and glob[end : end + 1] in (b"", b"/")
            if end - position == 1 and is_part and glob[end : end + 1] == b"/":
                # Any number of directories.
                parts.append(b"(?:.*/)?")
                end += 1
            elif end - position == 1 and is_part:
                parts.append(b".*")
            else:
                parts.append(b"[^/]*")
            position = end
        elif char == b"?":
            parts.append(b"[^/]")
        elif char == b"[":
            members, position = _members(glob, position, text)
            # An empty class matches nothing.
            parts.append(
                b"[" + b"".join(b"\\x%02x" % member for member in sorted(members)) + b"]" if members else b"(?!)"
            )
        else:
            if char == b"\\":
                char = glob[position : position + 1]
                position += 1
                if not char:
                    raise UsageError(f"the pattern {os.fsdecode(text)} ends with a backslash")
            parts.append(re.escape(char))
    return b"".join(parts)


def _members(glob: bytes, start: int, text: bytes) -> tuple[set[int], int]:
    """What a class matches, whose ``[`` is in front of ``start``; and where the pattern goes on."""
    position = start
    is_negated = glob[position : position + 1] in (b"!", b"^")
    position += is_negated
    members: set[int] = set()
    first = position
    while position == first or glob[position : position + 1] != b"]":
        if (named := re.compile(rb"\[:([a-z]*):\]").match(glob, position)) is not None:
            if named[1] not in _CLASSES:
                raise UsageError(f"the pattern {os.fsdecode(text)} has an unknown class [:{named[1].decode()}:]")
            members.update(_CLASSES[named[1]].encode())
            position = named.end()
            continue
        low, position = _member(glob, position, text)
        if glob[position : position + 1] == b"-" and glob[position + 1 : position + 2] not in (b"]", b""):
            high, position = _member(glob, position + 1, text)
            members.update(range(low, high + 1))
        else:
            members.add(low)
    if is_negated:
        members = set(range(256)) - members
    return members - {ord("/")}, position + 1


def _member(glob: bytes, position: int, text: bytes) -> tuple[int, int]:
    """One byte of a class, and where it goes on."""
    if glob[position : position + 1] == b"\\":
        position += 1
    if position >= len(glob):
        raise UsageError(f"the pattern {os.fsdecode(text)} has a [ without its ]")
    return glob[position], position + 1
