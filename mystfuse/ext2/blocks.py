"""How the core gets at blocks: from memory, or by saying which ones it needs.

An operation that needs a block that is not in memory raises ``BlocksMissing``; whoever runs it (``volume``) fetches the
blocks through the pipeline, pins them to the operation, and runs it again from the start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from mystfuse.errors import MystfuseError


class BlocksMissing(Exception):
    """Raised by an operation to name blocks it cannot go on without, all that can be known at once.

    Args:
        numbers: block numbers, each inside the file system.
        ahead: block numbers that are worth fetching along with them; the operation can do without.
        progress: True when an operation that works through more blocks than can be pinned has kept what it has done
            so far, and needs none of the blocks it named before.
    """

    def __init__(self, numbers: Iterable[int], ahead: Iterable[int] = (), progress: bool = False) -> None:
        self.numbers = frozenset(numbers)
        self.ahead = frozenset(ahead) - self.numbers
        self.progress = progress
        super().__init__(f"{len(self.numbers)} blocks")


class Blocks:
    """The blocks one operation reads through. What it has seen once stays pinned to it, out of reach of eviction."""

    def __init__(self, cached: Callable[[int], bytes | None]) -> None:
        self.pinned: dict[int, bytes] = {}
        self.damaged: dict[int, MystfuseError] = {}
        """Blocks that cannot be had, and why. An operation meets the error when it looks at the block, not before."""
        self._cached = cached

    def find(self, number: int) -> bytes | None:
        """The block, or None if it is not in memory.

        Raises:
            MystfuseError: the block cannot be had.
        """
        block = self.pinned.get(number)
        if block is None:
            if number in self.damaged:
                raise self.damaged[number]
            block = self._cached(number)
            if block is not None:
                self.pinned[number] = block
        return block

    def block(self, number: int, ahead: Iterable[int] = ()) -> bytes:
        """The block; ``ahead`` are others worth fetching along with it when it is missing.

        Raises:
            BlocksMissing: it is not in memory.
            MystfuseError: it cannot be had.
        """
        block = self.find(number)
        if block is None:
            raise BlocksMissing([number], (other for other in ahead if not self._is_known(other)))
        return block

    def all(self, numbers: Sequence[int]) -> list[bytes]:
        """The blocks, in the order given.

        Raises:
            BlocksMissing: naming every one that is not in memory.
            MystfuseError: one of them cannot be had.
        """
        self.want(numbers)
        return [self.block(number) for number in numbers]

    def want(self, numbers: Iterable[int]) -> None:
        """Have the blocks in memory, as far as they can be had.

        Raises:
            BlocksMissing: naming every one that is neither in memory nor known to be damaged.
        """
        missing = [number for number in numbers if not self._is_known(number)]
        if missing:
            raise BlocksMissing(missing)

    def _is_known(self, number: int) -> bool:
        return number in self.damaged or self.find(number) is not None
