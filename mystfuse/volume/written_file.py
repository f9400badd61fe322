"""What has been written to a volume, as one run of bytes: the numbers of blocks, and the blocks."""

from __future__ import annotations

import struct

import trio

from mystfuse.errors import MystfuseError
from mystfuse.overlay.written_format import NUMBER, WrittenHeader
from mystfuse.volume.merged_image import MergedImage

_NUMBERS_AT_ONCE = 50_000


class WrittenFile:
    """The blocks in which a merged image differs from the image that was mounted; see ``overlay.written_format``.

    Laid over that image, they make the state of the merged image, but for free blocks. Use ``WrittenFile.of``, and
    ``close`` when done. The numbers take four bytes of memory for each block.
    """

    def __init__(self, merged: MergedImage, header: WrittenHeader, numbers: bytes) -> None:
        self.size = header.size
        """Bytes."""
        self._merged = merged
        self._header = header
        self._numbers = numbers
        """As the file has them."""

    @classmethod
    async def of(cls, merged: MergedImage, block_size: int) -> WrittenFile:
        """Those of a merged image, which is closed with them, or at once if this fails.

        Args:
            block_size: bytes.
        """
        snapshot = merged.snapshot
        try:
            candidates = snapshot.candidates()
            numbers = bytearray()
            for start in range(0, len(candidates), _NUMBERS_AT_ONCE):
                found = [number for number in candidates[start : start + _NUMBERS_AT_ONCE] if snapshot.has(number)]
                numbers += struct.pack(f"<{len(found)}I", *found)
                # Other tasks may write meanwhile: the snapshot stays as it is.
                await trio.lowlevel.checkpoint()
        except BaseException:
            merged.close()
            raise
        return cls(merged, WrittenHeader(block_size, len(numbers) // NUMBER.size), bytes(numbers))

    async def read(self, offset: int, length: int) -> bytes:
        """Up to ``length`` bytes from byte ``offset`` on; fewer only at the end.

        Raises:
            MystfuseError: reading blocks from the overlay's store failed.
        """
        end = min(offset + length, self.size)
        if offset >= end:
            return b""
        data_offset, block_size = self._header.data_offset, self._header.block_size
        parts: list[bytes] = []
        if offset < data_offset:
            head = self._header.pack()
            start = max(offset - len(head), 0)
            numbers = self._numbers[start : max(end - len(head), 0)]
            part = head[offset : min(end, len(head))] + numbers
            parts.append(part.ljust(min(end, data_offset) - offset, b"\0"))
            offset = data_offset
        if offset < end:
            first, start = divmod(offset - data_offset, block_size)
            last = (end - data_offset - 1) // block_size
            wanted = self._numbers[first * NUMBER.size : (last + 1) * NUMBER.size]
            data = await self._read_blocks([number for (number,) in NUMBER.iter_unpack(wanted)])
            parts.append(data[start : start + end - offset])
        return b"".join(parts)

    async def _read_blocks(self, numbers: list[int]) -> bytes:
        snapshot = self._merged.snapshot
        blocks = [snapshot.get(number) for number in numbers]
        versions = [block for block in blocks if isinstance(block, int)]
        # A snapshot's blocks in the store stay there.
        recalled = await snapshot.recall(versions) if versions else {}
        contents: list[bytes] = []
        for block in blocks:
            content = recalled[block] if isinstance(block, int) else block
            if isinstance(content, MystfuseError):
                raise content
            assert content is not None
            contents.append(content)
        return b"".join(contents)

    def close(self) -> None:
        """Give back everything that only this snapshot holds."""
        self._merged.close()
