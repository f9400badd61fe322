"""Data in one file and its hash tree in another, or a tree without a superblock, as one image of the usual layout.

``[ data | gap | superblock | tree ]``: the place of the tree is a multiple of every hash block size, so that its blocks
lie as in its own file. A missing superblock is made from the user's options.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mystfuse.devices.source import (
    Remoteness,
    SourcePart,
    StoredSource,
    attempts_of,
    bypass_cache,
    counters_of,
    read_again,
    remoteness,
)
from mystfuse.errors import ImageReadError
from mystfuse.formats.verity import MAX_BLOCK_SIZE


@dataclass(frozen=True, slots=True)
class _Part:
    """Bytes from ``start`` to ``end`` of the image."""

    start: int
    end: int
    file: StoredSource | None
    """None for ``contents``."""
    offset: int
    """In the file."""
    contents: bytes = b""


class JoinedSource:
    """See the module.

    Args:
        data: the data.
        tree: the file with the hash tree, which may be the same one.
        hash_offset: their offset in it.
        superblock: one hash block that begins with a superblock, for a tree without; ``hash_offset`` is a multiple of
            its length then.
    """

    def __init__(self, data: StoredSource, tree: StoredSource, hash_offset: int, superblock: bytes = b"") -> None:
        self.name = data.name
        base = -(-(data.size + 1) // MAX_BLOCK_SIZE) * MAX_BLOCK_SIZE
        parts = [_Part(0, data.size, data, 0)]
        if superblock:
            parts.append(_Part(base, base + len(superblock), None, 0, superblock))
            start = base + len(superblock)
            parts.append(_Part(start, max(start, start + tree.size - hash_offset), tree, hash_offset))
            self.hash_offset = base
        else:
            parts.append(_Part(base, base + tree.size, tree, 0))
            self.hash_offset = base + hash_offset
        self.size = parts[-1].end
        self.attempts = max(attempts_of(data), attempts_of(tree))
        self._data, self._tree, self._parts = data, tree, parts

    def read_cached(self, offset: int, buffer: memoryview) -> bool:
        for part, start, piece in self._pieces(offset, buffer):
            if part is None:
                return False
            if part.file is None:
                piece[:] = part.contents[start : start + len(piece)]
            elif not part.file.read_cached(part.offset + start, piece):
                return False
        return True

    def read(self, offset: int, length: int) -> bytes:
        data = bytearray(length)
        self.read_into(offset, memoryview(data))
        return bytes(data)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        for part, start, piece in self._pieces(offset, buffer):
            if part is None:
                end = offset + len(buffer)
                what = f"{self.name}: it ends at byte {self._data.size}" if end <= self.hash_offset else self._tree.name
                raise ImageReadError(f"{what}: truncated, or not of this tree")
            if part.file is None:
                piece[:] = part.contents[start : start + len(piece)]
            else:
                part.file.read_into(part.offset + start, piece)

    @property
    def remoteness(self) -> Remoteness:
        """Of the one that is less at hand."""
        return max(remoteness(self._data), remoteness(self._tree), key=lambda place: place.value)

    def read_again(self, offset: int, length: int) -> bytes | None:
        """See ``source.read_again``."""
        data = bytearray(length)
        has_other_place = False
        for part, start, piece in self._pieces(offset, memoryview(data)):
            file = part.file if part is not None else None
            again = read_again(file, part.offset + start, len(piece)) if part is not None and file is not None else None
            if again is not None:
                has_other_place = True
                piece[:] = again
            elif part is not None:
                self.read_into(part.start + start, piece)
            else:
                self.read_into(offset, memoryview(data))
        return bytes(data) if has_other_place else None

    @property
    def counters(self) -> Callable[[], dict[str, int]] | None:
        """See ``source.counters_of``."""
        return counters_of(self._data) or counters_of(self._tree)

    def bypass_cache(self) -> None:
        """See ``source.bypass_cache``."""
        bypass_cache(self._data)
        bypass_cache(self._tree)

    def _pieces(self, offset: int, buffer: memoryview) -> Iterator[tuple[_Part | None, int, memoryview]]:
        """The parts of a range: the part, the offset in it, and its memory; None for a gap."""
        done = 0
        while done < len(buffer):
            position = offset + done
            part = next((part for part in self._parts if part.start <= position < part.end), None)
            if part is None:
                yield None, 0, buffer[done:]
                return
            length = min(len(buffer) - done, part.end - position)
            yield part, position - part.start, buffer[done : done + length]
            done += length

    @property
    def parts(self) -> list[SourcePart]:
        """What it is made of, but for a superblock from options."""
        return [
            file._replace(start=part.start, end=part.end, offset=part.offset + file.offset)
            for part in self._parts
            if part.file is not None
            for file in part.file.parts
        ]

    @property
    def data_size(self) -> int:
        """Bytes of the file with the data."""
        return self._data.size

    def place(self, offset: int) -> tuple[str, int] | None:
        """The name of the file that byte ``offset`` of the image is in, and its place there; None for a superblock from
        options, and for the gap."""
        for part in self._parts:
            if part.file is not None and part.start <= offset < part.end:
                return part.file.name, part.offset + offset - part.start
        return None

    @property
    def descriptors(self) -> frozenset[int]:
        """The descriptors that a daemon keeps over its fork."""
        return self._data.descriptors | self._tree.descriptors

    def close(self) -> None:
        self._data.close()
        self._tree.close()

    def resolved_name(self) -> str:
        """The absolute path of the data, for the mount table."""
        return self._data.resolved_name()
