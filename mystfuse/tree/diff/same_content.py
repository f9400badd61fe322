"""Whether two regular files have the same bytes: by their blocks' digests where both hash trees have comparable ones,
else by reading them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from functools import partial

from mystfuse.devices.patient_threads import call_patiently
from mystfuse.tree.diff.block_digests import differing_ranges, have_comparable_digests
from mystfuse.tree.diff.directory_view import DirectoryView
from mystfuse.tree.diff.image_view import ImageView, ino_of
from mystfuse.tree.diff.untouched_files import UntouchedFiles
from mystfuse.tree.diff.view import Node, View
from mystfuse.tree.image_file import CHUNK

_ALIGNMENT = 4096


class ContentComparison:
    """Compares files of two views."""

    def __init__(self, old: View, new: View) -> None:
        self._old = old
        self._new = new
        self._has_digests = (
            isinstance(old, ImageView) and isinstance(new, ImageView) and have_comparable_digests(old, new)
        )
        self._is_prepared = False
        self._untouched: UntouchedFiles | None = None

    async def is_same(self, old: Node, new: Node) -> bool:
        """Whether two regular files have the same bytes; raises as the views do."""
        if old.size != new.size:
            return False
        if not old.size:
            return True
        if isinstance(self._old, DirectoryView) and isinstance(self._new, DirectoryView) and old.size <= CHUNK:
            work = partial(_is_same_now, self._old, old, self._new, new)
            return await call_patiently(work, self._new.name, max(self._old.io_timeout, self._new.io_timeout))
        async with aclosing(self.different_pieces(old, new)) as pieces:
            return await anext(pieces, None) is None

    async def is_untouched(self, old: Node, new: Node) -> bool:
        """Whether two inodes are surely the same, attributes and all: of two images of one file system, the same one,
        of which no block differs."""
        if not self._has_digests or old.key != new.key or self._old.lineage != self._new.lineage:
            return False
        assert isinstance(self._old, ImageView)
        assert isinstance(self._new, ImageView)
        if not self._is_prepared:
            self._untouched = await UntouchedFiles.between(self._old, self._new)
            self._is_prepared = True
        return self._untouched is not None and self._untouched.has(ino_of(new))

    async def different_pieces(self, old: Node, new: Node) -> AsyncGenerator[tuple[int, bytes, bytes], None]:
        """The pieces of up to 1 MiB in which two regular files differ, up to the end of the shorter one: an offset, and
        what is there in both. Raises as the views do."""
        async with aclosing(self._doubtful_ranges(old, new)) as ranges:
            async for offset, length in ranges:
                old_data = await self._old.read(old, offset, length)
                new_data = await self._new.read(new, offset, length)
                # Memoryviews are compared byte by byte.
                one, other = bytes(old_data), bytes(new_data)
                if one != other:
                    yield offset, one, other

    async def _doubtful_ranges(self, old: Node, new: Node) -> AsyncGenerator[tuple[int, int], None]:
        """The ranges that may differ: offsets, which are multiples of 4096, and lengths of up to 1 MiB."""
        size = min(old.size, new.size)
        if self._has_digests:
            assert isinstance(self._old, ImageView)
            assert isinstance(self._new, ImageView)
            found = differing_ranges(self._old, old, self._new, new)
        elif size <= CHUNK:
            yield 0, size
            return
        else:
            found = _either(self._old.data_ranges(old), self._new.data_ranges(new))
        done = 0
        async with aclosing(found) as ranges:
            async for start, length in ranges:
                end = min(-(-(start + length) // _ALIGNMENT) * _ALIGNMENT, size)
                for offset in range(max(start // _ALIGNMENT * _ALIGNMENT, done), end, CHUNK):
                    done = min(offset + CHUNK, end)
                    yield offset, done - offset


def _is_same_now(old_view: DirectoryView, old: Node, new_view: DirectoryView, new: Node) -> bool:
    return old_view.read_now(old, 0, old.size) == new_view.read_now(new, 0, new.size)


async def _either(
    old: AsyncIterator[tuple[int, int]], new: AsyncIterator[tuple[int, int]]
) -> AsyncGenerator[tuple[int, int], None]:
    """The ranges in which one or both have data: offsets and lengths, in order, none overlapping."""
    sides = [old, new]
    heads = [await anext(side, None) for side in sides]
    end = 0
    while any(heads):
        side = min((head, number) for number, head in enumerate(heads) if head is not None)[1]
        head = heads[side]
        assert head is not None
        start, stop = max(head[0], end), head[0] + head[1]
        if stop > start:
            yield start, stop - start
            end = stop
        heads[side] = await anext(sides[side], None)
