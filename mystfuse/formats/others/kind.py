"""The answer to "what is this file": its kind, what to do with it, and the bytes that tell."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from uuid import UUID

START_SIZE = 68 << 10
"""Bytes from the beginning: the farthest superblock is that of btrfs, from 64 KiB on."""
END_SIZE = 4 << 10
"""Bytes from the end: an fssig; a VHD's footer has 512."""
ENCODINGS = ("utf-8-sig", "utf-16", "utf-16-le")
"""The encodings of texts and names, besides UTF-8."""
MAX_READS = 1200
MAX_BYTES = 4 << 20
"""What the recognizers may read besides, all together: a hostile file must not keep us."""
MAKE_IMAGE = "mystfuse mkext2 tree {image}"
"""The command that makes an image of what others have unpacked into ``tree``."""
Facts = dict[str, str | int | tuple[str, ...]]
"""What a file's own header says, by name; sizes in bytes."""


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a file that can be something by itself: a partition."""

    number: int
    type: str
    """What the table of partitions says of it."""
    offset: int
    """Bytes from the beginning of the file."""
    size: int
    """Bytes."""
    contents: str = ""
    """What its first bytes say."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What a file is. Nothing of it is verified."""

    name: str
    """One word, for programs."""
    title: str
    """One clause for people, with an article: ``a squashfs file system (xz, 12 MiB)``."""
    advice: str = ""
    """What to do: a clause."""
    commands: tuple[str, ...] = ()
    """Command lines for a shell that do it, as templates: ``{file}`` is the file, ``{new}`` a name for the file that is
    in it, ``{image}`` one for an image of what is in it."""
    facts: Facts = field(default_factory=dict)
    parts: tuple[Part, ...] = ()
    suffix: str = ""
    """The end of names of such files, to be left out of the new one's."""
    is_image: bool = False
    """An image, or a file that lacks little to be one; the title says what."""

    def commands_for(self, path: str) -> list[str]:
        """The command lines for the file at ``path``."""
        name = os.path.basename(path.rstrip("/")) or "disk"
        stem = name.removesuffix(self.suffix) or name
        new = stem if stem != name else f"{os.path.splitext(name)[0]}.img"
        image = f"{stem.removesuffix('.img')}.img"
        names = {"new": new, "image": image}
        # None of them is the file itself, or an option.
        quoted = {
            key: shlex.quote(_protected(f"new-{value}" if value == name else value)) for key, value in names.items()
        }
        file = shlex.quote(_protected(path))
        return [command.format(file=file, **quoted) for command in self.commands]

    def explain(self, path: str, wanted: str = "an image") -> str:
        """One line for people who took the file at ``path`` for something else: what it is, and what to do."""
        advice = f": {self.advice}" if self.advice else ""
        commands = self.commands_for(path)
        if commands:
            advice = f"{advice} ({commands[0]})" if advice else f": {commands[0]}"
        denial = "" if self.is_image and wanted == "an image" else f", not {wanted}"
        return f"{path}: {self.title}{denial}{advice}"


@dataclass(eq=False)
class _Budget:
    reads: int = MAX_READS
    length: int = MAX_BYTES


class Sample:
    """A file, or a part of one, as recognizers see it: its first and last bytes, and a bounded number of others.

    Args:
        read: gives exactly the bytes at an offset, with their number; the range lies within the file.
        size: of the file, in bytes.
        name: the file's own name; some kinds are told by its end alone.
    """

    def __init__(
        self, read: Callable[[int, int], bytes], size: int, name: str = "", budget: _Budget | None = None
    ) -> None:
        self.size = size
        self.name = name
        self._read = read
        self._budget = _Budget() if budget is None else budget
        self.start = read(0, min(size, START_SIZE)) if size else b""
        self.end = self.start[-END_SIZE:]
        if size > len(self.start):
            self.end = read(size - END_SIZE, END_SIZE)

    @classmethod
    def of(cls, start: bytes, end: bytes, size: int) -> Sample:
        """The sample of which no more than these first and last bytes can be had."""
        return cls(lambda offset, length: (end if offset else start)[:length], size, budget=_Budget(0, 0))

    def at(self, offset: int, length: int) -> bytes:
        """Bytes from ``offset`` on: fewer where the file ends, or where too much has been read already."""
        length = min(length, self.size - offset)
        if offset < 0 or length <= 0:
            return b""
        if offset + length <= len(self.start):
            return self.start[offset : offset + length]
        if self._budget.reads <= 0 or self._budget.length < length:
            return b""
        self._budget.reads -= 1
        self._budget.length -= length
        return self._read(offset, length)

    def number(self, offset: int, size: int, order: str = "little") -> int:
        """The unsigned number of ``size`` bytes among the first ones of the file; 0 where there are none."""
        return int.from_bytes(self.start[offset : offset + size], "big" if order == "big" else "little")

    def part(self, offset: int, size: int) -> Sample | None:
        """A part of it as a sample of its own; None where it lies outside, or where too much has been read already."""
        size = min(size, self.size - offset)
        length = min(size, START_SIZE) + END_SIZE
        if offset < 0 or size <= 0 or self._budget.reads < 2 or self._budget.length < length:
            return None
        self._budget.reads -= 2
        self._budget.length -= length

        def read(start: int, length: int) -> bytes:
            return self._read(offset + start, length)

        return Sample(read, size, "", self._budget)


_ADDRESS = re.compile("(https?|s3|oci)://", re.IGNORECASE)


def _protected(path: str) -> str:
    """The path, or one of the same meaning that no command takes for an option, or for a place on another machine, as
    tar and qemu-img do with what is before a colon. The address of an image elsewhere stays as it is."""
    if _ADDRESS.match(path):
        return path
    return f"./{path}" if path.startswith("-") or ":" in path.partition("/")[0] else path


def text_of(data: bytes) -> str:
    """A field that NULs or blanks fill up, as text; what is not UTF-8 is escaped."""
    return data.split(b"\0", 1)[0].decode("utf-8", "backslashreplace").strip()


def uuid_of(data: bytes) -> str:
    """A UUID as text; nothing for zeros, or fewer than 16 bytes."""
    return str(UUID(bytes=data)) if len(data) == 16 and any(data) else ""


def facts_of(**facts: str | int | tuple[str, ...]) -> Facts:
    """The facts that say something."""
    return {name: value for name, value in facts.items() if value not in ("", ())}


def in_brackets(*words: str) -> str:
    """`` (a, b)`` of the words that are not empty; nothing if all are."""
    said = ", ".join(word for word in words if word)
    return f" ({said})" if said else ""
