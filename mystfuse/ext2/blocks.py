"""How the core gets blocks: from memory, or by naming those that it needs.

An operation that needs a block that is not in memory raises ``BlocksMissing``; ``volume.runner`` fetches the blocks
through the pipeline, pins them to the operation, and runs it again from the start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, Self, TypeVar

from mystfuse.errors import CorruptFilesystem, MystfuseError

T = TypeVar("T")
Block = bytes | bytearray
"""A block as an operation reads it: in a transaction that has changed it, what ``Transaction.change`` gives. To be
looked at, not kept."""


class BlocksMissing(Exception):
    """Raised by an operation to name the blocks that it needs, as many as it knows at once.

    Args:
        numbers: block numbers, each inside the file system.
        ahead: block numbers that are worth fetching along with them; the operation can do without.
        progress: True when an operation that works through more blocks than can be pinned has kept its work
            so far, and needs none of the blocks it named before.
        speculative: see ``Blocks.speculating``.
    """

    def __init__(
        self, numbers: Iterable[int], ahead: Iterable[int] = (), progress: bool = False, speculative: bool = False
    ) -> None:
        self.numbers = frozenset(numbers)
        self.ahead = frozenset(ahead) - self.numbers
        self.progress = progress
        self.speculative = speculative
        self.owner: tuple[str, int] | None = None
        """What the blocks belong to, in words that end in its inode number: ``directory inode``; and that number."""
        super().__init__(f"{len(self.numbers)} blocks")

    def of(self, what: str, ino: int) -> Self:
        """The same exception, with what the blocks belong to, unless that is known."""
        self.owner = self.owner or (what, ino)
        return self


def together(steps: Iterable[Callable[[], T]]) -> list[T]:
    """The results of steps that do not need each other's. So many misses as there are steps would be more than an
    operation may have: those of all steps are named at once.

    Raises:
        BlocksMissing: as a step does.
        OSError, MystfuseError: as a step does, in front of which none has missed a block.
    """
    results: list[T] = []
    missed: list[BlocksMissing] = []
    for step in steps:
        try:
            results.append(step())
        except BlocksMissing as missing:
            missed.append(missing)
        except (OSError, MystfuseError):
            # If a step in front has stopped halfway, this may be because of that.
            if not missed:
                raise
    if missed:
        first = missed[0]
        numbers = frozenset().union(*(missing.numbers for missing in missed))
        error = BlocksMissing(numbers, speculative=first.speculative)
        error.owner = first.owner
        raise error
    return results


class WrittenBlocks(Protocol):
    """The blocks that have been written since the mount, as operations see them: an ``Overlay`` or a ``Snapshot``."""

    def get(self, number: int) -> bytes | int | None:
        """The block; its version, if the content has to be fetched from the overlay's store; or None if it is as in the
        image."""
        ...

    def holds(self, number: int) -> bool:
        """Whether writing the block (again) takes up no more memory."""
        ...


class Blocks:
    """The blocks one operation reads through: those written since the mount first, then the image's own.

    Blocks of the image that it has read stay pinned to it, safe from eviction. Written blocks are looked up anew each
    time: another operation may have changed them between two runs of this one.

    Args:
        cached: returns a block of the image, if it is in memory.
        written: None if nothing can be written.
    """

    def __init__(self, cached: Callable[[int], bytes | None], written: WrittenBlocks | None = None) -> None:
        self.pinned: dict[int, bytes] = {}
        self.damaged: dict[int, MystfuseError] = {}
        """Damaged or unreadable blocks, and why. An operation meets the error when it reads the block, not before."""
        self.suspect: dict[int, MystfuseError] = {}
        """The same for read-ahead blocks: an operation that needs one reads it again, and reports damage."""
        self.recalled: dict[int, bytes | MystfuseError] = {}
        """By version, written blocks fetched from the overlay's store, or why that failed."""
        self._cached = cached
        self._get_written = (lambda number: None) if written is None else written.get
        self._seen: dict[int, Block] = {}
        """Blocks as this run has read, or changed, them: no other operation runs in between."""
        self._is_speculative = False

    def restart(self) -> None:
        """A new run begins."""
        self._seen = {}

    @contextmanager
    def speculating(self) -> Iterator[None]:
        """In the context, reads are read-ahead, and errors fail nothing: damage is neither counted nor logged. An
        operation that needs the same block later meets the error anew."""
        before, self._is_speculative = self._is_speculative, True
        try:
            yield
        finally:
            self._is_speculative = before

    def find(self, number: int) -> Block | None:
        """The block, or None if it is not in memory.

        Raises:
            MystfuseError: the block is damaged or unreadable.
        """
        block = self._seen.get(number)
        if block is None:
            written = self._get_written(number)
            if isinstance(written, int):
                block = self._recalled(written)
                if block is None:
                    return None
            else:
                block = written or self.pinned.get(number)
            if block is None:
                if number in self.damaged:
                    raise self.damaged[number]
                if self._is_speculative and number in self.suspect:
                    raise self.suspect[number]
                block = self._cached(number)
                if block is None:
                    return None
                self.pinned[number] = block
            self._seen[number] = block
        return block

    def _recalled(self, version: int) -> bytes | None:
        block = self.recalled.get(version)
        if isinstance(block, MystfuseError):
            raise block
        return block

    def block(self, number: int, ahead: Iterable[int] = ()) -> Block:
        """The block; ``ahead`` are others worth fetching along with it when it is missing.

        Raises:
            BlocksMissing: it is not in memory.
            MystfuseError: it is damaged or unreadable.
        """
        block = self._seen.get(number) or self.find(number)
        if block is None:
            others = (other for other in ahead if not self._is_known(other))
            raise BlocksMissing([number], others, speculative=self._is_speculative)
        return block

    def all(self, numbers: Sequence[int]) -> list[Block]:
        """The blocks, in the order given.

        Raises:
            BlocksMissing: naming every one that is not in memory.
            MystfuseError: one of them is damaged or unreadable.
        """
        self.want(numbers)
        return [self.block(number) for number in numbers]

    def want(self, numbers: Iterable[int]) -> None:
        """Make sure that all blocks are in memory, except those known to be damaged.

        Raises:
            BlocksMissing: naming every one that is neither in memory nor known to be damaged.
        """
        missing = [number for number in numbers if number not in self._seen and not self._is_known(number)]
        if missing:
            raise BlocksMissing(missing, speculative=self._is_speculative)

    def is_sealed(self, number: int, part: int = 0) -> bool:
        """Whether a block's checksum has to match: not after the operation itself has changed the block; see
        ``Transaction.seal_later``."""
        return True

    def _is_known(self, number: int) -> bool:
        try:
            return self.find(number) is not None
        except MystfuseError:
            return True


