"""The tree in tar archives, without a disk: names and attributes in memory, data where they are in the archives."""

from __future__ import annotations

import errno
import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from mystfuse.archives.file_tree import Entry
from mystfuse.archives.layers import ArchivedFile, Layers
from mystfuse.archives.spool import Advance, FilePart, opened
from mystfuse.archives.tar_members import read_members
from mystfuse.errors import FormatError


@dataclass(frozen=True, slots=True)
class ArchiveTree:
    """What archives contain."""

    root: Entry
    contents: ArchiveContents


@contextmanager
def open_tar(paths: Sequence[str], advance: Advance = lambda count: None) -> Iterator[ArchiveTree]:
    """The tree of tar archives, each perhaps compressed, until the block ends.

    Args:
        paths: from below up, ``-`` is stdin. Of several, each is a layer, whose ``.wh.`` names remove files of those
            below; in a single one they are names as others.
        advance: called with the number of bytes that have been read since the last call.

    Raises:
        MystfuseError: reading one failed, or there is no room to decompress it.
        FormatError: one is no tar archive, damaged, or hostile.
    """
    layers = Layers()
    with ExitStack() as stack:
        parts: list[FilePart] = []
        for path in paths:
            name = "stdin" if path == "-" else path
            part = stack.enter_context(opened(path, name, advance))
            parts.append(part)
            add_layer(layers, part, name, with_whiteouts=len(paths) > 1)
        yield ArchiveTree(layers.root, ArchiveContents(parts))


def add_layer(layers: Layers, part: FilePart, name: str, with_whiteouts: bool) -> None:
    """Put a decompressed archive on top of others.

    Args:
        name: of the archive, for messages.

    Raises:
        FormatError: it is no tar archive, damaged, or hostile.
    """
    if not part.size:
        raise FormatError(f"{name}: empty, not a tar archive")
    try:
        layers.add(read_members(part), part.descriptor, part.offset, with_whiteouts)
    except FormatError as error:
        raise error.at(name) from None


class ArchiveContents:
    """The data of archived files."""

    def __init__(self, parts: Sequence[FilePart]) -> None:
        self.descriptors = frozenset(part.descriptor for part in parts)

    def open(self, entry: Entry) -> OpenArchived:
        """See ``Contents``; the entry is an ``ArchivedFile``."""
        assert isinstance(entry, ArchivedFile)
        return OpenArchived(entry)


class OpenArchived:
    """The data of one archived file; see ``OpenContents``."""

    def __init__(self, entry: ArchivedFile) -> None:
        self._entry = entry
        # For each piece: where it begins and ends in the file, and where it is in the archive.
        self._pieces: list[tuple[int, int, int]] = []
        place = entry.offset
        for start, length in ((0, entry.size),) if entry.pieces is None else entry.pieces:
            if length:
                self._pieces.append((start, start + length, place))
            place += length

    def read(self, offset: int, length: int) -> bytes:
        entry = self._entry
        length = max(min(length, entry.size - offset), 0)
        if entry.pieces is None:
            return _read(entry.descriptor, entry.offset + offset, length)
        data = bytearray(length)
        for index in range(self._after(offset), len(self._pieces)):
            start, end, place = self._pieces[index]
            if start >= offset + length:
                break
            first, last = max(start, offset), min(end, offset + length)
            data[first - offset : last - offset] = _read(entry.descriptor, place + first - start, last - first)
        return bytes(data)

    def seek(self, offset: int, whence: int) -> int:
        if not 0 <= offset < self._entry.size:
            raise OSError(errno.ENXIO, "behind the end")
        for index in range(self._after(offset), len(self._pieces)):
            start, end, _ = self._pieces[index]
            if whence == os.SEEK_DATA:
                return max(start, offset)
            if start > offset:
                return offset
            offset = end
        if whence == os.SEEK_DATA:
            raise OSError(errno.ENXIO, "no data behind it")
        return offset

    def close(self) -> None:
        pass

    def _after(self, offset: int) -> int:
        """The index of the first piece that ends behind ``offset``."""
        return bisect_right(self._pieces, offset, key=lambda piece: piece[1])


def _read(descriptor: int, offset: int, length: int) -> bytes:
    """Exactly ``length`` bytes: an archive that has been cut short meanwhile is an error, not zeros."""
    data = os.pread(descriptor, length, offset)
    while len(data) < length:
        more = os.pread(descriptor, length - len(data), offset + len(data))
        if not more:
            raise OSError(errno.EIO, "the archive has been cut short")
        data += more
    return data
