"""How the core gets at blocks: from memory, or by saying which ones it needs.

An operation that needs a block that is not in memory raises ``BlocksMissing``; whoever runs it (``volume``) fetches the
blocks through the pipeline, pins them to the operation, and runs it again from the start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence


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
    """The blocks one operation reads through: those pinned to it, then whatever the cache has."""

    def __init__(self, cached: Callable[[int], bytes | None]) -> None:
        self.pinned: dict[int, bytes] = {}
        self._cached = cached

    def find(self, number: int) -> bytes | None:
        """The block, or None if it is not in memory."""
        block = self.pinned.get(number)
        return self._cached(number) if block is None else block

    def block(self, number: int, ahead: Sequence[int] = ()) -> bytes:
        """The block; ``ahead`` are others worth fetching along with it when it is missing.

        Raises:
            BlocksMissing: it is not in memory.
        """
        block = self.find(number)
        if block is None:
            raise BlocksMissing([number], (other for other in ahead if self.find(other) is None))
        return block

    def all(self, numbers: Sequence[int]) -> list[bytes]:
        """The blocks, in the order given.

        Raises:
            BlocksMissing: naming every one that is not in memory.
        """
        blocks = [self.find(number) for number in numbers]
        if None in blocks:
            raise BlocksMissing(number for number, block in zip(numbers, blocks, strict=True) if block is None)
        return [block for block in blocks if block is not None]