Seal = Callable[[bytearray], None]
"""Writes the checksum of a block into it, or into the block that keeps it."""


class Transaction(Blocks):
    """The blocks of an operation that changes the file system. Nothing is changed until all of it is committed.

    ``volume.runner`` starts each further run with ``restart``. At the operation's end, it commits ``changed``,
    ``freed`` and the rest.
    """

    def __init__(
        self,
        block_size: int,
        cached: Callable[[int], bytes | None],
        written: WrittenBlocks,
        room: Callable[[], int],
    ) -> None:
        super().__init__(cached, written)
        self._holds = written.holds
        self._block_size = block_size
        self._room = room
        self.restart()

    def restart(self, budget: int | None = None) -> None:
        """A new run begins: drop the changes of an unfinished one.

        Args:
            budget: of file data; all the room that the overlay has if None.
        """
        super().restart()
        self.changed: dict[int, Block | memoryview] = {}
        """None of them is freed."""
        self.runs: list[tuple[int, memoryview]] = []
        """The number of the first of consecutive blocks, and the contents of all of them. None of them is in
        ``changed``, was read, or is freed."""
        self.freed: set[int] = set()
        self.orphaned: set[int] = set()
        """Inodes that lose their last name."""
        self.released: set[int] = set()
        """Inodes that are no orphans any more."""
        self.on_commit: list[Callable[[], None]] = []
        """Update caches after the commit. If there is no memory for that, all caches are dropped
        (``FileSystem.forget_all``), and filled again from the blocks."""
        self.absent: tuple[int, bytes, object] | None = None
        """A directory, a name that it does not have, and the way to where its index would have it (``htree.Path``), as
        this run has found them; nothing in between has changed that directory."""
        self._seals: dict[tuple[int, int], Seal] = {}
        self.gives_back = False
        """Whether the operation frees more than it takes, so that it may use the reserve of a full overlay."""
        self._budget = budget
        """None for all the room, which is found out when the budget is asked for."""
        self.spent = 0
        """Blocks that it has counted."""
        self.is_divisible = False
        """Whether the operation may do less than requested, when the budget is smaller."""

    @property
    def budget(self) -> int:
        """Blocks of file data that may still be added to the overlay; the operation counts it down."""
        if self._budget is None:
            self._budget = self._room()
        return self._budget

    @budget.setter
    def budget(self, blocks: int) -> None:
        self._budget = blocks

    def spend_for(self, pointers: Sequence[int]) -> int:
        """Count blocks of file data to write, as far as they take more memory; 0 stands for one still to be taken.
        Returns for how many of them the budget is enough, from the first one on."""
        budget = self.budget
        if len(pointers) == 1:
            # As below, in fewer steps.
            (pointer,) = pointers
            if pointer and self.holds_written(pointer):
                return 1
            if budget <= 0:
                return 0
            self._budget = budget - 1
            self.spent += 1
            return 1
        if any(pointers):
            holds = self.holds_written
            costly = [index for index, pointer in enumerate(pointers) if not (pointer and holds(pointer))]
        else:
            costly = list(range(len(pointers)))
        cost = min(len(costly), max(budget, 0))
        self._budget = budget - cost
        self.spent += cost
        return costly[cost] if cost < len(costly) else len(pointers)

    def find(self, number: int) -> Block | None:
        if self.runs:
            self._split_runs()
        block = self._seen.get(number)
        if block is None:
            changed = self.changed.get(number)
            if changed is None:
                return super().find(number)
            block = self._seen[number] = bytes(changed)
        return block

    def change(self, number: int) -> bytearray:
        """The block, to be changed in place.

        Raises:
            BlocksMissing, MystfuseError: as ``block``.
        """
        block = self._seen.get(number)
        if isinstance(block, bytearray):
            return block
        if number in self.freed:
            raise CorruptFilesystem(f"block {number} is freed as a file's, and the file system's own")
        new = self.changed[number] = self._seen[number] = bytearray(self.block(number) if block is None else block)
        return new

    def create(self, number: int) -> bytearray:
        """A block that was free so far: zeros, to be filled in place. Its old contents in the image are never read."""
        block = bytearray(self._block_size)
        self._replace(number, block)
        self._seen[number] = block
        return block

    def put(self, number: int, content: bytes | memoryview) -> None:
        """Replace the whole block. ``content`` must not change before the commit."""
        self._replace(number, content)

    def put_run(self, first: int, content: memoryview) -> None:
        """``put`` several blocks, from block ``first`` on. As an operation's last step, this costs less than single
        ``put``s."""
        if len(content) == self._block_size and not self.runs:
            self._replace(first, content)
            return
        numbers = range(first, first + len(content) // self._block_size)
        self.freed.difference_update(numbers)
        # A broken file may have a block twice: the last content counts.
        is_apart = all(
            other + len(run) // self._block_size <= first or numbers.stop <= other for other, run in self.runs
        )
        self.runs.append((first, content))
        if not is_apart or any(number in numbers for known in (self.changed, self._seen) for number in known):
            self._split_runs()

    def _split_runs(self) -> None:
        """Split the runs into single blocks, since another method needs blocks."""
        runs, self.runs = self.runs, []
        for first, content in runs:
            for index, start in enumerate(range(0, len(content), self._block_size)):
                self._replace(first + index, content[start : start + self._block_size])

    def _replace(self, number: int, content: bytes | bytearray | memoryview) -> None:
        if self.runs:
            self._split_runs()
        self._seen.pop(number, None)
        self.changed[number] = content
        self.freed.discard(number)

    def seal_later(self, number: int, seal: Seal, part: int = 0) -> None:
        """Have ``seal`` bring the checksum of a changed block up to date when the operation is complete: once, however
        often the block is changed. The last one given counts.

        Args:
            part: tells the seals of a block with several checksums apart.
        """
        self._seals[number, part] = seal

    def is_sealed(self, number: int, part: int = 0) -> bool:
        return (number, part) not in self._seals

    def seal(self) -> None:
        """The operation is complete: bring all checksums up to date.

        Raises:
            BlocksMissing, MystfuseError: a checksum is kept in a block that is not in memory, or is damaged.
        """
        while self._seals:
            number, part = next(iter(self._seals))
            seal = self._seals.pop((number, part))
            if number in self.changed:
                seal(self.change(number))

    def discard(self, number: int) -> None:
        """The block has become free."""
        if self.runs:
            self._split_runs()
        self._seals.pop((number, 0), None)
        if self.changed.pop(number, None) is not None:
            self._seen.pop(number, None)
        self.freed.add(number)

    def holds_written(self, number: int) -> bool:
        """Whether changing the block takes no more memory."""
        if self.runs:
            self._split_runs()
        return number in self.changed or self._holds(number)
