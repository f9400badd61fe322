"""A regular file of an image, open for reading without a mount."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from types import TracebackType

import trio

from mystfuse.errors import CorruptFilesystem
from mystfuse.ext2.inode import Inode
from mystfuse.volume.volume import Volume

CHUNK = 1 << 20
"""Bytes of a file that are read at once."""


class ImageFile:
    """A regular file of an image that is open for reading. Use ``ImageTree.open``.

    It can be read by chunks (``async for``), all at once, or anywhere (``pread``); ``async with`` closes it.
    """

    def __init__(self, volume: Volume, inode: Inode, name: str | bytes) -> None:
        self.name = name
        """The path that it was opened by."""
        self.size = inode.size
        """Bytes."""
        self._volume = volume
        self._ino = inode.ino
        self._position = 0
        self._is_closed = False

    async def pread(self, offset: int, length: int) -> bytes:
        """Up to ``length`` bytes from byte ``offset`` on, fewer only at the end; the position stays where it is.

        Raises:
            ValueError: a negative offset or length, or the file is closed.
            CorruptFilesystem, IntegrityError, ImageReadError
        """
        self._check_open()
        if offset < 0 or length < 0:
            raise ValueError("offset and length cannot be negative")
        await trio.lowlevel.checkpoint()
        end = min(offset + length, self.size)
        parts: list[bytes | memoryview] = []
        for start in range(offset, end, CHUNK):
            if start > offset:
                await trio.lowlevel.checkpoint()
            parts.append(await self._volume.read(self._ino, start, min(CHUNK, end - start)))
        return b"".join(parts)

    async def read(self, size: int = -1) -> bytes:
        """Up to ``size`` bytes from the position on, all there are if it is negative; empty at the end."""
        data = await self.pread(self._position, self.size if size < 0 else size)
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move the position, which may lie behind the end; returns the new one.

        Raises:
            ValueError: it would be negative, ``whence`` is none, or the file is closed.
        """
        self._check_open()
        bases = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}
        if whence not in bases or bases[whence] + offset < 0:
            raise ValueError(f"cannot seek to {offset} from {whence}")
        self._position = bases[whence] + offset
        return self._position

    def tell(self) -> int:
        """The position, in bytes from the beginning."""
        self._check_open()
        return self._position

    async def data_ranges(self) -> AsyncIterator[tuple[int, int]]:
        """The ranges of data: (byte offset, length of up to 1 MiB), in order. Holes lie between them.

        Raises:
            CorruptFilesystem, IntegrityError, ImageReadError
        """
        self._check_open()
        # Even in a sound file, each table of pointers may begin and end a hole, and each block be a range of its own.
        steps_left = 4 * self._volume.superblock.s_blocks_count
        start = position = 0
        while True:
            await trio.lowlevel.checkpoint()
            is_data, length = await self._volume.stretch(self._ino, position)
            if not is_data or position - start >= CHUNK:
                while start < position:
                    yield start, min(CHUNK, position - start)
                    start += min(CHUNK, position - start)
            position += length
            if not is_data:
                start = position
            if not length:
                return
            steps_left -= 1
            if steps_left < 0:
                raise CorruptFilesystem(f"inode {self._ino}: its map has more tables than the file system has blocks")

    async def aclose(self) -> None:
        """Close it; reading raises ValueError from then on."""
        self._is_closed = True

    async def __aenter__(self) -> ImageFile:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while data := await self.read(CHUNK):
            yield data

    def _check_open(self) -> None:
        if self._is_closed:
            raise ValueError("the file is closed")

    def __repr__(self) -> str:
        return f"<ImageFile {self.name!r}>"
